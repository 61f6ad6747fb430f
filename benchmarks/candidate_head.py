"""Memory and time of the candidate branch's head against log_softmax over all positions, at SmolLM2's shapes.

Measures three parts of a step: `old` (log-probability, entropy and candidates, without gradients), `frozen`
(log-probability of the sampled token and ten candidates, with gradients of the hidden states, as with LoRA) and
`trained` (with gradients of the head, too); `one` is `trained` for the sampled token alone. Both sides must agree
before anything is measured. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from measure import cpu_seconds, last_line_of_new_process, peak_of, seconds
from torch import Tensor

from prmbench.engines import token_logprobs

WIDTH, VOCABULARY = 576, 49152
P_MIN, MAX_CANDIDATES = 0.1, 10
PARTS = ("old", "frozen", "trained", "one")
TOLERANCE = 1e-5
"""Largest difference of log-probabilities and entropies in nats, and of gradients relative to the largest."""
Tensors = tuple[Tensor, ...]


def inputs(rows: int, part: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, head and token ids; the distributions are sharp enough that some tokens exceed P_min."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, WIDTH, device=device).requires_grad_(part != "old")
    weight = (0.3 * torch.randn(VOCABULARY, WIDTH, device=device)).requires_grad_(part in ("trained", "one"))
    width = 1 if part in ("old", "one") else 1 + MAX_CANDIDATES
    return hidden, weight, torch.randint(VOCABULARY, (rows, width), device=device)


def ours(part: str, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensors:
    """Compute a part with token_logprobs.py."""
    if part == "old":
        result, entropy = token_logprobs.candidates(hidden, weight, ids[:, 0], P_MIN)
        return result.old_logprobs[:, 0], entropy, result.old_logprobs[:, 1:]
    return _backward(token_logprobs.logprobs_at(hidden, weight, ids)[0], hidden, weight)


def peer(part: str, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensors:
    """Compute a part with a block of shape [rows, vocabulary]."""
    if part == "old":
        with torch.no_grad():
            logprobs = torch.log_softmax(hidden @ weight.T, -1)
            top = logprobs.topk(MAX_CANDIDATES).values
            entropy = -(logprobs.exp() * logprobs).sum(-1)
            return logprobs.gather(1, ids)[:, 0], entropy, top.masked_fill(top < math.log(P_MIN), 0.0)
    return _backward(torch.log_softmax(hidden @ weight.T, -1).gather(1, ids), hidden, weight)


def _backward(logprobs: Tensor, hidden: Tensor, weight: Tensor) -> Tensors:
    """Backpropagate a loss with a different weight for each token, so that no gradients cancel."""
    (logprobs * torch.linspace(-1, 1, logprobs.numel(), device=logprobs.device).view_as(logprobs)).sum().backward()
    gradients = tuple(x.grad for x in (hidden, weight) if x.grad is not None)
    hidden.grad = weight.grad = None
    return (logprobs.detach(), *gradients)


SIDES: dict[str, Callable[[str, Tensor, Tensor, Tensor], Tensors]] = {"ours": ours, "peer": peer}


def check_same(rows: int, device: str) -> float:
    """Return the largest difference between both sides; exit when it exceeds the tolerance."""
    worst = 0.0
    for part in PARTS:
        tensors = inputs(rows, part, device)
        for k, (mine, theirs) in enumerate(zip(ours(part, *tensors), peer(part, *tensors), strict=True)):
            scale = float(theirs.abs().max()) if part != "old" and k else 1.0
            worst = max(worst, float((mine - theirs).abs().max()) / scale)
    if not worst <= TOLERANCE:
        sys.exit(f"the two sides differ by {worst:.3g}; nothing was measured")
    return worst


def added_memory(side: str, part: str, options: argparse.Namespace) -> float:
    """Return the MiB that one call adds at its peak; to be run in its own process."""
    tensors = inputs(options.rows, part, options.device)
    SIDES[side](part, *inputs(8, part, options.device))  # the first call allocates memory that stays
    before = peak_of(lambda: None)
    return 1024 * (peak_of(lambda: SIDES[side](part, *tensors)) - before)


def main() -> None:
    """Check that both sides agree, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=768, help="completion tokens of a micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure CPU seconds, for shared machines")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(added_memory(*options.only, options))
        return
    worst = check_same(32, options.device)
    clock = cpu_seconds if options.cpu_seconds else seconds
    memory = {part: {side: float(last_line_of_new_process("--only", side, part)) for side in SIDES} for part in PARTS}
    times: dict[str, dict[str, list[float]]] = {part: {side: [] for side in SIDES} for part in PARTS}
    for part in PARTS:
        tensors = inputs(options.rows, part, options.device)
        for _ in range(options.rounds):
            for side, run in SIDES.items():
                times[part][side].append(clock(partial(run, part, *tensors)))
    medians = {part: {side: statistics.median(t) for side, t in both.items()} for part, both in times.items()}
    result = {
        "benchmark": "candidate_head",
        "ratio": {part: round(m["ours"] / m["peer"], 3) for part, m in medians.items()},
        "ours": {part: round(m["ours"], 3) for part, m in medians.items()},
        "peer": {part: round(m["peer"], 3) for part, m in medians.items()},
        "memory_ratio": {part: round(m["ours"] / m["peer"], 3) for part, m in memory.items()},
        "candidates_over_one": round(medians["trained"]["ours"] / medians["one"]["ours"], 3),
        "seconds": {part: {side: round(t, 3) for side, t in m.items()} for part, m in medians.items()},
        "added_mib": {part: {side: round(m, 1) for side, m in both.items()} for part, both in memory.items()},
        "unit": "seconds and MiB a call",
        "clock": "CPU seconds" if options.cpu_seconds else "wall",
        "rounds": options.rounds,
        "largest_difference": worst,
        "rows": options.rows,
        "width": WIDTH,
        "vocabulary": VOCABULARY,
        "chunk": token_logprobs.default_chunk(torch.empty(VOCABULARY, 0, device=options.device)),
        "device": options.device,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
