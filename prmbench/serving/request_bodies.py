"""Parses the bodies of requests into traces; whatever cannot be scored is a RequestError of one line.

The fields of a solution are read by the function that reads the rows of `prmbench score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prmbench.config import ServeConfig
from prmbench.core import reading
from prmbench.core.option_values import check_names
from prmbench.core.records import Trace, UserError
from prmbench.data import files, solutions

BAD_REQUEST, NOT_FOUND, TOO_LARGE, INVALID = 400, 404, 413, 422
SCORE_KEYS = ("model", "id", "problem", "prompt", "steps", "text", "solution", "solutions", "split")
SOLUTION_KEYS = tuple(key for key in SCORE_KEYS if key not in ("model", "solutions"))
POOLING_KEYS = ("model", "input", "messages", "task", "encoding_format", "split", "user")
POOLING_TASK = "token_classify"
MAX_ID_LENGTH, MAX_QUOTED = 200, 60
SPLITS = tuple(solutions.SPLITTERS)
DEFAULT_ID = "solution"
"""Solutions without an `id` are called solution-0, solution-1 and so on."""


@dataclass(eq=False)
class RequestError(Exception):
    """A request that is refused: the HTTP status, and a message of one line."""

    status: int
    message: str
    retry_after: int | None = None
    """Seconds after which the client may try again."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the parsers need to know of the served model."""

    names: tuple[str, ...]
    """The names that a request's `model` may have, that of /v1/models first."""
    mark: str | None = None
    """The tag or separator that closes a step in this model's input."""
    system_prompt: str | None = None


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises RequestError where it is none, or not strict JSON."""
    try:
        body = reading.parse_json(raw.decode().removeprefix(reading.BYTE_ORDER_MARK), "request body")
    except UnicodeDecodeError as error:
        raise RequestError(BAD_REQUEST, f"request body: not UTF-8 at byte {error.start}") from error
    except UserError as error:
        raise RequestError(BAD_REQUEST, str(error)) from error
    if not isinstance(body, dict):
        raise RequestError(BAD_REQUEST, f"request body: is {reading.short_repr(body)}; expected a JSON object")
    return body


def parse_score(body: Mapping[str, Any], config: ServeConfig, model: Reading) -> list[Trace]:
    """Return the solutions of a request to /v1/score: one in the body itself, or the list `solutions`.

    `problem` and `split` beside the list are those of every solution that has none of its own.

    Raises:
        RequestError: The request is invalid or too large.
    """
    try:
        _check_keys(body, SCORE_KEYS, "request: unknown key")
        _check_model(body, model)
        if body.get("solutions") is None:
            return _traces([_solution(body)], config)
        clashing = [key for key in ("id", "steps", "text", "solution") if key in body]
        if clashing:
            raise UserError(f"request: has both `solutions` and `{clashing[0]}`; put `{clashing[0]}` into the list")
        shared = {key: body[key] for key in ("problem", "prompt", "split") if key in body}
        return _traces([shared | row for row in _objects(body["solutions"], "solutions", config)], config)
    except UserError as error:
        raise RequestError(INVALID, str(error)) from error


def parse_pooling(body: Mapping[str, Any], config: ServeConfig, model: Reading) -> list[Trace]:
    """Return the solutions of a request to /pooling, which has vLLM's keys.

    Raises:
        RequestError: The request is invalid, too large, or asks for what is not supported.
    """
    try:
        _check_keys(body, POOLING_KEYS, "request: unsupported key")
        _check_model(body, model)
        _check_value(body, "encoding_format", "float")
        _check_value(body, "task", POOLING_TASK)
        if (body.get("input") is None) == (body.get("messages") is None):
            raise UserError("request: needs either `input` or `messages`")
        split = {"split": body["split"]} if body.get("split") is not None else {}
        if body.get("messages") is not None:
            return _traces([split | _conversation(body["messages"], model)], config)
        rows = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if any(isinstance(row, str | int | list) for row in rows):
            raise UserError(
                "input: texts and token ids are not supported, since this server renders solutions itself; give "
                '{"problem": ..., "steps": [...]} or a list of such objects, or `messages`'
            )
        return _traces([split | row for row in _objects(rows, "input", config)], config)
    except UserError as error:
        raise RequestError(INVALID, str(error)) from error


def _check_model(body: Mapping[str, Any], model: Reading) -> None:
    name = body.get("model")
    if name is not None and name not in model.names:
        raise RequestError(NOT_FOUND, f"model {reading.short_repr(name)}: is not served here; {model.names[0]!r} is")


def _check_value(body: Mapping[str, Any], key: str, supported: str) -> None:
    if body.get(key) not in (None, supported):
        raise UserError(f"{key}: is {reading.short_repr(body[key])}; only {supported!r} is supported")


def _check_keys(values: Mapping[str, Any], allowed: Sequence[str], message: str) -> None:
    """Raise UserError on an unknown key, of which a part is quoted and compared with the known ones."""
    check_names([key[:MAX_QUOTED] for key in values], allowed, message)


def _objects(value: Any, name: str, config: ServeConfig) -> list[dict[str, Any]]:
    """Return a list of at least one object with known keys. Raises UserError where it is none, or RequestError."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{name}: is {reading.short_repr(value)}; expected a list of at least one object")
    if len(value) > config.max_solutions:
        raise _too_large(f"request: has {len(value):,} solutions", config.max_solutions, "max_solutions")
    for number, row in enumerate(value):
        if not isinstance(row, dict):
            raise UserError(f"{name} {number}: is {reading.short_repr(row)}; expected an object")
        _check_keys(row, SOLUTION_KEYS, f"{name} {number}: unknown key")
    return value


