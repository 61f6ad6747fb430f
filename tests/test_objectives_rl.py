"""Advantages and policy losses: every equation worked out by hand once, then what must hold between them."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from checked_shapes import checked
from torch import Tensor, tensor

objectives = checked("prmbench.objectives")

NAN = float("nan")  # what stands outside the mask must not matter
MASK = tensor([[True, True, True], [True, True, False]])
RATIO = tensor([[1.5, 0.5, 1.1], [1.5, 0.5, NAN]])
OLD = tensor([[0.5, 0.2, 0.4], [0.3, 0.6, NAN]]).log()
CREDIT = tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, NAN]])
NEW = OLD + RATIO.log()


def near(got: Tensor, expected: object, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance)


def test_shapes_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        objectives.gae(CREDIT, MASK[:1])
    with pytest.raises(jaxtyping.TypeCheckError):
        objectives.token_surrogate(NEW, OLD[:, :2], CREDIT, MASK, 0.2, 0.28)


# --- by hand: moments -----------------------------------------------------------------------------------------------


def test_eq24_sigma_from_sums() -> None:
    # V = .2 -.2 .4 | .8 1.2: five, sum 2.4, squares .04 + .04 + .16 + .64 + 1.44 = 2.32.
    # Mean .48; 2.32 - 2.4 * .48 = 1.168, over five .2336, over four .292.
    sums = objectives.moment_sums(tensor([[0.2, -0.2, 0.4], [0.8, 1.2, NAN]]), MASK)
    assert sums.dtype == torch.float64
    near(sums, [5, 2.4, 2.32])
    mean, std = objectives.mean_and_std(sums)
    near(torch.stack((mean, std)), [0.48, 0.48332184])
    near(objectives.mean_and_std(sums, unbiased=True)[1], 0.54037024)


@pytest.mark.parametrize("unbiased", [False, True])
def test_moments_of_one_and_of_nothing(unbiased: bool) -> None:
    one = objectives.moment_sums(tensor([3.0, NAN]), tensor([True, False]))
    assert [float(x) for x in objectives.mean_and_std(one, unbiased)] == [3.0, 0.0]
    assert [float(x) for x in objectives.mean_and_std(one * 0, unbiased)] == [0.0, 0.0]


def test_eq24_eq25_scaled_td() -> None:
    near(objectives.scaled_td(tensor([2.0, -1.0]), tensor(3.0), eps=1.0), [0.5, -0.25])


def test_sigma_zero_gives_zero_and_not_nan() -> None:
    got = objectives.scaled_td(tensor([0.0, -0.0, 7.0]), tensor(0.0, dtype=torch.float64))
    assert torch.equal(got, torch.zeros(3))
    assert got.dtype == torch.float32


def test_whitened() -> None:
    # minus 3, over sqrt(2^2 + 5) = 3
    got = objectives.whitened(tensor([[1.0, 3.0], [6.0, NAN]]), MASK[:, 1:], tensor(3.0), tensor(2.0), eps=5.0)
    near(got, [[-2 / 3, 0], [1, 0]])


# --- by hand: advantages ----------------------------------------------------------------------------------------------


def test_eq10_td() -> None:
    # 10 * (ln .5 - ln .25) = 10 ln 2; 10 * (ln .1 - ln .2) = -10 ln 2
    got = objectives.td_advantages(tensor([0.5, 0.1]).log(), tensor([0.25, 0.2]).log(), 10.0)
    near(got, [6.9314718, -6.9314718])


def test_the_release_has_no_td_at_the_end() -> None:
    mask = torch.cat([MASK, tensor([[False, False, False]])])
    ends = tensor([[False, False, True], [False, True, False], [False, False, False]])
    assert torch.equal(objectives.terminal(mask), ends)
    td = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    near(objectives.without_terminal(td, mask), [[1, 2, 0], [4, 0, 6], [7, 8, 9]])


def test_eq26_eq27_group_standardized() -> None:
    # Group 5: 2 4 6 | 0 8, mean 4, variance (4 + 0 + 4 + 16 + 16) / 5 = 8. Group 2, between its rows: all alike.
    td = tensor([[2.0, 4.0, 6.0], [0.3, 0.3, 0.3], [0.0, 8.0, NAN], [NAN, NAN, NAN]])
    mask = torch.cat([MASK[:1], MASK[:1], MASK[1:], MASK[:1] & False])
    got = objectives.group_standardized(td, mask, tensor([5, 2, 5, 9]))
    half = 0.70710678
    near(got, [[-half, 0, half], [0, 0, 0], [-2 * half, 2 * half, 0], [0, 0, 0]])
    near(objectives.group_standardized(td[[0, 2]], MASK, tensor([5, 5]), eps=8**0.5)[0], [-half / 2, 0, half / 2])


def test_eq08_eq28_gae() -> None:
    # gamma * lam = 1/4: 4, 2 + 4/4, 1 + 3/4; 5, 3 + 5/4
    td = tensor([[1.0, 2.0, 4.0], [3.0, 5.0, NAN]])
    near(objectives.gae(td, MASK, 0.5, 0.5), [[1.75, 3, 4], [4.25, 5, 0]])
    near(objectives.gae(td, MASK, gamma=0.5), [[3, 4, 4], [5.5, 5, 0]])
    near(objectives.gae(td, tensor([[True, False, True], [False, True, False]]), lam=0.5), [[3, 0, 4], [0, 5, 0]])


def test_eq13_outcome_term() -> None:
    # One right of four: mu 1/4, s = sqrt(3/16): (1 - 1/4) / s = sqrt 3, -1/4 / s = -1 / sqrt 3. Group 3: all right
    outcome, group = tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]), tensor([7, 3, 7, 7, 3, 7])
    near(objectives.outcome_advantages(outcome, group), [-0.57735027, 0, 1.73205081, -0.57735027, 0, -0.57735027])
    near(objectives.outcome_advantages(outcome[:2], group[:2]), [0, 0])  # groups of one
    near(objectives.outcome_advantages(outcome[[2, 3]], group[[2, 3]], eps=0.5), [0.5, -0.5])


def test_rloo_of_process_rewards() -> None:
    # Means 2 and 5, of both 3.5; n / (n - 1) = 2: -5 -3 -1 | 1 5, summed from the end. The other prompt has one rollout
    rewards = tensor([[1.0, 2.0, 3.0], [7.0, 8.0, 9.0], [4.0, 6.0, NAN]])
    mask = torch.cat([MASK[:1], MASK[:1], MASK[1:]])
    near(objectives.rloo_returns(rewards, mask, tensor([1, 0, 1])), [[-9, -4, -1], [0, 0, 0], [6, 5, 0]])


def test_rloo_of_the_outcome() -> None:
    # Three rollouts, one right: 1 - 0 of the two others, 0 - 1/2 of them; every token before the end holds it
    mask = torch.cat([MASK, MASK[:1]])
    rewards = tensor([[NAN, NAN, 1.0], [NAN, 0.0, NAN], [NAN, NAN, 0.0]])
    got = objectives.rloo_returns(rewards, objectives.terminal(mask), tensor([4, 4, 4]))
    near(got, [[1, 1, 1], [-0.5, -0.5, 0], [-0.5, -0.5, -0.5]])


def test_masked_step_advantages() -> None:
    # So far 1 3 6 | 4 10: means 2.5, 6.5 and, of the one that still runs, 6. The other prompt has one rollout
    rewards = tensor([[1.0, 2.0, 3.0], [8.0, 8.0, 8.0], [4.0, 6.0, NAN]])
    mask = torch.cat([MASK[:1], MASK[:1], MASK[1:]])
    got = objectives.masked_step_advantages(rewards, mask, tensor([1, 0, 1]))
    near(got, [[-1.5, -3.5, 0], [0, 0, 0], [1.5, 3.5, 0]])


def test_importance_weights() -> None:
    # .5 / .25 = 2 is cut at 1.5; .2 / .4
    near(objectives.importance_weights(tensor([0.5, 0.2]).log(), tensor([0.25, 0.4]).log(), 1.5), [1.5, 0.5])
    near(objectives.importance_weights(tensor([0.9]).log(), tensor([0.3]).log()), [2.0])


# --- by hand: losses. rho = 1.5 .5 1.1 | 1.5 .5, A = 2 2 2 | -1 -1 --------------------------------------------------


def test_eq12_token_branch() -> None:
    # min(3, 1.28 * 2) + min(1, .8 * 2) + 2.2 = 5.76 of three; min(-1.5, -1.28) + min(-.5, -.8) = -2.3 of two
    near(objectives.token_surrogate(NEW, OLD, CREDIT, MASK, 0.2, 0.28), [-1.92, 1.15])
    near(objectives.token_surrogate(NEW, OLD, CREDIT, MASK, 0.2, 0.28, reduction="token"), [-5.76, 2.3])


def test_eq12_dual_clip() -> None:
    # at most 1.2 * 1 where A < 0: 1.2 + .8; where A > 0 nothing changes
    near(objectives.token_surrogate(NEW, OLD, CREDIT, MASK, 0.2, 0.28, dual_clip=1.2), [-1.92, 1.0])


def test_eq12_importance_weights() -> None:
    # -(2 * 2.56 + .5 * 1 + 2.2) / 3, (1 * 1.5 + 0 * .8) / 2: still of three and of two
    weight = tensor([[2.0, 0.5, 1.0], [1.0, 0.0, NAN]])
    near(objectives.token_surrogate(NEW, OLD, CREDIT, MASK, 0.2, 0.28, weight=weight), [-7.82 / 3, 0.75])


def test_eq12_clipped_terms() -> None:
    got = objectives.clipped(NEW, OLD, CREDIT, MASK, 0.2, 0.28)
    assert got.tolist() == [[True, False, False], [False, True, False]]
    dual = objectives.clipped(NEW, OLD, CREDIT, MASK, 0.2, 0.28, 1.2)
    assert dual.tolist() == [[True, False, False], [True, True, False]]


def candidates() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New and old log-probabilities, TD, kept: two candidates at most; the last position of row 2 is no token."""
    old = tensor([[[0.6, 0.3], [0.5, 0.4], [0.3, 0.2]], [[0.8, 0.1], [0.2, 0.7], [0.5, 0.5]]]).log()
    ratio = tensor([[[1.5, 0.5], [1.0, NAN], [NAN, NAN]], [[1.0, 1.0], [2.0, 1.2], [1.0, 1.0]]])
    td = tensor([[[2.0, -1.0], [3.0, NAN], [NAN, NAN]], [[1.0, -2.0], [-1.0, 1.0], [9.0, 9.0]]])
    kept = tensor([[[True, True], [True, False], [False, False]], [[True, True], [True, True], [True, True]]])
    return old + ratio.log(), old, td, kept


