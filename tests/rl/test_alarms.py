"""Alarms of an RL run: each goes off in one made-up history and not in another, and says what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from prmbench.rl import monitors
from prmbench.rl.alarms import ALARMS, PATIENCE, alarms

CASES: dict[str, tuple[Sequence[float | None], Sequence[float | None]]] = {
    # name: (a metric's values that set it off, values that come close and do not)
    "rm_collapse": ([0.9, 0.54, 0.5, 0.4], [0.9, 0.54, 0.5, 0.56]),
    "rm_overconfident": ([0.3, -0.3, 0.26], [0.3, -0.3, 0.24]),
    "entropy_collapse": ([2.0, 0.3, 0.39, 0.3], [2.0, 0.41, 0.45, 0.5]),
    "entropy_explosion": ([0.5, 1.6, 1.7, 2.0], [0.5, 1.4, 1.4, 1.4]),
    "policy_jump": ([0.11, 0.2, 0.3], [0.11, 0.2, 0.09]),
    "clipping": ([0.31, 0.4, 0.5], [0.31, 0.4, 0.3]),
    "process_dominates": ([3.1, 5.0, 9.0], [3.1, 5.0, 2.9]),
    "nothing_to_train_on": ([3, 5, 0], [0, 0, 1]),
    "few_mixed": ([0.04, 0.0, 0.01], [0.04, 0.0, 0.05]),
    "truncation": ([0.31, 0.9, 0.4], [0.31, 0.9, 0.3]),
    "length_drift": ([100, 210, 230, 45], [100, 190, 60, 210]),
    "step_drift": ([4, 9, 9, 1.5], [4, 7, 8, 8]),
    "unverified": ([0.06, 0.1, 0.2], [0.06, 0.1, 0.05]),
    "td_misleads": ([-0.1, -0.2, -0.01], [-0.1, -0.2, 0.0]),
    "stale_sampler": ([0.11, 0.2, 0.2], [0.11, 0.2, 0.1]),
    "importance": ([0.4, 0.3, 0.2], [0.4, 0.3, 0.5]),
    "skipped": ([0, 0, 1], [1, 1, 0]),
}


def history(metric: str, values: Sequence[float | None]) -> list[dict[str, float | None]]:
    return [{"step": i, metric: value} for i, value in enumerate(values, 1)]


@pytest.mark.parametrize("name", ALARMS)
def test_each_alarm_goes_off_and_keeps_quiet(name: str) -> None:
    loud, quiet = CASES[name]
    metric = ALARMS[name].metric
    assert name in alarms(history(metric, loud))
    assert name not in alarms(history(metric, quiet))
    assert len(ALARMS[name].means) > 10


def test_no_case_is_left_over() -> None:
    assert CASES.keys() == ALARMS.keys()


def test_a_metric_must_be_beyond_for_some_steps() -> None:
    low = history("rm_accuracy", [0.5] * PATIENCE)
    assert alarms(low) == ["rm_collapse"]
    assert alarms(low[1:]) == []
    assert alarms([]) == []


def test_steps_without_the_number_do_not_count() -> None:
    """Neither a step that trained nothing nor one whose number was not finite breaks or makes a streak."""
    assert alarms(history("rm_accuracy", [0.5, None, 0.5, None, 0.5])) == ["rm_collapse"]
    told = [monitors.finite_or_none({"entropy": value}) for value in (1.0, math.nan, math.inf, math.nan)]
    assert alarms(told) == []


def test_a_first_value_of_zero_is_no_reason_for_alarm() -> None:
    assert alarms(history("entropy", [0.0] * 5)) == []
    assert alarms(history("step_count", [0.0] * 5)) == []
    assert alarms(history("entropy", [math.nan] * 5)) == []


def test_several_alarms_are_told_in_their_order() -> None:
    both = [{"truncated": 0.9, "rm_accuracy": 0.4, "reward": 0.1}] * 3
    assert alarms(both) == ["rm_collapse", "truncation"]
