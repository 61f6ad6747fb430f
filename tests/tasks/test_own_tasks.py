"""A benchmark and a task from outside the package: judged, printed, reported, compared and carded like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from unittest import mock

import numpy as np
import own_benchmarks
import pytest
from cli_calls import call, fine, refused
from paths import ROOT, SUPPORT
from report_runs import manifest, scores_of, traces

from prmbench import evaluation, report, tasks
from prmbench.config import CardConfig, EvalConfig
from prmbench.core.records import MetricRow, RunResult, UserError
from prmbench.core.result_files import Run
from prmbench.report import model_card
from prmbench.tasks import Code, Column, Value, registry
from prmbench.tasks.plain_tables import tables_of

ALGEBRA, CHECKED = "own_benchmarks:ALGEBRA", "own_benchmarks:CHECKED"


@pytest.fixture(autouse=True)
def known() -> object:
    """Tasks that a test makes known are forgotten after it."""
    with mock.patch.dict(registry._added):
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    rows = []
    for level in ("easy", "hard"):
        for n in range(12):
            wrong_at = -1 if n % 2 else int(rng.integers(0, 3))
            rows.append(
                {
                    "key": f"{level}-{n}",
                    "question": f"What is {n} plus {n} at level {level}?",
                    "steps": [f"We add {n}.", "Then we check it.", f"It is {2 * n}."],
                    "wrong_at": wrong_at,
                    "right": int(wrong_at < 0),
                    "level": level,
                }
            )
    path = tmp_path / "algebra.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path: Path, data: Path, benchmark: str, model: str, seed: int = 0) -> Run:
    config = EvalConfig(model=model, benchmark=benchmark, data=data, out=tmp_path / "runs", seed=seed)
    actual = evaluation.evaluate(config)
    assert actual is not None
    return actual


def test_a_benchmark_of_a_task_that_there_is_has_a_board_of_its_own(tmp_path: Path, data: Path) -> None:
    actual = run(tmp_path, data, ALGEBRA, "random")
    manifest = actual.result.manifest
    assert (manifest.benchmark, manifest.task, manifest.subsets) == ("algebra", "steps", ("easy", "hard"))
    with mock.patch("prmbench.report.load.refusal", return_value=""):  # it is of a working tree
        report.report(tmp_path / "runs", tmp_path / "site")
    page = (tmp_path / "site" / "algebra.md").read_text()
    assert "# algebra" in page
    assert "easy (n=12)" in page
    assert "| [algebra](algebra.md) | 1 |" in (tmp_path / "site" / "README.md").read_text()


def test_the_numbers_of_a_task_of_ones_own(tmp_path: Path, data: Path) -> None:
    """Of the all-right baseline both metrics can be said beforehand: half of all solutions are right."""
    actual = run(tmp_path, data, CHECKED, "random")
    rows = {(r.subset, r.protocol, r.metric): r for r in actual.result.rows}
    assert rows["easy", "floor/all_right", "agreement"].value == 0.5
    assert rows["easy", "floor/all_right", "margin"].value == 0.0
    low, high = rows["easy", "lowest/half", "agreement"].lo, rows["easy", "lowest/half", "agreement"].hi
    values = [(min(t.values) > 0.5) == (t.outcome == 1) for t in actual.scores if t.subset == "easy"]
    assert rows["easy", "lowest/half", "agreement"].value == pytest.approx(np.mean(values))
    assert low is not None and high is not None and low < np.mean(values) < high  # noqa: PT018
    assert ("avg[easy,hard]", "last/half", "margin") in rows


def test_it_goes_through_every_reader_of_results(tmp_path: Path, data: Path) -> None:
    """Terminal, leaderboard, page, comparison and model card, and every one shows the same number."""
    first, second = run(tmp_path, data, CHECKED, "random"), run(tmp_path, data, CHECKED, "random", seed=1)
    row = next(
        r
        for r in first.result.rows
        if (r.subset, r.protocol, r.metric) == ("avg[easy,hard]", "lowest/half", "agreement")
    )
    shown = f"{100 * (row.value or 0):.1f} [{100 * (row.lo or 0):.1f}, {100 * (row.hi or 0):.1f}]"
    printed = fine("eval", "--model", "random", "--benchmark", CHECKED, "--data", data, "--out", tmp_path / "runs")
    assert shown in printed
    assert "Agreement" in printed
    with mock.patch("prmbench.report.load.refusal", return_value=""):  # the baselines here are of a working tree
        fine("report", "--results", tmp_path / "runs", "--out", tmp_path / "site", "--benchmark", CHECKED)
    markdown = (tmp_path / "site" / "checked_algebra-solution_check.md").read_text()
    assert shown in markdown.replace("**", "")
    assert "Whether a solution's score says that its answer is right." in markdown
    assert "`floor/all_right`" in markdown
    html = (tmp_path / "site" / "report.html").read_text()
    assert f'"number":"{100 * (row.value or 0):.1f}"' in html
    compared = json.loads(fine("compare", "--json", first.path, second.path, "--benchmark", CHECKED))["rows"]
    gap = next(
        r
        for r in compared
        if r["protocol"] == "lowest/half agreement" and r["metric"] == "agreement_difference" and "avg" in r["subset"]
    )
    other = next(
        r
        for r in second.result.rows
        if (r.subset, r.protocol, r.metric) == ("avg[easy,hard]", "lowest/half", "agreement")
    )
    assert gap["value"] == pytest.approx((other.value or 0) - (row.value or 0))
    text = model_card.card(CardConfig(benchmark=(CHECKED,)), [first.path])
    assert "telling right solutions from wrong ones" in text
    assert shown in text


def test_an_installed_package_names_its_benchmarks(tmp_path: Path, data: Path) -> None:
    """By an entry point alone: no option says where the benchmark is."""
    folder = tmp_path / "installed" / "own-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[prmbench.benchmarks]\nchecked_algebra = {CHECKED}\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, SUPPORT, tmp_path / "installed"))),
        "OMP_NUM_THREADS": "1",
    }

    def prmbench(*arguments: object) -> str:
        command = [sys.executable, "-m", "prmbench", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = prmbench("eval", "--model", "random", "--benchmark", "checked_algebra", "--data", data)
    assert "floor/all_right" in out
    prmbench("report", "--results", "runs", "--out", "site")
    assert "solution_check" in (tmp_path / "site" / "report.html").read_text()


def test_mistakes_are_one_line(tmp_path: Path, data: Path) -> None:
    here = ("--model", "random", "--data", data, "--out", tmp_path / "runs")
    assert "did you mean processbench?" in refused("eval", *here, "--benchmark", "procesbench")
    assert "name your own: pkg.mod:NAME" in refused("eval", *here, "--benchmark", "zzz")
    assert "is its folder on PYTHONPATH?" in refused("eval", *here, "--benchmark", "no_such_module:X")
    assert "own_benchmarks has no LOST" in refused("eval", *here, "--benchmark", "own_benchmarks:LOST")
    assert "is a Reader, not a" in refused("eval", *here, "--benchmark", "own_benchmarks:READER")
    actual = run(tmp_path, data, CHECKED, "random")
    registry._added.clear()
    assert "task 'solution_check' is not known here" in refused("compare", actual.path, actual.path)
    result = call("report", "--results", tmp_path / "runs", "--out", tmp_path / "site")
    assert "task 'solution_check' is not known here" in result.output


def test_a_broken_package_hides_no_task_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"a_broken": "no_such_module:X", "checked_algebra": CHECKED}
    entries = [EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in names.items()]
    monkeypatch.setattr(registry, "installed_benchmarks", lambda: iter(entries))
    assert tasks.find_task("solution_check") == own_benchmarks.SOLUTIONS
    with pytest.raises(UserError, match=r"entry point a_broken .* cannot be loaded"):
        tasks.find_task("nobody_has_this")


def test_default_tables_rank_the_lowest_first_where_that_is_best_and_missing_numbers_last() -> None:
    columns = (Column("loss", "Loss", "fraction", lower_is_better=True),)
    task = replace(own_benchmarks.SOLUTIONS, columns=columns)
    scores = scores_of(traces(2, ("math",)))
    about = manifest(scores, b"", task=task.name, benchmark="b")
    values = {"last/half": None, "lowest/half": 0.2, "other/half": 0.4}
    rows = tuple(MetricRow("math", key, "loss", value, None, None, 2, 0, "") for key, value in values.items())
    (table,) = tables_of(task, [Run(RunResult(about, rows), tuple(scores), Path("x"))])
    assert [row[2] for row in table.groups[0]] == [Code("lowest/half"), Code("other/half"), Code("last/half")]
    assert [row[3].best for row in table.groups[0] if isinstance(row[3], Value)] == [True, False, False]


def test_a_name_that_is_taken_is_refused() -> None:
    taken = tasks.Task(
        name="steps",
        title="",
        description="",
        unscored="",
        protocols=own_benchmarks.protocols,
        judge=own_benchmarks.judge,
    )
    with pytest.raises(UserError, match="there is another task of this name"):
        tasks.add_task(taken)
