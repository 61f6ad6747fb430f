"""The whole story in one command, on a tiny world: a policy, its rollouts, four reward models, and how good they are.

It goes through the same functions as the commands. The real model's story is demo_smollm2.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich import box
from rich.table import Table

from prmbench import report, store
from prmbench.config import DemoConfig
from prmbench.miniature import seeds
from prmbench.miniature.study import METHODS
from prmbench.miniature.world import Sizes
from prmbench.report.study import SHIFTS, BySeed, Study, own, study
from prmbench.schema import UserError

F1 = ("step_sum", "as_is")
"""Readouts of a step by itself: the paper's main table."""


@dataclass(frozen=True, slots=True)
class Story:
    """What a demo leaves behind."""

    table: Table
    page: Path
    results: Path
    seconds: float


def demo(config: DemoConfig, tell: seeds.Tell | None = None, sizes: Sizes | None = None) -> Story:
    """Builds the worlds, trains and judges every method on each, writes the report. Goes on where it was interrupted.

    Raises UserError on options of the other world, and when a seed fails.
    """
    if config.seeds < 1:
        raise UserError(f"--seeds is {config.seeds}; expected at least 1")
    if config.data is not None or config.limit is not None:
        raise UserError("--data and --limit belong to --world smollm2; add it, or drop them")
    begun = time.monotonic()
    wanted = range(config.first_seed, config.first_seed + config.seeds)
    results = config.out / "results"
    seeds.run(wanted, METHODS, config.out / "worlds", results, tell, sizes)
    report.report(results, config.out / "report")
    runs = [store.read_run(path) for path in sorted(results.glob("*.json"))]
    found = table(study(runs))
    return Story(found, config.out / "report" / "report.html", results, time.monotonic() - begun)


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
