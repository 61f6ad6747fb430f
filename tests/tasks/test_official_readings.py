"""Published rows name the protocol and input that ours are compared with; runs under another reading say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from metric_rows import manifest
from report_runs import manifest as stored_manifest
from report_runs import scores_of, traces
from rich.console import Console

from prmbench import report, tasks
from prmbench.backends import cards
from prmbench.config import EvalConfig
from prmbench.core.records import EvalProtocol, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.evaluation.run_files import judge_and_write
from prmbench.report.board import UNOFFICIAL_MARK, boards
from prmbench.report.board_tables import published_tables
from prmbench.tasks.published import is_unofficial, official_readings, published, unofficial_note

RLHFLOW = "RLHFlow/Llama3.1-8B-PRM-Mistral-Data"
OFFICIAL, AUTHORS = "turns, joint '\\n\\n'", "turns, joint ' '"


def about(model: str = RLHFLOW, input_format: str = OFFICIAL, **facts: object) -> dict[str, object]:
    return {"model": model, "input_format": input_format, "series": ("full", "greedy"), "native": 0.5, **facts}


def test_every_reading_is_of_a_known_model_and_its_protocol_can_be_read_back() -> None:
    for benchmark in ("processbench", "prmbench_preview"):
        for publication in published(benchmark):
            for row in publication.rows:
                if row.reading is not None:
                    assert row.reading.model in cards.MODELS
                    assert EvalProtocol.parse(row.reading.protocol).key == row.reading.protocol
                    assert row.readout == row.reading.protocol.partition("/")[0]


def test_the_card_of_rlhflow_is_the_official_reading() -> None:
    (reading,) = official_readings("processbench", RLHFLOW)
    assert reading.protocol == "greedy.as_is/native"
    assert reading.input_format == f"turns, joint {cards.MODELS[RLHFLOW].joint!r}" == OFFICIAL


@pytest.mark.parametrize(
    ("model", "input_format", "note"),
    [
        (RLHFLOW, OFFICIAL, "official reading: greedy.as_is/native on turns, joint '\\n\\n'; other readouts are not"),
        (RLHFLOW, AUTHORS, "not the official reading, which is greedy.as_is/native on turns, joint '\\n\\n'"),
        (RLHFLOW.partition("/")[2], AUTHORS, "not the official reading, which is greedy.as_is/native"),
        ("org/other", AUTHORS, ""),
    ],
)
def test_a_run_says_whether_its_reading_is_the_official_one(model: str, input_format: str, note: str) -> None:
    facts = manifest("steps", "prob", benchmark="processbench", **about(model, input_format))
    assert unofficial_note(facts).startswith(note)
    assert bool(unofficial_note(facts)) == bool(note)
    is_official = input_format == OFFICIAL
    assert is_unofficial(facts, "greedy.as_is/native") == (bool(note) and not is_official)
    assert is_unofficial(facts, "as_is/native") == bool(note)
    assert unofficial_note(replace(facts, benchmark="my traces")) == ""


def rlhflow_scores() -> list[ScoredTrace]:
    """Scores with RLHFlow's two further series."""
    scored = scores_of(traces(8, ("gsm8k", "math")))
    greedy = [tuple(float(v > 0.5) for v in t.values) for t in scored]
    return [
        t if t.unscored else replace(t, also={"full": t.values, "greedy": labels})
        for t, labels in zip(scored, greedy, strict=True)
    ]


def test_the_terminal_the_card_and_the_board_say_so(tmp_path: Path) -> None:
    scores = rlhflow_scores()
    facts = stored_manifest(scores, b"", benchmark="processbench", replicates=5, tie="wrong", **about())
    run = Run(RunResult(facts, tasks.judge(facts, scores)), tuple(scores), tmp_path / "a.json")
    rows = {line.protocol: line.marks for t in boards([run])[0].tables for line in t.rows if line.group == "model"}
    assert rows["greedy.as_is/native"] == ""
    assert rows["as_is/native"] == rows["full.as_is/oracle"] == UNOFFICIAL_MARK
    console = Console(width=80, record=True)
    console.print(report.run_table(run.result))
    shown = " ".join(console.export_text().split())
    assert "official reading: greedy.as_is/native on turns, joint '\\n\\n'; other readouts" in shown
    native = next(t for t in published_tables(published("processbench")) if t.label == "published-native")
    assert "RLHFlow-PRM-Mistral-8B: compare with greedy.as_is/native on turns, joint '\\n\\n'." in native.notes


def test_skyworks_official_protocol_is_judged_without_being_asked_for(tmp_path: Path) -> None:
    labelled = [
        replace(t, step_labels=tuple(float(k != t.label) for k in range(t.steps)), subset="circular")
        for t in scores_of(traces(6, ("gsm8k",)))
    ]
    model = "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B"
    draft = stored_manifest(labelled, b"", model=model, benchmark="prmbench_preview", task="validity", replicates=3)
    run = judge_and_write(draft, labelled, EvalConfig.protocol, tmp_path / f"{draft.run_id}.json")
    keys = {row.protocol for row in run.result.rows}
    assert "step_diff/fixed:-0.05" in keys
    assert "step_diff/oracle" not in keys
    assert tasks.read_verified(run.path, resampled=True).result == run.result
    other = replace(draft, model="org/other")
    again = judge_and_write(other, labelled, (), tmp_path / "other.json")
    assert not [row for row in again.result.rows if row.protocol.startswith("step_diff")]
