"""Log-probabilities of chosen tokens computed from hidden states: chunked over tokens, float32, differentiable.

The logits of all positions never exist together: at most `chunk` rows do at a time, also in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK, GPU_CHUNK = 256, 2048
"""Rows of logits in memory at a time on a CPU (156 MB for 152k tokens), and at most on a GPU."""
GPU_LOGITS_BYTES = 5 * 2**28
"""Most memory of a chunk of logits on a GPU: 2,048 rows of 152k tokens. Every chunk of a backward pass reads and writes
the whole gradient of the head, so that few large ones move less memory."""
BLOCK, BLOCK_CHUNK = 4096, 1024
"""Tokens of the vocabulary, and rows, whose logits exist at a time in `read_target_logprobs` on a CPU: 16 MB."""
P_MIN_MARGIN = 1e-5
"""Relative tolerance of p_min, so that rounding excludes none of ten tokens with probability 0.1 each."""


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
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of one target per position; see `logprobs_at`.

    Args:
        hidden: [n, h] hidden states.
        weight: [v, h] weights of the output head.
        targets: [n] token ids.
        bias: [v] bias of the output head.
        softcap: Soft cap of the logits.
        chunk: Rows of logits in memory at a time; None for `default_chunk`.

    Returns:
        [n] log p(target), and [n] logsumexp of the logits.
    """
    logprobs, logz = logprobs_at(hidden, weight, targets[:, None], bias, softcap, chunk)
    return logprobs[:, 0], logz


