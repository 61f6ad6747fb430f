"""Reads and checks rows of json, jsonl and parquet files; errors name the row. Independent of any benchmark."""

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

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair, which JSON can express, but neither UTF-8 nor a tokenizer."""
_NONFINITE_HINT = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{300}")
"""What a JSON text contains wherever one of its numbers is NaN, infinite or too large for a float."""
T = TypeVar("T")
SUFFIXES = (".json", ".jsonl", ".parquet")
LIST_NAMES = ("data", "rows", "examples", "samples", "instances", "items", "records", "entries", "traces", "results")
"""Names under which an object in a JSON file has its rows."""
MAX_QUOTED_ROWS = 5
"""How many of the unreadable rows a warning quotes."""


def data_files(path: Path) -> list[Path]:
    """Return the file itself, or the data files directly in the folder, sorted by name."""
    if not reading.exists(path):
        raise UserError(
            f"{path}: no such file or folder; --data takes a json, jsonl or parquet file or a folder of them"
        )
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder; save the rows to a file")
    try:
        data_paths = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not _is_summary(p))
    except OSError as error:
        raise UserError(f"{path}: cannot be searched ({reading.error_reason(error)})") from error
    for file in data_paths:
        check_text(file.name, "the name of a file in --data")
    if not data_paths:
        raise UserError(f"{path}: holds no {', '.join(SUFFIXES)} file")
    return data_paths


def _is_summary(path: Path) -> bool:
    """Whether a file is `x.jsonl.json`, the summary that `rollout` writes next to x.jsonl."""
    return path.suffix == ".json" and Path(path.stem).suffix in SUFFIXES


Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return all rows of one file.

    Raises:
        UserError: The file does not have the format of its suffix, or a row is not an object.
    """
    return [row for _, row in located_rows(path)]


def located_rows(path: Path, on_unreadable: Callable[[str], None] | None = None) -> list[tuple[str, Row]]:
    """Return all rows of one file, each after its location: `a.jsonl line 3`, `a.json row 3`, counted from 1.

    Args:
        path: The file.
        on_unreadable: Called with the reason for every row that is not an object, which is then left out.

    Raises:
        UserError: The file does not have the format of its suffix; without `on_unreadable`, a row is not an object.
    """
    rows: list[tuple[str, Row]] = []
    for location, row in _rows_or_errors(path):
        if not isinstance(row, UserError):
            rows.append((location, row))
        elif on_unreadable is None:
            raise row
        else:
            on_unreadable(str(row))
    return rows


def _rows_or_errors(path: Path) -> Sequence[tuple[str, Row | UserError]]:
    """Return (location, row) of a file; an error is in place of a row that is no object or has a non-finite number."""
    if path.suffix == ".parquet":
        return [(f"{path} row {n}", row) for n, row in enumerate(_read_parquet(path), 1)]
    text = reading.read_text(path)
    if path.suffix == ".jsonl":
        # Concatenated files may have a byte order mark at the start of any line.
        lines = enumerate((line.lstrip(reading.BYTE_ORDER_MARK) for line in text.split("\n")), 1)
        located = ((line, f"{path} line {n}") for n, line in lines if line.strip())
        return [(location, _parse_line(line, location)) for line, location in located]
    if path.suffix != ".json":
        raise UserError(f"{path}: unknown file type {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    try:
        rows = reading.parse_json(text, str(path), finite=False)
    except UserError as error:
        hint = "; if every line is a row, name it .jsonl" if text.lstrip().startswith("{") else ""
        raise UserError(f"{error}{hint}") from error
    rows = _unwrapped(rows, path)
    check_numbers = _may_have_nonfinite(text)
    return [
        (
            f"{path} row {n}",
            _row_or_error(row, f"{path} row {n}", check_numbers)
            if isinstance(row, dict)
            else UserError(f"{path} row {n} is {quoted_value(row)}; expected a list of objects, one a row"),
        )
        for n, row in enumerate(rows, 1)
    ]


def _unwrapped(content: Any, path: Path) -> list[Any]:
    """Return the list of rows of a JSON file: the file itself, or the only list that it has under one of LIST_NAMES.

    Raises:
        UserError: There is no such list, or more than one.
    """
    if isinstance(content, list):
        return content
    names = [name for name in LIST_NAMES if isinstance(content, dict) and isinstance(content.get(name), list)]
    if len(names) > 1:
        raise UserError(f"{path}: has the lists {' and '.join(names)}; expected one list of objects, one a row")
    if not names:
        raise UserError(
            f"{path}: expected a list of objects, one a row, also in an object under one of {', '.join(LIST_NAMES)}"
        )
    rows: list[Any] = content[names[0]]
    if rows and all(isinstance(row, dict) and isinstance(row.get("row"), dict) and "row_idx" in row for row in rows):
        return [row["row"] for row in rows]  # as the hub's dataset server answers
    return rows


def read_each(
    path: Path, read: Callable[[Row, str], T], on_unreadable: Callable[[str], None] | None = None
) -> Iterator[tuple[Path, int, Row, T]]:
    """Apply a function to every row of a file, or of the data files in a folder.

    Args:
        path: A data file, or a folder of them.
        read: Converts a row, given the row and its location for error messages, or raises UserError.
        on_unreadable: Called with the reason for every row that cannot be read, which is then left out.

    Yields:
        The file, the row's 0-based index in it, the row, and the value that `read` returned.

    Raises:
        UserError: A file cannot be read as a whole; without `on_unreadable`, also for the first row that cannot.
    """
    for file in data_files(path):
        for number, (location, row) in enumerate(_rows_or_errors(file)):
            try:
                if isinstance(row, UserError):
                    raise row
                value = read(row, location)
            except UserError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(str(error))
                continue
            yield file, number, row, value


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    reading.check_file(path)
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError, ImportError) as error:
        # LookupError and ImportError are raised for an unknown time zone.
        raise UserError(f"{path}: not a parquet file of rows ({first_line(error)})") from error
    return rows


