"""The paper's quantities as pure functions of tensors, one equation each: no config, no model, no device.

Equations are those of arXiv 2604.13197 unless another paper is named. A loss is one term a sequence (or pair): add up
all terms, divide by the number of sequences or tokens of the whole batch, and micro-batches and processes add up too.
"""
# ruff: noqa: F722 (jaxtyping's shapes are no forward references; one dimension has a space before it for that reason)

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

if TYPE_CHECKING:  # shapes are checked in tests/test_objectives.py, and cost nothing elsewhere
    from jaxtyping import Bool, Float, Int

Reduction = Literal["sequence", "token"]
"""The mean over t per sequence, then over sequences (Eq. 9); or over all tokens (the authors' offline trainer)."""
MU_MARGIN = 1e-6
"""How far a prompt's mean outcome is kept from 0 and 1 before its logit is taken."""


# --- sums and means under a mask ----------------------------------------------------------------------------------


def masked_sum(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """The sum over the tokens that count; what stands elsewhere, NaN included, has no part in it."""
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(
    values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], weight: Float[Tensor, "b t"] | None = None
) -> Float[Tensor, " b"]:
    """The (weighted) mean over the tokens that count; 0 where their weights add up to 0."""
    weights = (mask if weight is None else weight.masked_fill(~mask, 0.0)).to(values.dtype)
    total = weights.sum(-1)
    return masked_sum(values * weights, mask) / torch.where(total > 0, total, 1.0)


def sequence_terms(
    values: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    reduction: Reduction = "sequence",
    weight: Float[Tensor, "b t"] | None = None,
) -> Float[Tensor, " b"]:
    """Each sequence's part of a loss: its mean, or that mean times its length (without `weight`, its sum)."""
    mean = masked_mean(values, mask, weight)
    return mean if reduction == "sequence" else mean * mask.sum(-1)


# --- rewards and values ---------------------------------------------------------------------------------------------


def log_ratios(logprobs: Float[Tensor, "*b t"], ref_logprobs: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
    """Eq. (3) without beta: l_t = log pi_phi(y_t|s_t) - log pi_ref(y_t|s_t), in nats."""
    return logprobs - ref_logprobs


def sequence_rewards(log_ratio: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], beta: float) -> Float[Tensor, " b"]:
    """Eq. (1): r(x, y) = beta * sum of l_t over the completion."""
    return beta * masked_sum(log_ratio, mask)


def token_rewards(log_ratio: Float[Tensor, "*b t"], beta: float) -> Float[Tensor, "*b t"]:
    """Eq. (3): r_t = beta * l_t."""
    return beta * log_ratio


def prefix_values(rewards: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Eq. (5): V after t tokens = the sum of the token rewards up to and with t. Flat where the mask is off."""
    return rewards.masked_fill(~mask, 0.0).cumsum(-1)


def length_normalized(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Section 3.1: vbar_t = V / t, where t counts the tokens of the mask from 1."""
    return values / mask.cumsum(-1).clamp(min=1)


# --- losses ---------------------------------------------------------------------------------------------------------


def sft_loss(
    logprobs: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], reduction: Reduction = "token"
) -> Float[Tensor, " b"]:
    """Negative log-likelihood of the completion's tokens; by custom a mean over all tokens."""
    return sequence_terms(-logprobs, mask, reduction)


def bradley_terry_loss(
    chosen: Float[Tensor, " b"], rejected: Float[Tensor, " b"], margin: float = 0.0
) -> Float[Tensor, " b"]:
    """Eq. (2) on sequence rewards at margin 0 (DPO-RM): -log sigmoid(chosen - rejected - margin), one term a pair.

    Q-RM is the same on beta times the mean of a scalar head's token values, with a margin.
    """
    return softplus(margin - (chosen - rejected))


