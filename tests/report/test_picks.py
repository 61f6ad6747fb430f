"""The trace viewer's data of best-of-N runs and of critics' texts: who picks what, and what is cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import completions, manifest, scores_of, task_scores, traces

from prmbench import data
from prmbench.core.records import Notice, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import Run
from prmbench.report import critiques, formulas
from prmbench.report.critiques import read_critiques
from prmbench.report.picks import picks_view
from prmbench.report.verdicts import PICK_KINDS


def run(scores: list[ScoredTrace], name: str = "m", **facts: Any) -> Run:
    usual = {"benchmark": "best_of_n", "task": "best_of_n", "kind": "logratio", "beta": 1.0}
    about = manifest(scores, b"", model=name, run_id=name, **usual | facts)
    return Run(RunResult(about, ()), tuple(scores), Path(name))


ITEMS = completions(4, 3)
SCORES = task_scores(ITEMS)
AGGREGATIONS = {"last": lambda v: v[-1], "min": np.min, "mean": np.mean, "sum": np.sum}


def test_every_aggregation_picks_the_completion_it_scores_highest() -> None:
    view = picks_view([run(SCORES)], 1000)
    assert [t["id"] for t in view["traces"]] == [f"{s}-{i}" for s in ("easy", "hard") for i in range(3)]
    by_id = {t.id: t for t in SCORES}
    protocols = {p["key"]: p for p in view["runs"][0]["protocols"]}
    assert next(iter(protocols)) == "prefix_sum/last" == view["runs"][0]["default"]
    for name, aggregate in AGGREGATIONS.items():
        protocol = protocols[f"step_sum/{name}"]
        for at, problem in enumerate(view["traces"]):
            values = [float(aggregate(np.array(by_id[c["id"]].values))) for c in problem["completions"]]
            assert protocol["scores"][at] == pytest.approx(values, rel=1e-4)
            assert protocol["picked"][at] == [int(np.argmax(values))]
            right = problem["completions"][int(np.argmax(values))]["right"]
            assert PICK_KINDS[protocol["kind"][at]] == ("right pick" if right else "wrong pick")
    assert {PICK_KINDS[k] for p in protocols.values() for k in p["kind"]} == {"right pick", "wrong pick"}
    outcomes = {t.id: t.outcome for t in ITEMS}
    assert all(c["right"] == (outcomes[c["id"]] == 1) for t in view["traces"] for c in t["completions"])


def test_a_tie_and_an_unscored_completion() -> None:
    tied = [replace(t, values=(1.0, 1.0, 1.0)) if t.cluster == SCORES[0].cluster else t for t in SCORES]
    lacking = [replace(t, values=(), tokens=(), unscored="too long") if t.id == "hard-0/1" else t for t in tied]
    view = picks_view([run(lacking)], 1000)
    first = view["runs"][0]["protocols"][0]
    assert first["picked"][0] == [0, 1, 2, 3]
    assert PICK_KINDS[first["kind"][0]] == "tie"
    hard = [t["id"] for t in view["traces"]].index("hard-0")
    assert first["scores"][hard][1] is None
    assert 1 not in first["picked"][hard]
    none = [replace(t, values=(), tokens=(), unscored="too long") for t in SCORES]
    kinds = picks_view([run(none)], 1000)["runs"][0]["protocols"][0]["kind"]
    assert {PICK_KINDS[k] for k in kinds} == {"unscored"}


def test_a_run_on_other_completions_scores_nothing_of_these() -> None:
    other = [replace(t, id=f"x{t.id}", cluster=f"x{t.cluster}") for t in SCORES[:4]]
    view = picks_view([run(SCORES, "a"), run(other, "b")], 1000)
    assert len(view["traces"]) == 7
    kinds = view["runs"][1]["protocols"][0]["kind"]
    assert sorted(kinds)[:6] == [-1] * 6
    assert sorted(kinds)[6] >= 0


def test_whole_problems_are_left_out_until_the_rest_fits() -> None:
    view = picks_view([run(SCORES)], 9)
    assert (len(view["traces"]), view["total"]) == (2, 6)
    assert len(picks_view([run(SCORES)], 1)["traces"]) == 1


def test_texts_are_those_of_the_completions() -> None:
    texts = {t.id: t for t in ITEMS if t.id != "easy-0/1"}
    view = picks_view([run(SCORES)], 1000, texts)
    assert view["texts"]["easy-0"] == {
        "problem": "easy problem 0",
        "steps": ["a\nb\nc", "", "a\nb\nc", "a\nb\nc"],
        "completions": [["a", "b", "c"], [], ["a", "b", "c"], ["a", "b", "c"]],
    }
    assert picks_view([run(SCORES)], 1000)["texts"] == {}


def test_problems_whose_completions_have_ids_of_any_form_have_names_of_their_own() -> None:
    renamed = [replace(t, id=f"{i}") for i, t in enumerate(SCORES)]
    names = [t["id"] for t in picks_view([run(renamed)], 1000)["traces"]]
    assert len(set(names)) == len(names) == 6
    assert all(names)


# --- critics ---------------------------------------------------------------------------------------------------------

TEXTS = {"gsm8k-0": ["one", "two"], "gsm8k-1": ["<b>three</b>"]}


def critic(folder: Path, lines: str) -> Run:
    scores = scores_of(traces(2, ("gsm8k",)), "verdict")
    about = manifest(scores, b"", kind="verdict", backend="critic")
    (folder / "run.critiques.jsonl").write_text(lines)
    return Run(RunResult(about, ()), tuple(scores), folder / "run.json")


def as_lines(texts: dict[str, list[str]]) -> str:
    return "".join(json.dumps({"id": name, "said": said}) + "\n" for name, said in texts.items())


def test_critiques_of_the_shown_traces_are_read(tmp_path: Path) -> None:
    model = critic(tmp_path, as_lines(TEXTS))
    assert read_critiques(model, {"gsm8k-0", "gsm8k-1", "other"}) == TEXTS
    assert read_critiques(model, {"gsm8k-1"}) == {"gsm8k-1": ["<b>three</b>"]}
    (tmp_path / "run.critiques.jsonl").unlink()
    assert read_critiques(model, {"gsm8k-1"}) == {}


def test_long_critiques_are_cut_and_half_characters_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critiques, "MAX_TEXT", 5)
    monkeypatch.setattr(critiques, "MAX_TOTAL", 100)
    model = critic(tmp_path, '{"id": "a", "said": ["123456789", "\\ud800"]}\n' + as_lines({"b": ["x"], "c": ["y"]}))
    texts = read_critiques(model, {"a", "b", "c"})
    assert texts["a"][0] == "12345" + critiques.CUT
    assert texts["a"][1] == "?"
    monkeypatch.setattr(critiques, "MAX_TOTAL", 3)
    assert set(read_critiques(model, {"a", "b", "c"})) == {"a"}


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"id": 1, "said": []}', '{"id": "a", "said": "x"}', '{"id": "a", "said": [1]}', '"a"']
)
def test_a_damaged_file_of_critiques_is_left_out_with_a_notice(tmp_path: Path, line: str) -> None:
    model = critic(tmp_path, as_lines(TEXTS) + line + "\n")
    with pytest.warns(Notice, match=r"run\.critiques\.jsonl, line 3"):
        assert read_critiques(model, {"gsm8k-0"}) == {}


def test_formulas_of_critiques_and_steps_are_converted_once() -> None:
    assert set(formulas.formulas(["$x$ and $y$", "$y$"])) == {"$x$", "$y$"}


# --- the texts of --data ---------------------------------------------------------------------------------------------


def test_texts_are_read_from_rollouts_and_from_processbench_files(tmp_path: Path) -> None:
    row = {"prompt": "p", "steps": ["a", "b"]}
    rollouts = [{**row, "id": f"g/{i}", "group": "g", "outcome": i} for i in (0, 1)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rollouts))
    labelled = {**row, "id": "x", "label": -1}
    (tmp_path / "traces.jsonl").write_text(json.dumps(labelled) + "\n")
    assert {name: t.steps for name, t in data.texts(tmp_path / "rollouts.jsonl").items()} == {
        "g/0": ("a", "b"),
        "g/1": ("a", "b"),
    }
    assert set(data.texts(tmp_path / "traces.jsonl")) == {"x"}
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"odd\.jsonl line 1"):
        data.texts(tmp_path / "odd.jsonl")
