"""The queue in front of the model: who shares a batch, who fails, and what is dropped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from score_server import Latch, LengthBackend, eventually

from prmbench.backends import Facts
from prmbench.core.records import Trace, UserError
from prmbench.serving.scheduler import QueueFullError, Scheduler, Scored, ScoringError, StoppedError

SEEDED = Facts("value", "none", engine="none", backend="baseline")


def trace(name: str, *steps: str, prompt: str = "") -> Trace:
    return Trace(name, prompt or name, steps)


def values(scored: list[Scored]) -> list[tuple[float, ...]]:
    return [s.scores.values for s in scored]


def run(scheduler: Scheduler, *work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of coroutines that run beside the scheduler, errors among them."""

    async def main() -> list[Any]:
        running = asyncio.create_task(scheduler.run())
        results = await asyncio.wait_for(asyncio.gather(*work, return_exceptions=True), 20)
        running.cancel()
        scheduler.close()
        return results

    return asyncio.run(main())


def test_every_request_gets_its_own_scores_whoever_shares_its_batch() -> None:
    backend = LengthBackend()
    scheduler = Scheduler(backend, 1000, 8)
    # Equal ids in different requests, and a backend that looks scores up by id.
    asked = [[trace("a", "1" * n, "22"), trace("b", "4444")] for n in (1, 3, 5)]
    results = run(scheduler, *(scheduler.score(traces) for traces in asked))
    assert [values(r) for r in results] == [[(n, 2.0), (4.0,)] for n in (1, 3, 5)]
    assert [[s.scores.id for s in r] for r in results] == [["a", "b"]] * 3
    assert [[s.input_tokens for s in r] for r in results] == [[n + 2, 4] for n in (1, 3, 5)]
    assert len(backend.batches) == 1, "one batch holds them all"
    assert backend.forgotten == 1


def test_batches_keep_the_token_budget_and_put_equal_lengths_together() -> None:
    backend = LengthBackend()
    scheduler = Scheduler(backend, 12, 8)
    asked = [trace(f"t{n}", "x" * n) for n in (2, 6, 2, 6, 4, 20)]
    run(scheduler, *(scheduler.score([t]) for t in [trace(f"t{i}", *t.steps) for i, t in enumerate(asked)]))
    assert backend.batches == [["t5"], ["t1", "t3"], ["t4", "t0", "t2"]]


def test_a_request_may_have_batches_of_its_own() -> None:
    backend = LengthBackend()
    scheduler = Scheduler(backend, 1000, 8, batching="request")
    run(scheduler, *(scheduler.score([trace(f"{n}a", "x"), trace(f"{n}b", "xx")]) for n in range(3)))
    assert backend.batches == [["0b", "0a"], ["1b", "1a"], ["2b", "2a"]]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret"),
        StopIteration(),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        KeyError(1),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("step", ["poison", "unmeasurable"])
def test_a_poisoned_request_fails_alone(error: BaseException, step: str) -> None:
    scheduler = Scheduler(LengthBackend(error=error), 1000, 8)
    good, bad, after = run(
        scheduler,
        scheduler.score([trace("a", "1"), trace("b", "22")]),
        scheduler.score([trace("c", "333"), trace("d", step)]),
        scheduler.score([trace("e", "4444")]),
    )
    assert (values(good), values(after)) == ([(1.0,), (2.0,)], [(4.0,)])
    assert isinstance(bad, ScoringError)
    assert type(error).__name__ in str(bad) or isinstance(error, StopIteration)  # Python changes it on the way
    assert "secret" not in str(bad)


def test_what_the_package_says_of_a_failure_is_passed_on() -> None:
    scheduler = Scheduler(LengthBackend(error=UserError("out of memory: use less")), 1000, 8)
    (bad,) = run(scheduler, scheduler.score([trace("a", "poison")]))
    assert "out of memory: use less" in str(bad)


def test_ids_that_seed_scores_stay_and_never_meet_in_a_batch() -> None:
    backend = LengthBackend(facts=SEEDED)
    scheduler = Scheduler(backend, 1000, 8)
    seen: list[list[str]] = []
    backend.before = lambda traces: seen.append([t.id for t in traces])
    results = run(scheduler, *(scheduler.score([trace("a", "x" * n), trace(f"b{n}", "x")]) for n in (1, 2, 3)))
    assert [values(r)[0] for r in results] == [(1.0,), (2.0,), (3.0,)]
    assert sorted(name for batch in seen for name in batch) == ["a", "a", "a", "b1", "b2", "b3"]
    assert all(len(set(batch)) == len(batch) for batch in seen)


def test_the_queue_is_bounded_and_dropped_work_makes_room() -> None:
    latch = Latch()
    backend = LengthBackend(before=latch)
    scheduler = Scheduler(backend, 4, 2)

    async def main() -> None:
        running = asyncio.create_task(scheduler.run())
        first = asyncio.create_task(scheduler.score([trace("a", "xxxx"), trace("b", "xxx"), trace("c", "xx")]))
        await asyncio.to_thread(latch.reached.wait, 20)
        waiting = asyncio.create_task(scheduler.score([trace("never", "y")]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await scheduler.score([trace("d", "z")])
        for task in (first, waiting):  # their clients have gone
            task.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        last = asyncio.create_task(scheduler.score([trace("e", "zz")]))
        await asyncio.sleep(0)
        latch.open.set()
        assert values(await asyncio.wait_for(last, 20)) == [(2.0,)]
        running.cancel()
        scheduler.close()

    asyncio.run(main())
    assert backend.batches == [["a"], ["e"]], "what nobody waits for is not scored"


def test_stopping_answers_what_waits() -> None:
    latch = Latch()
    scheduler = Scheduler(LengthBackend(before=latch), 4, 8)

    async def main() -> list[Any]:
        running = asyncio.create_task(scheduler.run())
        tasks = [asyncio.create_task(scheduler.score([trace(name, "x")])) for name in "ab"]
        await asyncio.to_thread(latch.reached.wait, 20)
        scheduler.stop()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        running.cancel()
        scheduler.close()
        return results

    results = asyncio.run(main())
    latch.open.set()
    assert [type(r) for r in results] == [StoppedError, StoppedError]


def test_the_model_is_called_by_one_thread() -> None:
    threads: set[int] = set()
    backend = LengthBackend(before=lambda _: threads.add(threading.get_ident()))
    scheduler = Scheduler(backend, 1, 64)
    run(scheduler, *(scheduler.score([trace(str(n), "xx")]) for n in range(20)))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert scheduler.busy_since is None
    eventually(lambda: scheduler.busy_since is None)
