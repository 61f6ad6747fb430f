"""Scalar value heads: one value per token, read at a step's end or summed over its tokens.

The model is AutoModelForTokenClassification(num_labels=1), or a base model whose head is a file of its own or lies
among its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.backends.head_weights import (
    checkpoint_head,
    has_layers,
    head_file,
    layered_head,
    linear_head,
    read_head,
)
from prmbench.config import ModelConfig
from prmbench.core.records import ScoreKind, StepScores, Trace, UserError
from prmbench.engines.encoding import Encoded
from prmbench.engines.family_encodings import encode_pieces
from prmbench.engines.hf import HFEngine
from prmbench.engines.vllm import VllmEngine

TokenValues = Callable[[Sequence[Encoded], Sequence[Sequence[int]]], Iterator[NDArray[np.float32]]]
"""Yields for each encoded trace the [n] values of its tokens at n positions."""

ACTIVATIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "none": np.positive,
    "sigmoid": common.sigmoid,
    "negate": np.negative,
}
"""Activation of a card -> function of the values at the steps' ends."""


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Load the model with its head. A cumulative reading stores sums, and so has the readouts of log-ratios.

    Raises:
        UserError: The model or its head cannot be loaded, or the card's fields do not fit together.
    """
    kind, fixed = _score_kind(card)
    path = None if card.head else head_file(card)
    engine = common.open_classifier(card, config, "none" if card.head or path else "classes")
    card = replace(card, revision=engine.revision or card.revision)  # load model and head from one commit
    labels = common.model_shape(engine).num_labels
    values: TokenValues
    if isinstance(engine, VllmEngine):
        values = _single_output(engine.outputs)
    elif path:
        values = _with_head(engine.states, *read_head(path))
    elif card.head:  # a dry run needs no head, which may lie in gigabytes of weights
        values = engine.states if config.dry_run else _checkpoint_values(engine, card)
    else:
        values = _single_output(engine.outputs)
    if labels != 1 and (isinstance(engine, VllmEngine) or not (path or card.head)):
        raise UserError(f"--model {card.model}: {labels} classes; a value head has one (try token_cls)")
    encode, input_format = _encoder(engine, card, config)
    facts = common.model_facts(card, config, engine, kind=kind, input_format=input_format, fixed=fixed)
    return ModelBackend(facts, encode, lambda batch: read(values, card, batch))


def _checkpoint_values(engine: HFEngine, card: ModelCard) -> TokenValues:
    """Return the values by a head among the checkpoint's own weights, of one layer or of several."""
    tensors, source = checkpoint_head(card)
    if not has_layers(tensors):
        return _with_head(engine.states, *linear_head(tensors, source))
    layers = layered_head(tensors, source)
    if layers[-1].out_features != 1:
        raise UserError(f"{source}: {layers[-1].out_features} classes; a value head has one (try token_cls)")
    engine.set_head(layers)
    return _single_output(engine.outputs)


def _score_kind(card: ModelCard) -> tuple[ScoreKind, float]:
    """Return the kind of score, and the fixed threshold at which a step is as likely right as wrong."""
    if card.reading == "cumulative" and card.activation != "none":
        raise UserError(
            f"--model {card.model}: a cumulative reading has no {card.activation}; drop activation from its prm.json"
        )
    if card.activation == "sigmoid":
        return "prob", 0.5
    return ("value" if card.reading == "at_step" else "logratio"), 0.0


def _encoder(engine: common.LM, card: ModelCard, config: ModelConfig) -> tuple[Callable[[Trace], Encoded], str]:
    if card.tag is not None:
        return common.tagged_encoder(engine, card, config), f"chat+tag {card.tag}"
    if card.separator is None:
        return common.chat_encoder(engine, config), common.chat_format(config)
    separator = card.separator
    encode = cache(lambda trace: encode_pieces(engine.tokenizer, trace, separator, engine.max_tokens))
    return encode, f"pieces {separator!r}"


def read(values: TokenValues, card: ModelCard, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Yield for each trace the value at each step's last token, after the card's activation, or its sum over tokens."""
    is_sum = card.reading == "cumulative"
    positions = [range(e.start, e.ends[-1]) if is_sum else [end - 1 for end in e.ends] for e in batch]
    for encoded, row in zip(batch, values(batch, positions), strict=True):
        if is_sum:
            scores = common.step_sums(row, encoded)
        else:
            scores = tuple(ACTIVATIONS[card.activation](row.astype(np.float64)).tolist())
        yield StepScores(encoded.id, scores, encoded.counts)


def _with_head(states: TokenValues, weight: torch.Tensor, bias: float) -> TokenValues:
    def values(batch: Sequence[Encoded], positions: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        for row in states(batch, positions):
            if row.shape[1] != len(weight):
                raise UserError(
                    f"the head takes {len(weight)} features, the model gives {row.shape[1]}; use the model it came with"
                )
            yield row @ weight.numpy() + np.float32(bias)

    return values


def _single_output(outputs: TokenValues) -> TokenValues:
    return lambda batch, positions: (row[:, 0] for row in outputs(batch, positions))