def test_eq11_candidate_branch() -> None:
    # Row 1: .6 * min(3, 2.56) + .3 * min(-.5, -.8) = 1.296, .5 * 3, no candidate: 2.796 of three tokens.
    # Row 2: .8 - .2, .2 * min(-2, -1.28) + .7 * min(1.2, 1.2) = .44: 1.04 of two tokens.
    branch = (*candidates(), 0.2, 0.28)
    near(objectives.candidate_surrogate(*branch, mask=MASK), [-0.932, -0.52])
    near(objectives.candidate_surrogate(*branch, normalize="mass", mask=MASK), [-2.796, -1.04])
    near(objectives.candidate_surrogate(*branch, dual_clip=1.2, mask=MASK), [-0.932, -0.6])  # .2 * -1.2 for .2 * -2


def test_eq11_without_a_mask_every_position_is_a_token() -> None:
    new, old, td, kept = (x[1:] for x in candidates())
    near(objectives.candidate_surrogate(new, old, td, kept, 0.2, 0.28), [-(1.04 + 9) / 3])


def test_eq11_mass() -> None:
    _, old, _, kept = candidates()
    near(objectives.candidate_mass(old, kept & MASK[..., None]), [1.4, 1.8])


def test_eq14() -> None:
    near(objectives.distrl_loss(tensor([1.0, 2.0]), tensor([10.0, -20.0]), 0.1), [2.0, 0.0])


