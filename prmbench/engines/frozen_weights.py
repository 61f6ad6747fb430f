"""Frozen weights in half precision while completions are sampled: autocast would convert them at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@contextmanager
def frozen_weights_in(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Hold the frozen float32 weights of linear layers in the precision in which autocast reads them.

    Autocast converts a frozen weight in every forward pass, since it caches only weights that are trained: with LoRA
    that is the whole base at every sampled token. The numbers stay the same. The float32 weights stay in memory and are
    put back. Weights of the output head, which decoding.py converts itself, and of other layers stay as they are.

    Args:
        model: The model, adapters inside.
        dtype: Precision of autocast; None = there is no autocast, and nothing is done.
    """
    head = model.get_output_embeddings()
    linear = {m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    elsewhere = {id(p) for m in model.modules() if m not in linear for p in m.parameters(recurse=False)}
    frozen = [
        p
        for m in linear
        for p in m.parameters(recurse=False)
        if not p.requires_grad and p.dtype == torch.float32 and id(p) not in elsewhere
    ]
    originals = [p.data for p in frozen] if dtype is not None else []
    try:
        for parameter, original in zip(frozen, originals, strict=False):
            parameter.data = original.to(dtype)
        yield
    finally:
        for parameter, original in zip(frozen, originals, strict=False):
            parameter.data = original
