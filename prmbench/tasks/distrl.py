"""Task distrl: how right a policy is at each validation of its training, and what it gained from the first to the last.

A trace is a validation problem: `values` hold its mean accuracy over the samples, one number a validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.core.validation import Fault, all_within, is_count, series_of, short
from prmbench.metrics.first_error import Floats
from prmbench.tasks.blocks import Block, average_or_only_subset, blocks, problem_identity, rows_of
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, absent, resampled, traces_of_subset, weighted_mean
from prmbench.tasks.table import PERCENT, POINTS, Row, Table, cell_of, notes_of
from prmbench.tasks.task import Task
from prmbench.tasks.wording import model_name

GAIN = "policy/gain"
TRUNCATED = "truncated"


def validated_at(manifest: RunManifest) -> tuple[int, ...]:
    """The steps after which the policy was validated, rising; 0 is before training."""
    return tuple(manifest.config["validated_at"])


def metric(manifest: RunManifest) -> str:
    """`avg@8`: the mean accuracy over that many samples of a problem."""
    return f"avg@{manifest.config['samples']}"


def step_key(step: int) -> str:
    """Protocol of one validation."""
    return f"policy/step:{step}"


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """A protocol per validation, then the gain where there are two."""
    steps = validated_at(manifest)
    return (*map(step_key, steps), *(GAIN,) * (len(steps) > 1))


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """All cells; every validation is resampled with the same problems, so the gain is paired."""
    parts: list[SubsetInfo] = []
    cells: dict[str, dict[str, list[Cell]]] = {key: {} for key in protocols(manifest)}
    for name in manifest.subsets:
        traces = traces_of_subset(scores, name)
        parts.append(SubsetInfo(name, len(traces), sum(bool(t.unscored) for t in traces), "no problem was validated"))
        for key, found in _cells(manifest, name, traces).items():
            cells[key][name] = found
    return Judged(tuple(parts), cells)


def _cells(manifest: RunManifest, subset: str, traces: Sequence[ScoredTrace]) -> dict[str, list[Cell]]:
    steps, name = validated_at(manifest), metric(manifest)
    index, weights = resampled(manifest, subset, [t.cluster for t in traces])
    accuracy = _by_problem(traces, [t.values for t in traces], index, weights.shape[1], len(steps))
    cut = _by_problem(traces, [t.also.get(TRUNCATED, ()) for t in traces], index, weights.shape[1], len(steps))
    found = {}
    for at, step in enumerate(steps):
        share = [Cell(TRUNCATED, weighted_mean(cut[at], weights))]
        if np.isnan(share[0].values[0]):
            share = absent([TRUNCATED], "not recorded")
        found[step_key(step)] = [Cell(name, weighted_mean(accuracy[at], weights)), *share]
    if len(steps) > 1:
        found[GAIN] = [Cell(name, weighted_mean(accuracy[-1] - accuracy[0], weights))]
    return found


def _by_problem(
    traces: Sequence[ScoredTrace], series: Sequence[Sequence[float]], index: np.ndarray, problems: int, steps: int
) -> Floats:
    """[steps, problems]: means over a problem's traces; nan where it has none, or none with the series."""
    total, count = np.zeros((steps, problems)), np.zeros(problems)
    for trace, values, number in zip(traces, series, index, strict=True):
        if not trace.unscored and len(values) == steps:
            total[:, number] += values
            count[number] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


# --- tables -------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """One table; runs on the same validation problems stand together."""
    found = blocks(runs, problem_identity)
    gains = [row for run in runs for row in run.result.rows if row.protocol == GAIN]
    return (
        Table(
            label="distrl-policies",
            title="Policies before and after training",
            caption="Mean accuracy of the sampled completions on the validation problems at the first and the last "
            "validation, percent; gain: after minus before, paired over problems, in percentage points. 95% interval "
            "over problems. Cut: completions that reached the length limit.",
            header=("Problems", "Model", "Run", "Metric", "Before", "After", "Gain", "Cut before", "Cut after"),
            groups=tuple(tuple(_policy(block, run) for run in block.runs) for block in found),
            notes=notes_of(gains),
            text_columns=4,
        ),
    )


def _policy(block: Block, run: Run) -> Row:
    manifest = run.result.manifest
    rows = rows_of(run.result, block.subset)
    accuracy, steps = metric(manifest), validated_at(manifest)
    before, after = step_key(steps[0]), step_key(steps[-1])
    is_trained = len(steps) > 1
    return (
        *(block.name, model_name(manifest), manifest.run_id, accuracy),
        cell_of(rows.get((before, accuracy)), PERCENT),
        cell_of(rows.get((after, accuracy)) if is_trained else None, PERCENT),
        cell_of(rows.get((GAIN, accuracy)), POINTS),
        cell_of(rows.get((before, TRUNCATED)), interval=False),
        cell_of(rows.get((after, TRUNCATED)) if is_trained else None, interval=False),
    )


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """A line per validation, then the gain; beside it completions cut at the length limit."""
    rows, accuracy = rows_of(result, average_or_only_subset(result)), metric(result.manifest)
    lines: list[Row] = []
    shown: list[MetricRow | None] = []
    for key in keys:
        found = rows.get((key, accuracy)), rows.get((key, TRUNCATED))
        shown += found
        name = "after minus before" if key == GAIN else key.removeprefix("policy/").replace(":", " ")
        unit = POINTS if key == GAIN else PERCENT
        lines.append((name, cell_of(found[0], unit), cell_of(found[1], interval=False)))
    return Table(
        label="distrl",
        title="",
        caption="",
        header=("policy in training, percent", accuracy, "cut"),
        groups=(tuple(lines),),
        notes=notes_of(row for row in shown if row is not None),
        text_columns=1,
    )


# --- checks -------------------------------------------------------------------------------------------------


def check_manifest(manifest: RunManifest) -> Iterator[Fault]:
    """Yields what is wrong with when the policy was validated, and by how many samples."""
    steps, samples = manifest.config.get("validated_at"), manifest.config.get("samples")
    rising = isinstance(steps, list | tuple) and all(map(is_count, steps)) and sorted(set(steps)) == [*steps]
    if not steps or not rising:
        yield "config.validated_at", f"is {short.repr(steps)}, not a list of rising steps"
    if not is_count(samples) or not samples:
        yield "config.samples", f"is {short.repr(samples)}, not a count"


def check_trace(manifest: RunManifest, trace: ScoredTrace) -> Iterator[Fault]:
    """Yields series that are not one accuracy a validation. The manifest has been checked."""
    if trace.unscored:
        return
    count = len(validated_at(manifest))
    for name, values in series_of(trace).items():
        if trace.steps != count or len(values) != count or not all_within(values, 0, 1):
            yield name, f"must be one number from 0 to 1 for each of {count} validations"


TASK = Task(
    name="distrl",
    title="training with process rewards",
    description="How right a policy's own completions are before and after it is trained by reinforcement learning.",
    unscored="not verified, left out",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    reads_outcomes=True,
    check_manifest=check_manifest,
    check_trace=check_trace,
)
