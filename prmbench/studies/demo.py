"""The demo on miniature worlds: a policy, four reward models trained on its rollouts, and RL with one of them.

It calls the functions behind the commands. The demo with a real model is demo_smollm2.py.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Group
from rich.table import Table

from prmbench import report, tasks
from prmbench.config import DemoConfig, validate
from prmbench.core import writing
from prmbench.core.progress import JobProgress
from prmbench.core.records import Notice, UserError
from prmbench.core.result_files import Run
from prmbench.studies.miniature import process_pool, rl_study
from prmbench.studies.miniature.recipes import DEMO_METHODS
from prmbench.studies.miniature.reward_model_study import run_seed
from prmbench.studies.miniature.rl_study import DEMO_ARMS, ArmRuns, Scale
from prmbench.studies.miniature.world import ActivityProgress, Sizes, World, seed_world
from prmbench.studies.reporting.reward_model_runs import SHIFTS, BySeed, Study, chance, own_readouts
from prmbench.studies.reporting.reward_model_runs import gather_study as gather
from prmbench.studies.reporting.sections import SECTIONS

PROCESS_READOUTS = ("step_sum", "as_is")
"""Readouts of single steps, as in the paper's main table."""
SCALE = Scale(steps=12, validate_every=0, world_sizes=Sizes())
"""Policies are validated before and after training only."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Tables and files of a finished demo."""

    table: Group
    """Reward models, and policies beneath them."""
    page: Path
    results: Path
    seconds: float


def demo(config: DemoConfig, progress: JobProgress | None = None, scale: Scale = SCALE) -> DemoResult:
    """Builds the worlds, trains and judges every method and arm on each, and writes the report.

    Continues where an earlier call was interrupted.

    Raises:
        UserError: options of the other demo were given, or a seed failed.
    """
    config = validate(config)
    if config.data is not None or config.limit is not None:
        raise UserError("--data and --limit belong to --world smollm2; add it, or drop them")
    writing.check_writable(config.out)
    start = time.monotonic()
    if earlier := len(list((config.out / "results").rglob("*.json"))):
        message = f"{config.out}: {earlier} runs of an earlier demo are used; delete the folder to begin anew"
        warnings.warn(message, Notice, stacklevel=2)
    worlds = [seed_world(config.out / "worlds", config.first_seed + i) for i in range(config.seeds)]
    results, report_folder = config.out / "results", config.out / "report"
    process_pool.run_jobs(
        {f"seed {world.seed}": partial(_run_seed, world, results, scale) for world in worlds}, progress
    )
    for fault in report.report(results, report_folder, sections=SECTIONS, official=False).faults:
        warnings.warn(f"left out of the report: {fault}", Notice, stacklevel=2)
    runs = tasks.read_runs(results)
    reward_models = gather([run for run in runs if run.result.manifest.benchmark != rl_study.BENCHMARK])
    tables = Group(reward_model_table(reward_models), policy_table(runs))
    return DemoResult(tables, report_folder / "report.html", results, time.monotonic() - start)


def _run_seed(world: World, results: Path, scale: Scale, progress: ActivityProgress) -> None:
    """Trains and judges the reward models of one world, then trains the policies with and without one."""
    run_seed(world, DEMO_METHODS, results, scale.world_sizes, progress)
    rl_study.run_arms(ArmRuns(world, 0, DEMO_ARMS, scale), results, progress)


def reward_model_table(study: Study) -> Table:
    """Returns a table with a row per method, the mean over seeds, and chance beneath them."""
    largest = max(study.group_sizes(), default=0)
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
    table.title = f"miniature, mean over seeds {', '.join(map(str, study.seeds))}"
    table.caption = (
        "F1 of the first wrong step (step_sum, threshold from validation problems), in percent: the policy's own "
        f"solutions, solutions with an injected error, and the mean of five other formats. Best of {largest}: accuracy "
        "of the completion picked. ECE: of the prefix value as a probability of success."
    )
    table.add_column("method")
    for heading in ("on-policy", "injected", "formats", f"best of {largest}", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method in study.methods:
        table.add_row(method, *map(_percent, _method_values(study, method, largest)))
    table.add_row("chance", *map(_percent, _chance_values(study)), style="dim")
    return table


def policy_table(runs: Sequence[Run]) -> Table:
    """Returns a table with a row per arm of RL training, the mean over seeds."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False, min_width=64)
    table.title = "the policy, trained further"
    table.caption = (
        f"Mean accuracy of {rl_study.VALIDATION_SAMPLES} completions a problem, in percent, on problems that nothing "
        "was trained on. grpo: reward from the verifier of final answers alone; distrl: also from IPVRM's score of "
        "every token and its alternatives. So few seeds tell no winner: leaderboards/miniature_rl.md has more."
    )
    for heading in ("arm", "before", "after", "gain"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm in DEMO_ARMS:
        values = [[t.values for t in run.scores] for run in runs if run.result.manifest.config.get("arm") == arm]
        before, after = (fmean(fmean(v[position] for v in of_run) for of_run in values) for position in (0, -1))
        table.add_row(arm, f"{100 * before:.1f}", f"{100 * after:.1f}", f"{100 * (after - before):+.1f}")
    return table


def _method_values(study: Study, method: str, largest: int) -> list[BySeed]:
    """Returns a method's values by seed, column by column."""
    subset_groups: Sequence[Sequence[str]] = (("onpolicy",), ("injected",), SHIFTS)
    readout = study.first_readout("calibration", method, own_readouts(method))
    ece = study.by_seed("calibration", method, (readout, "sigmoid", "ece"), study.subsets("calibration"))
    f1 = [study.f1(method, PROCESS_READOUTS, subsets) for subsets in subset_groups]
    return [*f1, study.best_of(method, sizes=(largest,)), ece]


def _chance_values(study: Study) -> list[BySeed]:
    """Returns the values of random scores by seed, column by column; there is none for ECE."""
    method, f1, accuracy = study.methods[0], chance(), ("floor/random", "floor", "accuracy")
    floors = [study.by_seed("steps", method, f1, subsets) for subsets in (("onpolicy",), ("injected",), SHIFTS)]
    return [*floors, study.by_seed("best_of_n", method, accuracy, study.subsets("best_of_n")), {}]


def _percent(values: BySeed) -> str:
    return f"{100 * fmean(values.values()):.1f}" if values else ""
