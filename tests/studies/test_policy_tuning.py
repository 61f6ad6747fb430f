"""The report's table of how RL arms were tuned: trials, best options, those at an edge, the expected best of k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rl_runs import write_training
from table_texts import texts

from prmbench.core.records import Notice
from prmbench.studies.reporting.policy_tuning import grids, read_policy_tuning
from prmbench.tasks import read_runs


def line(arm: str, mean: float, **options: float) -> dict[str, Any]:
    return {"arm": arm, "options": options, "mean": mean}


def written(root: Path, table: object) -> Path:
    """Writes one run of the study and a table of tuning beside it."""
    path = write_training(root, "grpo", [0.1, 0.2], benchmark="miniature_rl")
    (path.parent / "tuning_rl.json").write_text(json.dumps(table))
    return root


def test_the_table_shows_the_best_options_and_the_expected_best(tmp_path: Path) -> None:
    grpo = [line("grpo", accuracy, learning_rate=rate) for accuracy, rate in ((0.5, 1e-4), (0.7, 2e-4), (0.6, 3e-4))]
    distrl = [line("distrl_ipvrm", 0.8 - 0.1 * i, alpha=1.0 + i, gae_weight=0.3 - 0.1 * (i - 1) ** 2) for i in range(3)]
    facts = {"seeds": [1000, 1001], "problems": 40}
    (table,) = grids(read_policy_tuning(read_runs(written(tmp_path, {**facts, "settings": [*grpo, *distrl]}))))
    assert table.header == ("Arm", "Trials", "Options", "Best avg@8", "best of 1", "best of 2")
    # Of two of GRPO's trials, the best is 0.7 in two of three pairs and 0.6 in the third.
    assert texts(table) == [
        [
            ("grpo", "3", "learning_rate 0.0002", "70.0", "60.0", "66.7"),
            ("distrl_ipvrm", "3", "alpha 1, gae_weight 0.2", "80.0", "70.0", "76.7"),
        ]
    ]
    assert "40 validation problems of each of the worlds 1000, 1001" in table.caption
    assert list(table.notes) == [
        "The arms had the same number of trials.",
        "Options whose best value lies at the edge of those tried: distrl_ipvrm (alpha, gae_weight).",
    ]


def test_unequal_numbers_of_trials_are_said(tmp_path: Path) -> None:
    settings = [line("grpo", 0.5 + 0.1 * i, learning_rate=1e-4 * (1 + i)) for i in range(2)]
    settings.append(line("prime", 0.4, learning_rate=1e-4))
    table = {"seeds": [1000], "problems": 40, "settings": settings}
    (made,) = grids(read_policy_tuning(read_runs(written(tmp_path, table))))
    assert made.notes[0] == "The arms had different numbers of trials."
    assert texts(made)[0][1] == ("prime", "1", "learning_rate 0.0001", "40.0", "40.0", "–")


@pytest.mark.parametrize("table", [[], {"settings": 3}, {"settings": [{"arm": "grpo"}]}, {"settings": []}])
def test_a_file_that_is_no_table_is_named(table: object, tmp_path: Path) -> None:
    with pytest.warns(Notice, match=r"tuning_rl.json: is no table of tuning"):
        assert read_policy_tuning(read_runs(written(tmp_path, table))) is None


def test_without_a_table_there_is_none(tmp_path: Path) -> None:
    write_training(tmp_path, "grpo", [0.1, 0.2], benchmark="miniature_rl")
    assert grids(read_policy_tuning(read_runs(tmp_path))) == ()