# --- between equations ----------------------------------------------------------------------------------------------


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Eight ragged rows of three prompts, one token and none among them; four candidates a token."""
    torch.manual_seed(3)
    lengths, b, t, k = tensor([9, 1, 4, 7, 0, 2, 9, 5]), 8, 9, 4
    mask = torch.arange(t) < lengths[:, None]
    old = torch.randn(b, t, 12, dtype=torch.float64).log_softmax(-1)[..., :k]
    return {
        "mask": mask,
        "group": tensor([4, 4, 11, 11, 4, 11, 4, 0]),
        "outcome": tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64),
        "old": old,
        "new": old + 0.4 * torch.randn(b, t, k, dtype=torch.float64),
        "td": torch.randn(b, t, k, dtype=torch.float64),
        "kept": (torch.rand(b, t, k) < 0.6) & mask[..., None],
    }


def per_sequence(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything that has one row a sequence, of one batch."""
    td, mask, group = x["td"][..., 0], x["mask"], x["group"]
    token = (x["new"][..., 0], x["old"][..., 0], td, mask)
    candidate = (x["new"], x["old"], x["td"], x["kept"])
    return {
        "terminal": objectives.terminal(mask),
        "without_terminal": objectives.without_terminal(td, mask).masked_fill(~mask, 0),
        "group_standardized": objectives.group_standardized(td, mask, group),
        "gae": objectives.gae(td, mask, 0.9, 0.8),
        "rloo": objectives.rloo_returns(td, mask, group),
        "masked_step": objectives.masked_step_advantages(td, mask, group),
        "outcome": objectives.outcome_advantages(x["outcome"], group),
        "token": objectives.token_surrogate(*token, 0.2, 0.28, 1.3),
        "token_sum": objectives.token_surrogate(*token, 0.2, 0.28, 1.3, "token", x["kept"][..., 0].double()),
        "candidates": objectives.candidate_surrogate(*candidate, 0.2, 0.28, 1.3, mask=mask),
        "candidate_sum": objectives.candidate_surrogate(*candidate, 0.2, 0.28, 1.3, "mass", mask),
        "mass": objectives.candidate_mass(x["old"], x["kept"]),
        "clipped": objectives.clipped(*token, 0.2, 0.28, 1.3),
    }


