"""Loop part 4: from the TDs of a step to the advantages of its tokens and candidates.

The formulas are in objectives.py; moments are summed over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prmbench import objectives
from prmbench.config.distrl_options import ResolvedDistRL
from prmbench.core import processes
from prmbench.rl import step_values
from prmbench.rl.token_rows import Rows


@dataclass(frozen=True, slots=True)
class Advantages:
    """What the policy is trained on."""

    tokens: Tensor
    """[b, T] advantages of the sampled tokens, Eq. 13."""
    candidates: Tensor
    """[n, K] scaled TDs of the candidates, Eq. 25."""
    metrics: Mapping[str, float]
    """sigma_v and gae_outcome_ratio, where there are such; empty without a process reward and values of steps."""


def compute(rows: Rows, td: Tensor | None, config: ResolvedDistRL) -> Advantages:
    """Eq. 13: outcome advantage + gae_weight * process advantage, 0 where no token learns. All processes call it.

    Args:
        rows: The step's completions in this process.
        td: [n, 1 + K] TDs of the sampled tokens and the candidates; None without a process reward.
        config: The resolved options.
    """
    mask = rows.learning
    outcome = objectives.outcome_advantages(rows.outcome, rows.group)[:, None] * mask
    if td is None and config.step_values != "none":
        return _of_steps(rows, outcome, config)
    if td is None:
        return Advantages(outcome, torch.zeros(sum(rows.sizes), 0, device=mask.device), {})
    token_td = rows.padded(td[:, 0])
    if config.zero_terminal:
        token_td = objectives.without_terminal(token_td, mask)
    _, sigma = _moments(objectives.prefix_values(token_td, mask), mask)
    process = PROCESS[config.credit](rows, token_td, mask, sigma, config)
    if config.whiten:
        mean, std = _moments(process, mask, unbiased=True)
        process = objectives.whitened(process, mask, mean, std)
    process = config.gae_weight * process
    adds_outcome = config.reward == "both" and config.credit != "rloo"  # RLOO's returns hold the outcome
    metrics = {"sigma_v": float(sigma), "gae_outcome_ratio": _ratio(process, outcome, mask)}
    tokens = process + outcome if adds_outcome else process
    return Advantages(tokens, objectives.scaled_td(td[:, 1:], sigma.float()), metrics)


def _of_steps(rows: Rows, outcome: Tensor, config: ResolvedDistRL) -> Advantages:
    """Advantages from the values of steps: in the outcome's place (continuations), or beside it (answer)."""
    mask = rows.learning
    tokens, metrics = step_values.step_advantages(rows), dict[str, float]()
    if config.whiten:
        mean, std = _moments(tokens, mask, unbiased=True)
        tokens = objectives.whitened(tokens, mask, mean, std)
    if config.step_values == "answer":
        weighted = config.step_weight * tokens
        metrics, tokens = {"gae_outcome_ratio": _ratio(weighted, outcome, mask)}, weighted + outcome
    return Advantages(tokens, torch.zeros(sum(rows.sizes), 0, device=mask.device), metrics)


Process = Callable[[Rows, Tensor, Tensor, Tensor, ResolvedDistRL], Tensor]
"""(rows, td [b, T], mask, sigma_V, config) -> process advantages [b, T]."""


def _gae(rows: Rows, td: Tensor, mask: Tensor, sigma: Tensor, config: ResolvedDistRL) -> Tensor:
    """GAE of the TDs, Eqs. 26-28; sigma_V cancels where groups are standardised."""
    scaled = objectives.scaled_td(td, sigma.to(td.dtype))
    if config.td_normalize == "group":
        normalized = objectives.group_standardized(scaled, mask, rows.group)
    else:
        mean, _ = _moments(scaled, mask)
        normalized = (scaled - mean.to(td.dtype)).masked_fill(~mask, 0.0)
    return objectives.gae(normalized, mask, config.gamma, config.lam)


def _rloo(rows: Rows, td: Tensor, mask: Tensor, sigma: Tensor, config: ResolvedDistRL) -> Tensor:
    """Returns of PRIME: of the process rewards and, with --reward both, of the outcome at the last token."""
    del sigma
    returns = objectives.rloo_returns(td, mask, rows.group)
    if config.reward == "both":
        last = objectives.terminal(mask)
        returns = returns + objectives.rloo_returns(rows.outcome[:, None] * last, last, rows.group)
    return returns.masked_fill(~mask, 0.0)


def _masked_step(rows: Rows, td: Tensor, mask: Tensor, sigma: Tensor, config: ResolvedDistRL) -> Tensor:
    del sigma, config
    return objectives.masked_step_advantages(td, mask, rows.group)


def _score(rows: Rows, td: Tensor, mask: Tensor, sigma: Tensor, config: ResolvedDistRL) -> Tensor:
    del rows, sigma, config
    return td.masked_fill(~mask, 0.0)


PROCESS: dict[str, Process] = {"gae": _gae, "rloo": _rloo, "masked_step": _masked_step, "score": _score}
"""The process advantages by --credit."""


def _moments(values: Tensor, mask: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """Returns (mean, std) over all processes."""
    local = objectives.moment_sums(values, mask)
    sums = torch.tensor(processes.all_reduce_sum(local.tolist()), dtype=torch.float64, device=values.device)
    return objectives.mean_and_std(sums, unbiased)


def _ratio(process: Tensor, outcome: Tensor, mask: Tensor) -> float:
    """Returns the RMS of the process part over the RMS of the outcome part."""
    squares = [float(x.double().square().masked_fill(~mask, 0.0).sum()) for x in (process, outcome)]
    process_sum, outcome_sum = processes.all_reduce_sum(squares)
    return (process_sum / outcome_sum) ** 0.5 if outcome_sum else 0.0
