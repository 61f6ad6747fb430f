"""The report's tables of tuning: trials of every loss, withdrawn claims, and the expected best of k trials."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from report_runs import write_study
from table_texts import texts

from prmbench.core import result_files
from prmbench.core.records import Notice
from prmbench.studies.miniature import reward_model_tuning
from prmbench.studies.reporting import sections, tuning_tables
from prmbench.studies.reporting.sections import study_sheets
from prmbench.studies.reporting.tuning_tables import expected_best, expected_curve, read_tuning
from prmbench.tasks import read_runs

COMMITTED = Path("leaderboards/results/miniature")


def line(loss: str, f1: float, **constants: float) -> dict[str, Any]:
    values = {"learning_rate": 0.001, "beta": 1.0, "margin": None, **constants}
    return {"loss": loss, **values, "f1": {"1000": f1 - 0.1, "1001": f1 + 0.1}, "mean_f1": f1}


def random_table(ipvrm: int = 3, dpo_rm: int = 3) -> dict[str, Any]:
    trials = [line("dpo_rm", 0.5 + 0.1 * i, beta=2.0 + i) for i in range(dpo_rm)]
    trials += [line("ipvrm", 0.9 - 0.1 * i, margin=0.25 + i) for i in range(ipvrm)]
    trials[0]["f1"]["1001"] = None
    earlier = {"settings": [line("ipvrm", 0.4)], "also_seen": [line("ipvrm", 0.3), line("q_rm", 0.2)]}
    facts = {"rule": "Each loss gets 3 trials.", "stopped": "the limit of 3 trials", "earlier": earlier}
    return {**facts, "trials": trials, "chosen": {}}


def sheet(root: Path, table: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch | None = None) -> Any:
    """Returns the study's sheet; with `monkeypatch`, without drawing figures, which takes a second."""
    if monkeypatch is not None:
        monkeypatch.setattr(sections, "render_figures", lambda *_: ())
    write_study(root, {"ipvrm": (0.6, 0.7), "dpo_rm": (0.5, 0.4)})
    if table is not None:
        for folder in {path.parent for path in root.rglob("*.json")}:
            (folder / "tuning.json").write_text(json.dumps(table))
    (made,) = study_sheets(list(read_runs(root)))
    return made


def notes(made: Any, label: str) -> tuple[str, ...]:
    return next(tuple(table.notes) for table in made.tables if table.label == label)


# --- expected best --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_expected_best_is_the_mean_over_all_subsets(k: int) -> None:
    values = [0.3, 0.9, 0.1, 0.9, 0.5]
    assert expected_best(values, k) == pytest.approx(fmean(max(s) for s in combinations(values, k)))


@pytest.mark.parametrize("k", [0, 4])
def test_expected_best_needs_k_values(k: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 3"):
        expected_best([1.0, 2.0, 3.0], k)


# --- tables ---------------------------------------------------------------------------------------------


def test_equal_tuning_shows_trials_curves_and_no_withdrawal(tmp_path: Path) -> None:
    made = sheet(tmp_path, random_table())
    table = next(t for t in made.tables if t.label == "study-tuning")
    assert table.header[-2:] == ("best of 1", "best of 2")
    # ipvrm: 0.9, 0.8, 0.7; the best of two is 0.9 in two of three pairs and 0.8 in the third.
    assert texts(table)[0] == [
        ("ipvrm", "3", "90.0", "0.001", "1", "0.25", "80.0", "86.7"),
        ("dpo_rm", "3", "70.0", "0.001", "4", "–", "60.0", "66.7"),
    ]
    assert table.caption.startswith("Each loss gets 3 trials.")
    assert "2 validation worlds (1000, 1001)" in table.caption
    assert list(table.notes) == [
        "Trials per loss: 3 ipvrm, 3 dpo_rm.",
        "It ended at the limit of 3 trials.",
        "Trainings that diverged, which count as F1 0: 1.",
        "Besides, 3 settings from before the search.",
    ]
    assert not any("Withdrawn" in note for t in made.tables for note in t.notes)
    assert "miniature-tuning" in {figure.name for figure in made.figures}
    assert json.loads(made.json)["tuning"]["expected_best"]["ipvrm"] == [0.8, 0.866667, 0.9]


def test_unequal_tuning_withdraws_the_comparisons_of_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sheet(tmp_path, random_table(dpo_rm=2), monkeypatch)
    sentence = (
        "Withdrawn until the study is run again: answers of T1 and T2 with tuned constants, since tuning was not equal "
        "(trials per loss: 3 ipvrm, 2 dpo_rm)."
    )
    for label in ("study-answers", "study-comparisons", "study-tuning"):
        assert sentence in notes(made, label), label


def test_without_a_table_nothing_is_said_of_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sheet(tmp_path, None, monkeypatch)
    assert "study-tuning" not in {table.label for table in made.tables}
    assert json.loads(made.json)["tuning"] == {}


@pytest.mark.parametrize(
    "table", [[], {"trials": 3}, {"trials": [{"loss": "ipvrm"}], "earlier": {}}, {"settings": [1]}]
)
def test_a_file_that_is_no_table_is_named(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(Notice, match=r"tuning.json: is no table of tuning"):
        made = sheet(tmp_path, table, monkeypatch)
    assert "study-tuning" not in {table.label for table in made.tables}


# --- the committed study --------------------------------------------------------------------------------


def test_the_committed_trials_are_equal_and_all_counted() -> None:
    table = json.loads((COMMITTED / "tuning.json").read_text())
    (first, *_) = result_files.result_paths(COMMITTED / "miniature-calibration.tar.xz")
    tuning = read_tuning([result_files.read_stored(first)])
    assert tuning is not None
    assert tuning.is_equal
    assert not tuning_tables.withdrawn(tuning)
    search, losses = reward_model_tuning.SEARCH, len(reward_model_tuning.SPACES)
    assert min(tuning.counts.values()) >= search.first
    assert len(tuning.trials) == sum(losses * of_round["trials_a_loss"] for of_round in table["rounds"])
    assert len(tuning.earlier) == len(table["earlier"]["settings"]) + len(table["earlier"]["also_seen"])
    assert {len(trial.f1) for trial in tuning.trials} == {len(reward_model_tuning.VALIDATION_SEEDS)}
    assert table["stopped"]
    assert len(expected_curve(tuning, "ipvrm")) == tuning_tables.LARGEST_K


def test_the_docs_tell_the_rule_of_the_search() -> None:
    text = " ".join(Path("docs/studies.md").read_text().split())
    search = reward_model_tuning.SEARCH
    for words in (
        f"The first round has {search.first} trials a loss",
        f"gets {search.further} further trials",
        f"at {search.limit} trials a loss",
    ):
        assert words in text, words
