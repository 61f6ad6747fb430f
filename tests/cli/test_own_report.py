"""`eval` and then `report`, without a folder named: the user's own runs are in the report, with badges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_calls import call, fine
from paths import ROOT

from prmbench.report.folders import Folders, choose_folders


@pytest.fixture
def new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_figures: None) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def evaluate(benchmark_folder: Path, **manifest: object) -> Path:
    """Score the benchmark into `runs`, and pretend that the code was in the given state."""
    fine("eval", "--model", "random", "--data", benchmark_folder, "--quiet")
    (path,) = Path("runs").glob("random-*.json")
    result = json.loads(path.read_text())
    result["manifest"] |= {"commit": "0" * 40, "dirty": False, **manifest}
    path.write_text(json.dumps(result))
    return path


@pytest.mark.parametrize(
    ("manifest", "badge"),
    [
        ({"dirty": True}, "uncommitted code"),
        ({"commit": None, "dirty": None}, "no commit recorded"),
        ({"dirty": None}, "not known whether the code was committed"),
        ({}, ""),
    ],
)
def test_eval_then_report_shows_the_run_with_its_badge(
    new_folder: Path, benchmark_folder: Path, manifest: dict[str, object], badge: str
) -> None:
    evaluate(benchmark_folder, **manifest)
    result = call("report")
    assert result.exit_code == 0
    assert "report: 1 run in runs; the page is runs/report/report.html" in result.stderr
    name = f"random ({badge})" if badge else "random"
    assert f"| {name} |" in Path("runs/report/bench.md").read_text()
    assert f'"model":"{name}"' in Path("runs/report/report.html").read_text()
    index = Path("runs/report/README.md").read_text()
    assert f"* local data: {benchmark_folder.name} (1 run)" in index
    assert f"* {badge} (1 run)" in index or not badge
    assert "Not listed" not in index
    table = fine("eval", "--model", "random", "--data", benchmark_folder)
    assert (f"{badge}: your own report lists this run" in table) == bool(badge)


def test_a_second_report_does_not_read_the_first(new_folder: Path, benchmark_folder: Path) -> None:
    evaluate(benchmark_folder)
    fine("report", "--formats", "json,csv")
    assert "report: 1 run in runs" in call("report", "--formats", "json,csv").stderr


def test_quiet_says_nothing(new_folder: Path, benchmark_folder: Path) -> None:
    evaluate(benchmark_folder)
    assert call("report", "--quiet").stderr == ""


def test_the_official_leaderboard_refuses_what_ones_own_report_lists(new_folder: Path, benchmark_folder: Path) -> None:
    evaluate(benchmark_folder, dirty=True)
    shutil.copytree("runs", "leaderboards/results")
    result = call("report")
    assert result.exit_code == 0
    assert "report: 1 run in runs; the page is runs/report/report.html" in result.stderr
    assert "report: 1 run in leaderboards/results; the page is leaderboards/report.html" in result.stderr
    assert "none of the runs is listed: 1 scored from a dirty tree" in result.stderr
    assert "random (uncommitted code)" in Path("runs/report/bench.md").read_text()
    assert "random" not in Path("leaderboards/processbench.md").read_text()
    checked = call("report", "--check")
    assert checked.exit_code == 1
    assert "score it again from a clean commit" in checked.stdout
    own = call("report", "--results", "runs", "--check")
    assert (own.exit_code, own.stdout) == (0, "")


def test_no_run_is_one_line(new_folder: Path) -> None:
    result = call("report")
    assert result.exit_code == 2
    assert result.stderr == "error: runs: no such folder; name the folder that `prmbench eval --out` wrote to\n"


def test_the_folders_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    official = Folders(Path("leaderboards/results"), Path("leaderboards"))
    assert official.is_official
    assert choose_folders(None, None, check=True) == [official]
    assert choose_folders(None, None)[-1] == official
    assert choose_folders(Path("leaderboards/results"), None) == [official]
    assert choose_folders(None, Path("elsewhere")) == [Folders(official.results, Path("elsewhere"))]
    mine = Folders(Path("runs/x"), Path("runs/x/report"))
    assert choose_folders(Path("runs/x"), None) == [mine]
    assert not mine.is_official


def test_ones_own_report_has_nothing_but_what_concerns_its_runs(new_folder: Path, benchmark_folder: Path) -> None:
    """Neither the repository's own words, nor published tables of benchmarks that no run is of."""
    evaluate(benchmark_folder)
    fine("report")
    files = {str(path.relative_to("runs/report")) for path in Path("runs/report").rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("figures/")} == {"README.md", "bench.md", "report.html"}
    index = Path("runs/report/README.md").read_text()
    for word in ("pull request", "submit", "Protocol changes", "this repository", "ublished", "best_of_n", "distrl"):
        assert word not in index
    assert "* **steps**: " in index
    assert '"published":[]' in Path("runs/report/report.html").read_text()


def test_published_rows_stand_beside_a_benchmark_that_was_run_and_say_that_they_are_no_runs(
    new_folder: Path, benchmark_folder: Path
) -> None:
    evaluate(benchmark_folder, benchmark="processbench", data_source="Qwen/ProcessBench")
    fine("report")
    page = Path("runs/report/processbench.md").read_text()
    assert "## Published numbers, for comparison: none is a run of yours" in page
    assert any(Path("runs/report/published").iterdir())
    assert not Path("runs/report/published/prmbench-preview.json").exists()
    assert "* **Published numbers** are in tables of their own" in Path("runs/report/README.md").read_text()
