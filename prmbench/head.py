"""Log-probabilities of chosen tokens straight from hidden states: chunked over tokens, float32, differentiable.

Never a [batch, time, vocabulary] block: at most `chunk` rows of logits exist at a time, backward included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 256
"""Rows of logits held at once: 256 x 152k x 4 bytes = 156 MB for the largest vocabulary in use."""


def target_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """[n, h] states, [v, h] head, [n] ids -> ([n] log p(target), [n] logsumexp of the logits), float32, natural log.

    Both are differentiable in `hidden`, `weight` and `bias`. `softcap` is Gemma 2's c * tanh(logits / c).
    Half-precision states, or autocast, make the factors of the matrix products half-precision; sums, logits and all
    reductions stay float32: beta = 10 multiplies every error in a log-probability by ten. float64 stays float64.
    """
    return _TargetLogprobs.apply(hidden, weight, bias, targets, softcap, chunk)


class _TargetLogprobs(torch.autograd.Function):
    """Keeps hidden states, ids and normalisers; backward computes the logits again, a chunk at a time.

    Whatever else a later loss needs of the same logits (entropy, further ids) is one more output of the two loops.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        half = _half(hidden)
        factor = _factor(weight, half)
        logprobs, normalisers = [], []
        for rows, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(_factor(rows, half), factor, bias, softcap, half)
            normaliser = torch.logsumexp(logits, dim=-1)
            logprobs.append(logits.gather(1, ids[:, None])[:, 0] - normaliser)
            normalisers.append(normaliser)
        logz = torch.cat(normalisers)
        ctx.save_for_backward(hidden, weight, bias, targets, logz)
        ctx.options = softcap, chunk, half
        return torch.cat(logprobs), logz

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_logz: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, logz = ctx.saved_tensors
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
            grad = _grad_logits(logits, logz[at], targets[at], grad_logprobs[at], grad_logz[at], softcap)
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
    logits: Tensor, logz: Tensor, targets: Tensor, grad_logprobs: Tensor, grad_logz: Tensor, softcap: float | None
) -> Tensor:
    """Overwrites the logits with their gradient, to that of the matrix product.

    The gradient of log p(y) is 1[y] - p and that of logZ is p: p gets grad_logz - grad_logprobs, the target
    grad_logprobs more.
    """
    slope = 1 - (logits / softcap) ** 2 if softcap else None  # of c * tanh(z / c)
    grad = logits.sub_(logz[:, None]).exp_().mul_((grad_logz - grad_logprobs)[:, None])
    grad.scatter_add_(1, targets[:, None], grad_logprobs[:, None].to(grad.dtype))
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
