"""Values of options: from TOML, the command line and callers to the types that the dataclasses of config declare.

Standard library only. Knows no option by name.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from prmbench.core import reading
from prmbench.core.records import UserError

C = TypeVar("C")
OPTIONS = "options"
"""Where values come from that are named on the command line, or by a caller in Python."""


def from_mapping(config: type[C], values: Mapping[str, Any], where: str) -> C:
    """Builds a config from parsed values. Raises UserError on an unknown name or a value of the wrong type."""
    hints = get_type_hints(config)
    check_names(values, hints, f"{where}: unknown option")
    labels = {name: f"--{name.replace('_', '-')}" if where == OPTIONS else f"{where}: {name}" for name in values}
    return config(**{name: _coerce(value, hints[name], labels[name]) for name, value in values.items()})


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises UserError when a name is not among the known ones, with the one that is most like it."""
    listed = sorted(known)
    for name in sorted(set(names) - set(listed)):
        nearest = difflib.get_close_matches(name, listed, n=1, cutoff=0.0)
        raise UserError(f"{what} {name!r}; the nearest is {nearest[0]!r}, known are {', '.join(listed)}")


def coerced(config: C) -> C:
    """The config with every value of its declared type, so that callers in Python may give paths as strings."""
    return from_mapping(type(config), {f.name: getattr(config, f.name) for f in fields(config)}, OPTIONS)  # type: ignore[arg-type]


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML table of options; `-` and `_` are alike in names, and tables are prefixes. Raises UserError."""
    try:
        pairs = list(_flat(reading.read_toml(path)))
    except RecursionError as error:
        raise UserError(f"{path}: {reading.TOO_DEEP}") from error
    values = dict(pairs)
    if len(values) != len(pairs):
        raise UserError(f"{path}: {reading.first_repeated(name for name, _ in pairs)} is there twice; keep one")
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A table [rm] with a key `loss` is the option rm_loss."""
    for name, value in values.items():
        own = prefix + name.replace("-", "_")
        if isinstance(value, dict):
            yield from _flat(value, f"{own}_")
        else:
            yield own, value


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """A TOML or command-line value as its declared type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _coerce(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where} is {value!r}; choose from {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(item, args[0], where) for item in items)
    if isinstance(value, str | Path):
        check_text(str(value), where)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is not hint and not isinstance(value, Path):
        raise UserError(f"{where} is {reading.shown(value)}; expected {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; expected a finite number")
    return value


def check_text(value: str, where: str) -> None:
    """Raises UserError on a text that can be no path and no name: with NUL, or with bytes that are not UTF-8."""
    if "\0" in value:
        raise UserError(f"{where} is {value!r:.60}; a NUL can be in no name")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is {value!r:.60}; its characters are not valid Unicode, use another name") from error
