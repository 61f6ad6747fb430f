"""FSDP without a copy of the whole model in every process: process 0 loads it, and every process gets its shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn

from prmbench.core import processes
from prmbench.core.records import UserError
from prmbench.engines.hf import HFEngine

Opened = tuple[HFEngine, Any]
"""A model ready to be wrapped, and the peft model around it or None."""


def open_once(open_on: Callable[[str], Opened]) -> Opened:
    """Opens a model on the CPU of process 0, and its shape alone, on meta, in the others. All processes call it.

    Args:
        open_on: Opens the model on the device `cpu`, or without weights on `meta`.

    Raises:
        UserError: Process 0 cannot open it; raised in all processes.
    """
    opened, error = None, None
    if processes.rank() == 0:
        try:
            opened = open_on("cpu")
        except UserError as caught:
            error = str(caught)
    error = processes.broadcast(error)
    if error is not None:
        raise UserError(error)
    opened = opened or open_on("meta")
    model = opened[0].model
    shape, generation_config = processes.broadcast((_shape(model), getattr(model, "generation_config", None)))
    if _shape(model) != shape:  # a checkpoint may untie what its config ties: then this process needs the weights, too
        return open_on("cpu")
    model.generation_config = generation_config  # on meta it is made from the config, not read from its own file
    return opened


def _shape(model: nn.Module) -> list[tuple[Any, ...]]:
    return [(name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()]


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """Returns the weights that `fill_shards` takes, before the module is sharded: all in process 0, none elsewhere."""
    return module.state_dict() if processes.rank() == 0 else {}


def fill_shards(module: nn.Module, weights: dict[str, Any], device: str) -> None:
    """Puts the weights and buffers of process 0 into the sharded modules of all processes. All processes call it.

    They travel one tensor at a time, so the other processes hold their shards and the largest tensor.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    if any(p.is_meta for p in module.parameters()):
        module.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, weights, options=options)
    for buffer in module.buffers():  # those outside the state dict, such as the frequencies of rotary embeddings
        dist.broadcast(buffer, 0)
