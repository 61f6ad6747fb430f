"""Speed and memory of one update of IPVRM training against the usual way, on the same model and rollouts in one run.

The usual way, as in published trainers: policy and reference both in memory, padded batches of 2 in data order, a full
float32 log-softmax over all positions of both. Loss and gradients must agree before anything is timed; the result is
the median of alternating rounds. Our time includes the reference's pass; a second ratio leaves it out, as in all but
the first epoch of the first run on some data. A third side is ours with gradient checkpointing, reference known. The
last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import cpu_seconds, last_line_of_new_process, matmul_rate, peak_of, seconds
from score_throughput import DEMO_TRACES
from torch import Tensor
from torch.nn.functional import softplus

from prmbench.config import TrainRMConfig
from prmbench.data import rollouts
from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.studies import demo_smollm2
from prmbench.training import examples, losses, optimiser
from prmbench.training.batching import CPU_TOKENS, GPU_TOKENS, collate, micro_batches
from prmbench.training.model import Forward, Runner

BETA, MARGIN = 10.0, 5.0
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest relative difference of loss and gradient. In bfloat16 the peer's logits are rounded, ours are not."""
ROW = losses.LOSSES["ipvrm"]
SIDES = ("ours", "ours_checkpointing", "peer")


@dataclass(frozen=True)
class UpdateSetup:
    """Models and data that both sides share."""

    policy: HFEngine
    reference: HFEngine
    """The initial model; the same object as `policy` when only one model is loaded."""
    data: examples.Dataset
    budget: int
    dtype: str

    def autocast(self) -> Any:
        """Return the autocast context, the same for both sides; weights are float32."""
        kind = self.policy.model.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.dtype == "bfloat16")


def perturb(engine: HFEngine) -> None:
    """Add noise to the weights, as if the model had been updated; else every log-ratio would be 0."""
    generator = torch.Generator(engine.model.device).manual_seed(0)
    with torch.no_grad():
        for weight in engine.model.parameters():
            noise = torch.randn(weight.shape, generator=generator, device=weight.device)
            weight.add_(noise * 0.02 * weight.std())


# --- the two sides: each leaves the gradients of the mean loss in the policy ------------------------------------------


def runner(setup: UpdateSetup, engine: HFEngine) -> Runner:
    """Return the runner of train.py, for one process."""
    dtype = torch.bfloat16 if setup.dtype == "bfloat16" else None
    return Runner(engine, None, Forward(engine.model, "lm"), str(engine.model.device), dtype)


def plan(setup: UpdateSetup) -> list[tuple[examples.Unit, ...]]:
    """Return the micro-batches of train.py."""
    return micro_batches(setup.data.units, [len(e.ids) for e in setup.data.examples], setup.budget, 1)[0]


@torch.no_grad()
def our_reference(setup: UpdateSetup) -> list[np.ndarray]:
    """Return the reference's values of each example, which training computes once, before its first update."""
    reference_values: dict[int, np.ndarray] = {}
    model_runner = runner(setup, setup.reference)
    for units in plan(setup):
        values = model_runner.values(collate(setup.data, units, False, None, model_runner.device)).cpu().numpy()
        reference_values |= {
            i: row[: len(setup.data.examples[i].score_positions)] for (i,), row in zip(units, values, strict=True)
        }
    return [reference_values[i] for i in range(len(reference_values))]


def ours(setup: UpdateSetup, reference_values: list[np.ndarray], checkpointing: bool = False) -> float:
    """Return our loss: log-probabilities at completion tokens only, batches by length, reference values from memory.

    `checkpointing`: whether activations are computed again in the backward pass, not kept.
    """
    model_runner, total = runner(setup, setup.policy), 0.0
    if checkpointing:
        model_runner.model.gradient_checkpointing_enable({"use_reentrant": False})
    denominator = losses.denominator(ROW, [len(e.score_positions) for e in setup.data.examples], "sequence")
    for units in plan(setup):
        batch = collate(setup.data, units, False, reference_values, model_runner.device)
        terms = ROW.terms(model_runner.values(batch), batch.counted, batch.labels, BETA, MARGIN, "sequence")
        loss = terms.sum() / denominator
        loss.backward()
        total += float(loss.detach())
    model_runner.model.gradient_checkpointing_disable()
    return total


