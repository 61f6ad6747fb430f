"""Plain progress lines where stderr is no terminal: when they come, what they say, and that quick work is silent."""

from __future__ import annotations

import logging
import sys

import pytest

from prmbench.core import progress
from prmbench.core.progress import PlainLines, duration


@pytest.fixture(autouse=True)
def usual_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 5.0)


class Clock:
    """A clock that the test moves, and the lines written at each time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[tuple[float, str]] = []
        self.plain = PlainLines("scoring: loading", self._write, lambda: self.now)

    def _write(self, line: str) -> None:
        self.lines.append((self.now - 100, line))

    def run_until(self, second: float) -> None:
        while self.now < 100 + second:
            self.now += 1
            self.plain.tick()


def test_the_first_line_comes_after_seconds_and_then_one_every_half_minute() -> None:
    clock = Clock()
    clock.run_until(70)
    assert clock.lines == [
        (5, "scoring: loading (5 s)"),
        (35, "scoring: loading (35 s)"),
        (65, "scoring: loading (65 s)"),
    ]


def test_something_new_is_said_soon() -> None:
    clock = Clock()
    clock.run_until(10)
    clock.plain.begin("loading the model x")
    clock.run_until(14)
    clock.plain.begin("tokenizing 5 traces")  # the model was quick
    clock.run_until(20)
    assert clock.lines[1:] == [(19, "tokenizing 5 traces (5 s)")]


def test_a_line_has_count_rate_and_remaining_time() -> None:
    clock = Clock()
    clock.run_until(8)
    for done in range(10, 40):  # ten were done by an earlier run
        clock.plain.update("scoring", done, 100, "3,012 tok/s")
        clock.run_until(clock.now - 100 + 2)
    # Since the first count at 8 s: two batches in 5 s and 88 to go, then 17 in 35 s and 73 to go.
    assert clock.lines[1] == (13, "scoring: 12 of 100 (12%), 3,012 tok/s, about 4 min left")
    assert len(clock.lines) == 3
    assert clock.lines[2] == (43, "scoring: 27 of 100 (27%), 3,012 tok/s, about 3 min left")


def test_work_between_counts_stands_beside_the_last_count() -> None:
    clock = Clock()
    clock.plain.update("steps", 3, 9)
    clock.plain.begin("validating")
    clock.run_until(5)
    clock.plain.update("steps", 4, 9)
    clock.run_until(35)
    clock.plain.update("steps", 9, 9)
    clock.plain.begin("writing")
    clock.run_until(40)
    assert [line for _, line in clock.lines] == [
        "steps: 3 of 9 (33%); validating (5 s)",
        "steps: 4 of 9 (44%), about 3 min left",
        "writing (5 s)",
    ]


def test_jobs_share_a_line() -> None:
    clock = Clock()
    clock.plain.update("seed 1, train", 3, 4, job="seed 1")
    clock.plain.update("seed 0, train", 1, 4, job="seed 0")
    clock.run_until(5)
    assert clock.lines == [(5, "seed 0, train: 1 of 4 (25%); seed 1, train: 3 of 4 (75%)")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3000, "50 min"), (5400, "1.5 h"), (86400, "24.0 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("bar", ["progress_bar", "steps_bar", "job_bars"])
def test_quiet_yields_nothing_and_starts_nothing(bar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PlainLines", None)
    arguments = (True, "scoring") if bar == "progress_bar" else (True,)
    with getattr(progress, bar)(*arguments) as report:
        assert report is None


def test_what_the_package_logs_is_the_activity_and_warnings_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(PlainLines, "begin", lambda _, text: begun.append(text))
    logger = logging.getLogger("prmbench.engines.hf")
    with progress.progress_bar(False, "scoring"):
        logger.info("loading the model %s", "x")
        logger.debug("nothing")
        logger.warning("halves")
    logger.info("afterwards")
    assert begun == ["loading the model x"]
    assert capsys.readouterr().err == "note: halves\n"


def test_a_terminal_gets_a_bar_and_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "PlainLines", None)
    with progress.progress_bar(False, "scoring") as report:
        assert report is not None
        report(1, 2, 3.0)
