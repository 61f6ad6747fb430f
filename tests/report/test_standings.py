"""Models against benchmarks: which number stands for a model, and its paired distance from the best without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import completions, manifest, scores_of, task_scores, traces

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.metrics import intervals
from prmbench.report import overview
from prmbench.report.standings import Column, column
from prmbench.tasks import best_of_n, judge
from prmbench.tasks.blocks import rows_of


def run(name: str, scores: list[ScoredTrace], rows: tuple[MetricRow, ...] | None = None, **facts: Any) -> Run:
    about = manifest(scores, b"", model=name, run_id=name, **facts)
    return Run(RunResult(about, judge(about, scores) if rows is None else rows), tuple(scores), Path(name))


def standing(runs: list[Run]) -> Column:
    result = column("b", runs)
    assert result is not None
    return result


STEPS = traces(24)
RULE_OF_PICKS = "N = 8, by the last step; critics by the mean of their votes"
PRM = run("prm", scores_of(STEPS), native=0.5)


def test_the_number_is_the_rows_and_the_bound_is_the_best_floor() -> None:
    result = standing([PRM])
    rows = rows_of(PRM.result, "avg[math,omnimath]")
    assert (result.subset, result.rule, result.protocols) == (
        "avg[math,omnimath]",
        "Calibrated",
        ("as_is/calibrated:gsm8k",),
    )
    cell = result.standings["prm"]
    assert cell.row == rows["as_is/calibrated:gsm8k", "f1"]
    names = ("random_calibrated", "position", "outcome_oracle")
    floors = {name: rows[f"floor/{name}", "f1"].value or 0.0 for name in names}
    assert result.bound is not None
    assert result.bound.value == max(floors.values()) == floors["outcome_oracle"]
    assert cell.row is not None
    assert cell.row.value is not None
    assert cell.difference == pytest.approx(cell.row.value - result.bound.value)


def test_a_difference_is_resampled_with_the_same_problems_on_both_sides() -> None:
    """Against the floors' own replicates, drawn again: the interval is that of the difference, not a sum of widths."""
    from prmbench.tasks import steps

    subsets = steps._subset_data(PRM.result.manifest, PRM.scores)
    key = "as_is/calibrated:gsm8k"
    cells = steps.judge_one(PRM.result.manifest, PRM.scores, key).cells
    transferred = [s for s in subsets if s.name != "gsm8k"]
    ours = np.mean([cells[key][s.name][0].values for s in transferred], axis=0)
    floor = np.mean([cells["floor/outcome_oracle"][s.name][0].values for s in transferred], axis=0)
    cell = standing([PRM]).standings["prm"]
    problems = min(s.problems for s in transferred)
    gap = ours - floor
    assert (cell.lo, cell.hi) == pytest.approx(intervals.interval("share_difference", gap[0], gap[1:], problems))
    assert cell.lo is not None
    assert cell.hi is not None
    assert cell.lo < cell.difference < cell.hi  # type: ignore[operator]


def test_a_baseline_run_that_beats_the_floors_is_the_bound_and_is_paired() -> None:
    strong = run("step-length", scores_of(STEPS, seed=5, skill=6.0), backend="baseline")
    gold = run("gold", scores_of(STEPS, seed=6, skill=9.0), backend="baseline")
    result = standing([PRM, strong, gold])
    assert result.bound is not None
    assert result.bound.name == "step-length, a baseline"
    assert list(result.standings) == ["prm"]
    cell = result.standings["prm"]
    assert cell.difference is not None
    assert cell.difference == pytest.approx(
        rows_of(PRM.result, result.subset)["as_is/calibrated:gsm8k", "f1"].value - result.bound.value  # type: ignore[operator]
    )
    assert cell.hi is not None
    assert cell.lo is not None
    alone = PRM.result.rows and rows_of(PRM.result, result.subset)["as_is/calibrated:gsm8k", "f1"]
    assert cell.hi - cell.lo < 2 * (alone.hi - alone.lo)  # type: ignore[operator]


def test_a_baseline_with_other_draws_is_resampled_with_those_of_the_model() -> None:
    good = run("good", scores_of(STEPS, skill=6.0))
    twin = run("twin", list(good.scores), backend="baseline", seed=9)
    result = standing([good, twin])
    assert result.bound is not None
    assert result.bound.name == "twin, a baseline"
    cell = result.standings["good"]
    assert (cell.difference, cell.lo, cell.hi) == (0.0, 0.0, 0.0)


