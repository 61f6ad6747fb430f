"""Batches shared among threads and sittings: what is done is kept whatever else fails; costs end a run in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prmbench.backends import Facts
from prmbench.backends.rendered import RenderedBackend
from prmbench.core import batch_jobs, result_files
from prmbench.core.records import StepScores, Trace, Usage, UserError
from prmbench.engines.cost_budget import Budget
from prmbench.evaluation import scoring

TRACES = tuple(Trace(f"t{i}", f"problem {i}", ("one", "two"), -1, subset="s") for i in range(12))


def journal(folder: Path) -> result_files.Journal:
    return result_files.Journal(folder / "run.journal", {"run_id": "run"})


@pytest.mark.parametrize("workers", [1, 4])
def test_every_batch_is_done_once(tmp_path: Path, workers: int) -> None:
    book, batches_done = journal(tmp_path), []

    def do(number: int) -> tuple[dict[str, Any], int]:
        batches_done.append(number)
        return {"scores": [number * number]}, 1

    batch_jobs.run_batches(book, 9, do, workers=workers)
    batch_jobs.run_batches(book, 11, do, workers=workers)
    assert sorted(batches_done) == list(range(11))  # the second sitting asks for what is new only
    assert [entry["scores"] for entry in batch_jobs.completed_entries(book, 11)] == [[n * n] for n in range(11)]


def test_batches_are_under_way_at_once(tmp_path: Path) -> None:
    """Each waits for the two others: alone none would end."""
    meeting = threading.Barrier(3, timeout=30)

    def do(number: int) -> tuple[dict[str, Any], int]:
        meeting.wait()
        return {}, 0

    batch_jobs.run_batches(journal(tmp_path), 3, do, workers=3)


def test_a_failure_loses_nothing_and_begins_nothing_more(tmp_path: Path) -> None:
    book, failed, batches_done = journal(tmp_path), threading.Event(), []

    def do(number: int) -> tuple[dict[str, Any], int]:
        batches_done.append(number)
        if number == 1:
            failed.set()
            raise UserError("the server said no")
        failed.wait(30)  # still under way when the other fails
        return {"scores": [number]}, 1

    with pytest.raises(UserError, match="the server said no"):
        batch_jobs.run_batches(book, 50, do, workers=2)
    assert 0 in book.completed_batches()
    assert set(book.completed_batches()) == set(batches_done) - {1}
    assert len(batches_done) < 50


class Paid:
    """Answers that cost 0.5 a trace."""

    facts = Facts("verdict", "none", engine="none", backend="baseline", batch_tokens=1)

    def cost(self, trace: Trace) -> int:
        return 7

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        for trace in traces:
            used = Usage(prompt_tokens=5, completion_tokens=2, cost=0.5)
            yield StepScores(trace.id, verdicts=(-1,), said=(f"about {trace.id}",), usage=used)


def test_a_run_stops_when_its_money_is_spent_and_goes_on_with_more(tmp_path: Path) -> None:
    backend = Paid()
    plan = scoring.make_plan("run", backend, TRACES, None)
    assert len(plan.batches) == len(TRACES)
    with pytest.raises(UserError, match=r"--max-cost 2: 2 is spent"):
        scoring.score_all(plan, tmp_path, backend, TRACES, max_cost=2.0)
    with pytest.raises(UserError, match=r"--max-cost 4: 4 is spent"):  # what the first sitting spent counts
        scoring.score_all(plan, tmp_path, backend, TRACES, max_cost=4.0)
    book = scoring.score_all(plan, tmp_path, backend, TRACES, max_cost=6.5)
    rows, told = scoring.collect(plan, book, TRACES)
    assert (told["tokens"], told["completion_tokens"], told["cost"]) == (12 * 7, 12 * 2, 6.0)
    assert len(rows) == len(TRACES)
    assert scoring.critiques(book)["t3"] == ["about t3"]


class Foretold(Paid):
    """The same, known beforehand to cost 0.8 at most; how many are under way at once is kept."""

    def __init__(self) -> None:
        self.lock, self.live, self.spent, self.most = threading.Lock(), 0, 0.0, 0.0

    def at_most(self, trace: Trace) -> Usage:
        return Usage(5, 5, 0.8)

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        with self.lock:
            self.live += 1
            self.most = max(self.most, self.spent + 0.8 * self.live)
        yield from super().score(traces)
        with self.lock:
            self.live -= 1
            self.spent += 0.5


@pytest.mark.parametrize("cap", [0.8, 1.0, 3.0, 4.4])
def test_what_a_backend_may_cost_is_reserved(tmp_path: Path, cap: float) -> None:
    backend = Foretold()
    backend.facts = replace(Paid.facts, workers=6)
    plan = scoring.make_plan("run", backend, TRACES, None)
    with pytest.raises(UserError, match=rf"--max-cost {cap:g}: .* is spent, and what comes next may cost 0.8"):
        scoring.score_all(plan, tmp_path, backend, TRACES, max_cost=cap)
    assert backend.spent >= 0.5
    assert backend.most <= cap + 1e-9


def test_a_rendered_backend_has_the_budget_of_the_one_it_shows_traces_to() -> None:
    asked = Paid()
    asked.budget = Budget()  # type: ignore[attr-defined]
    assert RenderedBackend(asked).budget is asked.budget  # type: ignore[attr-defined]
    assert RenderedBackend(Paid()).budget is None


def test_what_was_changed_in_requests_is_told(tmp_path: Path) -> None:
    class Changed(Paid):
        def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
            for scores in super().score(traces):
                yield replace(scores, request_changes=("seed left out",) if scores.id == "t3" else ())

    plan = scoring.make_plan("run", Changed(), TRACES, None)
    book = scoring.score_all(plan, tmp_path, Changed(), TRACES)
    assert scoring.collect(plan, book, TRACES)[1]["request_changes"] == ("seed left out",)
