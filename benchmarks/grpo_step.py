"""Our GRPO step (verifier only) against TRL's GRPOTrainer: same model, vocabulary, prompts, completions, advantages.

Neither side draws: TRL's `rollout_func` and reward hand out what was drawn before. TRL's step is all that its trainer
does from one step's end to the next; ours is parts 2 to 5 of train-distrl's loop. Loss, gradient norm and weights must
agree first; then steps alternate, TRL's own loop calling ours. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from rl_setup import SHAPES, Scene, Size, fixed, open_scene, return_freed_memory, run_of, write
from score_throughput import peak_of
from torch import Tensor
from trl.trainer import grpo_trainer

from prmbench.rl import distrl

TOLERANCE = {"loss": 1e-6, "gradient_norm": 1e-4, "weights": 1e-2}
"""Absolute of the loss; relative of the gradient's norm and of the way that the weights went in the first step, where
AdamW divides rounding of the smallest gradients by itself."""
RATE = 1e-5


@dataclass
class Times:
    """Seconds of each step."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


class Alternate(transformers.TrainerCallback):
    """After each of TRL's steps, one of ours; what lies between two calls is TRL's."""

    def __init__(self, ours: Callable[[], object], clock: Callable[[], float], times: Times, updates: int) -> None:
        self.ours, self.clock, self.times, self.updates = ours, clock, times, updates
        self.begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first one the trainer has already fetched a batch: that step is warm-up."""
        if state.global_step == 0:
            self.begun = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """`updates` of TRL's steps are one of ours."""
        if state.global_step % self.updates:
            return
        end = self.clock()
        self.ours()
        self.times.peer.append(end - self.begun)
        self.begun = self.clock()
        self.times.ours.append(self.begun - end)


def cpu_clock() -> float:
    """CPU time of all threads."""
    return time.process_time()


def wall_clock() -> float:
    """With the device's queue done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# --- TRL --------------------------------------------------------------------------------------------------------------


def trainer(scene: Scene, size: Size, folder: Path, steps: int, callbacks: Sequence[Any] = ()) -> Any:
    """GRPOTrainer on the scene's completions, as our default: means per sequence, no KL, AdamW, float32."""
    rows = scene.draw.rows
    texts = {p.text: i for i, p in enumerate(scene.job.prompts)}
    # Our advantages are over the group's population standard deviation; TRL's, unscaled, are reward - mean.
    outcome = torch.tensor([float(row.outcome) for row in rows]).view(-1, size.group)
    rewards = (outcome / outcome.std(1, correction=0, keepdim=True)).flatten().tolist()
    known = {(row.group, row.ids[row.start :]): value for row, value in zip(rows, rewards, strict=True)}

    def rollouts(prompts: list[str], _: Any) -> dict[str, Any]:
        firsts = [texts[prompt] * size.group for prompt in prompts]
        found = [rows[first + i % size.group] for i, first in enumerate(firsts)]
        return {
            "prompt_ids": [list(row.ids[: row.start]) for row in found],
            "completion_ids": [list(row.ids[row.start :]) for row in found],
            "logprobs": None,
        }

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [known[texts[p], tuple(ids)] for p, ids in zip(prompts, completion_ids, strict=True)]

    config = scene.job.config
    grpo_trainer.shuffle_sequence_dict = lambda batch: batch  # minibatches of the same prompts on both sides
    return trl.GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        rollout_func=rollouts,
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=list(callbacks),
        args=trl.GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=scene.models.policy.device == "cpu",
            max_steps=steps * size.updates,
            per_device_train_batch_size=len(rows) // size.updates,
            gradient_accumulation_steps=1,
            steps_per_generation=size.updates,
            num_generations=size.group,
            max_completion_length=size.length,
            loss_type="grpo",
            scale_rewards="none",
            beta=0.0,
            epsilon=config.clip_low,
            epsilon_high=config.clip_high,
            delta=config.dual_clip,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=config.max_grad_norm,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            report_to=[],
            save_strategy="no",
            logging_steps=1 if steps == 1 else 10_000,
            disable_tqdm=True,
        ),
    )


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(scene: Scene, folder: Path) -> Callable[[], Mapping[str, Any]]:
    """A step on the scene's policy, which it moves."""
    run = run_of(scene, replace(fixed(scene, "grpo"), learning_rate=RATE), folder / "ours")
    return lambda: distrl.learn(run, scene.draw, False)


