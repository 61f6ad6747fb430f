"""The table of losses: what each `--loss` reads, computes and trains. The formulas are in objectives.py.

All losses share one signature, `terms(values, mask, labels, beta, margin, reduction)`, so the loop treats them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from prmbench import objectives
from prmbench.objectives import Reduction

View = Literal["point", "pair", "steps"]
Head = Literal["lm", "value", "classes"]

Terms = Callable[[Tensor, Tensor, Tensor, float, float, Reduction], Tensor]
"""(values [b, t], mask [b, t] bool, labels, beta, margin, reduction) -> terms [b], or [b / 2] for pairs.

`values` and `labels` are described by the row; positions where the mask is off may hold anything finite.
"""
Scores = Callable[[Tensor, Tensor, float], Tensor]
"""(values, mask, beta) -> scores of sequences [b] or of steps [b, t]; above 0 means right."""


@dataclass(frozen=True, slots=True)
class LossRow:
    """What a loss reads, which head it trains, and which backend reads the trained model."""

    view: View
    """point: a row is a completion, labels [b] its outcome (1 right, 0 wrong; SFT ignores them).
    pair: rows 2i and 2i + 1 are the right and the wrong completion of a pair; labels are ignored.
    steps: t runs over steps, labels [b, t] in [0, 1], the mask is on for labelled steps only."""
    head: Head
    """Where `values` come from. lm: log-probabilities of the completion's tokens, less the reference's where
    `reference` says so. value: AutoModelForTokenClassification with one label, read at the completion's tokens (steps:
    at each step's last token). classes: with two labels, as `objectives.log_odds`, at the separator after each step."""
    reference: bool
    """Whether `values` are log-ratios to a reference."""
    terms: Terms
    scores: Scores | None
    """The loss's own decisions, for `hits`; None where it decides nothing."""
    per_token: bool = True
    """Whether `reduction` makes a difference; if not, the denominator is always the number of sequences or pairs."""
    backend: str = ""
    """Backend that reads the trained model; empty = it is a policy, not a reward model."""
    card: Mapping[str, str] = field(default_factory=dict)
    """Fields of prm.json that go with the backend."""


def denominator(row: LossRow, lengths: Sequence[int], reduction: Reduction) -> int:
    """Returns what the sum of the terms of one update is divided by; it is known before any forward pass.

    Args:
        row: The loss.
        lengths: Number of values that count of each sequence, over all micro-batches and processes; both halves of a
            pair are listed.
        reduction: Mean over sequences or over tokens.
    """
    if row.per_token and reduction == "token":
        return max(sum(lengths), 1)
    return max(len(lengths) // (2 if row.view == "pair" else 1), 1)


def hits(row: LossRow, values: Tensor, mask: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Returns a boolean for each decision, true where it is right: outcomes, pairs or labelled steps.

    Outcomes and steps are decided at a score of 0, which is a probability of 1/2; margins play no part, and a tie is
    wrong. Empty for SFT, which decides nothing.
    """
    if row.scores is None:
        return mask.new_zeros(0)
    scores = row.scores(values, mask, beta)
    if row.view == "pair":
        return scores[0::2] > scores[1::2]
    right = scores * (2 * labels - 1) > 0
    return right[mask] if row.view == "steps" else right


# --- the rows' functions --------------------------------------------------------------------------------------------


def _sft(values: Tensor, mask: Tensor, _: Tensor, beta: float, margin: float, reduction: Reduction) -> Tensor:
    del beta, margin
    return objectives.sft_loss(values, mask, reduction)


def _ipvrm(weights: Callable[[Tensor], Tensor] | None = None) -> Terms:
    def terms(values: Tensor, mask: Tensor, labels: Tensor, beta: float, margin: float, reduction: Reduction) -> Tensor:
        prefix = objectives.prefix_values(objectives.token_rewards(values, beta), mask)
        v_bar = objectives.length_normalized(prefix, mask)
        prefix_weight = None if weights is None else weights(mask)
        return objectives.ipvrm_loss(v_bar, mask, labels, margin, prefix_weight=prefix_weight, reduction=reduction)

    return terms


def _implicit_prm(
    values: Tensor, mask: Tensor, labels: Tensor, beta: float, margin: float, reduction: Reduction
) -> Tensor:
    del margin, reduction
    return objectives.implicit_prm_loss(_sum_score(values, mask, beta), labels)


def _pairs(scores: Scores, with_margin: bool) -> Terms:
    def terms(values: Tensor, mask: Tensor, _: Tensor, beta: float, margin: float, reduction: Reduction) -> Tensor:
        del reduction
        sequence_scores = scores(values, mask, beta)
        chosen, rejected = sequence_scores[0::2], sequence_scores[1::2]
        return objectives.bradley_terry_loss(chosen, rejected, margin if with_margin else 0.0)

    return terms


def _steps(values: Tensor, mask: Tensor, labels: Tensor, beta: float, margin: float, reduction: Reduction) -> Tensor:
    del beta, margin
    return objectives.step_bce_loss(values, labels, mask, reduction)


def _sum_score(values: Tensor, mask: Tensor, beta: float) -> Tensor:
    return objectives.sequence_rewards(values, mask, beta)


def _mean_score(values: Tensor, mask: Tensor, beta: float) -> Tensor:
    return beta * objectives.masked_mean(values, mask)


def _step_scores(values: Tensor, mask: Tensor, beta: float) -> Tensor:
    del mask, beta
    return values


def _ipvrm_row(weights: Callable[[Tensor], Tensor] | None = None) -> LossRow:
    return LossRow("point", "lm", True, _ipvrm(weights), _mean_score, backend="implicit")


LOSSES: dict[str, LossRow] = {
    "sft": LossRow("point", "lm", False, _sft, None),
    "ipvrm": _ipvrm_row(),
    "ipvrm_early": _ipvrm_row(objectives.early_weights),
    "ipvrm_late": _ipvrm_row(objectives.late_weights),
    "implicit_prm": LossRow("point", "lm", True, _implicit_prm, _sum_score, per_token=False, backend="implicit"),
    "dpo_rm": LossRow("pair", "lm", True, _pairs(_sum_score, False), _sum_score, per_token=False, backend="implicit"),
    # Q-RM reads its head at the token itself. The release trains on the position before it and scores at it.
    "q_rm": LossRow(
        "pair",
        "value",
        False,
        _pairs(_mean_score, True),
        _mean_score,
        per_token=False,
        backend="value_head",
        card={"reading": "cumulative"},
    ),
    "step_bce": LossRow(
        "steps", "classes", False, _steps, _step_scores, backend="token_cls", card={"separator": "\n\n"}
    ),
    "value_bce": LossRow(
        "steps", "value", False, _steps, _step_scores, backend="value_head", card={"reading": "at_step"}
    ),
}
"""The losses by their names in `config.Loss`."""
