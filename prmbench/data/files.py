"""Reads rows from json, jsonl and parquet, and says which row is wrong. Knows no benchmark."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prmbench import reading
from prmbench.option_values import check_text
from prmbench.schema import UserError

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair: JSON can spell it, UTF-8 and tokenizers cannot."""
_PERHAPS_NOT_FINITE = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{300}")
"""In the text of a JSON file, where a number may be none or too large; the values then decide."""
T = TypeVar("T")
SUFFIXES = (".json", ".jsonl", ".parquet")


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files directly in the folder, by name."""
    if not reading.exists(path):
        raise UserError(
            f"{path}: no such file or folder; --data takes a json, jsonl or parquet file or a folder of them"
        )
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder; save the rows to a file")
    try:
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not _is_summary(p))
    except OSError as error:
        raise UserError(f"{path}: cannot be searched ({reading.reason(error)})") from error
    for file in found:
        check_text(file.name, "the name of a file in --data")
    if not found:
        raise UserError(f"{path}: holds no {', '.join(SUFFIXES)} file")
    return found


def _is_summary(path: Path) -> bool:
    """`x.jsonl.json`: what `rollout` writes beside x.jsonl."""
    return path.suffix == ".json" and Path(path.stem).suffix in SUFFIXES


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of one file. Raises UserError when it is not what its suffix says."""
    if path.suffix == ".parquet":
        return _parquet(path)
    text = reading.read_text(path)
    if path.suffix == ".jsonl":
        rows = [_object(line, f"{path} line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        _check_finite(rows, text, path)
        return rows
    if path.suffix != ".json":
        raise UserError(f"{path}: unknown file type {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    rows = reading.parse_json(text, str(path), finite=False)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of objects, one a row")
    _check_finite(rows, text, path)
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    reading.check_file(path)
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a parquet file of rows ({what})") from error
    return rows


def _check_finite(rows: Sequence[Mapping[str, Any]], text: str, path: Path) -> None:
    """Raises UserError naming row and field of the first number that is NaN or infinite."""
    if not _PERHAPS_NOT_FINITE.search(text):
        return
    for number, row in enumerate(rows):
        for name, value in row.items():
            if any(isinstance(v, float) and not math.isfinite(v) for v in _values(value)):
                raise UserError(f"{path} row {number}: field {name!r} is {_shown(value)}; expected finite numbers")


def _values(value: Any) -> Iterator[Any]:
    """The value, or all values in a list or an object, however deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | dict):
            waiting += value.values() if isinstance(value, dict) else value
        else:
            yield value


def _object(line: str, where: str) -> dict[str, Any]:
    row = reading.parse_json(line, where, finite=False)
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object")
    return row


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """A string that is not blank."""
    value = row.get(name)
    if not _is_text(value):
        raise UserError(
            f"{where}: field {name!r} is {_shown(value)}; expected a text that is not blank, in valid Unicode"
        )
    return str(value)


def steps_field(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A list of at least one step, none of them blank."""
    value = row.get("steps")
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: field 'steps' is {_shown(value)}; expected a list of at least one step")
    for index, step in enumerate(value):
        if not _is_text(step):
            raise UserError(
                f"{where}: step {index} is {_shown(step)}; expected a text that is not blank, in valid Unicode"
            )
    return tuple(value)


def checked_name(value: Any, name: str, where: str) -> str:
    """An id or a subset as text. Raises UserError on one that no file can hold."""
    text = str(value)
    if "\0" in text or _HALF_CHARACTER.search(text):
        raise UserError(f"{where}: field {name!r} is {_shown(value)}; expected valid Unicode, without NUL")
    return text


def check_limit(limit: int | None) -> None:
    """Raises UserError on a --limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; expected at least 1")


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of them at even distances: published sets are ordered by label, subject or year."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def unique_ids(ids: Sequence[str], where: str) -> None:
    """Raises UserError when an id occurs twice: results are joined by it."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{where}: id {name!r} occurs twice; every trace needs an id of its own")
        seen.add(name)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _HALF_CHARACTER.search(value)


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
