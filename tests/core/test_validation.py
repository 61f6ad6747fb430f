"""A foreign result that is malformed is refused in one line, before anything is judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prmbench import evaluation, tasks
from prmbench.config import EvalConfig
from prmbench.core import result_files
from prmbench.core.records import ScoredTrace, StepScores, Trace, UserError, join_scores


@pytest.fixture
def run(benchmark_folder: Path, tmp_path: Path) -> result_files.Run:
    found = evaluation.evaluate(EvalConfig("random", data=benchmark_folder, out=tmp_path / "runs"))
    assert found is not None
    return found


def test_a_run_of_our_own_is_sound(run: result_files.Run) -> None:
    assert tasks.read_run(run.path).scores == run.scores


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
def test_malformed_scores(run: result_files.Run, field: str, value: Any) -> None:
    row = {**run.scores[0].to_json(), field: value}
    packed = result_files.pack_scores([ScoredTrace.from_json(row), *run.scores[1:]])
    result_files.scores_path(run.path).write_bytes(packed)
    edited(run, lambda result: result["manifest"].update(scores_sha256=result_files.sha256(packed)))
    refused(run)


@pytest.mark.parametrize(
    "edit",
    [
        lambda result: result["manifest"].update(kind="vibes"),
        lambda result: result["manifest"].update(subsets="gsm8k"),
        lambda result: result["manifest"].update(subsets=["<img src=x>|b"]),
        lambda result: result["manifest"].update(calibrate_on="a@b"),
        lambda result: result["manifest"].update(seed="0"),
        lambda result: result["manifest"].update(tokens=None),
        lambda result: result["manifest"].update(completion_tokens="9"),
        lambda result: result["manifest"].update(seconds="long"),
        lambda result: result["manifest"].update(cost=[1]),
        lambda result: result["manifest"].update(memory_gib="much"),
        lambda result: result["rows"][0].update(value="high"),
        lambda result: result["rows"][0].update(lo=float("nan")),
        lambda result: result["rows"][0].update(n=None),
    ],
)
def test_malformed_results(run: result_files.Run, edit: Callable[[dict[str, Any]], None]) -> None:
    edited(run, edit)
    refused(run)


def edited(run: result_files.Run, edit: Callable[[dict[str, Any]], None]) -> None:
    result = json.loads(run.path.read_text())
    edit(result)
    run.path.write_text(json.dumps(result))


def refused(run: result_files.Run) -> None:
    with pytest.raises(UserError) as found:
        tasks.read_run(run.path)
    assert str(run.path) in str(found.value)
    assert "\n" not in str(found.value)


# --- tasks beyond step F1 ------------------------------------------------------------------------------------


@pytest.fixture
def chosen(tmp_path: Path) -> result_files.Run:
    """A best-of-N run: no step labels, one completion without a step."""
    rows = [{"prompt": "p", "completion": c, "outcome": k % 2} for k, c in enumerate(("a\n\nb", "c", "", "d"))]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluation.evaluate(EvalConfig("random", benchmark="best_of_n", data=path, out=tmp_path / "runs"))
    assert found is not None
    return found


def test_other_tasks_need_no_label(chosen: result_files.Run) -> None:
    assert {t.label for t in chosen.scores} == {None}
    assert min(t.steps for t in chosen.scores) == 0
    assert tasks.read_run(chosen.path).scores == chosen.scores


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", 5),
        ("steps", -1),
        ("outcome", 0.5),
        ("values", [0.5, 0.5, 0.5]),
        ("answer", 3),
        ("finish", "maybe"),
        ("step_labels", [0.5]),
        ("step_labels", [0.5, 1.5]),
        ("step_labels", [0.5, float("nan")]),
        ("step_labels", [0.5, "1"]),
    ],
)
def test_malformed_scores_of_other_tasks(chosen: result_files.Run, field: str, value: Any) -> None:
    two = next(i for i, t in enumerate(chosen.scores) if t.steps == 2)
    row = {**chosen.scores[two].to_json(), field: value}
    rest = [t for i, t in enumerate(chosen.scores) if i != two]
    packed = result_files.pack_scores([ScoredTrace.from_json(row), *rest])
    result_files.scores_path(chosen.path).write_bytes(packed)
    edited(chosen, lambda result: result["manifest"].update(scores_sha256=result_files.sha256(packed)))
    refused(chosen)


@pytest.mark.parametrize(
    "facts",
    [
        {"task": "vibes"},
        {"task": "policy"},
        {"kind": "outcome"},
        {"config": None},
        {"beta": "ten"},
        {
            "task": "policy",
            "kind": "outcome",
            "config": {"temperature": "hot", "top_p": 1, "top_k": 0, "group_size": 2},
        },
        {"task": "policy", "kind": "outcome", "config": {"temperature": 1}},
    ],
)
def test_malformed_manifests_of_other_tasks(chosen: result_files.Run, facts: dict[str, Any]) -> None:
    edited(chosen, lambda result: result["manifest"].update(facts))
    refused(chosen)


@pytest.mark.parametrize(("tokens", "reason"), [((3, 1), ""), ((3, 0), "a step without a token"), ((), "")])
def test_what_could_not_be_read_again_is_not_stored(tokens: tuple[int, ...], reason: str) -> None:
    """A mean over no tokens is no number; a model that gives no counts has no means."""
    made = join_scores(Trace("t", "p", ("a", "b"), 0), StepScores("t", (1.0, 2.0), tokens))
    assert (made.unscored, made.values) == (reason, () if reason else (1.0, 2.0))
