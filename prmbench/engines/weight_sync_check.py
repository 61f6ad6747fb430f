"""Checks that the engine that samples has the trained weights, by comparing log-probabilities with the trainer's.

It compares numbers only, so it works for every engine and every link of weight_sync.py.
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
from prmbench.engines.generation import SampledTokens
from prmbench.engines.weight_sync import SamplerLink, Weights

TOLERANCE = {"float32": 1e-2, "bfloat16": 0.15}
"""Largest root mean square difference by dtype, in nats. SmolLM2-135M in vLLM on a CPU differs from transformers by
less than 5e-4 in float32 and 0.05 in bfloat16; with a stale output head by 0.23."""
NOISE = 0.05
"""Noise of the self-test, relative to each tensor's root mean square. An update moves weights by less than bfloat16
rounds away, so only exaggerated noise shows whether all of them arrive."""
ADAPTER_NOISE = 0.5
"""Noise on a LoRA adapter's B, times 1 / sqrt(rank). It is absolute, since B is zero at first and small later."""
TRUE_VERSION, PERTURBED_VERSION = 0, 999_999
"""Version numbers that the self-test pushes."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Difference between the sampler's and the trainer's log-probabilities, over all tokens of all processes."""

    rms: float
    """Root mean square of the differences, in nats."""
    mean_ratio: float
    """Mean of trainer's over sampler's probability; its expectation is 1 when both have the same weights."""
    max_ratio: float
    """Largest of these ratios."""
    ess: float
    """Effective sample size of the ratios as importance weights, as a fraction of the tokens."""
    tokens: int


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Result of the self-test."""

    disturbed: Mismatch
    """Mismatch after the push of perturbed weights."""
    true: Mismatch
    """Mismatch after the push of the true weights."""
    moved: float
    """Nats (rms) by which the noise moves the trainer's own log-probabilities: the mismatch of stale weights."""


def measure_mismatch(trainer: NDArray[np.floating[Any]], sampler: NDArray[np.floating[Any]]) -> Mismatch:
    """Measure the mismatch of [n] log-probabilities of the same tokens by trainer and sampler.

    All processes call it, each with its own tokens. Without any token the mismatch is zero.
    """
    differences = trainer.astype(np.float64) - sampler
    ratio = np.exp(differences)
    count, squares, total, total_squares = processes.all_reduce_sum(
        [float(len(differences)), float((differences**2).sum()), float(ratio.sum()), float((ratio**2).sum())]
    )
    local_max = float(ratio.max(initial=0.0))
    largest = max(
        processes.all_reduce_sum([local_max * (r == processes.rank()) for r in range(processes.world_size())])
    )
    if not count:
        return Mismatch(0.0, 1.0, 1.0, 1.0, 0)
    return Mismatch((squares / count) ** 0.5, total / count, largest, total**2 / (count * total_squares), int(count))


def check_mismatch(measured: Mismatch, tolerance: float) -> None:
    """Raise RetryError when the mismatch is too large for equal weights; `tolerance` is in nats (rms)."""
    if not measured.rms <= tolerance:  # NaN too
        raise RetryError(
            f"the sampler's log-probabilities differ from the trainer's by {measured.rms:.3g} nats (rms, at most "
            f"{tolerance:g}): it has other weights; run the same command again, which sends them anew"
        )


def self_test(
    link: SamplerLink,
    weights: Weights,
    disturbed: Callable[[], AbstractContextManager[None]],
    draw: Callable[[], Sequence[SampledTokens]],
    logprobs: Callable[[Sequence[SampledTokens]], NDArray[np.floating[Any]]],
    tolerance: float,
) -> SelfTest:
    """Push perturbed weights, then the true ones, and compare log-probabilities of sampled tokens after each push.

    All processes call it, and each must sample some tokens.

    Args:
        link: The sampler and the way to it.
        weights: The trainer's weights, as they are when they are pushed.
        disturbed: Context manager that perturbs the trainer's weights (see `perturbed_weights`).
        draw: Samples completions through the link as training will.
        logprobs: Returns the trainer's log-probabilities [n] of all sampled tokens, in order.
        tolerance: Largest mismatch, in nats (rms).

    Raises:
        UserError: A mismatch exceeds the tolerance, or the noise is too small to reveal stale weights.
    """
    with disturbed():
        link.push(PERTURBED_VERSION, weights)
        sampled = draw()
        perturbed_logprobs = logprobs(sampled)
        after_perturbed = measure_mismatch(perturbed_logprobs, _sampled_logprobs(sampled))
    moved = measure_mismatch(perturbed_logprobs, logprobs(sampled)).rms
    link.push(TRUE_VERSION, weights)
    sampled = draw()
    after_true = measure_mismatch(logprobs(sampled), _sampled_logprobs(sampled))
    if not (after_perturbed.rms <= tolerance and after_true.rms <= tolerance):  # NaN too
        raise UserError(
            "the sampler does not take the weights it is sent: its log-probabilities differ from the trainer's by "
            f"{after_perturbed.rms:.3g} nats (rms) after a push of exaggerated weights and by {after_true.rms:.3g} "
            f"after the true ones, at most {tolerance:g} is fine; start it as docs/scaling.md says, with the same "
            "model and --dtype"
        )
    if not moved > 2 * tolerance:
        raise UserError(
            f"the sampler cannot be checked: exaggerated weights move log-probabilities by {moved:.3g} nats (rms) "
            f"only, and {tolerance:g} may be rounding; use --dtype float32, or the engine hf"
        )
    return SelfTest(after_perturbed, after_true, moved)


@contextmanager
def perturbed_weights(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """Add noise to every trained parameter inside the context; afterwards each has exactly its former bits.

    Args:
        module: The trained module, sharded or not.
        seed: Seed of the noise.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with torch.no_grad():
        processes.reshard(module)
        local_parts = [_local_tensor(p) for p in trained.values()]
        saved = [part.to("cpu", copy=True) for part in local_parts]
        for i, (name, part) in enumerate(zip(trained, local_parts, strict=True)):
            scale = ADAPTER_NOISE * part.shape[-1] ** -0.5 if ".lora_B." in name else NOISE * _rms(part)
            random_normal = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed + i))
            part.add_((scale * random_normal).to(part))  # equal in all processes that hold the full tensor
    try:
        yield
    finally:
        with torch.no_grad():
            processes.reshard(module)
            for part, original in zip(local_parts, saved, strict=True):
                part.copy_(original)


def _rms(part: torch.Tensor) -> float:
    return float(part.float().square().mean().sqrt()) if part.numel() else 0.0


def _local_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a parameter, to be changed in place."""
    to_local = getattr(parameter.detach(), "to_local", None)
    return parameter.detach() if to_local is None else to_local()


def _sampled_logprobs(sampled: Sequence[SampledTokens]) -> NDArray[np.float64]:
    return np.array([logprob for d in sampled for logprob in d.logprobs], dtype=np.float64)
