"""Language models that judge a step by their next token: a good one, say "+", or a bad one, say "-".

Conventions are rows of data in cards.py: plain text with a tag behind every step (Math-Shepherd), or one turn a step
(RLHFlow).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig
from prmbench.core.records import StepScores, Trace, UserError
from prmbench.engines.encoding import Encoded
from prmbench.engines.family_encodings import encode_tagged_text, encode_turns, text_token, turn_token
from prmbench.engines.hf import HFEngine

SERIES = ("full", "greedy")
"""P(good) over the whole vocabulary, and 1 where good is its likeliest token: readings in use for turns."""


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Loads the model. Its own label is the likelier of the two tokens: a threshold of 0.5, with a tie read as good."""
    if card.tag is None and card.joint is None:
        raise UserError(f"--model {card.model}: backend tag_lm needs a tag or a joint in its card or prm.json")
    engine = common.open_model(card, config, "lm")
    encode, labels, input_format = _convention(engine, card, config)
    series = () if card.joint is None else SERIES
    facts = common.model_facts(
        card, config, engine, kind="prob", input_format=input_format, series=series, native=0.5, fixed=0.5
    )
    return ModelBackend(facts, encode, lambda batch: read(engine, labels, series, batch))


def _convention(
    engine: HFEngine, card: ModelCard, config: ModelConfig
) -> tuple[Callable[[Trace], Encoded], tuple[int, int], str]:
    """The encoder, the ids of (good, bad), and what manifests call the input."""
    tokens, joint, most = engine.tokenizer, card.joint, engine.max_tokens
    if joint is not None:
        template = common.template_source(config)
        good, bad = (turn_token(tokens, label, template) for label in (card.good, card.bad))
        encode = cache(lambda trace: encode_turns(tokens, trace, joint, card.good, template, most))
        name = f"turns, joint {joint!r}"
    else:
        tag = card.tag or ""
        good, bad = (text_token(tokens, label) for label in (card.good, card.bad))
        encode = cache(lambda trace: encode_tagged_text(tokens, trace, tag, most))
        name = f"text+tag {tag}"
    if good == bad:
        raise UserError(f"--model {card.model}: {card.good!r} and {card.bad!r} are one token; put others into prm.json")
    return encode, (good, bad), name


def read(
    engine: HFEngine, labels: tuple[int, int], series: Sequence[str], batch: Sequence[Encoded]
) -> Iterator[StepScores]:
    """Per step: P(good) among the two tokens, and what SERIES says of the `series` asked for."""
    for encoded, following in zip(batch, engine.next_tokens(batch, labels), strict=True):
        good, bad = following.logprobs.astype(np.float64).T
        readings = {"full": np.exp(good), "greedy": (following.likeliest == labels[0]).astype(np.float64)}
        also = {name: tuple(readings[name].tolist()) for name in series}
        yield StepScores(encoded.id, tuple(common.sigmoid(good - bad).tolist()), encoded.counts, also=also)
