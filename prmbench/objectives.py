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


def group_sum(values: Float[Tensor, " b *t"], group: Int[Tensor, " b"]) -> Float[Tensor, " b *t"]:
    """The sum over the rollouts of a sequence's own prompt, for every sequence."""
    names, place = group.unique(return_inverse=True)
    return values.new_zeros(len(names), *values.shape[1:]).index_add(0, place, values)[place]


def group_mean(values: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """mu(x): the mean over the rollouts of a sequence's own prompt, for every sequence."""
    return group_sum(values, group) / group_sum(torch.ones_like(values), group)


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


# --- moments ----------------------------------------------------------------------------------------------------------


def moment_sums(values: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"]) -> Float[Tensor, " 3"]:
    """Count, sum and sum of squares in float64: those of micro-batches and processes add up to those of the batch."""
    kept = values.masked_fill(~mask, 0.0).double()
    return torch.stack((mask.sum().double(), kept.sum(), kept.square().sum()))


def mean_and_std(sums: Float[Tensor, " 3"], unbiased: bool = False) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What `moment_sums` add up to, in float64: sigma_V of Eq. (24) is the (population) std of the prefix values.

    The mean of nothing is 0, and so is a std of too few.
    """
    count, total, squares = sums
    mean = total / count.clamp(min=1)
    freedom = (count - int(unbiased)).clamp(min=1)
    return mean, ((squares - total * mean).clamp(min=0) / freedom).sqrt()


def whitened(
    values: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    mean: Float[Tensor, ""],
    std: Float[Tensor, ""],
    eps: float = 1e-8,
) -> Float[Tensor, "b t"]:
    """Release, after Eq. (28): minus the batch's mean, over the root of its unbiased variance + eps; 0 off the mask."""
    return ((values - mean) / (std.square() + eps).sqrt()).masked_fill(~mask, 0.0)


# --- advantages -------------------------------------------------------------------------------------------------------


def td_advantages(logprobs: Float[Tensor, "*b"], old_logprobs: Float[Tensor, "*b"], beta: float) -> Float[Tensor, "*b"]:
    """Eqs. (6), (10), (23): beta * (log pi_phi - log pi_old) = V after a token - V before it, sampled or not."""
    return beta * (logprobs - old_logprobs)


def terminal(mask: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """Where a completion's last token stands; nowhere in a row without tokens."""
    count = mask.cumsum(-1)
    return mask & (count == count[:, -1:])


def without_terminal(td: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Release: no TD at a completion's last token (Eq. 10 holds for t < T); it has no candidates there either."""
    return td.masked_fill(terminal(mask), 0.0)


def scaled_td(td: Float[Tensor, "*b"], sigma: Float[Tensor, ""], eps: float = 1e-8) -> Float[Tensor, "*b"]:
    """Eqs. (24), (25): td / (sigma_V + eps). The mean of the values cancels in a TD.

    sigma = 0 gives 0: a reward model equal to the old policy has V = 0 and TD = 0 everywhere.
    """
    return torch.where(sigma > 0, td / (sigma + eps), 0.0)


def group_standardized(
    td: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], group: Int[Tensor, " b"], eps: float = 1e-8
) -> Float[Tensor, "b t"]:
    """Eqs. (26), (27): minus the mean, over the population std, of all tokens of all rollouts of a sequence's prompt.

    A group whose tokens are all alike has 0 (sums are float64, or rounding would be what is scaled up); 0 off the mask.
    """
    counts, kept = mask.sum(-1).double(), td.masked_fill(~mask, 0.0).double()
    tokens = group_sum(counts, group).clamp(min=1)
    centred = (kept - (group_sum(kept.sum(-1), group) / tokens)[:, None]).masked_fill(~mask, 0.0)
    std = (group_sum(centred.square().sum(-1), group) / tokens).sqrt()
    return (centred / (std[:, None] + eps)).to(td.dtype)


def gae(
    td: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], gamma: float = 1.0, lam: float = 1.0
) -> Float[Tensor, "b t"]:
    """Eqs. (8), (28): A_t = td_t + gamma * lam * A_t+1 over the tokens of the mask; 0 off it."""
    running, found = td.new_zeros(len(td)), []
    for now, counts in zip(reversed(td.unbind(-1)), reversed(mask.unbind(-1)), strict=True):
        running = torch.where(counts, now + gamma * lam * running, running)
        found.append(running)
    return torch.stack(found[::-1], dim=-1).masked_fill(~mask, 0.0) if found else td


def outcome_advantages(
    outcome: Float[Tensor, " b"], group: Int[Tensor, " b"], eps: float = 1e-8
) -> Float[Tensor, " b"]:
    """Eq. (13), first term: (outcome - mu) / s, both of the prompt's rollouts, s the population std. All alike: 0."""
    every = outcome.new_ones(len(outcome), 1, dtype=torch.bool)
    return group_standardized(outcome[:, None], every, group, eps)[:, 0]


def rloo_returns(
    rewards: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], group: Int[Tensor, " b"]
) -> Float[Tensor, "b t"]:
    """PRIME (arXiv 2502.01456): rewards less a leave-one-out baseline of the prompt's n rollouts, summed from the end.

    As in verl v0.7.0 that is n / (n - 1) * (reward - mean of the rollouts' own mean rewards). The mask is where rewards
    stand: every token for process rewards, `terminal` for the outcome's. Tokens before a reward hold it, whatever the
    mask says. A prompt with one rollout has 0.
    """
    size = group_sum(rewards.new_ones(len(rewards)), group)
    kept = rewards.masked_fill(~mask, 0.0)
    means = kept.sum(-1) / mask.sum(-1).clamp(min=1)
    scale = torch.where(size > 1, size / (size - 1).clamp(min=1), 0.0)
    left = scale[:, None] * (kept - (group_sum(means, group) / size)[:, None])
    return left.masked_fill(~mask, 0.0).flip(-1).cumsum(-1).flip(-1)


def masked_step_advantages(
    rewards: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], group: Int[Tensor, " b"]
) -> Float[Tensor, "b t"]:
    """SPRO (arXiv 2507.01551): reward so far, less its mean at t over the prompt's rollouts that still run at t."""
    so_far = rewards.masked_fill(~mask, 0.0).cumsum(-1).masked_fill(~mask, 0.0)
    running = group_sum(mask.to(rewards.dtype), group).clamp(min=1)
    return (so_far - group_sum(so_far, group) / running).masked_fill(~mask, 0.0)


