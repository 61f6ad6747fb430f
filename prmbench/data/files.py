"""Reads rows from json, jsonl and parquet, and says which row is wrong. Knows no benchmark."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prmbench.core import reading
from prmbench.core.option_values import check_text
from prmbench.core.records import Notice, UserError
from prmbench.core.redaction import first_line

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair: JSON can spell it, UTF-8 and tokenizers cannot."""
_PERHAPS_NOT_FINITE = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{300}")
"""In a JSON text, a number that may be none or too large."""
T = TypeVar("T")
SUFFIXES = (".json", ".jsonl", ".parquet")
NAMED_ROWS = 5
"""So many of the rows that cannot be read are named."""


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
    """All rows of one file. Raises UserError when it is not what its suffix says, or one row is not an object."""
    rows: list[dict[str, Any]] = []
    for row in _rows_and_faults(path):
        if isinstance(row, UserError):
            raise row
        rows.append(row)
    return rows


def _rows_and_faults(path: Path) -> Sequence[dict[str, Any] | UserError]:
    """The rows of one file, with an error in the place of each that is no object or holds a number that is none."""
    if path.suffix == ".parquet":
        return _parquet(path)
    text = reading.read_text(path)
    if path.suffix == ".jsonl":
        lines = enumerate((line.lstrip(reading.BYTE_ORDER_MARK) for line in text.split("\n")), 1)  # of joined files
        return [_line(line, f"{path} line {n}") for n, line in lines if line.strip()]
    if path.suffix != ".json":
        raise UserError(f"{path}: unknown file type {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    rows = reading.parse_json(text, str(path), finite=False)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, one a row")
    look_at_numbers = _perhaps_not_finite(text)
    return [
        _finite_or_fault(row, f"{path} row {n}", look_at_numbers)
        if isinstance(row, dict)
        else UserError(f"{path} row {n} is {shown(row)}; expected a list of objects, one a row")
        for n, row in enumerate(rows)
    ]


def read_each(
    path: Path, read: Callable[[dict[str, Any], str], T], on_unreadable: Callable[[str], None] | None = None
) -> Iterator[tuple[Path, int, dict[str, Any], T]]:
    """Read every row of a file, or of the data files in a folder, by a function of the row and of its place.

    Args:
        path: A data file, or a folder of them.
        read: Makes something of a row, or raises UserError.
        on_unreadable: Called with the reason for every row that cannot be read, which is then left out.

    Yields:
        File, number of the row within it from 0, the row, and what was made of it.

    Raises:
        UserError: A file cannot be read as a whole; without `on_unreadable`, also for the first row that cannot.
    """
    for file in data_files(path):
        for number, row in enumerate(_rows_and_faults(file)):
            try:
                if isinstance(row, UserError):
                    raise row
                value = read(row, f"{file} row {number}")
            except UserError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(str(error))
                continue
            yield file, number, row, value


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    reading.check_file(path)
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError, ImportError) as error:
        # the last two are those of a time zone that nobody knows
        raise UserError(f"{path}: not a parquet file of rows ({first_line(error)})") from error
    return rows


def _perhaps_not_finite(text: str) -> bool:
    """Whether a number in a JSON text may be NaN or infinite; the values then decide, which takes longer."""
    return _PERHAPS_NOT_FINITE.search(text) is not None


def _values(value: Any) -> Iterator[Any]:
    """The value, or all values in a list or an object, however deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | dict):
            waiting += value.values() if isinstance(value, dict) else value
        else:
            yield value


def _line(line: str, where: str) -> dict[str, Any] | UserError:
    try:
        row = reading.parse_json(line, where, finite=False)
    except UserError as error:
        return error
    if not isinstance(row, dict):
        return UserError(f"{where}: expected a JSON object")
    return _finite_or_fault(row, where, _perhaps_not_finite(line))


def _finite_or_fault(row: dict[str, Any], where: str, look_at_numbers: bool) -> dict[str, Any] | UserError:
    """The row, or an error that names the first field with a number that is NaN or infinite."""
    for name, value in row.items() if look_at_numbers else ():
        if any(isinstance(v, float) and not math.isfinite(v) for v in _values(value)):
            return UserError(f"{where}: field {name!r} is {shown(value)}; expected finite numbers")
    return row


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """A string that is not blank."""
    value = row.get(name)
    if not _is_text(value):
        raise UserError(
            f"{where}: field {name!r} is {shown(value)}; expected a text that is not blank, in valid Unicode"
        )
    return str(value)


def steps_field(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A list of at least one step, none of them blank."""
    value = row.get("steps")
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: field 'steps' is {shown(value)}; expected a list of at least one step")
    for index, step in enumerate(value):
        if not _is_text(step):
            raise UserError(
                f"{where}: step {index} is {shown(step)}; expected a text that is not blank, in valid Unicode"
            )
    return tuple(value)


def warn_of_unreadable_rows(path: Path, faults: Sequence[str], rows: int, advice: str = "") -> None:
    """Warn, once, that some of the rows are left out; names the first few of them."""
    if faults:
        named = "; ".join([*faults[:NAMED_ROWS], *(["..."] if len(faults) > NAMED_ROWS else [])])
        message = f"{path}: {len(faults)} of {rows} rows cannot be read and are left out{advice}: {named}"
        warnings.warn(message, Notice, stacklevel=3)


def checked_name(value: Any, name: str, where: str) -> str:
    """An id or a subset as text. Raises UserError on one that no file can hold."""
    text = str(value)
    if "\0" in text or _HALF_CHARACTER.search(text):
        raise UserError(f"{where}: field {name!r} is {shown(value)}; expected valid Unicode, without NUL")
    return text


def check_limit(limit: int | None) -> None:
    """Raises UserError on a --limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; expected at least 1")


def unique_ids(ids: Sequence[str], where: str) -> None:
    """Raises UserError when an id occurs twice: results are joined by it."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{where}: id {name!r} occurs twice; every trace needs an id of its own")
        seen.add(name)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _HALF_CHARACTER.search(value)


def shown(value: Any) -> str:
    """A field's value in a message, cut."""
    return "missing" if value is None else reading.shown(value)
