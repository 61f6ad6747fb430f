"""Computes and checks the metric rows of runs, and compares two runs, each by the run's task.

Pure functions of stored scores, so any table can be recomputed without a model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prmbench.core import archives, reading, validation
from prmbench.core.records import (
    ESTIMATOR_VERSION,
    EvalProtocol,
    MetricRow,
    Notice,
    RunManifest,
    RunResult,
    ScoredTrace,
    UserError,
)
from prmbench.core.result_files import Run, has_scores, read_stored, result_paths
from prmbench.tasks.agreement import differences
from prmbench.tasks.metric_rows import Cell, Judged, compared_rows, difference
from prmbench.tasks.registry import find_task
from prmbench.tasks.steps import check_alike, no_shared_protocol

ScoredRun = tuple[RunResult, Sequence[ScoredTrace]]
Pair = tuple[EvalProtocol, EvalProtocol] | tuple[str, str]
"""The protocols of two runs to compare: of step F1, or the protocol keys of another task."""
JUDGED_AGAIN = (
    "rows by an earlier prmbench's estimators, computed again from the scores; "
    "`python -m prmbench.tasks.rejudge FOLDER` writes them"
)
"""What a user is told of such runs."""


def protocol_keys(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the protocols that every run of this task and kind of score has, in table order, without floors."""
    return find_task(manifest.task).protocols(manifest)


def resolve_protocols(manifest: RunManifest, requested: Sequence[str]) -> tuple[str, ...]:
    """Returns the protocol keys of a user in their normal form.

    Raises:
        UserError: The run cannot have one of them.
    """
    task = find_task(manifest.task)
    if task.resolve is not None:
        return tuple(task.resolve(manifest, key) for key in requested)
    keys = task.protocols(manifest)
    for key in requested:
        if key not in keys:
            raise UserError(f"protocol {key!r}: {manifest.benchmark} has {', '.join(keys) or 'none'} for this model")
    return tuple(requested)


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> tuple[MetricRow, ...]:
    """Computes all rows of a run: floors first, then each protocol with its interval, per subset and averaged."""
    judged = find_task(manifest.task).judge(manifest, scores)
    if not isinstance(judged, Judged):
        raise UserError(f"task {manifest.task}: its judge() gives a {type(judged).__name__}; it must give a Judged")
    return judged.rows()


# --- results on disk ----------------------------------------------------------------------------------------


