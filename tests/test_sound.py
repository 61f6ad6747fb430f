"""A foreign result that is malformed is refused in one line, before anything is judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prmbench import evaluation, store
from prmbench.config import EvalConfig
from prmbench.schema import ScoredTrace, UserError


@pytest.fixture
def run(benchmark_folder: Path, tmp_path: Path) -> store.Run:
    found = evaluation.evaluate(EvalConfig("random", data=benchmark_folder, out=tmp_path / "runs"))
    assert found is not None
    return found


def test_a_run_of_our_own_is_sound(run: store.Run) -> None:
    assert store.read_run(run.path).scores == run.scores


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", None),
        ("label", 99),
        ("label", -2),
        ("steps", 0),
        ("outcome", 7),
        ("values", []),
        ("values", [0.5]),
        ("values", [float("nan")] * 9),
        ("subset", 3),
    ],
)
def test_malformed_scores(run: store.Run, field: str, value: Any) -> None:
    row = {**run.scores[0].to_json(), field: value}
    packed = store.pack_scores([ScoredTrace.from_json(row), *run.scores[1:]])
    store.scores_path(run.path).write_bytes(packed)
    edited(run, lambda result: result["manifest"].update(scores_sha256=store.sha256(packed)))
    refused(run)


@pytest.mark.parametrize(
    "edit",
    [
        lambda result: result["manifest"].update(kind="vibes"),
        lambda result: result["manifest"].update(subsets="gsm8k"),
        lambda result: result["manifest"].update(subsets=["<img src=x>|b"]),
        lambda result: result["manifest"].update(calibrate_on="a@b"),
        lambda result: result["manifest"].update(seed="0"),
        lambda result: result["rows"][0].update(value="high"),
        lambda result: result["rows"][0].update(lo=float("nan")),
        lambda result: result["rows"][0].update(n=None),
    ],
)
def test_malformed_results(run: store.Run, edit: Callable[[dict[str, Any]], None]) -> None:
    edited(run, edit)
    refused(run)


def edited(run: store.Run, edit: Callable[[dict[str, Any]], None]) -> None:
    result = json.loads(run.path.read_text())
    edit(result)
    run.path.write_text(json.dumps(result))


def refused(run: store.Run) -> None:
    with pytest.raises(UserError) as found:
        store.read_run(run.path)
    assert str(run.path) in str(found.value)
    assert "\n" not in str(found.value)
