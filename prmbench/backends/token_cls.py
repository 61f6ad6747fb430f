"""Token classifiers: P(step is right) at the token that closes the step.

The conventions are rows in cards.py: a tag token in a chat (Qwen2.5-Math-PRM), or a separator tokenised by itself
(TRL's stepwise trainer).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.backends.head_weights import checkpoint_head, layered_head
from prmbench.backends.step_labels import RIGHT, find_class, numbered_labels, right_class
from prmbench.config import ModelConfig
from prmbench.core.records import Notice, StepScores, Trace, UserError
from prmbench.engines.encoding import Encoded, encode_separated
from prmbench.engines.hf import HFEngine


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Load the classifier. Its native label is the likelier class: a threshold of 0.5; for ties see `tie_rule`."""
    engine = common.open_classifier(card, config, "none" if card.remote_code or card.head else "classes")
    shape, classes = common.model_shape(engine), None
    if card.head and isinstance(engine, HFEngine) and not config.dry_run:
        head = layered_head(*checkpoint_head(card))
        engine.set_head(head)
        classes = int(head[-1].out_features)  # type: ignore[arg-type]
    elif not card.head and not card.remote_code:
        classes = shape.num_labels
    positive = _positive_class(card, shape, classes)
    encode, input_format = _encoder(engine, card, config)
    facts = common.model_facts(
        card,
        config,
        engine,
        kind="prob",
        input_format=input_format,
        native=0.5,
        fixed=0.5,
        positive_class=None if positive == RIGHT and classes in (None, 2) else positive,
    )
    return ModelBackend(facts, encode, lambda batch: read(engine, batch, positive))


def _positive_class(card: ModelCard, shape: Any, classes: int | None) -> int:
    """Return the index of the class of a right step; `classes` is None where only a forward pass tells their number."""
    labels = numbered_labels(shape.id2label, classes) if classes is not None else {}
    if card.positive_class is not None:
        return find_class(card.positive_class, labels, classes, f"--model {card.model}")
    if classes not in (None, 2):
        raise UserError(
            f"--model {card.model}: {classes} classes, {', '.join(map(str, labels.values()))}; a step classifier has 2 "
            "(wrong, right) unless --positive-class, or positive_class in its prm.json, names that of a right step"
        )
    named = right_class(labels)
    if named is not None and named != RIGHT:
        warnings.warn(
            f"model {card.model}: class {named} is named {labels[named]!r}, and class {RIGHT} counts as right since no "
            f"positive_class is given; pass --positive-class {named} if that is wrong",
            Notice,
            stacklevel=1,
        )
    return RIGHT


def _encoder(engine: common.LM, card: ModelCard, config: ModelConfig) -> tuple[Callable[[Trace], Encoded], str]:
    if card.tag is not None:
        return common.tagged_encoder(engine, card, config), f"chat+tag {card.tag}"
    if card.separator is not None:
        separator = card.separator
        return cache(
            lambda trace: encode_separated(engine.tokenizer, trace, separator, engine.max_tokens)
        ), f"separator {separator!r}"
    raise UserError(f"--model {card.model}: backend token_cls needs --tag or --separator, or one in its prm.json")


def read(engine: common.LM, batch: Sequence[Encoded], positive: int = RIGHT) -> Iterator[StepScores]:
    """Yield for each trace the softmax probability of the positive class at the position that closes each step."""
    positions = [encoded.score_positions for encoded in batch]
    for encoded, row in zip(batch, engine.outputs(batch, positions), strict=True):
        if row.shape[1] <= max(positive, RIGHT):
            raise UserError(f"{row.shape[1]} classes a token; a step classifier has 2 (wrong, right) or more")
        logits = row.astype(np.float64)
        others = np.logaddexp.reduce(np.delete(logits, positive, axis=1), axis=1)
        yield StepScores(encoded.id, tuple(common.sigmoid(logits[:, positive] - others).tolist()), encoded.counts)
