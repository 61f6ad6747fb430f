"""One update of IPVRM training against the usual way, on the same model and rollouts in one run.

The usual way, written here as published trainers do it: policy and reference resident, batches of 2 in data order,
padded, full float32 log-softmax over all positions of both. Loss and gradients must agree first; then the median of
alternating rounds. Our time has the reference's pass in it; a second ratio leaves it out. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from score_throughput import matmul_rate, peak_of, seconds
from torch import Tensor
from torch.nn.functional import softplus

import prmbench
from prmbench.config import TrainRMConfig
from prmbench.data import rollouts
from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.studies import demo_smollm2
from prmbench.training import examples, losses, optimiser
from prmbench.training.batching import CPU_TOKENS, GPU_TOKENS, collate, micro_batches
from prmbench.training.model import Forward, Runner

BETA, MARGIN = 10.0, 5.0
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Relative, of the loss and of the gradient. In bfloat16 the peer's logits are rounded, ours are not."""
ROW = losses.LOSSES["ipvrm"]


@dataclass(frozen=True)
class Scene:
    """What both sides work on."""

    policy: HFEngine
    reference: HFEngine
    """The start model; of the side that runs alone without a second model, the same object until `perturb`."""
    data: examples.Dataset
    budget: int
    dtype: str
    checkpointing: bool
    """Ours recomputes activations."""

    def autocast(self) -> Any:
        """Both sides compute in bfloat16, or neither does; weights are float32."""
        kind = self.policy.model.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.dtype == "bfloat16")


def perturb(engine: HFEngine) -> None:
    """As if some updates were done: with policy = reference every log-ratio would be 0."""
    generator = torch.Generator(engine.model.device).manual_seed(0)
    with torch.no_grad():
        for weight in engine.model.parameters():
            noise = torch.randn(weight.shape, generator=generator, device=weight.device)
            weight.add_(noise * 0.02 * weight.std())


# --- the two sides: gradients of the mean loss, left in the policy ---------------------------------------------------


def runner(scene: Scene, engine: HFEngine) -> Runner:
    """As train.py has it, on one process."""
    dtype = torch.bfloat16 if scene.dtype == "bfloat16" else None
    return Runner(engine, None, Forward(engine.model, "lm"), str(engine.model.device), dtype)


def plan(scene: Scene) -> list[tuple[examples.Unit, ...]]:
    """The micro-batches of train.py."""
    return micro_batches(scene.data.units, [len(e.ids) for e in scene.data.examples], scene.budget, 1)[0]


@torch.no_grad()
def our_reference(scene: Scene) -> list[np.ndarray]:
    """What training does once, before its first update."""
    known: dict[int, np.ndarray] = {}
    ready = runner(scene, scene.reference)
    for units in plan(scene):
        values = ready.values(collate(scene.data, units, False, None, ready.device)).cpu().numpy()
        known |= {i: row[: len(scene.data.examples[i].reads)] for (i,), row in zip(units, values, strict=True)}
    return [known[i] for i in range(len(known))]


def ours(scene: Scene, known: list[np.ndarray]) -> float:
    """Log-probabilities from hidden states at the completion's tokens, batches by length, the reference from memory."""
    ready, total = runner(scene, scene.policy), 0.0
    if scene.checkpointing:
        ready.model.gradient_checkpointing_enable({"use_reentrant": False})
    bottom = losses.denominator(ROW, [len(e.reads) for e in scene.data.examples], "sequence")
    for units in plan(scene):
        batch = collate(scene.data, units, False, known, ready.device)
        terms = ROW.terms(ready.values(batch), batch.counted, batch.labels, BETA, MARGIN, "sequence")
        loss = terms.sum() / bottom
        loss.backward()
        total += float(loss.detach())
    ready.model.gradient_checkpointing_disable()
    return total


