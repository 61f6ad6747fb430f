"""objectives.py: every equation worked out by hand once, then what must hold between them. Shapes are checked here."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from checked_shapes import checked
from torch import Tensor, tensor
from torch.nn.functional import binary_cross_entropy

from prmbench import objectives as unchecked

objectives = checked("prmbench.objectives")

NAN = float("nan")  # what stands outside the mask must not matter
RATIO = tensor([[0.1, -0.2, 0.3], [0.4, 0.2, NAN]])
MASK = tensor([[True, True, True], [True, True, False]])
OUTCOME = tensor([1.0, 0.0])


def v_bar(beta: float = 2.0, ratio: Tensor = RATIO, mask: Tensor = MASK) -> Tensor:
    values = objectives.prefix_values(objectives.token_rewards(ratio, beta), mask)
    return objectives.length_normalized(values, mask)


def near(got: Tensor, expected: list[float] | list[list[float]] | Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance)


# --- by hand; beta = 2 throughout, so token rewards are .2 -.4 .6 and .8 .4 -------------------------------------------


def test_the_annotations_are_checked_here_and_cost_nothing_elsewhere() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        objectives.implicit_prm_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(jaxtyping.TypeCheckError):
        objectives.masked_sum(RATIO, MASK.float())
    assert not hasattr(unchecked, "Float")


def test_eq01_sequence_reward() -> None:
    near(objectives.sequence_rewards(RATIO, MASK, 2.0), [0.4, 1.2])  # 2 * (.1 - .2 + .3), 2 * (.4 + .2)


def test_eq02_dpo() -> None:
    # chosen .4, rejected 1.2: softplus(-(.4 - 1.2)) = ln(1 + e^.8)
    near(objectives.bradley_terry_loss(tensor([0.4]), tensor([1.2])), [1.17110067])


def test_eq03_token_rewards() -> None:
    near(objectives.token_rewards(RATIO, 2.0)[MASK], [0.2, -0.4, 0.6, 0.8, 0.4])
    # log pi_phi - log pi_ref: ln .5 - ln .25 = ln 2; ln .1 - ln .2 = -ln 2
    near(objectives.log_ratios(tensor([0.5, 0.1]).log(), tensor([0.25, 0.2]).log()), [0.69314718, -0.69314718])


def test_eq04_implicit_prm() -> None:
    # right at r = .4: ln(1 + e^-.4); wrong at r = 1.2: ln(1 + e^1.2)
    near(objectives.implicit_prm_loss(tensor([0.4, 1.2]), OUTCOME), [0.51301525, 1.46328247])


def test_eq05_prefix_values_and_their_mean() -> None:
    values = objectives.prefix_values(objectives.token_rewards(RATIO, 2.0), MASK)
    near(values, [[0.2, -0.2, 0.4], [0.8, 1.2, 1.2]])
    near(objectives.length_normalized(values, MASK)[MASK], [0.2, -0.1, 0.4 / 3, 0.8, 0.6])


def test_eq05_counts_tokens_of_the_mask_only() -> None:
    late = torch.cat([torch.full((2, 2), NAN), RATIO], dim=1)
    mask = torch.cat([torch.zeros(2, 2, dtype=torch.bool), MASK], dim=1)
    near(v_bar(ratio=late, mask=mask)[mask], [0.2, -0.1, 0.4 / 3, 0.8, 0.6])


def test_eq09_ipvrm_margin() -> None:
    # m = .5. Right: softplus(m - v) at v = .2, -.1, .1333 = .85435524, 1.03748795, .89319276, mean .92834532.
    # Wrong: softplus(v + m) at .8, .6 = 1.54100845, 1.38733533, mean 1.46417189.
    near(objectives.ipvrm_loss(v_bar(), MASK, OUTCOME, 0.5), [0.92834532, 1.46417189])
    near(objectives.ipvrm_loss(v_bar(), MASK, OUTCOME, 0.5, reduction="token"), [2.78503596, 2.92834378])


def test_eq15_online() -> None:
    # mu = 3/4, V(x) = ln 3: the right one's margin falls to m - ln 3, the wrong one's rises to m + ln 3;
    # means .41294368 and 2.39469903, weighted 1 - mu = 1/4 and mu = 3/4.
    mu = tensor([0.75, 0.75])
    near(objectives.difficulty_offset(mu), [1.09861229, 1.09861229])
    near(objectives.rarity_weight(OUTCOME, mu), [0.25, 0.75])
    terms = objectives.ipvrm_loss(v_bar(), MASK, OUTCOME, 0.5, offset=objectives.difficulty_offset(mu))
    near(terms, [0.41294368, 2.39469903])
    near(objectives.rarity_weight(OUTCOME, mu) * terms, [0.10323592, 1.79602427])


def test_eq15_weights_of_the_release() -> None:
    group = tensor([7, 3, 7, 7, 3, 7])  # 7: one right of four. 3: both right
    outcome = tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    mu = objectives.group_mean(outcome, group)
    near(mu, [0.25, 1, 0.25, 0.25, 1, 0.25])
    weight = objectives.rarity_weight(outcome, mu)
    near(weight, [0.75, 0, 0.25, 0.25, 0, 0.25])
    # of four weights that add up to 1.5: times 4 / 1.5; weights that are all 0 become 1
    near(objectives.normalized_weight(weight, group), [2, 1, 2 / 3, 2 / 3, 1, 2 / 3])


def test_eq15_offset_is_finite_at_the_ends() -> None:
    # logit(1e-6) = -13.815510. The float32 nearest to 1 - 1e-6 is 1 - 17 / 2^24, whose logit is 13.80231.
    offset = objectives.difficulty_offset(tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    near(offset[:2], [-13.815510, 0.0])
    assert float(offset[2]) == pytest.approx(13.80231, abs=1e-4)  # 13.81551 in float64: not what the release has


def test_eq16_eq17_late() -> None:
    near(objectives.late_weights(MASK), [[1 / 3, 2 / 3, 1], [1 / 2, 1, 0]])
    # (1 a + 2 b + 3 c) / 6 and (1 a + 2 b) / 3 of the terms of Eq. 9 above
    got = objectives.ipvrm_loss(v_bar(), MASK, OUTCOME, 0.5, prefix_weight=objectives.late_weights(MASK))
    near(got, [0.93481824, 1.43855970])


def test_eq16_eq18_early() -> None:
    near(objectives.early_weights(MASK), [[2 / 3, 1 / 3, 0], [1 / 2, 0, 0]])
    got = objectives.ipvrm_loss(v_bar(), MASK, OUTCOME, 0.5, prefix_weight=objectives.early_weights(MASK))
    near(got, [0.91539948, 1.54100845])  # (2 a + 1 b) / 3; a


def test_eq18_one_token_has_loss_0_and_a_gradient_of_0() -> None:
    ratio = tensor([[0.7, NAN]], requires_grad=True)
    mask = tensor([[True, False]])
    weight = objectives.early_weights(mask)
    terms = objectives.ipvrm_loss(v_bar(ratio=ratio, mask=mask), mask, tensor([1.0]), prefix_weight=weight)
    near(terms, [0.0])
    terms.sum().backward()
    near(ratio.grad[mask], [0.0])


def test_q_rm_margin() -> None:
    # beta .2, means 3 and -1, margin 2: softplus(2 - .2 * 4) = ln(1 + e^1.2)
    means = objectives.masked_mean(tensor([[2.0, 4.0], [-1.0, NAN]]), tensor([[True, True], [True, False]]))
    near(means, [3.0, -1.0])
    near(objectives.bradley_terry_loss(0.2 * means[:1], 0.2 * means[1:], 2.0), [1.46328247])


def test_step_bce_hard_and_soft_with_a_gap() -> None:
    logits = tensor([[2.0, NAN, -1.0]])
    labels = tensor([[1.0, NAN, 0.25]])  # the middle step has no label
    mask = tensor([[True, False, True]])
    # softplus(-2) = .12692801; .25 softplus(1) + .75 softplus(-1) = .56326169
    near(objectives.step_bce_loss(logits, labels, mask), [0.69018970])
    near(objectives.step_bce_loss(logits, labels, mask, "sequence"), [0.34509485])


def test_log_odds_make_it_a_cross_entropy_of_two_classes() -> None:
    torch.manual_seed(0)
    classes, labels = torch.randn(3, 4, 2), torch.randint(2, (3, 4))
    got = objectives.step_bce_loss(objectives.log_odds(classes), labels.float(), torch.ones(3, 4, dtype=torch.bool))
    expected = torch.nn.functional.cross_entropy(classes.flatten(0, 1), labels.flatten(), reduction="none")
    near(got, expected.view(3, 4).sum(1))


def test_sft() -> None:
    logp = tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, NAN]])
    near(objectives.sft_loss(logp, MASK), [6.0, 9.0])
    near(objectives.sft_loss(logp, MASK, "sequence"), [2.0, 4.5])


def test_endo_rewards() -> None:
    # r_1 = -1 + 5 - .5 * 4, r_2 = -2 + 4 - .5 * 3
    near(objectives.endo_rewards(tensor([-1.0, -2.0]), tensor([5.0, 4.0, 3.0]), 0.5), [2.0, 0.5])


# --- between equations ----------------------------------------------------------------------------------------------


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios, mask, outcomes: six ragged rows, one token and none among them."""
    torch.manual_seed(3)
    lengths = tensor([9, 1, 4, 7, 0, 2])
    return torch.randn(6, 9, dtype=torch.float64), torch.arange(9) < lengths[:, None], (lengths % 2).double()


