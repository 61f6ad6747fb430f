"""Threshold-free rows of task steps: what is ranked, the floor beside it, and where it is shown and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_calls import fine, refused
from report_runs import manifest as stored_manifest
from report_runs import scores_of, traces, write
from sklearn.metrics import average_precision_score, roc_auc_score

from prmbench import tasks
from prmbench.core.records import MetricRow, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import Run
from prmbench.report.board import boards
from prmbench.report.ranking_table import ranking_table
from prmbench.tasks.table import Code, Value

LOGRATIO = {"kind": "logratio", "backend": "implicit", "beta": 1.0}


def judged(scores: list[ScoredTrace], **facts: object) -> dict[tuple[str, str, str], MetricRow]:
    rows = tasks.judge(stored_manifest(scores, b"", **facts), scores)
    return {(row.subset, row.protocol, row.metric): row for row in rows}


def counted_steps(scores: list[ScoredTrace], subset: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and wrongness of steps up to the first error, collected one by one."""
    pairs = [
        (value, step == trace.label)
        for trace in scores
        if trace.subset == subset and not trace.unscored
        for step, value in enumerate(trace.values)
        if trace.label == -1 or step <= trace.label  # type: ignore[operator]
    ]
    values, wrong = zip(*pairs, strict=True)
    return np.array(values), np.array(wrong)


def test_rows_are_of_steps_up_to_the_first_error_with_chance_beside_them() -> None:
    scores = scores_of(traces(30, ("gsm8k", "math")))
    scores[0] = replace(scores[0], values=(), unscored="too long")
    rows = judged(scores)
    for subset in ("gsm8k", "math"):
        values, wrong = counted_steps(scores, subset)
        auroc, auprc = (rows[subset, "as_is/ranking", metric] for metric in ("auroc", "auprc"))
        assert auroc.value == pytest.approx(roc_auc_score(wrong, -values))
        assert auroc.value > 0.55, "the sign would show"  # type: ignore[operator]
        assert auprc.value == pytest.approx(average_precision_score(wrong, -values))
        assert rows[subset, "floor/ranking", "auroc"].value == 0.5
        assert rows[subset, "floor/ranking", "auprc"].value == pytest.approx(wrong.mean())
        for row in (auroc, auprc):
            assert row.lo < row.value < row.hi  # type: ignore[operator]
    assert rows["gsm8k", "as_is/ranking", "auroc"].note == "unscored traces left out: 1"
    average = rows["avg[gsm8k,math]", "as_is/ranking", "auroc"]
    assert average.value == pytest.approx(
        np.mean([rows[s, "as_is/ranking", "auroc"].value for s in ("gsm8k", "math")])  # type: ignore[misc]
    )


def test_every_readout_and_series_is_ranked_and_verdicts_are_not() -> None:
    items = traces(8, ("gsm8k",))
    keys = {key for _, key, metric in judged(scores_of(items, "logratio"), **LOGRATIO) if metric == "auroc"}
    readouts = ("prefix_sum", "step_sum", "prefix_mean", "step_mean")
    assert keys == {"floor/ranking", *(f"{readout}/ranking" for readout in readouts)}
    assert not [m for _, _, m in judged(scores_of(items, "verdict"), kind="verdict", backend="critic") if m == "auroc"]
    assert not [m for _, _, m in judged(scores_of(items), rules=("fixed",)) if m == "auroc"]


def test_intervals_resample_problems() -> None:
    """All traces of one problem are drawn together, so copies of a problem's traces widen nothing away."""
    scores = scores_of(traces(20, ("gsm8k",)))
    doubled = [*scores, *(replace(t, id=f"{t.id}-again") for t in scores)]
    once, twice = (judged(s)["gsm8k", "as_is/ranking", "auroc"] for s in (scores, doubled))
    assert twice.value == pytest.approx(once.value)
    assert twice.hi - twice.lo == pytest.approx(once.hi - once.lo, rel=0.02)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("label", "reason"), [(-1, "no scored step that is wrong"), (0, "no scored step that is right")]
)
def test_one_kind_of_step_gives_no_number_and_says_why(label: int, reason: str) -> None:
    scores = [replace(t, label=label) for t in scores_of(traces(6, ("gsm8k",)))]
    row = judged(scores)["gsm8k", "as_is/ranking", "auroc"]
    assert (row.value, row.note) == (None, reason)


def test_the_board_has_a_table_with_the_best_run_first_and_chance_last() -> None:
    runs = []
    for name, skill in (("weak", 0.2), ("strong", 4.0)):
        scores = scores_of(traces(20, ("gsm8k", "math")), "logratio", skill=skill)
        about = stored_manifest(scores, b"", model=name, run_id=name, **LOGRATIO)
        runs.append(Run(RunResult(about, tasks.judge(about, scores)), tuple(scores), Path(name)))
    table = ranking_table(boards(runs)[0])
    assert table is not None
    assert table.header == ("Model", "Protocol", "Area", "gsm8k", "math", "avg of gsm8k, math")
    for group, area in zip(table.groups, ("AUROC", "AUPRC"), strict=True):
        assert group[0][0] == "strong"
        assert {row[2] for row in group} == {area}
        assert group[-1][1] == Code("floor/ranking")
    stored = {(r.subset, r.protocol, r.metric): r for r in runs[1].result.rows}
    (shown,) = [row for row in table.groups[0] if row[:2] == ("strong", Code("step_sum/ranking"))]
    row = stored["avg[gsm8k,math]", "step_sum/ranking", "auroc"]
    assert shown[-1] == Value(row.value, lo=row.lo, hi=row.hi)


def test_the_report_shows_it_and_compare_refuses_it(tmp_path: Path) -> None:
    scores = scores_of(traces(8, ("gsm8k", "math")))
    a, b = (write(tmp_path, scores, folder=name, run_id=name, model=name, replicates=9) for name in ("a", "b"))
    fine("report", "--results", tmp_path, "--out", tmp_path / "report")
    text = (tmp_path / "report" / "mini.md").read_text()
    assert "## Ranking of steps, without a threshold" in text
    assert "| chance | `floor/ranking` | AUPRC |" in text
    assert "Ranking of steps, without a threshold" in (tmp_path / "report" / "report.html").read_text()
    line = refused("compare", a, b, "--protocol", "as_is/ranking")
    assert line == "error: compare: as_is/ranking has no F1; name protocols with a threshold rule"


@pytest.mark.parametrize("task", ["format_shift", "validity"])
def test_tasks_without_a_ranking_refuse_the_protocol(task: str) -> None:
    scores = scores_of(traces(4, ("gsm8k",)))
    about = stored_manifest(scores, b"", task=task, benchmark=task)
    with pytest.raises(UserError, match="as_is/ranking"):
        tasks.resolve_protocols(about, ["as_is/ranking"])