def test_order_of_rows_and_names_of_groups_do_not_matter(batch: dict[str, Tensor]) -> None:
    before = per_sequence(batch)
    order = tensor([5, 2, 7, 0, 6, 1, 4, 3])
    after = per_sequence({name: x[order] for name, x in batch.items()} | {"group": 100 - 3 * batch["group"][order]})
    for name, x in before.items():
        torch.testing.assert_close(after[name], x[order], msg=name)


def test_padding_does_not_matter(batch: dict[str, Tensor]) -> None:
    before = per_sequence(batch)
    longer = {
        name: torch.cat([x, torch.full_like(x[:, :2], NAN)], 1)
        for name, x in batch.items()
        if x.is_floating_point() and x.ndim > 1
    }
    longer |= {name: torch.cat([batch[name], batch[name][:, :2] & False], 1) for name in ("mask", "kept")}
    after = per_sequence(batch | longer)
    for name, x in before.items():
        got = after[name] if x.ndim == 1 else after[name][:, : x.shape[1]]
        torch.testing.assert_close(got, x, msg=name)


def test_one_batch_or_four_give_the_same_sums(batch: dict[str, Tensor]) -> None:
    whole = per_sequence(batch)
    parts = [per_sequence({name: x[at] for name, x in batch.items()}) for at in ([0, 3], [1, 7], [2, 6, 5], [4])]
    for name in ("token", "token_sum", "candidates", "candidate_sum", "mass"):
        near(torch.stack([part[name].sum() for part in parts]).sum(), whole[name].sum())
    values = batch["td"][..., 0]
    split = [objectives.moment_sums(values[at], batch["mask"][at]) for at in (slice(0, 3), slice(3, 8))]
    near(split[0] + split[1], objectives.moment_sums(values, batch["mask"]))
    mean, std = objectives.mean_and_std(split[0] + split[1], unbiased=True)
    near(mean, values[batch["mask"]].mean())
    near(std, values[batch["mask"]].std())