# --- policy losses ----------------------------------------------------------------------------------------------------


def token_surrogate(  # noqa: PLR0913, PLR0917 - as many as the presets differ in
    logprobs: Float[Tensor, "b t"],
    old_logprobs: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    reduction: Reduction = "sequence",
    weight: Float[Tensor, "b t"] | None = None,
) -> Float[Tensor, " b"]:
    """Eqs. (7), (12), as a loss: - min(rho * A, clip(rho, 1 - low, 1 + high) * A) of the sampled tokens.

    `dual_clip` bounds the loss at -c * A where A < 0 (release: c = 3). `weight` = `importance_weights` multiplies the
    terms, not the count they are divided by.
    """
    terms = _clipped_loss(_ratio(logprobs, old_logprobs, mask), advantages, clip_low, clip_high, dual_clip)
    return sequence_terms(terms if weight is None else terms * weight, mask, reduction)


def candidate_surrogate(  # noqa: PLR0913, PLR0917 - as many as the presets differ in
    logprobs: Float[Tensor, "b t k"],
    old_logprobs: Float[Tensor, "b t k"],
    td: Float[Tensor, "b t k"],
    kept: Bool[Tensor, "b t k"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    normalize: Literal["length", "mass"] = "length",
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, " b"]:
    """Eq. (11), as a loss: the clipped terms of the candidates `kept`, each times its pi_old, and summed.

    "length" divides by T, the tokens of the mask (None = all t), those without a candidate included; "mass" (release)
    divides by nothing here, and by the sum of `candidate_mass` over the whole batch at the caller's.
    """
    mask = torch.ones_like(kept[..., 0]) if mask is None else mask
    kept = kept & mask[..., None]
    terms = _clipped_loss(_ratio(logprobs, old_logprobs, kept), td, clip_low, clip_high, dual_clip)
    expected = (old_logprobs.exp() * terms).masked_fill(~kept, 0.0).sum(-1)
    return sequence_terms(expected, mask, "sequence" if normalize == "length" else "token")


def candidate_mass(old_logprobs: Float[Tensor, "b t k"], kept: Bool[Tensor, "b t k"]) -> Float[Tensor, " b"]:
    """The sum of pi_old over all kept candidates of a sequence."""
    return old_logprobs.exp().masked_fill(~kept, 0.0).sum((-1, -2))


def distrl_loss(
    token_terms: Float[Tensor, " b"], candidate_terms: Float[Tensor, " b"], alpha: float
) -> Float[Tensor, " b"]:
    """Eq. (14): token branch + alpha * candidate branch. At alpha = 0 there is no candidate branch, not one times 0."""
    return token_terms if alpha == 0 else token_terms + alpha * candidate_terms


def importance_weights(
    old_logprobs: Float[Tensor, "*b"], behaviour_logprobs: Float[Tensor, "*b"], cap: float = 2.0
) -> Float[Tensor, "*b"]:
    """Truncated importance sampling: min(pi_old / pi_behaviour, cap), where another engine than ours drew the token."""
    return (old_logprobs - behaviour_logprobs).exp().clamp(max=cap)


def clipped(
    logprobs: Float[Tensor, "*b"],
    old_logprobs: Float[Tensor, "*b"],
    advantages: Float[Tensor, "*b"],
    mask: Bool[Tensor, "*b"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Bool[Tensor, "*b"]:
    """Where the clipped term is the larger loss or, given `dual_clip`, that bound holds: tokens without a gradient."""
    ratio = _ratio(logprobs, old_logprobs, mask)  # 1 off the mask, which nothing clips
    plain = -advantages * ratio
    larger = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high) > plain
    if dual_clip is not None:
        larger = larger | ((advantages < 0) & (plain > -advantages * dual_clip))
    return larger


def _ratio(
    logprobs: Float[Tensor, "*b"], old_logprobs: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """rho, and 1 off the mask: whatever stands there, NaN included, gets a gradient of 0."""
    return (logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()


def _clipped_loss(
    ratio: Float[Tensor, "*b"], advantages: Float[Tensor, "*b"], clip_low: float, clip_high: float, dual: float | None
) -> Float[Tensor, "*b"]:
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual), loss)


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