def implicit_prm_loss(rewards: Float[Tensor, " b"], outcome: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Eq. (4): BCE of sigmoid(r(x, y)), r the sequence reward of Eq. (1), against the outcome."""
    return binary_cross_entropy_with_logits(rewards, outcome, reduction="none")


def ipvrm_loss(
    v_bar: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    outcome: Float[Tensor, " b"],
    margin: float = 5.0,
    offset: Float[Tensor, " b"] | float = 0.0,
    prefix_weight: Float[Tensor, "b t"] | None = None,
    reduction: Reduction = "sequence",
) -> Float[Tensor, " b"]:
    """Eq. (9): BCE of every length-normalised prefix value against the outcome, each class short of its margin.

    With `offset` = V(x) and the terms times w it is the online form, Eq. (15); `prefix_weight` gives Eq. (16). v_bar(t)
    holds token t, as in the release; Eq. (9) read literally leaves it out.
    """
    y = outcome[:, None]
    v = v_bar + (offset[:, None] if isinstance(offset, Tensor) else offset)
    nll = -(y * logsigmoid(v - margin) + (1 - y) * logsigmoid(-(v + margin)))
    return sequence_terms(nll, mask, reduction, prefix_weight)


def step_bce_loss(
    logits: Float[Tensor, "b t"],
    labels: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    reduction: Reduction = "token",
) -> Float[Tensor, " b"]:
    """BCE of sigmoid(logit) at labelled steps, labels in [0, 1]: hard ones, or Monte-Carlo success rates.

    The mask is on where a step ends and has a label. Two-class heads bring their `log_odds`, which makes this the
    cross-entropy of their softmax. By custom (TRL) a mean over all labelled steps, hence `token`.
    """
    nll = binary_cross_entropy_with_logits(logits, labels.masked_fill(~mask, 0.0), reduction="none")
    return sequence_terms(nll, mask, reduction)


def log_odds(classes: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """The logit of class 1 (the step is right) against class 0: softmax of two is sigmoid of their difference."""
    return classes[..., 1] - classes[..., 0]


# --- weights, margins and offsets -------------------------------------------------------------------------------------


def late_weights(mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Eq. (17): t / T, before its normalisation by the sum; 0 outside the mask."""
    t = mask.cumsum(-1)
    return (t / t[:, -1:].clamp(min=1)).masked_fill(~mask, 0.0)


def early_weights(mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Eq. (18): 1 - t / T, likewise. One token weighs nothing then: its sequence has loss 0, and is counted."""
    return mask.float() - late_weights(mask)


def group_mean(values: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """mu(x): the mean over the rollouts of a sequence's own prompt, for every sequence."""
    _, place, counts = group.unique(return_inverse=True, return_counts=True)
    return (values.new_zeros(len(counts)).index_add(0, place, values) / counts)[place]


def difficulty_offset(mu: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Eq. (15): V(x) = logit(mu), mu kept 1e-6 from 0 and 1, in float32 as the release (float64 is 0.013 off at 1)."""
    return mu.float().clamp(MU_MARGIN, 1 - MU_MARGIN).logit()


def rarity_weight(outcome: Float[Tensor, " b"], mu: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Eq. (15): w = 1 - mu for a right completion, mu for a wrong one."""
    return outcome * (1 - mu) + (1 - outcome) * mu


def normalized_weight(weight: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Release of Eq. (15): a prompt's weights scaled to a mean of 1; all ones where they are all 0."""
    mean = group_mean(weight, group)
    return torch.where(mean > 0, weight / torch.where(mean > 0, mean, 1.0), 1.0)


# --- no training ------------------------------------------------------------------------------------------------------


def endo_rewards(
    logprobs: Float[Tensor, " t"], normalisers: Float[Tensor, " t+1"], decay: float = 1.0
) -> Float[Tensor, " t"]:
    """EndoRM (arXiv 2506.23235) at alpha = 1: r_t = Q(s_t, y_t) - decay * V(s_t+1).

    The model's own logits are read as soft Q-values, so Q(s_t, y_t) = log pi(y_t|s_t) + V(s_t) and V = logsumexp.
    `normalisers` are V(s_1) .. V(s_T+1); V is 0 after the end, so where y_T is the end-of-turn token the caller sets
    the last one to 0. The IPVRM paper's "decay factor 0.95" does not say where it enters; here it discounts the next
    state's value, and 1 leaves it out.
    """
    return logprobs + normalisers[:-1] - decay * normalisers[1:]
