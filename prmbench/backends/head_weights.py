"""Reads the head of a reward model: from a file of its own, or from among the checkpoint's weights.

No code of the model's own is needed for a head of one linear layer, or of several with ReLU between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils.hub import cached_file

from prmbench.backends.cards import ModelCard
from prmbench.core import reading
from prmbench.core.records import UserError
from prmbench.core.redaction import first_line
from prmbench.engines.hf import hub_options

CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")
"""Files of a checkpoint's weights; with shards `<name>.index.json` lists the files."""
HEAD_FILES = ("value_head.safetensors", "reward_head.pt", "value_head.bin")
"""Files of a separate head, in order of preference."""


def head_file(card: ModelCard) -> Path | None:
    """Return the first separate head file of a model in a folder or on the hub, or None without one."""
    return next((path for path in (download(card, name) for name in HEAD_FILES) if path), None)


def checkpoint_head(card: ModelCard) -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors among the checkpoint's own weights whose names begin with `card.head`, and words for errors.

    Raises:
        UserError: The checkpoint has no weights.
    """
    prefix = card.head or ""
    for name in CHECKPOINTS:
        index, single_file = download(card, f"{name}.index.json"), download(card, name)
        if index:
            shards = {shard for tensor, shard in read_weight_map(index).items() if tensor.startswith(prefix)}
            paths = [path for path in (download(card, shard) for shard in sorted(shards)) if path]
        else:
            paths = [single_file] if single_file else []
        if index or single_file:
            tensors = {k: v for path in paths for k, v in read_tensors(path, prefix).items()}
            return tensors, f"--model {card.model}, tensors {prefix}*"
    raise UserError(f"--model {card.model}: has none of the files {', '.join(CHECKPOINTS)}")


def read_head(path: Path) -> tuple[torch.Tensor, float]:
    """Return the [h] weight and the bias of a linear head in safetensors or a weights-only pickle.

    Raises:
        UserError: The file holds anything else; no other object is unpickled.
    """
    return linear_head(read_tensors(path, ""), path.name)


def download(card: ModelCard, name: str) -> Path | None:
    """Return a file of a model in a folder or on the hub; None where it has no such file. Raises UserError."""
    options = {**hub_options(card.model, card.revision), "_raise_exceptions_for_missing_entries": False}
    try:
        path = cached_file(card.model, name, revision=card.revision, **options)
    except OSError as error:
        raise UserError(f"--model {card.model}: cannot be loaded ({first_line(error)})") from error
    return Path(path) if path else None


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor from a checkpoint's index. Raises UserError on a malformed index."""
    values = reading.read_json(index)
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise UserError(f"{index}: not the index of a checkpoint; it needs an object `weight_map` of file names")
    return names


def read_tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file whose names begin with `prefix`, without reading the others."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=bool(prefix))
        return {name: tensor for name, tensor in loaded.items() if name.startswith(prefix)}
    except (OSError, EOFError, ValueError, RuntimeError, AttributeError, SafetensorError, UnpicklingError) as error:
        # Not the error's own text: torch's tells the user to load the file unsafely.
        raise UserError(
            f"{path.name}: not a head of plain tensors ({type(error).__name__}); save it as safetensors"
        ) from error


def linear_head(tensors: Mapping[str, torch.Tensor], source: str) -> tuple[torch.Tensor, float]:
    """Return the [h] weight and the bias of a head of one layer. Raises UserError on any other tensors."""
    weights = [t for t in tensors.values() if t.numel() > 1]
    biases = [float(t) for t in tensors.values() if t.numel() == 1]
    if len(weights) != 1 or len(biases) > 1:
        names = ", ".join(sorted(tensors)) or "nothing"
        raise UserError(f"{source}: holds {names}; expected one weight [1, h] and at most one bias")
    return weights[0].float().reshape(-1), biases[0] if biases else 0.0


def layered_head(tensors: Mapping[str, torch.Tensor], source: str) -> nn.Sequential:
    """Return a head of linear layers with ReLU between them: that of Qwen2.5-Math-PRM and of Qwen2.5-Math-RM has two.

    After a common prefix the tensors have the names that they have in a `Sequential`, `0.weight`, `0.bias`, `2.weight`,
    `2.bias`; those of one layer are `weight` and `bias`.

    Args:
        tensors: The head's tensors by name.
        source: What the tensors are, for errors.

    Raises:
        UserError: There are others, or the layers do not fit together.
    """
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = LAYER.search(name)
        if match:
            layers.setdefault(int(match[1] or 0), {})[match[2]] = tensor
    weights = [layers[number].get("weight") for number in sorted(layers)]
    matrices = [weight for weight in weights if weight is not None and weight.ndim == 2]  # noqa: PLR2004
    fits = all(first.shape[0] == second.shape[1] for first, second in pairwise(matrices))
    if not fits or not layers or len(matrices) < len(layers) or sorted(layers) != list(range(0, 2 * len(layers), 2)):
        names = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())) or "nothing"
        raise UserError(f"{source}: holds {names}; expected linear layers 0, 2, ... that fit together")
    modules: list[nn.Module] = []
    for number in sorted(layers):
        weight, bias = layers[number]["weight"], layers[number].get("bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        linear.load_state_dict(layers[number])
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def has_layers(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a head has more than one layer."""
    return sum(tensor.ndim > 1 for tensor in tensors.values()) > 1


LAYER = re.compile(r"(?:^|\.)(?:(\d+)\.)?(weight|bias)$")
"""Matches the end of the name of a layer's tensor, with the layer's number where there is one."""