def test_one_rule_a_column_and_what_is_left_out_says_why() -> None:
    critic = run("critic", scores_of(STEPS, "verdict", 2), kind="verdict", backend="critic")
    part = run("part", scores_of(STEPS[:24]))
    result = standing([PRM, critic, part])
    assert result.subset == "gsm8k"  # what most models have
    assert [name for name, cell in result.standings.items() if cell.row] == ["prm", "part"]
    assert result.standings["critic"].reason == "only under vote/native; see the tables"
    alone = standing([critic])
    assert (alone.rule, alone.protocols) == ("Native", ("vote/native",))
    other = run("other", scores_of([replace(t, id=f"x{t.id}") for t in STEPS[:30]]))
    assert standing([PRM, critic, other]).standings["other"].reason == "scored on other traces; see the tables"


def test_a_rule_without_any_number_is_passed_over() -> None:
    """Own data have no gsm8k to calibrate on: the column takes the next rule, which has numbers."""
    own = run("prm", scores_of(traces(24, ("mine",))), native=0.5)
    result = standing([own])
    assert (result.subset, result.rule, result.protocols) == ("mine", "Cross-validated", ("as_is/cross_validated",))


def test_a_series_or_another_readout_never_stands_for_a_model() -> None:
    """The best of many readouts would be chosen with the answers in hand."""
    scores = scores_of(STEPS, "logratio")
    good = scores_of(STEPS, "logratio", skill=5.0)
    both = [replace(s, also={"logprob": g.values or s.values}) for s, g in zip(scores, good, strict=True)]
    result = standing([run("m", both, kind="logratio", backend="endo", series=("logprob",))])
    assert result.protocols == ("step_sum/calibrated:gsm8k",)


def test_best_of_n_is_compared_with_the_majority_and_never_with_the_ceiling() -> None:
    items = completions(8, 12)
    facts = {"benchmark": "best_of_n", "task": "best_of_n", "kind": "logratio", "beta": 1.0}
    model = run("m", task_scores(items), **facts)
    result = standing([model])
    rows = rows_of(model.result, result.subset)
    bounds = {"floor/random": "accuracy", "floor/majority": "majority@8"}
    assert result.bound is not None
    assert result.bound.value == max(rows[key].value or 0.0 for key in bounds.items())
    assert (result.heading, result.rule, result.protocols) == ("best_of@8", RULE_OF_PICKS, ("prefix_sum/last",))
    card = dict(overview._card("", 1, result).facts)
    assert card["Rule"] == RULE_OF_PICKS
    floors = f"{card['Baseline']}, {card['Other baselines']}"
    assert [name in floors for name in ("a random completion", "the majority vote", "pass")] == [True, True, False]
    cell = result.standings["m"]
    assert cell.row == rows["prefix_sum/last", "best_of@8"]
    assert cell.lo is not None
    assert overview.difference_texts(cell, result.unit)[1].startswith("[")


def test_a_number_without_floors_has_no_difference_and_unpaired_ones_say_so() -> None:
    items = task_scores(completions())
    result = standing([run("m", items, benchmark="c", task="calibration", kind="logratio", beta=1.0)])
    assert result.bound is None
    assert overview.difference_texts(result.standings["m"], result.unit) == ("", "")
    cell = replace(standing([PRM]).standings["prm"], lo=None, hi=None)
    assert overview.difference_texts(cell, "percent")[1] == f"({overview.UNPAIRED})"


def test_the_best_of_a_models_runs_stands_for_it_and_all_are_counted() -> None:
    good = replace(run("good", scores_of(STEPS, skill=5.0)), suffix="good")
    good = replace(good, result=replace(good.result, manifest=replace(good.result.manifest, model="prm")))
    cell = standing([PRM, good]).standings["prm"]
    assert cell.runs == (good, PRM)
    assert cell.row in good.result.rows


def test_models_with_a_number_on_some_traces_are_counted_by_the_name_of_their_row() -> None:
    """Two revisions of a model are two rows: they outvote one model with an average over more subsets."""
    revisions = []
    for name in "ab":
        one = run(name, scores_of(traces(24, ("gsm8k",))))
        about = replace(one.result.manifest, model="prm", revision=name * 40)
        revisions.append(replace(one, result=replace(one.result, manifest=about)))
    row = MetricRow("avg[math,omnimath]", "as_is/calibrated:gsm8k", "f1", 0.5, 0.4, 0.6, 48, 0)
    wide = run("wide", scores_of(traces(24, ("math", "omnimath"))), (row,))
    assert standing([wide, *revisions]).subset == "gsm8k"
    assert standing([wide, revisions[0]]).subset == "avg[math,omnimath]"