def _may_have_nonfinite(text: str) -> bool:
    """Whether a number in a JSON text may be non-finite; only then are the parsed values checked, which is slower."""
    return _NONFINITE_HINT.search(text) is not None


def _scalar_values(value: Any) -> Iterator[Any]:
    """Yield the scalar values in a JSON value, at any depth."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, list | dict):
            pending += value.values() if isinstance(value, dict) else value
        else:
            yield value


def _parse_line(line: str, location: str) -> dict[str, Any] | UserError:
    try:
        row = reading.parse_json(line, location, finite=False)
    except UserError as error:
        return error
    if not isinstance(row, dict):
        return UserError(f"{location}: expected a JSON object")
    return _row_or_error(row, location, _may_have_nonfinite(line))


def _row_or_error(row: dict[str, Any], location: str, check_numbers: bool) -> dict[str, Any] | UserError:
    """Return the row, or an error that names the first field with a non-finite number."""
    for name, value in row.items() if check_numbers else ():
        if any(isinstance(v, float) and not math.isfinite(v) for v in _scalar_values(value)):
            return UserError(f"{location}: field {name!r} is {quoted_value(value)}; expected finite numbers")
    return row


def text_field(row: Mapping[str, Any], name: str, location: str) -> str:
    """Return a field that must be a non-blank string.

    Args:
        row: The row.
        name: The field.
        location: Location of the row, with which the error message begins.

    Raises:
        UserError: The field is missing, blank or not valid Unicode.
    """
    value = row.get(name)
    if not is_text(value):
        raise UserError(
            f"{location}: field {name!r} is {quoted_value(value)}; expected a text that is not blank, in valid Unicode"
        )
    return str(value)


def steps_field(row: Mapping[str, Any], location: str) -> tuple[str, ...]:
    """Return the field `steps`, which must be a list of at least one non-blank string.

    Raises:
        UserError: It is not.
    """
    value = row.get("steps")
    if not isinstance(value, list) or not value:
        raise UserError(f"{location}: field 'steps' is {quoted_value(value)}; expected a list of at least one step")
    for index, step in enumerate(value):
        if not is_text(step):
            raise UserError(
                f"{location}: step {index} is {quoted_value(step)}; expected a text that is not blank, in valid Unicode"
            )
    return tuple(value)


def warn_of_unreadable_rows(path: Path, reasons: Sequence[str], rows: int, advice: str = "") -> None:
    """Emit one warning that some rows are left out, quoting the first MAX_QUOTED_ROWS of the reasons."""
    if reasons:
        quoted = "; ".join([*reasons[:MAX_QUOTED_ROWS], *(["..."] if len(reasons) > MAX_QUOTED_ROWS else [])])
        message = f"{path}: {len(reasons)} of {rows} rows cannot be read and are left out{advice}: {quoted}"
        warnings.warn(message, Notice, stacklevel=3)


def checked_name(value: Any, name: str, location: str) -> str:
    """Return an id or a subset as text.

    Raises:
        UserError: It contains NUL or is not valid Unicode.
    """
    text = str(value)
    if "\0" in text or _LONE_SURROGATE.search(text):
        raise UserError(f"{location}: field {name!r} is {quoted_value(value)}; expected valid Unicode, without NUL")
    return text


def check_limit(limit: int | None) -> None:
    """Raise UserError when `--limit` is below 1."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; expected at least 1")


def check_unique_ids(ids: Sequence[str], location: str) -> None:
    """Raise UserError when an id occurs twice, since results are joined by id."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{location}: id {name!r} occurs twice; every trace needs an id of its own")
        seen.add(name)


def is_text(value: Any) -> bool:
    """Return whether a value is a text that is not blank, in valid Unicode."""
    return isinstance(value, str) and bool(value.strip()) and not _LONE_SURROGATE.search(value)


def quoted_value(value: Any) -> str:
    """Return a field's value as error messages quote it, shortened."""
    return "missing" if value is None else reading.short_repr(value)