def weights(model: torch.nn.Module) -> Tensor:
    """All of them, flat."""
    return torch.cat([p.detach().flatten() for _, p in sorted(model.named_parameters())]).double()


def check_same(size: Size, folder: Path, options: Mapping[str, Any]) -> dict[str, float]:
    """One step of each from the same weights. Exits when they differ."""
    scene = open_scene(folder, size, "grpo", options)
    start = weights(scene.models.policy.model).clone()
    line = ours(scene, folder)()
    peer = trainer(scene, size, folder, 1)
    peer.train()
    logs = [log for log in peer.state.log_history if "grad_norm" in log]
    theirs = {name: statistics.mean(float(log[name]) for log in logs) for name in ("loss", "grad_norm")}
    mine, other = weights(scene.models.policy.model) - start, weights(peer.model) - start
    gap = {
        "loss": abs(line["loss"] - theirs["loss"]),
        "gradient_norm": abs(line["grad_norm"] / theirs["grad_norm"] - 1),
        "weights": float((mine - other).norm() / other.norm()),
    }
    if not all(gap[name] <= TOLERANCE[name] for name in gap) or not other.norm():
        sys.exit(f"the two sides differ: {gap}, {line}, {theirs}; nothing was timed")
    return gap


# --- measurement ------------------------------------------------------------------------------------------------------


def memory_elsewhere(side: str) -> float:
    """Peak GiB of two steps in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", side]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    return float(out.splitlines()[-1])


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="miniature")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens of the longest completion")
    parser.add_argument("--updates", type=int, default=1, help="policy updates a step")
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of our micro-batch [default: train-distrl's]")
    parser.add_argument("--steps", type=int, default=20, help="that count")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="not the wall clock: where others use the cores too")
    parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it."""
    size = Size(options.shape, options.prompts, options.group, options.length, options.updates)
    write(folder, size)
    chosen = {"lora_rank": 0, "batch_tokens": options.batch_tokens, "device": options.device}
    gap = {} if options.only else check_same(size, folder, chosen)
    scene = open_scene(folder, size, "grpo", chosen)
    if options.only:
        return_freed_memory()
    if options.only == "ours":
        step = ours(scene, folder)
        return {"peak": peak_of(lambda: [step(), step()])}
    if options.only == "peer":
        peer = trainer(scene, size, folder, 2)
        return {"peak": peak_of(peer.train)}
    times = Times()
    clock = cpu_clock if options.cpu_seconds else wall_clock
    alternate = Alternate(ours(scene, folder), clock, times, size.updates)
    trainer(scene, size, folder, options.warmup + options.steps, [alternate]).train()
    mine, theirs = times.ours[options.warmup :], times.peer[options.warmup :]
    memory = {side: memory_elsewhere(side) for side in ("ours", "peer")}
    medians = statistics.median(mine), statistics.median(theirs)
    return {
        "benchmark": "grpo_step",
        "ratio": round(medians[0] / medians[1], 3),
        "memory_ratio": round(memory["ours"] / memory["peer"], 3),
        "ours": round(medians[0], 4),
        "peer": round(medians[1], 4),
        "unit": "seconds a step",
        "clock": "CPU seconds" if options.cpu_seconds else "wall",
        "steps": len(mine),
        "spread": {k: [round(min(t), 4), round(max(t), 4)] for k, t in (("ours", mine), ("peer", theirs))},
        "peak_gib": {side: round(value, 3) for side, value in memory.items()},
        "difference": gap,
        "shape": options.shape,
        "prompts": size.prompts,
        "group": size.group,
        "length": size.length,
        "updates": size.updates,
        "batch_tokens": scene.job.budget,
        "completion_tokens": sum(row.size for row in scene.draw.rows),
        "tokens": sum(len(row.ids) for row in scene.draw.rows),
        "device": scene.models.policy.device,
        "threads": torch.get_num_threads(),
        "trl": trl.__version__,
    }


def main() -> None:
    """Parses, checks, measures, prints."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is one of those
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(found["peak"] if options.only else json.dumps(found))


if __name__ == "__main__":
    main()
