"""Task distrl: accuracy of a policy at each validation during training, and its gain from the first to the last.

A trace is a validation problem: `values` holds its mean accuracy over the samples, one number per validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.core.validation import Fault, all_within, is_count, series_of, short
from prmbench.metrics.first_error import Floats
from prmbench.tasks.blocks import Block, average_or_only_subset, blocks, problem_identity, rows_of
from prmbench.tasks.metric_rows import (
    Cell,
    Judged,
    SubsetInfo,
    absent,
    resampled,
    share,
    traces_of_subset,
    weighted_mean,
)
from prmbench.tasks.table import PERCENT, POINTS, Row, Table, cell_of, notes_of
from prmbench.tasks.task import Floor, Leading, Task
from prmbench.tasks.wording import run_name

GAIN = "policy/gain"
TRUNCATED = "truncated"


def validated_at(manifest: RunManifest) -> tuple[int, ...]:
    """Returns the training steps after which the policy was validated, in rising order; 0 is before training."""
    return tuple(manifest.config["validated_at"])


def metric(manifest: RunManifest) -> str:
    """Returns the metric's name: `avg@8` for the mean accuracy over 8 samples per problem."""
    return f"avg@{manifest.config['samples']}"


def step_key(step: int) -> str:
    """Returns the protocol key of the validation after a training step."""
    return f"policy/step:{step}"


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """Returns a protocol per validation, then the gain if there are at least two validations."""
    steps = validated_at(manifest)
    return (*map(step_key, steps), *(GAIN,) * (len(steps) > 1))


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Computes all cells; every validation is resampled with the same problems, so the gain is paired."""
    parts: list[SubsetInfo] = []
    cells: dict[str, dict[str, list[Cell]]] = {key: {} for key in protocols(manifest)}
    for name in manifest.subsets:
        traces = traces_of_subset(scores, name)
        unscored, problems = sum(bool(t.unscored) for t in traces), len({t.cluster for t in traces})
        parts.append(SubsetInfo(name, len(traces), unscored, "no problem was validated", problems))
        for key, subset_cells in _cells(manifest, name, traces).items():
            cells[key][name] = subset_cells
    return Judged(tuple(parts), cells)


def _cells(manifest: RunManifest, subset: str, traces: Sequence[ScoredTrace]) -> dict[str, list[Cell]]:
    steps, name = validated_at(manifest), metric(manifest)
    problem, weights = resampled(manifest, subset, [t.cluster for t in traces])
    accuracy = _by_problem(traces, [t.values for t in traces], problem, weights.shape[1], len(steps))
    truncated = _by_problem(traces, [t.also.get(TRUNCATED, ()) for t in traces], problem, weights.shape[1], len(steps))
    cells = {}
    for index, step in enumerate(steps):
        truncated_cells = [share(TRUNCATED, weighted_mean(truncated[index], weights))]
        if np.isnan(truncated_cells[0].values[0]):
            truncated_cells = absent([TRUNCATED], "not recorded")
        cells[step_key(step)] = [share(name, weighted_mean(accuracy[index], weights)), *truncated_cells]
    if len(steps) > 1:
        cells[GAIN] = [Cell(name, weighted_mean(accuracy[-1] - accuracy[0], weights), kind="share_difference")]
    return cells


def _by_problem(
    traces: Sequence[ScoredTrace], series: Sequence[Sequence[float]], index: np.ndarray, problems: int, steps: int
) -> Floats:
    """Mean of a series over each problem's traces, [steps, problems]; nan where no trace has it."""
    total, count = np.zeros((steps, problems)), np.zeros(problems)
    for trace, values, problem in zip(traces, series, index, strict=True):
        if not trace.unscored and len(values) == steps:
            total[:, problem] += values
            count[problem] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


# --- tables -------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns one table, in which runs on the same validation problems form a group."""
    problem_blocks = blocks(runs, problem_identity)
    gains = [row for run in runs for row in run.result.rows if row.protocol == GAIN]
    return (
        Table(
            label="distrl-policies",
            title="Policies before and after training",
            caption="Mean accuracy of the sampled completions on the validation problems at the first and the last "
            "validation, percent; gain: after minus before, paired over problems, in percentage points. 95% interval "
            "over problems. Cut: completions that reached the length limit.",
            header=("Problems", "Model", "Run", "Metric", "Before", "After", "Gain", "Cut before", "Cut after"),
            groups=tuple(tuple(_policy(block, run) for run in block.runs) for block in problem_blocks),
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
        *(block.name, run_name(run), manifest.run_id, accuracy),
        cell_of(rows.get((before, accuracy)), PERCENT),
        cell_of(rows.get((after, accuracy)) if is_trained else None, PERCENT),
        cell_of(rows.get((GAIN, accuracy)), POINTS),
        cell_of(rows.get((before, TRUNCATED)), interval=False),
        cell_of(rows.get((after, TRUNCATED)) if is_trained else None, interval=False),
    )


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns the accuracy at the last validation, against that of the same policy before training."""
    accuracy, steps = metric(result.manifest), validated_at(result.manifest)
    before = (Floor(step_key(steps[0]), accuracy, "the policy before training"),) if len(steps) > 1 else ()
    return (Leading(step_key(steps[-1]), accuracy, accuracy, "after training", floors=before, has_baselines=False),)


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: a row per validation, then the gain, with the share of truncated completions."""
    rows, accuracy = rows_of(result, average_or_only_subset(result)), metric(result.manifest)
    validation_rows: list[Row] = []
    shown_rows: list[MetricRow | None] = []
    for key in keys:
        metric_rows = rows.get((key, accuracy)), rows.get((key, TRUNCATED))
        shown_rows += metric_rows
        name = "after minus before" if key == GAIN else key.removeprefix("policy/").replace(":", " ")
        unit = POINTS if key == GAIN else PERCENT
        validation_rows.append((name, cell_of(metric_rows[0], unit), cell_of(metric_rows[1], interval=False)))
    return Table(
        label="distrl",
        title="",
        caption="",
        header=("policy in training, percent", accuracy, "cut"),
        groups=(tuple(validation_rows),),
        notes=notes_of(row for row in shown_rows if row is not None),
        text_columns=1,
    )


# --- checks -------------------------------------------------------------------------------------------------


def check_manifest(manifest: RunManifest) -> Iterator[Fault]:
    """Yields errors in the list of validation steps and in the number of samples."""
    steps, samples = manifest.config.get("validated_at"), manifest.config.get("samples")
    rising = isinstance(steps, list | tuple) and all(map(is_count, steps)) and sorted(set(steps)) == [*steps]
    if not steps or not rising:
        yield "config.validated_at", f"is {short.repr(steps)}, not a list of rising steps"
    if not is_count(samples) or not samples:
        yield "config.samples", f"is {short.repr(samples)}, not a count"


def check_trace(manifest: RunManifest, trace: ScoredTrace) -> Iterator[Fault]:
    """Yields an error for each series that is not one accuracy per validation."""
    if trace.unscored:
        return
    count = len(validated_at(manifest))
    for name, values in series_of(trace).items():
        if trace.steps != count or len(values) != count or not all_within(values, 0, 1):
            yield name, f"must be one number from 0 to 1 for each of {count} validations"


TASK = Task(
    name="distrl",
    title="training with process rewards",
    description="How often a policy's own completions are right, before and after training by reinforcement learning.",
    unscored="not verified, left out",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    judge_one=lambda manifest, scores, _: judge(manifest, scores),
    leading=leading,
    lower_is_better=(TRUNCATED,),
    reads_outcomes=True,
    check_manifest=check_manifest,
    check_trace=check_trace,
)
