"""Reads rows from json, jsonl and parquet, and says which row is wrong. Knows no benchmark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prmbench.schema import UserError
from prmbench.textfiles import BYTE_ORDER_MARK, read_text

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair: JSON can spell it, UTF-8 and tokenizers cannot."""
SUFFIXES = (".json", ".jsonl", ".parquet")


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files directly in the folder, by name."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; --data takes a json, jsonl or parquet file or a folder of them"
        )
    if not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder; save the rows to a file")
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not _is_summary(p))
    if not found:
        raise UserError(f"{path}: holds no {', '.join(SUFFIXES)} file")
    return found


def _is_summary(path: Path) -> bool:
    """`x.jsonl.json`: what `rollout` writes beside x.jsonl."""
    return path.suffix == ".json" and Path(path.stem).suffix in SUFFIXES


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of one file. Raises UserError when it is not what its suffix says."""
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        text = read_text(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if path.suffix == ".jsonl":
        lines = enumerate((line.lstrip(BYTE_ORDER_MARK) for line in text.split("\n")), 1)  # joined files have several
        return [_object(line, f"{path} line {n}") for n, line in lines if line.strip()]
    if path.suffix != ".json":
        raise UserError(f"{path}: unknown file type {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    rows = _parse(text, str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of objects, one a row")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error


def _object(line: str, where: str) -> dict[str, Any]:
    row = _parse(line, where)
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


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
