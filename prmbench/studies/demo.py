"""The whole story in one command, on a tiny world: a policy, four reward models on its rollouts, and training with one.

It goes through the same functions as the commands. The real model's story is demo_smollm2.py.
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
from prmbench.config import DemoConfig, coerced
from prmbench.core import writing
from prmbench.core.progress import Tell
from prmbench.core.records import Notice, UserError
from prmbench.core.result_files import Run
from prmbench.studies.miniature import pool, rl, study, world
from prmbench.studies.miniature.recipes import METHODS
from prmbench.studies.miniature.rl import DEMO_ARMS, Runs, Scale
from prmbench.studies.miniature.world import World
from prmbench.studies.reporting.reward_model_runs import SHIFTS, BySeed, Study, own
from prmbench.studies.reporting.reward_model_runs import study as gather
from prmbench.studies.reporting.sections import SECTIONS

F1 = ("step_sum", "as_is")
"""Readouts of a step by itself: the paper's main table."""
SCALE = Scale(steps=12, validate_every=0)
"""Of training: before and after are enough."""


@dataclass(frozen=True, slots=True)
class Story:
    """What a demo leaves behind."""

    table: Group
    """Reward models, and beneath them policies."""
    page: Path
    results: Path
    seconds: float


def demo(config: DemoConfig, tell: Tell | None = None, scale: Scale = SCALE) -> Story:
    """Builds the worlds, trains and judges every method and arm on each, writes the report; goes on if interrupted.

    Raises UserError on options of the other world, and when a seed fails.
    """
    config = coerced(config)
    if config.data is not None or config.limit is not None:
        raise UserError("--data and --limit belong to --world smollm2; add it, or drop them")
    writing.check_writable(config.out)
    begun = time.monotonic()
    worlds = [rl.place(config.out / "worlds", config.first_seed + i) for i in range(config.seeds)]
    results = config.out / "results"
    pool.run({f"seed {made.seed}": partial(_seed, made, results, scale) for made in worlds}, tell)
    for fault in report.report(results, config.out / "report", sections=SECTIONS).faults:
        warnings.warn(f"left out of the report: {fault}", Notice, stacklevel=2)
    runs = tasks.read_runs(results)
    told = Group(table(gather([run for run in runs if run.result.manifest.benchmark != rl.BENCHMARK])), policies(runs))
    return Story(told, config.out / "report" / "report.html", results, time.monotonic() - begun)


def _seed(made: World, results: Path, scale: Scale, tell: world.Tell) -> None:
    """One repetition: reward models, then policies that are trained with and without one."""
    study.seed_runs(made, METHODS, results, scale.sizes, tell)
    rl.run(Runs(made, 0, DEMO_ARMS, scale), results, tell)


def table(found: Study) -> Table:
    """One line a method, the mean over seeds; beneath them what chance reaches."""
    top = max(found.group_sizes(), default=0)
    heads = ("on-policy", "injected", "formats", f"best of {top}", "ECE")
    made = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
    made.title = f"miniature, mean over seeds {', '.join(map(str, found.seeds))}"
    made.caption = (
        "F1 of the first wrong step (step_sum, threshold from validation problems), in percent: the policy's own "
        f"solutions, solutions with an injected error, and the mean of five other formats. Best of {top}: accuracy of "
        "the completion picked. ECE: of the prefix value as a probability of success."
    )
    made.add_column("method")
    for head in heads:
        made.add_column(head, justify="right", no_wrap=True)
    for method in found.methods:
        made.add_row(method, *map(_percent, _numbers(found, method, top)))
    made.add_row("chance", *map(_percent, _chance(found)), style="dim")
    return made


def policies(runs: Sequence[Run]) -> Table:
    """One line an arm of training, the mean over seeds."""
    made = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False, min_width=64)
    made.title = "the policy, trained further"
    made.caption = (
        f"Mean accuracy of {rl.SAMPLES} completions a problem, in percent, on problems that nothing was trained on. "
        "grpo: the verifier's word on the answer alone; distrl: with IPVRM's word on every token and its alternatives. "
        "So few seeds tell no winner: leaderboards/miniature_rl.md has more."
    )
    for head in ("arm", "before", "after", "gain"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
    for arm in DEMO_ARMS:
        found = [[t.values for t in run.scores] for run in runs if run.result.manifest.config.get("arm") == arm]
        before, after = (fmean(fmean(v[at] for v in rows) for rows in found) for at in (0, -1))
        made.add_row(arm, *(f"{100 * x:.1f}" for x in (before, after)), f"{100 * (after - before):+.1f}")
    return made


def _numbers(found: Study, method: str, top: int) -> list[BySeed]:
    scenes: Sequence[Sequence[str]] = (("onpolicy",), ("injected",), SHIFTS)
    readout = found.chosen("calibration", method, own(method))
    ece = found.by_seed("calibration", method, (readout, "sigmoid", "ece"), found.subsets("calibration"))
    return [*(found.f1(method, F1, subsets) for subsets in scenes), found.best_of(method, sizes=(top,)), ece]


def _chance(found: Study) -> list[BySeed]:
    method, f1, accuracy = found.methods[0], ("floor/random", "floor", "f1"), ("floor/random", "floor", "accuracy")
    scenes = [found.by_seed("steps", method, f1, subsets) for subsets in (("onpolicy",), ("injected",), SHIFTS)]
    return [*scenes, found.by_seed("best_of_n", method, accuracy, found.subsets("best_of_n")), {}]


def _percent(values: BySeed) -> str:
    return f"{100 * fmean(values.values()):.1f}" if values else ""