def peer(scene: Scene) -> float:
    """Two models, all logits, Eq. (9) written out."""
    rows, total, device = scene.data.examples, 0.0, scene.policy.model.device
    for at in range(0, len(rows), 2):
        some = rows[at : at + 2]
        width = max(len(e.ids) for e in some)
        ids = torch.tensor([[*e.ids.tolist(), *[0] * (width - len(e.ids))] for e in some], device=device)
        seen = torch.arange(width, device=device) < torch.tensor([[len(e.ids)] for e in some], device=device)
        with torch.no_grad():
            known = all_logprobs(scene, scene.reference, ids, seen)
        ratio = all_logprobs(scene, scene.policy, ids, seen) - known
        answer = seen[:, 1:] & (
            torch.arange(width - 1, device=device) >= torch.tensor([[e.reads[0]] for e in some], device=device)
        )
        count = answer.cumsum(1)
        v = BETA * (ratio * answer).cumsum(1) / count.clamp(min=1)
        right = torch.tensor([[float(e.labels[0])] for e in some], device=device)
        nll = right * softplus(MARGIN - v) + (1 - right) * softplus(MARGIN + v)
        loss = ((nll * answer).sum(1) / count[:, -1]).sum() / len(rows)
        loss.backward()
        total += float(loss.detach())
    return total


def all_logprobs(scene: Scene, engine: HFEngine, ids: Tensor, seen: Tensor) -> Tensor:
    """[b, t] -> [b, t - 1] by way of [b, t - 1, v]."""
    with scene.autocast():
        logits = engine.model(input_ids=ids, attention_mask=seen.long(), use_cache=False).logits
    return torch.log_softmax(logits[:, :-1].float(), -1).gather(2, ids[:, 1:, None])[..., 0]


# --- measurement ------------------------------------------------------------------------------------------------------


def gradients(engine: HFEngine) -> Tensor:
    """All of them, flat, taken away from the model."""
    found = torch.cat([p.grad.flatten() for p in engine.model.parameters()])
    engine.model.zero_grad(set_to_none=True)
    return found


def check_same(scene: Scene) -> dict[str, float]:
    """Relative differences of loss and gradient. Exits when they are too large."""
    mine = ours(scene, our_reference(scene))
    mine_grad = gradients(scene.policy)
    theirs = peer(scene)
    theirs_grad = gradients(scene.policy)
    gap = {
        "loss": abs(mine - theirs) / abs(theirs),
        "gradient": float((mine_grad - theirs_grad).norm() / theirs_grad.norm()),
    }
    if not max(gap.values()) <= TOLERANCE[scene.dtype]:
        sys.exit(f"the two sides differ: {gap}; nothing was timed")
    return gap


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of one call, over all threads."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def useful_flops(scene: Scene) -> float:
    """6 x parameters of the body and 2 x for the reference a token, the same of the head at completion tokens."""
    embedding = scene.policy.model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in scene.policy.model.base_model.parameters()) - embedding
    tokens = sum(len(e.ids) for e in scene.data.examples)
    read = sum(len(e.reads) for e in scene.data.examples)
    return 8.0 * (body * tokens + embedding * read)


def update(scene: Scene, optimizer: torch.optim.Optimizer, loss: Callable[[], float]) -> None:
    """Loss, gradients, and a step of rate 0, so that every round does the same."""
    loss()
    optimiser.step(optimizer, 0.0)


