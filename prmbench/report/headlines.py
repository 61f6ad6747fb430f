"""The one number of a run that a model card and the hub show: which metric, subset and protocol it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prmbench.core.records import DEFAULT_READOUTS, EvalProtocol, MetricRow, RunManifest, RunResult
from prmbench.tasks import find_task
from prmbench.tasks.blocks import group_size, underlying_subsets
from prmbench.tasks.steps import RECOMMENDED
from prmbench.tasks.task import Task
from prmbench.tasks.wording import hidden_floors, rule_and_readout

EXCLUDED_METRICS = ("threshold", "mdd", "drop_mdd", "p_value", "reliability", "ece_if_calibrated")
"""Beginnings of metrics that are no results of their own."""
PICK_METRICS = ("best_of", "weighted_vote")
"""Metrics of picking one among N; their floors are the accuracy of a random pick, majority@N and pass@N."""
IN_SAMPLE_RULES = ("calibrated_in_sample", "oracle")
"""Threshold rules that were tuned on the traces they are judged on."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
DIGITS = 6
"""Decimals of numbers in metadata."""


def headline(result: RunResult) -> MetricRow | None:
    """Returns the row with the run's main number, or None where it has no number that could be reached in use.

    It is the first of the numbers that may stand for the run in the overview (the task's `leading`), over as many of
    the subsets as one row covers. Tasks without these have the first of `headline_metrics` with a value, under a
    threshold that could be used in practice, in the order of a leaderboard's first table, and the readout that figures
    show for this kind of score.
    """
    task = find_task(result.manifest.task)
    rows = [row for row in result.rows if row.value is not None and is_result(row) and not is_in_sample(task, row)]
    if task.leading is not None:
        for leading in task.leading(result):
            candidates = [row for row in rows if (row.protocol, row.metric) == (leading.protocol, leading.metric)]
            if candidates:
                return max(candidates, key=lambda row: len(underlying_subsets(row.subset)))
        return None
    for metric in _metrics(task, rows):
        candidates = [row for row in rows if row.metric == metric]
        if candidates:
            order = _protocol_order(task, result, candidates)
            return min(candidates, key=lambda row: (-len(underlying_subsets(row.subset)), order.index(row.protocol)))
    return None


def is_floor(row: MetricRow) -> bool:
    """Whether the row is a model-free baseline."""
    return row.protocol.startswith("floor/")


def is_result(row: MetricRow) -> bool:
    """Whether the row is a result of the model: no floor, no threshold, no p-value."""
    return not is_floor(row) and not row.metric.startswith(EXCLUDED_METRICS)


def is_in_sample(task: Task, row: MetricRow) -> bool:
    """Whether the row's threshold was tuned on the traces that it is judged on."""
    return not is_floor(row) and rule_of(task, row.protocol) in IN_SAMPLE_RULES


def rule_of(task: Task, protocol: str) -> str:
    """Returns the threshold rule of a protocol, or what stands behind the slash in tasks without thresholds."""
    return rule_and_readout(protocol, task.has_threshold)[0]


def lower_is_better(task: Task, metric: str) -> bool:
    """Whether a lower value of the metric is better."""
    return task.prefers_low(metric)


def floors_of(row: MetricRow, rows: Sequence[MetricRow]) -> dict[str, float | None]:
    """Returns the floors of the row's subset and metric, by protocol."""
    metrics = {row.metric}
    metric, _, n = row.metric.partition("@")
    if metric in PICK_METRICS:
        metrics = {"accuracy", f"majority@{n}", f"pass@{n}"}
    floors = [r for r in rows if is_floor(r) and r.subset == row.subset and r.metric in metrics]
    hidden = hidden_floors((r.protocol for r in floors), [row.protocol])
    floors = [r for r in floors if r.protocol not in hidden]
    return {r.protocol: rounded(r.value) for r in floors if r.value is not None}


def dataset_name(m: RunManifest) -> str:
    """Returns the benchmark's name, with the task's where several tasks share it."""
    shares_name = not find_task(m.task).has_board and m.task != m.benchmark
    return f"{m.benchmark}-{m.task}" if shares_name else m.benchmark


def is_hub_id(source: str) -> bool:
    """Whether the source of a run's data is a data set of the hub: local files are named by their last part."""
    return HUB_ID.fullmatch(source) is not None


def rounded(value: float | None) -> float | None:
    """Returns a number as metadata shows it."""
    return None if value is None else round(value, DIGITS)


def flattened(text: str) -> str:
    """Returns the text on one line, as metadata needs it; messages need `redaction.one_line`."""
    return " ".join(text.split())


def _metrics(task: Task, rows: Sequence[MetricRow]) -> Iterable[str]:
    """The metrics to try, in order."""
    present = dict.fromkeys(row.metric for row in rows)
    for name in task.headline_metrics or tuple(column.metric for column in task.columns) or tuple(present):
        sizes = [metric for metric in present if name.endswith("@") and metric.startswith(name)]
        yield max(sizes, key=lambda metric: group_size(metric) or 0, default=name)


def _protocol_order(task: Task, result: RunResult, rows: Sequence[MetricRow]) -> list[str]:
    """The protocols of the rows, the preferred one first."""
    present = list(dict.fromkeys(row.protocol for row in rows))
    if task.headline_protocols is not None:
        preferred = [key for key in task.headline_protocols(result.manifest) if key in present]
        return [*preferred, *(key for key in present if key not in preferred)]
    if not task.has_threshold:
        return present

    def rank(key: str) -> tuple[bool, int, bool]:
        protocol = EvalProtocol.parse(key)
        is_usual = protocol.readout == DEFAULT_READOUTS.get(result.manifest.kind) and not protocol.series
        known = protocol.threshold in RECOMMENDED
        rule = RECOMMENDED.index(protocol.threshold) if known else len(RECOMMENDED)
        return not is_usual, rule, protocol.boundary != result.manifest.boundary

    return sorted(present, key=rank)
