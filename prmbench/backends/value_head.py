"""Scalar value heads: one value per token, read at a step's end or summed over its tokens.

The model is AutoModelForTokenClassification(num_labels=1), or a base model whose head is a file of its own or lies
among its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig
from prmbench.core import reading
from prmbench.core.records import ScoreKind, StepScores, Trace, UserError
from prmbench.core.redaction import first_line
from prmbench.engines.encoding import Encoded
from prmbench.engines.family_encodings import encode_pieces
from prmbench.engines.hf import HFEngine

CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")
"""Files of a checkpoint's weights; with shards `<name>.index.json` lists the files."""
HEAD_FILES = ("value_head.safetensors", "reward_head.pt", "value_head.bin")
"""Files of a separate head, in order of preference."""

TokenValues = Callable[[Sequence[Encoded]], Iterator[NDArray[np.float32]]]
"""Yields for each encoded trace the [T] values of its tokens."""


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Load the model with its head. A cumulative reading stores sums, and so has the readouts of log-ratios.

    Raises:
        UserError: The model or its head cannot be loaded, or the card's fields do not fit together.
    """
    kind, fixed = _score_kind(card)
    path = None if card.head else head_file(card)
    engine = common.open_model(card, config, "none" if card.head or path else "classes")
    card = replace(card, revision=engine.revision or card.revision)  # load model and head from one commit
    if path:
        values = _with_head(engine.states, *read_head(path))
    elif card.head:  # a dry run needs no head, which may lie in gigabytes of weights
        values = engine.states if config.dry_run else _with_head(engine.states, *checkpoint_head(card))
    elif engine.model.config.num_labels == 1:
        values = _single_output(engine.outputs)
    else:
        raise UserError(
            f"--model {card.model}: {engine.model.config.num_labels} classes; a value head has one (try token_cls)"
        )
    encode, input_format = _encoder(engine, card, config)
    facts = common.model_facts(card, config, engine, kind=kind, input_format=input_format, fixed=fixed)
    return ModelBackend(facts, encode, lambda batch: read(values, card, batch))


def _score_kind(card: ModelCard) -> tuple[ScoreKind, float]:
    """Return the kind of score, and the fixed threshold at which a step is as likely right as wrong."""
    if card.activation == "none":
        return ("value" if card.reading == "at_step" else "logratio"), 0.0
    if card.reading == "cumulative":
        raise UserError(f"--model {card.model}: a cumulative reading has no sigmoid; drop activation from its prm.json")
    return "prob", 0.5


def _encoder(engine: HFEngine, card: ModelCard, config: ModelConfig) -> tuple[Callable[[Trace], Encoded], str]:
    if card.separator is None:
        return common.chat_encoder(engine, config), common.chat_format(config)
    separator = card.separator
    encode = cache(lambda trace: encode_pieces(engine.tokenizer, trace, separator, engine.max_tokens))
    return encode, f"pieces {separator!r}"


def read(values: TokenValues, card: ModelCard, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Yield for each trace the value at each step's last token, after the card's activation, or its sum over tokens."""
    for encoded, row in zip(batch, values(batch), strict=True):
        if card.reading == "cumulative":
            scores = common.step_sums(row[encoded.start : encoded.ends[-1]], encoded)
        else:
            end_values = row[[end - 1 for end in encoded.ends]].astype(np.float64)
            scores = tuple((common.sigmoid(end_values) if card.activation == "sigmoid" else end_values).tolist())
        yield StepScores(encoded.id, scores, encoded.counts)


def head_file(card: ModelCard) -> Path | None:
    """Return the first separate head file of a model in a folder or on the hub, or None without one."""
    return next((path for path in (_download(card, name) for name in HEAD_FILES) if path), None)


def checkpoint_head(card: ModelCard) -> tuple[torch.Tensor, float]:
    """Return the [h] weight and the bias of a head among the checkpoint's own weights, named by prefix `card.head`.

    Raises:
        UserError: There are no such weights.
    """
    prefix = card.head or ""
    for name in CHECKPOINTS:
        index, single_file = _download(card, f"{name}.index.json"), _download(card, name)
        if index:
            shards = {shard for tensor, shard in _read_weight_map(index).items() if tensor.startswith(prefix)}
            paths = [path for path in (_download(card, shard) for shard in sorted(shards)) if path]
        else:
            paths = [single_file] if single_file else []
        if index or single_file:
            tensors = {k: v for path in paths for k, v in _read_tensors(path, prefix).items()}
            return _linear_head(tensors, f"--model {card.model}, tensors {prefix}*")
    raise UserError(f"--model {card.model}: has none of the files {', '.join(CHECKPOINTS)}")


def read_head(path: Path) -> tuple[torch.Tensor, float]:
    """Return the [h] weight and the bias of a linear head in safetensors or a weights-only pickle.

    Raises:
        UserError: The file holds anything else; no other object is unpickled.
    """
    return _linear_head(_read_tensors(path, ""), path.name)


def _download(card: ModelCard, name: str) -> Path | None:
    try:
        path = cached_file(card.model, name, revision=card.revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise UserError(f"--model {card.model}: cannot be loaded ({first_line(error)})") from error
    return Path(path) if path else None


def _read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor from a checkpoint's index. Raises UserError on a malformed index."""
    values = reading.read_json(index)
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise UserError(f"{index}: not the index of a checkpoint; it needs an object `weight_map` of file names")
    return names


def _read_tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
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


def _linear_head(tensors: Mapping[str, torch.Tensor], source: str) -> tuple[torch.Tensor, float]:
    weights = [t for t in tensors.values() if t.numel() > 1]
    biases = [float(t) for t in tensors.values() if t.numel() == 1]
    if len(weights) != 1 or len(biases) > 1:
        names = ", ".join(sorted(tensors)) or "nothing"
        raise UserError(f"{source}: holds {names}; expected one weight [1, h] and at most one bias")
    return weights[0].float().reshape(-1), biases[0] if biases else 0.0


def _with_head(states: TokenValues, weight: torch.Tensor, bias: float) -> TokenValues:
    def values(batch: Sequence[Encoded]) -> Iterator[NDArray[np.float32]]:
        for row in states(batch):
            if row.shape[1] != len(weight):
                raise UserError(
                    f"the head takes {len(weight)} features, the model gives {row.shape[1]}; use the model it came with"
                )
            yield row @ weight.numpy() + np.float32(bias)

    return values


def _single_output(outputs: TokenValues) -> TokenValues:
    return lambda batch: (row[:, 0] for row in outputs(batch))
