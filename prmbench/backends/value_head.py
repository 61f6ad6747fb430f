"""Scalar value heads: one number a token, read at a step's end or summed over it.

AutoModelForTokenClassification(num_labels=1), or a bare model whose head lies beside it or among its own weights.
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
"""What a checkpoint's weights are in, or `<name>.index.json` says in which files they are."""
HEAD_FILES = ("value_head.safetensors", "reward_head.pt", "value_head.bin")

Values = Callable[[Sequence[Encoded]], Iterator[NDArray[np.float32]]]
"""Encoded traces -> [T] values of every token."""


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Loads the model with its head. A cumulative reading stores sums, and so takes the readouts of sums."""
    kind, fixed = _scores(card)
    file = None if card.head else head_file(card)
    engine = common.open_model(card, config, "none" if card.head or file else "classes")
    card = replace(card, revision=engine.revision or card.revision)  # model and head from one commit
    if file:
        values = _with_head(engine.states, *read_head(file))
    elif card.head:  # a plan needs no values, and they may lie in gigabytes of weights
        values = engine.states if config.dry_run else _with_head(engine.states, *checkpoint_head(card))
    elif engine.model.config.num_labels == 1:
        values = _flat(engine.outputs)
    else:
        raise UserError(
            f"--model {card.model}: {engine.model.config.num_labels} classes; a value head has one (try token_cls)"
        )
    encode, input_format = _encoder(engine, card, config)
    facts = common.model_facts(card, config, engine, kind=kind, input_format=input_format, fixed=fixed)
    return ModelBackend(facts, encode, lambda batch: read(values, card, batch))


def _scores(card: ModelCard) -> tuple[ScoreKind, float]:
    """The kind of score, and the threshold at which its sigmoid is one half."""
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


def read(values: Values, card: ModelCard, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Per step: the value at its last token, as a probability where the card says so, or the sum over its tokens."""
    for encoded, row in zip(batch, values(batch), strict=True):
        if card.reading == "cumulative":
            steps = common.step_sums(row[encoded.start : encoded.ends[-1]], encoded)
        else:
            found = row[[end - 1 for end in encoded.ends]].astype(np.float64)
            steps = tuple((common.sigmoid(found) if card.activation == "sigmoid" else found).tolist())
        yield StepScores(encoded.id, steps, encoded.counts)


def head_file(card: ModelCard) -> Path | None:
    """The first head file that lies beside the model's weights, in a folder or on the hub."""
    return next((path for path in (_cached(card, name) for name in HEAD_FILES) if path), None)


def checkpoint_head(card: ModelCard) -> tuple[torch.Tensor, float]:
    """([h] weight, bias) of the head that lies among the checkpoint's own weights; `card.head` begins their names."""
    prefix = card.head or ""
    for name in CHECKPOINTS:
        index, whole = _cached(card, f"{name}.index.json"), _cached(card, name)
        if index:
            shards = {shard for tensor, shard in _weight_map(index).items() if tensor.startswith(prefix)}
            paths = [path for path in (_cached(card, shard) for shard in sorted(shards)) if path]
        else:
            paths = [whole] if whole else []
        if index or whole:
            found = {k: v for path in paths for k, v in _tensors(path, prefix).items()}
            return _linear(found, f"--model {card.model}, tensors {prefix}*")
    raise UserError(f"--model {card.model}: has none of the files {', '.join(CHECKPOINTS)}")


def read_head(path: Path) -> tuple[torch.Tensor, float]:
    """([h] weight, bias) of a linear head in safetensors or a weights-only pickle; no other object is unpickled."""
    return _linear(_tensors(path, ""), path.name)


def _cached(card: ModelCard, name: str) -> Path | None:
    try:
        found = cached_file(card.model, name, revision=card.revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise UserError(f"--model {card.model}: cannot be loaded ({first_line(error)})") from error
    return Path(found) if found else None


def _weight_map(index: Path) -> dict[str, str]:
    """The file that holds each tensor, as a checkpoint's index says. Raises UserError on an index that does not."""
    values = reading.read_json(index)
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise UserError(f"{index}: not the index of a checkpoint; it needs an object `weight_map` of file names")
    return names


def _tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of a file whose names begin with `prefix`; of a large one no others are read."""
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


def _linear(tensors: Mapping[str, torch.Tensor], where: str) -> tuple[torch.Tensor, float]:
    weights = [t for t in tensors.values() if t.numel() > 1]
    biases = [float(t) for t in tensors.values() if t.numel() == 1]
    if len(weights) != 1 or len(biases) > 1:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise UserError(f"{where}: holds {held}; expected one weight [1, h] and at most one bias")
    return weights[0].float().reshape(-1), biases[0] if biases else 0.0


def _with_head(states: Values, weight: torch.Tensor, bias: float) -> Values:
    def values(batch: Sequence[Encoded]) -> Iterator[NDArray[np.float32]]:
        for row in states(batch):
            if row.shape[1] != len(weight):
                raise UserError(
                    f"the head takes {len(weight)} features, the model gives {row.shape[1]}; use the model it came with"
                )
            yield row @ weight.numpy() + np.float32(bias)

    return values


def _flat(outputs: Values) -> Values:
    return lambda batch: (row[:, 0] for row in outputs(batch))
