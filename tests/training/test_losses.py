"""losses.py: every row of the table under padding, order and splits, its gradient's direction, and its diagnostics."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, tensor

from prmbench.config import Loss
from prmbench.objectives import Reduction
from prmbench.training import losses
from prmbench.training.losses import LOSSES

BETA, MARGIN = 0.7, 0.3
LENGTHS = tensor([7, 3, 1, 5, 2, 7, 4, 6])
WIDTH = 7
REDUCTIONS = get_args(Reduction)


def batch(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values, mask and labels for a row of the table: four pairs, or eight sequences; float64."""
    torch.manual_seed(5)
    values = torch.randn(8, WIDTH, dtype=torch.float64)
    labels = (torch.arange(8) % 2 == 0).double()
    mask = torch.arange(WIDTH) < LENGTHS[:, None]
    if LOSSES[name].view == "steps":
        labels = torch.rand(8, WIDTH, dtype=torch.float64).round(decimals=1)
        mask &= torch.arange(WIDTH) != 1  # an unlabelled step in the middle
    return values, mask, labels


def value(name: str, reduction: Reduction, values: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """What a loop computes when it does everything at once."""
    row = LOSSES[name]
    terms = row.terms(values, mask, labels, BETA, MARGIN, reduction)
    return terms.sum() / losses.denominator(row, mask.sum(1).tolist(), reduction)


def gradient(name: str, reduction: Reduction, values: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = values.clone().requires_grad_()
    loss = value(name, reduction, leaf, mask, labels)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


every_loss = pytest.mark.parametrize("name", LOSSES)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def test_the_table_has_every_loss_of_the_options() -> None:
    assert tuple(LOSSES) == get_args(Loss)


@every_loss
def test_a_row_says_who_reads_its_model(name: str) -> None:
    row = LOSSES[name]
    assert (
        row.backend
        == {"lm": "implicit" if row.reference else "", "classes": "token_cls", "value": "value_head"}[row.head]
    )
    assert row.reference == (row.backend == "implicit")


@every_loss
@every_reduction
def test_padding_has_no_part(name: str, reduction: Reduction) -> None:
    values, mask, labels = batch(name)
    loss, grad = gradient(name, reduction, values, mask, labels)
    assert grad[~mask].abs().max() == 0
    assert grad[mask].abs().max() > 0
    wide = torch.cat([values.masked_fill(~mask, -1e4), torch.full((8, 3), 1e4, dtype=torch.float64)], 1)
    wide_labels = torch.nn.functional.pad(labels, (0, 3), value=9.0) if labels.ndim == 2 else labels
    wide_loss, wide_grad = gradient(name, reduction, wide, torch.nn.functional.pad(mask, (0, 3)), wide_labels)
    close(wide_loss, loss)
    close(wide_grad[:, :WIDTH], grad)


@every_loss
@every_reduction
def test_order_does_not_matter(name: str, reduction: Reduction) -> None:
    values, mask, labels = batch(name)
    loss, grad = gradient(name, reduction, values, mask, labels)
    order = tensor([6, 7, 0, 1, 4, 5, 2, 3])  # pairs stay together
    moved, moved_grad = gradient(name, reduction, values[order], mask[order], labels[order])
    close(moved, loss)
    close(moved_grad, grad[order])


@every_loss
@every_reduction
@pytest.mark.parametrize("cuts", [[2, 6], [2, 2, 2, 2], [6, 2]])
def test_micro_batches_add_up(name: str, reduction: Reduction, cuts: list[int]) -> None:
    values, mask, labels = batch(name)
    row = LOSSES[name]
    bottom = losses.denominator(row, mask.sum(1).tolist(), reduction)
    parts = zip(values.split(cuts), mask.split(cuts), labels.split(cuts), strict=True)
    total = sum(row.terms(v, m, y, BETA, MARGIN, reduction).sum() / bottom for v, m, y in parts)
    close(total, value(name, reduction, values, mask, labels))


@every_loss
@every_reduction
def test_reductions_differ_only_where_the_row_says(name: str, reduction: Reduction) -> None:
    values, mask, labels = batch(name)
    other = REDUCTIONS[1 - REDUCTIONS.index(reduction)]
    same = torch.allclose(value(name, reduction, values, mask, labels), value(name, other, values, mask, labels))
    assert same is not LOSSES[name].per_token
    full = torch.ones_like(mask)  # of one length, both are the same mean
    close(value(name, reduction, values, full, labels), value(name, other, values, full, labels))


@every_loss
@every_reduction
def test_nothing_at_all_is_0_and_never_nan(name: str, reduction: Reduction) -> None:
    values, mask, labels = batch(name)
    loss, grad = gradient(name, reduction, values, torch.zeros_like(mask), labels)
    assert torch.isfinite(loss)
    assert grad.abs().max() == 0
    one_empty = mask.clone()
    one_empty[3] = False
    loss, grad = gradient(name, reduction, values, one_empty, labels)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


@every_loss
@every_reduction
def test_downhill_every_decision_gets_right(name: str, reduction: Reduction) -> None:
    """Twenty steps on the values themselves; with swapped labels every decision gets wrong."""
    row = LOSSES[name]
    if row.scores is None:
        pytest.skip("decides nothing")
    values, mask, labels = batch(name)
    if name == "ipvrm_early":  # a single token weighs nothing
        mask[2, 1] = True
    labels = labels.round()
    for given, share in ((labels, 1.0), (1 - labels, 0.0)):
        leaf = torch.zeros_like(values)
        swapped = row.view == "pair" and share == 0.0
        for _ in range(20):
            turn = leaf.view(4, 2, WIDTH).flip(1).reshape(8, WIDTH) if swapped else leaf
            turned = mask.view(4, 2, WIDTH).flip(1).reshape(8, WIDTH) if swapped else mask
            grad = gradient(name, reduction, turn, turned, given)[1]
            grad = grad.view(4, 2, WIDTH).flip(1).reshape(8, WIDTH) if swapped else grad
            leaf = leaf - grad
        assert losses.hits(row, leaf, mask, labels, BETA).double().mean() == share


def test_sft_raises_the_log_probability() -> None:
    values, mask, labels = batch("sft")
    _, grad = gradient("sft", "token", values, mask, labels)
    close(grad[mask], torch.full_like(grad[mask], -1 / int(mask.sum())))


# --- what a row means, in numbers -------------------------------------------------------------------------------------


def terms(name: str, values: Tensor, labels: Tensor, beta: float, margin: float) -> Tensor:
    return LOSSES[name].terms(values, torch.ones_like(values, dtype=torch.bool), labels, beta, margin, "sequence")


def test_rows_are_the_equations_they_name() -> None:
    # beta 2; row 0 right, row 1 wrong; sums .6 and -.2, means .3 and -.1, v_bar .4 .6 and .8 -.2
    values, labels = tensor([[0.2, 0.4], [0.4, -0.5]]), tensor([1.0, 0.0])
    softplus = torch.nn.functional.softplus

    def near(got: Tensor, *expected: float) -> None:
        torch.testing.assert_close(got, softplus(tensor(expected)).reshape(len(got), -1).mean(1), rtol=1e-6, atol=1e-6)

    near(terms("implicit_prm", values, labels, 2, 9), -1.2, -0.2)
    near(terms("dpo_rm", values, labels, 2, 9), -(1.2 + 0.2))  # the margin is not its own
    near(terms("q_rm", values, labels, 2, 0.5), 0.5 - (0.6 + 0.1))
    near(terms("ipvrm", values, labels, 2, 0.5), 0.5 - 0.4, 0.5 - 0.6, 0.5 + 0.8, 0.5 - 0.1)
    near(terms("ipvrm_early", values, labels, 2, 0.5), 0.5 - 0.4, 0.5 + 0.8)  # weights 1/2, 0
    near(terms("step_bce", values, labels.expand(2, 2), 9, 9), -0.2, 0.4, -0.4, -0.5)
    assert torch.equal(terms("value_bce", values, values.abs(), 9, 9), terms("step_bce", values, values.abs(), 9, 9))


def test_denominators() -> None:
    lengths = [3, 0, 5, 2]
    assert losses.denominator(LOSSES["ipvrm"], lengths, "sequence") == 4  # empty ones are counted
    assert losses.denominator(LOSSES["ipvrm"], lengths, "token") == 10
    assert losses.denominator(LOSSES["implicit_prm"], lengths, "token") == 4
    assert losses.denominator(LOSSES["dpo_rm"], lengths, "token") == 2
    assert losses.denominator(LOSSES["q_rm"], lengths, "sequence") == 2
    assert losses.denominator(LOSSES["sft"], [], "token") == 1


# --- diagnostics ------------------------------------------------------------------------------------------------------


def test_hits() -> None:
    values = tensor([[1.0, -3.0], [1.0, 5.0], [2.0, -2.0], [-1.0, 9.0]])
    mask = tensor([[True, True], [True, False], [True, True], [True, False]])
    labels = tensor([0.0, 1.0, 1.0, 1.0])  # sums -2, 1, 0 (a tie is a miss), -1
    assert losses.hits(LOSSES["implicit_prm"], values, mask, labels, 0.1).tolist() == [True, True, False, False]
    assert losses.hits(LOSSES["dpo_rm"], values, mask, labels, 0.1).tolist() == [False, True]
    # the longer of the first pair has the larger sum (3 > 2.5) and the smaller mean (1.5 < 2.5); the second is a tie
    longer = tensor([[3.0, 0.0], [2.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    ragged = tensor([[True, True], [True, False], [True, True], [True, True]])
    assert losses.hits(LOSSES["q_rm"], longer, ragged, labels, 1.0).tolist() == [False, False]
    assert losses.hits(LOSSES["ipvrm"], values, mask, labels, 10.0).tolist() == [True, True, False, False]
    step_labels = tensor([[1.0, 0.0], [0.0, 0.5], [1.0, 0.2], [0.0, 1.0]])
    steps = losses.hits(LOSSES["value_bce"], values, mask, step_labels, 1.0)
    assert steps.tolist() == [True, True, False, True, True, True]  # the masked ones have no decision
    assert losses.hits(LOSSES["sft"], values, mask, labels, 1.0).numel() == 0
