"""What tables and figures call a run: its --name, and what tells runs of equal name apart."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import payload
from cli_calls import fine
from conftest import ROWS
from report_runs import completions, scores_of, task_scores, traces, write

from prmbench.core.records import RunManifest, RunResult
from prmbench.core.result_files import Run
from prmbench.report.run_names import reading, tell_apart
from prmbench.tasks.wording import run_name

MANIFEST = RunManifest(
    "final-111111aaaaaa",
    "final",
    "token_cls",
    "prob",
    "chat",
    "exact",
    "processbench",
    "h",
    ("gsm8k",),
    1,
    {},
    0,
    "s",
    commit="c" * 40,
    dirty=False,
)


def runs(*changes: dict[str, Any]) -> list[Run]:
    return [Run(RunResult(replace(MANIFEST, **change), ()), (), Path(f"{n}.json")) for n, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (({},), ["final"]),
        (({}, {"model": "other"}), ["final", "other"]),
        (({}, {"benchmark": "own"}), ["final", "final"]),
        (({}, {"backend": "endo"}), ["final (token_cls)", "final (endo)"]),
        (({"input_format": "separator '\\n'"}, {}), ["final (separator '\\n')", "final (chat)"]),
        (({"ref_model": "a"}, {"ref_model": "b"}), ["final (a)", "final (b)"]),
        (({}, {"run_id": "final-222222bbbbbb"}), ["final (111111)", "final (222222)"]),
        (({}, {"run_id": "final-111111bbbbbb"}), ["final (final-111111aaaaaa)", "final (final-111111bbbbbb)"]),
        (
            ({"ref_model": "a"}, {"run_id": "final-222222bbbbbb"}, {"model": "x"}),
            ["final (111111)", "final (222222)", "x"],
        ),
        (({"name": "mine"}, {"model": "mine", "run_id": "mine-333333cccccc"}), ["mine (111111)", "mine (333333)"]),
        (({"name": "mine", "revision": "a" * 40},), ["mine"]),
        (({"name": "a `b`\nc"},), ["a 'b' c"]),
    ],
)
def test_names_of_one_benchmark_differ(changes: tuple[dict[str, Any], ...], names: list[str]) -> None:
    before = runs(*changes)
    after = tell_apart(before)
    assert [run_name(run) for run in after] == names
    for old, new in zip(before, after, strict=True):
        assert new.result == old.result


def test_a_name_reuses_the_scores(policy: Path, tmp_path: Path) -> None:
    data = tmp_path / "gsm8k.json"
    data.write_text(json.dumps(ROWS[:6]))
    command = ("eval", "--model", policy, "--backend", "endo", "--data", data, "--out", tmp_path / "runs")
    first = json.loads(fine(*command, "--json"))
    assert first["manifest"]["name"] == ""
    second = json.loads(fine(*command, "--json", "--name", "My PRM"))
    assert (second["path"], second["manifest"]["name"]) == (first["path"], "My PRM")
    assert second["manifest"]["scores_sha256"] == first["manifest"]["scores_sha256"]
    assert second["manifest"]["model"] == first["manifest"]["model"] == "policy"
    assert "My PRM on gsm8k" in fine(*command)  # it stays until another is given
    assert "Other on gsm8k" in fine(*command, "--name", "Other")


def test_two_runs_of_equal_name_are_told_apart_everywhere(tmp_path: Path) -> None:
    items, facts = traces(12, ("gsm8k",)), {"model": "final", "replicates": 50}
    for number, run_id in enumerate(("final-111111aaaaaa", "final-222222bbbbbb")):
        write(tmp_path / "runs", scores_of(items, seed=number), run_id=run_id, **facts)
    fine("report", "--results", tmp_path / "runs", "--out", tmp_path / "board", "--formats", "csv")
    files = [path for path in (tmp_path / "board").rglob("*") if path.name in ("mini.md", "mini.csv", "report.html")]
    files += (tmp_path / "board" / "figures").glob("mini-f1-*.svg")
    assert len(files) > 3
    for file in files:
        text = file.read_text()
        assert "final (111111)" in text, file
        assert "final (222222)" in text, file
        assert "| final |" not in text


def test_a_model_is_one_row_of_the_overview_that_says_how_each_number_was_read(tmp_path: Path) -> None:
    """Read in two ways on one benchmark and in one of them on another."""
    items, facts = traces(12, ("gsm8k",)), {"model": "final", "replicates": 50}
    newline, two_newlines = r"separator '\n'", r"separator '\n\n'"
    write(tmp_path / "runs", scores_of(items, skill=0.2), run_id="a" * 12, input_format=newline, **facts)
    write(tmp_path / "runs", scores_of(items, skill=5.0), run_id="b" * 12, input_format=two_newlines, **facts)
    picks = {"benchmark": "best_of_n", "task": "best_of_n", "input_format": newline}
    write(tmp_path / "runs", task_scores(completions()), run_id="c" * 12, **facts, **picks, kind="logratio", beta=1.0)
    fine("report", "--results", tmp_path / "runs", "--out", tmp_path / "board", "--formats", "csv")
    data = payload(tmp_path / "board" / "report.html")
    assert data["models"] == ["final"]
    sections = {section["name"]: section for section in data["benchmarks"]}
    cells = {name: section["standing"]["cells"]["final"] for name, section in sections.items() if section["standing"]}
    assert {name: (cell["runs"], cell["reading"]) for name, cell in cells.items()} == {
        "mini": (2, two_newlines),
        "best_of_n": (1, newline),
    }
    models = {name: dict(section["card"]["facts"])["Model"] for name, section in sections.items() if name in cells}
    assert models == {"mini": f"final ({two_newlines})", "best_of_n": "final"}
    with (tmp_path / "board" / "mini.csv").open() as file:
        rows = {(row["run_id"], row["model"], row["name"]) for row in csv.DictReader(file)}
    assert rows == {
        ("a" * 12, "final", f"final ({newline})"),
        ("b" * 12, "final", f"final ({two_newlines})"),
    }


@pytest.mark.parametrize(
    ("own", "other", "text"),
    [
        ({}, {}, ""),
        ({}, {"run_id": "final-222222bbbbbb", "benchmark": "own"}, ""),
        ({"ref_model": "a"}, {}, "a"),
        ({}, {"ref_model": "a"}, ""),
        ({"backend": "endo", "input_format": "x"}, {}, "endo, x"),
        ({"name": "mine", "model": "a", "revision": "1234567890"}, {"name": "mine", "model": "b"}, "a@1234567"),
        ({"weights": "123456789"}, {"weights": "987654321"}, "weights 123456"),
        ({"kind": "outcome", "backend": "sample"}, {}, ""),
        ({}, {"kind": "outcome", "backend": "sample"}, ""),
    ],
)
def test_a_reading_names_what_differs_between_runs_of_a_model(
    own: dict[str, Any], other: dict[str, Any], text: str
) -> None:
    first, second = runs(own, other)
    assert reading(first, (first, second)) == text
