"""Types: JSON straight into the records of `schema`, strictly: no text for a number, no truth value for a count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from prmbench.core.records import SCHEMA_VERSION, RunResult, ScoredTrace, UserError
from prmbench.core.validation.fields import Fault, is_count, setting_faults, short

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def read_result(raw: str, where: str) -> RunResult:
    """Parses a `<run-id>.json`.

    Args:
        raw: Content of the file.
        where: The file's name, for the message.

    Raises:
        UserError: The content is no JSON, of a newer schema, or a field has the wrong type. Ranges are `check`'s.
    """
    version = _typed(_Versioned, raw, where, "not a prmbench result").manifest.schema_version
    if not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {short.repr(version)}: this prmbench reads 1 to {SCHEMA_VERSION}; "
            f"upgrade prmbench"
        )
    result: RunResult = _typed(RunResult, raw, where, "not a prmbench result")
    return result


def read_trace(line: bytes, where: str) -> ScoredTrace:
    """Parses one line of a scores file. Raises UserError on a field of the wrong type; ranges are `check`'s."""
    trace: ScoredTrace = _typed(ScoredTrace, line, where, "not a scored trace")
    return trace


def read_step(line: bytes, where: str) -> dict[str, Any]:
    """Parses one line of a metrics file: a training step, its numbers, and perhaps a validation's.

    Raises:
        UserError: The line is no JSON object, its step is no count, or a value is neither a number, a text, a list of
            texts nor such an object itself.
    """
    values: dict[str, Any] = _typed(dict[str, Any], line, where, "not a record of training steps")
    for path, fault in _step_faults(values):
        raise UserError(f"{where}: not a record of training steps ({path} {fault}); train again")
    return values


def read_record(record: type[T], values: object, where: str, remedy: str) -> T:
    """Values that a run wrote down for itself, and anybody may have altered since, as the dataclass `record`.

    Fields that the dataclass does not have are passed over. Raises UserError, which ends with the remedy, where one is
    missing or has the wrong type.
    """
    try:
        found: T = _typed(record, json.dumps(values), where, "not the record of a run")
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    return found


@dataclass(frozen=True, slots=True)
class _Version:
    schema_version: int = 0


@dataclass(frozen=True, slots=True)
class _Versioned:
    """What is read first, since a newer schema may have other types."""

    manifest: _Version


@cache
def _adapter(record: Any) -> TypeAdapter[Any]:
    """Built once, and not before something is read: pydantic takes longer to load than `--help` may."""
    from pydantic import TypeAdapter

    return TypeAdapter(record)


def _typed(record: Any, raw: str | bytes, where: str, what: str) -> Any:
    """The record that the JSON is of; `record` is its type."""
    from pydantic import ValidationError

    try:
        return _adapter(record).validate_json(raw, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {what} ({_first(error)})") from error


def _first(error: ValidationError) -> str:
    """`manifest.n is 'x': should be a valid integer`, and how many more faults there are."""
    faults = error.errors(include_url=False, include_context=False)
    first, more = faults[0], len(faults) - 1
    path = ".".join(map(str, first["loc"]))
    words = str(first["msg"]).replace("Input should", "should", 1)
    if first["type"] == "missing":
        words = f"{path} is missing"
    elif path:
        words = f"{path} is {short.repr(first['input'])}: {words}"
    flat = " ".join(words.split())
    return f"{flat}; and {more} more" if more else flat


def _step_faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Of a line of metrics: what figures and tables could stumble over."""
    if not is_count(values.get("step")):
        yield "step", f"is {short.repr(values.get('step'))}, not a count"
    raised = values.get("alarms") or []
    if not isinstance(raised, list) or not all(isinstance(name, str) for name in raised):
        yield "alarms", f"is {short.repr(raised)}, not a list of names"
    if not isinstance(values.get("validation", {}), Mapping):
        yield "validation", f"is {short.repr(values['validation'])}, not an object"
    yield from setting_faults(values, "")
