"""Lists of completions with nulls, and rows inside an object of a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import call, fine

from prmbench.core.records import Notice, UserError
from prmbench.data import files, rollouts


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"completions": ["a", None, "b"], "correct": [1, 1, 0]}, [("a", 1), ("b", 0)]),
        ({"completions": [None, "a", "b"], "correct": [0, 1, 0]}, [("a", 1), ("b", 0)]),
        ({"completions": [None, "a", "b"], "correct": [1, 0]}, [("a", 1), ("b", 0)]),
        ({"completions": ["a", None], "correct": 1}, [("a", 1)]),
        ({"responses": ["a", None], "outcomes": [None, 1]}, [("a", None)]),
        ({"completions": [{"text": None}, {"text": "a"}], "correct": [1, 0]}, [("a", 0)]),
        ({"choices": [{"message": {"content": None}}, {"message": {"content": "a"}}], "correct": [1, 0]}, [("a", 0)]),
        ({"completions": ["", None, "b"], "correct": [0, 1, 1]}, [("", 0), ("b", 1)]),
    ],
)
def test_a_null_is_dropped_alone_and_outcomes_stay_in_step(
    row: dict[str, Any], expected: list[tuple[str, int | None]], tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.json", [{"prompt": "Q?", **row}])
    with pytest.warns(Notice, match="completions that are null are left out: 1, in .*rows.json row 1"):
        assert [(r.completion, r.outcome) for r in rollouts.read(path)] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": [None, None]}, "holds only nulls"),
        ({"completions": ["a", None, "b"], "correct": [1]}, "1 outcomes for 2 completions"),
    ],
)
def test_what_is_left_of_a_row_with_nulls_must_fit(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        rollouts.read(write(tmp_path / "rows.json", [{"prompt": "Q?", **row}]))


def test_verify_drops_a_null_and_says_so(tmp_path: Path) -> None:
    row = {"question": "1+1?", "responses": ["\\boxed{3}", None, "A: 2"], "answer": "2"}
    path = write(tmp_path / "rows.json", [row, {**row, "responses": [None]}])
    result = call("verify", path, "--out", tmp_path / "out.jsonl")
    assert "completions that are null are left out: 1, in" in result.stderr
    assert "holds only nulls" in result.stderr
    verified = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(r["answer"], r["outcome"]) for r in verified] == [("3", 0), ("2", 1)]


ROW = {"id": "a", "problem": "Q?", "steps": ["s"], "label": -1}


@pytest.mark.parametrize(
    "content",
    [
        [ROW],
        *({name: [ROW]} for name in files.LIST_NAMES),
        {"version": "1", "info": {"n": 1}, "data": [ROW], "tags": ["x"]},
        {"features": [], "rows": [{"row_idx": 0, "row": ROW, "truncated_cells": []}], "num_rows_total": 1},
    ],
)
def test_the_one_list_of_an_object_is_the_rows(content: object, tmp_path: Path) -> None:
    assert files.read_rows(write(tmp_path / "rows.json", content)) == [ROW]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": [ROW], "rows": [ROW]}, "has the lists data and rows"),
        ({"messages": [{"role": "user", "content": "x"}]}, "expected a list of objects"),
        ({"data": {"rows": [ROW]}}, "expected a list of objects"),
        ({"data": ["a"]}, "row 1 is 'a'"),
        ("text", "expected a list of objects"),
    ],
)
def test_an_object_without_one_list_is_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        files.read_rows(write(tmp_path / "rows.json", content))


def test_eval_reads_wrapped_rows_and_its_table_has_no_empty_row(tmp_path: Path) -> None:
    rows = [{**ROW, "id": str(n), "steps": ["s", "t" * (n + 1)], "label": n % 2 - 1} for n in range(6)]
    path = write(tmp_path / "mine.json", {"data": rows})
    out = fine("eval", "--model", "step-length", "--data", path, "--out", tmp_path / "runs")
    names = [line.split()[0] for line in out.splitlines() if line.startswith((" as_is", " step_diff", " floor"))]
    assert "as_is/oracle" in names
    assert not any("calibrated" in name for name in names if not name.startswith("floor/"))
    assert "floor/outcome_oracle" in names
    assert "left out, since empty in every subset: as_is/calibrated:gsm8k" in " ".join(out.split())
