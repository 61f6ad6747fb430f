"""Importers: hand-written rows of each published form, what becomes of them, and what is refused and where."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prmbench.config import ConvertConfig
from prmbench.data import imports, load, rollouts, views
from prmbench.data.imports import convert, read
from prmbench.schema import UserError, text_hash


def rows(tmp_path: Path, *items: object, name: str = "r.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return path


def rated(text: str, rating: int | None, flagged: bool | None = None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": flagged}


def stage(*completions: dict[str, Any], chosen: int | None = 0, human: object = None) -> dict[str, Any]:
    return {"completions": list(completions), "chosen_completion": chosen, "human_completion": human}


def labelled(
    *stages: dict[str, Any], reason: str = "found_error", generated: list[str] | None = None
) -> dict[str, Any]:
    question = {"problem": "What is 3 + 4?", "ground_truth_answer": "7", "pre_generated_steps": generated}
    return {"labeler": "x", "question": question, "label": {"steps": list(stages), "finish_reason": reason}}


WHOLE = labelled(
    stage(rated("We add.", 0)), stage(rated("It is 8.", -1), rated("It is 7.", 1), chosen=1), reason="solution"
)
WRONG = labelled(
    stage(rated("We add. ", 1)),
    stage(rated("It is 8.", -1), rated("It is 7.", 1), chosen=None),
    generated=["We add.", "It is 8.", "So 8.", "Done."],
)
SHEPHERD = {
    "input": "A pen costs 2 + 1 dollars. And 2? Step 1: One costs 2 + 1 = 3. ки\nStep 2: Two cost 3 + 3 = 7. ки",
    "label": "A pen costs 2 + 1 dollars. And 2? Step 1: One costs 2 + 1 = 3. +\nStep 2: Two cost 3 + 3 = 7. -",
    "task": "GSM8K",
}
TRL = {"prompt": "Is 9 prime?", "completions": ["9 = 3 x 3.", "Yes.", "So prime."], "labels": [True, False, False]}


# --- PRM800K ------------------------------------------------------------------------------------------------


def test_a_right_solution_of_prm800k(tmp_path: Path) -> None:
    ((found,), left, count) = read(rows(tmp_path, WHOLE))
    assert (left, count) == ({}, 1)
    assert found.steps == ("We add.", "It is 7.")  # the completion chosen, not the first
    assert (found.step_labels, found.first_error, found.outcome) == ((1.0, 1.0), -1, 1)
    assert (found.id, found.group, found.gold) == ("r-0", text_hash("What is 3 + 4?"), "7")


def test_what_neutral_counts_as(tmp_path: Path) -> None:
    (found,), _, _ = read(rows(tmp_path, WHOLE), neutral="wrong")
    assert (found.step_labels, found.first_error) == ((0.0, 1.0), 0)


def test_after_the_error_nothing_is_labelled(tmp_path: Path) -> None:
    (found,), _, _ = read(rows(tmp_path, WRONG))
    assert found.steps == ("We add.", "It is 8.", "So 8.", "Done.")
    assert (found.step_labels, found.first_error, found.outcome) == ((), 1, None)
    ((row,), _) = views.step_rows([found])
    assert row.labels[:2] == (1.0, 0.0)
    assert [math.isnan(y) for y in row.labels] == [False, False, True, True]


def test_a_generation_that_is_another_text_is_not_gone_on_with(tmp_path: Path) -> None:
    other = json.loads(json.dumps(WRONG))
    other["question"]["pre_generated_steps"][0] = "We multiply."
    (found,), _, _ = read(rows(tmp_path, other))
    assert (found.steps, found.step_labels, found.first_error) == (("We add.", "It is 8."), (1.0, 0.0), 1)


def test_labels_that_say_more_than_the_first_error_are_kept(tmp_path: Path) -> None:
    row = labelled(
        stage(rated("We add.", 0)),
        stage(rated("3 + 4.", 1)),
        stage(rated("It is 8.", -1), chosen=None),
        generated=["We add.", "3 + 4.", "It is 8.", "So 8."],
    )
    (found,), _, _ = read(rows(tmp_path, row), neutral="wrong")
    assert (found.step_labels, found.first_error) == ((0.0, 1.0, 0.0), 0)


@pytest.mark.parametrize("human", ["It is 7.", {"text": "It is 7.", "rating": None}])
def test_the_labellers_own_step_is_right(tmp_path: Path, human: object) -> None:
    row = labelled(stage(rated("8.", -1), chosen=None, human=human), stage(rated("So 7.", 1)), reason="solution")
    (found,), _, _ = read(rows(tmp_path, row))
    assert (found.steps, found.step_labels, found.outcome) == (("It is 7.", "So 7."), (1.0, 1.0), 1)


def test_a_solution_that_was_given_up_is_its_rated_steps(tmp_path: Path) -> None:
    row = labelled(stage(rated("We add.", 1)), stage(rated("Hm.", None), rated("8.", -1)), reason="give_up")
    (found,), _, _ = read(rows(tmp_path, row))
    assert (found.steps, found.first_error, found.outcome) == (("We add.",), -1, None)


def test_alternatives_follow_the_steps_before_them(tmp_path: Path) -> None:
    row = labelled(
        stage(rated("We add.", 1), rated("We guess.", -1)),
        stage(rated("It is 8.", -1), rated("It is 7.", 1), rated("Who knows?", 0, flagged=True), chosen=1),
        reason="solution",
    )
    found, _, _ = read(rows(tmp_path, row), alternatives=True)
    assert [(r.id, r.steps, r.step_labels, r.outcome) for r in found] == [
        ("r-0", ("We add.", "It is 7."), (1.0, 1.0), 1),
        ("r-0-1", ("We guess.",), (0.0,), None),
        ("r-0-2", ("We add.", "It is 8."), (1.0, 0.0), None),
    ]
    assert len({r.group for r in found}) == 1


def test_what_gives_no_solution_is_counted(tmp_path: Path) -> None:
    broken, unrated = labelled(stage(rated("a", 1)), reason="bad_problem"), labelled(stage(rated("a", None)))
    found, left, count = read(rows(tmp_path, broken, unrated, labelled(), WHOLE))
    assert (len(found), count) == (1, 4)
    assert left == {imports.BROKEN: 1, imports.NO_STEP: 2}


# --- Math-Shepherd ------------------------------------------------------------------------------------------


def test_math_shepherd(tmp_path: Path) -> None:
    (found,), _, _ = read(rows(tmp_path, SHEPHERD))
    assert found.prompt == "A pen costs 2 + 1 dollars. And 2?"
    assert found.steps == ("One costs 2 + 1 = 3.", "Two cost 3 + 3 = 7.")
    assert (found.step_labels, found.first_error, found.subset) == ((1.0, 0.0), 1, "gsm8k")


def test_math_shepherd_as_its_card_writes_it_now(tmp_path: Path) -> None:
    row = {
        "input": "Half of 9? \n\nStep 1: 9 - 5 = 4. ки ? \n\nStep 2: So 4. ки ?",
        "label": "Half of 9? \n\nStep 1: 9 - 5 = 4. ки - \n\nStep 2: So 4. ки +",
    }
    (found,), _, _ = read(rows(tmp_path, row))
    assert (found.prompt, found.steps) == ("Half of 9?", ("9 - 5 = 4.", "So 4."))
    assert (found.step_labels, found.first_error) == ((0.0, 1.0), 0)


def test_a_problem_that_speaks_of_step_1_itself(tmp_path: Path) -> None:
    text = "Read this: Step 1: mix. How often? Step 1: Once, see Step 2: it says so. ки"
    (found,), _, _ = read(rows(tmp_path, {"input": text, "label": text.replace("ки", "+")}))
    assert found.prompt == "Read this: Step 1: mix. How often?"
    assert found.steps == ("Once, see Step 2: it says so.",)


# --- TRL, and which is which --------------------------------------------------------------------------------


def test_trl_rows(tmp_path: Path) -> None:
    soft = {**TRL, "labels": [1, 0.5, 0]}
    (hard, open_), _, _ = read(rows(tmp_path, TRL, soft))
    assert (hard.prompt, hard.steps) == ("Is 9 prime?", tuple(TRL["completions"]))
    assert (hard.step_labels, hard.first_error) == ((1.0, 0.0, 0.0), 1)
    assert (open_.step_labels, open_.first_error) == ((1.0, 0.5, 0.0), None)


def test_every_step_has_its_label(tmp_path: Path) -> None:
    found, _, count = read(rows(tmp_path, WHOLE, WRONG, SHEPHERD, TRL), alternatives=True)
    assert (len(found), count) == (6, 4)
    assert all(len(r.step_labels) == len(r.steps) or (not r.step_labels and r.first_error is not None) for r in found)
    trained, left = views.step_rows(found)
    assert not left
    assert all(len(row.labels) == len(row.rollout.steps) for row in trained)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_what_is_converted_is_read_by_training_and_eval(tmp_path: Path, name: str) -> None:
    done = convert(ConvertConfig(out=tmp_path / name), rows(tmp_path, WHOLE, WRONG, SHEPHERD, TRL))
    assert (done.rows, done.solutions, done.with_error, done.steps, done.labels) == (4, 4, 3, 2 + 4 + 2 + 3, 9)
    assert [r.first_error for r in rollouts.read(tmp_path / name)] == [-1, 1, 1, 1]
    loaded = load("processbench", tmp_path / name)
    assert {t.id: (t.first_error, t.outcome, t.subset) for t in loaded.traces} == {
        "r-0": (-1, 1, "t"),
        "r-1": (1, None, "t"),
        "r-2": (1, None, "gsm8k"),
        "r-3": (1, None, "t"),
    }
    assert len({t.group for t in loaded.traces}) == 3


def test_a_limit_is_spread(tmp_path: Path) -> None:
    items = [{**TRL, "prompt": f"P{k}"} for k in range(6)]
    convert(ConvertConfig(out=tmp_path / "t.jsonl", limit=3), rows(tmp_path, *items))
    assert [r.prompt for r in rollouts.read(tmp_path / "t.jsonl")] == ["P0", "P2", "P4"]


# --- what is refused ----------------------------------------------------------------------------------------


def shepherd(**changed: str) -> dict[str, str]:
    return {**SHEPHERD, **changed}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "P", "answer": "4"}, "is of no known format"),
        ({**TRL, "labels": [1, 0]}, "expected one label for each of 3 steps"),
        ({**TRL, "labels": [1, 0, 2]}, "expected labels between 0 and 1"),
        ({**TRL, "completions": []}, "completions as steps: field 'steps'"),
        ({**TRL, "prompt": " "}, "field 'prompt' is ' '"),
        (shepherd(input=SHEPHERD["input"] + " And so on."), "2 tags 'ки'; expected one after every step"),
        (shepherd(input="What? Step 1: none."), "0 tags"),
        (shepherd(label=SHEPHERD["label"][:-1]), "field 'label' has no + or - for step 1"),
        (shepherd(label=SHEPHERD["label"].replace("One", "Two")), "no + or - for step 0 of 'input', or another text"),
        (shepherd(label=SHEPHERD["label"] + " Step 3: more. +"), "goes on after the last step"),
        ({"input": "1 + 1 = 2 ки", "label": "1 + 1 = 2 +"}, "no 'Step 1:' after the problem"),
        ({"input": "Step 1: 2 ки", "label": "Step 1: 2 +"}, "no 'Step 1:' after the problem"),
        ({**WHOLE, "question": {"problem": ""}}, "question: field 'problem' is ''"),
        ({**WHOLE, "label": {"steps": None}}, "label: field 'steps' is None"),
        (labelled(stage(rated("a", 2))), "step 0, completion 0: field 'rating' is 2; expected -1, 0 or 1"),
        (labelled(stage(rated("", 1))), "step 0, completion 0: field 'text' is ''"),
        (labelled(stage(rated("a", 1), chosen=1)), "'chosen_completion' is 1; it has 1 completions"),
        (labelled({"completions": "a"}), "label: step 0 is"),
        (labelled(stage("a")), "step 0, completion 0 is 'a'"),  # type: ignore[arg-type]
        (labelled(stage(rated("a", -1), chosen=None), generated=["a", ""]), "question.pre_generated_steps: step 1"),
    ],
)
def test_what_cannot_be_read_names_file_and_row(tmp_path: Path, row: object, message: str) -> None:
    path = rows(tmp_path, TRL, row)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} row 1: ")
    assert message in str(caught.value)


def test_a_format_that_the_file_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 0: field 'question' is None; expected an object"):
        read(rows(tmp_path, TRL), "prm800k")
    with pytest.raises(UserError, match="row 0: completions as steps: field 'steps' is missing"):
        read(rows(tmp_path, WHOLE), "trl")


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    path = rows(tmp_path, TRL)
    before = path.read_bytes()
    for data in (path, path.parent):
        with pytest.raises(UserError, match=rf"--out .*{path.name}: is a file that is read"):
            convert(ConvertConfig(out=path), data)
    assert path.read_bytes() == before


def test_nothing_to_write(tmp_path: Path) -> None:
    path = rows(tmp_path, labelled(reason="bad_problem"))
    with pytest.raises(UserError, match=r"gives no labelled solution \(1 x problem reported as broken\)"):
        convert(ConvertConfig(out=tmp_path / "t.jsonl"), path)
    with pytest.raises(UserError, match=r"written as \.jsonl or \.parquet"):
        convert(ConvertConfig(out=tmp_path / "t.csv"), path)
    assert not (tmp_path / "t.jsonl").exists()
