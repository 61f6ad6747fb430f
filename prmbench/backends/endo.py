"""Training-free scores from one language model's logits: EndoRM, EndoRM with decay, and log-probability.

One forward pass gives all three series; EndoRM without decay is the main one.
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
    """Load one causal language model. There is no fixed threshold, since the rewards have no natural zero."""
    engine = common.open_model(card, config, "lm")
    facts = common.model_facts(
        replace(card, signal="none"),  # the model was not trained to judge steps
        config,
        engine,
        kind="logratio",
        input_format=common.chat_format(config),
        series=SERIES,
    )
    return ModelBackend(facts, common.chat_encoder(engine, config), lambda batch: read(engine, batch, config.decay))


def read(engine: HFEngine, batch: Sequence[Encoded], decay: float = 0.95) -> Iterator[StepScores]:
    """Yield for each trace the step sums of EndoRM's r_t, with the decayed sums and those of log pi as other series."""
    for encoded, outputs in zip(batch, engine.logprobs(batch), strict=True):
        logp, values = torch.from_numpy(outputs.logprobs).double(), torch.tensor(outputs.normalisers).double()
        if encoded.ids[encoded.ends[-1] - 1] == engine.tokenizer.eos_token_id:
            values[-1] = 0.0  # happens with the release boundary only: else no step contains the end of turn
        plain, decayed = (endo_rewards(logp, values, factor).numpy() for factor in (1.0, decay))
        other_series = {"decay": common.step_sums(decayed, encoded), "logprob": common.step_sums(logp.numpy(), encoded)}
        yield StepScores(encoded.id, common.step_sums(plain, encoded), encoded.counts, also=other_series)
