"""Samples one batch of completions from a transformers model: a prefill, then a token per step, dropping finished rows.

Sampling noise is a hash of (seed, step, token id), so a completion depends neither on its batch nor on the state of a
random generator. generation.py renders prompts and forms batches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from prmbench.core.records import UserError
from prmbench.engines.generation import SampledTokens, Sampling

DROP_FRACTION = 8
"""Finished rows leave the batch once they are 1 / DROP_FRACTION of it, since dropping them copies the whole cache."""
NUCLEUS_CANDIDATES = 256
"""Number of most likely tokens that top-p sorts first; they nearly always contain the nucleus."""
_GOLDEN_GAMMA, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of splitmix64 (Steele, Lea and Flood 2014), as signed 64-bit numbers."""


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stops: Collection[int],
) -> list[SampledTokens]:
    """Sample one completion for each prompt; equal prompts share one prefill.

    Args:
        model: A transformers causal language model.
        prompts: Token ids of each prompt.
        limits: Most tokens of each completion, at least 1.
        seeds: Seed of each completion.
        sampling: Temperature, top-k and top-p; its `max_new_tokens` is not used.
        stops: Token ids that end a completion.

    Returns:
        The sampled tokens, in the order of the prompts.

    Raises:
        UserError: The model's logits are not finite.
    """
    device = model.device
    prompt_index = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    row_prompts = torch.tensor([prompt_index[tuple(prompt)] for prompt in prompts], device=device)
    logits, cache, mask, positions = _prefill(model, list(prompt_index), device)
    if len(prompt_index) < len(prompts):
        cache.batch_select_indices(row_prompts)
    logits, positions = logits[row_prompts], positions[row_prompts]
    mask = None if mask is None else mask[row_prompts]
    keys = splitmix64(torch.tensor([_to_int64(seed) for seed in seeds], device=device))
    max_lengths = torch.tensor(limits, device=device)
    stop_ids = torch.tensor(sorted(stops), device=device)
    ids = torch.zeros(len(prompts), max(limits), dtype=torch.long, device=device)
    logprobs = torch.zeros(ids.shape, device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
    row_ids = torch.arange(len(prompts), device=device)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max(limits)):
        token, logprob = sample_token(logits.float(), keys[row_ids], step, sampling)
        ids[row_ids, step], logprobs[row_ids, step] = token, logprob
        lengths[row_ids] += ~is_done
        is_done |= torch.isin(token, stop_ids) | (max_lengths[row_ids] <= step + 1)
        finished = int(is_done.sum())
        if finished == len(is_done):
            break
        if finished * DROP_FRACTION >= len(is_done):
            unfinished = (~is_done).nonzero()[:, 0]
            cache.batch_select_indices(unfinished)
            token, positions = token[unfinished], positions[unfinished]
            row_ids, is_done = row_ids[unfinished], is_done[unfinished]
            mask = None if mask is None else mask[unfinished]
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits, positions = out.logits[:, -1], positions + ~is_done  # finished rows stay at a valid position
    return _collect(ids.tolist(), logprobs, lengths.tolist())


def _prefill(
    model: Any, prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Tensor, Any, Tensor | None, Tensor]:
    """Return the logits after each prompt [u, v], the cache, the mask of the left-padded prompts and lengths [u]."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    input_ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    positions = torch.arange(width, device=device) - (width - lengths[:, None])
    mask = None if bool((lengths == width).all()) else (positions >= 0).long()  # attention is faster without a mask
    out = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions.clamp(min=0), use_cache=True, logits_to_keep=1
    )
    return out.logits[:, -1], out.past_key_values, mask, lengths


def _collect(ids: list[list[int]], logprobs: Tensor, lengths: list[int]) -> list[SampledTokens]:
    if not bool(logprobs.isfinite().all()):
        raise UserError("the model's logits are NaN or infinite; check its weights, or use --dtype float32")
    return [
        SampledTokens(tuple(row[:n]), tuple(row_logprobs[:n]))
        for row, row_logprobs, n in zip(ids, logprobs.tolist(), lengths, strict=True)
    ]


def sample_token(logits: Tensor, keys: Tensor, step: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample the next token of each row.

    Args:
        logits: [b, v], float32.
        keys: [b], the seeds hashed by `splitmix64`.
        step: Index of the token in its completion.
        sampling: Temperature, top-k and top-p.

    Returns:
        Token ids [b] and their log-probabilities [b] before top-k and top-p.
    """
    if sampling.temperature == 0:
        logp = logits.log_softmax(-1)
        token = logp.argmax(-1)
    else:
        logp = (logits / sampling.temperature).log_softmax(-1)
        token = (filter_logprobs(logp, sampling.top_k, sampling.top_p) + gumbel(keys, step, logits.shape[-1])).argmax(
            -1
        )
    return token, logp.gather(-1, token[:, None])[:, 0]


def filter_logprobs(logp: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set log-probabilities [b, v] of tokens outside top-k, then top-p, to -inf; ties at the limit are kept.

    Top-p keeps the most likely tokens up to and including the one with which their total reaches `top_p`.
    """
    if 0 < top_k < logp.shape[-1]:
        logp = logp.masked_fill(logp < logp.topk(top_k).values[:, -1:], -torch.inf).log_softmax(-1)
    if top_p < 1:
        logp = logp.masked_fill(logp < _nucleus_floor(logp, top_p), -torch.inf)
    return logp


def _nucleus_floor(logp: Tensor, top_p: float) -> Tensor:
    """Return the smallest log-probability in the nucleus, [b, 1]."""
    for size in (min(NUCLEUS_CANDIDATES, logp.shape[-1]), logp.shape[-1]):
        top = logp.topk(size).values
        in_nucleus = top.exp().cumsum(-1) - top.exp() < top_p
        if size == logp.shape[-1] or not bool(in_nucleus[:, -1].any()):
            break
    return top.gather(-1, in_nucleus.sum(-1, keepdim=True).clamp(min=1) - 1)


def gumbel(keys: Tensor, step: int, vocabulary: int) -> Tensor:
    """Return standard Gumbel noise [b, v] that depends on key, step and token id only.

    argmax(logprobs + noise) is a sample of the distribution.
    """
    tokens = torch.arange(vocabulary, device=keys.device)
    bits = splitmix64(splitmix64(keys + _to_int64(step * _GOLDEN_GAMMA))[:, None] + tokens * _GOLDEN_GAMMA)
    uniform = ((((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) * 2.0**-53).float()
    uniform = uniform.clamp(max=1 - 2**-24)  # a value rounded to 1 would exclude its token
    return -torch.log(-torch.log1p(-uniform))  # exact for small uniforms, which give the largest noise


def splitmix64(x: Tensor) -> Tensor:
    """Apply splitmix64's finaliser to int64 values, whose products wrap around."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _to_int64(number: int) -> int:
    """Return an integer modulo 2^64, mapped to the range of int64."""
    return (number + 2**63) % 2**64 - 2**63
