"""A DistRL step against our own GRPO steps, on the same models and completions in one run: time and peak memory.

Two peers: `grpo_ipvrm` has the same reward model and no candidate branch, so the ratio is what that branch costs (the
paper's Table 13); `grpo` has the verifier only, so the ratio is what reward model and branch cost. A step is parts 2 to
5 of train-distrl's loop: drawing and verifying are left out. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rl_setup import SHAPES, Scene, Size, fixed, open_scene, return_freed_memory, run_of, write
from score_throughput import peak_of, seconds
from train_throughput import cpu_seconds

from prmbench.rl import distrl

ARMS = ("distrl_ipvrm", "grpo_ipvrm", "grpo")
TOLERANCE = 1e-6
"""Absolute, of what the arms share."""
SMALL = {"miniature": Size("miniature", 16, 4, 64, 1), "smollm2": Size("smollm2", 2, 4, 96, 1)}
"""A step of the miniature study; a step that a CPU does in seconds."""


def step(run: distrl.Run, scene: Scene) -> Mapping[str, Any]:
    """Old log-probabilities, reward model, advantages, policy."""
    return distrl.learn(run, scene.draw, False)


def check_same(lines: Mapping[str, Mapping[str, Any]], alpha: float) -> dict[str, float]:
    """Differences of what the arms share: DistRL's loss is that of the arm without candidates + alpha times theirs.

    Exits when they are too large, or when the candidate branch does nothing.
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


def memory_of(run: distrl.Run, scene: Scene) -> dict[str, float]:
    """Peak GiB of a step, weights and optimizers included, and how much of it the step itself added."""
    return_freed_memory()
    step(run, scene)  # after it optimizers have their state
    before = peak_of(lambda: None)
    peak = peak_of(lambda: step(run, scene))
    return {"peak": peak, "step": peak - before}


def memory_elsewhere(arm: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", arm]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def parse() -> argparse.Namespace:
    """Options; sizes left out are the shape's."""
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
    parser.add_argument("--cpu-seconds", action="store_true", help="not the wall clock: where others use the cores too")
    parser.add_argument("--only", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it."""
    usual = SMALL[options.shape]
    given = {name: getattr(options, name) or getattr(usual, name) for name in ("prompts", "group", "length", "updates")}
    size = Size(options.shape, **given)
    write(folder, size)
    names = ("lora_rank", "batch_tokens", "device")
    chosen = {name: getattr(options, name) for name in names}
    scene = open_scene(folder, size, options.only or "distrl_ipvrm", chosen)
    arms = (options.only,) if options.only else ARMS
    runs = {arm: run_of(scene, fixed(scene, arm), folder / arm) for arm in arms}
    if options.only:
        return memory_of(runs[options.only], scene)
    first = {arm: step(run, scene) for arm, run in runs.items()}
    gap = check_same(first, scene.job.config.alpha or 0.0)
    clock = cpu_seconds if options.cpu_seconds else seconds
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm, run in runs.items():
            times[arm].append(clock(partial(step, run, scene)))
    del runs
    medians = {arm: statistics.median(t) for arm, t in times.items()}
    memory = {arm: memory_elsewhere(arm) for arm in ARMS}
    distrl_arm, same, plain = ARMS
    return {
        "benchmark": "distrl_step",
        "ratio": round(medians[distrl_arm] / medians[same], 3),
        "ratio_to_grpo": round(medians[distrl_arm] / medians[plain], 3),
        "memory_ratio": round(memory[distrl_arm]["peak"] / memory[same]["peak"], 3),
        "memory_ratio_step": round(memory[distrl_arm]["step"] / memory[same]["step"], 3),
        "memory_ratio_to_grpo": round(memory[distrl_arm]["peak"] / memory[plain]["peak"], 3),
        "ours": round(medians[distrl_arm], 4),
        "peer": round(medians[same], 4),
        "grpo": round(medians[plain], 4),
        "unit": "seconds a step",
        "clock": "CPU seconds" if options.cpu_seconds else "wall",
        "rounds": options.rounds,
        "spread": {arm: [round(min(t), 4), round(max(t), 4)] for arm, t in times.items()},
        "peak_gib": {arm: {k: round(v, 3) for k, v in found.items()} for arm, found in memory.items()},
        "difference": gap,
        "candidates": round(first[distrl_arm]["candidates"], 2),
        "candidate_mass": round(first[distrl_arm]["candidate_mass"], 2),
        "shape": options.shape,
        **given,
        "lora_rank": options.lora_rank,
        "batch_tokens": scene.job.budget,
        "completion_tokens": sum(row.size for row in scene.draw.rows),
        "tokens": sum(len(row.ids) for row in scene.draw.rows),
        "device": scene.models.policy.device,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Parses, checks, measures, prints."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


if __name__ == "__main__":
    main()
