"""Our GRPO step (verifier only) against TRL's GRPOTrainer: same model, vocabulary, prompts, completions, advantages.

Neither side samples: TRL's `rollout_func` and reward function return completions that were sampled before. TRL's step
is everything that its trainer does between the ends of two steps; ours is parts 2 to 5 of train-distrl's loop. Loss,
gradient norm and weights must agree before anything is timed; then steps alternate, with TRL's loop calling ours. The
last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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
from measure import last_line_of_new_process, peak_of
from rl_setup import SHAPES, BenchmarkSetup, Size, fixed_config, make_run, open_setup, return_freed_memory, write_inputs
from torch import Tensor
from trl.trainer import grpo_trainer

from prmbench.rl import distrl

TOLERANCE = {"loss": 1e-6, "gradient_norm": 1e-4, "weights": 1e-2}
"""Largest absolute difference of the loss, and largest relative difference of the gradient norm and of the change of
the weights in the first step, where AdamW magnifies rounding errors of the smallest gradients."""
RATE = 1e-5


@dataclass
class Times:
    """Seconds of each step, for both sides."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


class Alternate(transformers.TrainerCallback):
    """Runs one of our steps after each of TRL's; the time between two of ours is TRL's."""

    def __init__(self, ours: Callable[[], object], clock: Callable[[], float], times: Times, updates: int) -> None:
        self.ours, self.clock, self.times, self.updates = ours, clock, times, updates
        self.started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; before the first step the trainer has already fetched a batch, so that step is warm-up."""
        if state.global_step == 0:
            self.started = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Time one of our steps after every `updates` of TRL's, which together are one of its."""
        if state.global_step % self.updates:
            return
        end = self.clock()
        self.ours()
        self.times.peer.append(end - self.started)
        self.started = self.clock()
        self.times.ours.append(self.started - end)


def cpu_clock() -> float:
    """Return the CPU seconds of all threads."""
    return time.process_time()


def wall_clock() -> float:
    """Return the wall clock after the device has finished its queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# --- TRL --------------------------------------------------------------------------------------------------------------


def trainer(setup: BenchmarkSetup, size: Size, folder: Path, steps: int, callbacks: Sequence[Any] = ()) -> Any:
    """Return a GRPOTrainer on the set-up's completions, with our defaults: sequence means, no KL, AdamW, float32."""
    rows = setup.draw.rows
    prompt_indices = {p.text: i for i, p in enumerate(setup.job.prompts)}
    # Our advantages are over the group's population standard deviation; TRL's, unscaled, are reward - mean.
    outcome = torch.tensor([float(row.outcome) for row in rows]).view(-1, size.group)
    rewards = (outcome / outcome.std(1, correction=0, keepdim=True)).flatten().tolist()
    reward_of = {(row.group, row.ids[row.start :]): value for row, value in zip(rows, rewards, strict=True)}

    def rollouts(prompts: list[str], _: Any) -> dict[str, Any]:
        firsts = [prompt_indices[prompt] * size.group for prompt in prompts]
        selected = [rows[first + i % size.group] for i, first in enumerate(firsts)]
        return {
            "prompt_ids": [list(row.ids[: row.start]) for row in selected],
            "completion_ids": [list(row.ids[row.start :]) for row in selected],
            "logprobs": None,
        }

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward_of[prompt_indices[p], tuple(ids)] for p, ids in zip(prompts, completion_ids, strict=True)]

    config = setup.job.config
    grpo_trainer.shuffle_sequence_dict = lambda batch: batch  # so that both sides have the same minibatches
    return trl.GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        rollout_func=rollouts,
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in prompt_indices]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=list(callbacks),
        args=trl.GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=setup.models.policy.device == "cpu",
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


def ours(setup: BenchmarkSetup, folder: Path) -> Callable[[], Mapping[str, Any]]:
    """Return a function that runs one of our steps, which updates the set-up's policy."""
    run = make_run(setup, replace(fixed_config(setup, "grpo"), learning_rate=RATE), folder / "ours")
    return lambda: distrl.learn(run, setup.draw, False)


def weights(model: torch.nn.Module) -> Tensor:
    """Return all weights as one vector."""
    return torch.cat([p.detach().flatten() for _, p in sorted(model.named_parameters())]).double()


def check_same(size: Size, folder: Path, options: Mapping[str, Any]) -> dict[str, float]:
    """Run one step of each side from the same weights, and return the differences; exit when one is too large."""
    setup = open_setup(folder, size, "grpo", options)
    start = weights(setup.models.policy.model).clone()
    metrics = ours(setup, folder)()
    peer = trainer(setup, size, folder, 1)
    peer.train()
    logs = [log for log in peer.state.log_history if "grad_norm" in log]
    theirs = {name: statistics.mean(float(log[name]) for log in logs) for name in ("loss", "grad_norm")}
    mine, other = weights(setup.models.policy.model) - start, weights(peer.model) - start
    gap = {
        "loss": abs(metrics["loss"] - theirs["loss"]),
        "gradient_norm": abs(metrics["grad_norm"] / theirs["grad_norm"] - 1),
        "weights": float((mine - other).norm() / other.norm()),
    }
    if not all(gap[name] <= TOLERANCE[name] for name in gap) or not other.norm():
        sys.exit(f"the two sides differ: {gap}, {metrics}, {theirs}; nothing was timed")
    return gap


# --- measurement ------------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="miniature")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens of the longest completion")
    parser.add_argument("--updates", type=int, default=1, help="policy updates a step")
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of our micro-batch [default: train-distrl's]")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure CPU seconds, for shared machines")
    parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Check that both sides agree, and return the measurements."""
    size = Size(options.shape, options.prompts, options.group, options.length, options.updates)
    write_inputs(folder, size)
    config_options = {"lora_rank": 0, "batch_tokens": options.batch_tokens, "device": options.device}
    gap = {} if options.only else check_same(size, folder, config_options)
    setup = open_setup(folder, size, "grpo", config_options)
    if options.only:
        return_freed_memory()
    if options.only == "ours":
        step = ours(setup, folder)
        return {"peak": peak_of(lambda: [step(), step()])}
    if options.only == "peer":
        peer = trainer(setup, size, folder, 2)
        return {"peak": peak_of(peer.train)}
    times = Times()
    clock = cpu_clock if options.cpu_seconds else wall_clock
    alternate = Alternate(ours(setup, folder), clock, times, size.updates)
    trainer(setup, size, folder, options.warmup + options.steps, [alternate]).train()
    mine, theirs = times.ours[options.warmup :], times.peer[options.warmup :]
    memory = {side: float(last_line_of_new_process("--only", side)) for side in ("ours", "peer")}
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
        "batch_tokens": setup.job.budget,
        "completion_tokens": sum(row.size for row in setup.draw.rows),
        "tokens": sum(len(row.ids) for row in setup.draw.rows),
        "device": setup.models.policy.device,
        "threads": torch.get_num_threads(),
        "trl": trl.__version__,
    }


def main() -> None:
    """Measure, and print the result."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is one of those
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(result["peak"] if options.only else json.dumps(result))


if __name__ == "__main__":
    main()
