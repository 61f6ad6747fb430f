"""`--limit`: evenly spaced, and of both sorts where there are both; groups stay whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prmbench import data
from prmbench.data import prmbench_preview, rollouts
from prmbench.data.rollouts import Rollout
from prmbench.data.selection import ERROR, NO_ERROR, RIGHT, WRONG, Classes, classes_of, spread

LABELS = st.lists(st.sampled_from([None, -1, 0, 2]), max_size=40)
GROUPS = st.lists(st.frozensets(st.sampled_from([RIGHT, WRONG, ERROR, NO_ERROR])), max_size=25)


def even(count: int, limit: int) -> list[int]:
    return list(range(count)) if limit >= count else [i * count // limit for i in range(limit)]


def every(sorts: list[Classes]) -> Classes:
    return frozenset().union(*sorts)


@pytest.mark.parametrize(
    ("first_error", "outcome", "sorts"),
    [
        (None, None, set()),
        (-1, None, {NO_ERROR}),
        (0, None, {ERROR}),
        (3, 1, {ERROR, RIGHT}),
        (-1, 0, {NO_ERROR, WRONG}),
    ],
)
def test_sorts(first_error: int | None, outcome: int | None, sorts: set[str]) -> None:
    assert classes_of(first_error, outcome) == sorts


@given(LABELS, st.integers(1, 12))
def test_a_limit_has_both_labels_and_changes_little(labels: list[int | None], limit: int) -> None:
    items = list(enumerate(labels))
    chosen = spread(items, limit, lambda item: classes_of(item[1], None))
    wanted = [items[i] for i in even(len(items), limit)]
    present, before = every([classes_of(y, None) for y in labels]), every([classes_of(y, None) for _, y in wanted])
    assert len(chosen) == min(limit, len(items))
    assert [i for i, _ in chosen] == sorted({i for i, _ in chosen})
    if limit >= len(present):
        assert every([classes_of(y, None) for _, y in chosen]) == present
    assert len({*wanted} - {*chosen}) <= len(present - before)
    assert chosen == spread(items, limit, lambda item: classes_of(item[1], None))
    if before == present:
        assert chosen == wanted == spread(items, limit)


@given(GROUPS, st.integers(1, 8))
def test_groups_of_several_sorts(groups: list[Classes], limit: int) -> None:
    """Nothing that even distances have is lost, and four places are enough for four sorts."""
    items = list(enumerate(groups))
    chosen = spread(items, limit, lambda item: item[1])
    before = every([groups[i] for i in even(len(groups), limit)])
    assert len(chosen) == min(limit, len(items))
    assert every([sorts for _, sorts in chosen]) >= before
    if limit >= 4:
        assert every([sorts for _, sorts in chosen]) == every(groups)


@pytest.mark.parametrize(
    ("labels", "limit", "chosen"),
    [
        ("EEEEEEREEE", 2, [0, 6]),  # 6 is the nearest right one to 5
        ("RRRRREEEEE", 2, [0, 5]),  # as it was
        ("EREREREREREREREREREREREREREREREE", 4, [1, 8, 16, 24]),  # the first of many as near
        ("EEEEEEEEER", 3, [0, 3, 9]),
        ("REEEEEEEEE", 3, [0, 3, 6]),
        ("EERE", 1, [0]),  # one place has one sort
        ("....R...E.", 2, [4, 8]),
    ],
)
def test_the_nearest_one_comes_in(labels: str, limit: int, chosen: list[int]) -> None:
    sorts = {"E": frozenset({ERROR}), "R": frozenset({NO_ERROR}), ".": frozenset()}
    assert [i for i, _ in spread(list(enumerate(labels)), limit, lambda item: sorts[item[1]])] == chosen


def test_each_subset_of_a_benchmark_has_both(tmp_path: Path) -> None:
    """Every second trace is all right, so even distances of two hit one sort only."""
    for subset in ("gsm8k", "math"):
        rows = [
            {"id": f"{subset}-{n}", "problem": f"p{n}", "steps": ["a", "b"], "label": -1 if n % 2 else n // 4 % 2}
            for n in range(12)
        ]
        (tmp_path / f"{subset}.json").write_text(json.dumps(rows))
    for limit in range(2, 12):
        selected = data.load("processbench", tmp_path, limit=limit).traces
        for subset in ("gsm8k", "math"):
            assert {t.first_error == -1 for t in selected if t.subset == subset} == {True, False}
        assert len(selected) == 2 * limit


@pytest.mark.filterwarnings("ignore:prmbench_preview")
def test_the_rare_right_solutions_of_prmbench(shared_data: Path) -> None:
    """Two of the 90 with a missing condition have no error step; today's even distances of 5 pass both by."""
    selected = data.load("prmbench_preview", shared_data / "prmbench_preview", ["missing_condition"], 5).traces
    assert sorted(t.first_error == -1 for t in selected) == [False] * 4 + [True]
    assert prmbench_preview.SUBSETS.index("missing_condition")


def outcomes(*groups: str) -> list[Rollout]:
    """A rollout a letter: right, wrong or unverified."""
    return [
        Rollout(f"g{n}/{k}", f"P{n}", "text", outcome={"r": 1, "w": 0, "u": None}[y], group=f"g{n}")
        for n, group in enumerate(groups)
        for k, y in enumerate(group)
    ]


@pytest.mark.parametrize(
    ("groups", "limit", "chosen"),
    [
        (("rr", "rr", "rw", "rr"), 2, {"g0", "g2"}),
        (("rr", "ww", "rr", "rr"), 2, {"g1", "g2"}),
        (("rr", "rr", "uu", "rw"), 1, {"g3"}),  # a group of both sorts is enough alone
        (("uu", "rr", "uu", "ww"), 2, {"g1", "g3"}),
    ],
)
def test_prompts_with_both_outcomes(tmp_path: Path, groups: tuple[str, ...], limit: int, chosen: set[str]) -> None:
    selected = outcomes(*groups)
    assert {r.group for r in rollouts.limit_prompts(selected, limit)} == chosen
    rollouts.write(tmp_path / "r.jsonl", selected)
    loaded = data.load("best_of_n", tmp_path / "r.jsonl", limit=limit)
    assert {t.group for t in loaded.traces} == chosen
    assert [t.id for t in loaded.traces] == [r.id for r in selected if r.group in chosen]  # whole groups, in order