def test_prefix_values_telescope(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    ratio, mask, _ = batch
    values = objectives.prefix_values(ratio, mask)
    near(values.diff(dim=-1)[mask[:, 1:]], ratio[:, 1:][mask[:, 1:]])
    near(values[:, -1], objectives.sequence_rewards(ratio, mask, 1.0))


def test_eq09_without_margin_is_bce_on_v_bar(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    ratio, mask, outcome = batch
    v = v_bar(ratio=ratio, mask=mask)
    got = objectives.ipvrm_loss(v, mask, outcome, 0.0)
    for row in range(6):
        p = v[row][mask[row]].sigmoid()
        expected = binary_cross_entropy(p, outcome[row].expand_as(p)) if len(p) else tensor(0.0)
        near(got[row], expected)


def test_eq09_of_one_token_is_eq04(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    ratio, mask, outcome = batch
    one, first = mask[:, :1] | True, ratio[:, :1]
    got = objectives.ipvrm_loss(v_bar(ratio=first, mask=one), one, outcome, 0.0)
    near(got, objectives.implicit_prm_loss(objectives.sequence_rewards(first, one, 2.0), outcome))


def test_eq15_at_one_half_is_half_of_eq09(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    ratio, mask, outcome = batch
    half = torch.full((6,), 0.5)
    v = v_bar(ratio=ratio, mask=mask)
    online = objectives.ipvrm_loss(v, mask, outcome, 1.5, offset=objectives.difficulty_offset(half).double())
    near(objectives.rarity_weight(outcome, half.double()) * online, objectives.ipvrm_loss(v, mask, outcome, 1.5) / 2)


def test_eq17_and_eq18_add_up_to_one(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, mask, _ = batch
    near(objectives.late_weights(mask) + objectives.early_weights(mask), mask.float())


def test_equal_weights_are_no_weights(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    ratio, mask, outcome = batch
    v = v_bar(ratio=ratio, mask=mask)
    for reduction in ("sequence", "token"):
        even = torch.full_like(ratio, 0.3)
        near(
            objectives.ipvrm_loss(v, mask, outcome, prefix_weight=even, reduction=reduction),
            objectives.ipvrm_loss(v, mask, outcome, reduction=reduction),
        )


def test_bradley_terry_of_swapped_pairs_differs_by_the_gap(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    one, two = batch[0][:, 0], batch[0][:, 1]
    near(objectives.bradley_terry_loss(one, two) - objectives.bradley_terry_loss(two, one), two - one)
