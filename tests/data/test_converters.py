"""Importers: hand-written rows of each published form, what becomes of them, and what is refused and where."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prmbench.cli import app
from prmbench.config import ConvertConfig
from prmbench.core.records import Notice, UserError, text_hash
from prmbench.data import converters, load, math_shepherd, rollouts, training_data
from prmbench.data.converters import convert, read


def rows(tmp_path: Path, *items: object, name: str = "r.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
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
    ((solution,), left_out, count) = read(rows(tmp_path, WHOLE))
    assert (left_out, count) == ({}, 1)
    assert solution.steps == ("We add.", "It is 7.")  # the completion chosen, not the first
    assert (solution.step_labels, solution.first_error, solution.outcome) == ((1.0, 1.0), -1, 1)
    assert (solution.id, solution.group, solution.gold) == ("r-0", text_hash("What is 3 + 4?"), "7")


def test_what_neutral_counts_as(tmp_path: Path) -> None:
    (solution,), _, _ = read(rows(tmp_path, WHOLE), neutral="wrong")
    assert (solution.step_labels, solution.first_error) == ((0.0, 1.0), 0)


def test_after_the_error_nothing_is_labelled(tmp_path: Path) -> None:
    (solution,), _, _ = read(rows(tmp_path, WRONG))
    assert solution.steps == ("We add.", "It is 8.", "So 8.", "Done.")
    assert (solution.step_labels, solution.first_error, solution.outcome) == ((), 1, None)
    ((row,), _) = training_data.labelled_steps([solution])
    assert row.labels[:2] == (1.0, 0.0)
    assert [math.isnan(y) for y in row.labels] == [False, False, True, True]


def test_a_generation_that_is_another_text_is_not_gone_on_with(tmp_path: Path) -> None:
    other = json.loads(json.dumps(WRONG))
    other["question"]["pre_generated_steps"][0] = "We multiply."
    (solution,), _, _ = read(rows(tmp_path, other))
    assert (solution.steps, solution.step_labels, solution.first_error) == (("We add.", "It is 8."), (1.0, 0.0), 1)


def test_labels_that_say_more_than_the_first_error_are_kept(tmp_path: Path) -> None:
    row = labelled(
        stage(rated("We add.", 0)),
        stage(rated("3 + 4.", 1)),
        stage(rated("It is 8.", -1), chosen=None),
        generated=["We add.", "3 + 4.", "It is 8.", "So 8."],
    )
    (solution,), _, _ = read(rows(tmp_path, row), neutral="wrong")
    assert (solution.step_labels, solution.first_error) == ((0.0, 1.0, 0.0), 0)


@pytest.mark.parametrize("human", ["It is 7.", {"text": "It is 7.", "rating": None}])
def test_the_labellers_own_step_is_right(tmp_path: Path, human: object) -> None:
    row = labelled(stage(rated("8.", -1), chosen=None, human=human), stage(rated("So 7.", 1)), reason="solution")
    (solution,), _, _ = read(rows(tmp_path, row))
    assert (solution.steps, solution.step_labels, solution.outcome) == (("It is 7.", "So 7."), (1.0, 1.0), 1)


def test_a_solution_that_was_given_up_is_its_rated_steps(tmp_path: Path) -> None:
    row = labelled(stage(rated("We add.", 1)), stage(rated("Hm.", None), rated("8.", -1)), reason="give_up")
    (solution,), _, _ = read(rows(tmp_path, row))
    assert (solution.steps, solution.first_error, solution.outcome) == (("We add.",), -1, None)


def test_alternatives_follow_the_steps_before_them(tmp_path: Path) -> None:
    row = labelled(
        stage(rated("We add.", 1), rated("We guess.", -1)),
        stage(rated("It is 8.", -1), rated("It is 7.", 1), rated("Who knows?", 0, flagged=True), chosen=1),
        reason="solution",
    )
    solutions, _, _ = read(rows(tmp_path, row), alternatives=True)
    assert [(r.id, r.steps, r.step_labels, r.outcome) for r in solutions] == [
        ("r-0", ("We add.", "It is 7."), (1.0, 1.0), 1),
        ("r-0-1", ("We guess.",), (0.0,), None),
        ("r-0-2", ("We add.", "It is 8."), (1.0, 0.0), None),
    ]
    assert len({r.group for r in solutions}) == 1


def test_what_gives_no_solution_is_counted(tmp_path: Path) -> None:
    broken, unrated = labelled(stage(rated("a", 1)), reason="bad_problem"), labelled(stage(rated("a", None)))
    solutions, left_out, count = read(rows(tmp_path, broken, unrated, labelled(), WHOLE))
    assert (len(solutions), count) == (1, 4)
    assert left_out == {converters.BROKEN_PROBLEM: 1, converters.NO_RATED_STEP: 2}


# --- Math-Shepherd ------------------------------------------------------------------------------------------


def test_math_shepherd(tmp_path: Path) -> None:
    (solution,), _, _ = read(rows(tmp_path, SHEPHERD))
    assert solution.prompt == "A pen costs 2 + 1 dollars. And 2?"
    assert solution.steps == ("One costs 2 + 1 = 3.", "Two cost 3 + 3 = 7.")
    assert (solution.step_labels, solution.first_error, solution.subset) == ((1.0, 0.0), 1, "gsm8k")


def test_math_shepherd_as_its_card_writes_it_now(tmp_path: Path) -> None:
    row = {
        "input": "Half of 9? \n\nStep 1: 9 - 5 = 4. ки ? \n\nStep 2: So 4. ки ?",
        "label": "Half of 9? \n\nStep 1: 9 - 5 = 4. ки - \n\nStep 2: So 4. ки +",
    }
    (solution,), _, _ = read(rows(tmp_path, row))
    assert (solution.prompt, solution.steps) == ("Half of 9?", ("9 - 5 = 4.", "So 4."))
    assert (solution.step_labels, solution.first_error) == ((0.0, 1.0), 0)


def test_a_problem_that_speaks_of_step_1_itself(tmp_path: Path) -> None:
    text = "Read this: Step 1: mix. How often? Step 1: Once, see Step 2: it says so. ки"
    (solution,), _, _ = read(rows(tmp_path, {"input": text, "label": text.replace("ки", "+")}))
    assert solution.prompt == "Read this: Step 1: mix. How often?"
    assert solution.steps == ("Once, see Step 2: it says so.",)


# --- TRL, and which is which --------------------------------------------------------------------------------


def test_trl_rows(tmp_path: Path) -> None:
    soft = {**TRL, "labels": [1, 0.5, 0]}
    (hard, open_), _, _ = read(rows(tmp_path, TRL, soft))
    assert (hard.prompt, hard.steps) == ("Is 9 prime?", tuple(TRL["completions"]))
    assert (hard.step_labels, hard.first_error) == ((1.0, 0.0, 0.0), 1)
    assert (open_.step_labels, open_.first_error) == ((1.0, 0.5, 0.0), None)


def test_every_step_has_its_label(tmp_path: Path) -> None:
    solutions, _, count = read(rows(tmp_path, WHOLE, WRONG, SHEPHERD, TRL), alternatives=True)
    assert (len(solutions), count) == (6, 4)
    assert all(
        len(r.step_labels) == len(r.steps) or (not r.step_labels and r.first_error is not None) for r in solutions
    )
    trained, left_out = training_data.labelled_steps(solutions)
    assert not left_out
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
        ({**WHOLE, "label": {"steps": None}}, "label: field 'steps' is missing"),
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
    assert str(caught.value).startswith(f"{path} line 2: ")
    assert message in str(caught.value)


def test_a_format_that_the_file_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: field 'question' is missing; expected an object"):
        read(rows(tmp_path, TRL), "prm800k")
    with pytest.raises(UserError, match="line 1: completions as steps: field 'steps' is missing"):
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


# --- rows that cannot be read -------------------------------------------------------------------------------

TAG = "ки"


def tagged(text: str, *signs: str) -> dict[str, str]:
    """A row whose label has the signs in the place of the last tags."""
    head, *rest = text.rsplit(TAG, len(signs))
    return {"input": text, "label": head + "".join(sign + piece for sign, piece in zip(signs, rest, strict=True))}


@pytest.mark.parametrize(
    ("row", "problem", "steps", "labels"),
    [
        # headings as others write them
        *(
            (tagged(f"How? {one} a + b {TAG}\n{two} c {TAG}", "+", "-"), "How?", ("a + b", "c"), (1, 0))
            for one, two in (
                ("step 1:", "step 2:"),
                ("STEP 1:", "STEP 2:"),
                ("Step 1 :", "Step 2 :"),
                ("**Step 1:**", "**Step 2:**"),
                ("**Step 1**:", "**Step 2**:"),
                ("\n### Step 1:", "### Step 2:"),
                ("Step1:", "Step2:"),
                ("step 1.", "step 2."),
                ("step 1)", "step 2)"),
                ("Step 1:", "step 2:"),
                ("step 1:", ""),
            )
        ),
        (tagged(f"As in step 1: how? Step 1: a {TAG}", "+"), "As in step 1: how?", ("a",), (1,)),
        (tagged(f"Why step 1: of it? step 1: a {TAG}", "+"), "Why step 1: of it?", ("a",), (1,)),
        (tagged(f"How? Step 1: a, see step 1: {TAG}", "+"), "How?", ("a, see step 1:",), (1,)),
        (
            tagged(f"How? step 1: a {TAG}\nstep 2: see Step 1: b {TAG}", "+", "-"),
            "How?",
            ("a", "see Step 1: b"),
            (1, 0),
        ),
        (tagged(f"In step 1: of {TAG} what? Step 1: a {TAG}", "+"), f"In step 1: of {TAG} what?", ("a",), (1,)),
        (tagged(f"How?Step 1: a {TAG}", "+"), "How?", ("a",), (1,)),
        # a heading with nothing behind it, and a number alone
        (tagged(f"How? Step 1: {TAG}\nStep 2: 30. {TAG}", "+", "-"), "How?", ("Step 1:", "30."), (1, 0)),
        (tagged(f"How? Step 1: 2.5 {TAG}\n2.5 {TAG}", "+", "-"), "How?", ("2.5", "2.5"), (1, 0)),
        # the tag as a word
        (tagged(f"What is {TAG}? Step 1: a {TAG}\nStep 2: b {TAG}", "-", "+"), f"What is {TAG}?", ("a", "b"), (0, 1)),
        (tagged(f"{TAG}, x{TAG}x + {TAG} - 1? Step 1: a {TAG}", "-"), f"{TAG}, x{TAG}x + {TAG} - 1?", ("a",), (0,)),
        (tagged(f"A line {TAG}\nand {TAG} Step 1: a {TAG}", "+"), f"A line {TAG}\nand {TAG}", ("a",), (1,)),
        (tagged(f"Step 1: {TAG} is odd. Why? Step 1: a {TAG}", "+"), f"Step 1: {TAG} is odd. Why?", ("a",), (1,)),
        (tagged(f"P Step 1: the x{TAG}x of {TAG} {TAG}", "+"), "P", (f"the x{TAG}x of {TAG}",), (1,)),
        (tagged(f"What is {TAG}? Step 1: a {TAG}", "+", "-"), f"What is {TAG}?", ("a",), (0,)),  # signed, too
        # line ends
        (tagged(f"P\r\nq Step 1: a\r\nb {TAG}\r\nStep 2: c {TAG}\r\n", "+", "-"), "P\nq", ("a\nb", "c"), (1, 0)),
        (
            {"input": f"P\r\nStep 1: a {TAG}\r\nStep 2: b {TAG}", "label": "P\nStep 1: a +\nStep 2: b -"},
            "P",
            ("a", "b"),
            (1, 0),
        ),
        ({"input": f"P Step 1: a {TAG} ?", "label": f"P Step 1: a {TAG} -"}, "P", ("a",), (0,)),
    ],
)
def test_what_math_shepherds_rows_may_be_like(
    tmp_path: Path, row: dict[str, str], problem: str, steps: tuple[str, ...], labels: tuple[float, ...]
) -> None:
    ((solution,), left_out, _) = read(rows(tmp_path, row))
    assert (solution.prompt, solution.steps, solution.step_labels, left_out) == (problem, steps, labels, {})
    assert math_shepherd.problem(row, "row") == problem
    if row["input"].count("tep 1") == 1:  # else only the labels tell where the steps begin
        assert math_shepherd.problem({"input": row["input"]}, "row") == problem


@pytest.mark.parametrize(
    ("stage_", "steps", "alternatives", "left"),
    [
        (stage(rated("8.", 1), rated("", -1)), ("8.",), [], {}),
        (stage(rated(" \n", 1), rated("8.", 1), chosen=1), ("8.",), [], {}),
        (stage(rated("8.", 1), {"text": None, "rating": 1}), ("8.",), [], {}),
        (stage(rated("8.", 1), {}), ("8.",), [], {}),
        (stage(rated("8.", 1), rated("7.", 5)), ("8.",), [], {converters.UNREADABLE_ALTERNATIVE: 1}),
        (stage(rated("8.", 1), rated("\ud800", 1)), ("8.",), [], {converters.UNREADABLE_ALTERNATIVE: 1}),
        (stage(rated("8.", 1), {"text": 7, "rating": 1}), ("8.",), [], {converters.UNREADABLE_ALTERNATIVE: 1}),
        (stage(rated("8.", 1), "9."), ("8.",), [], {converters.UNREADABLE_ALTERNATIVE: 1}),  # type: ignore[arg-type]
        (stage(rated("", 1), rated("9.", -1), chosen=None), (), [("9.",)], {}),  # what was judged says nothing
        (stage(rated("", 1), chosen=None, human="7."), ("7.",), [], {}),
        (stage(rated("8.", -1), chosen=None, human=" "), ("8.",), [], {}),
        (stage(rated("8.", -1), chosen=None, human={"text": None}), ("8.",), [], {}),
    ],
)
def test_completions_that_were_not_chosen_cost_no_row(
    tmp_path: Path,
    stage_: dict[str, Any],
    steps: tuple[str, ...],
    alternatives: list[tuple[str, ...]],
    left: dict[str, int],
) -> None:
    path = rows(tmp_path, labelled(stage(rated("We add.", 1)), stage_))
    (solution, *_), without, _ = read(path)
    assert (solution.steps, without) == (("We add.", *steps), {})
    (_, *others), reasons, _ = read(path, alternatives=True)
    assert [r.steps for r in others] == [("We add.", *other) for other in alternatives]
    assert reasons == left


@pytest.mark.parametrize(
    ("gold", "kept"), [("7", "7"), (7, "7"), (0.5, "0.5"), (None, ""), ("", ""), (" ", ""), ([7], ""), (True, "")]
)
def test_reference_answers(tmp_path: Path, gold: object, kept: str) -> None:
    row = json.loads(json.dumps(WHOLE))
    row["question"]["ground_truth_answer"] = gold
    (solution,), _, _ = read(rows(tmp_path, row))
    assert solution.gold == kept


UNREADABLE: list[tuple[object, str]] = [
    ("{broken", "not valid JSON"),
    ([1], "expected a JSON object"),
    (None, "expected a JSON object"),
    ({}, "is of no known format"),
    ({"prompt": "P", "answer": "4"}, "is of no known format"),
    ({**TRL, "labels": None}, "is of no known format"),
    ({**TRL, "labels": [1, 0]}, "expected one label for each of 3 steps"),
    ({**TRL, "labels": [1, 0, 1, 0]}, "expected one label for each of 3 steps"),
    ({**TRL, "labels": "110"}, "expected one label for each of 3 steps"),
    ({**TRL, "labels": [1, 0, None]}, "expected labels between 0 and 1"),
    ({**TRL, "labels": [1, 0, "1"]}, "expected labels between 0 and 1"),
    ({**TRL, "labels": [1, 0, 2]}, "expected labels between 0 and 1"),
    ({**TRL, "labels": [1, 0, -1]}, "expected labels between 0 and 1"),
    ({**TRL, "labels": [1, 0, float("nan")]}, "expected finite numbers"),
    ({**TRL, "completions": ["a", " ", "b"]}, "step 1 is ' '"),
    ({**TRL, "completions": ["a", None, "b"]}, "step 1 is missing"),
    ({**TRL, "completions": ["a", 3, "b"]}, "step 1 is 3"),
    ({**TRL, "completions": ["a", ["b"], "c"]}, "step 1 is ['b']"),
    ({**TRL, "completions": ["a", "\udc00", "c"]}, "valid Unicode"),
    ({**TRL, "completions": []}, "field 'steps'"),
    ({**TRL, "completions": "a"}, "field 'steps'"),
    ({**TRL, "prompt": None}, "field 'prompt' is missing"),
    ({**TRL, "prompt": 7}, "field 'prompt' is 7"),
    ({**TRL, "prompt": ["P"]}, "field 'prompt' is ['P']"),
    ({**SHEPHERD, "label": None}, "is of no known format"),
    ({**SHEPHERD, "label": SHEPHERD["input"]}, "no + or - for step 0"),
    ({**SHEPHERD, "label": SHEPHERD["label"].replace("3. +", f"3. {TAG}")}, "no + or - for step 0"),
    ({**SHEPHERD, "label": SHEPHERD["label"].replace("3. +", "3. *")}, "no + or - for step 0"),
    ({**SHEPHERD, "label": SHEPHERD["label"].replace("3. +", "3.")}, "no + or - for step 0"),
    ({**SHEPHERD, "label": SHEPHERD["label"][:-1] + "0"}, "no + or - for step 1"),
    ({**SHEPHERD, "label": ""}, "field 'label' is ''"),
    (tagged(f"P Step 1: a {TAG}\n {TAG}", "+", "+"), "step 1 is ''"),
    (tagged(f"P Step 1: a {TAG}\nb", "+"), "expected one after every step"),
    ({"input": f"Step 1: 2 {TAG}", "label": "Step 1: 2 +"}, "no 'Step 1:' after the problem"),
    ({**SHEPHERD, "task": "a task"}, "field 'task' is 'a task'"),
    ({**SHEPHERD, "task": 5}, "field 'task' is 5"),
    ({**WHOLE, "question": None}, "is of no known format"),
    ({**WHOLE, "label": {}}, "label: field 'steps' is missing"),
    ({**WHOLE, "label": {"steps": [None]}}, "label: step 0 is None"),
    ({**WHOLE, "label": {"steps": [[]]}}, "label: step 0 is []"),
    (labelled(stage(rated("", 1))), "step 0, completion 0: field 'text' is ''"),
    (labelled(stage(rated("a", 1), chosen=-1)), "'chosen_completion' is -1"),
    (labelled(stage(rated("a", 1), chosen=True)), "'chosen_completion' is True"),  # type: ignore[arg-type]
    (labelled({"chosen_completion": 0}), "it has 0 completions"),
    (labelled(stage(rated("a", 1), human=[1], chosen=None)), "human_completion: field 'text' is [1]"),
]


@pytest.mark.parametrize(("row", "reason"), UNREADABLE)
def test_a_row_that_cannot_be_read_is_left_out_counted_and_named(tmp_path: Path, row: object, reason: str) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join((json.dumps(TRL), text, json.dumps(WHOLE))) + "\n")
    with pytest.warns(Notice) as caught:
        done = convert(ConvertConfig(out=tmp_path / "t.jsonl"), path)
    assert (done.rows, done.solutions, done.left_out) == (3, 2, {converters.UNREADABLE: 1})
    assert [r.id for r in rollouts.read(done.out)] == ["r-0", "r-2"]  # numbered by their place in the file
    (fault,) = done.unreadable
    assert fault.startswith(f"{path} line 2")
    assert reason in fault
    (line,) = [str(w.message) for w in caught]
    assert line == f"{path}: 1 of 3 rows cannot be read and are left out; --strict refuses them: {fault}"
    assert "\n" not in line


@pytest.mark.parametrize(("row", "reason"), UNREADABLE)
def test_strict_refuses_and_writes_nothing(tmp_path: Path, row: object, reason: str) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join((json.dumps(TRL), text)) + "\n")
    with pytest.raises(UserError) as caught:
        convert(ConvertConfig(out=tmp_path / "t.jsonl", strict=True), path)
    assert reason in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_the_first_few_are_named_and_all_are_counted(tmp_path: Path) -> None:
    path = rows(tmp_path, TRL, *({"row": n} for n in range(8)))
    with pytest.warns(Notice, match=r"8 of 9 rows .* line 2: .* line 6: .*; \.\.\.$"):
        done = convert(ConvertConfig(out=tmp_path / "t.jsonl"), path)
    assert done.left_out == {converters.UNREADABLE: 8}
    assert [fault.split(" line ")[1][0] for fault in done.unreadable] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_of_which_no_row_can_be_read_is_refused(tmp_path: Path, count: int) -> None:
    path = rows(tmp_path, *[{"x": 1}] * count)
    with pytest.raises(
        UserError, match=rf"no labelled solution \({count} x row that cannot be read; the first is .*line 1: "
    ):
        convert(ConvertConfig(out=tmp_path / "t.jsonl"), path)
    assert not (tmp_path / "t.jsonl").exists()


def test_a_list_with_an_element_that_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([TRL, 7, None, WHOLE]))
    with pytest.warns(Notice, match=r"r\.json row 2 is 7; .*r\.json row 3 is missing; expected a list of objects"):
        assert convert(ConvertConfig(out=tmp_path / "t.jsonl"), path).solutions == 2


def test_a_file_that_is_no_list_of_rows_is_refused_as_a_whole(tmp_path: Path) -> None:
    rows(tmp_path, TRL, name="a.jsonl")
    for text in ("[{", "{}"):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UserError, match=r"b\.json: "):
            convert(ConvertConfig(out=tmp_path / "out" / "t.jsonl"), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("default")
def test_through_the_command_line(tmp_path: Path) -> None:
    path, out = rows(tmp_path, TRL, {"x": 1}, WHOLE), tmp_path / "t.jsonl"
    command = ["convert", str(path), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--strict"])
    assert (done.exit_code, done.stdout, out.exists()) == (2, "", False)
    assert done.stderr.startswith(f"error: {path} line 2: is of no known format")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"left_out: {converters.UNREADABLE} 1\nunreadable: \n  {path} line 2: is of no known" in done.stdout
    assert f"note: {path}: 1 of 3 rows cannot be read" in done.stderr
    assert done.stderr.count("\n") == 1
    out.unlink()
    output = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (output["rows"], output["solutions"], output["left_out"]) == (3, 2, {converters.UNREADABLE: 1})
    assert output["unreadable"][0].startswith(f"{path} line 2: ")
    out.unlink()
    done = CliRunner().invoke(app, ["convert", str(rows(tmp_path, TRL)), "--out", str(out)])
    assert (done.exit_code, done.stderr, "unreadable: none" in done.stdout) == (0, "", True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", " ", "a", "+", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "rating", "steps"]), inner),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_value_in_a_row_is_a_surprise(tmp_path: Path, draw: st.DataObject) -> None:
    """One value anywhere in a good row is another: the row is read and written whole, or left out with a reason."""
    row = json.loads(json.dumps(draw.draw(st.sampled_from([WHOLE, WRONG, SHEPHERD, TRL]))))
    place: Any = row
    while True:
        key = draw.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or draw.draw(st.booleans()):
            break
        place = place[key]
    place[key] = draw.draw(JSON)
    path = rows(tmp_path, TRL, row)
    faults: list[str] = []
    solutions, _, readable = read(path, alternatives=True, on_unreadable=faults.append)
    assert readable + len(faults) == 2
    assert all(fault.startswith(f"{path} line 2: ") and "\n" not in fault for fault in faults)
    rollouts.write(tmp_path / "t.jsonl", solutions)
    assert rollouts.read(tmp_path / "t.jsonl") == solutions
    assert all(not r.step_labels or len(r.step_labels) == len(r.steps) for r in solutions)


PIECE = st.text(st.sampled_from(f"ab{TAG} +-?1.\n"), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "ки" not in text and not text.strip().startswith((":", "."))
)


@given(PIECE, st.lists(st.tuples(PIECE, st.sampled_from("+-")), min_size=1, max_size=5), st.booleans())
def test_math_shepherds_steps_come_back(problem: str, steps: list[tuple[str, str]], newer: bool) -> None:
    """Whatever signs and dots a step holds of its own."""

    def text(marks: list[str]) -> str:
        lines = [f"Step {k}: {step} {mark}\n" for k, ((step, _), mark) in enumerate(zip(steps, marks, strict=True), 1)]
        return f"{problem} {''.join(lines)}"

    signs = [f"{TAG} {sign}" if newer else sign for _, sign in steps]
    row = {"input": text([f"{TAG} ?" if newer else TAG] * len(steps)), "label": text(signs)}
    solution = math_shepherd.solution(row, "row")
    assert solution.prompt == problem.strip()
    assert solution.steps == tuple(step.strip() for step, _ in steps)
    assert solution.step_labels == tuple(float(sign == "+") for _, sign in steps)
