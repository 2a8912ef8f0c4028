"""Typed dataclasses from plain mappings; an unknown key, wrong type or impossible value is one clear error.

Supported field types: bool, int, float, str, None, Any, Literal, unions, list[X], dict[str, X] and nested
dataclasses. A field declares its bounds; a dataclass may define `validate(self)` and raise ValueError to
refuse a combination.
"""

import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union

import yaml

from utils.frame.files import UserError
from utils.frame.safe_yaml import load_yaml

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Text:
    """A value typed on the command line: still text, to be read as whatever type its key has."""

    value: str


# The bounds that a setting can declare, and what holds of a value that keeps them.
_BOUNDS = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
    "between": lambda value, ends: ends[0] <= value <= ends[1],
}


def setting(
    default: Any,
    help: str,
    path: bool = False,
    names_input: bool = False,
    **bounds: float | tuple[float, float],
) -> Any:
    """Declare a dataclass field: its default, its line in `--help`, whether it names a path, and its bounds.

    ``names_input``: a path that stands in for one of the run's own; a manifest's configuration has it only
    where it is given. ``bounds`` (above, at_least, below, at_most, between) hold for numbers alone.
    """
    metadata = {"help": help, "path": path or names_input, "names_input": names_input, "bounds": bounds}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def bounds_in_words(field: dataclasses.Field) -> str:
    """Return a field's bounds, e.g. "above 0 and at most 1"; "" where it declares none."""
    words = []
    for name, bound in field.metadata.get("bounds", {}).items():
        bound = " and ".join(map(str, bound)) if name == "between" else bound
        words.append(f"{name.replace('_', ' ')} {bound}")
    return " and ".join(words)


def check(values: Any) -> None:
    """Raise ValueError for the first field of a dataclass out of its bounds, then as its own `validate`."""
    for field in dataclasses.fields(values):
        value, bounds = getattr(values, field.name), field.metadata.get("bounds", {})
        if not isinstance(value, (int, float)) or all(_BOUNDS[name](value, bounds[name]) for name in bounds):
            continue
        otherwise = ", or null" if field.default is None else ""
        raise ValueError(f"{field.name} must be {bounds_in_words(field)}{otherwise}, found {value}")
    if hasattr(values, "validate"):
        values.validate()


def fields_of(target: type, values: Any) -> dict[str, Any]:
    """Return those of a dataclass's values whose names are fields of ``target`` too."""
    names = {field.name for field in dataclasses.fields(target)}
    return {name: value for name, value in vars(values).items() if name in names}


def changed(values: Any) -> dict[str, Any]:
    """Return what of a dataclass tree is not its class's default, as a YAML file would state it."""
    default, found = type(values)(), {}
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if value != getattr(default, field.name):
            found[field.name] = changed(value) if dataclasses.is_dataclass(value) else value
    return found


