"""Values of options: their types, their ranges and their names, whether they come from flags, TOML, JSON or Python.

Standard library only. Knows no option by name.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from prmbench.core import reading
from prmbench.core.records import UserError

C = TypeVar("C")
OPTIONS = "options"
"""The source of values that come from the command line or from a caller in Python."""
LARGEST_FLOAT = 3.4e38
"""A larger number is infinite in float32, in which models compute."""
SIMILAR = 0.6
"""Similarity (difflib's ratio) from which a wrong value counts as a misspelling of a right one."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that an option may have; a bound that is None does not bind."""

    min: float | None = None
    """Smallest allowed value."""
    max: float | None = None
    """Largest allowed value."""
    above: float | None = None
    """Every allowed value is larger than this."""
    below: float | None = None
    """Every allowed value is smaller than this."""
    off: float | None = None
    """A value outside the bounds that is allowed because it switches something off."""

    def __contains__(self, value: float) -> bool:
        """Whether the value is in the range; NaN never is."""
        return value == self.off or (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words, e.g. `at least 1`, `0 to 1`, `above 0, at most 1`."""
        if self.min is not None and self.max is not None:
            return f"{_short(self.min)} to {_short(self.max)}"
        bounds = {"at least": self.min, "above": self.above, "at most": self.max, "below": self.below}
        text = ", ".join(f"{words} {_short(bound)}" for words, bound in bounds.items() if bound is not None)
        return text if self.off is None else f"{_short(self.off)}, or {text}"


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def from_mapping(config: type[C], values: Mapping[str, Any], source: str) -> C:
    """Build a config from parsed values.

    Args:
        config: The dataclass; a field's `metadata["range"]` is the `Range` of its numbers.
        values: Option name -> value, as TOML, JSON or the command line gives it.
        source: The file that the values come from, or `OPTIONS`; error messages begin with it.

    Raises:
        UserError: A name is unknown, or a value has the wrong type or is out of range.
    """
    hints = get_type_hints(config)
    ranges = {f.name: f.metadata.get("range") for f in fields(config)}  # type: ignore[arg-type]
    check_names(values, hints, f"{source}: unknown option")
    checked: dict[str, Any] = {}
    for name, value in values.items():
        label = f"--{name.replace('_', '-')}" if source == OPTIONS else f"{source}: {name}"
        checked[name] = _coerce(value, hints[name], label)
        allowed = ranges.get(name)
        if allowed is not None and checked[name] is not None and checked[name] not in allowed:
            raise UserError(f"{label} is {reading.short_repr(value)}; expected {allowed}")
    return config(**checked)


def check_names(names: Iterable[str], known: Iterable[str], message: str) -> None:
    """Refuse names that are not among the known ones.

    Args:
        names: Keys or names that a user wrote.
        known: The names that are allowed.
        message: Beginning of the error message, such as `prm.json: unknown key`.

    Raises:
        UserError: One is unknown; the message gives the known name that is most like it.
    """
    known_names = sorted(known)
    for name in sorted(set(names) - set(known_names)):
        nearest = difflib.get_close_matches(name, known_names, n=1, cutoff=0.0)
        raise UserError(f"{message} {name!r}; the nearest is {nearest[0]!r}, known are {', '.join(known_names)}")


def check_choice(value: Any, choices: Iterable[Any], message: str) -> None:
    """Refuse a value that is not among the choices.

    Args:
        value: What a user wrote.
        choices: The values that are allowed.
        message: Beginning of the error message, such as `--engine is 'hff'`.

    Raises:
        UserError: The message lists the choices, after the one that the value seems to be a misspelling of.
    """
    names = [str(choice) for choice in choices]
    if value in names:
        return
    nearest = difflib.get_close_matches(value, names, n=1, cutoff=SIMILAR) if isinstance(value, str) else []
    hint = f"the nearest is {nearest[0]!r}, " if nearest else ""
    raise UserError(f"{message}; {hint}choose from {', '.join(names)}")


def validate(config: C) -> C:
    """Return the config with every value checked and of its declared type: callers in Python may give paths as strings.

    Raises:
        UserError: A value has the wrong type or is out of range.
    """
    return from_mapping(type(config), {f.name: getattr(config, f.name) for f in fields(config)}, OPTIONS)  # type: ignore[arg-type]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML table of options; `-` and `_` are alike in names, and tables are prefixes.

    Raises:
        UserError: The file cannot be read, is not valid TOML, or sets one option twice.
    """
    try:
        pairs = list(_flatten(reading.read_toml(path)))
    except RecursionError as error:
        raise UserError(f"{path}: {reading.TOO_DEEP}") from error
    values = dict(pairs)
    if len(values) != len(pairs):
        raise UserError(f"{path}: {reading.first_duplicate(name for name, _ in pairs)} is there twice; keep one")
    return values


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (option name, value): a table [rm] with a key `loss` is the option rm_loss."""
    for key, value in table.items():
        name = prefix + key.replace("-", "_")
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}_")
        else:
            yield name, value


def _coerce(value: Any, hint: Any, label: str) -> Any:
    """Return a TOML, JSON or command-line value as its declared type; `label` begins the error message."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _coerce(value, next(a for a in args if a is not type(None)), label)
    if origin is Literal:
        return _choice(value, args, label)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(item, args[0], label) for item in items)
    if isinstance(value, str | Path):
        check_text(str(value), label)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    if type(value) is not hint and not isinstance(value, Path):
        raise UserError(f"{label} is {reading.short_repr(value)}; expected {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{label} is {value}; expected a finite number")
    if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
        raise UserError(f"{label} is {value}; expected at most {LARGEST_FLOAT:g}")
    return value


def _choice(value: Any, choices: tuple[Any, ...], label: str) -> Any:
    """Return one of the choices; true and false are `on` and `off`, since a switch may have become a choice."""
    if isinstance(value, bool) and "on" in choices:
        value = "on" if value else "off"
    check_choice(value, choices, f"{label} is {reading.short_repr(value)}")
    return value


def check_text(value: str, label: str) -> None:
    """Refuse a text that can be neither a path nor a name.

    Raises:
        UserError: It holds NUL, or bytes that are not UTF-8; the message begins with `label`.
    """
    if "\0" in value:
        raise UserError(f"{label} is {value!r:.60}; a NUL can be in no name")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{label} is {value!r:.60}; its characters are not valid Unicode, use another name") from error
