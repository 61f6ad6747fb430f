"""The equations of the paper as pure functions of tensors.

Equations are those of arXiv 2604.13197 unless another paper is named. Shapes: b sequences or pairs, t tokens, k
candidates. A loss function returns one term a sequence (or pair): divide the sum of the terms by the number of
sequences or tokens of the whole batch, and the losses of micro-batches and processes add up to that of the batch.
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
"""Mean over t in each sequence, then over sequences (Eq. 9); or over all tokens (the authors' offline trainer)."""
MU_MARGIN = 1e-6
"""A prompt's mean outcome is clamped this far from 0 and 1 before its logit is taken."""


# --- sums and means under a mask ----------------------------------------------------------------------------------


def masked_sum(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """Returns the sum over the tokens of the mask; values elsewhere, NaN included, are ignored."""
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(
    values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], weight: Float[Tensor, "b t"] | None = None
) -> Float[Tensor, " b"]:
    """Returns the (weighted) mean over the tokens of the mask; 0 where the weights sum to 0."""
    weights = (mask if weight is None else weight.masked_fill(~mask, 0.0)).to(values.dtype)
    total = weights.sum(-1)
    return masked_sum(values * weights, mask) / torch.where(total > 0, total, 1.0)


def sequence_terms(
    values: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    reduction: Reduction = "sequence",
    weight: Float[Tensor, "b t"] | None = None,
) -> Float[Tensor, " b"]:
    """Returns each sequence's term of a loss: its mean, or with `token` that mean times its length."""
    mean = masked_mean(values, mask, weight)
    return mean if reduction == "sequence" else mean * mask.sum(-1)


# --- rewards and values ---------------------------------------------------------------------------------------------


def log_ratios(logprobs: Float[Tensor, "*b t"], ref_logprobs: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
    """Eq. (3) without beta: returns l_t = log pi_phi(y_t|s_t) - log pi_ref(y_t|s_t), in nats."""
    return logprobs - ref_logprobs


def sequence_rewards(log_ratio: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], beta: float) -> Float[Tensor, " b"]:
    """Eq. (1): returns r(x, y) = beta * the sum of l_t over the completion."""
    return beta * masked_sum(log_ratio, mask)


def token_rewards(log_ratio: Float[Tensor, "*b t"], beta: float) -> Float[Tensor, "*b t"]:
    """Eq. (3): returns r_t = beta * l_t."""
    return beta * log_ratio


def prefix_values(rewards: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Eq. (5): returns V after t tokens, the sum of the rewards of tokens 1 to t; constant where the mask is off."""
    return rewards.masked_fill(~mask, 0.0).cumsum(-1)


def length_normalized(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Section 3.1: returns vbar_t = V / t, where t counts the tokens of the mask from 1."""
    return values / mask.cumsum(-1).clamp(min=1)


# --- losses ---------------------------------------------------------------------------------------------------------


def sft_loss(
    logprobs: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], reduction: Reduction = "token"
) -> Float[Tensor, " b"]:
    """Returns the negative log-likelihood of the completion's tokens, usually as a mean over all tokens."""
    return sequence_terms(-logprobs, mask, reduction)


def bradley_terry_loss(
    chosen: Float[Tensor, " b"], rejected: Float[Tensor, " b"], margin: float = 0.0
) -> Float[Tensor, " b"]:
    """Eq. (2): returns -log sigmoid(chosen - rejected - margin), one term a pair.

    DPO-RM takes sequence rewards and margin 0; Q-RM takes beta times the mean of a scalar head's token values.
    """
    return softplus(margin - (chosen - rejected))


def implicit_prm_loss(rewards: Float[Tensor, " b"], outcome: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Eq. (4): returns the BCE of sigmoid(r(x, y)) and the outcome, r being the sequence reward of Eq. (1)."""
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
    """Eq. (9): returns the BCE of each length-normalised prefix value and the outcome, with a margin for each class.

    v_bar(t) includes token t, as in the release; Eq. (9) read literally does not.

    Args:
        v_bar: Length-normalised prefix values.
        mask: The completion's tokens.
        outcome: 1 = right, 0 = wrong.
        margin: A right prefix has to exceed it, a wrong one has to be below minus it.
        offset: V(x) of the online form, Eq. (15), whose terms the caller multiplies by w.
        prefix_weight: Weights of the prefixes, Eq. (16).
        reduction: Mean over sequences or over tokens.
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
    """Returns the BCE of sigmoid(logit) and the labels of steps, which are in [0, 1].

    Labels may be Monte-Carlo success rates. The mask is on where a step ends and has a label. For two-class heads the
    logits are their `log_odds`, and this is the cross-entropy of their softmax. The mean is over all labelled steps, as
    in TRL, hence `token`.
    """
    nll = binary_cross_entropy_with_logits(logits, labels.masked_fill(~mask, 0.0), reduction="none")
    return sequence_terms(nll, mask, reduction)


def log_odds(classes: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """Returns the logit of class 1 (the step is right) against class 0: the sigmoid of it is the softmax's p."""
    return classes[..., 1] - classes[..., 0]


# --- weights, margins and offsets -------------------------------------------------------------------------------------


def late_weights(mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Eq. (17): returns t / T before normalisation by the sum; 0 off the mask."""
    t = mask.cumsum(-1)
    return (t / t[:, -1:].clamp(min=1)).masked_fill(~mask, 0.0)


def early_weights(mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Eq. (18): returns 1 - t / T before normalisation; one token alone has weight 0, loss 0, and is counted."""
    return mask.float() - late_weights(mask)


def group_sum(values: Float[Tensor, " b *t"], group: Int[Tensor, " b"]) -> Float[Tensor, " b *t"]:
    """Returns for each sequence the sum over the rollouts of its prompt; `group` is the prompt's index."""
    groups, index = group.unique(return_inverse=True)
    return values.new_zeros(len(groups), *values.shape[1:]).index_add(0, index, values)[index]


def group_mean(values: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Returns mu(x) for each sequence: the mean over the rollouts of its prompt."""
    return group_sum(values, group) / group_sum(torch.ones_like(values), group)


def difficulty_offset(mu: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Eq. (15): returns V(x) = logit(mu), mu clamped to [1e-6, 1 - 1e-6].

    It is float32 as in the release: float64 differs by 0.013 at mu = 1.
    """
    return mu.float().clamp(MU_MARGIN, 1 - MU_MARGIN).logit()


def rarity_weight(outcome: Float[Tensor, " b"], mu: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Eq. (15): returns w = 1 - mu for a right completion, mu for a wrong one."""
    return outcome * (1 - mu) + (1 - outcome) * mu


def normalized_weight(weight: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Eq. (15) as in the release: returns a prompt's weights scaled to a mean of 1; ones where all are 0."""
    mean = group_mean(weight, group)
    return torch.where(mean > 0, weight / torch.where(mean > 0, mean, 1.0), 1.0)


# --- moments ----------------------------------------------------------------------------------------------------------


def moment_sums(values: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"]) -> Float[Tensor, " 3"]:
    """Returns count, sum and sum of squares in float64; those of micro-batches add up to those of the batch."""
    masked = values.masked_fill(~mask, 0.0).double()
    return torch.stack((mask.sum().double(), masked.sum(), masked.square().sum()))


def mean_and_std(sums: Float[Tensor, " 3"], unbiased: bool = False) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns mean and std in float64 from `moment_sums`: sigma_V of Eq. (24) is the population std of the values.

    The mean of no values is 0, and so is the std of too few.
    """
    count, total, squares = sums
    mean = total / count.clamp(min=1)
    degrees = (count - int(unbiased)).clamp(min=1)
    return mean, ((squares - total * mean).clamp(min=0) / degrees).sqrt()


def whitened(
    values: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    mean: Float[Tensor, ""],
    std: Float[Tensor, ""],
    eps: float = 1e-8,
) -> Float[Tensor, "b t"]:
    """Release, after Eq. (28): returns (values - mean) / sqrt(std^2 + eps), std being unbiased; 0 off the mask."""
    return ((values - mean) / (std.square() + eps).sqrt()).masked_fill(~mask, 0.0)


# --- advantages -------------------------------------------------------------------------------------------------------


def td_advantages(logprobs: Float[Tensor, "*b"], old_logprobs: Float[Tensor, "*b"], beta: float) -> Float[Tensor, "*b"]:
    """Eqs. (6), (10), (23): returns beta * (log pi_phi - log pi_old) = V after a token - V before it."""
    return beta * (logprobs - old_logprobs)


def terminal(mask: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """Returns the mask of each completion's last token; off everywhere in a row without tokens."""
    count = mask.cumsum(-1)
    return mask & (count == count[:, -1:])


def without_terminal(td: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Returns the TDs with that of each last token set to 0, as in the release: Eq. (10) holds for t < T."""
    return td.masked_fill(terminal(mask), 0.0)


def scaled_td(td: Float[Tensor, "*b"], sigma: Float[Tensor, ""], eps: float = 1e-8) -> Float[Tensor, "*b"]:
    """Eqs. (24), (25): returns td / (sigma_V + eps), in which the mean of the values cancels.

    It is 0 for sigma = 0: a reward model equal to the old policy has V = 0 and TD = 0 everywhere.
    """
    return torch.where(sigma > 0, td / (sigma + eps), 0.0)


def group_standardized(
    td: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], group: Int[Tensor, " b"], eps: float = 1e-8
) -> Float[Tensor, "b t"]:
    """Eqs. (26), (27): returns TDs standardised over all tokens of all rollouts of the sequence's prompt.

    The std is that of the population. A group of equal TDs gets 0: sums are float64, or rounding errors would be scaled
    up. Off the mask it is 0.
    """
    counts, masked = mask.sum(-1).double(), td.masked_fill(~mask, 0.0).double()
    tokens = group_sum(counts, group).clamp(min=1)
    centred = (masked - (group_sum(masked.sum(-1), group) / tokens)[:, None]).masked_fill(~mask, 0.0)
    std = (group_sum(centred.square().sum(-1), group) / tokens).sqrt()
    return (centred / (std[:, None] + eps)).to(td.dtype)


def gae(
    td: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], gamma: float = 1.0, lam: float = 1.0
) -> Float[Tensor, "b t"]:
    """Eqs. (8), (28): returns A_t = td_t + gamma * lam * A_t+1 over the tokens of the mask; 0 off the mask."""
    running, advantages = td.new_zeros(len(td)), []
    for td_t, mask_t in zip(reversed(td.unbind(-1)), reversed(mask.unbind(-1)), strict=True):
        running = torch.where(mask_t, td_t + gamma * lam * running, running)
        advantages.append(running)
    return torch.stack(advantages[::-1], dim=-1).masked_fill(~mask, 0.0) if advantages else td


def outcome_advantages(
    outcome: Float[Tensor, " b"], group: Int[Tensor, " b"], eps: float = 1e-8
) -> Float[Tensor, " b"]:
    """Eq. (13), first term: returns outcomes standardised over the prompt's rollouts; 0 where all are equal."""
    mask = outcome.new_ones(len(outcome), 1, dtype=torch.bool)
    return group_standardized(outcome[:, None], mask, group, eps)[:, 0]


def rloo_returns(
    rewards: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], group: Int[Tensor, " b"]
) -> Float[Tensor, "b t"]:
    """PRIME (arXiv 2502.01456): returns of rewards less a leave-one-out baseline over the prompt's n rollouts.

    As in verl v0.7.0 the reward less its baseline is n / (n - 1) * (reward - mean of the rollouts' mean rewards); the
    return of a token is its sum from that token to the end. The mask is on where there is a reward: at every token for
    process rewards, at `terminal` for the outcome. Tokens before a reward get its return, in the mask or not.
    A prompt with one rollout has 0.
    """
    size = group_sum(rewards.new_ones(len(rewards)), group)
    masked = rewards.masked_fill(~mask, 0.0)
    means = masked.sum(-1) / mask.sum(-1).clamp(min=1)
    scale = torch.where(size > 1, size / (size - 1).clamp(min=1), 0.0)
    centred = scale[:, None] * (masked - (group_sum(means, group) / size)[:, None])
    return centred.masked_fill(~mask, 0.0).flip(-1).cumsum(-1).flip(-1)


def masked_step_advantages(
    rewards: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], group: Int[Tensor, " b"]
) -> Float[Tensor, "b t"]:
    """SPRO (arXiv 2507.01551): returns cumulative rewards less their mean over the prompt's rollouts at t."""
    cumulative = rewards.masked_fill(~mask, 0.0).cumsum(-1).masked_fill(~mask, 0.0)
    counts = group_sum(mask.to(rewards.dtype), group).clamp(min=1)
    return (cumulative - group_sum(cumulative, group) / counts).masked_fill(~mask, 0.0)


def step_advantages(
    values: Float[Tensor, "b s"], step: Int[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    """VinePPO (arXiv 2410.01679): returns V(after a token's step) - V(before it), the same for all tokens of a step.

    `values[:, k]` is the value before step k, so a completion of S steps has S + 1 of them; `step` holds each token's
    step. The differences of a completion's steps add up to its last value less its first.
    """
    change = values[:, 1:] - values[:, :-1]
    return change.gather(1, step.masked_fill(~mask, 0)).masked_fill(~mask, 0.0)


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
    """Eqs. (7), (12): returns -min(rho * A, clip(rho, 1 - low, 1 + high) * A) of the sampled tokens.

    `dual_clip` c bounds the loss at -c * A where A < 0 (release: c = 3). `weight`, such as `importance_weights`,
    multiplies the terms and not the count that they are divided by.
    """
    terms = _clipped_loss(_ratio(logprobs, old_logprobs, mask), advantages, clip_low, clip_high, dual_clip)
    return sequence_terms(terms if weight is None else terms * weight, mask, reduction)


def candidate_surrogate(  # noqa: PLR0913, PLR0917 - as many as the presets differ in
    logprobs: Float[Tensor, "b t k"],
    old_logprobs: Float[Tensor, "b t k"],
    td: Float[Tensor, "b t k"],
    candidate_mask: Bool[Tensor, "b t k"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    normalize: Literal["length", "mass"] = "length",
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, " b"]:
    """Eq. (11): returns the sum over candidates of pi_old times their clipped terms.

    Args:
        logprobs: Log-probabilities of the candidates under the policy.
        old_logprobs: The same under the policy that sampled the completions.
        td: Scaled TDs of the candidates, Eq. (25).
        candidate_mask: Which of the k columns are candidates.
        clip_low: Clip of the ratio below 1.
        clip_high: Clip of the ratio above 1.
        dual_clip: Bound of the loss where the TD is negative; None = no bound.
        normalize: "length" divides by the tokens of the mask, those without a candidate included; with "mass" (release)
            the caller divides by the sum of `candidate_mass` over the whole batch.
        mask: The completion's tokens; None = all t.
    """
    mask = torch.ones_like(candidate_mask[..., 0]) if mask is None else mask
    candidate_mask = candidate_mask & mask[..., None]
    terms = _clipped_loss(_ratio(logprobs, old_logprobs, candidate_mask), td, clip_low, clip_high, dual_clip)
    expected = (old_logprobs.exp() * terms).masked_fill(~candidate_mask, 0.0).sum(-1)
    return sequence_terms(expected, mask, "sequence" if normalize == "length" else "token")


def candidate_mass(old_logprobs: Float[Tensor, "b t k"], candidate_mask: Bool[Tensor, "b t k"]) -> Float[Tensor, " b"]:
    """Returns the sum of pi_old over all candidates of a sequence."""
    return old_logprobs.exp().masked_fill(~candidate_mask, 0.0).sum((-1, -2))


def distrl_loss(
    token_terms: Float[Tensor, " b"], candidate_terms: Float[Tensor, " b"], alpha: float
) -> Float[Tensor, " b"]:
    """Eq. (14): returns token branch + alpha * candidate branch; at alpha = 0 the latter is ignored, NaN included."""
    return token_terms if alpha == 0 else token_terms + alpha * candidate_terms


def importance_weights(
    old_logprobs: Float[Tensor, "*b"], behaviour_logprobs: Float[Tensor, "*b"], cap: float = 2.0
) -> Float[Tensor, "*b"]:
    """Returns min(pi_old / pi_behaviour, cap), for tokens that another engine than ours has sampled."""
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
    """Returns which tokens get no gradient since their term is clipped, or bounded by `dual_clip`."""
    ratio = _ratio(logprobs, old_logprobs, mask)  # 1 off the mask, which nothing clips
    plain = -advantages * ratio
    larger = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high) > plain
    if dual_clip is not None:
        larger = larger | ((advantages < 0) & (plain > -advantages * dual_clip))
    return larger


def _ratio(
    logprobs: Float[Tensor, "*b"], old_logprobs: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """Returns rho, and 1 off the mask: values there, NaN included, get a gradient of 0."""
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
    """EndoRM (arXiv 2506.23235) at alpha = 1: returns r_t = Q(s_t, y_t) - decay * V(s_t+1).

    The model's own logits are read as soft Q-values, so Q(s_t, y_t) = log pi(y_t|s_t) + V(s_t) and V = logsumexp.
    `normalisers` are V(s_1) .. V(s_T+1); V is 0 after the end, so where y_T is the end-of-turn token the caller sets
    the last one to 0. The IPVRM paper's "decay factor 0.95" does not say where it enters; here it discounts the next
    state's value, and 1 leaves it out.
    """
    return logprobs + normalisers[:-1] - decay * normalisers[1:]