def test_groups_can_be_dealt_with_one_by_one(batch: dict[str, Tensor]) -> None:
    whole = per_sequence(batch)
    for name in (4, 11, 0):
        at = batch["group"] == name
        alone = per_sequence({key: x[at] for key, x in batch.items()})
        for key in ("group_standardized", "rloo", "masked_step", "outcome"):
            near(alone[key], whole[key][at])


def test_eq06_td_is_the_difference_of_prefix_values(batch: dict[str, Tensor]) -> None:
    new, old, mask = batch["new"][..., 0], batch["old"][..., 0], batch["mask"]
    values = objectives.prefix_values(objectives.token_rewards(objectives.log_ratios(new, old), 10.0), mask)
    near(objectives.td_advantages(new, old, 10.0)[mask], values.diff(dim=-1, prepend=torch.zeros(8, 1).double())[mask])


def test_eq08_at_its_ends(batch: dict[str, Tensor]) -> None:
    td, mask = batch["td"][..., 0], batch["mask"]
    kept = td.masked_fill(~mask, 0)
    near(objectives.gae(td, mask), kept.flip(-1).cumsum(-1).flip(-1) * mask)
    near(objectives.gae(td, mask, lam=0.0), kept)
    near(objectives.gae(td, mask, gamma=0.0), kept)


def test_sigma_cancels_in_the_gae(batch: dict[str, Tensor]) -> None:
    def credit(td: Tensor) -> Tensor:
        return objectives.gae(objectives.group_standardized(td, batch["mask"], batch["group"]), batch["mask"])

    td = batch["td"][..., 0]
    sigma = torch.tensor(4.2, dtype=torch.float64)
    assert not torch.allclose(td, objectives.scaled_td(td, sigma))
    near(credit(objectives.scaled_td(td, sigma)), credit(td))


def test_eq27_has_mean_0_and_variance_1_in_a_group(batch: dict[str, Tensor]) -> None:
    got = objectives.group_standardized(batch["td"][..., 0], batch["mask"], batch["group"])
    for name in (4, 11, 0):
        tokens = got[batch["group"] == name][batch["mask"][batch["group"] == name]]
        near(tokens.mean(), 0.0)
        near(tokens.std(unbiased=False), 1.0)


def test_a_reward_model_equal_to_the_policy_credits_nothing(batch: dict[str, Tensor]) -> None:
    td = objectives.td_advantages(batch["old"], batch["old"], 10.0)
    sampled, mask = td[..., 0], batch["mask"]
    _, sigma = objectives.mean_and_std(objectives.moment_sums(objectives.prefix_values(sampled, mask), mask))
    assert torch.equal(objectives.scaled_td(td, sigma), torch.zeros_like(td))
    assert torch.equal(objectives.group_standardized(sampled, mask, batch["group"]), torch.zeros_like(sampled))


def test_control_swapped_outcomes_turn_the_outcome_term_around(batch: dict[str, Tensor]) -> None:
    got = objectives.outcome_advantages(batch["outcome"], batch["group"])
    assert got.abs().max() > 1
    near(objectives.outcome_advantages(1 - batch["outcome"], batch["group"]), -got)


def test_eq11_at_ratio_one_is_the_mean_advantage_under_the_old_policy(batch: dict[str, Tensor]) -> None:
    old, td, kept, mask = (batch[name] for name in ("old", "td", "kept", "mask"))
    got = objectives.candidate_surrogate(old, old, td, kept, 0.2, 0.28, mask=mask)
    for row in range(8):
        terms = [float(old[row, t, c].exp() * td[row, t, c]) for t, c in kept[row].nonzero().tolist()]
        assert float(got[row]) == pytest.approx(-sum(terms) / max(int(mask[row].sum()), 1))


