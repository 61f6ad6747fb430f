"""Everything committed under leaderboards/: its tables fit the terminal and its LaTeX compiles; it is of few files."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT
from report_runs import rows_taken_as_they_are
from terminal_tables import WIDTH, cut, printed

from prmbench.core import archives
from prmbench.core.records import RunResult
from prmbench.core.result_files import has_scores, result_paths
from prmbench.report import compare_table, headlines, run_table
from prmbench.report.build import build
from prmbench.report.load import load
from prmbench.studies.reporting.sections import SECTIONS
from prmbench.tasks import Task, compare, find_task, pairs, read_run
from prmbench.tasks.blocks import underlying_subsets

LEADERBOARDS = ROOT / "leaderboards"
LOOSE = [path for path in sorted((LEADERBOARDS / "results").rglob("*.json")) if has_scores(path)]
RESULTS = [
    *LOOSE,
    *(path for archive in archives.find_archives(LEADERBOARDS / "results") for path in result_paths(archive)),
]


def result(path: Path) -> RunResult:
    return RunResult.from_json(json.loads(archives.read(path, 2**26)))


@functools.cache
def kinds() -> dict[tuple[str, str, str], list[Path]]:
    """Results by benchmark, task and kind of score."""
    found: dict[tuple[str, str, str], list[Path]] = {}
    for path in RESULTS:
        m = result(path).manifest
        found.setdefault((m.benchmark, m.task, m.kind), []).append(path)
    return found


OWN_METRICS = {
    "steps": "f1",
    "validity": "prmscore",
    "calibration": "auc",
    "best_of_n": "best_of@",
    "policy": "avg@",
}
"""The metric that stands for a run of a task."""


@pytest.mark.slow
def test_the_number_on_a_card_is_the_widest_of_the_tasks_metric_under_its_usual_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number that leads in the overview is the one that a choice from the rows alone arrives at."""
    results = [result(path) for path in RESULTS]
    chosen = [headlines.headline(one) for one in results]

    def without_leading(name: str) -> Task:
        task = find_task(name)
        return replace(task, leading=None, headline_metrics=(OWN_METRICS[name],)) if name in OWN_METRICS else task

    monkeypatch.setattr(headlines, "find_task", without_leading)
    assert {one.manifest.task for one in results} >= {"steps", "validity", "best_of_n"}
    for path, one, row in zip(RESULTS, results, chosen, strict=True):
        assert row is not None, path
        if row.protocol.partition("/")[2].startswith("calibrated"):  # averaged over fewer subsets than other rules
            assert one.manifest.calibrate_on not in underlying_subsets(row.subset), path
        else:
            assert row == headlines.headline(one), path


@pytest.mark.slow
def test_committed_runs_of_every_kind_fit_the_terminal() -> None:
    """Of each kind those with the longest and the shortest names, and a few between; one study has hundreds."""
    assert RESULTS
    sizes = [sorted(paths, key=lambda path: (len(path.name), path.name)) for paths in kinds().values()]
    for path in (path for paths in sizes for path in {*paths[:: max(1, len(paths) // 4)], paths[-1]}):
        lines = printed(run_table(result(path)))
        assert max(map(len, lines)) <= WIDTH, path
        assert not cut(lines), path


@pytest.mark.slow
def test_comparisons_of_committed_runs_fit_the_terminal() -> None:
    found = 0
    for paths in kinds().values():
        if len(paths) > 1:
            a, b = (read_run(path) for path in paths[:2])
            if a.result.manifest.benchmark_hash != b.result.manifest.benchmark_hash:
                continue
            asked = pairs(a.result.manifest, b.result.manifest)[:2]
            lines = printed(compare_table(compare((a.result, a.scores), (b.result, b.scores), asked)))
            assert max(map(len, lines)) <= WIDTH, paths[:2]
            assert not cut(lines), paths[:2]
            found += 1
    assert found


def test_the_folder_stays_small() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", "."], cwd=LEADERBOARDS, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    paths = [LEADERBOARDS / name for name in listed.stdout.split("\0") if name]
    assert len(paths) <= 250
    assert sum(path.stat().st_size for path in paths if path.exists()) <= 15_000_000


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_committed_latex_compiles(tmp_path: Path) -> None:
    with rows_taken_as_they_are():  # `prmbench report --check` judges them
        loaded = load(LEADERBOARDS / "results", sections=SECTIONS)
    files, _, _ = build(loaded, tmp_path, sections=SECTIONS, formats=("tex",))
    documents = [tmp_path / name for name in sorted(files) if name.endswith(".tex")]
    assert documents
    for path in documents:
        path.write_bytes(files[path.name])
        compiles(path, tmp_path)


def compiles(path: Path, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        message = "pdflatex is missing; on Debian: apt-get install texlive-latex-base texlive-latex-recommended"
        if os.environ.get("PRMBENCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"-output-directory={tmp_path}", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    wide = [line for line in done.stdout.splitlines() if line.startswith("Overfull \\hbox")]
    assert not wide, wide[:3]
