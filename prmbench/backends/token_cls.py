"""Two-class token classifiers: P(step is right) at the token that closes the step.

The conventions are rows in cards.py: a tag token in a chat (Qwen2.5-Math-PRM), or a separator tokenised by itself
(TRL's stepwise trainer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from prmbench.backends import ModelBackend, cards, common
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig
from prmbench.core.records import StepScores, Trace, UserError
from prmbench.engines.encoding import Encoded, encode_separated, encode_tagged
from prmbench.engines.hf import HFEngine

CLASSES = 2
"""Number of classes: the step is wrong (0), the step is right (1)."""


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Load the classifier. Its native label is the likelier class: a threshold of 0.5, where a tie is right."""
    engine = common.open_model(card, config, "none" if card.remote_code else "classes")
    encode, input_format = _encoder(engine, card, config)
    facts = common.model_facts(card, config, engine, kind="prob", input_format=input_format, native=0.5, fixed=0.5)
    return ModelBackend(facts, encode, lambda batch: read(engine, batch))


def _encoder(engine: HFEngine, card: ModelCard, config: ModelConfig) -> tuple[Callable[[Trace], Encoded], str]:
    if card.tag is not None:
        tag, system, template = (
            card.tag,
            cards.prompt_text(card.prompt) if card.prompt else None,
            common.template_source(config),
        )
        return cache(
            lambda trace: encode_tagged(engine.tokenizer, trace, tag, system, template, engine.max_tokens)
        ), f"chat+tag {card.tag}"
    if card.separator is not None:
        separator = card.separator
        return cache(
            lambda trace: encode_separated(engine.tokenizer, trace, separator, engine.max_tokens)
        ), f"separator {separator!r}"
    raise UserError(f"--model {card.model}: backend token_cls needs a tag or a separator in its card or prm.json")


def read(engine: HFEngine, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Yield for each trace the softmax probability of class 1 at the position that closes each step."""
    for encoded, row in zip(batch, engine.outputs(batch), strict=True):
        if row.shape[1] != CLASSES:
            raise UserError(f"{row.shape[1]} classes a token; a step classifier has {CLASSES} (wrong, right)")
        wrong, right = row[list(encoded.score_positions)].astype(np.float64).T
        yield StepScores(encoded.id, tuple(common.sigmoid(right - wrong).tolist()), encoded.counts)
