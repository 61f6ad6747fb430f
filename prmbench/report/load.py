"""Finds and checks the runs under a folder: files, fields, provenance, and rows that differ from the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prmbench.core import archives, reading
from prmbench.core.progress import Progress
from prmbench.core.records import RunManifest, UserError
from prmbench.core.redaction import one_line
from prmbench.core.result_files import LINES_SUFFIX, SCORES_SUFFIX, Run, has_scores, result_paths
from prmbench.report.run_names import tell_apart
from prmbench.report.sheets import Section
from prmbench.report.training_logs import TrainingLog, read_logs
from prmbench.report.training_runs import read_metrics
from prmbench.tasks.parallel import read_and_judge

SNIFF_BYTES = 2**16
"""Bytes read from a JSON file without scores to decide whether it is a result."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The runs of a results folder, with the errors found."""

    listed: tuple[Run, ...]
    """Runs that have a place in a table, sorted by benchmark, model and run id."""
    refused: tuple[tuple[Run, str], ...]
    """Runs whose provenance allows no place on an official leaderboard, each with the reason; the page has them."""
    broken: tuple[str, ...]
    """A message for each file that is left out: unreadable, altered, incomplete or duplicated."""
    differing: tuple[str, ...]
    """A message for each stored row that differs from the recomputed one, which is shown (only with `recompute`)."""
    training: tuple[TrainingLog, ...] = ()
    """Runs of `train-rm` and `train-sft` under the results."""
    is_official: bool = True
    """Whether provenance decides what is listed; if not, all readable runs are, local ones with a badge."""

    @property
    def runs(self) -> int:
        """Number of results, those that cannot be read included."""
        return len(self.listed) + len(self.refused) + len(self.broken)

    @property
    def judged_again(self) -> int:
        """Number of runs whose stored rows are by an earlier version's estimators."""
        return sum(run.is_judged_again for run in (*self.listed, *(run for run, _ in self.refused)))

    @property
    def problems(self) -> tuple[str, ...]:
        """Every message that makes a check fail."""
        refused = (f"{run.path}: {reason}; score it again from a clean commit" for run, reason in self.refused)
        return (*self.broken, *refused, *self.differing)

    @property
    def left_out(self) -> dict[str, int]:
        """Number of runs that no table lists, by reason."""
        counts = Counter(reason for _, reason in self.refused)
        if self.broken:
            counts["cannot be trusted"] = len(self.broken)
        return dict(counts.most_common())


def load(
    results: Path,
    recompute: bool = False,
    sections: Sequence[Section] = (),
    processes: int = 1,
    *,
    official: bool = True,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Reads every run under `results`, leaving out those that cannot be trusted.

    Args:
        results: Folder that is searched for runs.
        recompute: Whether to recompute all rows with their intervals from the scores and return these. If not, a run is
            left out when a stored number does not follow from its scores.
        sections: Sections of the report, which define when two runs claim the same place in a table.
        processes: How many processes may be used; see `read_and_judge`.
        official: Whether runs without a clean commit are refused instead of listed.
        out: Folder of the report, whose own files are no results where it lies inside `results`.
        progress: Called after every run with (runs read, runs, 0).

    Raises:
        UserError: The folder does not exist.
    """
    check_folder(results)
    runs: list[Run] = []
    paths, broken = find_results(results, out)
    differing: list[str] = []
    for number, (path, judged) in enumerate(zip(paths, read_and_judge(paths, recompute, processes), strict=True), 1):
        if progress is not None:
            progress(number, len(paths), 0.0)
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
        f"{path}: its result {path.name.removesuffix(SCORES_SUFFIX)}.json is missing"
        for path in _orphaned_scores(results)
    ]
    runs.sort(key=_sort_key)
    duplicate_paths = dict(_duplicates(runs, sections))
    broken += dict.fromkeys(duplicate_paths.values())
    runs = tell_apart([run for run in runs if run.path not in duplicate_paths])
    refused = tuple((run, reason) for run in runs if official and (reason := refusal(run.result.manifest)))
    refused_paths = {run.path for run, _ in refused}
    listed = tuple(run for run in runs if run.path not in refused_paths)
    training, unreadable = read_logs(results)
    broken += unreadable
    return Loaded(
        listed, refused, tuple(map(one_line, broken)), tuple(map(one_line, differing)), training, is_official=official
    )


def check_folder(results: Path) -> None:
    """Raises UserError where there is no folder of results."""
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; name the folder that `prmbench eval --out` wrote to")


def find_results(results: Path, out: Path | None = None) -> tuple[list[Path], list[str]]:
    """Returns the paths of all results under a folder, and a message for each archive that cannot be read.

    Args:
        results: The folder.
        out: Folder of the report; files in it are no results.
    """
    packed_paths, broken = _packed_results(results)
    is_around = out is None or out.absolute() in (results.absolute(), *results.absolute().parents)
    report_folder = None if is_around else out
    paths = [p for p in _result_files(results) if report_folder is None or report_folder not in p.parents]
    return [*paths, *packed_paths], broken


def refusal(manifest: RunManifest) -> str:
    """Returns the reason why a run may not be listed; empty if it may."""
    if not manifest.commit:
        return "no commit recorded"
    if manifest.dirty is not False:
        return "scored from a dirty tree" if manifest.dirty else "not known whether the tree was clean"
    return "" if manifest.packages else "no package versions recorded"


def _sort_key(run: Run) -> tuple[str, str, str]:
    manifest = run.result.manifest
    return manifest.benchmark, manifest.model, manifest.run_id


def _result_files(results: Path) -> list[Path]:
    """JSON files that have scores next to them, and results whose scores are missing."""
    return [p for p in reading.find_paths(results, ".json") if has_scores(p) or _is_result(p)]


def _packed_results(results: Path) -> tuple[list[Path], list[str]]:
    """Results in archives; and a message for each unreadable archive and for scores without a result."""
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
    """Whether a JSON file, valid or not, looks like a result: other files have no manifest and no rows."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(SNIFF_BYTES)
    except OSError:
        return False
    return b'"manifest"' in start or (b'"rows"' in start and b'"metric"' in start)


def _orphaned_scores(results: Path) -> Iterator[Path]:
    """Score files whose result is missing."""
    for path in reading.find_paths(results, SCORES_SUFFIX):
        result = path.with_name(f"{path.name.removesuffix(SCORES_SUFFIX)}.json")
        if not result.exists() and not result.is_symlink():
            yield path


def _duplicates(runs: Sequence[Run], sections: Sequence[Section]) -> Iterator[tuple[Path, str]]:
    """Runs that claim the same place in a table, each with a message; none of them is listed."""
    for groups, template in (
        (_grouped(runs, _identity), "run {1} of {0} lies in {n} places"),
        *((_grouped(runs, section.place), "{0} has {n} runs") for section in sections),
    ):
        for key, duplicates in groups.items():
            if len(duplicates) > 1:
                paths = sorted(run.path for run in duplicates)
                names = key if isinstance(key, tuple) else (key,)
                line = f"{paths[0]}: {template.format(*names, n=len(duplicates))}, another in {paths[1]}; keep one"
                yield from ((run.path, line) for run in duplicates)


Key = tuple[str, ...] | str


def _grouped(runs: Sequence[Run], key_of: Callable[[RunManifest], Key]) -> dict[Key, list[Run]]:
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        if key := key_of(run.result.manifest):
            groups.setdefault(key, []).append(run)
    return groups


def _identity(manifest: RunManifest) -> Key:
    return manifest.benchmark, manifest.run_id
