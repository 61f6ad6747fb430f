"""A trace, what a backend says about it, and the line of a scores file that holds both. Standard library only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Trace:
    """One problem with one step-split solution: an evaluation item, a rollout or a training row."""

    id: str
    prompt: str
    steps: tuple[str, ...]
    first_error: int | None = None
    """Gold: 0-based index of the first wrong step, -1 = every step right, None = unlabelled."""
    step_labels: tuple[float, ...] = ()
    """Gold per step, in [0, 1]: hard labels, or the Monte-Carlo success from the prefix that the step ends."""
    outcome: int | None = None
    """r_o(x, y): 1 when the final answer is right, 0 when wrong, None when unknown."""
    group: str = ""
    """Shared by the samples of one prompt; the prompt's own hash unless the data says otherwise."""
    subset: str = ""
    answer: str = ""
    """The final answer, normalised: completions with equal ones vote together. Empty = none found."""
    finish: str = ""
    """Of a sampled completion: `stop` or `length` (cut)."""


def text_hash(text: str) -> str:
    """First 16 hex digits of the SHA-256 of `text`: names a problem without quoting it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the answers about a trace took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of `--input-price` and `--output-price`."""


@dataclass(frozen=True, slots=True)
class StepScores:
    """What a backend said about one trace, before any readout or threshold."""

    id: str
    values: tuple[float, ...] = ()
    """One per step. For `logratio`, the beta-free sum over the step's tokens, in nats."""
    tokens: tuple[int, ...] = ()
    """Tokens per step, for the mean readouts."""
    verdicts: tuple[int | None, ...] = ()
    """Predicted first error per sampled critique; None = the critique could not be parsed."""
    unscored: str = ""
    """Why there is no score. Such a trace counts as wrong, and is counted."""
    also: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Further series of the same kind from the same forward pass, by name."""
    said: tuple[str, ...] = ()
    """What a critic wrote, one text a vote; it stays out of scores files."""
    usage: Usage | None = None
    """Where answers were generated: what they took."""
    request_changes: tuple[str, ...] = ()
    """Parameters that a server refused, and what was done instead."""


@dataclass(frozen=True, slots=True)
class ScoredTrace:
    """One line of a scores file: the scores and the facts needed to judge them. No trace text."""

    id: str
    subset: str
    label: int | None
    outcome: int | None
    cluster: str
    """`text_hash` of the problem: traces of one problem are resampled together."""
    steps: int
    """How many steps the trace has, also when it is unscored."""
    values: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    verdicts: tuple[int | None, ...] = ()
    unscored: str = ""
    also: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    step_labels: tuple[float, ...] = ()
    """Trace.step_labels, where the task needs them."""
    answer: str = ""
    """`text_hash` of the final answer, where the task votes; empty = none found."""
    finish: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; floats to 9 significant digits, which float32 survives."""
        row = {k: v for k, v in asdict(self).items() if v or k not in ("step_labels", "answer", "finish")}
        row["values"] = [_digits(v) for v in self.values]
        row["also"] = {name: [_digits(v) for v in series] for name, series in sorted(self.also.items())}
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ScoredTrace:
        """Inverse of `to_json`; unknown keys are ignored, so that newer files stay readable."""
        known = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        for name in ("values", "tokens", "verdicts", "step_labels"):
            known[name] = tuple(known.get(name, ()))
        known["also"] = {name: tuple(series) for name, series in known.get("also", {}).items()}
        return cls(**known)


def _digits(value: float) -> float:
    return float(f"{value:.9g}")


def scored(trace: Trace, scores: StepScores) -> ScoredTrace:
    """Joins a trace's facts with its scores; a score that cannot be used becomes a reason."""
    facts = ScoredTrace(
        id=trace.id,
        subset=trace.subset,
        label=trace.first_error,
        outcome=trace.outcome,
        cluster=trace.group or text_hash(trace.prompt),
        steps=len(trace.steps),
        step_labels=trace.step_labels,
        answer=text_hash(trace.answer) if trace.answer else "",
        finish=trace.finish,
        unscored=scores.unscored or _defect(trace, scores),
    )
    if facts.unscored:
        return facts
    return replace(facts, values=scores.values, tokens=scores.tokens, verdicts=scores.verdicts, also=scores.also)


def _defect(trace: Trace, scores: StepScores) -> str:
    if scores.verdicts:
        return ""
    for name, series in (("values", scores.values), *scores.also.items()):
        if len(series) != len(trace.steps):
            return f"{len(series)} {name} for {len(trace.steps)} steps"
        if not all(math.isfinite(v) for v in series):
            return "non-finite"
    if trace.steps and scores.tokens and min(scores.tokens) < 1:
        return "a step without a token"  # over none of them there is no mean
    return ""
