"""Parses JSON into the records of `core.records` with strict types: no text for a number, no bool for a count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from prmbench.core.records import SCHEMA_VERSION, RunResult, ScoredTrace, UserError
from prmbench.core.validation.fields import Fault, is_count, setting_faults, short

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def read_result(raw: str, source: str) -> RunResult:
    """Parse a `<run-id>.json`.

    Args:
        raw: Content of the file.
        source: The file's name, for the message.

    Raises:
        UserError: The content is no JSON, is of a newer schema, or a field has the wrong type. Ranges are not checked.
    """
    versions = _typed(_Versioned, raw, source, "not a prmbench result").manifest
    version = versions.schema_version
    if not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{source}: schema version {short.repr(version)}: this prmbench reads 1 to {SCHEMA_VERSION}; "
            f"upgrade prmbench"
        )
    result: RunResult = _typed(RunResult, raw, source, "not a prmbench result")
    return replace(result, manifest=replace(result.manifest, estimator_version=versions.estimator_version))


def read_trace(line: bytes, source: str) -> ScoredTrace:
    """Parse one line of a scores file. Raises UserError on a field of the wrong type; ranges are not checked."""
    trace: ScoredTrace = _typed(ScoredTrace, line, source, "not a scored trace")
    return trace


def read_step(line: bytes, source: str) -> dict[str, Any]:
    """Parse one line of a metrics file: a training step and its metrics, perhaps with those of a validation.

    Raises:
        UserError: The line is no JSON object, its step is no count, or a value is not a number, a text, a list of texts
            or an object of these.
    """
    values: dict[str, Any] = _typed(dict[str, Any], line, source, "not a record of training steps")
    for path, problem in _step_faults(values):
        raise UserError(f"{source}: not a record of training steps ({path} {problem}); train again")
    return values


def read_record(record: type[T], values: object, source: str, remedy: str) -> T:
    """Return values that a run recorded for itself, and that may have been altered since, as the dataclass `record`.

    Args:
        record: The dataclass; values that it has no field for are ignored.
        values: JSON values.
        source: The file, for the message.
        remedy: End of the message: what the user should do.

    Raises:
        UserError: A field is missing or has the wrong type.
    """
    try:
        parsed: T = _typed(record, json.dumps(values), source, "not the record of a run")
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    return parsed


@dataclass(frozen=True, slots=True)
class _Version:
    schema_version: int = 0
    estimator_version: int = 1


@dataclass(frozen=True, slots=True)
class _Versioned:
    """The part of a result that is parsed first, since a newer schema may have other types."""

    manifest: _Version


@cache
def _adapter(record: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a type. Pydantic is imported late, so that `--help` stays fast."""
    from pydantic import TypeAdapter

    return TypeAdapter(record)


def _typed(record: Any, raw: str | bytes, source: str, kind: str) -> Any:
    """Return JSON parsed as the type `record`. Raises UserError; the message begins with `source` and `kind`."""
    from pydantic import ValidationError

    try:
        return _adapter(record).validate_json(raw, strict=True)
    except ValidationError as error:
        raise UserError(f"{source}: {kind} ({_first_fault(error)})") from error


def _first_fault(error: ValidationError) -> str:
    """Return the first fault as `manifest.n is 'x': should be a valid integer`, and the number of further ones."""
    faults = error.errors(include_url=False, include_context=False)
    first, others = faults[0], len(faults) - 1
    path = ".".join(map(str, first["loc"]))
    problem = str(first["msg"]).replace("Input should", "should", 1)
    if first["type"] == "missing":
        problem = f"{path} is missing"
    elif path:
        problem = f"{path} is {short.repr(first['input'])}: {problem}"
    flat = " ".join(problem.split())
    return f"{flat}; and {others} more" if others else flat


def _step_faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield values of a line of metrics that figures and tables cannot show."""
    if not is_count(values.get("step")):
        yield "step", f"is {short.repr(values.get('step'))}, not a count"
    alarms = values.get("alarms") or []
    if not isinstance(alarms, list) or not all(isinstance(name, str) for name in alarms):
        yield "alarms", f"is {short.repr(alarms)}, not a list of names"
    if not isinstance(values.get("validation", {}), Mapping):
        yield "validation", f"is {short.repr(values['validation'])}, not an object"
    yield from setting_faults(values, "")