@pytest.mark.parametrize("dual", [None, 1.3])
def test_eq11_of_the_sampled_token_alone_is_eq12_under_the_old_policy(
    batch: dict[str, Tensor], dual: float | None
) -> None:
    new, old, td, mask = (*(batch[name][..., :1] for name in ("new", "old", "td")), batch["mask"])
    one = objectives.candidate_surrogate(new, old, td, mask[..., None], 0.2, 0.28, dual, mask=mask)
    token = (new[..., 0], old[..., 0], td[..., 0], mask, 0.2, 0.28, dual)
    near(one, objectives.token_surrogate(*token, weight=old[..., 0].exp()))


def test_control_alpha_zero_leaves_exactly_the_token_branch(batch: dict[str, Tensor]) -> None:
    token = per_sequence(batch)["token"]
    assert torch.equal(objectives.distrl_loss(token, torch.full_like(token, NAN), 0.0), token)


# --- gradients --------------------------------------------------------------------------------------------------------


Branch = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor, Tensor]]


def token_branch(x: dict[str, Tensor], new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Terms, which tokens are clipped, which count."""
    parts = (new[..., 0], x["old"][..., 0], x["td"][..., 0], x["mask"], 0.2, 0.28, 1.3)
    counted = torch.zeros_like(x["kept"])
    counted[..., 0] = x["mask"]
    held = torch.zeros_like(counted)
    held[..., 0] = objectives.clipped(*parts)
    return objectives.token_surrogate(*parts), held, counted


def candidate_branch(x: dict[str, Tensor], new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the candidates; those off the mask are marked as kept, and must not count."""
    parts = (new, x["old"], x["td"], x["kept"] | ~x["mask"][..., None], 0.2, 0.28, 1.3)
    return objectives.candidate_surrogate(*parts, mask=x["mask"]), objectives.clipped(*parts), x["kept"]


@pytest.mark.parametrize("branch", [token_branch, candidate_branch])
def test_the_gradient_follows_the_advantage_and_ends_where_a_term_is_clipped(
    batch: dict[str, Tensor], branch: Branch
) -> None:
    kept = batch["kept"] & batch["mask"][..., None]
    off = ~(batch["mask"][..., None] & (kept | (torch.arange(4) == 0)))
    x = batch | {name: batch[name].masked_fill(off, NAN) for name in ("new", "old", "td")}
    new = x["new"].requires_grad_()
    terms, held, counted = branch(x, new)
    terms.sum().backward()
    moves = counted & ~held
    assert held.any()
    assert torch.equal(new.grad[~moves], torch.zeros_like(new.grad[~moves])), "NaN off the mask, or a clipped token"
    assert torch.equal(new.grad[moves].sign(), -x["td"][moves].sign())


@pytest.mark.parametrize("candidates_too", [False, True])
def test_one_step_raises_what_was_good_and_lowers_what_was_bad(candidates_too: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, requires_grad=True)
    sampled = tensor([[0, 1, 2], [3, 4, 0]])
    old = logits.detach().log_softmax(-1)
    credit = tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, NAN]])
    new = logits.log_softmax(-1)
    if candidates_too:
        kept = torch.zeros_like(old, dtype=torch.bool).scatter(2, sampled[..., None], MASK[..., None])
        td = credit[..., None].expand_as(old)
        loss = objectives.candidate_surrogate(new, old, td, kept, 0.2, 0.28, mask=MASK)
    else:
        at = sampled[..., None]
        loss = objectives.token_surrogate(new.gather(2, at)[..., 0], old.gather(2, at)[..., 0], credit, MASK, 0.2, 0.28)
    loss.mean().backward()
    after = (logits - 0.1 * logits.grad).log_softmax(-1)
    rise = (after - old).gather(2, sampled[..., None])[..., 0]
    assert (rise[0] > 0).all()
    assert (rise[1, :2] < 0).all()
    assert rise[1, 2].abs() < 1e-6


def test_a_process_without_a_row_gets_as_many_back() -> None:
    none, nobody, where = torch.zeros(0, 0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 0, dtype=torch.bool)
    for credit in (objectives.rloo_returns, objectives.masked_step_advantages, objectives.group_standardized):
        assert credit(none, where, nobody).shape == (0, 0)
