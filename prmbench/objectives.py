"""The paper's quantities as pure functions of tensors, one equation each: no config, no model, no device.

Equations are those of arXiv 2604.13197 unless another paper is named.
"""

from __future__ import annotations

from torch import Tensor


def log_ratios(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Eq. (3) without beta: l_t = log pi_phi(y_t|s_t) - log pi_ref(y_t|s_t). [t], [t] -> [t], nats."""
    return logprobs - ref_logprobs


def endo_rewards(logprobs: Tensor, normalisers: Tensor, decay: float = 1.0) -> Tensor:
    """EndoRM (arXiv 2506.23235) at alpha = 1: r_t = Q(s_t, y_t) - decay * V(s_t+1). [t], [t + 1] -> [t].

    The model's own logits are read as soft Q-values, so Q(s_t, y_t) = log pi(y_t|s_t) + V(s_t) and V = logsumexp.
    `normalisers` are V(s_1) .. V(s_T+1); V is 0 after the end, so where y_T is the end-of-turn token the caller sets
    the last one to 0. The IPVRM paper's "decay factor 0.95" does not say where it enters; here it discounts the next
    state's value, and 1 leaves it out.
    """
    return logprobs + normalisers[:-1] - decay * normalisers[1:]
