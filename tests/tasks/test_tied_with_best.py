"""Which runs of a column share its first place, on committed scores and on numbers made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from prmbench.core.records import EvalProtocol, MetricRow
from prmbench.core.result_files import Run
from prmbench.report.load import find_results
from prmbench.tasks import Task, compare, find_task, pairs, read_run, ties
from prmbench.tasks.ties import Entry, PairedTests, place_of

RESULTS = Path(__file__).parents[2] / "leaderboards" / "results"


@pytest.fixture(scope="module")
def step_run() -> Run:
    (path,) = [p for p in find_results(RESULTS / "processbench")[0] if p.name.endswith("454f889a8acf.json")]
    return read_run(path)


def entries(run: Run, subset: str, protocols: tuple[str, ...], metric: str = "f1") -> list[Entry]:
    rows = {row.protocol: row for row in run.result.rows if (row.subset, row.metric) == (subset, metric)}
    return [Entry(run, rows[key]) for key in protocols]


def test_tied_is_what_compare_does_not_tell_apart(step_run: Run) -> None:
    protocols = ("step_sum/oracle", "logprob.step_sum/oracle", "prefix_sum/oracle", "step_mean/oracle")
    column = entries(step_run, "gsm8k", protocols)
    best = max(column, key=lambda entry: entry.row.value or 0)
    expected = {best.place}
    scored = step_run.result, step_run.scores
    for entry in column:
        pair = (EvalProtocol.parse(best.row.protocol), EvalProtocol.parse(entry.row.protocol))
        rows = compare(scored, scored, [pair])
        (p,) = [row.value for row in rows if (row.subset, row.metric) == ("gsm8k", "p_value")]
        if p is not None and p >= 0.05:
            expected.add(entry.place)
    tests = PairedTests(find_task("steps"))
    assert tests.tied(column) == expected
    assert len(expected) in range(2, 4)
    assert tests.text == ties.TIED_TEXT


def made_by_hand(value: float, lo: float | None, hi: float | None, run: Run, protocol: str) -> Entry:
    return Entry(run, MetricRow("math", protocol, "f1", value, lo, hi, 10, 0))


@pytest.mark.parametrize(
    ("others", "lower_is_better", "expected"),
    [
        ([(0.5, 0.45, 0.55), (0.3, 0.25, 0.35)], False, {0}),  # apart without a test
        ([(0.5, 0.45, 0.55), (0.3, 0.25, 0.35)], True, {1}),
        ([(0.5, 0.45, 0.55), (0.49, 0.44, 0.54), (0.46, 0.4, 0.5)], False, {0, 1}),
        ([(0.5, None, None), (0.49, None, None)], False, {0}),  # nothing to test with
        ([(0.5, None, None), (0.5, None, None)], False, {0, 1}),
        ([(0.5, 0.4, 0.6)], False, set()),
        ([], False, set()),
    ],
)
def test_ties_of_numbers_made_by_hand(
    step_run: Run,
    monkeypatch: pytest.MonkeyPatch,
    others: list[tuple[float, float | None, float | None]],
    lower_is_better: bool,
    expected: set[int],
) -> None:
    """Neighbours by 0.01 are not told apart, by 0.03 they are."""

    def p_values(_: Task, a: Entry, b: Entry) -> dict[tuple[str, str], float]:
        return {("math", "f1"): 0.5 if abs((a.row.value or 0) - (b.row.value or 0)) < 0.02 else 0.01}

    monkeypatch.setattr(ties, "_compared", p_values)
    column = [made_by_hand(*numbers, step_run, f"p{at}/oracle") for at, numbers in enumerate(others)]
    assert PairedTests(find_task("steps")).tied(column, lower_is_better) == {
        place_of(step_run, f"p{at}/oracle") for at in expected
    }


def test_only_the_next_best_are_tested(step_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[str] = []

    def p_values(_: Task, __: Entry, b: Entry) -> dict[tuple[str, str], float]:
        pairs.append(b.row.protocol)
        return {("math", "f1"): 0.5}

    monkeypatch.setattr(ties, "_compared", p_values)
    column = [made_by_hand(0.5 - at / 1000, 0.4, 0.6, step_run, f"p{at:02}/oracle") for at in range(60)]
    assert len(PairedTests(find_task("steps")).tied(column[::-1])) == ties.MAX_TESTED + 1
    assert pairs == [f"p{at:02}/oracle" for at in range(1, ties.MAX_TESTED + 1)]


def test_pooled_numbers_are_paired_by_replicate() -> None:
    runs = [read_run(path) for path in find_results(RESULTS / "prmbench_preview")[0]]
    (model,) = [run for run in runs if run.result.manifest.model.startswith("SmolLM2")]
    (length,) = [run for run in runs if run.result.manifest.model == "step-length"]
    pooled = next(row.subset for row in model.result.rows if row.subset.startswith("micro["))
    own = entries(model, pooled, ("step_sum/cross_validated", "logprob.step_sum/cross_validated"), "prmscore")
    column = [*own, *entries(length, pooled, ("as_is/cross_validated",), "prmscore")]
    best = max(column, key=lambda entry: entry.row.value or 0.0)
    tied = {best.place}
    for entry in column:
        asked = pairs(entry.run.result.manifest, best.run.result.manifest, [entry.row.protocol], best.row.protocol)
        sides = [(e.run.result, e.run.scores) for e in (entry, best)]
        p = next(r.value for r in compare(*sides, asked) if (r.subset, r.metric) == (pooled, "p_value"))
        tied |= {entry.place} if p >= 0.05 else set()
    assert PairedTests(find_task("validity")).tied(column) == tied
    assert len(tied) < len(column)
