"""Language models that judge a step by their next token: a good one such as "+", or a bad one such as "-".

The conventions are rows in cards.py: plain text with a tag after every step (Math-Shepherd), or one turn per step
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
from prmbench.engines.vllm import EXCLUSIVE_SHARE, VllmEngine, VllmOptions, load_tokenizer

SERIES = ("full", "greedy")
"""Other series for turns: P(good) over the whole vocabulary, and 1 where good is the most likely token."""


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Load the model. Its native label is the likelier of the two tokens: a threshold of 0.5, which it must exceed."""
    if card.tag is None and card.joint is None:
        raise UserError(f"--model {card.model}: backend tag_lm needs a tag or a joint in its card or prm.json")
    by_vllm = config.engine == "vllm" and card.joint is None  # turns have other series, which need the vocabulary
    engine = _open_labels(card, config) if by_vllm else common.open_model(card, config, "lm")
    encode, labels, input_format = _convention(engine, card, config)
    series = () if card.joint is None else SERIES
    facts = common.model_facts(
        card, config, engine, kind="prob", input_format=input_format, series=series, native=0.5, fixed=0.5
    )
    if isinstance(engine, VllmEngine):
        return ModelBackend(facts, encode, lambda batch: read_logits(engine, batch))
    return ModelBackend(facts, encode, lambda batch: read(engine, labels, series, batch))


def _open_labels(card: ModelCard, config: ModelConfig) -> common.LM:
    """Start vLLM with the head's rows of (good, bad) as a classifier: their difference is all that a tag needs."""
    tokenizer, _ = load_tokenizer(card.model, card.revision)
    labels = [str(tokenizer.convert_ids_to_tokens(text_token(tokenizer, label))) for label in (card.good, card.bad)]
    options = VllmOptions(classifies=True, label_tokens=tuple(labels), share=EXCLUSIVE_SHARE)
    return common.open_lm(card.model, card.revision, config, options, config.dry_run)


def _convention(
    engine: common.LM, card: ModelCard, config: ModelConfig
) -> tuple[Callable[[Trace], Encoded], tuple[int, int], str]:
    """Return the encoder, the token ids of (good, bad), and the manifest's name of the input format."""
    tokenizer, joint, max_tokens = engine.tokenizer, card.joint, engine.max_tokens
    if joint is not None:
        template = common.template_source(config)
        good, bad = (turn_token(tokenizer, label, template) for label in (card.good, card.bad))
        encode = cache(lambda trace: encode_turns(tokenizer, trace, joint, card.good, template, max_tokens))
        input_format = f"turns, joint {joint!r}"
    else:
        tag = card.tag or ""
        good, bad = (text_token(tokenizer, label) for label in (card.good, card.bad))
        encode = cache(lambda trace: encode_tagged_text(tokenizer, trace, tag, max_tokens))
        input_format = f"text+tag {tag}"
    if good == bad:
        raise UserError(f"--model {card.model}: {card.good!r} and {card.bad!r} are one token; put others into prm.json")
    return encode, (good, bad), input_format


def read(
    engine: HFEngine, labels: tuple[int, int], series: Sequence[str], batch: Sequence[Encoded]
) -> Iterator[StepScores]:
    """Yield for each trace P(good) against P(bad) at every step, with the requested other series (see SERIES)."""
    for encoded, next_tokens in zip(batch, engine.next_tokens(batch, labels), strict=True):
        good, bad = next_tokens.logprobs.astype(np.float64).T
        readings = {"full": np.exp(good), "greedy": (next_tokens.likeliest == labels[0]).astype(np.float64)}
        other_series = {name: tuple(readings[name].tolist()) for name in series}
        yield StepScores(encoded.id, tuple(common.sigmoid(good - bad).tolist()), encoded.counts, also=other_series)


def read_logits(engine: VllmEngine, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Yield for each trace P(good) against P(bad) at every step, from an engine with these two classes."""
    for encoded, row in zip(batch, engine.outputs(batch), strict=True):
        good, bad = row[list(encoded.score_positions)].astype(np.float64).T
        yield StepScores(encoded.id, tuple(common.sigmoid(good - bad).tolist()), encoded.counts)
