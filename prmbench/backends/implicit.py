"""Implicit reward models: the log-ratio of policy and reference (Implicit PRM, DPO-RM, IPVRM).

The three differ in how they were trained; prefix values and TD are readouts of the same stored sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig, public_name
from prmbench.engines.hf import HFEngine
from prmbench.engines.hf import load as load_engine
from prmbench.engines.render import Encoded
from prmbench.objectives import log_ratios
from prmbench.schema import StepScores, UserError


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Loads policy and reference; both must share one vocabulary."""
    if not card.ref_model:
        raise UserError(f"--model {card.model}: backend implicit needs --ref-model, or ref_model in its prm.json")
    policy = common.open_model(card, config, "lm")
    reference = load_engine(card.ref_model, "lm", common.placement(config), config.ref_revision, empty=config.dry_run)
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise UserError(
            f"{card.model} and {card.ref_model} have different vocabularies; a log-ratio needs the same tokens"
        )
    facts = common.model_facts(
        card,
        config,
        policy,
        reference.weight_bytes,
        kind="logratio",
        input_format=common.chat_format(config),
        fixed=0.0,  # sigmoid(beta * 0) = 0.5 at any beta
        ref_model=public_name(card.ref_model),
        ref_revision=reference.revision,
        ref_weights=common.local_weights(card.ref_model),
    )
    return ModelBackend(
        facts, common.chat_encoder(policy, config, reference), lambda batch: read(policy, reference, batch)
    )


def read(policy: HFEngine, reference: HFEngine, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Per step: the sum of log pi_phi - log pi_ref over its tokens, and the token count."""
    for encoded, p, r in zip(batch, policy.logprobs(batch), reference.logprobs(batch), strict=True):
        ratios = log_ratios(torch.from_numpy(p.logprobs).double(), torch.from_numpy(r.logprobs).double()).numpy()
        yield StepScores(encoded.id, common.step_sums(ratios, encoded), encoded.counts)
