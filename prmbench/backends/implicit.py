"""Implicit reward models: the log-ratio of policy and reference (Implicit PRM, DPO-RM, IPVRM).

The three differ in their training only; prefix values and TD are readouts of the same stored sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from prmbench.backends import ModelBackend, common
from prmbench.backends.cards import ModelCard
from prmbench.backends.ref_cache import StepSums, cached, reference_identity, step_logprobs
from prmbench.config import ModelConfig, public_name
from prmbench.core.records import StepScores, UserError
from prmbench.engines import Reader
from prmbench.engines.encoding import Encoded
from prmbench.engines.vllm import EXCLUSIVE_SHARE, VllmOptions
from prmbench.objectives import log_ratios


def load(card: ModelCard, config: ModelConfig) -> ModelBackend:
    """Load policy and reference, which must share one vocabulary.

    With a reference cache only the reference's tokenizer and config are loaded; its weights follow at the first miss.

    Raises:
        UserError: There is no reference, the vocabularies differ, or a model cannot be loaded.
    """
    if not card.ref_model:
        raise UserError(f"--model {card.model}: backend implicit needs --ref-model, or ref_model in its prm.json")
    if config.engine == "vllm" and config.boundary != "exact":
        raise UserError(
            f"--boundary {config.boundary}: hides tokens from attention, and vLLM cannot; use exact, or --engine hf"
        )
    name, place = card.ref_model, common.resolve_placement(config)
    # The card's revision belongs to the card's reference, not to one given as an option.
    revision = config.ref_revision or (None if config.ref_model else card.ref_revision)

    def open_reference(empty: bool) -> common.LM:
        return common.open_lm(name, revision, config, VllmOptions(reads=True, share=EXCLUSIVE_SHARE), empty)

    trust_code, policy_options = (
        card.remote_code and config.trust_remote_code,
        VllmOptions(reads=True, share=EXCLUSIVE_SHARE / 2),
    )
    policy = common.open_lm(card.model, card.revision, config, policy_options, config.dry_run, trust_code)
    reference = open_reference(config.dry_run or config.ref_cache is not None)
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise UserError(f"{card.model} and {name} have different vocabularies; a log-ratio needs the same tokens")
    facts = common.model_facts(
        card,
        config,
        policy,
        reference.weight_bytes,
        kind="logratio",
        input_format=common.chat_format(config),
        fixed=0.0,  # sigmoid(beta * 0) = 0.5 at any beta
        ref_model=public_name(name),
        ref_revision=reference.revision,
        ref_weights=common.local_weights(name),
    )
    ref_sums: StepSums = partial(step_logprobs, reference)
    if config.ref_cache is not None and not config.dry_run:
        weights = facts.ref_weights or f"{name}@{reference.revision}"
        ref_sums = cached(
            config.ref_cache, reference_identity(weights, place, config.engine), lambda: open_reference(False)
        )
    encode = common.chat_encoder(policy, config, reference)
    return ModelBackend(facts, encode, lambda batch: read(policy, ref_sums, batch))


def read(policy: Reader, ref_sums: StepSums, batch: Sequence[Encoded]) -> Iterator[StepScores]:
    """Yield for each trace the step sums of log pi_phi - log pi_ref in nats, with the token counts."""
    for encoded, policy_sums, reference_sums in zip(batch, step_logprobs(policy, batch), ref_sums(batch), strict=True):
        ratios = log_ratios(
            torch.tensor(policy_sums, dtype=torch.float64), torch.tensor(reference_sums, dtype=torch.float64)
        )
        yield StepScores(encoded.id, tuple(ratios.tolist()), encoded.counts)
