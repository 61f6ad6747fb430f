"""The plain way to sample a batch, which decoding.py must equal: one static batch, whose cache grows by copying."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from prmbench.engines.decoding import sample_token, splitmix64
from prmbench.engines.generation import SampledTokens, Sampling


@torch.inference_mode()
def decode_statically(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stops: Collection[int],
) -> list[SampledTokens]:
    """Sample every completion to the longest limit in one left-padded batch, and cut each where it ends."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    keys = splitmix64(torch.tensor(list(seeds)))
    out = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True)
    steps = []
    for step in range(max(limits)):
        token, logprob = sample_token(out.logits[:, -1].float(), keys, step, sampling)
        steps.append((token.tolist(), logprob.tolist()))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=(lengths + step)[:, None],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    completions = []
    for row, limit in enumerate(limits):
        tokens = [tokens[row] for tokens, _ in steps[:limit]]
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), limit)
        completions.append(SampledTokens(tuple(tokens[:end]), tuple(logp[row] for _, logp in steps[:end])))
    return completions
