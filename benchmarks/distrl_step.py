"""Time and peak memory of a DistRL step against our own GRPO steps, on the same models and completions in one run.

There are two peers: `grpo_ipvrm` has the same reward model and no candidate branch, so the ratio is the cost of that
branch (the paper's Table 13); `grpo` has the verifier only, so the ratio is the cost of reward model and branch. A step
is parts 2 to 5 of train-distrl's loop, without sampling and verification. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import cpu_seconds, last_line_of_new_process, peak_of, seconds
from rl_setup import SHAPES, BenchmarkSetup, Size, fixed_config, make_run, open_setup, return_freed_memory, write_inputs

from prmbench.rl import distrl

ARMS = ("distrl_ipvrm", "grpo_ipvrm", "grpo")
TOLERANCE = 1e-6
"""Largest absolute difference of quantities that the arms share."""
DEFAULT_SIZES = {"miniature": Size("miniature", 16, 4, 64, 1), "smollm2": Size("smollm2", 2, 4, 96, 1)}
"""Sizes of a step of the miniature study, and of one that takes a CPU seconds."""


def step(run: distrl.Run, setup: BenchmarkSetup) -> Mapping[str, Any]:
    """Run one step: old log-probabilities, reward model, advantages, policy."""
    return distrl.learn(run, setup.draw, False)


def check_same(lines: Mapping[str, Mapping[str, Any]], alpha: float) -> dict[str, float]:
    """Return the differences of quantities that the arms share; exit when one is too large.

    DistRL's loss is that of the arm without candidates plus alpha times the candidate loss, which must not be 0.
    """
    with_branch, without, plain = (lines[arm] for arm in ARMS)
    gap = {
        "loss": abs(with_branch["loss"] - alpha * with_branch["candidate_loss"] - without["loss"]),
        "rm_loss": abs(with_branch["rm_loss"] - without["rm_loss"]),
        "sigma_v": abs(with_branch["sigma_v"] - without["sigma_v"]),
        "entropy": abs(with_branch["entropy"] - plain["entropy"]),
    }
    if not max(gap.values()) <= TOLERANCE or not with_branch["candidate_loss"]:
        sys.exit(f"the arms differ in what they share: {gap}, {with_branch}; nothing was timed")
    return gap


def memory_of(run: distrl.Run, setup: BenchmarkSetup) -> dict[str, float]:
    """Return the peak GiB of a step, including weights and optimizers, and how much of it the step itself added."""
    return_freed_memory()
    step(run, setup)  # creates the state of the optimizers
    before = peak_of(lambda: None)
    peak = peak_of(lambda: step(run, setup))
    return {"peak": peak, "step": peak - before}


def parse() -> argparse.Namespace:
    """Return the options; sizes that are not given are those of the shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="miniature")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--group", type=int)
    parser.add_argument("--length", type=int, help="tokens of the longest completion")
    parser.add_argument("--updates", type=int, help="policy updates a step")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of a micro-batch [default: train-distrl's]")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure CPU seconds, for shared machines")
    parser.add_argument("--only", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Check that the arms agree, and return the measurements."""
    default_size = DEFAULT_SIZES[options.shape]
    sizes = {
        name: getattr(options, name) or getattr(default_size, name)
        for name in ("prompts", "group", "length", "updates")
    }
    size = Size(options.shape, **sizes)
    write_inputs(folder, size)
    names = ("lora_rank", "batch_tokens", "device")
    config_options = {name: getattr(options, name) for name in names}
    setup = open_setup(folder, size, options.only or "distrl_ipvrm", config_options)
    arms = (options.only,) if options.only else ARMS
    runs = {arm: make_run(setup, fixed_config(setup, arm), folder / arm) for arm in arms}
    if options.only:
        return memory_of(runs[options.only], setup)
    first = {arm: step(run, setup) for arm, run in runs.items()}
    gap = check_same(first, setup.job.config.alpha or 0.0)
    clock = cpu_seconds if options.cpu_seconds else seconds
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm, run in runs.items():
            times[arm].append(clock(partial(step, run, setup)))
    del runs
    medians = {arm: statistics.median(t) for arm, t in times.items()}
    memory = {arm: json.loads(last_line_of_new_process("--only", arm)) for arm in ARMS}
    distrl_arm, without_branch, plain = ARMS
    return {
        "benchmark": "distrl_step",
        "ratio": round(medians[distrl_arm] / medians[without_branch], 3),
        "ratio_to_grpo": round(medians[distrl_arm] / medians[plain], 3),
        "memory_ratio": round(memory[distrl_arm]["peak"] / memory[without_branch]["peak"], 3),
        "memory_ratio_step": round(memory[distrl_arm]["step"] / memory[without_branch]["step"], 3),
        "memory_ratio_to_grpo": round(memory[distrl_arm]["peak"] / memory[plain]["peak"], 3),
        "ours": round(medians[distrl_arm], 4),
        "peer": round(medians[without_branch], 4),
        "grpo": round(medians[plain], 4),
        "unit": "seconds a step",
        "clock": "CPU seconds" if options.cpu_seconds else "wall",
        "rounds": options.rounds,
        "spread": {arm: [round(min(t), 4), round(max(t), 4)] for arm, t in times.items()},
        "peak_gib": {arm: {name: round(gib, 3) for name, gib in peaks.items()} for arm, peaks in memory.items()},
        "difference": gap,
        "candidates": round(first[distrl_arm]["candidates"], 2),
        "candidate_mass": round(first[distrl_arm]["candidate_mass"], 2),
        "shape": options.shape,
        **sizes,
        "lora_rank": options.lora_rank,
        "batch_tokens": setup.job.budget,
        "completion_tokens": sum(row.size for row in setup.draw.rows),
        "tokens": sum(len(row.ids) for row in setup.draw.rows),
        "device": setup.models.policy.device,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure, and print the result."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


if __name__ == "__main__":
    main()