def read_run(path: Path) -> Run:
    """Reads a result and its scores, from files or an archive, and checks every field of both.

    It does not check that the rows follow from the scores; see `verified`.

    Raises:
        UserError: A file is missing, a link, too large, of another format or altered, or a field has a wrong value.
    """
    run = read_stored(path)
    try:
        find_task(run.result.manifest.task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    check_manifest(run.result.manifest, str(path))
    check_scores(run.result.manifest, run.scores, str(path))
    if (version := run.result.manifest.estimator_version) > ESTIMATOR_VERSION:
        raise UserError(f"{path}: its rows are by estimators of version {version}; upgrade prmbench")
    return run


def judge_again(run: Run) -> Run:
    """Returns a run with rows by this version's estimators, from its scores."""
    manifest = replace(run.result.manifest, estimator_version=ESTIMATOR_VERSION)
    return replace(run, result=RunResult(manifest, judge(manifest, run.scores)), is_judged_again=True)


def is_of_earlier_estimators(run: Run) -> bool:
    """Whether the stored rows were computed by an earlier version's estimators."""
    return run.result.manifest.estimator_version < ESTIMATOR_VERSION


def read_runs(root: Path) -> list[Run]:
    """Reads every run under `root`, packed ones included; JSON files without scores are skipped.

    Returns:
        The runs, sorted by benchmark, model and run id.

    Raises:
        UserError: As for `read_run`.
    """
    packed = [path for archive in archives.find_archives(root) for path in result_paths(archive)]
    runs = [read_run(path) for path in (*reading.find_paths(root, ".json"), *packed) if has_scores(path)]
    return sorted(runs, key=lambda r: (r.result.manifest.benchmark, r.result.manifest.model, r.result.manifest.run_id))


def check_manifest(manifest: RunManifest, source: str) -> None:
    """Raises UserError with the first error that the task finds in a manifest, and the number of further ones."""
    task = find_task(manifest.task)
    faults = []
    if task.reads_outcomes != (manifest.kind == "outcome"):
        faults.append(("task", f"is {manifest.task!r} on {manifest.kind!r} scores, unknown to this version"))
    faults += task.check_manifest(manifest)
    validation.refuse([(f"manifest.{field}", message) for field, message in faults], source)


def check_scores(manifest: RunManifest, scores: Sequence[ScoredTrace], source: str) -> None:
    """Raises UserError with the first error that the task finds in score lines, and the number of further ones."""
    task = find_task(manifest.task)
    faults = [
        (f"scores line {number} ({validation.short.repr(trace.id)}): {field}", message)
        for number, trace in enumerate(scores, 1)
        for field, message in task.check_trace(manifest, trace)
    ]
    validation.refuse(faults or [("scores", message) for message in task.check_scores(scores)], source)


def check_draft(manifest: RunManifest, source: str) -> None:
    """Raises UserError if a run with this manifest could not be read again; its `n` may still be 0."""
    draft = replace(manifest, n=max(manifest.n, 1))
    validation.check_result(RunResult(draft, ()), source)
    check_manifest(draft, source)


def underivable_rows(result: RunResult, scores: Sequence[ScoredTrace], resampled: bool = False) -> list[str]:
    """Returns a message for each stored row whose number does not follow from the scores; empty if all do.

    Args:
        result: The stored rows with their manifest.
        scores: The stored scores.
        resampled: Whether to check intervals, p-values and detectable differences, too. Without them the check is
            cheap enough to run on every result that is read.
    """
    manifest = result.manifest if resampled else replace(result.manifest, replicates=0)
    try:
        derived = judge(manifest, scores)
    except UserError as error:
        return [str(error)]
    return differences(result.rows, derived, resampled)


def verified(run: Run, resampled: bool = False) -> Run:
    """Returns a run if its rows follow from its scores; see `underivable_rows`.

    Rows that an earlier version's estimators computed are replaced by ours: see `judge_again`.

    Raises:
        UserError: A row does not follow from the scores.
    """
    if is_of_earlier_estimators(run):
        return judge_again(run)
    if faults := underivable_rows(run.result, run.scores, resampled):
        raise UserError(f"{run.path}: {'; '.join(faults)}")
    return run


def read_verified(path: Path, resampled: bool = False) -> Run:
    """Reads a run and checks it as `verified` does; gives a Notice if its rows had to be computed again.

    Raises:
        UserError: As for `read_run` and `verified`.
    """
    run = verified(read_run(path), resampled)
    if run.is_judged_again:
        warnings.warn(f"{path.name}: {JUDGED_AGAIN}", Notice, stacklevel=2)
    return run


# --- run against run ----------------------------------------------------------------------------------------


def compare(a: ScoredRun, b: ScoredRun, pairs: Sequence[Pair]) -> tuple[MetricRow, ...]:
    """Computes paired differences (b minus a) with intervals and p-values, per subset and averaged.

    Both runs are resampled with the same problems, by the seed and the replicates of the first. Step F1: see
    `steps.compare`. Other tasks: for every metric M the rows `M_a`, `M_b`, `M_difference`, p_value, mdd and, for
    several protocols, p_adjusted under the protocol `<key> M`.

    Args:
        a: The first run: its result and its scores.
        b: The second run.
        pairs: The protocols to compare, as `pairs` returns them.

    Raises:
        UserError: The runs cannot be compared.
    """
    manifest_a, manifest_b = a[0].manifest, b[0].manifest
    _check_comparable(manifest_a, manifest_b)
    task = find_task(manifest_a.task)
    if task.compare is not None:
        return task.compare(a, b, pairs)
    judged_a = task.judge(_with_protocols(manifest_a, [pair_a for pair_a, _ in pairs]), a[1])
    resampled_alike = replace(manifest_b, seed=manifest_a.seed, replicates=manifest_a.replicates)
    judged_b = task.judge(_with_protocols(resampled_alike, [pair_b for _, pair_b in pairs]), b[1])
    cells: dict[str, dict[str, list[Cell]]] = {}
    for pair_a, pair_b in pairs:
        (key_a,), (key_b,) = resolve_protocols(manifest_a, [str(pair_a)]), resolve_protocols(manifest_b, [str(pair_b)])
        if task.has_threshold:
            check_alike(EvalProtocol.parse(key_a), EvalProtocol.parse(key_b))
        name = key_a if key_a == key_b else f"{key_a} vs {key_b}"
        for metric in _metrics(judged_a, key_a, judged_b, key_b):
            if metric.startswith(task.not_compared):
                continue
            cells[f"{name} {metric}"] = {
                part.name: difference(
                    metric, _cell(judged_a, key_a, part.name, metric), _cell(judged_b, key_b, part.name, metric)
                )
                for part in judged_a.parts
            }
    averages = dict.fromkeys(cells, judged_a.averages)
    return tuple(compared_rows(judged_a.parts, cells, averages, judged_a.mixed))


def _with_protocols(manifest: RunManifest, keys: Sequence[EvalProtocol | str]) -> RunManifest:
    """The manifest with those of the named protocols that are not judged by default."""
    extra = set(resolve_protocols(manifest, [str(key) for key in keys])) - set(protocol_keys(manifest))
    return replace(manifest, extra_protocols=tuple(sorted({*manifest.extra_protocols, *extra})))


def pairs(a: RunManifest, b: RunManifest, requested: Sequence[str] = (), against: str | None = None) -> list[Pair]:
    """Returns the protocols to compare: the requested ones, or all that both runs have.

    Args:
        a: Manifest of the first run.
        b: Manifest of the second run.
        requested: Protocol keys.
        against: The key in the second run, where its readout has another name.

    Raises:
        UserError: The runs are not comparable, or share no protocol.
    """
    _check_comparable(a, b)
    task = find_task(a.task)
    if task.pairs is not None:
        return list(task.pairs(a, b, requested, against))
    if requested:
        return [(key, against or key) for key in requested]
    common: list[Pair] = [(key, key) for key in protocol_keys(a) if key in protocol_keys(b)]
    if not common:
        raise UserError(no_shared_protocol(a, b))
    return common


def _check_comparable(a: RunManifest, b: RunManifest) -> None:
    for field in ("benchmark", "task", "subsets", "benchmark_hash", "boundary"):
        value_a, value_b = getattr(a, field), getattr(b, field)
        if value_a != value_b:
            sizes = f" of {a.n} and {b.n} traces" if field == "benchmark_hash" else ""
            raise UserError(
                f"compare: the runs differ in {field.replace('_', ' ')}{sizes} ({value_a} and {value_b}); score both "
                "alike, with the same --data, --subset and --limit"
            )


def _metrics(a: Judged, key_a: str, b: Judged, key_b: str) -> list[str]:
    """Metrics that both runs have in every subset, in the first run's order."""
    lists = [[c.metric for c in judged.cells[key][p.name]] for judged, key in ((a, key_a), (b, key_b)) for p in a.parts]
    shared = set.intersection(*map(set, lists))
    return [metric for metric in lists[0] if metric in shared]


def _cell(judged: Judged, key: str, subset: str, metric: str) -> Cell:
    return next(c for c in judged.cells[key][subset] if c.metric == metric)
