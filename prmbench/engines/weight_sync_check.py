"""Whether the engine that samples has the weights that are trained: its log-probabilities against the trainer's.

Looks at numbers alone, so that it holds for every engine and every way that weights travel (weight_sync.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prmbench.core import processes
from prmbench.core.records import RetryError, UserError
from prmbench.engines.decoding import Drawn
from prmbench.engines.weight_sync import Link, State

TOLERANCE = {"float32": 1e-2, "bfloat16": 0.15}
"""Largest root mean square, in nats. SmolLM2-135M in vLLM on a CPU against transformers: below 5e-4 in float32, 0.05 in
bfloat16; with an output head that stayed behind 0.23."""
NOISE = 0.05
"""Of the self-test, as a share of each tensor's root mean square. An update moves weights far less than bfloat16 rounds
away: only an exaggerated push shows whether all of them arrive."""
ADAPTER_NOISE = 0.5
"""The same for a LoRA adapter's B, times 1 / sqrt(rank), whatever B holds: zeros at first, and little later."""
START, DISTURBED = 0, 999_999
"""Versions that the self-test pushes."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far the sampler's log-probabilities are from the trainer's, over all tokens of all processes."""

    rms: float
    """Of the difference, in nats."""
    mean_ratio: float
    """Of trainer's over sampler's probability; 1 in expectation when both are right."""
    max_ratio: float
    ess: float
    """Effective sample size of the ratios as weights, as a share of the tokens."""
    tokens: int


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test saw."""

    disturbed: Mismatch
    """After the exaggerated push."""
    true: Mismatch
    """After the true weights were pushed again."""
    moved: float
    """Nats (rms) by which the exaggeration moves the trainer's own log-probabilities: what stale weights would show."""


def mismatch(trainer: NDArray[np.floating[Any]], sampler: NDArray[np.floating[Any]]) -> Mismatch:
    """Of [n] log-probabilities of the same tokens. All processes call it, each with its own; without tokens: none."""
    gap = trainer.astype(np.float64) - sampler
    ratio = np.exp(gap)
    count, squares, total, total_squares = processes.sums(
        [float(len(gap)), float((gap**2).sum()), float(ratio.sum()), float((ratio**2).sum())]
    )
    mine = float(ratio.max(initial=0.0))
    largest = max(processes.sums([mine * (r == processes.rank()) for r in range(processes.world_size())]))
    if not count:
        return Mismatch(0.0, 1.0, 1.0, 1.0, 0)
    return Mismatch((squares / count) ** 0.5, total / count, largest, total**2 / (count * total_squares), int(count))


def check(found: Mismatch, tolerance: float) -> None:
    """Raises RetryError when the sampler cannot have the trainer's weights."""
    if not found.rms <= tolerance:  # NaN too
        raise RetryError(
            f"the sampler's log-probabilities differ from the trainer's by {found.rms:.3g} nats (rms, at most "
            f"{tolerance:g}): it has other weights; run the same command again, which sends them anew"
        )


def self_test(
    link: Link,
    state: State,
    disturbed: Callable[[], AbstractContextManager[None]],
    draw: Callable[[], Sequence[Drawn]],
    logprobs: Callable[[Sequence[Drawn]], NDArray[np.floating[Any]]],
    tolerance: float,
) -> SelfTest:
    """Pushes exaggerated weights, then the true ones, and each time compares the log-probabilities of what is drawn.

    `disturbed()` exaggerates the trainer's weights while it is open (see `noise`); `draw` samples through the link as
    training will; `logprobs` gives the trainer's for those tokens, one after the other [n]. All processes call it; each
    must draw some tokens. Raises UserError when either comparison is beyond the tolerance, or could not have shown
    stale weights.
    """
    with disturbed():
        link.push(DISTURBED, state)
        drawn = draw()
        exaggerated = logprobs(drawn)
        first = mismatch(exaggerated, _logprobs(drawn))
    moved = mismatch(exaggerated, logprobs(drawn)).rms
    link.push(START, state)
    drawn = draw()
    second = mismatch(logprobs(drawn), _logprobs(drawn))
    if not (first.rms <= tolerance and second.rms <= tolerance):  # NaN too
        raise UserError(
            "the sampler does not take the weights it is sent: its log-probabilities differ from the trainer's by "
            f"{first.rms:.3g} nats (rms) after a push of exaggerated weights and by {second.rms:.3g} after the true "
            f"ones, at most {tolerance:g} is fine; start it as docs/scaling.md says, with the same model and --dtype"
        )
    if not moved > 2 * tolerance:
        raise UserError(
            f"the sampler cannot be checked: exaggerated weights move log-probabilities by {moved:.3g} nats (rms) "
            f"only, and {tolerance:g} may be rounding; use --dtype float32, or the engine hf"
        )
    return SelfTest(first, second, moved)


@contextmanager
def noise(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, every trained parameter has noise on it; outside, the very bits it had before.

    `module` is what `distributed.spread` gave.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with torch.no_grad():
        processes.reshard(module)
        mine = [_mine(p) for p in trained.values()]
        kept = [part.to("cpu", copy=True) for part in mine]
        for i, (name, part) in enumerate(zip(trained, mine, strict=True)):
            size = ADAPTER_NOISE * part.shape[-1] ** -0.5 if ".lora_B." in name else NOISE * _rms(part)
            drawn = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed + i))
            part.add_((size * drawn).to(part))  # the same in every process that holds all of it
    try:
        yield
    finally:
        with torch.no_grad():
            processes.reshard(module)
            for part, was in zip(mine, kept, strict=True):
                part.copy_(was)


def _rms(part: torch.Tensor) -> float:
    return float(part.float().square().mean().sqrt()) if part.numel() else 0.0


def _mine(parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of it, to be changed in place."""
    to_local = getattr(parameter.detach(), "to_local", None)
    return parameter.detach() if to_local is None else to_local()


def _logprobs(drawn: Sequence[Drawn]) -> NDArray[np.float64]:
    return np.array([logprob for d in drawn for logprob in d.logprobs], dtype=np.float64)