def peer(setup: UpdateSetup) -> float:
    """Return the peer's loss: two models, all logits, Eq. (9) written out."""
    rows, total, device = setup.data.examples, 0.0, setup.policy.model.device
    for start in range(0, len(rows), 2):
        batch = rows[start : start + 2]
        width = max(len(e.ids) for e in batch)
        ids = torch.tensor([[*e.ids.tolist(), *[0] * (width - len(e.ids))] for e in batch], device=device)
        mask = torch.arange(width, device=device) < torch.tensor([[len(e.ids)] for e in batch], device=device)
        with torch.no_grad():
            reference = all_logprobs(setup, setup.reference, ids, mask)
        ratio = all_logprobs(setup, setup.policy, ids, mask) - reference
        answer = mask[:, 1:] & (
            torch.arange(width - 1, device=device)
            >= torch.tensor([[e.score_positions[0]] for e in batch], device=device)
        )
        count = answer.cumsum(1)
        v = BETA * (ratio * answer).cumsum(1) / count.clamp(min=1)
        right = torch.tensor([[float(e.labels[0])] for e in batch], device=device)
        nll = right * softplus(MARGIN - v) + (1 - right) * softplus(MARGIN + v)
        loss = ((nll * answer).sum(1) / count[:, -1]).sum() / len(rows)
        loss.backward()
        total += float(loss.detach())
    return total


