"""Metric rows, the manifest of a run, and both together as in `<run-id>.json`. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from prmbench.core.records.kinds import (
    ESTIMATOR_VERSION,
    SCHEMA_VERSION,
    SCORING_VERSION,
    Boundary,
    ScoreKind,
    Threshold,
    Tie,
    UserError,
)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One number in long format, ready for a data frame."""

    subset: str
    """A subset, or `avg[a,b,...]`: the unweighted mean over these subsets."""
    protocol: str
    """An EvalProtocol key, or `floor/...` for a model-free baseline on these labels."""
    metric: str
    value: float | None
    """None where the metric is undefined; `note` says why."""
    lo: float | None
    """Ends of the 95% interval over problems; of a floor of random scores, the central 95% of random scorers."""
    hi: float | None
    n: int
    unscored: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class RunManifest:
    """Everything needed to repeat a run, without paths of the machine."""

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
    task: str = "steps"
    benchmark_version: int = 1
    schema_version: int = SCHEMA_VERSION
    scoring_version: int = SCORING_VERSION
    estimator_version: int = ESTIMATOR_VERSION
    """Version of the estimators that computed the rows; 1 in files that do not say so."""
    revision: str | None = None
    weights: str | None = None
    """SHA-256 over the files of a local model; None for a hub model, which has a revision."""
    ref_model: str | None = None
    ref_revision: str | None = None
    ref_weights: str | None = None
    beta: float | None = None
    positive_class: int | None = None
    """Class of a right step, where it is not class 1 of two."""
    assumed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's card that were inferred from its files or set by options, and by no prm.json."""
    name: str = ""
    """What tables and figures call the run; empty: the model's name."""
    series: tuple[str, ...] = ()
    """Names of the additional series that every scored trace has in `also`."""
    extra_protocols: tuple[str, ...] = ()
    """Keys of protocols that a user asked for, in addition to those that every run of this kind has."""
    native: float | None = None
    """The threshold of the model's own labels, where it has one (argmax of two classes: 0.5)."""
    fixed: float | None = None
    """The conventional threshold for this kind of score, where there is one (sigmoid: 0.5)."""
    tie: Tie = "right"
    """The label of a step whose score equals the threshold, as the model's authors have it."""
    calibrate_on: str = "gsm8k"
    """The subset on which `calibrated` rules tune their thresholds."""
    rules: tuple[Threshold, ...] = ()
    """The threshold rules that are evaluated; empty = all that the scores admit."""
    replicates: int = 1000
    """Number of bootstrap replicates."""
    template: str | None = None
    """`text_hash` of the chat template."""
    data_source: str = ""
    data_revision: str | None = None
    trained_on: tuple[str, ...] = ()
    signal: str = ""
    """Kind of labels the model was trained on: outcome, steps, none, or unknown (empty)."""
    dtype: str = ""
    engine: str = ""
    device: str = ""
    hardware: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    commits: tuple[str, ...] = ()
    """All commits that scored a batch, where they are not just `commit`, which finished the run."""
    dirty: bool | None = None
    tokens: int = 0
    """Tokens of the scored traces, without padding and without a reference model's pass; of critics, prompt and
    completion tokens."""
    completion_tokens: int = 0
    """Generated tokens, included in `tokens`."""
    answers: int = 0
    """Answers of a critic, each to a request of its own."""
    cost: float | None = None
    """Cost of a paid server, in the currency of the prices; None without prices."""
    request_changes: tuple[str, ...] = ()
    """How requests were changed because a server refused a parameter, e.g. `temperature left out`."""
    memory_gib: float | None = None
    """Peak memory of a scoring process in GiB, on the GPU where there is one; None where it was not measured."""
    seconds: float = 0.0
    """Wall-clock time of scoring, resumed runs added up, without loading."""
    finished_at: int | None = None
    """Unix time in seconds when the scoring ended; None in files of earlier versions."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A manifest and its rows: the content of `<run-id>.json`."""

    manifest: RunManifest
    rows: tuple[MetricRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return `{"manifest": {...}, "rows": [...]}`."""
        return {"manifest": asdict(self.manifest), "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunResult:
        """Parse what `to_json` returns, of every schema version up to this one."""
        version = data["manifest"].get("schema_version", 0)
        if not 1 <= version <= SCHEMA_VERSION:
            raise UserError(f"schema version {version}: this prmbench reads 1 to {SCHEMA_VERSION}; upgrade prmbench")
        manifest = {"estimator_version": 1, **data["manifest"]}
        return cls(
            RunManifest(**_field_values(RunManifest, manifest)),
            tuple(MetricRow(**_field_values(MetricRow, row)) for row in data["rows"]),
        )


def _field_values(record: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the record's fields, lists as tuples; unknown keys of newer versions are dropped."""
    names = {f.name for f in fields(record)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in names}
