"""The probe: degenerate completions beside honest ones, a warning where one pays, and guards that end that."""

from __future__ import annotations

import warnings

import pytest
from length_prm import length_prm, value

from prmbench.adapters import Guard, probe_hacks
from prmbench.adapters.reward_hacks import VARIANTS, _join
from prmbench.adapters.token_alignment import find_steps
from prmbench.core.records import Notice, UserError

HONEST = [("q", "aaaa\n\nbb\n\nThe answer is 4."), ("q", "aa\n\nThe answer is 11.")]


def rows_of(report: object) -> dict[str, tuple[float | None, int]]:
    return {row.variant: (row.difference, row.wins) for row in report.rows}  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::prmbench.core.records.Notice")
def test_differences_and_wins_by_hand() -> None:
    """With the minimum, the reward is 1 / the longest step, which is the answer's line: 16 and 17 characters."""
    report = probe_hacks(length_prm(aggregation="min"), HONEST)
    honest = [value("x" * 16), value("x" * 17)]
    rows = rows_of(report)
    assert report.honest == pytest.approx(sum(honest) / 2)
    assert rows["only the first step"] == (pytest.approx((1 / 4 - honest[0] + 1 / 2 - honest[1]) / 2), 2)
    assert rows["only the last step"] == (pytest.approx(0), 0)
    assert rows["every step twice"] == (pytest.approx(0), 0)
    giant = [1 / 24, 1 / 20]  # the steps with a blank between them
    assert rows["one giant step"] == (pytest.approx((giant[0] - honest[0] + giant[1] - honest[1]) / 2), 0)
    assert rows["empty"] == (None, 0)


def test_a_variant_that_pays_is_warned_of_by_name() -> None:
    with pytest.warns(Notice, match=r"earn more than honest ones on average: 'only the first step' by 0\.3"):
        report = probe_hacks(length_prm(aggregation="min"), HONEST)
    lines = str(report).splitlines()
    assert lines[0].split() == ["completion", "reward", "difference", "wins", "unscored"]
    (line,) = (line for line in lines if line.startswith("only the first step"))
    assert line.split()[4:] == ["0.375", "+0.3143", "2/2", "0", "*"]
    (empty,) = (line for line in lines if line.startswith("empty"))
    assert empty.split() == ["empty", "-", "-", "0/0", "2"]


def test_a_guard_makes_it_stop() -> None:
    guard = Guard(min_steps=2, require_answer=True, floor=-1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = probe_hacks(length_prm(aggregation="min", guard=guard), HONEST)
    rows = {row.variant: row for row in report.rows}
    for name in ("empty", "only filler", "only the first step", "only the last step", "one giant step"):
        assert rows[name].reward == -1.0
    assert not any(row.pays for row in report.rows)


def test_the_number_that_an_adapter_gives_to_unscored_completions_is_probed() -> None:
    """Where honest rewards are negative, 0 for an empty completion is a prize."""
    prm = length_prm(aggregation="prod")
    with pytest.warns(Notice, match="'empty' by"):
        report = probe_hacks(prm, HONEST, unscored=0.0)
    assert report.honest < 0
    assert report.rows[0].reward == 0.0


@pytest.mark.parametrize("split", ["paragraph", "line", "numbered"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_cut_into_the_steps_that_it_means(split: str, name: str) -> None:
    steps = list(VARIANTS[name](["one a", "two b", "three c"]))
    assert [step.text for step in find_steps(_join(steps, split), split)] == steps


def test_examples_without_any_reward_are_refused() -> None:
    with pytest.raises(UserError, match="none of the examples has a reward"):
        probe_hacks(length_prm(), [("q", "")])
