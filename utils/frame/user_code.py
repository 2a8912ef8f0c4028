"""Functions of the user's own, from Python files that a configuration names (docs/extending.md).

A file stands alone: it may import the standard library, installed packages and this project, but not its
neighbours, so that its own text, which manifests hash, is all that decides what it does. It runs with the
rights of whoever runs the stage, as any script does.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.frame.credentials import redact
from utils.frame.files import UserError, shown
from utils.frame.typed_settings import suggestion


@dataclass(frozen=True)
class Function:
    """A function of the user's; ``where`` names its file in messages."""

    where: str
    name: str
    call: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns. Raises UserError naming file and line where it raises anything."""
        try:
            return self.call(*arguments)
        except (Exception, SystemExit) as error:
            raise self.fault(error) from None

    def fault(self, error: BaseException) -> UserError:
        """The one line about an error that the function raised."""
        return UserError(f"{_place(self.where, error)}: {self.name}() raised {_named(error)}")


def read_source(path: Path) -> str:
    """The text of a Python file. Raises UserError where it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{shown(path)}: {(error.strerror or 'cannot be read').lower()}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8 text (byte {error.start})") from None


@lru_cache(maxsize=64)
def load_function(source: str, where: str, name: str, takes: tuple[str, ...]) -> Function:
    """The function ``name`` of a Python file's text, which is to be called with arguments named ``takes``.

    ``where`` names the file in messages. Raises UserError where the text is no Python, fails, has no such
    function, or has one that does not take these arguments.
    """
    module = ModuleType(f"own_{Path(where).stem}_{abs(hash(source)):x}")
    module.__file__ = where
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    try:
        exec(compile(source, where, "exec"), module.__dict__)  # the user's own code, named by the user
    except SyntaxError as error:
        raise UserError(f"{where}:{error.lineno or 1}: not valid Python ({error.msg})") from None
    except ValueError as error:  # a null byte
        raise UserError(f"{where}: not valid Python ({error})") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{_place(where, error)}: loading the file raised {_named(error)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise UserError(f'{where}: has no function "{name}"{suggestion(name, own)}')
    _check_signature(function, where, name, takes)
    return Function(where, name, function)


def _check_signature(function: Callable, where: str, name: str, takes: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # one that does not say what it takes
    try:
        signature.bind(*takes)
    except TypeError:
        raise UserError(
            f"{where}: {name}{signature} cannot be called as {name}({', '.join(takes)})"
        ) from None


def _place(where: str, error: BaseException) -> str:
    """``file:line`` of the innermost line of the file that led to the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == where]
    return f"{where}:{lines[-1]}" if lines else where


def _named(error: BaseException) -> str:
    text = redact(" ".join(str(error).split()))  # before it is cut: half a token would not be known
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
