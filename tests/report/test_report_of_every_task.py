"""One run of every task: its sheet compiles as LaTeX, fits the terminal, and is shown by the page with words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, launched, payload
from paths import SUPPORT
from report_runs import (
    completions,
    rows_taken_as_they_are,
    scores_of,
    task_scores,
    traces,
    write,
    write_study,
    write_task,
)
from rl_runs import write_training
from terminal_tables import WIDTH, cut, printed

from prmbench.core.records import ScoredTrace
from prmbench.data.renderings import render_traces
from prmbench.report import report, run_table
from prmbench.tasks import known_tasks, read_runs

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"replicates": 30}
LONG = "an-organisation-of-note/a-reward-model-with-a-long-name_7B&co"


def validity_scores() -> list[ScoredTrace]:
    items = traces(12, ("redundency", "confidence", "correct"))
    labelled = [replace(t, step_labels=tuple(float(k != t.first_error) for k in range(4))) for t in items]
    return scores_of(labelled)


def write_every(root: Path) -> None:
    plain = task_scores(completions())
    drawn = [replace(s, values=(), tokens=(7,), steps=1, step_labels=()) for s in plain]
    shifted = [t for t in render_traces(traces(12, ("gsm8k", "math")))]
    kept = {"best_of_n": plain, "calibration": plain, "policy": drawn}
    for i, (task, scores) in enumerate(kept.items()):
        write_task(root, task, scores, run_id=f"{i}" * 12, model=LONG, **SMALL)
    facts = {"task": "validity", "benchmark": "prmbench_preview", "fixed": 0.5}
    write(root, validity_scores(), folder="v", run_id="e" * 12, model=LONG, **facts, **SMALL)
    facts = {"task": "format_shift", "benchmark": "format_shift", "calibrate_on": "gsm8k"}
    write(root, scores_of(shifted), folder="f", run_id="f" * 12, model=LONG, **facts, **SMALL)
    write_training(root, "grpo", [0.4, 0.5, 0.6])
    write_study(root, {"ipvrm": [0.5, 0.6], "q_rm": [0.2, 0.4]}, ("steps", "best_of_n", "calibration"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("every")
    write_every(root / "in")
    with rows_taken_as_they_are():
        report(root / "in", root / "out", formats=("csv", "tex", "json"))
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


def test_every_task_is_here(built: Path) -> None:
    """A task that is registered and not written above is not tried below."""
    ours = {task.name for task in known_tasks() if task.judge.__module__.startswith("prmbench.")}  # no plug-in's
    assert ours <= {run.result.manifest.task for run in read_runs(built / "in")}


def test_every_latex_file_compiles(built: Path, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        message = "pdflatex is missing; on Debian: apt-get install texlive-latex-base texlive-latex-recommended"
        if os.environ.get("PRMBENCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    for path in sorted((built / "out").glob("*.tex")):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"-output-directory={tmp_path}", path.name]
        done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, f"{path.name}: {done.stdout[-2000:]}"


def test_every_task_fits_the_terminal(built: Path) -> None:
    for run in read_runs(built / "in"):
        lines = printed(run_table(run.result))
        assert max(map(len, lines)) <= WIDTH, run.path
        assert not cut(lines), run.path


def test_every_table_is_on_the_page_in_silence(browser: Browser, built: Path) -> None:
    checks = (SUPPORT / "page_checks.js").read_text()
    site = built / "out" / "report.html"
    found = payload(site)
    browser.width(400)
    for section in found["benchmarks"]:
        for grid in section["tables"]:
            browser.open(site, f"#benchmark={section['name']}&table={grid['label']}")
            assert len(browser.texts("#board tbody tr")) == sum(map(len, grid["groups"]))
            assert browser.js(f"{checks}; return [...faint(), ...nameless()]") == [], grid["label"]
            assert browser.js("const d = document.documentElement; return d.scrollWidth <= d.clientWidth"), grid[
                "label"
            ]
            columns = len(grid["header"])
            for at in (0, columns - 1):
                browser.click(f"#board [data-column='{at}']")
            assert browser.js("return document.querySelectorAll('#board th[aria-sort]').length") == 1
        codes = {
            text.strip("`")
            for g in section["tables"]
            for rows in g["groups"]
            for row in rows
            for text in row
            if text[:1] == "`"
        }
        assert codes <= set(found["protocols"]), section["name"]
    assert browser.call("POST", "/se/log", {"type": "browser"}) == []
    browser.cdp("Emulation.clearDeviceMetricsOverride")
