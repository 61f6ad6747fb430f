"""Log-probabilities of chosen tokens straight from hidden states: chunked over tokens, float32.

Never a [batch, time, vocabulary] block: at most `chunk` rows of logits exist at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

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

    `softcap` is Gemma 2's c * tanh(logits / c). Whatever the weights' dtype, the reductions are float32: beta = 10
    multiplies every error in a log-probability by ten.
    """
    logprobs, normalisers = [], []
    for rows, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = _float32_logits(rows, weight)
        if bias is not None:
            logits += bias.float()
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        normaliser = torch.logsumexp(logits, dim=-1)
        chosen = logits.gather(1, ids[:, None])[:, 0]
        logprobs.append(chosen - normaliser)
        normalisers.append(normaliser)
    return torch.cat(logprobs), torch.cat(normalisers)


def _float32_logits(rows: Tensor, weight: Tensor) -> Tensor:
    if rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    return torch.mm(rows.float(), weight.T.float())
