"""The JSON of answers: scores, vLLM's rows, the served model, and errors."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi.responses import Response

import prmbench
from prmbench.backends import Backend
from prmbench.backends.cards import ModelCard
from prmbench.config import ServeConfig, public_name
from prmbench.core import provenance
from prmbench.core.records import READOUTS, EvalProtocol, ScoredTrace, Trace, join_scores
from prmbench.core.redaction import one_line
from prmbench.evaluation import scoring
from prmbench.metrics.first_error import readout
from prmbench.serving.scheduler import Scored

RESULT_KEYS = ("id", "steps", "values", "also", "tokens", "verdicts", "unscored")
"""Fields of a line of `prmbench score` that an answer has, too."""
MAX_MESSAGE = 500
"""Characters of an error's message: a request's own text is in some of them."""
LIMITS = ("max_body", "max_solutions", "max_steps", "max_characters", "max_pending", "timeout")
ERROR_TYPES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    421: "misdirected_request",
    429: "too_many_requests",
    500: "server_error",
    503: "stopping",
    504: "timeout",
}
"""The `type` of an error by its status; others are `invalid_request`."""


def to_response(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response whose body is one line of ASCII JSON."""
    text = json.dumps(content, allow_nan=False) + "\n"
    return Response(
        text, status, headers={"cache-control": "no-store", **(headers or {})}, media_type="application/json"
    )


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return `{"error": {"message", "type", "code"}}` with this status."""
    kind, line = ERROR_TYPES.get(status, "invalid_request"), one_line(message[:MAX_MESSAGE])
    return to_response({"error": {"message": line, "type": kind, "code": status}}, status, headers)


def score_answer(model: str, backend: Backend, traces: Sequence[Trace], scored: Sequence[Scored]) -> dict[str, Any]:
    """Return the answer of /v1/score: for each solution the numbers that `prmbench score` writes, and prefix values."""
    return {
        "model": model,
        "kind": backend.facts.kind,
        "results": [_result(backend, trace, s) for trace, s in zip(traces, scored, strict=True)],
        "usage": {"input_tokens": sum(s.input_tokens for s in scored)},
    }


def _result(backend: Backend, trace: Trace, scored: Scored) -> dict[str, Any]:
    row = join_scores(trace, scored.scores)
    line = row.to_json()
    result = {key: line[key] for key in RESULT_KEYS}
    result["prefix_values"] = _prefix_values(row, backend, "")
    result["also_prefix_values"] = {name: _prefix_values(row, backend, name) for name in sorted(row.also)}
    result["input_tokens"] = scored.input_tokens
    if scored.scores.said:
        result["critiques"] = list(scored.scores.said)
    return result


def _prefix_values(row: ScoredTrace, backend: Backend, series: str) -> list[float]:
    """Return the value of each prefix of steps: the readout prefix_sum of log-ratios, else the step's own score."""
    readouts = READOUTS[backend.facts.kind]
    if row.unscored or not row.values or "vote" in readouts:
        return []
    name = "prefix_sum" if "prefix_sum" in readouts else "as_is"
    numbers = readout(row, EvalProtocol(name, "oracle", series=series))  # type: ignore[arg-type]
    return [] if numbers is None else [float(f"{number:.9g}") for number in numbers]


def pooling_answer(model: str, backend: Backend, traces: Sequence[Trace], scored: Sequence[Scored]) -> dict[str, Any]:
    """Return the answer of /pooling in vLLM's shape, a row for each step: [P(wrong), P(right)], or [score].

    An unscored solution has no rows, and says why in `unscored`.
    """
    tokens = sum(s.input_tokens for s in scored)
    data: list[dict[str, Any]] = []
    for index, (trace, s) in enumerate(zip(traces, scored, strict=True)):
        line = join_scores(trace, s.scores).to_json()
        rows = [[1 - v, v] if backend.facts.kind == "prob" else [v] for v in line["values"]]
        unscored = {"unscored": line["unscored"]} if line["unscored"] else {}
        data.append({"index": index, "object": "pooling", "data": rows, **unscored})
    return {
        "id": f"pool-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }


def describe_model(config: ServeConfig, card: ModelCard, backend: Backend) -> dict[str, Any]:
    """Return how the model is read, as /v1/models gives it."""
    facts = asdict(backend.facts)
    names = (
        *(
            "assumed",
            "positive_class",
            "kind",
            "input_format",
            "series",
            "native",
            "fixed",
            "beta",
            "signal",
            "dtype",
            "engine",
            "device",
        ),
        *("revision", "weights", "ref_model", "ref_revision", "ref_weights", "template"),
    )
    commit, dirty = provenance.code_state()
    return {
        "id": public_name(config.model),
        "object": "model",
        "owned_by": "prmbench",
        "backend": backend.facts.backend or config.backend,
        "tag": card.tag,
        "separator": card.separator,
        "boundary": config.boundary,
        **{name: facts[name] for name in names},
        "split": config.split,
        "batching": config.batching,
        "batch_tokens": scoring.batch_budget(backend, config.batch_tokens),
        "limits": {name: getattr(config, name) for name in LIMITS},
        "code": {"prmbench": prmbench.__version__, "commit": commit, "dirty": dirty},
    }
