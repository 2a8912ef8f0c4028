"""Reading the configuration tiers (model, algo, dataset, reward) from YAML, and all that a stage was told.

The tiers themselves are typed dataclasses: utils/models/settings.py, utils/data/settings.py; a method's
hyper-parameters and the reward specification lie beside the code that uses them.
"""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from utils.frame.files import REPO_ROOT, UserError, resolve_path, shown
from utils.frame.safe_yaml import LONGEST, load_yaml
from utils.frame.synonyms import REFUSED, SWITCHES, Key, having, meant
from utils.frame.typed_settings import Text, build, leaf_keys, parse_scalar, setting, suggestion

__all__ = [
    "StageConfig",
    "absolute_if_local",
    "load_tier",
    "portable",
    "read_yaml",
    "relative_name",
    "setting",
]

T = TypeVar("T")


# ------------------------------------------------------------------------------------------- loading


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError naming file (and line) when missing, damaged or not a mapping."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = load_yaml(file.read(LONGEST + 1))
    except FileNotFoundError:
        others = [shown(other) for other in path.parent.glob("*.yaml")]
        raise UserError(f"{shown(path)}: no such file{suggestion(shown(path), others)}") from None
    except IsADirectoryError:
        raise UserError(f"{shown(path)}: is a folder, not a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{shown(path)}{line}: not valid YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{shown(path)}: not valid YAML ({' '.join(str(error).split())})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{shown(path)}: must hold a mapping of keys, found {type(data).__name__}")
    return data


def load_tier(cls: type[T], path: str | Path | None, overrides: dict[str, Any] | None = None) -> T:
    """Load one tier: dataclass defaults, then the YAML file, then overrides (dotted key -> value).

    `path` None stands for an empty file. Raises UserError naming file, key and nearest valid key.
    """
    where = shown(path) if path is not None else cls.__name__
    data = renamed(cls, read_yaml(path), where) if path is not None else {}
    # The file is checked alone first, so that an error names the file or the command line, whichever has it.
    loaded = build(cls, data, where)
    if not overrides:
        return loaded
    for key, value in overrides.items():
        section = data
        *parents, name = key.split(".")
        for parent in parents:
            section[parent] = section.get(parent) or {}
            section = section[parent]
        section[name] = absolute_if_local(value) if _is_path(cls, key) else value
    return build(cls, data, f"command line (over {where})")


def renamed(cls: type, data: dict[str, Any], where: str) -> dict[str, Any]:
    """A file's mapping under this project's names (utils/frame/synonyms.py), after what the class itself does
    to files of an older form (``from_older``). Raises UserError where two names of a setting are given.
    """
    if hasattr(cls, "from_older"):
        data = cls.from_older(data)
    keys = {
        name: Key("", name, hint, spec.metadata.get("help", ""))
        for name, (hint, spec) in leaf_keys(cls).items()
    }
    found: dict[str, Any] = {}
    for path, value in sorted(_leaves(data, keys), key=lambda leaf: leaf[0] not in keys):
        for name, given in _named_here(path, value, keys, where):
            section = found
            *parents, last = name.split(".")
            for parent in parents:
                if not isinstance(section.setdefault(parent, {}), dict):
                    section[parent] = {}
                section = section[parent]
            if last in section and name != path:
                raise UserError(f'{where}: "{path}" and "{name}" are one setting: give it once, as {name}')
            section[last] = given
    return found


def _leaves(data: dict[str, Any], keys: dict[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of all that a mapping sets."""
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in keys:
            yield from _leaves(value, keys, f"{path}.")
        else:
            yield path, value


def _named_here(path: str, value: Any, keys: dict[str, Key], where: str) -> list[tuple[str, Any]]:
    """The settings that a key of a file sets, under the names that they have here."""
    section, _, last = path.rpartition(".")
    if path in keys or any(key.startswith(f"{path}.") for key in keys):
        return [(path, value)]
    if last in SWITCHES and isinstance(value, bool):
        found = [(having(target, keys), text) for target, text in SWITCHES[last]]
        return [(homes[0], parse_scalar(text)) for homes, text in found if homes][:1] if value else []
    homes = meant(path, keys) or meant(last, keys)
    if len(homes) > 1:
        raise UserError(f'{where}: "{path}" is ambiguous here: write {" or ".join(homes)}')
    if not homes and (reason := REFUSED.get(last)):
        raise UserError(f'{where}: "{path}" is not taken: {reason}')
    return [(homes[0] if homes else path, value)]


def _is_path(cls: type, key: str) -> bool:
    leaf = leaf_keys(cls).get(key)
    return leaf is not None and leaf[1].metadata.get("path", False)


def absolute_if_local(value: Any) -> Any:
    """A path typed on the command line is meant from the working directory, where it exists there."""
    if isinstance(value, Text) and value.value and Path(value.value).expanduser().exists():
        return Text(os.path.abspath(Path(value.value).expanduser()))
    return value


# --------------------------------------------------------------------------------------- a stage's whole


@dataclass(frozen=True)
class StageConfig:
    """Everything a stage was told: its tiers (None for a tier it has not), its own options and the seed."""

    model: Any = None
    algo: Any = None
    dataset: Any = None
    reward: Any = None
    options: Any = None
    seed: int = 0
    quick_test: bool = False

    def to_dict(self, run_dir: Path | None = None) -> dict[str, Any]:
        """Return every resolved value, with no absolute path and nothing that names the run.

        Where outputs go does not change what they are, so `model.paths.outputs` is left out.
        """
        tiers = {}
        for name in ("model", "algo", "dataset", "reward", "options"):
            value = getattr(self, name)
            if value is not None:
                tiers[name] = portable(dataclasses.asdict(value), run_dir)
                for field in dataclasses.fields(value):
                    if field.metadata.get("names_input") and not getattr(value, field.name):
                        del tiers[name][field.name]
        tiers.get("model", {}).get("paths", {}).pop("outputs", None)
        return tiers | {"quick_test": self.quick_test}


def portable(value: Any, run_dir: Path | None = None) -> Any:
    """Return plain JSON data in which absolute paths are written relative to the run or the repository."""
    if isinstance(value, dict):
        return {str(key): portable(item, run_dir) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item, run_dir) for item in value]
    if isinstance(value, Path) or isinstance(value, str) and os.path.isabs(value) and "\n" not in value:
        return relative_name(resolve_path(value), run_dir)
    return value


def relative_name(path: Path, run_dir: Path | None = None) -> str:
    """Return the name a manifest gives a path.

    Relative to the run for a file of the run, to the repository for one in it, else "external/<basename>".
    """
    path = Path(os.path.abspath(path))
    for root in (run_dir, REPO_ROOT):
        if root is not None and path.is_relative_to(os.path.abspath(root)):
            return path.relative_to(os.path.abspath(root)).as_posix()
    return f"external/{path.name}"


@dataclass
class PathsSection:
    """Folders, relative to the repository unless absolute. `--outputs_root` overrides `outputs`."""

    outputs: str = setting("outputs", "where runs are written", path=True)
    datasets: str = setting("datasets", "where download.sh puts data", path=True)
