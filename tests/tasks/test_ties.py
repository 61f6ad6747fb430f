"""Scores that equal the threshold: one rule per family, the same for step F1 and for PRMScore."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from metric_rows import manifest, value

from prmbench import tasks
from prmbench.backends import cards
from prmbench.core.records import EvalProtocol, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.metrics.first_error import break_ties
from prmbench.report.verdicts import headline_protocol, predict

FAMILIES = {card.family: cards.tie_rule(card) for card in cards.MODELS.values() if card.backend != "critic"}


def trace(name: str, values: tuple[float, ...], label: int, subset: str = "s") -> ScoredTrace:
    labels = tuple(float(k != label) for k in range(len(values)))
    return ScoredTrace(
        name, subset, label, int(label < 0), name, len(values), values, (1,) * len(values), step_labels=labels
    )


def items(at: float) -> list[ScoredTrace]:
    """A right solution with a step at the threshold, and one whose wrong step is there."""
    return [trace("right", (at + 0.3, at, at + 0.2), -1), trace("wrong", (at + 0.2, at, at + 0.3), 1)]


@pytest.mark.parametrize(("family", "tie"), FAMILIES.items())
@pytest.mark.parametrize(("kind", "protocol", "at"), [("prob", "as_is/native", 0.5), ("value", "as_is/fixed:0", 0.0)])
def test_a_step_at_the_threshold_is_what_the_family_says_in_both_tasks(
    family: str, tie: str, kind: str, protocol: str, at: float
) -> None:
    facts = {"tie": tie, "native": 0.5 if kind == "prob" else None, "replicates": 2, "extra_protocols": (protocol,)}
    if protocol.endswith("native"):
        facts["extra_protocols"] = ()
    step_f1 = tasks.judge(manifest("steps", kind, **facts), items(at))
    shares = {m: value(step_f1, protocol, m).value for m in ("error_accuracy", "correct_accuracy")}
    wrong = tie == "wrong"
    assert shares == {"error_accuracy": float(wrong), "correct_accuracy": float(not wrong)}, family
    validity = tasks.judge(manifest("validity", kind, subsets=("circular",), **facts), in_category(items(at)))
    found = {m: value(validity, protocol, m, "circular").value for m in ("valid_accuracy", "invalid_accuracy")}
    assert found == {"valid_accuracy": 4 / 5 if wrong else 1.0, "invalid_accuracy": float(wrong)}, family


def in_category(traces: list[ScoredTrace]) -> list[ScoredTrace]:
    return [trace(t.id, t.values, t.label or 0 if t.label else -1, "circular") for t in traces]


@pytest.mark.parametrize("tie", ["right", "wrong"])
def test_files_that_do_not_say_have_the_rule_of_before_and_the_page_agrees(tie: str) -> None:
    """The predicted index of the trace viewer is that of the rows."""
    facts = manifest("steps", "prob", native=0.5, replicates=2, tie=tie)
    run = Run(RunResult(facts, tasks.judge(facts, items(0.5))), tuple(items(0.5)), None)  # type: ignore[arg-type]
    protocol = headline_protocol(run)
    assert protocol is not None
    assert [predict(t, protocol, 0.5) for t in run.scores] == ([1, 1] if tie == "wrong" else [-1, -1])
    assert manifest("steps", "prob").tie == "right"
    stored = RunResult.from_json({"manifest": RunResult(facts, ()).to_json()["manifest"], "rows": []})
    assert stored.manifest.tie == tie


@pytest.mark.parametrize("tie", ["right", "wrong"])
@pytest.mark.parametrize("is_strict", [True, False])
def test_only_scores_at_the_threshold_change_sides(tie: str, is_strict: bool) -> None:
    """A tie by one floating-point number, its neighbours on either side, zero among them."""
    for at in (0.0, 0.5, -0.05, 1e300):
        scores = np.array([np.nextafter(at, -math.inf), at, np.nextafter(at, math.inf)])
        moved = break_ties(scores, tie, is_strict)  # type: ignore[arg-type]
        labels = ~(moved < at) if is_strict else moved > at
        assert labels.tolist() == [False, tie == "right", True]


def test_tuned_thresholds_keep_the_rule() -> None:
    """With whole numbers as scores a tuned threshold may equal one: the optimum itself does not move."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 6, 4) - 3 * (np.arange(4) == i % 5) for i in range(40)]
    traces = [trace(f"t{i}", tuple(map(float, v)), i % 5 if i % 5 < 4 else -1) for i, v in enumerate(drawn)]
    best = [
        value(tasks.judge(manifest("steps", "value", tie=tie, replicates=2), traces), "as_is/oracle", "f1").value
        for tie in ("right", "wrong")
    ]
    assert best[0] == best[1]


def test_skyworks_step_difference_is_there_for_the_asking() -> None:
    """PRMBench's own code: the first score, then differences of neighbours, valid above -0.05."""
    values = (0.9, 0.86, 0.7, 0.7)
    scored = [trace("a", values, 2, "circular"), trace("b", (0.9, 0.8, 0.9, 0.9), 1, "circular")]
    facts = manifest("validity", "prob", ("circular",), replicates=2)
    assert "step_diff/fixed:-0.05" not in tasks.protocol_keys(facts)
    (key,) = tasks.resolve_protocols(facts, ["step_diff/fixed:-0.05"])
    rows = tasks.judge(replace(facts, extra_protocols=(key,)), scored)
    assert value(rows, key, "step_accuracy", "circular").value == 1.0
    assert EvalProtocol.parse(key).at == -0.05
