"""Stored scores -> every metric row, by the run's task; and run against run.

Pure functions of stored scores, so any table can be recomputed without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prmbench.core import archives, reading, validation
from prmbench.core.records import EvalProtocol, MetricRow, RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import Run, has_scores, read_stored, result_paths
from prmbench.tasks.agreement import differences
from prmbench.tasks.metric_rows import Cell, Judged, subset_rows
from prmbench.tasks.registry import find_task
from prmbench.tasks.steps import check_alike, no_shared_protocol

Scored = tuple[RunResult, Sequence[ScoredTrace]]
Pair = tuple[EvalProtocol, EvalProtocol] | tuple[str, str]
"""What is compared with what: protocols of step F1, or the protocol keys of another task."""


def protocol_keys(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the protocols that every run of this task and kind of score has, in table order; floors left out."""
    return find_task(manifest.task).protocols(manifest)


def resolve_protocols(manifest: RunManifest, wanted: Sequence[str]) -> tuple[str, ...]:
    """Spells protocols, as a user wrote them, as rows do. Raises UserError on one that the run cannot have."""
    task = find_task(manifest.task)
    if task.resolve is not None:
        return tuple(task.resolve(manifest, key) for key in wanted)
    keys = task.protocols(manifest)
    for key in wanted:
        if key not in keys:
            raise UserError(f"protocol {key!r}: {manifest.benchmark} has {', '.join(keys) or 'none'} for this model")
    return tuple(wanted)


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> tuple[MetricRow, ...]:
    """Computes all rows of a run: floors first, then each protocol with its interval, per subset and averaged."""
    return find_task(manifest.task).judge(manifest, scores).rows()


# --- results on disk ----------------------------------------------------------------------------------------