def all_logprobs(setup: UpdateSetup, engine: HFEngine, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the log-probability of each token, [b, t] -> [b, t - 1], from all logits, [b, t - 1, v]."""
    with setup.autocast():
        logits = engine.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    return torch.log_softmax(logits[:, :-1].float(), -1).gather(2, ids[:, 1:, None])[..., 0]


# --- measurement ------------------------------------------------------------------------------------------------------


def gradients(engine: HFEngine) -> Tensor:
    """Return all gradients as one vector, and remove them from the model."""
    flat = torch.cat([p.grad.flatten() for p in engine.model.parameters()])
    engine.model.zero_grad(set_to_none=True)
    return flat


def check_same(setup: UpdateSetup) -> dict[str, float]:
    """Return the relative differences of loss and gradient; exit when one is too large."""
    theirs, reference_values = peer(setup), our_reference(setup)
    theirs_grad = gradients(setup.policy)
    gap = {"loss": 0.0, "gradient": 0.0}
    for checkpointing in (False, True):
        mine = ours(setup, reference_values, checkpointing)
        difference = gradients(setup.policy) - theirs_grad
        gap["loss"] = max(gap["loss"], abs(mine - theirs) / abs(theirs))
        gap["gradient"] = max(gap["gradient"], float(difference.norm() / theirs_grad.norm()))
    if not max(gap.values()) <= TOLERANCE[setup.dtype]:
        sys.exit(f"the two sides differ: {gap}; nothing was timed")
    return gap


def flops(setup: UpdateSetup) -> dict[str, float]:
    """Return the FLOP of an update's matrix products, attention's left out, by side.

    A pass is 2 per parameter and token, and a backward pass two of them; padding does not count. Ours reads the head at
    completion tokens only and computes its logits twice; the peer reads both models at all positions.
    """
    embedding = setup.policy.model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in setup.policy.model.base_model.parameters()) - embedding
    tokens = sum(len(e.ids) for e in setup.data.examples)
    read = sum(len(e.score_positions) for e in setup.data.examples)
    reference, known = 2.0 * (body * tokens + embedding * read), 6.0 * body * tokens + 8.0 * embedding * read
    peer_flops = 8.0 * (body + embedding) * tokens
    return {"ours": reference + known, "ours_reference_known": known, "peer": peer_flops}


def update(setup: UpdateSetup, optimizer: torch.optim.Optimizer, loss: Callable[[], float]) -> None:
    """Compute loss and gradients, and take a step of rate 0, so that every round does the same work."""
    loss()
    optimiser.step(optimizer, 0.0)


def make_setup(options: argparse.Namespace, alone: bool) -> UpdateSetup:
    """Load models and data; with `alone`, without a second model, as in training."""
    place = Placement(options.device, "float32").resolve()
    model = options.model or str(demo_smollm2.smollm2_path())
    reference = load(model, "lm", place)
    encoder = examples.Encoder(reference.tokenizer, None, options.max_tokens, None)
    verified = [r for r in rollouts.read(options.data) if r.outcome is not None]
    candidates = verified[:: max(len(verified) // (4 * options.rows), 1)]  # more than needed: some are too long
    data = examples.build(candidates, ROW, encoder, None, 0)
    selected = data.examples[:: len(data.examples) // options.rows][: options.rows]
    data = examples.Dataset(selected, tuple((i,) for i in range(len(selected))), data.left_out)
    policy = reference
    if not alone:
        policy = load(model, "lm", place)
        perturb(policy)
    budget = options.batch_tokens or (CPU_TOKENS if place.device == "cpu" else GPU_TOKENS)
    policy.model.train()  # there is no dropout; gradient checkpointing needs this mode
    return UpdateSetup(policy, reference, data, budget, options.dtype)


def peak(side: str, options: argparse.Namespace) -> float:
    """Return the peak GiB of two updates in this process, including models and optimizer."""
    setup = make_setup(options, alone=side != "peer")
    reference_values = [] if side == "peer" else our_reference(setup)
    if side != "peer":
        perturb(setup.policy)
    optimizer = optimiser.make(list(setup.policy.model.parameters()), TrainRMConfig())

    def loss() -> float:
        return peer(setup) if side == "peer" else ours(setup, reference_values, side == "ours_checkpointing")

    def run() -> None:
        update(setup, optimizer, loss)  # now with the optimizer's state
        update(setup, optimizer, loss)

    return peak_of(run)


def main() -> None:
    """Check that both sides agree, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of another model than SmolLM2-135M")
    parser.add_argument("--data", type=Path, help="rollouts with outcomes [default: the shipped traces]")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=768)
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of our micro-batches [default: training's]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 = autocast")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure CPU seconds, for shared machines")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data_name = options.data.name if options.data else "shipped"
    options.data = options.data or DEMO_TRACES
    if options.only:
        print(peak(options.only, options))
        return
    memory = {name: round(float(last_line_of_new_process("--only", name)), 2) for name in SIDES}
    setup = make_setup(options, alone=False)
    gap = check_same(setup)
    optimizer = optimiser.make(list(setup.policy.model.parameters()), TrainRMConfig())
    times: dict[str, list[float]] = {"reference": [], **{name: [] for name in SIDES}}
    reference_values: list[np.ndarray] = []
    clock = cpu_seconds if options.cpu_seconds else seconds
    for _ in range(options.rounds):
        times["reference"].append(clock(lambda: reference_values.__setitem__(slice(None), our_reference(setup))))
        times["ours"].append(clock(lambda: update(setup, optimizer, lambda: ours(setup, reference_values))))
        times["ours_checkpointing"].append(
            clock(lambda: update(setup, optimizer, lambda: ours(setup, reference_values, checkpointing=True)))
        )
        times["peer"].append(clock(lambda: update(setup, optimizer, lambda: peer(setup))))
    tokens = setup.data.tokens
    both = [a + b for a, b in zip(times["reference"], times["ours"], strict=True)]
    mine, cached, theirs = (statistics.median(t) for t in (both, times["ours"], times["peer"]))
    checkpointed = statistics.median(times["ours_checkpointing"])
    work = flops(setup)
    device = setup.policy.model.device
    rate = matmul_rate(device, getattr(torch, options.dtype))
    result = {
        "benchmark": "train_throughput",
        "ratio": round(theirs / mine, 3),
        "ratio_reference_known": round(theirs / cached, 3),
        "ratio_checkpointing": round(theirs / checkpointed, 3),
        "memory_ratio": round(memory["ours"] / memory["peer"], 3),
        "memory_ratio_checkpointing": round(memory["ours_checkpointing"] / memory["peer"], 3),
        "flops_ratio": round(work["peer"] / work["ours"], 3),
        "flops_ratio_reference_known": round(work["peer"] / work["ours_reference_known"], 3),
        "ours": round(tokens / mine, 1),
        "ours_reference_known": round(tokens / cached, 1),
        "peer": round(tokens / theirs, 1),
        "unit": "tokens trained on/s",
        "clock": "CPU seconds" if options.cpu_seconds else "wall",
        "rounds": options.rounds,
        "spread": {name: [round(min(t), 2), round(max(t), 2)] for name, t in times.items()},
        "relative_difference": gap,
        "matmul_share": round(work["ours"] / mine / rate, 3),
        "matmul_share_reference_known": round(work["ours_reference_known"] / cached / rate, 3),
        "matmul_share_for_2x_reference_known": round(work["ours_reference_known"] / (theirs / 2) / rate, 3),
        "matmul_gflops": round(rate / 1e9, 1),
        "peak_gib": memory,
        "model": Path(options.model).name if options.model else "SmolLM2-135M",
        "rows": options.rows,
        "tokens": tokens,
        "completion_tokens": sum(len(e.score_positions) for e in setup.data.examples),
        "batch_tokens": setup.budget,
        "dtype": options.dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "data": data_name,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