def logprobs_at(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute log-probabilities of k tokens per position, differentiable in `hidden`, `weight` and `bias`.

    With half-precision states or autocast, the factors of matrix products are half-precision, while sums, logits and
    reductions stay float32, since beta = 10 multiplies every error of a log-probability by ten. float64 stays float64.

    Args:
        hidden: [n, h] hidden states.
        weight: [v, h] weights of the output head.
        ids: [n, k] token ids.
        bias: [v] bias of the output head.
        softcap: c of Gemma 2's c * tanh(logits / c); None = no cap.
        chunk: Rows of logits in memory at a time; None for `default_chunk`.

    Returns:
        [n, k] log p(id) and [n] logsumexp of the logits; float32, natural logs.
    """
    return _LogprobsAt.apply(hidden, weight, bias, ids, softcap, chunk or default_chunk(weight))


def default_chunk(weight: Tensor) -> int:
    """Return how many rows of logits to hold at a time, by the device and the vocabulary of a [v, h] head."""
    if weight.device.type == "cpu":
        return CHUNK
    return max(1, min(GPU_CHUNK, GPU_LOGITS_BYTES // (4 * len(weight))))


@torch.no_grad()
def read_target_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Compute what `target_logprobs` does, without gradients; on a CPU in blocks of the vocabulary, which is faster.

    A block's logits stay in the processor's cache. Each logit is the same, and the normalisers are summed in another
    order, which moves them by a few roundings.
    """
    if weight.device.type != "cpu":
        return target_logprobs(hidden, weight, targets, bias, softcap)
    factor_dtype = _factor_dtype(hidden)
    weight_factor = _as_factor(weight, factor_dtype)
    parts = []
    for rows, row_targets in zip(hidden.split(BLOCK_CHUNK), targets.split(BLOCK_CHUNK), strict=True):
        row_factor, block_logz = _as_factor(rows, factor_dtype), []
        target_logits = row_factor.new_empty(len(rows))
        for start in range(0, len(weight), BLOCK):
            block = slice(start, start + BLOCK)
            logits = _logits(
                row_factor, weight_factor[block], None if bias is None else bias[block], softcap, factor_dtype
            )
            block_logz.append(torch.logsumexp(logits, dim=-1))
            (inside,) = torch.where((row_targets >= start) & (row_targets < start + BLOCK))
            target_logits[inside] = logits[inside, row_targets[inside] - start]
        logz = torch.logsumexp(torch.stack(block_logz, dim=1), dim=-1)
        parts.append((target_logits - logz, logz))
    logprobs, normalisers = map(torch.cat, zip(*parts, strict=True))
    return logprobs, normalisers


def candidates(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    p_min: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[CandidateSet, Tensor]:
    """Return the targets with every token of p >= p_min, and the entropy [n] of the whole vocabulary in nats.

    The set is exact. Its log-probabilities are differentiable as those of `logprobs_at`, and nothing else is. The
    products, sums and chunks are those of `logprobs_at`, so equal weights give equal bits.

    Args:
        hidden: [n, h] hidden states.
        weight: [v, h] weights of the output head.
        targets: [n] token ids.
        p_min: Least probability of a candidate, so that K = floor(1 / p_min); 0 = no candidates, K = 0.
        bias: [v] bias of the output head.
        softcap: Soft cap of the logits, as for `logprobs_at`.
        chunk: Rows of logits in memory at a time; None for `default_chunk`.
    """
    chunk = chunk or default_chunk(weight)
    token_ids, logprobs, mask, logz, entropies = _candidates(hidden, weight, targets, p_min, bias, softcap, chunk)
    logprobs, _ = _LogprobsAt.apply(hidden, weight, bias, token_ids, softcap, chunk, (logprobs, logz))
    return CandidateSet(token_ids, logprobs.masked_fill(~mask, 0.0), mask), entropies


@torch.no_grad()
def _candidates(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    p_min: float,
    bias: Tensor | None,
    softcap: float | None,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Return ids, log-probabilities and mask [n, 1 + K], logsumexp [n] and entropy [n]."""
    factor_dtype = _factor_dtype(hidden)
    weight_factor = _as_factor(weight, factor_dtype)
    max_count = min(max_candidates(p_min), len(weight))
    min_logprob = math.log(p_min * (1 - P_MIN_MARGIN)) if p_min else 0.0
    parts = []
    for rows, target_ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = _logits(_as_factor(rows, factor_dtype), weight_factor, bias, softcap, factor_dtype)
        logz = torch.logsumexp(logits, dim=-1, keepdim=True)
        target = logits.gather(1, target_ids[:, None]) - logz
        top_logprobs, ids = logits.topk(max_count)
        top_logprobs = top_logprobs - logz
        is_candidate = top_logprobs >= min_logprob
        logits.sub_(logz)
        entropy = -logits.exp().mul_(logits).sum(-1)  # not by vecdot, whose factors autocast would round
        parts.append(
            (
                torch.cat([target_ids[:, None], ids], dim=1),
                torch.cat([target, top_logprobs], dim=1),
                torch.cat([torch.ones_like(target, dtype=torch.bool), is_candidate], dim=1),
                logz[:, 0],
                entropy,
            )
        )
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def output_head(
    weight: Tensor, dtype: torch.dtype, bias: Tensor | None = None, softcap: float | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function from hidden states [n, h] to logits [n, v], for many calls without gradients.

    The weights become a factor of `dtype` once. Products and sums are those of `logprobs_at`, so equal states give
    equal logits.

    Args:
        weight: [v, h] weights of the output head.
        dtype: Half precision of the factors; see `factor_dtype`.
        bias: [v] bias of the output head.
        softcap: Soft cap of the logits.
    """
    weight_factor = _as_factor(weight, dtype)
    return lambda hidden: _logits(_as_factor(hidden, dtype), weight_factor, bias, softcap, dtype)


def factor_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype | None:
    """Return the half precision in which a model of this dtype multiplies here, autocast included; None = full."""
    if dtype in (torch.bfloat16, torch.float16):
        return dtype
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def max_candidates(p_min: float) -> int:
    """Return how many tokens can have a probability of at least p_min; 0 for p_min = 0, which asks for none."""
    return int((1 + P_MIN_MARGIN) / p_min) if p_min else 0


class _LogprobsAt(torch.autograd.Function):
    """Saves hidden states, ids and normalisers; the backward pass recomputes the logits chunk by chunk.

    `known` are the log-probabilities and normalisers where they have been computed already.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        softcap: float | None,
        chunk: int,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        logprobs, logz = known or _LogprobsAt.compute(hidden, weight, bias, ids, softcap, chunk)
        ctx.save_for_backward(hidden, weight, bias, ids, logz)
        ctx.options = softcap, chunk, _factor_dtype(hidden)
        return logprobs, logz

    @staticmethod
    def compute(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, softcap: float | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        factor_dtype = _factor_dtype(hidden)
        weight_factor = _as_factor(weight, factor_dtype)
        logprobs, normalisers = [], []
        for rows, row_ids in zip(hidden.split(chunk), ids.split(chunk), strict=True):
            logits = _logits(_as_factor(rows, factor_dtype), weight_factor, bias, softcap, factor_dtype)
            normaliser = torch.logsumexp(logits, dim=-1)
            logprobs.append(logits.gather(1, row_ids) - normaliser[:, None])
            normalisers.append(normaliser)
        return torch.cat(logprobs), torch.cat(normalisers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_logz: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, ids, logz = ctx.saved_tensors
        softcap, chunk, factor_dtype = ctx.options
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        weight_factor = _as_factor(weight, factor_dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = None
        grad_bias = torch.zeros_like(bias, dtype=logz.dtype) if needs_bias else None
        for start in range(0, len(hidden), chunk):
            chunk_rows = slice(start, start + chunk)
            rows = _as_factor(hidden[chunk_rows], factor_dtype)
            logits = _logits(rows, weight_factor, bias, softcap, factor_dtype)
            grad = _grad_logits(
                logits, logz[chunk_rows], ids[chunk_rows], grad_logprobs[chunk_rows], grad_logz[chunk_rows], softcap
            )
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = _as_factor(grad, factor_dtype)
            if grad_hidden is not None:
                grad_hidden[chunk_rows] = _matmul(grad, weight_factor, factor_dtype)
            if grad_weight is not None:
                _add_matmul(grad_weight, grad.T, rows, factor_dtype)
            elif needs_weight:  # the first chunk's is written, neither onto zeros nor by an addition
                grad_weight = _matmul(grad.T, rows, factor_dtype)
        if needs_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 4,
        )


def _logits(
    rows: Tensor, weight_factor: Tensor, bias: Tensor | None, softcap: float | None, factor_dtype: torch.dtype | None
) -> Tensor:
    logits = _matmul(rows, weight_factor.T, factor_dtype)
    if bias is not None:
        logits += bias.to(logits.dtype)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _grad_logits(
    logits: Tensor, logz: Tensor, ids: Tensor, grad_logprobs: Tensor, grad_logz: Tensor, softcap: float | None
) -> Tensor:
    """Overwrite the logits with the gradient with respect to the matrix product that they come from.

    The gradient of log p(y) is 1[y] - p and that of logZ is p. So p is multiplied by grad_logz minus the sum of the
    row's grad_logprobs, and each id adds its own grad_logprobs, as often as it occurs in the row.
    """
    slope = 1 - (logits / softcap) ** 2 if softcap else None  # of c * tanh(z / c)
    grad = logits.sub_(logz[:, None]).exp_().mul_((grad_logz - grad_logprobs.sum(-1))[:, None])
    grad.scatter_add_(1, ids, grad_logprobs.to(grad.dtype))
    return grad if slope is None else grad.mul_(slope)


# --- matrix products: half-precision factors where asked for, float32 sums and results always ------------------------


def _factor_dtype(hidden: Tensor) -> torch.dtype | None:
    """Return the half precision of the factors, or None when they have the precision of the reductions."""
    return factor_dtype(hidden.dtype, hidden.device.type)


def _as_factor(x: Tensor, factor_dtype: torch.dtype | None) -> Tensor:
    """Convert a factor of a product. On a CPU it stays float32, and `_bf16_matmul` rounds it inside the product."""
    if x.dtype == torch.float64:
        return x
    return x.to(factor_dtype if factor_dtype and x.is_cuda else torch.float32)


def _matmul(a: Tensor, b: Tensor, factor_dtype: torch.dtype | None) -> Tensor:
    with torch.autocast(a.device.type, enabled=False), _bf16_matmul(factor_dtype):
        return torch.mm(a, b, out_dtype=torch.float32) if factor_dtype and a.is_cuda else torch.mm(a, b)


def _add_matmul(total: Tensor, a: Tensor, b: Tensor, factor_dtype: torch.dtype | None) -> None:
    """Add a @ b to `total`; on a CPU without a second tensor of that size."""
    if factor_dtype and a.is_cuda:
        total += _matmul(a, b, factor_dtype)
        return
    with _bf16_matmul(factor_dtype):
        total.addmm_(a, b)


@contextmanager
def _bf16_matmul(factor_dtype: torch.dtype | None) -> Iterator[None]:
    """Let oneDNN round float32 factors to bfloat16 inside products where the CPU is faster so; sums stay float32."""
    if factor_dtype != torch.bfloat16:
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    previous = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = previous
