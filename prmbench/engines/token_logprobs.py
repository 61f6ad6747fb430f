"""Log-probabilities of chosen tokens straight from hidden states: chunked over tokens, float32, differentiable.

Never a [batch, time, vocabulary] block: at most `chunk` rows of logits exist at a time, backward included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 256
"""Rows of logits held at once: 256 x 152k x 4 bytes = 156 MB for the largest vocabulary in use."""


MARGIN = 1e-5
"""A candidate may miss its least probability by this part of it: ten tokens at 0.1 each must not fall to rounding."""


class CandidateSet(NamedTuple):
    """At each of n positions the token that was sampled and the candidates, under the policy that sampled it.

    Without candidates K is 0: there is no other way to say so.
    """

    token_ids: Tensor
    """[n, 1 + K] int64: the sampled token in column 0, then tokens by falling probability."""
    old_logprobs: Tensor
    """[n, 1 + K] float32, natural log; 0 where the mask is off."""
    mask: Tensor
    """[n, 1 + K] bool: which tokens are candidates; always on for the sampled token."""


def target_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """[n, h] states, [v, h] head, [n] ids -> ([n] log p(target), [n] logsumexp of the logits): see logprobs_at."""
    logprobs, logz = logprobs_at(hidden, weight, targets[:, None], bias, softcap, chunk)
    return logprobs[:, 0], logz


def logprobs_at(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """[n, h] states, [v, h] head, [n, k] ids -> ([n, k] log p(id), [n] logsumexp of the logits), float32, natural log.

    Both are differentiable in `hidden`, `weight` and `bias`. `softcap` is Gemma 2's c * tanh(logits / c).
    Half-precision states, or autocast, make the factors of the matrix products half-precision; sums, logits and all
    reductions stay float32: beta = 10 multiplies every error in a log-probability by ten. float64 stays float64.
    """
    return _LogprobsAt.apply(hidden, weight, bias, ids, softcap, chunk)


@torch.no_grad()
def candidates(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    p_min: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> tuple[CandidateSet, Tensor]:
    """Returns the targets with every token of p >= p_min, and the entropy [n] of the whole vocabulary in nats.

    The set is exact: at most K = floor(1 / p_min) tokens can be that likely; p_min = 0 asks for none. Same products,
    sums and chunks as `logprobs_at`: equal weights give equal bits.
    """
    half = _half(hidden)
    factor = _factor(weight, half)
    width = min(most_candidates(p_min), len(weight))
    least = math.log(p_min * (1 - MARGIN)) if p_min else 0.0
    parts = []
    for rows, at in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = _logits(_factor(rows, half), factor, bias, softcap, half)
        logz = torch.logsumexp(logits, dim=-1, keepdim=True)
        target = logits.gather(1, at[:, None]) - logz
        top, ids = logits.topk(width)
        top = top - logz
        kept = top >= least
        entropy = -torch.linalg.vecdot(logits.sub_(logz).exp(), logits)
        parts.append(
            (
                torch.cat([at[:, None], ids], dim=1),
                torch.cat([target, top.masked_fill(~kept, 0.0)], dim=1),
                torch.cat([torch.ones_like(target, dtype=torch.bool), kept], dim=1),
                entropy,
            )
        )
    token_ids, old_logprobs, mask, entropies = map(torch.cat, zip(*parts, strict=True))
    return CandidateSet(token_ids, old_logprobs, mask), entropies


def most_candidates(p_min: float) -> int:
    """Returns how many tokens can have a probability of at least p_min; 0 for p_min = 0, which asks for none."""
    return int((1 + MARGIN) / p_min) if p_min else 0


class _LogprobsAt(torch.autograd.Function):
    """Keeps hidden states, ids and normalisers; backward computes the logits again, a chunk at a time."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        half = _half(hidden)
        factor = _factor(weight, half)
        logprobs, normalisers = [], []
        for rows, at in zip(hidden.split(chunk), ids.split(chunk), strict=True):
            logits = _logits(_factor(rows, half), factor, bias, softcap, half)
            normaliser = torch.logsumexp(logits, dim=-1)
            logprobs.append(logits.gather(1, at) - normaliser[:, None])
            normalisers.append(normaliser)
        logz = torch.cat(normalisers)
        ctx.save_for_backward(hidden, weight, bias, ids, logz)
        ctx.options = softcap, chunk, half
        return torch.cat(logprobs), logz

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_logz: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, ids, logz = ctx.saved_tensors
        softcap, chunk, half = ctx.options
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        factor = _factor(weight, half)
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=logz.dtype) if to_weight else None
        grad_bias = torch.zeros_like(bias, dtype=logz.dtype) if to_bias else None
        for start in range(0, len(hidden), chunk):
            at = slice(start, start + chunk)
            rows = _factor(hidden[at], half)
            logits = _logits(rows, factor, bias, softcap, half)
            grad = _grad_logits(logits, logz[at], ids[at], grad_logprobs[at], grad_logz[at], softcap)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = _factor(grad, half)
            if grad_hidden is not None:
                grad_hidden[at] = _product(grad, factor, half)
            if grad_weight is not None:
                _add_product(grad_weight, grad.T, rows, half)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _logits(
    rows: Tensor, factor: Tensor, bias: Tensor | None, softcap: float | None, half: torch.dtype | None
) -> Tensor:
    logits = _product(rows, factor.T, half)
    if bias is not None:
        logits += bias.to(logits.dtype)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _grad_logits(
    logits: Tensor, logz: Tensor, ids: Tensor, grad_logprobs: Tensor, grad_logz: Tensor, softcap: float | None
) -> Tensor:
    """Overwrites the logits with their gradient, to that of the matrix product.

    The gradient of log p(y) is 1[y] - p and that of logZ is p: p gets grad_logz less the sum of a row's grad_logprobs,
    each id its own grad_logprobs more, as often as it stands in the row.
    """
    slope = 1 - (logits / softcap) ** 2 if softcap else None  # of c * tanh(z / c)
    grad = logits.sub_(logz[:, None]).exp_().mul_((grad_logz - grad_logprobs.sum(-1))[:, None])
    grad.scatter_add_(1, ids, grad_logprobs.to(grad.dtype))
    return grad if slope is None else grad.mul_(slope)


# --- matrix products: half-precision factors where asked for, float32 sums and results always ------------------------


def _half(hidden: Tensor) -> torch.dtype | None:
    """The precision of the factors; None = that of the reductions."""
    device = hidden.device.type
    if hidden.dtype in (torch.bfloat16, torch.float16):
        return hidden.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _factor(x: Tensor, half: torch.dtype | None) -> Tensor:
    """`x` as it enters a product. A CPU has no product of half-precision factors with a float32 result: see _onednn."""
    if x.dtype == torch.float64:
        return x
    return x.to(half if half and x.is_cuda else torch.float32)


def _product(a: Tensor, b: Tensor, half: torch.dtype | None) -> Tensor:
    with torch.autocast(a.device.type, enabled=False), _onednn(half):
        return torch.mm(a, b, out_dtype=torch.float32) if half and a.is_cuda else torch.mm(a, b)


def _add_product(total: Tensor, a: Tensor, b: Tensor, half: torch.dtype | None) -> None:
    """Adds a @ b to `total`, on a CPU without a second tensor of that size."""
    if half and a.is_cuda:
        total += _product(a, b, half)
        return
    with _onednn(half):
        total.addmm_(a, b)


@contextmanager
def _onednn(half: torch.dtype | None) -> Iterator[None]:
    """Lets oneDNN round float32 factors to bfloat16 inside a product, where the CPU gains by it; it sums in float32."""
    if half != torch.bfloat16:
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