def make_scene(options: argparse.Namespace, alone: bool) -> Scene:
    """`alone`: without a second model, as training runs."""
    place = Placement(options.device, "float32").resolve()
    reference = load(str(demo_smollm2.smollm2()), "lm", place)
    encoder = examples.Encoder(reference.tokenizer, None, options.max_tokens, None)
    every = [r for r in rollouts.read(options.data) if r.outcome is not None]
    spread = every[:: max(len(every) // (4 * options.rows), 1)]  # some will be too long
    data = examples.build(spread, ROW, encoder, None, 0)
    few = data.examples[:: len(data.examples) // options.rows][: options.rows]
    data = examples.Dataset(few, tuple((i,) for i in range(len(few))), data.left_out)
    policy = reference
    if not alone:
        policy = load(str(demo_smollm2.smollm2()), "lm", place)
        perturb(policy)
    budget = options.batch_tokens or (CPU_TOKENS if place.device == "cpu" else GPU_TOKENS)
    policy.model.train()  # without dropout this only means: checkpointing may work
    return Scene(policy, reference, data, budget, options.dtype, options.gradient_checkpointing)


def peak(side: str, options: argparse.Namespace) -> float:
    """Peak GiB of two updates in this process, models and optimiser included."""
    scene = make_scene(options, alone=side == "ours")
    known = our_reference(scene) if side == "ours" else []
    if side == "ours":
        perturb(scene.policy)
    optimizer = optimiser.make(list(scene.policy.model.parameters()), TrainRMConfig())
    loss = (lambda: ours(scene, known)) if side == "ours" else (lambda: peer(scene))

    def run() -> None:
        update(scene, optimizer, loss)  # the second one has the optimiser's state, too
        update(scene, optimizer, loss)

    return peak_of(run)


def peak_elsewhere(side: str) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", side]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    """Parses, checks, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="rollouts with outcomes [default: the shipped traces]")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=768)
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of our micro-batches [default: training's]")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on our side only")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 = autocast")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="not the wall clock: where others use the cores too")
    parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    named = options.data.name if options.data else "shipped"
    options.data = options.data or Path(prmbench.__file__).parent / "assets" / "demo_traces.jsonl"
    if options.only:
        print(peak(options.only, options))
        return
    memory = {name: round(peak_elsewhere(name), 2) for name in ("ours", "peer")}
    scene = make_scene(options, alone=False)
    gap = check_same(scene)
    optimizer = optimiser.make(list(scene.policy.model.parameters()), TrainRMConfig())
    times: dict[str, list[float]] = {"reference": [], "ours": [], "peer": []}
    known: list[np.ndarray] = []
    clock = cpu_seconds if options.cpu_seconds else seconds
    for _ in range(options.rounds):
        times["reference"].append(clock(lambda: known.__setitem__(slice(None), our_reference(scene))))
        times["ours"].append(clock(lambda: update(scene, optimizer, lambda: ours(scene, known))))
        times["peer"].append(clock(lambda: update(scene, optimizer, lambda: peer(scene))))
    tokens = scene.data.tokens
    both = [a + b for a, b in zip(times["reference"], times["ours"], strict=True)]
    mine, cached, theirs = (statistics.median(t) for t in (both, times["ours"], times["peer"]))
    device = scene.policy.model.device
    rate = matmul_rate(device, getattr(torch, options.dtype))
    result = {
        "benchmark": "train_throughput",
        "ratio": round(theirs / mine, 3),
        "ratio_reference_known": round(theirs / cached, 3),
        "memory_ratio": round(memory["ours"] / memory["peer"], 3),
        "ours": round(tokens / mine, 1),
        "ours_reference_known": round(tokens / cached, 1),
        "peer": round(tokens / theirs, 1),
        "unit": "tokens trained on/s",
        "clock": "CPU seconds" if options.cpu_seconds else "wall",
        "rounds": options.rounds,
        "spread": {name: [round(min(t), 2), round(max(t), 2)] for name, t in times.items()},
        "relative_difference": gap,
        "matmul_share": round(useful_flops(scene) / mine / rate, 3),
        "matmul_gflops": round(rate / 1e9, 1),
        "peak_gib": memory,
        "model": "SmolLM2-135M",
        "rows": options.rows,
        "tokens": tokens,
        "completion_tokens": sum(len(e.reads) for e in scene.data.examples),
        "batch_tokens": scene.budget,
        "gradient_checkpointing": options.gradient_checkpointing,
        "dtype": options.dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "data": named,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