@lru_cache(maxsize=256)
def field_types(cls: type) -> dict[str, Any]:
    """Return name -> resolved type of the dataclass's fields."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def leaf_keys(cls: type, prefix: str = "") -> dict[str, tuple[Any, dataclasses.Field]]:
    """Return dotted key -> (type, field) for every value a dataclass tree holds."""
    leaves: dict[str, tuple[Any, dataclasses.Field]] = {}
    hints = field_types(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if _is_section(hint):
            leaves |= leaf_keys(hint, f"{prefix}{field.name}.")
        else:
            leaves[prefix + field.name] = (hint, field)
    return leaves


def _is_section(hint: Any) -> bool:
    """Whether values of this type have keys of their own."""
    return dataclasses.is_dataclass(hint)


def suggestion(key: str, valid: Iterable[str]) -> str:
    """Return '; did you mean "…"?' for the nearest valid key, or the valid keys when none is near."""
    valid = sorted(valid)
    # Matching on the last part lets `lr` in the wrong section find its home.
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if not near:
        last = {name.rsplit(".", 1)[-1]: name for name in reversed(valid)}
        near = [
            last[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
        ]
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; valid: {', '.join(valid)}" if 0 < len(valid) <= 12 else ""


def build(cls: type[T], data: Any, where: str, prefix: str = "") -> T:
    """Build `cls` from a mapping. Raises UserError naming `where` (the file), key and nearest valid key."""
    if isinstance(data, cls):
        return data
    if data is None:  # a section's name with nothing under it
        data = {}
    if not isinstance(data, dict):
        label = f'key "{prefix.rstrip(".")}"' if prefix else "the file"
        raise UserError(f"{where}: {label} must hold a mapping of keys, found {describe(data)}")
    hints = field_types(cls)  # type: ignore[arg-type]  # a type is hashable
    values = {}
    for key, value in data.items():
        if key not in hints:
            raise UserError(f'{where}: unknown key "{prefix}{key}"{suggestion(str(key), hints)}')
        values[key] = coerce(value, hints[key], where, prefix + key)
    try:
        built = cls(**values)
        check(built)
    except ValueError as error:
        raise UserError(f"{where}: {prefix}{error}") from None
    return built


def coerce(value: Any, hint: Any, where: str, key: str) -> Any:
    """Return `value` as type `hint`; raises UserError naming file and key."""
    if isinstance(value, Text) and _is_section(hint):
        raise UserError(
            f'{where}: "{key}" is a section; set one of its keys{suggestion(key, field_types(hint))}'
        )
    if _is_section(hint):
        return build(hint, value, where, key + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return parse_scalar(value.value) if isinstance(value, Text) else value
    if origin is Literal:
        return _coerce_literal(value, arguments, where, key)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments, hint, where, key)
    if origin in (list, dict):
        return _coerce_container(value, origin, arguments, where, key)
    converted = _coerce_scalar(value, hint)
    if converted is None and hint is not type(None):
        raise UserError(f'{where}: key "{key}" must be {type_name(hint)}, found {describe(value)}')
    return converted


def _coerce_scalar(value: Any, hint: Any) -> Any:
    """Return the value as bool, int, float, str or None; None where it cannot be read as that."""
    text = isinstance(value, Text)
    raw = value.value if text else value
    if hint is str:
        return raw if isinstance(raw, str) else None
    if hint is float and isinstance(raw, str):
        # YAML 1.1 reads 1e-4 (no dot) as text, so text that is a number is a number here.
        try:
            raw = float(raw)
        except ValueError:
            return None
    elif text and hint is int:
        # Plain decimal: YAML would read 010 as 8 and 1:30 as 90.
        raw = int(raw) if re.fullmatch(r"[+-]?[0-9]{1,18}", raw) else raw
    elif text:
        raw = parse_scalar(raw)
    if hint is bool:
        return raw if isinstance(raw, bool) else None
    if hint is int:
        return raw if isinstance(raw, int) and not isinstance(raw, bool) else None
    if hint is float:
        number = isinstance(raw, (int, float)) and not isinstance(raw, bool) and math.isfinite(raw)
        return float(raw) if number else None
    return None


def _coerce_literal(value: Any, choices: tuple, where: str, key: str) -> Any:
    raw = value.value if isinstance(value, Text) else value
    for choice in choices:
        same = str(choice) == raw if isinstance(value, Text) else type(choice) is type(raw) and choice == raw
        if same:
            return choice
    near = difflib.get_close_matches(str(raw), map(str, choices), n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    raise UserError(
        f'{where}: key "{key}" must be one of {", ".join(map(str, choices))}, found {describe(value)}{hint}'
    )


def _coerce_union(value: Any, members: tuple, hint: Any, where: str, key: str) -> Any:
    raw = value.value if isinstance(value, Text) else value
    if type(None) in members and (raw is None or isinstance(value, Text) and raw.lower() in ("null", "none")):
        return None
    # Text matches every str, so str is tried last.
    for member in sorted(members, key=lambda m: m is str):
        if member is type(None):
            continue
        try:
            return coerce(value, member, where, key)
        except UserError:
            continue
    raise UserError(f'{where}: key "{key}" must be {type_name(hint)}, found {describe(value)}')


def _coerce_container(value: Any, kind: type, arguments: tuple, where: str, key: str) -> Any:
    raw = value
    if isinstance(value, Text):
        flow = value.value.strip()
        if kind is dict or flow.startswith("["):
            raw = parse_scalar(flow)
        else:
            raw = [Text(part.strip()) for part in flow.split(",")] if flow else []
    if kind is dict:
        if not isinstance(raw, dict):
            raise UserError(f'{where}: key "{key}" must be a mapping, found {describe(value)}')
        return {
            coerce(name, arguments[0], where, key): coerce(item, arguments[1], where, f"{key}.{name}")
            for name, item in raw.items()
        }
    if not isinstance(raw, list):
        raise UserError(f'{where}: key "{key}" must be a list, found {describe(value)}')
    return [coerce(item, arguments[0], where, f"{key}[{i}]") for i, item in enumerate(raw)]


def parse_scalar(text: str) -> Any:
    """Read command-line text as YAML would (numbers, true/false, null, [lists]); else as itself."""
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def describe(value: Any) -> str:
    """Return a value for a message: its text, cut at 60 characters, and its type."""
    if isinstance(value, Text):
        return f'"{value.value}"'
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return f"{text[:60] + '…' if len(text) > 60 else text} ({type(value).__name__})"


def type_name(hint: Any) -> str:
    """Return a type as the documentation writes it, e.g. "int or null", "float", "list of str"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(member) for member in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if hint is type(None):
        return "null"
    return "any" if hint is Any else getattr(hint, "__name__", str(hint))