def test_models_with_most_numbers_come_first() -> None:
    other = run("low", scores_of(STEPS, seed=3, skill=0.1))
    task = run("low", task_scores(completions()), benchmark="c", task="calibration", kind="logratio", beta=1.0)
    columns = [standing([PRM, other]), standing([task])]
    assert overview.model_order(columns) == ["low", "prm"]
    assert overview.model_order(columns[:1]) == ["prm", "low"]


def test_a_critic_and_prms_pick_in_one_column_whatever_their_names() -> None:
    items = completions(8, 12)
    facts = {"benchmark": "best_of_n", "task": "best_of_n"}
    prm = run("z-prm", task_scores(items, skill=3.0), **facts, kind="logratio", beta=1.0)
    votes = [replace(s, values=(), tokens=(), verdicts=(-1, 1)) for s in task_scores(items)]
    for name in ("a-critic", "zz-critic"):
        result = standing([run(name, votes, **facts, kind="verdict", backend="critic"), prm])
        assert result.rule == RULE_OF_PICKS
        assert list(result.standings) == ["z-prm", name]
        assert all(cell.row for cell in result.standings.values())


def test_picks_are_counted_by_problem() -> None:
    items = completions(8, 12)
    result = standing([run("m", task_scores(items), benchmark="b", task="best_of_n", kind="logratio", beta=1.0)])
    data = overview.column_data(result)
    assert data is not None
    assert data["traces"] == "average of easy, hard (n=24 problems, 192 completions)"
    steps_data = overview.column_data(standing([PRM]))
    assert steps_data is not None
    assert "problems" not in steps_data["traces"]


def test_the_random_baseline_is_no_bound_and_has_no_gain() -> None:
    """One draw of random scores may lie above its own expectation, which is a floor already."""
    items = completions(8, 12)
    facts = {"benchmark": "best_of_n", "task": "best_of_n", "kind": "logratio", "beta": 1.0}
    lucky = run("random", task_scores(items, skill=9.0), backend="baseline", **facts)
    runs = [run("m", task_scores(items), **facts), lucky]
    result = standing(runs)
    assert [bound.name for bound in result.bounds if "random," in bound.name] == []
    (table, *_) = best_of_n.tables(runs)
    gains = [i for i, name in enumerate(table.header) if name.startswith("gain")]
    rows = {row[1]: row for group in table.groups for row in group}
    assert all(getattr(rows["m"][i], "value", None) is not None for i in gains)
    assert all(getattr(rows["random"][i], "value", None) is None for i in gains)


def test_other_formats_have_a_column_of_what_they_cost() -> None:
    items = [t for t in STEPS if t.subset == "gsm8k"]
    shown = [*items, *(replace(t, id=f"{t.id}@headers", subset="gsm8k+headers") for t in items)]
    facts = {"benchmark": "format_shift", "task": "format_shift", "native": 0.5}
    good, bad = run("good", scores_of(shown, seed=1), **facts), run("bad", scores_of(shown, seed=2), **facts)
    result = standing([good, bad])
    assert (result.heading, result.subset, result.rule) == ("F1 lost", "gsm8k+headers", "Calibrated")
    assert (result.unit, result.bounds) == ("points", ())
    rows = {r.result.manifest.model: rows_of(r.result, "gsm8k+headers") for r in (good, bad)}
    drops = {name: rows[name]["as_is/calibrated:gsm8k", "f1_drop"] for name in rows}
    assert {name: cell.row for name, cell in result.standings.items()} == drops
    assert list(result.standings) == sorted(drops, key=lambda name: drops[name].value or 0.0)  # least lost first


def test_trained_policies_have_a_column_against_their_own_start() -> None:
    items = traces(10, ("val",))

    def policy(name: str, before: float, after: float) -> Run:
        scores = [
            ScoredTrace(t.id, "val", None, 1, f"p{i}", 2, values=(before + 0.01 * (i % 2), after), tokens=(0, 0))
            for i, t in enumerate(items)
        ]
        config = {"validated_at": [0, 5], "samples": 4}
        return run(name, scores, task="distrl", benchmark="b", kind="outcome", config=config)

    result = standing([policy("one", 0.2, 0.5), policy("two", 0.4, 0.6)])
    assert (result.heading, result.rule, result.protocols) == ("avg@4", "after training", ("policy/step:5",))
    assert list(result.standings) == ["two", "one"]
    assert [round(cell.difference or 0, 3) for cell in result.standings.values()] == [0.195, 0.295]
    for cell in result.standings.values():
        assert cell.lo is not None
        assert cell.hi is not None
        assert cell.lo <= (cell.difference or 0) + 1e-9 <= cell.hi + 2e-9