def _solution(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a body that are those of a solution. Raises UserError where there is no solution."""
    row = {key: value for key, value in body.items() if key in SOLUTION_KEYS}
    if all(row.get(key) is None for key in ("steps", "text", "solution")):
        raise UserError("request: has no solution; give `steps` (a list of texts), `text`, or a list `solutions`")
    return row


def _traces(rows: Sequence[Mapping[str, Any]], config: ServeConfig) -> list[Trace]:
    """Return rows as traces. Raises UserError where one is invalid, and RequestError where one is too large."""
    traces = [_trace(row, number, config) for number, row in enumerate(rows)]
    files.check_unique_ids([trace.id for trace in traces], "request")
    return traces


def _trace(row: Mapping[str, Any], number: int, config: ServeConfig) -> Trace:
    location = f"solution {number}"
    row = {key: value for key, value in row.items() if value is not None}
    texts = [key for key in ("steps", "text", "solution") if key in row]
    if len(texts) != 1:
        raise UserError(f"{location}: has {' and '.join(texts) or 'neither'}; give either `steps` or `text`")
    if "problem" in row and "prompt" in row:
        raise UserError(f"{location}: has `problem` and `prompt`; give one of them")
    _check_id(row.get("id"), location)
    split = row.get("split", config.split)
    if split not in SPLITS:
        raise UserError(f"{location}: split is {reading.short_repr(split)}; choose from {', '.join(SPLITS)}")
    value = row[texts[0]]
    values = value if isinstance(value, list) else [value]
    _check_characters([row.get("problem", row.get("prompt")), *values], location, config)
    _check_steps(values, location, config)
    if texts[0] == "text":
        row["solution"] = files.text_field(row, "text", location)  # else a message would name `solution`
    trace = solutions.to_trace(row, DEFAULT_ID, number, split, location)
    _check_steps(trace.steps, location, config)
    return trace


def _check_characters(values: Sequence[Any], location: str, config: ServeConfig) -> None:
    """Raise RequestError where the texts among the values are too long together."""
    characters = sum(len(value) for value in values if isinstance(value, str))
    if characters > config.max_characters:
        raise _too_large(f"{location}: has {characters:,} characters", config.max_characters, "max_characters")


def _check_steps(steps: Sequence[Any], location: str, config: ServeConfig) -> None:
    if len(steps) > config.max_steps:
        raise _too_large(f"{location}: has {len(steps):,} steps", config.max_steps, "max_steps")


def _check_id(value: Any, location: str) -> None:
    is_name = value is None or (isinstance(value, int | str) and not isinstance(value, bool))
    if is_name and len(str(value)) <= MAX_ID_LENGTH:
        return
    raise UserError(
        f"{location}: field 'id' is {reading.short_repr(value)}; expected a text or an integer of at most "
        f"{MAX_ID_LENGTH} characters"
    )


def _too_large(message: str, limit: int, option: str) -> RequestError:
    return RequestError(TOO_LARGE, f"{message}; at most {limit:,} are allowed (--{option.replace('_', '-')})")


def _conversation(messages: Any, model: Reading) -> dict[str, Any]:
    """Return the solution in a conversation: maybe a system prompt, the problem, the solution. Raises UserError."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"messages: is {reading.short_repr(messages)}; expected a list of objects")
    for number, message in enumerate(messages):
        _check_keys(message, ("role", "content"), f"message {number}: unsupported key")
        files.text_field(message, "content", f"message {number}")
    roles = [message.get("role") for message in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise UserError(
            f"messages: roles are {reading.short_repr(roles)}; expected user (the problem) and assistant (the "
            "solution), maybe after the model's own system prompt"
        )
    if roles[0] == "system" and messages[0]["content"] != model.system_prompt:
        raise UserError("messages: the system prompt is not the one that this model is read with; leave it out")
    text = messages[-1]["content"]
    if model.mark is None or model.mark not in text:
        return {"problem": messages[-2]["content"], "text": text}
    steps = [piece for piece in text.split(model.mark) if piece.strip()]
    return {"problem": messages[-2]["content"], "steps": steps}
