"""Stored scores -> every metric row, by the run's task; which protocols a run has; run against run.

Pure functions of committed scores, so any table can be recomputed without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from prmbench.core.records import EvalProtocol, MetricRow, RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import Run, read_run
from prmbench.tasks import best_of_n, calibration, distrl, format_shift, policy, steps, validity
from prmbench.tasks.agreement import differences
from prmbench.tasks.metric_rows import OUT_OF_FOLD, Cell, Judged, subset_rows
from prmbench.tasks.steps import FOLDS, protocols, resolve

__all__ = [
    "FOLDS",
    "OUT_OF_FOLD",
    "Pair",
    "checked",
    "compare",
    "differences",
    "judge",
    "keys",
    "pairs",
    "protocols",
    "read_verified",
    "resolve",
    "unfounded",
]

Scored = tuple[RunResult, Sequence[ScoredTrace]]
Pair = tuple[EvalProtocol, EvalProtocol] | tuple[str, str]
"""What is compared with what: protocols of step F1, or the protocol keys of another task."""

_KEYS: dict[str, Callable[[RunManifest], tuple[str, ...]]] = {
    "steps": lambda manifest: tuple(p.key for p in protocols(manifest)),
    "best_of_n": best_of_n.keys,
    "policy": policy.keys,
    "calibration": calibration.keys,
    "distrl": distrl.keys,
    "format_shift": format_shift.keys,
    "validity": validity.keys,
}
_CELLS: dict[str, Callable[[RunManifest, Sequence[ScoredTrace]], Judged]] = {
    "best_of_n": best_of_n.judged,
    "policy": policy.judged,
    "calibration": calibration.judged,
    "distrl": distrl.judged,
    "format_shift": format_shift.judged,
    "validity": validity.judged,
}


def keys(manifest: RunManifest) -> tuple[str, ...]:
    """The protocols that every run of this task and kind of score has, in table order; floors left out."""
    return _KEYS[manifest.task](manifest)


def checked(manifest: RunManifest, wanted: Sequence[str]) -> tuple[str, ...]:
    """Protocols as a user spelled them -> as rows spell them. Raises UserError on one that the run cannot have."""
    if manifest.task in ("steps", "format_shift"):
        return tuple(resolve(manifest, EvalProtocol.parse(key)).key for key in wanted)
    if manifest.task == "validity":
        return validity.checked(manifest, wanted)
    known = keys(manifest)
    for key in wanted:
        if key not in known:
            raise UserError(f"protocol {key!r}: {manifest.benchmark} has {', '.join(known) or 'none'} for this model")
    return tuple(wanted)


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> tuple[MetricRow, ...]:
    """All rows of a run: floors first, then each protocol with its interval, per subset and averaged."""
    if manifest.task == "steps":
        return steps.judge(manifest, scores)
    found = _CELLS[manifest.task](manifest, scores)
    rows: list[MetricRow] = []
    for protocol, cells in found.cells.items():
        rows += subset_rows(found.parts, protocol, cells, found.averages)
    return (*rows, *policy.micro_rows(manifest, scores)) if manifest.task == "policy" else tuple(rows)


def unfounded(result: RunResult, scores: Sequence[ScoredTrace], resampled: bool = False) -> list[str]:
    """Lines on stored rows whose number does not follow from the scores; empty when every row does.

    Args:
        result: The stored rows, and how they were judged.
        scores: What they should follow from.
        resampled: Whether to check intervals, p-values and detectable differences, too. Without them this is cheap
            enough for every result that is read.
    """
    manifest = result.manifest if resampled else replace(result.manifest, replicates=0)
    try:
        derived = judge(manifest, scores)
    except UserError as error:
        return [str(error)]
    return differences(result.rows, derived, resampled)


def read_verified(path: Path, resampled: bool = False) -> Run:
    """Reads a run whose rows follow from its scores; see `unfounded`.

    Raises:
        UserError: As `store.read_run`, or the number of a row does not follow.
    """
    run = read_run(path)
    if faults := unfounded(run.result, run.scores, resampled):
        raise UserError(f"{path}: {'; '.join(faults)}")
    return run


def compare(a: Scored, b: Scored, pairs: Sequence[Pair]) -> tuple[MetricRow, ...]:
    """Paired differences (b minus a) with intervals and p-values, per subset and averaged.

    Both runs are resampled with the same problems. Step F1: see `steps.compare`. Other tasks: for every metric M the
    rows `M_a`, `M_b`, `M_difference`, p_value and mdd under the protocol `<key> M`. Raises UserError on unlike runs.
    """
    left, right = a[0].manifest, b[0].manifest
    _check_comparable(left, right)
    if left.task == "steps":
        return steps.compare(a, b, [(p, q) for p, q in pairs if isinstance(p, EvalProtocol)])  # type: ignore[misc]
    one = _CELLS[left.task](_asking(left, [p for p, _ in pairs]), a[1])
    two = _CELLS[right.task](_asking(replace(right, seed=left.seed), [q for _, q in pairs]), b[1])
    rows: list[MetricRow] = []
    for p, q in pairs:
        (first,), (second,) = checked(left, [str(p)]), checked(right, [str(q)])
        if left.task in ("format_shift", "validity"):
            steps.check_alike(EvalProtocol.parse(first), EvalProtocol.parse(second))
        name = first if first == second else f"{first} vs {second}"
        for metric in _metrics(one, first, two, second):
            cells = {
                part.name: _difference(
                    metric, _cell(one, first, part.name, metric), _cell(two, second, part.name, metric)
                )
                for part in one.parts
            }
            rows += subset_rows(one.parts, f"{name} {metric}", cells, one.averages)
    return tuple(rows)


def _asking(manifest: RunManifest, wanted: Sequence[EvalProtocol | str]) -> RunManifest:
    """The manifest with protocols that were not judged before, where a task admits any."""
    further = set(checked(manifest, [str(key) for key in wanted])) - set(keys(manifest))
    return replace(manifest, extra_protocols=tuple(sorted({*manifest.extra_protocols, *further})))


def pairs(a: RunManifest, b: RunManifest, wanted: Sequence[str] = (), against: str | None = None) -> list[Pair]:
    """Which protocols to compare: those asked for (`against` names the second run's), or all that both runs have."""
    _check_comparable(a, b)
    if a.task == "steps":
        return list(steps.pairs(a, b, wanted, against))
    if wanted:
        return [(key, against or key) for key in wanted]
    shared: list[Pair] = [(key, key) for key in keys(a) if key in keys(b)]
    if not shared:
        raise UserError(steps.no_shared_protocol(a, b))
    return shared


def _check_comparable(a: RunManifest, b: RunManifest) -> None:
    for what in ("benchmark", "task", "benchmark_hash", "subsets", "boundary"):
        left, right = getattr(a, what), getattr(b, what)
        if left != right:
            raise UserError(
                f"compare: the runs differ in {what.replace('_', ' ')} ({left} and {right}); score both alike"
            )


def _metrics(one: Judged, first: str, two: Judged, second: str) -> list[str]:
    """Metrics that both runs have in every subset."""
    lists = [
        [c.metric for c in side.cells[key][p.name]] for side, key in ((one, first), (two, second)) for p in one.parts
    ]
    shared = set.intersection(*map(set, lists))
    return [metric for metric in lists[0] if metric in shared and not metric.startswith(("reliability", "f1_base"))]


def _cell(side: Judged, key: str, subset: str, metric: str) -> Cell:
    return next(c for c in side.cells[key][subset] if c.metric == metric)


def _difference(metric: str, a: Cell, b: Cell) -> list[Cell]:
    note = a.note or b.note
    return [
        Cell(f"{metric}_a", a.values, note),
        Cell(f"{metric}_b", b.values, note),
        Cell(f"{metric}_difference", b.values - a.values, note),
    ]
