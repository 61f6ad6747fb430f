"""Scalar value heads: one number a token, read at a step's end or summed over it.

AutoModelForTokenClassification(num_labels=1), or a bare model with the authors' head file beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig
from prmbench.engines.render import Encoded
from prmbench.schema import StepScores, UserError

HEAD_FILES = ("value_head.safetensors", "reward_head.pt", "value_head.bin")

Values = Callable[[Sequence[Encoded]], Iterator[NDArray[np.float32]]]
"""Encoded traces -> [T] values of every token."""


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Loads the model with its head. A cumulative reading stores sums, and so takes the readouts of sums."""
    head = head_file(card)
    engine = common.open_model(card, config, "none" if head else "classes")
    if head:
        weight, bias = read_head(head)
        values = _with_head(engine.states, weight, bias)
    elif engine.model.config.num_labels == 1:
        values = _flat(engine.outputs)
    else:
        raise UserError(
            f"--model {card.model}: {engine.model.config.num_labels} classes; a value head has one (try token_cls)"
        )
    facts = common.model_facts(
        card,
        config,
        engine,
        kind="value" if card.reading == "at_step" else "logratio",
        input_format=common.chat_format(config),
        fixed=0.0,  # sigmoid(0) = 0.5
    )
    return ModelBackend(facts, common.chat_encoder(engine, config), lambda batch: read(values, card.reading, batch))


def read(values: Values, reading: str, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Per step: the value at its last token, or the sum of the values of its tokens."""
    for encoded, row in zip(batch, values(batch), strict=True):
        steps = (
            tuple(float(row[end - 1]) for end in encoded.ends)
            if reading == "at_step"
            else common.step_sums(row[encoded.start : encoded.ends[-1]], encoded)
        )
        yield StepScores(encoded.id, steps, encoded.counts)


def head_file(card: ModelCard) -> Path | None:
    """The first head file that lies beside the model's weights, in a folder or on the hub."""
    for name in HEAD_FILES:
        try:
            found = cached_file(card.model, name, revision=card.revision, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise UserError(f"--model {card.model}: cannot be loaded ({str(error).splitlines()[0]})") from error
        if found:
            return Path(found)
    return None


def read_head(path: Path) -> tuple[torch.Tensor, float]:
    """([h] weight, bias) of a linear head in safetensors or a weights-only pickle; no other object is unpickled."""
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        weights = [t for t in tensors.values() if t.numel() > 1]
        biases = [float(t) for t in tensors.values() if t.numel() == 1]
    except (OSError, EOFError, ValueError, RuntimeError, AttributeError, SafetensorError, UnpicklingError) as error:
        # Not the error's own text: torch's tells the user to load the file unsafely.
        raise UserError(
            f"{path.name}: not a head of plain tensors ({type(error).__name__}); save it as safetensors"
        ) from error
    if len(weights) != 1 or len(biases) > 1:
        raise UserError(
            f"{path.name}: holds {', '.join(sorted(tensors))}; expected one weight [1, h] and at most one bias"
        )
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
