"""Contamination: hand-made positives and near-misses, a slow implementation, every form of file, the shared data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prmbench.config import ContaminationConfig
from prmbench.core.records import Notice, UserError
from prmbench.data import contamination, problems
from prmbench.data.contamination import (
    Match,
    exact_matches,
    find_matches,
    matches_within,
    overlapping_matches,
    prepare_text,
)
from prmbench.data.problems import Counts, Pair, report_contamination, without_shared


def spelled(count: int, start: int = 0) -> list[str]:
    """Different words without digits: aa, ab, ac, ..."""
    return [chr(97 + k // 26) + chr(97 + k % 26) for k in range(start, start + count)]


def joined(*parts: list[str]) -> contamination.ComparisonText:
    return prepare_text(" ".join(word for part in parts for word in part))


# --- what counts as the same ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find $x$.", "find x"),
        ("Find $x + 1$ now", "Find \\( x+1 \\) now"),
        ("Let \\left( a , b \\right) be", "Let (a,b) be"),
        ("Is $\\dfrac{1}{2}$ it?", "Is \\frac{1}{2} it?"),
        ("Sum 1, 2, \\ldots, 9", "Sum 1,2,\\dots,9"),
        ("Half of 200,\\!000\n\nplease", "half of  200,000 please"),
        ("\\[a = b\\]", "$$a\\quad=\\;b$$"),
        ("\uff26ind \u00bd", "find 1\u20442"),
        ("\\begin{align*} a &= b \\\\ c &= d \\end{align*}", "a=b c=d"),
    ],
)
def test_equal_texts(one: str, other: str) -> None:
    assert exact_matches([prepare_text(one)], [prepare_text("Else"), prepare_text(other)]) == [
        Match(0, 1, "exact", 1.0)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find 1 2", "Find 12"),
        ("Find x + 1", "Find x - 1"),
        ("Find x", "Find y"),
        ("\\leftarrow a", "arrow a"),
        ("a b", "ab"),
    ],
)
def test_texts_that_differ(one: str, other: str) -> None:
    assert exact_matches([prepare_text(one)], [prepare_text(other)]) == []


def test_words_are_letters_or_digits() -> None:
    assert prepare_text("Find $2x^{10}$, \\dfrac{a}{b}_1!").words == ("find", "2", "x", "10", "frac", "a", "b", "1")


# --- n-grams ------------------------------------------------------------------------------------------------


def test_twelve_shared_words_of_thirteen_are_a_miss_and_thirteen_a_match() -> None:
    thirteen = spelled(13)
    missed = [joined(thirteen[:12], ["zz"]), joined(["zz"], thirteen[1:]), joined(thirteen[:6], ["zz"], thirteen[7:])]
    assert overlapping_matches([joined(thirteen)], missed) == []
    assert overlapping_matches([joined(thirteen)], [joined(["zz"], thirteen, ["zy"])]) == [Match(0, 0, "overlap", 1.0)]


def test_half_of_the_ngrams_is_enough_and_less_is_not() -> None:
    long = spelled(112)  # 100 n-grams
    half, less = joined(long[:62]), joined(long[:61])
    assert overlapping_matches([joined(long)], [less, half]) == [Match(0, 1, "overlap", 0.5)]
    assert overlapping_matches([joined(long)], [less], min_share=0.49) == [Match(0, 0, "overlap", 0.49)]
    apart = joined(long[:37], ["zz"], long[75:])  # 25 and 25
    assert overlapping_matches([joined(long)], [apart]) == [Match(0, 0, "overlap", 0.5)]


def test_the_share_is_of_one_training_problem() -> None:
    long = spelled(112)
    assert overlapping_matches([joined(long)], [joined(long[:56]), joined(long[56:])]) == []


def test_the_share_is_the_problems_own() -> None:
    short, long = joined(spelled(20)), joined(spelled(80))
    assert overlapping_matches([short], [long]) == [Match(0, 0, "overlap", 1.0)]
    assert overlapping_matches([long], [short]) == []


def test_an_ngram_that_is_said_twice_counts_once() -> None:
    again = joined(spelled(13), spelled(13))  # 14 n-grams, 13 of them different
    assert overlapping_matches([again], [joined(spelled(13))]) == []
    assert overlapping_matches([again], [joined(spelled(13))], min_share=1 / 13) == [Match(0, 0, "overlap", 1 / 13)]
    assert overlapping_matches([joined(spelled(40))], [joined(spelled(14), spelled(14))]) == []


def test_a_short_problem_is_one_ngram() -> None:
    nine = spelled(9)
    assert overlapping_matches([joined(nine)], [joined(["zz"], nine), joined(nine[:8])]) == [
        Match(0, 0, "overlap", 1.0)
    ]
    eight, seven = joined(spelled(8)), joined(spelled(7))
    assert overlapping_matches([eight], [joined(nine)]) == [Match(0, 0, "overlap", 1.0)]
    assert overlapping_matches([seven], [joined(nine)]) == []
    assert exact_matches([seven], [seven]) == [Match(0, 0, "exact", 1.0)]
    assert overlapping_matches([joined(spelled(4))], [joined(nine)], ngram=3) == [Match(0, 0, "overlap", 1.0)]


def test_ngrams_do_not_reach_from_one_text_into_the_next() -> None:
    words = spelled(20)
    assert overlapping_matches([joined(words)], [joined(words[:10]), joined(words[10:])]) == []


def test_more_texts_than_are_looked_up_at_once() -> None:
    others = [joined(spelled(20, 30))] * 1100
    others[501] = others[1003] = joined(spelled(20))
    assert [m.other for m in overlapping_matches([joined(spelled(20))], others)] == [501, 1003]


def test_equal_texts_are_not_overlaps_too() -> None:
    long = spelled(30)
    assert find_matches([joined(long)], [joined(long), joined(long, ["zz"])]) == [
        Match(0, 0, "exact", 1.0),
        Match(0, 1, "overlap", 1.0),
    ]


def test_twins_come_once() -> None:
    long = spelled(40)
    assert matches_within([joined(spelled(20, 100)), joined(long), joined(long[:26])]) == [Match(1, 2, "overlap", 1.0)]


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=14), max_size=6)


@settings(deadline=None, max_examples=150)
@given(TEXTS, TEXTS, st.integers(1, 5), st.sampled_from([0.2, 1 / 3, 0.5, 1.0]))
def test_it_is_the_slow_way(some: list[list[str]], others: list[list[str]], n: int, least: float) -> None:
    def grams(words: list[str], size: int) -> set[str]:
        return {"".join(words[k : k + size]) for k in range(len(words) - size + 1)}

    expected = []
    for i, one in enumerate(some):
        size = min(n, len(one))
        for j, other in enumerate(others):
            mine = grams(one, size) if len(one) >= n else set()
            share = len(mine & grams(other, size)) / len(mine) if mine else 0.0
            expected += [Match(i, j, "overlap", share)] if share >= least else []
    assert overlapping_matches([joined(w) for w in some], [joined(w) for w in others], n, least) == expected


# --- files --------------------------------------------------------------------------------------------------


def rows(tmp_path: Path, *items: object, name: str) -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


ASKED = "A farmer has nine cows and buys four more. How many cows does the farmer have after that?"
TURNS = [{"role": "system", "content": "S"}, {"role": "user", "content": ASKED}, {"role": "assistant", "content": "13"}]


@pytest.mark.parametrize(
    "row",
    [
        {"id": "x", "problem": ASKED, "steps": ["13"], "label": -1},
        {"unique_id": "x", "problem": ASKED, "answer": "13"},
        {"id": "x", "prompt": ASKED, "completion": "13"},
        {"id": "x", "prompt": TURNS[1:2], "reward_model": {"ground_truth": "13"}},
        {"id": "x", "conversation": TURNS, "label": 1},
        {"id": "x", "chosen": TURNS, "rejected": TURNS},
        {"idx": "x", "original_question": ASKED, "modified_question": "Else?", "question": "Else?"},
        {"id": "x", "question": ASKED, "answer": "13"},
        {"id": "x", "question": {"problem": ASKED}, "label": {"steps": []}},
        {"id": "x", "input": f"{ASKED} Step 1: 13. ки", "label": f"{ASKED} Step 1: 13. +"},
        {"id": "x", "prompt": ASKED, "completions": ["13"], "labels": [1]},
    ],
)
def test_the_problem_of_every_form_of_row(tmp_path: Path, row: object) -> None:
    (problem,) = problems.read(rows(tmp_path, row, name="mine.jsonl"))
    assert (problem.id, problem.subset, problem.text) == ("x", "mine", prepare_text(ASKED))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"steps": ["a"]}, "has no problem; expected one of problem, prompt"),
        ({"problem": " "}, "field 'problem' is ' '"),
        ({"conversation": TURNS[2:]}, "conversation, user turn: field 'content' is missing"),
    ],
)
def test_a_row_without_a_problem(tmp_path: Path, row: object, message: str) -> None:
    path = rows(tmp_path, {"problem": "P"}, row, name="mine.jsonl")
    with pytest.raises(UserError) as caught:
        problems.read(path)
    assert str(caught.value).startswith(f"{path} line 2: ")
    assert message in str(caught.value)


def test_instructions_that_all_share_are_no_part_of_a_problem() -> None:
    asked = [f"Say it.\n\nWhat is {k}?\n\nIn two parts.\n\nEnd with a box." for k in range(20)]
    assert without_shared(asked)[3] == "What is 3?"
    assert without_shared(asked[:19]) == asked[:19]  # too few to tell instructions from the question
    assert without_shared([*asked, "What is 20?"]) == [*asked, "What is 20?"]
    assert without_shared([f"{k}" for k in range(20)]) == [f"{k}" for k in range(20)]


def test_a_report(tmp_path: Path) -> None:
    long, reworded = " ".join(spelled(30)), " ".join(spelled(24))
    bench = rows(
        tmp_path,
        {"id": "a0", "problem": ASKED, "subset": "s"},
        {"id": "a1", "problem": ASKED.upper(), "subset": "s"},
        {"id": "b", "problem": long, "subset": "s"},
        {"id": "c", "problem": "What is 1 + 1?", "subset": "s"},
        {"id": "d", "problem": reworded, "subset": "t"},
        name="bench.jsonl",
    )
    training = rows(
        tmp_path,
        {"id": "t0", "prompt": ASKED + " "},
        {"id": "t1", "prompt": ASKED},
        {"id": "t2", "prompt": "Say it once more: " + reworded},
        name="train.jsonl",
    )
    result = report_contamination(ContaminationConfig(training, (str(bench),), out=tmp_path / "r.json"))
    assert (result.data, result.rows, result.problems) == ("train.jsonl", 3, 2)
    assert result.counts == (
        Counts("bench.jsonl", "s", rows=4, problems=3, repeated=1, exact=1, overlap=1, too_short=1),
        Counts("bench.jsonl", "t", rows=1, problems=1, repeated=1, exact=0, overlap=1, too_short=0),
    )
    assert result.pairs == (
        Pair("bench.jsonl", "s", "b", "d", "t", "repeat overlap", 1.0),
        Pair("bench.jsonl", "s", "a0", "t0", "train", "exact", 1.0),
        Pair("bench.jsonl", "s", "b", "t2", "train", "overlap", 12 / 18),
        Pair("bench.jsonl", "t", "d", "t2", "train", "overlap", 1.0),
    )
    assert json.loads((tmp_path / "r.json").read_text())["pairs"][1]["other"] == "t0"
    table = problems.report_lines(result)
    assert table[2].split() == ["s", "4", "3", "1", "1", "1", "1", "66.7%"]
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": None}, "--data is missing"),
        ({"against": ()}, "--against is missing"),
        ({"ngram": 0}, "--ngram is 0; expected at least 1"),
        ({"overlap": 0.0}, r"--overlap is 0\.0; expected above 0, at most 1"),
        ({"overlap": 1.5}, r"--overlap is 1\.5"),
        ({"data": Path("absent.jsonl")}, r"absent\.jsonl: no such file"),
        ({"out": Path("a.jsonl")}, r"--out a\.jsonl: is a file that is read"),
        ({"out": Path("b.jsonl"), "against": ("b.jsonl",)}, r"--out b\.jsonl: is a file that is read"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rows(tmp_path, {"problem": "P"}, name="a.jsonl")
    with pytest.raises(UserError, match=message):
        report_contamination(ContaminationConfig(**{"data": path, "against": (str(path),), **changed}))  # type: ignore[arg-type]


def test_what_is_known_of_the_shared_data(shared_data: Path) -> None:
    levels = shared_data / "policy_eval" / "math500_with_levels.jsonl"
    bench, preview = shared_data / "processbench", shared_data / "prmbench_preview"
    result = report_contamination(ContaminationConfig(levels, (str(bench), str(preview))))
    by = {(c.benchmark, c.subset): c for c in result.counts}
    assert [by["processbench", name].problems for name in ("gsm8k", "math", "olympiadbench")] == [375, 955, 561]
    math = by["processbench", "math"]
    assert (math.exact, math.overlap) == (108, 5)
    assert by["processbench", "gsm8k"].exact == by["processbench", "olympiadbench"].exact == 0
    assert by["prmbench_preview", "circular"].exact == 81  # its problems are PRM800K's
    same = report_contamination(
        ContaminationConfig(shared_data / "policy_eval" / "math_benchmarks.parquet", (str(levels),))
    )
    assert (same.counts[0].problems, same.counts[0].exact) == (500, 500)  # instructions taken off


def test_training_rows_without_a_problem_are_left_out_and_counted(tmp_path: Path) -> None:
    """One bad row of training data does not stop a report; a benchmark's own does, or it would be another benchmark."""
    train, bench = tmp_path / "train.jsonl", tmp_path / "bench.jsonl"
    good = [json.dumps({"problem": f"What is the sum of {n} and four more?"}) for n in range(3)]
    labels_lost = {"input": "Why is it 7 and not 8 of them? Step 1: a ки\nStep 2: b ки", "label": "nothing of it"}
    train.write_text("\n".join([*good, "{", json.dumps({"problem": " "}), json.dumps(labels_lost)]))
    bench.write_text("\n".join(good[:2]))
    config = ContaminationConfig(data=train, against=(str(bench),))
    with pytest.warns(Notice, match=r"2 of 6 rows cannot be read and are left out: .*line 4: not valid JSON.*line 5: "):
        result = problems.report_contamination(config)
    assert (result.rows, result.problems, result.left_out, result.counts[0].exact) == (4, 4, 2, 2)
    assert "4 rows, 4 distinct problems, 2 rows left out" in "\n".join(problems.report_lines(result))
    with pytest.raises(UserError, match=r"train\.jsonl line 4: not valid JSON"):
        problems.report_contamination(replace(config, data=bench, against=(str(train),)))
    train.write_text('{"problem": 3}\n')
    with pytest.raises(
        UserError, match=r"holds no problem; the first row without one is .*(line|row) 1: field 'problem' is 3"
    ):
        problems.report_contamination(config)


def test_shared_paragraphs_are_found_whatever_the_line_ends() -> None:
    texts = [f"Problem {n}?\r\n\r\nPut the answer in a box." for n in range(problems.MIN_SHARING)]
    assert problems.without_shared(texts) == [f"Problem {n}?" for n in range(problems.MIN_SHARING)]
