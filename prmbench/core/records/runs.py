"""A number, where a result comes from, and both in one record: what `<run-id>.json` holds. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from prmbench.core.records.kinds import SCHEMA_VERSION, SCORING_VERSION, Boundary, ScoreKind, Threshold, UserError


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
    task: str = "steps"
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
    """Tokens of the scored traces, padding left out; a reference model's pass is not counted again. Of critics, prompts
    and answers together."""
    completion_tokens: int = 0
    """Those of them that were generated."""
    cost: float | None = None
    """What a paid server took, in the currency of the prices given; None where no price was."""
    request_changes: tuple[str, ...] = ()
    """Parameters that a server refused, and what was done instead: `temperature left out`."""
    memory_gib: float | None = None
    """Most memory that a scoring process held, on the GPU where there was one; None where it was not measured."""
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
