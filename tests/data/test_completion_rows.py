"""Rows of other tools as rollouts: which field is the prompt, the completion and the reference answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prmbench.core.records import UserError
from prmbench.data import field_names, files, row_kinds
from prmbench.data.rollouts import Rollout, from_other_tools, read

P, A, B = "What is 2+3?", "It is \\boxed{5}.", "It is \\boxed{6}."
USER = {"role": "user", "content": P}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rollouts(row: dict[str, Any], names: str = "") -> list[Rollout]:
    fields = field_names.parse(names)
    return from_other_tools(field_names._renamed(row, fields) if fields else row, "r.jsonl line 1")


ONE = [
    {"question": P, "response": A, "answer": "5"},
    {"problem": P, "completion": A, "gold": "5"},
    {"prompt": P, "output": A, "ground_truth": "5"},
    {"query": P, "generation": A, "reference": "5"},
    {"instruction": P, "input": "", "output": A, "expected_answer": 5},
    {"input": P, "output": A, "target": "5"},
    {"problem": P, "solution": A, "final_answer": "5"},
    {"question": P, "answer": A, "ground_truth": "5"},
    {"prompt": P, "generated_text": A, "answer": ["5"]},
    {"prompt": [USER], "completion": [said(A)], "answer": "5"},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, USER],
        "completions": [[said(A)]],
        "solution": "no",
        "answer": "5",
    },
    {"messages": [USER, said(A)], "answer": "5"},
    {"conversations": [{"from": "human", "value": P}, {"from": "gpt", "value": A}], "answer": "5"},
    {
        "prompt": [USER],
        "data_source": "openai/gsm8k",
        "reward_model": {"ground_truth": "5", "style": "rule"},
        "response": A,
    },
    {"prompt": P, "outputs": [{"index": 0, "text": A, "finish_reason": "stop"}], "answer": "5"},
    {"doc_id": 1, "doc": {"question": P, "answer": "#### 5"}, "target": "5", "resps": [[A]], "filtered_resps": ["5"]},
    {
        "question": P,
        "gt": "5",
        "answer": "text #### 5",
        "solution": "text",
        "code": [A],
        "pred": ["5"],
        "score": [True],
    },
    {"prompt": P, "choices": [{"message": said(A), "finish_reason": "stop"}], "answer": "5"},
    {"question": P, "response": {"body": {"choices": [{"message": said(A)}]}}, "answer": "5"},
    {"question": P, "responses": [{"response": A}], "answer": "5"},
    {"question": P, "response": [{"type": "text", "text": A}], "answer": "5"},
    {"prompt": P, "problem": P, "question": f" {P} ", "response": A, "gold": 5, "ground_truth": "5"},
    {"question": P, "prompt": [USER], "response": A, "solution": "Reference text.", "answer": "5"},
]


@pytest.mark.parametrize("row", ONE, ids=[", ".join(row) for row in ONE])
def test_a_completion_is_found_under_every_usual_name(row: dict[str, Any]) -> None:
    (rollout,) = rollouts(row)
    assert (rollout.prompt.strip(), rollout.completion, rollout.gold) == (P, A, "5")


@pytest.mark.parametrize(
    "row",
    [
        {"question": P, "responses": [A, B], "answer": "5"},
        {"problem": P, "completions": [A, B], "answers": ["5", "5"]},
        {"prompt": P, "outputs": [{"text": A}, {"text": B}], "gold": "5"},
        {"prompt": [USER], "completions": [[said(A)], [said(B)]], "ground_truth": "5"},
        {"question": P, "answers": [A, B], "reference_answer": "5"},
        {"question": P, "samples": [said(A), said(B)], "answer": "5"},
        {"question": P, "generations": [{"content": A}, {"message": said(B)}], "answer": "5"},
    ],
)
def test_a_list_is_a_completion_each_in_its_order(row: dict[str, Any]) -> None:
    assert [(r.prompt, r.completion, r.gold) for r in rollouts(row)] == [(P, A, "5"), (P, B, "5")]


def test_outcomes_and_ends_belong_to_their_completion() -> None:
    listed = {"question": P, "responses": [A, B], "answer": "5", "correct": [True, False]}
    assert [r.outcome for r in rollouts(listed)] == [1, 0]
    objects = [{"text": B, "is_correct": False, "finish_reason": "length"}, {"text": A, "is_correct": 1}]
    assert [(r.outcome, r.finish) for r in rollouts({"prompt": P, "outputs": objects})] == [(0, "length"), (1, "")]
    assert rollouts({"question": P, "response": A, "correct": 0.5})[0].outcome is None


def test_ids_of_rows_stay_and_completions_are_numbered() -> None:
    assert [r.id for r in rollouts({"id": 7, "question": P, "responses": [A, B]})] == ["7/0", "7/1"]
    assert [r.id for r in rollouts({"unique_id": "a", "question": P, "response": A})] == ["a"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "P", "question": "Q", "response": A}, "--fields prompt=prompt or --fields prompt=question"),
        ({"prompt": "P", "response": A, "output": B}, "--fields completion=response or --fields completion=output"),
        ({"prompt": "P", "response": A, "gold": "1", "target": "2"}, "--fields answer=gold or --fields answer=target"),
        ({"instruction": "Solve.", "input": P, "output": A}, "--fields prompt=instruction or --fields prompt=input"),
        ({"question": P, "solution": A, "answer": "5", "gold": "5"}, "=solution or --fields completion=answer"),
        ({"question": P, "answer": A}, "if 'answer' is what a model wrote: --fields completion=answer"),
        ({"response": A, "answer": "5"}, "--fields prompt=..."),
        ({"custom_id": "1", "response": {"body": {"choices": [{"message": said(A)}]}}}, "--fields prompt=..."),
        ({"question": P, "responses": [A, B], "answers": ["5", "6"]}, "2 different ones for 2 completions"),
        ({"question": P, "response": A, "answers": ["5", "6"]}, "2 different ones"),
        ({"question": P, "responses": [A, B], "correct": [1]}, "1 outcomes for 2 completions"),
        ({"question": P, "responses": []}, "neither 'completion'"),
        ({"question": P, "responses": [A, 5]}, "field 'responses', entry 2 is 5"),
        ({"question": P, "response": 5}, "field 'response' is 5"),
        ({"question": P, "response": {"logprobs": 1}}, "field 'response': has no text"),
        ({"prompt": [USER, said(A), USER], "response": B}, "chat with 2 user turns"),
        ({"prompt": [USER], "completion": [said(A), USER, said(B)]}, "chat of 3 turns"),
        ({"prompt": ["a", "b"], "response": A}, "expected a text"),
        ({"question": P, "response": A, "answer": {"value": 5}}, "expected an answer as text or number"),
        ({"question": "half \ud800", "response": A}, "valid Unicode"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_way_out(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        rollouts(row)
    assert str(caught.value).startswith("r.jsonl line 1: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "names", "answer"),
    [
        ({"prompt": "rendered", "question": P, "response": A, "answer": "5"}, "prompt=question", "5"),
        ({"q": P, "text": A, "label": "5"}, "prompt=q,completion=text,answer=label", "5"),
        ({"question": P, "answer": A}, "completion=answer", ""),
        ({"question": P, "answer": A, "extra": {"gold": 5}}, "completion=answer,gold=extra.gold", "5"),
        ({"meta": {"task": {"q": P}}, "out": [{"text": A}], "answer": "5"}, "question=meta.task.q, response=out", "5"),
        ({"question": P, "response": A, "reward_model": {"ground_truth": "9"}, "a": "5"}, "answer=a", "5"),
        ({"a.b": P, "response": A, "answer": "5"}, "prompt=a.b", "5"),
    ],
)
def test_fields_says_what_names_do_not(row: dict[str, Any], names: str, answer: str) -> None:
    (rollout,) = rollouts(row, names)
    assert (rollout.prompt, rollout.completion, rollout.gold) == (P, A, answer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question", "write it as kind=name"),
        ("prompt=", "write it as kind=name"),
        ("promt=question", "did you mean prompt?"),
        ("zzz=question", "choose from prompt, completion, answer"),
        ("prompt=a,question=b", "names prompt twice"),
    ],
)
def test_a_wrong_fields_option_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        field_names.parse(text)


def test_a_field_that_no_row_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"question": P, "response": A}) + "\n")
    with pytest.raises(UserError, match="no row has the field 'text'; the rows have question, response"):
        read(path, field_names.parse("completion=text"))


def test_lines_in_a_json_file_are_told_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}\n{"x": 2}\n')
    with pytest.raises(UserError, match=r"if every line is a row, name it \.jsonl"):
        files.read_rows(tmp_path / "a.json")


def test_rows_are_counted_from_one_in_every_format(tmp_path: Path) -> None:
    """Blank lines of a jsonl file count, as an editor counts them."""
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    (tmp_path / "a.json").write_text('[{"x": 1}, {"x": 2}]')
    assert [place.split(" ", 1)[1] for place, _ in files.located_rows(tmp_path / "a.jsonl")] == ["line 1", "line 3"]
    assert [place.split(" ", 1)[1] for place, _ in files.located_rows(tmp_path / "a.json")] == ["row 1", "row 2"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"question": {"problem": "P"}, "label": {"steps": []}}, "prm800k"),
        ({"input": "P Step 1: a ки", "label": "P Step 1: a +", "task": "GSM8K"}, "math_shepherd"),
        ({"prompt": "P", "completions": ["a"], "labels": [True]}, "trl"),
        ({"prompt": "P", "completions": ["a"], "labels": [True], "answer": "5"}, "completions"),
        ({"problem": "P", "steps": ["a"], "label": 0}, "traces"),
        ({"prompt": "P", "steps": ["a"], "step_labels": [1.0]}, "traces"),
        ({"problem": "P", "steps": ["a"]}, "solutions"),
        ({"problem": "P", "solution": "a"}, "solutions"),
        ({"problem": "P", "solution": "a", "answer": "5"}, "prompts"),
        ({"prompt": "P", "completion": "a", "outcome": 1}, "rollouts"),
        ({"question": "P", "responses": ["a"], "answer": "5"}, "completions"),
        ({"instruction": "P", "output": "a"}, "completions"),
        ({"messages": [USER, said(A)]}, "completions"),
        ({"question": "P", "answer": "5"}, "prompts"),
        ({"chosen": [USER], "rejected": [USER]}, "training"),
        ({"modified_process": ["a"]}, "prmbench"),
        ({"values": [0.1], "tokens": [1]}, "scores"),
        ({"x": 1}, ""),
    ],
)
def test_the_kind_of_a_row(row: dict[str, Any], kind: str) -> None:
    assert row_kinds.kind_of(row) == kind


def test_labelled_steps_keep_their_labels_under_another_name_of_the_problem(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"question": P, "steps": ["a", "b"], "label": 1, "answer": "5"}) + "\n")
    (rollout,) = read(path)
    assert (rollout.prompt, rollout.steps, rollout.first_error) == (P, ("a", "b"), 1)
