"""Rollouts: every schema read, round trips, what is refused and where; the published reward-model data."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prmbench.core.records import Notice, Trace, UserError, text_hash
from prmbench.data import rollout_traces
from prmbench.data.rollouts import Rollout, content_hash, read, split_completion, to_row, to_trace, write

FULL = Rollout(
    id="p/0",
    prompt="What is ½ + ½?",
    completion="Add.\n\nIt is 1.\n",
    steps=("Add.", "It is 1."),
    outcome=0,
    verdict="wrong",
    answer="1",
    gold="2",
    finish="length",
    tokens=7,
    group="p",
    subset="sums",
    first_error=0,
    step_labels=(0.25, 0.0),
)
SILENT = Rollout("p/1", FULL.prompt, outcome=0, verdict="no answer", finish="stop", tokens=1, group="p")
CRASHED = Rollout("q/0", "Q", "  \n", verdict="crash", group="q", first_error=None)


def rows(tmp_path: Path, *items: object, name: str = "r.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    written = [FULL, SILENT, CRASHED]
    write(tmp_path / name, written)
    assert read(tmp_path / name) == written


def test_equal_rollouts_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "a.parquet", "b.parquet"):
        write(tmp_path / name, [FULL, CRASHED])
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_row_leaves_out_what_is_empty_and_keeps_zeros() -> None:
    assert to_row(replace(FULL, completion="", answer="")).keys() == to_row(FULL).keys() - {"completion", "answer"}
    assert to_row(Rollout("a", "Q", outcome=0, first_error=0, steps=("s",))) == {
        **{"id": "a", "prompt": "Q", "outcome": 0, "first_error": 0},
        "steps": ["s"],
    }
    assert to_row(Rollout("a", "Q")) == {"id": "a", "prompt": "Q", "completion": ""}


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written as \.jsonl or \.parquet"):
        write(tmp_path / "a.json", [FULL])
    assert not list(tmp_path.iterdir())


def test_pointwise_rows(tmp_path: Path) -> None:
    data = rows(
        tmp_path,
        {"conversation": talk("P", "a"), "label": 1},
        {"conversation": talk("Q", "b"), "label": False},
        {"conversation": talk("P", ""), "label": 0},
    )
    p, q = text_hash("P"), text_hash("Q")
    assert read(data) == [
        Rollout(f"{p}/0", "P", "a", outcome=1, group=p),
        Rollout(f"{q}/0", "Q", "b", outcome=0, group=q),
        Rollout(f"{p}/1", "P", "", outcome=0, group=p),
    ]


def test_a_published_pair_stays_a_pair(tmp_path: Path) -> None:
    loaded = read(
        rows(
            tmp_path,
            {"chosen": talk("P", "right"), "rejected": talk("P", "wrong")},
            {"chosen": talk("P", "also right"), "rejected": talk("P", "also wrong")},
        )
    )
    assert [(r.completion, r.outcome) for r in loaded] == [
        ("right", 1),
        ("wrong", 0),
        ("also right", 1),
        ("also wrong", 0),
    ]
    assert loaded[0].group == loaded[1].group != loaded[2].group == loaded[3].group
    assert [r.id for r in loaded[:2]] == [f"{loaded[0].group}/0", f"{loaded[0].group}/1"]


def test_stepwise_rows_of_trl(tmp_path: Path) -> None:
    data = rows(tmp_path, {"prompt": "P", "completions": ["one", "two"], "labels": [True, False]})
    (rollout,) = read(data)
    assert (rollout.steps, rollout.step_labels, rollout.first_error) == (("one", "two"), (1.0, 0.0), None)


def test_processbench_rows(tmp_path: Path) -> None:
    row = {"id": "g-1", "problem": "P", "steps": ["a", "b"], "label": 1, "final_answer_correct": False}
    (rollout,) = read(rows(tmp_path, row))
    assert rollout == Rollout("g-1", "P", steps=("a", "b"), first_error=1, outcome=0, group=text_hash("P"))


def test_a_label_without_steps_is_an_outcome(tmp_path: Path) -> None:
    (rollout,) = read(rows(tmp_path, {"prompt": "P", "completion": "a", "label": True}))
    assert (rollout.outcome, rollout.first_error) == (1, None)
    (rollout,) = read(rows(tmp_path, {"prompt": "P", "completion": "a", "label": 1, "outcome": 0}))
    assert rollout.outcome == 0


def test_a_folder_is_read_file_by_file_by_name(tmp_path: Path) -> None:
    rows(tmp_path, {"prompt": "P", "completion": "second"}, name="b.jsonl")
    rows(tmp_path, {"prompt": "P", "completion": "first"}, name="a.jsonl")
    loaded = read(tmp_path)
    assert [(r.completion, r.id[-2:]) for r in loaded] == [("first", "/0"), ("second", "/1")]


GOOD = {"prompt": "P", "completion": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "P"}, "neither 'completion' nor 'steps'"),
        ({"completion": "a"}, "field 'problem' is missing"),
        ({**GOOD, "prompt": " "}, "field 'prompt' is ' '"),
        ({**GOOD, "completion": 3}, "field 'completion' is 3"),
        ({**GOOD, "completion": "\ud800"}, "valid Unicode"),
        ({**GOOD, "outcome": 2}, "field 'outcome' is 2; expected 0 or 1"),
        ({**GOOD, "outcome": "1"}, "field 'outcome' is '1'; expected 0 or 1"),
        ({**GOOD, "label": -1}, "field 'label' is -1; expected 0 or 1"),
        ({**GOOD, "finish": "eos"}, "field 'finish' is 'eos'"),
        ({**GOOD, "tokens": -1}, "field 'tokens' is -1"),
        ({**GOOD, "step_labels": [1.0]}, "one label for each of 0 steps"),
        ({"prompt": "P", "steps": []}, "at least one step"),
        ({"prompt": "P", "steps": ["a", " "]}, "step 1 is ' '"),
        (
            {"prompt": "P", "steps": ["a"], "first_error": 1},
            "field 'first_error' is 1; expected a whole number, -1 to 0",
        ),
        ({"prompt": "P", "steps": ["a"], "label": True}, "field 'label' is True"),
        ({"prompt": "P", "steps": ["a"], "step_labels": [1.5]}, "labels between 0 and 1"),
        ({"prompt": "P", "steps": ["a"], "step_labels": [0.5, 1]}, "one label for each of 1 steps"),
        ({"conversation": talk("P", "a")}, "field 'label' is missing; expected 0 or 1"),
        ({"conversation": talk("P", "a"), "label": 0.5}, "field 'label' is 0.5"),
        ({"conversation": talk(" ", "a"), "label": 1}, "conversation, user turn: field 'content'"),
        ({"conversation": talk("P", "a") + talk("P", "b"), "label": 1}, "expected one of user, then one of assistant"),
        ({"conversation": [{"role": "system", "content": "s"}, *talk("P", "a")], "label": 1}, "has the turns"),
        ({"conversation": "P", "label": 1}, "expected a list of turns"),
        ({"chosen": talk("P", "a"), "rejected": talk("Q", "b")}, "two different prompts"),
        ({"prompt": "P", "completions": ["a"], "labels": [2]}, "labels between 0 and 1"),
        ({"prompt": "P", "completions": [], "labels": []}, "at least one step"),
    ],
)
def test_what_cannot_be_used_names_file_and_row(tmp_path: Path, row: object, message: str) -> None:
    path = rows(tmp_path, GOOD, row)
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path} line 2: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({**GOOD, "id": "x"}, "id 'x' occurs twice"),
        ({**GOOD, "prompt": "Q", "group": "g"}, "group 'g' has two prompts"),
    ],
)
def test_ids_and_groups_are_unambiguous(tmp_path: Path, second: object, message: str) -> None:
    path = rows(tmp_path, {**GOOD, "id": "x", "group": "g"}, second)
    with pytest.raises(UserError, match=f"line 2: {message}"):
        read(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rollout"):
        read(rows(tmp_path))


def test_a_trace_carries_every_fact() -> None:
    wanted = Trace("p/0", FULL.prompt, FULL.steps, 0, (0.25, 0.0), 0, "p", "sums", "1", "length")
    assert to_trace(FULL) == wanted
    assert to_trace(replace(FULL, steps=())) == wanted  # the completion has the same two paragraphs
    assert to_trace(replace(FULL, steps=()), "line") == wanted
    assert to_trace(SILENT).steps == ()


@pytest.mark.parametrize(
    ("completion", "steps"),
    [
        ("Step 1: 7 + 5 = 1\n\nStep 2: ans 3", ("7 + 5 = 1", "ans 3")),
        ("Let us see.\n### Step 1\nAdd.\n**Step 2:** Stop.", ("Let us see.", "Add.", "Stop.")),
        ("1. Add\n2) Stop\n3.5 is it", ("Add", "Stop\n3.5 is it")),
        ("**Step 1: Add.** Now", ("**Step 1: Add.** Now",)),
        ("Step 1: a\n\nStep 2:", ("a",)),
        ("Step 12: Step 13: a", ("Step 13: a",)),
        ("STEP 1: a\r\nstep 2: b\rc", ("a", "b\nc")),
        # a number alone is text, wherever it stands
        ("30.", ("30.",)),
        ("30)\nis it", ("30)\nis it",)),
        ("(3)", ("(3)",)),
        ("**30.**", ("**30.**",)),
        ("So it is\n30. \nDone.", ("So it is\n30. \nDone.",)),
        ("Step 1: 30.\nStep 2:\n60.", ("30.", "60.")),
        ("1. 30\n2) 60", ("30", "60")),
        # a heading alone is not
        ("Step 3", ()),
        ("### Step 3\n**Step 4:**\n", ()),
        (" \n ", ()),
    ],
)
def test_headings_are_dropped_since_encoders_write_them(completion: str, steps: tuple[str, ...]) -> None:
    assert split_completion(completion, "numbered") == steps


def test_other_splitters_leave_headings_alone() -> None:
    assert split_completion("Step 1: a\n\nStep 2: b", "paragraph") == ("Step 1: a", "Step 2: b")


@pytest.mark.parametrize(
    ("split", "texts", "told"),
    [
        (
            "paragraph",
            ["a\nb", "c"],
            "r.jsonl: --split paragraph finds no place to cut, so every text is one step (of 1, --split line",
        ),
        ("numbered", ["a\r\rb", "c\nd"], "--split paragraph would cut 1, --split line would cut 2"),
        ("paragraph", ["a\nb", "c\r\n\r\nd"], ""),
        ("paragraph", ["a", "30."], ""),  # in one line there is no place to cut, whatever the splitter
    ],
)
def test_a_splitter_that_cuts_no_completion_says_so(
    tmp_path: Path, split: str, texts: list[str], told: str, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    path = rows(tmp_path, *({"prompt": "P", "completion": text, "outcome": k % 2} for k, text in enumerate(texts)))
    rollout_traces.from_files(path, split)
    lines = [str(w.message) for w in recwarn if w.category is Notice]
    assert len(lines) == bool(told)
    assert all(told in line for line in lines)


def test_the_hash_sees_every_field_and_the_order() -> None:
    other = [replace(FULL, outcome=1), replace(FULL, step_labels=(0.25, 0.5)), replace(FULL, completion="")]
    assert (
        len({content_hash([FULL, SILENT]), content_hash([SILENT, FULL]), *map(content_hash, ([r] for r in other))}) == 5
    )
    assert content_hash(iter([FULL])) == content_hash([replace(FULL)])


def test_published_rollouts(shared_data: Path) -> None:
    points = read(shared_data / "reward_model" / "pointwise_val.parquet")
    halves = read(shared_data / "reward_model" / "pairwise_val.parquet")
    assert Counter(r.outcome for r in points) == Counter(r.outcome for r in halves) == {1: 543, 0: 543}
    assert {(r.prompt, r.completion, r.outcome) for r in points} == {
        (r.prompt, r.completion, r.outcome) for r in halves
    }
    assert len({r.prompt for r in points}) == len({r.group for r in points}) == 260
    assert set(Counter(r.group for r in halves).values()) == {2}


def test_published_rollouts_survive_a_round_trip(shared_data: Path, tmp_path: Path) -> None:
    written = read(shared_data / "reward_model" / "pointwise_val.parquet")
    write(tmp_path / "own.parquet", written)
    write(tmp_path / "own.jsonl", written)
    assert read(tmp_path / "own.parquet") == read(tmp_path / "own.jsonl") == written


def test_published_traces(shared_data: Path) -> None:
    loaded = read(shared_data / "processbench" / "gsm8k.json")
    assert len(loaded) == 400
    assert sum(r.first_error == -1 for r in loaded) == 193
    assert all(to_trace(r).steps == r.steps for r in loaded)


def test_a_parquet_file_holds_typed_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [SILENT])
    schema = pyarrow.parquet.read_schema(tmp_path / "a.parquet")
    assert schema.field("outcome").type == pyarrow.int64()
    assert schema.field("step_labels").type == pyarrow.list_(pyarrow.float64())
    assert schema.names == list(Rollout.__dataclass_fields__)
