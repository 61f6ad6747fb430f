"""Views for training: what they keep, what they count as left out, and that row order moves no split."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from prmbench.core.records import UserError, text_hash
from prmbench.data.rollouts import Rollout, read
from prmbench.data.training_data import (
    Pair,
    completions_of_pairs,
    demonstrations,
    labelled_steps,
    preference_pairs,
    split_by_prompt,
    verified_completions,
)


def made(prompt: str, outcomes: list[int | None], text: str = "text") -> list[Rollout]:
    return [Rollout(f"{prompt}/{k}", prompt, text, outcome=y, group=prompt) for k, y in enumerate(outcomes)]


MIXED = made("a", [0, 1, 1, 0, None])
DATA = [*MIXED, *made("b", [1, 1]), *made("c", [0]), *made("d", [1, 0]), *made("e", [1], text=" \n")]


def ids(matched: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.right.id, pair.wrong.id) for pair in matched]


def test_points_have_text_and_an_outcome() -> None:
    selected, left_out = verified_completions(DATA)
    assert [r.id for r in selected] == ["a/0", "a/1", "a/2", "a/3", "b/0", "b/1", "c/0", "d/0", "d/1"]
    assert left_out == {"empty completions": 1, "rollouts not verified": 1}


def test_bare_steps_count_as_text() -> None:
    selected, left_out = verified_completions([Rollout("x", "Q", steps=("s",), outcome=1)])
    assert (len(selected), left_out) == (1, {})


def test_demonstrations_leave_out_what_is_known_to_be_wrong() -> None:
    selected, left_out = demonstrations(DATA)
    assert [r.id for r in selected] == ["a/1", "a/2", "a/4", "b/0", "b/1", "d/0"]
    assert left_out == {"empty completions": 1, "rollouts with a wrong answer": 4}


def test_one_pair_a_prompt_is_the_first_right_with_the_first_wrong() -> None:
    matched, left_out = preference_pairs(DATA)
    assert ids(matched) == [("a/1", "a/0"), ("d/0", "d/1")]
    assert left_out == {
        "empty completions": 1,
        "rollouts not verified": 1,
        "prompts with right answers only": 1,
        "prompts with wrong answers only": 1,
    }
    assert matched[0].id == "a/1 > a/0"


def test_all_pairs() -> None:
    matched, _ = preference_pairs(DATA, "all")
    assert ids(matched) == [("a/1", "a/0"), ("a/1", "a/3"), ("a/2", "a/0"), ("a/2", "a/3"), ("d/0", "d/1")]


def test_random_pairs_depend_on_seed_and_group_alone() -> None:
    draws = {ids(preference_pairs(DATA, "random", seed)[0])[0] for seed in range(40)}
    assert draws == {("a/1", "a/0"), ("a/1", "a/3"), ("a/2", "a/0"), ("a/2", "a/3")}  # both draws are independent
    for seed in range(5):
        assert ids(preference_pairs(DATA, "random", seed)[0])[0] == ids(preference_pairs(MIXED, "random", seed)[0])[0]


def test_rows_of_a_group_need_not_stand_together() -> None:
    data = [MIXED[0], *made("d", [1, 0]), MIXED[1]]
    assert ids(preference_pairs(data)[0]) == [("a/1", "a/0"), ("d/0", "d/1")]


def test_without_a_group_the_prompt_is_the_group() -> None:
    data = [Rollout("x", "Q", "t", outcome=1), Rollout("y", "R", "t", outcome=0), Rollout("z", "Q", "t", outcome=0)]
    assert ids(preference_pairs(data)[0]) == [("x", "z")]


def test_halves_are_balanced_and_unique() -> None:
    matched, _ = preference_pairs(DATA)
    assert [(r.id, r.outcome) for r in completions_of_pairs(matched)] == [
        ("a/1", 1),
        ("a/0", 0),
        ("d/0", 1),
        ("d/1", 0),
    ]
    assert len(completions_of_pairs(preference_pairs(DATA, "all")[0])) == 6


def test_hard_step_labels_end_at_the_first_error() -> None:
    steps = ("s", "t", "u", "v")
    labelled = [Rollout(f"r{e}", "Q", steps=steps, first_error=e) for e in (-1, 0, 2, 3)] + [
        Rollout("n", "Q", steps=steps)
    ]
    rows, left_out = labelled_steps(labelled)
    assert left_out == {"rollouts without step labels": 1}
    assert [row.rollout.id for row in rows] == ["r-1", "r0", "r2", "r3"]
    n = math.nan
    wanted = [(1, 1, 1, 1), (0, n, n, n), (1, 1, 0, n), (1, 1, 1, 0)]
    assert [row.labels for row in rows] == [pytest.approx(w, nan_ok=True) for w in wanted]


def test_soft_step_labels_win() -> None:
    ((row,), _) = labelled_steps([Rollout("r", "Q", steps=("s", "t"), first_error=0, step_labels=(0.5, 0.25))])
    assert row.labels == (0.5, 0.25)


MANY = [r for k in range(40) for r in made(f"prompt {k}", [1, 0, 1])]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_split_is_of_whole_prompts_whatever_their_order(fraction: float) -> None:
    train, held = split_by_prompt(MANY, fraction, 3)
    assert [r.id for r in sorted(train + held, key=lambda r: r.id)] == sorted(r.id for r in MANY)
    assert len({r.prompt for r in held}) == 40 * fraction
    assert not {r.prompt for r in train} & {r.prompt for r in held}
    mixed = random.Random(0).sample(MANY, len(MANY))
    assert {r.id for r in split_by_prompt(mixed, fraction, 3)[1]} == {r.id for r in held}
    assert {r.id for r in split_by_prompt(MANY, fraction, 4)[1]} != {r.id for r in held}


def test_a_split_keeps_the_order_and_ignores_the_groups() -> None:
    assert split_by_prompt(MANY, 0.0, 0) == (MANY, [])
    train, _ = split_by_prompt(MANY, 0.3, 0)
    assert train == [r for r in MANY if r in train]
    same = [Rollout("x", "Q", group="g"), Rollout("y", "Q", group="h"), Rollout("z", "R", group="i")]
    train, held = split_by_prompt(same, 0.5, 0)
    assert {len(train), len(held)} == {1, 2}


def test_no_part_is_left_empty() -> None:
    few = made("a", [1, 0]) + made("b", [1])
    for fraction in (0.01, 0.99):
        assert all(split_by_prompt(few, fraction, 0))
    with pytest.raises(UserError, match="one prompt only"):
        split_by_prompt(made("a", [1, 0]), 0.1, 0)


def test_published_pairs(shared_data: Path) -> None:
    both = read(shared_data / "reward_model" / "pairwise_val.parquet")
    for how in ("one", "all", "random"):
        matched, left_out = preference_pairs(both, how, 0)
        assert (len(matched), left_out) == (543, {})
        assert all(p.right.prompt == p.wrong.prompt and (p.right.outcome, p.wrong.outcome) == (1, 0) for p in matched)
    assert completions_of_pairs(preference_pairs(both)[0]) == both


def test_published_rollouts_in_views(shared_data: Path) -> None:
    data = read(shared_data / "reward_model" / "pointwise_val.parquet")
    assert (len(verified_completions(data)[0]), verified_completions(data)[1]) == (1086, {})
    assert [len(preference_pairs(data, how)[0]) for how in ("one", "random", "all")] == [260, 260, 1573]
    train, held = split_by_prompt(data, 0.1, 0)
    assert len({r.prompt for r in held}) == 26
    assert {text_hash(r.prompt) for r in train}.isdisjoint(text_hash(r.prompt) for r in held)
