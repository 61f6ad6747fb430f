"""The records that cross every boundary: a trace, its scores, a protocol, a metric row, a run.

Standard library only; frozen; JSON in and out. No behaviour lives here beyond (de)serialisation
and the spelling of protocol keys.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

SCHEMA_VERSION = 1
"""Of result files. A reader accepts every version up to its own."""
SCORING_VERSION = 1
"""Of the code between a trace and its step scores; a change that moves numbers bumps it."""

ScoreKind = Literal["logratio", "value", "prob", "verdict", "outcome"]
"""What `StepScores.values` holds: sums over a step's tokens, a value read at a step's end,
P(step is right), or nothing (critics store `verdicts`, a policy's completions have outcomes only)."""
Task = Literal["steps", "best_of_n", "policy", "calibration", "distrl"]
"""What a run's rows are about: step F1, picking among completions, completions themselves, values as probabilities,
a policy in training."""
Readout = Literal["prefix_sum", "step_sum", "prefix_mean", "step_mean", "as_is", "step_diff", "vote"]
Threshold = Literal["native", "fixed", "calibrated", "calibrated_in_sample", "cross_validated", "oracle"]
Boundary = Literal["exact", "release"]

READOUTS: dict[ScoreKind, tuple[Readout, ...]] = {
    "logratio": ("prefix_sum", "step_sum", "prefix_mean", "step_mean"),
    "value": ("as_is", "step_diff"),
    "prob": ("as_is",),
    "verdict": ("vote",),
    "outcome": (),
}
"""Which readouts each kind of score admits; METHOD names in docs/protocols.md."""


class UserError(Exception):
    """A mistake of the user's: one line that says what, where and how to mend it. Exit code 2."""


class NonFiniteError(Exception):
    """Training met NaN or infinity and stopped; one line that says where the batch was saved. Exit code 3."""


class RetryError(Exception):
    """A server or a device went away, or has other weights than it was given; checkpoint kept. Exit code 75."""


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
    return ""


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """How step scores become a verdict. `key` is what a leaderboard column is called.

    `[series.]readout/threshold[:argument][@release]`, e.g. `step_sum/oracle`,
    `prefix_mean/calibrated:gsm8k`, `logprob.step_sum/fixed:0`, `step_sum/oracle@release`.
    """

    readout: Readout
    threshold: Threshold
    at: float | None = None
    """The number of a `fixed` or `native` rule, in the unit of the readout."""
    on: str | None = None
    """The subset a `calibrated` rule tunes on."""
    series: str = ""
    """Empty = `values`; otherwise a key of `also`."""
    boundary: Boundary = "exact"

    @property
    def key(self) -> str:
        """The protocol's name in rows, tables and `--protocol`."""
        argument = "" if self.on is None else f":{self.on}"
        if self.threshold == "fixed" and self.at is not None:
            short = f"{self.at:g}"
            argument = f":{short if float(short) == self.at else repr(self.at)}"
        prefix = f"{self.series}." if self.series else ""
        suffix = "" if self.boundary == "exact" else f"@{self.boundary}"
        return f"{prefix}{self.readout}/{self.threshold}{argument}{suffix}"

    @classmethod
    def parse(cls, key: str) -> EvalProtocol:
        """Reads a key back. Raises UserError on a spelling that `key` never produces."""
        body, _, boundary = key.partition("@")
        left, slash, right = body.partition("/")
        series, _, readout = left.rpartition(".")
        threshold, _, argument = right.partition(":")
        known = slash and readout in get_args(Readout) and threshold in get_args(Threshold)
        if not known or boundary not in ("", *get_args(Boundary)):
            raise UserError(
                f"protocol {key!r}: expected [series.]readout/threshold[:argument][@release], "
                f"readout one of {', '.join(get_args(Readout))}, threshold one of {', '.join(get_args(Threshold))}"
            )
        at = on = None
        if threshold == "fixed":
            at = _number(argument)
            if at is None:
                raise UserError(f"protocol {key!r}: a fixed threshold needs its number, e.g. fixed:0.5")
        elif threshold.startswith("calibrated"):
            on = argument
            if not on:
                raise UserError(f"protocol {key!r}: a calibrated threshold needs its subset, e.g. calibrated:gsm8k")
        elif argument:
            raise UserError(f"protocol {key!r}: {threshold} takes no argument")
        return cls(readout, threshold, at, on, series, boundary or "exact")  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One number, in long format: rows go straight into pandas."""

    subset: str
    """A subset, or `avg[a,b,...]`: the unweighted mean over the subsets named."""
    protocol: str
    """An EvalProtocol key, or `floor/...` for what chance alone reaches on these labels."""
    metric: str
    value: float | None
    """None when the number does not exist; `note` says why."""
    lo: float | None
    """Ends of the 95% problem-clustered bootstrap interval."""
    hi: float | None
    n: int
    unscored: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class RunManifest:
    """Where a result comes from: everything needed to run it again, and nothing about the machine's paths."""

    run_id: str
    model: str
    backend: str
    kind: ScoreKind
    input_format: str
    boundary: Boundary
    benchmark: str
    benchmark_hash: str
    """Content hash of ids, problems, steps, labels and outcomes of the traces scored."""
    subsets: tuple[str, ...]
    n: int
    config: Mapping[str, Any]
    seed: int
    scores_sha256: str
    task: Task = "steps"
    benchmark_version: int = 1
    schema_version: int = SCHEMA_VERSION
    scoring_version: int = SCORING_VERSION
    revision: str | None = None
    weights: str | None = None
    """SHA-256 over the files of a local model; None for a hub model, which has a revision."""
    ref_model: str | None = None
    ref_revision: str | None = None
    ref_weights: str | None = None
    beta: float | None = None
    series: tuple[str, ...] = ()
    """Names of the further series that every scored trace has in `also`."""
    extra_protocols: tuple[str, ...] = ()
    """Keys of protocols judged because a user asked, beside those that every run of this kind has."""
    native: float | None = None
    """The threshold that is the model's own label, where it has one (argmax of two classes: 0.5)."""
    fixed: float | None = None
    """The threshold given beforehand for this kind of score, where one is usual (sigmoid = 0.5)."""
    calibrate_on: str = "gsm8k"
    """The subset that the `calibrated` rules tune on."""
    rules: tuple[Threshold, ...] = ()
    """The threshold rules judged; empty = every one that the scores admit."""
    replicates: int = 1000
    """Of the bootstrap."""
    template: str | None = None
    """`text_hash` of the chat template."""
    data_source: str = ""
    data_revision: str | None = None
    trained_on: tuple[str, ...] = ()
    signal: str = ""
    """What the model was trained from: outcome, steps, none, or unknown (empty)."""
    dtype: str = ""
    engine: str = ""
    device: str = ""
    hardware: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    commits: tuple[str, ...] = ()
    """Those that scored a batch, when a run was resumed under another one than `commit`, which finished it."""
    dirty: bool | None = None
    tokens: int = 0
    """Tokens of the scored traces, padding left out; a reference model's pass is not counted again."""
    seconds: float = 0.0
    """Wall clock spent in scoring, over all sittings, loading left out."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A manifest and its rows: the `<run-id>.json` of a run."""

    manifest: RunManifest
    rows: tuple[MetricRow, ...]

    def to_json(self) -> dict[str, Any]:
        """`{"manifest": {...}, "rows": [...]}`."""
        return {"manifest": asdict(self.manifest), "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunResult:
        """Inverse of `to_json`, for every schema version up to this one."""
        version = data["manifest"].get("schema_version", 0)
        if not 1 <= version <= SCHEMA_VERSION:
            raise UserError(f"schema version {version}: this prmbench reads 1 to {SCHEMA_VERSION}; upgrade prmbench")
        return cls(
            RunManifest(**_known(RunManifest, data["manifest"])),
            tuple(MetricRow(**_known(MetricRow, row)) for row in data["rows"]),
        )


def _known(record: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(record)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in names}
