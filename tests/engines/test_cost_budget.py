"""`--max-cost` bounds what a server can bill: reservations, the ledger on disk, whole runs against a billing server."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chat_server import DROP, Reply, failed, listed, said, serving
from forked import Child, prmbench
from typer.testing import CliRunner, Result

from prmbench.cli import app
from prmbench.core.records import UserError
from prmbench.engines.cost_budget import Budget

PRICES = (2.0, 10.0)
"""Of a million tokens."""
MILLION = 1_000_000


def budget(cap: float | None = 1.0, earlier: float = 0.0, **more: Any) -> Budget:
    budget_ = Budget((MILLION, MILLION))  # a token costs 1
    budget_.open(cap, earlier, **more)
    return budget_


# --- reservations ---------------------------------------------------------------------------------------------------


def test_what_is_under_way_is_reserved_and_what_is_used_is_spent() -> None:
    money = budget(10)
    with money.request(2, 4) as first:
        with money.request(1, 3) as second:
            second.settle(1, 1)
        with money.request(1, 1):
            pass  # nobody knows what it took: all of it
        first.settle(2, 2)
    with pytest.raises(UserError, match="8 is spent, and what comes next may cost 3"), money.request(1, 2):
        pytest.fail("not allowed")
    with money.request(1, 1) as refused:
        refused.release()
    with money.request(1, 1):
        pass
    with pytest.raises(UserError, match="10 is spent; what was answered is kept"), money.request(0, 1):
        pytest.fail("not allowed")


def test_a_request_that_does_not_fit_waits_for_those_under_way() -> None:
    money, entered, order = budget(10), threading.Event(), []

    def other() -> None:
        entered.set()
        with money.request(0, 6):
            order.append("second")

    thread = threading.Thread(target=other)
    with money.request(0, 6) as first:
        thread.start()
        entered.wait(30)
        order.append("first")
        first.settle(0, 1)
    thread.join(30)
    assert order == ["first", "second"]


def test_a_failure_while_a_request_is_under_way_costs_all_of_it() -> None:
    money = budget(10)
    with pytest.raises(KeyboardInterrupt), money.request(0, 8):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="8 is spent"), money.request(0, 3):
        pass


def test_a_trace_is_begun_only_where_it_can_be_finished() -> None:
    money = budget(10)
    with money.trace(6), money.request(0, 6) as requested:
        requested.settle(0, 5)
    with pytest.raises(UserError, match="5 is spent, and what comes next may cost 6"), money.trace(6):
        pass
    with money.trace(5):
        pass


def test_a_cap_of_nothing_allows_nothing() -> None:
    with pytest.raises(UserError, match="--max-cost 0: 0 is spent"), budget(0).trace(0):
        pass


def test_several_processes_share_what_is_left() -> None:
    for _ in range(3):
        one = budget(10, earlier=1, processes=3)
        with one.request(0, 3):
            pass
        with pytest.raises(UserError, match="4 is spent"), one.request(0, 1):
            pass


def test_many_threads_never_exceed_the_cap() -> None:
    money, lock = budget(100), threading.Lock()
    live = spent = most = 0

    def worker(seed: int) -> None:
        nonlocal live, spent, most
        chance = random.Random(seed)
        while True:
            size = chance.randint(1, 9)
            try:
                with money.request(0, size) as requested:
                    with lock:
                        live += size
                        most = max(most, live + spent)
                    took = chance.randint(0, size)
                    requested.settle(0, took)
                    with lock:
                        live, spent = live - size, spent + took
            except UserError:
                return

    threads = [threading.Thread(target=worker, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 90 < spent <= most <= 100


# --- the ledger -----------------------------------------------------------------------------------------------------


def ledger(folder: Path, process: int = 0, answered: tuple[int, int] = (0, 0)) -> tuple[Budget, float]:
    money = Budget((MILLION, MILLION))
    earlier = money.open_ledger(folder, process, answered)
    money.open(None, earlier)
    return money, earlier


def test_the_ledger_holds_what_every_sitting_spent(tmp_path: Path) -> None:
    first, earlier = ledger(tmp_path)
    assert earlier == 0
    with first.request(5, 5) as requested:
        # As after a kill here: the request is on disk before it is sent, at its possible cost.
        assert ledger(tmp_path)[1] == 10
        requested.settle(1, 2)
    with first.request(3, 4):
        pass
    second, earlier = ledger(tmp_path, process=1)
    assert earlier == 3 + 7
    with second.request(1, 0):
        pass
    third, earlier = ledger(tmp_path)
    assert earlier == 3 + 7 + 1
    with third.request(1, 1) as requested:
        requested.release()
    assert ledger(tmp_path)[1] == 3 + 7 + 1


def test_lines_torn_by_a_kill_are_passed_over(tmp_path: Path) -> None:
    for torn in ("[2, 9", '{"a": 1}', "[2, -1, 5]", "[2, 1, true]", "\x00\xff", "[]", "[1]", "[" * 99):
        (tmp_path / "0.ledger").write_text(f"[1, 2, 3]\n{torn}")
        money, earlier = ledger(tmp_path)
        assert earlier == 5
        with money.request(1, 1):
            pass
        assert ledger(tmp_path)[1] == 7


def test_a_ledger_with_a_number_that_no_request_takes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.ledger").write_text(f"[1, {10**400}, 3]\n")
    with pytest.raises(UserError, match=r"0\.ledger: holds a number that no request takes"):
        ledger(tmp_path)


def test_a_journal_of_before_there_were_ledgers_counts_its_answers(tmp_path: Path) -> None:
    money, earlier = ledger(tmp_path, answered=(3, 4))
    assert earlier == 7
    with money.request(1, 1):
        pass
    assert ledger(tmp_path, answered=(4, 5))[1] == 9


# --- whole runs -----------------------------------------------------------------------------------------------------


@dataclass
class Biller:
    """A server that bills every prompt by its bytes, and for answers of any length up to the limit.

    It fails in every way that there is, mostly after it has billed.
    """

    seed: int
    troubles: bool = True
    bill: float = 0.0
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, body: dict[str, Any], n: int) -> Reply | str:
        chance = random.Random(f"{self.seed}/{n}")
        prompt = sum(len(m["content"].encode()) + 8 for m in body["messages"]) + 20
        took = body["max_tokens"] if chance.random() < 0.3 else chance.randint(1, body["max_tokens"])
        trouble = chance.random() if self.troubles else 1.0
        if trouble < 0.08:
            return failed(429, "slow down", {"retry-after-ms": "1"})
        with self.lock:
            self.bill += (prompt * PRICES[0] + took * PRICES[1]) / MILLION
            self.asked.append(body["messages"][0]["content"])
        whole = answer(body, (prompt, took))
        return {
            0: DROP,
            1: failed(502, "bad gateway"),
            2: failed(504, "gateway timeout"),
            3: Reply(json.dumps(whole.body).encode()[:-9], headers={"Content-Length": "9999", "Connection": "close"}),
            4: Reply({"choices": []}),
            5: failed(200, "provider error"),
            6: Reply(b"not json"),
        }.get(int((trouble - 0.08) * 20), whole)


def answer(body: dict[str, Any], used: tuple[int, int]) -> Reply:
    """Of any critic; a critique is cut at times, and a decision forced."""
    if body["max_tokens"] == 1:
        return said("yes", "length", used, logprobs=listed(("yes", {"yes": -0.1, "no": -3.0})))
    if body.get("logprobs"):
        return said(r"\boxed{Yes}", "stop", used, logprobs=listed(r"\boxed{", ("Yes", {"Yes": -0.1, "No": -3.0}), "}"))
    return said(r"\boxed{-1} but", "length" if used[1] % 2 else "stop", used)


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"t-{n}", "problem": f"{n} + {n}?", "steps": [f"Add é{n}.", "So it is."], "label": n % 3 - 1}
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
    return path


def arguments(server: str, data: Path, out: Path, *more: object) -> list[str]:
    how = ["--backend", "critic", "--engine", "openai", "--base-url", server, "--model", "m", "--critic-tokens", "50"]
    prices = ["--input-price", str(PRICES[0]), "--output-price", str(PRICES[1])]
    return ["eval", *how, *prices, "--data", str(data), "--out", str(out), *map(str, more)]


def run(*command: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(c) for c in command])


@pytest.mark.parametrize(
    ("critic", "votes", "requests"),
    [("processbench", 1, 16), ("processbench", 3, 8), ("stepwise", 2, 8), ("yes_no", 1, 8), ("yes_no", 2, 1)],
)
def test_the_bill_of_all_sittings_never_exceeds_the_cap(
    critic: str, votes: int, requests: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prmbench.engines.openai.FIRST_PAUSE", 0.001)
    biller = Biller(seed=votes * requests)
    more = ("--critic", critic, "--votes", votes, "--requests", requests)
    with serving(biller) as server:
        for cap in (0.002, 0.004, 0.008, 0.016, 0.03, 10, 10, 10):
            done = run(*arguments(server.url, data, tmp_path / "out", *more, "--max-cost", cap))
            assert biller.bill <= cap
            assert done.exit_code in (0, 2, 75), done.output
            errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
            assert done.exit_code == 0 or len(errors) == 1
            if done.exit_code == 0:
                break
            assert done.exit_code == 75 or f"--max-cost {cap:g}: " in done.stderr
    assert done.exit_code == 0, done.output
    assert len(biller.asked) > 12 * votes  # some were billed more than once


def test_the_cap_is_used_where_answers_are_short(data: Path, tmp_path: Path) -> None:
    """Reservations are given back: many answers fit where the possible cost of two exceeds the cap."""
    with serving(lambda body, n: said(r"\boxed{-1}", used=(100, 5))) as server:  # 0.00025, and possible are 0.0021
        done = run(*arguments(server.url, data, tmp_path / "out", "--max-cost", 0.0045, "--requests", 8))
        assert done.exit_code == 2, done.output
        assert "is spent, and what comes next may cost" in done.stderr
    assert 6 <= len(server.asked) < 12


def test_no_money_goes_into_a_trace_that_cannot_be_finished(data: Path, tmp_path: Path) -> None:
    biller = Biller(seed=1, troubles=False)
    with serving(biller) as server:
        more = ("--votes", 4, "--requests", 4, "--max-cost", 0.03)
        assert run(*arguments(server.url, data, tmp_path / "out", *more)).exit_code == 2
    assert 0 < len(biller.asked) < 48
    assert len(biller.asked) % 4 == 0  # all votes or none


def test_scoring_anew_does_not_forget_what_is_spent(data: Path, tmp_path: Path) -> None:
    biller = Biller(seed=1, troubles=False)
    with serving(biller) as server:
        first = run(*arguments(server.url, data, tmp_path / "out", "--max-cost", 0.01))
        bill = biller.bill
        second = run(*arguments(server.url, data, tmp_path / "out", "--max-cost", 0.01, "--force"))
    assert (first.exit_code, second.exit_code) == (2, 2)
    assert 0 < bill <= biller.bill <= 0.01


@pytest.mark.parametrize("used", [(10**9, 5), (100, 10**9), (3000, 5), (100, 99)])
def test_a_server_that_says_it_used_more_than_was_possible_ends_the_run(
    used: tuple[int, int], data: Path, tmp_path: Path
) -> None:
    with serving(lambda body, n: said(r"\boxed{-1}", used=used)) as server:
        done = run(*arguments(server.url, data, tmp_path / "out", "--max-cost", 1, "--requests", 4))
    assert done.exit_code == 2
    assert "where at most" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_cap_a_server_may_count_its_own_preamble(data: Path, tmp_path: Path) -> None:
    with serving(lambda body, n: said(r"\boxed{-1}", used=(3000, 99))) as server:
        done = run(*arguments(server.url, data, tmp_path / "out"))
    assert done.exit_code == 0, done.output


def test_what_failed_requests_may_have_cost_counts_in_the_next_sitting(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prmbench.engines.openai.FIRST_PAUSE", 0.001)
    out = tmp_path / "out"
    with serving(lambda body, n: DROP) as server:
        for _ in range(2):
            assert run(*arguments(server.url, data, out, "--requests", 1)).exit_code == 75
    assert len(server.asked) == 12
    with serving(lambda body, n: said(r"\boxed{-1}", used=(100, 5))) as server:
        done = run(*arguments(server.url, data, out, "--requests", 1, "--max-cost", 0.02))
        assert done.exit_code == 2
        assert server.asked == []  # 12 requests of 0.0021 were sent and may be billed
        assert run(*arguments(server.url, data, out, "--requests", 1, "--max-cost", 0.1)).exit_code == 0
    assert not list(out.glob("*.journal"))


@pytest.mark.slow
def test_what_a_killed_process_had_under_way_counts(data: Path, tmp_path: Path) -> None:
    seen = threading.Event()

    def script(body: dict[str, Any], n: int) -> Reply:
        if n == 3:
            seen.set()
        return Reply(said("x").body, wait=30)

    out = tmp_path / "out"
    with serving(script) as server:
        command = arguments(server.url, data, out, "--requests", 4, "--max-cost", 0.0095)
        with Child(prmbench, *command):
            assert seen.wait(120)
        begun = len(server.asked)
    assert begun == 4
    with serving(lambda body, n: said(r"\boxed{-1}", used=(100, 5))) as other:
        assert run(*arguments(other.url, data, out, "--requests", 4, "--max-cost", 0.0095)).exit_code == 2
    assert other.asked == []
