"""What tables and figures call a run: its --name, and what tells runs of equal name apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_calls import fine
from conftest import ROWS
from report_runs import scores_of, traces, write

from prmbench.core.records import RunManifest, RunResult
from prmbench.core.result_files import Run
from prmbench.report.run_names import distinct_names
from prmbench.tasks.wording import model_name

MANIFEST = RunManifest(
    "final-111111aaaaaa", "final", "token_cls", "prob", "chat", "exact", "processbench", "h", ("gsm8k",), 1, {}, 0, "s"
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
    after = distinct_names(before)
    assert [model_name(run.result.manifest) for run in after] == names
    for old, new in zip(before, after, strict=True):
        assert replace(new.result.manifest, name=old.result.manifest.name) == old.result.manifest


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
    assert "Other on processbench" in fine(*command, "--name", "Other")


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
