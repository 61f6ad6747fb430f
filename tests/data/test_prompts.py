"""Prompts: published sets under names that cannot be confused, our own rows, reasoning-gym; all offline."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from prmbench.core.records import UserError
from prmbench.data.prompts import BOXED, Prompt, load


def rows(tmp_path: Path, items: list[object], name: str = "mine.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def published(name: str, count: int) -> list[object]:
    return [
        {
            "data_source": name,
            "prompt": [{"role": "user", "content": f"{name} {k}"}],
            "reward_model": {"ground_truth": f"{k}.0"},
            "extra_info": {"index": "0"},
        }
        for k in range(count)
    ]


def test_our_own_rows(tmp_path: Path) -> None:
    path = rows(
        tmp_path,
        [
            {"id": "a", "prompt": "P", "answer": "4", "subset": "s", "verifier": "exact", "metadata": {"k": 1}},
            {"problem": "Q", "answer": 5},
            {"prompt": [{"role": "user", "content": "R"}], "answer": "x"},
        ],
    )
    assert load(path) == [
        Prompt("a", "P", "4", "s", "exact", {"k": 1}),
        Prompt("mine-1", "Q" + BOXED, "5", "mine"),
        Prompt("mine-2", "R", "x", "mine"),
    ]


GOOD = {"prompt": "P", "answer": "4"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "P"}, "field 'answer' is missing"),
        ({"prompt": "P", "answer": " "}, "field 'answer' is ' '"),
        ({"prompt": "P", "answer": True}, "field 'answer' is True"),
        ({"prompt": "P", "answer": ["4"]}, "field 'answer' is"),
        ({"answer": "4"}, "no field 'prompt', so: field 'problem' is missing"),
        ({**GOOD, "prompt": ""}, "field 'prompt' is ''"),
        ({**GOOD, "prompt": [{"role": "system", "content": "s"}]}, "one turn of role user"),
        ({**GOOD, "verifier": "human"}, "choose from math, exact, gym"),
        ({**GOOD, "metadata": "m"}, "expected an object"),
        (
            {"data_source": "d", "prompt": [{"role": "user", "content": "P"}], "reward_model": {}},
            "ground_truth' is missing",
        ),
    ],
)
def test_what_cannot_be_used_names_file_and_row(tmp_path: Path, row: object, message: str) -> None:
    path = rows(tmp_path, [GOOD, row])
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} line 2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "written", ["0.00001", "1e16", "3.14159265358979323846", "12345678901234567890", "2.50", "-0.0"]
)
def test_numbers_keep_the_digits_they_were_written_with(tmp_path: Path, written: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "P", "answer": {written}}}', encoding="utf-8")
    assert load(path)[0].gold == written


def test_ids_occur_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="id 'a' occurs twice"):
        load(rows(tmp_path, [{**GOOD, "id": "a"}] * 2))


def test_names_that_fit_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="subset 'my set': use letters"):
        load(rows(tmp_path, [{**GOOD, "subset": "my set"}]))


@pytest.mark.parametrize(
    ("name", "count", "key"),
    [
        ("aimo-amc", 83, "amc83"),
        ("aimo-amc", 40, "amc23"),
        ("amc", 40, "amc23"),
        ("aimo-amc", 12, "amc83-part"),
        ("aimo-aime2024", 90, "aime22-24"),
        ("aimo-aime2024", 30, "aime24"),
        ("own-set", 3, "own-set"),
    ],
)
def test_one_published_name_for_two_sets_is_told_apart_by_size(tmp_path: Path, name: str, count: int, key: str) -> None:
    loaded = load(rows(tmp_path, published(name, count)))
    assert {p.subset for p in loaded} == {key}
    assert [p.id for p in loaded] == [f"{key}-{k}" for k in range(count)]  # the index of the rows is not unique
    assert loaded[-1].gold == f"{count - 1}.0"


def test_a_set_under_the_name_of_a_smaller_one_is_refused(tmp_path: Path) -> None:
    path = rows(tmp_path, [{**GOOD, "subset": "amc23"}] * 83)
    with pytest.raises(UserError, match="'amc23' stands for a set of 40 problems, here it has 83"):
        load(path)


def test_subsets_and_limits(tmp_path: Path) -> None:
    items = [{**GOOD, "subset": "ab"[k % 2], "id": str(k)} for k in range(20)]
    path = rows(tmp_path, items)
    assert [p.id for p in load(path, limit=3)] == ["0", "6", "12", "1", "7", "13"]
    assert [p.id for p in load(path, ("b",), 2)] == ["1", "11"]
    assert len(load(path, limit=99)) == 20
    with pytest.raises(UserError, match=r"--subset c: .* has a, b"):
        load(path, ("c",))
    with pytest.raises(UserError, match="--limit is 0"):
        load(path, limit=0)


def test_no_prompt_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prompt"):
        load(rows(tmp_path, []))


def test_the_published_sets(shared_data: Path) -> None:
    loaded = load(shared_data / "policy_eval" / "math_benchmarks.parquet")
    assert Counter(p.subset for p in loaded) == {
        **{"olympiadbench-en": 675, "math500": 500, "minerva": 272},
        **{"aime22-24": 90, "amc83": 83},
    }
    assert all(p.text.endswith(BOXED) and p.gold for p in loaded)
    assert len(load(shared_data / "policy_eval" / "math_benchmarks.parquet", limit=20)) == 100


def test_math500_is_the_same_set_in_both_files(shared_data: Path) -> None:
    levels = load(shared_data / "policy_eval" / "math500_with_levels.jsonl")
    published = load(shared_data / "policy_eval" / "math_benchmarks.parquet", ("math500",))
    assert {p.text for p in levels} == {p.text for p in published}
    assert {p.subset for p in levels} == {"math500"}
    assert Counter(p.metadata["level"] for p in levels) == {1: 43, 2: 90, 3: 105, 4: 128, 5: 134}


def test_reasoning_gym_by_name() -> None:
    gym = pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra verify)")
    loaded = load(Path("gym:chain_sum,gcd,size=4,seed=7"))
    assert [p.id for p in loaded] == [f"{task}-{k}" for task in ("chain_sum", "gcd") for k in range(4)]
    assert load(Path("gym:gcd,size=4,seed=7")) == loaded[4:]
    assert load(Path("gym:gcd,size=4,seed=8")) != loaded[4:]
    assert [p.id for p in load(Path("gym:gcd,size=4,seed=7"), limit=2)] == ["gcd-0", "gcd-2"]
    for p in loaded:
        assert (p.verifier, p.metadata["source_dataset"]) == ("gym", p.subset)
        score = gym.get_score_answer_fn(p.subset)
        assert score(p.gold, {"question": p.text, "answer": p.gold, "metadata": p.metadata}) == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gym:", "names no task"),
        ("gym:size=3", "names no task"),
        ("gym:no_such_task", "no task 'no_such_task'"),
        ("gym:gcd,size=many", "size is 'many'; expected a whole number"),
        ("gym:gcd,colour=3", "reasoning-gym refuses it"),
        ("gym:chain_sum,size=0", "reasoning-gym refuses it"),
        ("gym:gcd,size=0", "holds no prompt"),
        ("gym:gcd,n_queens", "its scorer evaluates the answer or the data as Python"),
        ("gym:countdown", "its scorer evaluates the answer with sympy's parser"),
        ("gym:rubiks_cube", "its scorer has not been read"),
    ],
)
def test_what_reasoning_gym_does_not_have(spec: str, message: str) -> None:
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra verify)")
    with pytest.raises(UserError, match=message):
        load(Path(spec))
