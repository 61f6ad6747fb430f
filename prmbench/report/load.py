"""Finds the runs under a folder and says what is wrong with each: hash, ids, provenance, rows that differ.

Reads only; nothing is listed, ranked or written here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prmbench import reading
from prmbench.judge import judge
from prmbench.report.rlstudy import arm_of, panel_of, read_metrics, seeds_of
from prmbench.report.study import STUDY, seed_of
from prmbench.schema import MetricRow, RunManifest, UserError
from prmbench.store import Run, read_run, scores_path

TOLERANCE = 1e-9
"""How far a committed number may be from the recomputed one."""
MOST_LINES = 3
"""Differing rows of a run that are spelled out."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a results folder holds."""

    listed: tuple[Run, ...]
    """Runs whose provenance allows a place in a table, sorted by benchmark, model and run id."""
    refused: tuple[tuple[Run, str], ...]
    """The other readable runs, each with the reason; shown on the page only."""
    broken: tuple[str, ...]
    """Files that cannot be trusted: unreadable, altered, incomplete, doubled. One line each."""
    differing: tuple[str, ...]
    """Committed rows that differ from what the scores give (only with `recompute`). One line each."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that a check fails on."""
        refused = (f"{run.path}: {reason}; score it again from a clean commit" for run, reason in self.refused)
        return (*self.broken, *refused, *self.differing)


def load(results: Path, recompute: bool = False) -> Loaded:
    """Reads every run under `results`; with `recompute`, rows are derived again from the scores.

    Raises UserError when the folder does not exist.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; name the folder that `prmbench eval --out` wrote to")
    runs, broken, differing = [], [], []
    for path in _result_files(results):
        try:
            run = read_run(path)
            read_metrics(run.path, run.result.manifest)
        except UserError as error:
            broken.append(str(error))
            continue
        broken += [f"{path}: {fault}" for fault in _coverage(run)]
        if recompute:
            run, faults = _recomputed(run)
            differing += [f"{path}: {fault}" for fault in faults]
        runs.append(run)
    runs.sort(key=_order)
    listed = tuple(run for run in runs if not refusal(run.result.manifest))
    refused = tuple((run, reason) for run in runs if (reason := refusal(run.result.manifest)))
    return Loaded(listed, refused, (*broken, *_twins(runs)), tuple(differing))


def refusal(manifest: RunManifest) -> str:
    """Why a run may not be listed; empty when it may."""
    if not manifest.commit:
        return "no commit recorded"
    if manifest.dirty is not False:
        return "scored from a dirty tree" if manifest.dirty else "not known whether the tree was clean"
    return "" if manifest.packages else "no package versions recorded"


def _order(run: Run) -> tuple[str, str, str]:
    manifest = run.result.manifest
    return manifest.benchmark, manifest.model, manifest.run_id


def _result_files(results: Path) -> list[Path]:
    """JSON files with scores beside them, and results that have lost theirs."""
    return [p for p in reading.files_under(results, ".json") if scores_path(p).exists() or _is_result(p)]


def _is_result(path: Path) -> bool:
    try:
        data = json.loads(reading.read_text(path)) if path.is_file() else None
    except (ValueError, UserError, RecursionError):
        return False
    return isinstance(data, dict) and {"manifest", "rows"} <= set(data)


def _coverage(run: Run) -> list[str]:
    """Ids that are doubled, and traces that the manifest or a row promises and the scores file lacks."""
    manifest, scores = run.result.manifest, run.scores
    faults = []
    doubled = sorted(name for name, times in Counter(t.id for t in scores).items() if times > 1)
    if doubled:
        faults.append(f"{len(doubled)} ids occur twice in the scores, the first is {doubled[0]}")
    if len(scores) != manifest.n:
        faults.append(f"{len(scores)} traces in the scores, {manifest.n} in the manifest")
    have = Counter(t.subset for t in scores)
    unscored = Counter(t.subset for t in scores if t.unscored)
    if set(have) != set(manifest.subsets):
        faults.append(f"subsets {sorted(have)} in the scores, {sorted(manifest.subsets)} in the manifest")
    told = {(r.subset, r.n, r.unscored) for r in run.result.rows if r.subset in have}
    faults += [
        f"a row of {subset} has n={n} and {missing} unscored, the scores have {have[subset]} and {unscored[subset]}"
        for subset, n, missing in sorted(told)
        if (n, missing) != (have[subset], unscored[subset])
    ]
    return faults


def _twins(runs: Sequence[Run]) -> list[str]:
    times = Counter((r.result.manifest.benchmark, r.result.manifest.run_id) for r in runs)
    found = [
        f"run {name} of {where} lies in {n} places; keep one" for (where, name), n in sorted(times.items()) if n != 1
    ]
    members = {r.result.manifest.run_id: r.result.manifest for r in runs if r.result.manifest.benchmark == STUDY}
    seen = Counter((m.model, seed_of(m), m.task) for m in members.values())
    found += [
        f"{STUDY}: method {method}, seed {seed}, task {task} has {n} runs; keep one"
        for (method, seed, task), n in sorted(seen.items())
        if n != 1
    ]
    trained = {r.result.manifest.run_id: r.result.manifest for r in runs if r.result.manifest.task == "distrl"}
    arms = Counter((m.benchmark, panel_of(m), arm_of(m), *seeds_of(m)) for m in trained.values())
    return found + [
        f"{where}: arm {arm} of panel {panel or 'none'}, SFT seed {sft}, RL seed {rl} has {n} runs; keep one"
        for (where, panel, arm, sft, rl), n in sorted(arms.items())
        if n != 1
    ]


def _recomputed(run: Run) -> tuple[Run, list[str]]:
    """The run with rows derived from its scores, and where the committed rows differ from them."""
    try:
        rows = judge(run.result.manifest, run.scores)
    except UserError as error:
        return run, [str(error)]
    faults = differences(run.result.rows, rows)
    return replace(run, result=replace(run.result, rows=rows)), faults


def differences(committed: Sequence[MetricRow], derived: Sequence[MetricRow]) -> list[str]:
    """A few lines on rows that are missing, new, or further apart than the tolerance."""
    old = {(r.subset, r.protocol, r.metric): r for r in committed}
    new = {(r.subset, r.protocol, r.metric): r for r in derived}
    found = [f"row {'/'.join(key)} cannot be derived from the scores" for key in sorted(old.keys() - new.keys())]
    found += [f"row {'/'.join(key)} is missing" for key in sorted(new.keys() - old.keys())]
    for key in sorted(old.keys() & new.keys()):
        for name in ("value", "lo", "hi"):
            was, now = getattr(old[key], name), getattr(new[key], name)
            if not _close(was, now):
                found.append(f"row {'/'.join(key)}: {name} {was} is recomputed as {now}")
        if (old[key].n, old[key].unscored, old[key].note) != (new[key].n, new[key].unscored, new[key].note):
            found.append(f"row {'/'.join(key)}: n, unscored or note differ")
    more = len(found) - MOST_LINES
    return [*found[:MOST_LINES], f"and {more} more such rows"] if more > 0 else found


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE
