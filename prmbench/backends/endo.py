"""Training-free scores read off one language model's logits: EndoRM, and plain log-probability.

One forward pass gives all three series: EndoRM (the main one), EndoRM with decay, log-probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig
from prmbench.core.records import StepScores
from prmbench.engines.encoding import Encoded
from prmbench.engines.hf import HFEngine
from prmbench.objectives import endo_rewards

SERIES = ("decay", "logprob")


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Loads one causal language model. No threshold is given beforehand: the rewards have no natural zero."""
    engine = common.open_model(card, config, "lm")
    facts = common.model_facts(
        replace(card, signal="none"),  # whatever the model learnt, it was not taught to judge steps
        config,
        engine,
        kind="logratio",
        input_format=common.chat_format(config),
        series=SERIES,
    )
    return ModelBackend(facts, common.chat_encoder(engine, config), lambda batch: read(engine, batch, config.decay))


def read(engine: HFEngine, batch: Sequence[Encoded], decay: float = 0.95) -> Iterator[StepScores]:
    """Per step: the sum of EndoRM's r_t over its tokens; beside it the decayed sum and the sum of log pi."""
    for encoded, out in zip(batch, engine.logprobs(batch), strict=True):
        logp, values = torch.from_numpy(out.logprobs).double(), torch.tensor(out.normalisers).double()
        if encoded.ids[encoded.ends[-1] - 1] == engine.tokenizer.eos_token_id:
            values[-1] = 0.0  # only with the release boundary: else the end-of-turn token belongs to no step
        plain, decayed = (endo_rewards(logp, values, factor).numpy() for factor in (1.0, decay))
        also = {"decay": common.step_sums(decayed, encoded), "logprob": common.step_sums(logp.numpy(), encoded)}
        yield StepScores(encoded.id, common.step_sums(plain, encoded), encoded.counts, also=also)
