"""Memory runs out: batches are scored in halves, the journal stays whole, and what cannot fit is one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROWS
from typer.testing import CliRunner

from prmbench import evaluation
from prmbench.backends import Facts
from prmbench.cli import app
from prmbench.config import EvalConfig, ModelConfig
from prmbench.core.records import StepScores, Trace, UserError
from prmbench.core.result_files import Run
from prmbench.evaluation.scoring import within_memory

WARNING = "out of memory: from here on every batch is scored in two halves"


class Tight:
    """A backend with memory for so many traces at once, that keeps account of what it was asked."""

    facts = Facts(kind="prob", input_format="none", native=0.5, fixed=0.5, device="cpu", batch_tokens=40)
    room = 99
    asked: list[int] = []  # noqa: RUF012
    dies_after = 99

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def cost(self, trace: Trace) -> int:
        return 10

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        if len(self.asked) == self.dies_after:
            raise KeyboardInterrupt
        self.asked.append(len(traces))
        for n, trace in enumerate(traces):
            if n >= self.room:  # in the middle of the work, as a GPU does
                raise torch.OutOfMemoryError("as a GPU says it")
            yield StepScores(trace.id, tuple((len(trace.id) + 7 * k) % 10 / 10 for k in range(len(trace.steps))))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tight, "asked", [])


def settings(data: Path, out: Path) -> EvalConfig:
    return EvalConfig(model="m", backend="test_scoring_oom:Tight", data=data, out=out)


def run(data: Path, out: Path) -> Run:
    result = evaluation.evaluate(settings(data, out))
    assert result is not None
    return result


def test_batches_are_halved_from_then_on(
    benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """24 traces in batches of four; the scores and the run id are those of a machine with room enough."""
    whole = run(benchmark_folder, tmp_path / "roomy")
    assert Tight.asked == [4] * 6
    assert not caplog.messages
    monkeypatch.setattr(Tight, "asked", [])
    monkeypatch.setattr(Tight, "room", 2)
    halved = run(benchmark_folder, tmp_path / "tight")
    assert Tight.asked == [4] + [2] * 12
    assert caplog.messages == [WARNING]
    assert halved.scores == whole.scores
    assert halved.result.rows == whole.result.rows
    assert halved.result.manifest.run_id == whole.result.manifest.run_id
    assert len(whole.scores) == len(ROWS)


def test_a_halved_run_goes_on_where_it_was_killed(
    benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has entries of whole batches alone; a half that was done when the run died is done again."""
    whole = run(benchmark_folder, tmp_path / "whole")
    monkeypatch.setattr(Tight, "room", 2)
    monkeypatch.setattr(Tight, "asked", [])
    monkeypatch.setattr(Tight, "dies_after", 6)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark_folder, tmp_path / "out")
    (journal,) = (tmp_path / "out").glob("*.journal/*.jsonl")
    assert [len(json.loads(line)["scores"]) for line in journal.read_text().splitlines()] == [4, 4]
    monkeypatch.setattr(Tight, "asked", [])
    monkeypatch.setattr(Tight, "dies_after", 99)
    resumed = run(benchmark_folder, tmp_path / "out")
    assert Tight.asked == [4] + [2] * 8  # four batches were left; it does not know any more that memory is short
    assert resumed.scores == whole.scores
    assert not list((tmp_path / "out").glob("*.journal"))


def test_an_odd_batch_is_halved_without_an_empty_half() -> None:
    traces = [Trace(str(n), "p", ("s",)) for n in range(3)]
    backend = Tight(ModelConfig())
    backend.room = 2
    score = within_memory(lambda batch: list(backend.score(batch)), backend.cost)
    assert [s.id for s in score(traces)] == ["0", "1", "2"]
    assert [s.id for s in score(traces[:1])] == ["0"]
    assert backend.asked == [3, 2, 1, 1]


@pytest.mark.parametrize(
    ("room", "options", "said"),
    [
        (1, (), "2 traces of up to 10 tokens do not fit; use a smaller --batch-tokens,"),
        (0, ("--batch-tokens", 1), "of 10 tokens does not fit, at any --batch-tokens; use"),
        (0, ("--batch-tokens", 20), "of 10 tokens does not fit, at any --batch-tokens; use"),
    ],
)
def test_what_does_not_fit_is_one_line(
    room: int,
    options: tuple[object, ...],
    said: str,
    benchmark_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the three options that help in it."""
    monkeypatch.setattr(Tight, "room", room)
    asked = ["eval", "--model", "m", "--backend", "test_scoring_oom:Tight", "--data", benchmark_folder]
    found = CliRunner().invoke(app, [str(a) for a in (*asked, "--out", tmp_path / "out", *options)])
    assert found.exit_code == 2, found.output
    line = found.stderr.splitlines()[-1]
    assert line.startswith("error: out of memory: ")
    assert said in line
    assert all(option in line for option in ("--batch-tokens", "--dtype", "--device"))


def test_other_errors_are_not_taken_for_it() -> None:
    def broken(batch: Sequence[Trace]) -> list[StepScores]:
        raise UserError("broken")

    with pytest.raises(UserError, match=r"^broken$"):
        within_memory(broken, len)([Trace("a", "p", ("s",))] * 4)  # type: ignore[arg-type]
