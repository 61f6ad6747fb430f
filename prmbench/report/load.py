"""Finds the runs under a folder and says what is wrong with each: files, fields, provenance, rows that differ.

Reads only; nothing is listed, ranked or written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prmbench.core import archives, reading
from prmbench.core.records import RunManifest, UserError
from prmbench.core.redaction import one_line
from prmbench.core.result_files import LINES_SUFFIX, SCORES_SUFFIX, Run, has_scores, result_paths
from prmbench.report.sheets import Section
from prmbench.report.training_runs import read_metrics
from prmbench.tasks.parallel import read_and_judge

SNIFFED = 2**16
"""Bytes of a JSON file without scores that are looked at to tell whether it was meant to be a result."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a results folder holds."""

    listed: tuple[Run, ...]
    """Runs whose provenance allows a place in a table, sorted by benchmark, model and run id."""
    refused: tuple[tuple[Run, str], ...]
    """The other readable runs, each with the reason; shown on the page only."""
    broken: tuple[str, ...]
    """Files that cannot be trusted and are left out: unreadable, altered, incomplete, doubled. One line each."""
    differing: tuple[str, ...]
    """Committed rows that differ from what the scores give, which are shown instead (only with `recompute`)."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that a check fails on."""
        refused = (f"{run.path}: {reason}; score it again from a clean commit" for run, reason in self.refused)
        return (*self.broken, *refused, *self.differing)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> runs that no table lists for it."""
        counts = Counter(reason for _, reason in self.refused)
        if self.broken:
            counts["cannot be trusted"] = len(self.broken)
        return dict(counts.most_common())


def load(results: Path, recompute: bool = False, sections: Sequence[Section] = (), processes: int = 1) -> Loaded:
    """Reads every run under `results` and leaves out those that cannot be trusted.

    Args:
        results: A folder, searched through.
        recompute: Whether rows are derived again from the scores, intervals and all, and shown instead of the stored
            ones. If not, a run is left out when the number of one of its rows does not follow from its scores.
        sections: Those of the report, which say where two runs claim one place of a table.
        processes: How many processes may judge; see `read_and_judge`.

    Raises:
        UserError: The folder does not exist.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; name the folder that `prmbench eval --out` wrote to")
    runs: list[Run] = []
    packed, broken = _packed(results)
    differing: list[str] = []
    paths = [*_result_files(results), *packed]
    for path, judged in zip(paths, read_and_judge(paths, recompute, processes), strict=True):
        if isinstance(judged, str):
            broken.append(judged)
            continue
        run, faults = judged
        differing += [f"{path}: {fault}" for fault in faults]
        try:
            read_metrics(path, run.result.manifest)
        except UserError as error:
            broken.append(str(error))
            continue
        runs.append(run)
    broken += [
        f"{path}: its result {path.name.removesuffix(SCORES_SUFFIX)}.json is missing" for path in _bereft(results)
    ]
    runs.sort(key=_order)
    doubled = dict(_twins(runs, sections))
    broken += dict.fromkeys(doubled.values())
    runs = [run for run in runs if run.path not in doubled]
    listed = tuple(run for run in runs if not refusal(run.result.manifest))
    refused = tuple((run, reason) for run in runs if (reason := refusal(run.result.manifest)))
    return Loaded(listed, refused, tuple(map(one_line, broken)), tuple(map(one_line, differing)))


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
    """Loose JSON files with scores beside them, and results that have lost theirs."""
    return [p for p in reading.find_paths(results, ".json") if has_scores(p) or _is_result(p)]


def _packed(results: Path) -> tuple[list[Path], list[str]]:
    """Results in archives, and a line on each archive that cannot be read and on scores that have no result in it."""
    paths, broken = [], []
    for archive in archives.find_archives(results):
        try:
            names = archives.members(archive)
        except UserError as error:
            broken.append(str(error))
            continue
        paths += result_paths(archive)
        stems = [name.removesuffix(LINES_SUFFIX) for name in names if name.endswith(LINES_SUFFIX)]
        broken += [
            f"{archive / stem}{LINES_SUFFIX}: its result {stem}.json is missing"
            for stem in stems
            if f"{stem}.json" not in names
        ]
    return paths, broken


def _is_result(path: Path) -> bool:
    """Whether a JSON file, readable or not, looks like one: a record of other things has no manifest and no rows."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(SNIFFED)
    except OSError:
        return False
    return b'"manifest"' in start or (b'"rows"' in start and b'"metric"' in start)


def _bereft(results: Path) -> Iterator[Path]:
    """Scores whose result is gone."""
    for path in reading.find_paths(results, SCORES_SUFFIX):
        result = path.with_name(f"{path.name.removesuffix(SCORES_SUFFIX)}.json")
        if not result.exists() and not result.is_symlink():
            yield path


def _twins(runs: Sequence[Run], sections: Sequence[Section]) -> Iterator[tuple[Path, str]]:
    """Runs that claim one place, each with a line about them: nobody can say which of them should have it."""
    for groups, words in (
        (_grouped(runs, _identity), "run {1} of {0} lies in {n} places"),
        *((_grouped(runs, section.place), "{0} has {n} runs") for section in sections),
    ):
        for key, alike in groups.items():
            if len(alike) > 1:
                paths = sorted(run.path for run in alike)
                names = key if isinstance(key, tuple) else (key,)
                line = f"{paths[0]}: {words.format(*names, n=len(alike))}, another in {paths[1]}; keep one"
                yield from ((run.path, line) for run in alike)


Key = tuple[str, ...] | str


def _grouped(runs: Sequence[Run], key_of: Callable[[RunManifest], Key]) -> dict[Key, list[Run]]:
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        if key := key_of(run.result.manifest):
            groups.setdefault(key, []).append(run)
    return groups


def _identity(manifest: RunManifest) -> Key:
    return manifest.benchmark, manifest.run_id
