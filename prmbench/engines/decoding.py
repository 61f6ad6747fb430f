"""One batch of completions from a transformers model: prefill once, then a token a step, finished rows dropped.

Noise is a hash of (seed, step, token id), so a completion does not depend on its batch, nor on any generator's state.
Batches and prompts' texts are generation.py's business.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prmbench.core.records import UserError

if TYPE_CHECKING:
    from prmbench.engines.generation import Sampling

DROP_SHARE = 8
"""Finished rows leave the batch when they are one in so many: to drop them copies the whole cache."""
NUCLEUS_TRY = 256
"""Top-p sorts so many of the likeliest tokens first; nearly always they hold the nucleus."""
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of splitmix64 (Steele, Lea and Flood 2014), as signed 64-bit numbers."""


class Drawn(NamedTuple):
    """One completion as sampled."""

    ids: tuple[int, ...]
    """End of turn included, where it came."""
    logprobs: tuple[float, ...]
    """Of each token under softmax(logits / temperature), before any top-k or top-p; at temperature 0 under softmax."""


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stops: Collection[int],
) -> list[Drawn]:
    """Completions of `prompts`, at most `limits[i]` tokens each, every one drawn with its own seed.

    Equal prompts are read once. Raises UserError when the model's output is not finite.
    """
    device = model.device
    unique = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    chosen = torch.tensor([unique[tuple(prompt)] for prompt in prompts], device=device)
    logits, cache, mask, at = _prefill(model, list(unique), device)
    if len(unique) < len(prompts):
        cache.batch_select_indices(chosen)
    logits, at = logits[chosen], at[chosen]
    mask = None if mask is None else mask[chosen]
    keys, most = mix(torch.tensor([_signed(s) for s in seeds], device=device)), torch.tensor(limits, device=device)
    ending = torch.tensor(sorted(stops), device=device)
    ids = torch.zeros(len(prompts), max(limits), dtype=torch.long, device=device)
    logps = torch.zeros(ids.shape, device=device)
    length = torch.zeros(len(prompts), dtype=torch.long, device=device)
    rows, done = torch.arange(len(prompts), device=device), torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max(limits)):
        token, logp = draw(logits.float(), keys[rows], step, sampling)
        ids[rows, step], logps[rows, step] = token, logp
        length[rows] += ~done
        done |= torch.isin(token, ending) | (most[rows] <= step + 1)
        finished = int(done.sum())
        if finished == len(done):
            break
        if finished * DROP_SHARE >= len(done):
            live = (~done).nonzero()[:, 0]
            cache.batch_select_indices(live)
            token, at, rows, done = token[live], at[live], rows[live], done[live]
            mask = None if mask is None else mask[live]
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=at[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits, at = out.logits[:, -1], at + ~done  # what is done must not run out of positions
    return _collect(ids.tolist(), logps, length.tolist())


def _prefill(
    model: Any, prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Tensor, Any, Tensor | None, Tensor]:
    """Logits after each prompt [u, v], the cache, the mask of the left-padded prompts, and their lengths [u]."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    padded = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    place = torch.arange(width, device=device) - (width - lengths[:, None])
    mask = None if bool((lengths == width).all()) else (place >= 0).long()  # without one, attention takes its fast path
    out = model(
        input_ids=padded, attention_mask=mask, position_ids=place.clamp(min=0), use_cache=True, logits_to_keep=1
    )
    return out.logits[:, -1], out.past_key_values, mask, lengths


def _collect(ids: list[list[int]], logps: Tensor, lengths: list[int]) -> list[Drawn]:
    if not bool(logps.isfinite().all()):
        raise UserError("the model's logits are NaN or infinite; check its weights, or use --dtype float32")
    return [Drawn(tuple(row[:n]), tuple(logp[:n])) for row, logp, n in zip(ids, logps.tolist(), lengths, strict=True)]


def draw(logits: Tensor, keys: Tensor, step: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The next token [b] and its log-probability [b] from float32 `logits` [b, v]; `keys` [b] are the mixed seeds."""
    if sampling.temperature == 0:
        logp = logits.log_softmax(-1)
        token = logp.argmax(-1)
    else:
        logp = (logits / sampling.temperature).log_softmax(-1)
        token = (cut(logp, sampling.top_k, sampling.top_p) + gumbel(keys, step, logits.shape[-1])).argmax(-1)
    return token, logp.gather(-1, token[:, None])[:, 0]


def cut(logp: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probabilities [b, v] with what top-k, then top-p, leaves out at -inf; ties at the edge stay in.

    Top-p keeps the likeliest tokens up to and including the one with which their share reaches `top_p`.
    """
    if 0 < top_k < logp.shape[-1]:
        logp = logp.masked_fill(logp < logp.topk(top_k).values[:, -1:], -torch.inf).log_softmax(-1)
    if top_p < 1:
        logp = logp.masked_fill(logp < _nucleus_floor(logp, top_p), -torch.inf)
    return logp


def _nucleus_floor(logp: Tensor, top_p: float) -> Tensor:
    """[b, 1]: the smallest log-probability that is in the nucleus."""
    for size in (min(NUCLEUS_TRY, logp.shape[-1]), logp.shape[-1]):
        top = logp.topk(size).values
        inside = top.exp().cumsum(-1) - top.exp() < top_p
        if size == logp.shape[-1] or not bool(inside[:, -1].any()):
            break
    return top.gather(-1, inside.sum(-1, keepdim=True).clamp(min=1) - 1)


def gumbel(keys: Tensor, step: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [b, v], a function of key, step and token id alone; argmax(logp + noise) is a sample."""
    tokens = torch.arange(vocabulary, device=keys.device)
    bits = mix(mix(keys + _signed(step * _GOLDEN))[:, None] + tokens * _GOLDEN)
    uniform = ((((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) * 2.0**-53).float()
    uniform = uniform.clamp(max=1 - 2**-24)  # rounded to 1 it would rule its token out
    return -torch.log(-torch.log1p(-uniform))  # small uniforms are exact, and they make the large noise


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose products wrap around."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own drags the sign along."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """An integer modulo 2^64, in int64's range."""
    return (number + 2**63) % 2**64 - 2**63
