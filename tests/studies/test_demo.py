"""The demo: bad options and its two tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import write_study
from rich.console import Console
from rl_runs import write_training

from prmbench import tasks
from prmbench.config import DemoConfig
from prmbench.core.records import UserError
from prmbench.studies import demo
from prmbench.studies.reporting.reward_model_runs import gather_study as gather


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seeds is 0; expected at least 1"):
        demo.demo(DemoConfig(seeds=0, out=tmp_path))
    with pytest.raises(UserError, match="--world smollm2"):
        demo.demo(DemoConfig(limit=3, out=tmp_path))


def test_policy_table_has_accuracy_before_and_after_training(tmp_path: Path) -> None:
    for seed, (before, after) in enumerate(((0.25, 0.5), (0.5, 0.75))):
        for arm, loss in (("grpo", 0.0), ("distrl_ipvrm", 0.125)):
            write_training(tmp_path, arm, (before, 0.2, after - loss), (seed, 0))
    console = Console(width=80, record=True)
    console.print(demo.policy_table(tasks.read_runs(tmp_path)))
    lines = {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines() if line.strip()}
    assert lines["grpo"] == ["37.5", "62.5", "+25.0"]
    assert lines["distrl_ipvrm"] == ["37.5", "50.0", "+12.5"]


def test_reward_model_table_has_a_row_per_method_and_chance(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": (0.5, 0.7), "dpo_rm": (0.3, 0.5)}, ("steps", "best_of_n", "calibration"))
    study = gather([tasks.read_run(path) for path in sorted(tmp_path.rglob("*.json"))])
    console = Console(width=80, record=True)
    console.print(demo.reward_model_table(study))
    text = console.export_text()
    assert "mean over seeds 0, 1" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert float(lines["ipvrm"][1]) > float(lines["dpo_rm"][1])
    assert len(lines["ipvrm"]) == 6
    assert "chance" in lines