def read_run(path: Path) -> Run:
    """Reads a result and its scores, loose or packed, and checks every field of both.

    That the rows follow from the scores is not checked here: see `read_verified`.

    Raises:
        UserError: One of the files is missing, a link, too large, foreign or altered, or a field of it cannot be.
    """
    run = read_stored(path)
    try:
        find_task(run.result.manifest.task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    check_manifest(run.result.manifest, str(path))
    check_scores(run.result.manifest, run.scores, str(path))
    return run


def read_runs(root: Path) -> list[Run]:
    """Reads every run under `root`, by benchmark, model and run id. JSON files without scores are passed over."""
    packed = [path for archive in archives.find_archives(root) for path in result_paths(archive)]
    runs = [read_run(path) for path in (*reading.find_paths(root, ".json"), *packed) if has_scores(path)]
    return sorted(runs, key=lambda r: (r.result.manifest.benchmark, r.result.manifest.model, r.result.manifest.run_id))


def check_manifest(manifest: RunManifest, where: str) -> None:
    """Raises UserError with the first thing in a manifest that its task does not have, and how many more there are."""
    task = find_task(manifest.task)
    faults = []
    if task.reads_outcomes != (manifest.kind == "outcome"):
        faults.append(("task", f"is {manifest.task!r} on {manifest.kind!r} scores, unknown to this version"))
    faults += task.check_manifest(manifest)
    validation.refuse([(f"manifest.{field}", words) for field, words in faults], where)


def check_scores(manifest: RunManifest, scores: Sequence[ScoredTrace], where: str) -> None:
    """Raises UserError with the first thing in score lines that their task does not have, and how many more."""
    task = find_task(manifest.task)
    faults = [
        (f"scores line {number} ({validation.short.repr(trace.id)}): {field}", words)
        for number, trace in enumerate(scores, 1)
        for field, words in task.check_trace(manifest, trace)
    ]
    validation.refuse(faults or [("scores", words) for words in task.check_scores(scores)], where)


def check_draft(manifest: RunManifest, where: str) -> None:
    """Raises UserError where a run with such a manifest could not be read again; `n` may not be counted yet."""
    draft = replace(manifest, n=max(manifest.n, 1))
    validation.check_result(RunResult(draft, ()), where)
    check_manifest(draft, where)


def underivable_rows(result: RunResult, scores: Sequence[ScoredTrace], resampled: bool = False) -> list[str]:
    """Returns a line on each stored row whose number does not follow from the scores; empty when every row does.

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
    """Reads a run whose rows follow from its scores; see `underivable_rows`.

    Raises:
        UserError: As `read_run`, or the number of a row does not follow.
    """
    run = read_run(path)
    if faults := underivable_rows(run.result, run.scores, resampled):
        raise UserError(f"{path}: {'; '.join(faults)}")
    return run


# --- run against run ----------------------------------------------------------------------------------------


def compare(a: Scored, b: Scored, pairs: Sequence[Pair]) -> tuple[MetricRow, ...]:
    """Computes paired differences (b minus a) with intervals and p-values, per subset and averaged.

    Both runs are resampled with the same problems. Step F1: see `steps.compare`. Other tasks: for every metric M the
    rows `M_a`, `M_b`, `M_difference`, p_value and mdd under the protocol `<key> M`. Raises UserError on unlike runs.
    """
    left, right = a[0].manifest, b[0].manifest
    _check_comparable(left, right)
    task = find_task(left.task)
    if task.compare is not None:
        return task.compare(a, b, pairs)
    one = task.judge(_with_protocols(left, [p for p, _ in pairs]), a[1])
    two = task.judge(_with_protocols(replace(right, seed=left.seed), [q for _, q in pairs]), b[1])
    rows: list[MetricRow] = []
    for p, q in pairs:
        (first,), (second,) = resolve_protocols(left, [str(p)]), resolve_protocols(right, [str(q)])
        if task.has_threshold:
            check_alike(EvalProtocol.parse(first), EvalProtocol.parse(second))
        name = first if first == second else f"{first} vs {second}"
        for metric in _metrics(one, first, two, second):
            if metric.startswith(task.not_compared):
                continue
            cells = {
                part.name: _difference(
                    metric, _cell(one, first, part.name, metric), _cell(two, second, part.name, metric)
                )
                for part in one.parts
            }
            rows += subset_rows(one.parts, f"{name} {metric}", cells, one.averages)
    return tuple(rows)


def _with_protocols(manifest: RunManifest, wanted: Sequence[EvalProtocol | str]) -> RunManifest:
    """The manifest with protocols that were not judged before, where a task admits any."""
    further = set(resolve_protocols(manifest, [str(key) for key in wanted])) - set(protocol_keys(manifest))
    return replace(manifest, extra_protocols=tuple(sorted({*manifest.extra_protocols, *further})))


def pairs(a: RunManifest, b: RunManifest, wanted: Sequence[str] = (), against: str | None = None) -> list[Pair]:
    """Returns which protocols to compare: those asked for (`against` names the second run's), or all of both runs."""
    _check_comparable(a, b)
    task = find_task(a.task)
    if task.pairs is not None:
        return list(task.pairs(a, b, wanted, against))
    if wanted:
        return [(key, against or key) for key in wanted]
    shared: list[Pair] = [(key, key) for key in protocol_keys(a) if key in protocol_keys(b)]
    if not shared:
        raise UserError(no_shared_protocol(a, b))
    return shared


def _check_comparable(a: RunManifest, b: RunManifest) -> None:
    for field in ("benchmark", "task", "benchmark_hash", "subsets", "boundary"):
        left, right = getattr(a, field), getattr(b, field)
        if left != right:
            raise UserError(
                f"compare: the runs differ in {field.replace('_', ' ')} ({left} and {right}); score both alike"
            )


def _metrics(one: Judged, first: str, two: Judged, second: str) -> list[str]:
    """Metrics that both runs have in every subset."""
    lists = [
        [c.metric for c in side.cells[key][p.name]] for side, key in ((one, first), (two, second)) for p in one.parts
    ]
    shared = set.intersection(*map(set, lists))
    return [metric for metric in lists[0] if metric in shared]


def _cell(side: Judged, key: str, subset: str, metric: str) -> Cell:
    return next(c for c in side.cells[key][subset] if c.metric == metric)


def _difference(metric: str, a: Cell, b: Cell) -> list[Cell]:
    note = a.note or b.note
    return [
        Cell(f"{metric}_a", a.values, note),
        Cell(f"{metric}_b", b.values, note),
        Cell(f"{metric}_difference", b.values - a.values, note),
    ]
