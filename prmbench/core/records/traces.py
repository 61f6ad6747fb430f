"""A trace, a backend's scores of it, and the line of a scores file that holds both. Standard library only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Trace:
    """One problem with one solution in steps: an evaluation item, a rollout or a training row."""

    id: str
    prompt: str
    steps: tuple[str, ...]
    first_error: int | None = None
    """Gold label: 0-based index of the first wrong step, -1 = every step is right, None = unlabelled."""
    step_labels: tuple[float, ...] = ()
    """Gold label per step in [0, 1]: 0 or 1, or the Monte-Carlo success rate of the prefix that it ends."""
    outcome: int | None = None
    """Outcome r_o(x, y): 1 when the final answer is right, 0 when wrong, None when unknown."""
    group: str = ""
    """The same for all samples of one prompt; the prompt's hash unless the data has another."""
    subset: str = ""
    answer: str = ""
    """The normalised final answer, by which completions vote; empty = no answer."""
    finish: str = ""
    """Why a sampled completion ended: `stop` or `length` (cut)."""


def text_hash(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of `text`, which identify a problem without quoting it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and cost of a critic's answers about one trace."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of `--input-price` and `--output-price`."""


@dataclass(frozen=True, slots=True)
class StepScores:
    """A backend's scores of one trace, before any readout or threshold."""

    id: str
    values: tuple[float, ...] = ()
    """One score per step. For `logratio`, the sum over the step's tokens in nats, not multiplied by beta."""
    tokens: tuple[int, ...] = ()
    """Tokens per step, for the mean readouts."""
    verdicts: tuple[int | None, ...] = ()
    """First error per sampled critique, -1 = none; None = the critique could not be parsed."""
    unscored: str = ""
    """Why there is no score; empty where there is one. Unscored traces count as wrong, and their number is reported."""
    also: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Additional series of the same kind from the same forward pass, by name."""
    said: tuple[str, ...] = ()
    """A critic's answers, one per vote; they are not part of scores files."""
    usage: Usage | None = None
    """Tokens and cost, where answers were generated."""
    request_changes: tuple[str, ...] = ()
    """How requests were changed because a server refused a parameter."""


@dataclass(frozen=True, slots=True)
class ScoredTrace:
    """One line of a scores file: the scores of a trace and what metrics need to know of it, without its text."""

    id: str
    subset: str
    label: int | None
    outcome: int | None
    cluster: str
    """`text_hash` of the problem: the bootstrap resamples traces of one problem together."""
    steps: int
    """Number of steps, also of an unscored trace."""
    values: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    verdicts: tuple[int | None, ...] = ()
    unscored: str = ""
    also: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    step_labels: tuple[float, ...] = ()
    """Trace.step_labels, where the task needs them."""
    answer: str = ""
    """`text_hash` of the final answer, where the task votes; empty = no answer."""
    finish: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, floats with 9 significant digits: enough to restore any float32."""
        row = {k: v for k, v in asdict(self).items() if v or k not in ("step_labels", "answer", "finish")}
        row["values"] = [_round_digits(v) for v in self.values]
        row["also"] = {name: [_round_digits(v) for v in series] for name, series in sorted(self.also.items())}
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ScoredTrace:
        """Parse what `to_json` returns; unknown keys are ignored, so that newer files stay readable."""
        field_values = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        for name in ("values", "tokens", "verdicts", "step_labels"):
            field_values[name] = tuple(field_values.get(name, ()))
        field_values["also"] = {name: tuple(series) for name, series in field_values.get("also", {}).items()}
        return cls(**field_values)


def _round_digits(value: float) -> float:
    return float(f"{value:.9g}")


def join_scores(trace: Trace, scores: StepScores) -> ScoredTrace:
    """Return the line of a scores file for a trace; scores that cannot be used make it unscored, with the reason."""
    scored_trace = ScoredTrace(
        id=trace.id,
        subset=trace.subset,
        label=trace.first_error,
        outcome=trace.outcome,
        cluster=trace.group or text_hash(trace.prompt),
        steps=len(trace.steps),
        step_labels=trace.step_labels,
        answer=text_hash(trace.answer) if trace.answer else "",
        finish=trace.finish,
        unscored=scores.unscored or _why_unusable(trace, scores),
    )
    if scored_trace.unscored:
        return scored_trace
    return replace(scored_trace, values=scores.values, tokens=scores.tokens, verdicts=scores.verdicts, also=scores.also)


def _why_unusable(trace: Trace, scores: StepScores) -> str:
    """Return why the scores cannot be used; empty where they can."""
    if scores.verdicts:
        return ""
    for name, series in (("values", scores.values), *scores.also.items()):
        if len(series) != len(trace.steps):
            return f"{len(series)} {name} for {len(trace.steps)} steps"
        if not all(math.isfinite(v) for v in series):
            return "non-finite"
    if trace.steps and scores.tokens and min(scores.tokens) < 1:
        return "a step without a token"  # mean readouts divide by the number of tokens
    return ""
