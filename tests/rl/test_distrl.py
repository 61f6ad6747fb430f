"""The loop of train-distrl: a step against plain arithmetic, its negative controls, and what must not move it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import distrl_naive
import pytest
import torch
from rl_fixtures import SGD, column, distance, lines, options, row, rows, run, save_policy, weights
from torch import Tensor

from prmbench import objectives
from prmbench.config.distrl_options import DistRLConfig, ResolvedDistRL, resolve
from prmbench.engines.hf import Placement
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl import advantages, distrl, models, updates
from prmbench.rl.advantages import Advantages
from prmbench.rl.models import Models
from prmbench.rl.sampler import Source, importance_weights
from prmbench.rl.token_rows import Rows, micro_batches
from prmbench.training.model import ModelSetup, Runner, open_runner

STEADY = {**SGD, "rm_beta": 1.0, "rm_margin": 0.5}
"""A smaller beta magnifies roundings less."""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("other"), 1)


def runner(folder: Path) -> Runner:
    return open_runner(str(folder), None, "lm", ModelSetup(Placement("cpu", "float32")))


def same(a: Path, b: Path) -> bool:
    """Bit for bit."""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(w, second[name]) for name, w in first.items())


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> bool:
    return all(float((found[name] - w).abs().max()) < tolerance for name, w in expected.items() if name in found)


# --- against plain arithmetic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"preset": "paper", "lam": 0.9, "gamma": 0.95},
        {"preset": "paper", "reference": "sft", "minibatch": 1, "adb": False},
        {"preset": "release", "truncated": "keep", "minibatch": 2, "dual_clip": 1.05},
        {"preset": "default", "truncated": "mask", "dlw": False, "gae_weight": 0.5},
    ],
)
def test_a_step_is_the_plain_one(more: dict[str, Any], start: Path, prompts: Path, tmp_path: Path) -> None:
    """The second step, in which policy, reward model and the start of training are three different models."""
    common = {**STEADY, "learning_rate": 0.05, "max_new_tokens": 12, "prompts": 4, "minibatch": 0, "seed": 2, **more}
    run(options(start, prompts, tmp_path / "one", **{**common, "steps": 1}))
    config = options(start, prompts, tmp_path / "two", **{**common, "steps": 2})
    run(config)
    one, two = tmp_path / "one", tmp_path / "two"
    assert column(one, "loss") == column(two, "loss")[:1]
    expected = distrl_naive.step(one, one / "rm", start, two, distrl.resolved(config))
    line = lines(two)[1]
    assert line["rm_loss"] == pytest.approx(expected.rm_loss, abs=1e-5)
    assert line["loss"] == pytest.approx(expected.loss, abs=1e-5)
    assert line["sigma_v"] == pytest.approx(expected.sigma, rel=1e-4)
    assert line["rm_accuracy"] == pytest.approx(expected.rm_right)
    assert close(weights(two / "rm"), expected.rm, 2e-6)
    assert close(weights(two), expected.policy, 5e-6)
    assert distance(one, two) > 1e-3
    assert distance(one / "rm", two / "rm") > 1e-4
    said = distrl_naive.drawn(two)
    assert len({distrl_naive.mu_of(said, group) for group in range(4)}) > 1  # or groups could be taken for another
    if more.get("truncated") == "mask":
        assert any(row.masked for row in said)
    if more.get("minibatch"):
        assert line["clip_fraction"] > 0


def test_a_frozen_reward_model_says_how_often_it_is_right(
    start: Path, other: Path, prompts: Path, tmp_path: Path
) -> None:
    """Its verdicts are what Fig. 6 shows to collapse; nothing updates it."""
    config = options(start, prompts, tmp_path / "out", arm="distrl_ipvrm_frozen", rm_model=str(other), **STEADY)
    run(replace(config, steps=1))
    expected = distrl_naive.step(start, other, start, tmp_path / "out", distrl.resolved(config))
    assert column(tmp_path / "out", "rm_accuracy") == pytest.approx([expected.rm_right])
    assert column(tmp_path / "out", "rm_gap")[0] is not None
    assert close(weights(tmp_path / "out"), expected.policy, 5e-6)
    assert not (tmp_path / "out" / "rm").exists()


# --- negative controls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [{"preset": "paper"}, {"preset": "default"}, {"preset": "release"}, {"preset": "paper", "lora_rank": 2}]
)
def test_control_frozen_rm_equal_to_old_policy_is_grpo(
    more: dict[str, Any], start: Path, prompts: Path, tmp_path: Path
) -> None:
    common = {"steps": 1, "truncated": "keep", **more}
    run(options(start, prompts, tmp_path / "distrl", arm="distrl_ipvrm_frozen", rm_model=str(start), **common))
    run(options(start, prompts, tmp_path / "grpo", arm="grpo", **common))
    assert same(tmp_path / "distrl", tmp_path / "grpo")
    (told,), (grpo,) = lines(tmp_path / "distrl"), lines(tmp_path / "grpo")
    assert (told["sigma_v"], told["gae_outcome_ratio"], told["rm_score"], told["candidate_loss"]) == (0, 0, 0, 0)
    assert (told["loss"], told["grad_norm"]) == (grpo["loss"], grpo["grad_norm"])
    assert told["candidates"] > 1
    run(options(start, prompts, tmp_path / "online", **common))
    assert not same(tmp_path / "online", tmp_path / "grpo")


def test_control_alpha_zero_is_the_token_branch(start: Path, prompts: Path, tmp_path: Path) -> None:
    for name, more in (("zero", {"alpha": 0.0}), ("arm", {"arm": "grpo_ipvrm"}), ("tenth", {"alpha": 0.1})):
        run(options(start, prompts, tmp_path / name, **more))
    assert same(tmp_path / "zero", tmp_path / "arm")
    assert not same(tmp_path / "zero", tmp_path / "tenth")
    assert column(tmp_path / "zero", "candidate_loss") == [0.0, 0.0]
    # And the branch itself adds alpha times its own loss, to the token branch unchanged.
    zero, tenth = lines(tmp_path / "zero")[0], lines(tmp_path / "tenth")[0]
    assert tenth["loss"] - zero["loss"] == pytest.approx(0.1 * tenth["candidate_loss"], abs=1e-6)
    assert abs(tenth["candidate_loss"]) > 1e-3


def test_control_swapped_outcomes_reverse_the_outcome_term(start: Path) -> None:
    right = rows(row(3, 1, 0), row(4, 0, 0), row(2, 0, 0), row(5, 1, 1), row(3, 0, 1))
    wrong = Rows(tuple(replace(r, rollout=replace(r.rollout, outcome=1 - r.outcome)) for r in right.rows), "cpu")
    config = resolve(DistRLConfig(arm="grpo", preset="paper"))
    first, second = (advantages.compute(given, None, config) for given in (right, wrong))
    assert torch.allclose(first.tokens, -second.tokens, atol=1e-6)
    assert float(first.tokens.abs().max()) > 1
    assert torch.equal(first.tokens != 0, right.mask)
    both = [gradients(start, given, config, advantages.compute(given, None, config)) for given in (right, wrong)]
    assert torch.allclose(both[0], -both[1], atol=1e-6)
    assert float(both[0].abs().max()) > 1e-3
    # The process part stays as it is.
    td = torch.randn(17, generator=torch.Generator().manual_seed(0))[:, None]
    with_rm = replace(config, reward="both", gae_weight=1.0)
    told = [advantages.compute(given, td, with_rm).tokens for given in (right, wrong)]
    assert torch.allclose(sum(told) / 2, (told[0] - first.tokens), atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "release", "default"])
def test_control_sigma_cancels_in_gae(preset: Any) -> None:
    given = rows(row(3, 1, 0), row(4, 0, 0), row(2, 0, 1), row(5, 1, 1))
    config = resolve(DistRLConfig(preset=preset))
    td = torch.randn(14, generator=torch.Generator().manual_seed(1))
    found = [advantages.compute(given, c * td[:, None].expand(-1, 2), config) for c in (1.0, 37.0)]
    assert torch.allclose(found[0].tokens, found[1].tokens, atol=1e-4)
    assert torch.allclose(found[0].candidates, found[1].candidates, atol=1e-5)
    assert found[1].metrics["sigma_v"] == pytest.approx(37 * found[0].metrics["sigma_v"], rel=1e-5)
    if config.td_normalize == "group":  # whatever sigma is
        padded = given.padded(td)
        one, many = (
            advantages.PROCESS["gae"](given, padded, given.mask, torch.tensor(s), config) for s in (1.0, 500.0)
        )
        assert torch.allclose(one, many, atol=1e-4)
        assert float(one.abs().max()) > 1


@pytest.mark.parametrize(
    "more",
    [{}, {"preset": "release", "truncated": "keep"}, {"arm": "distrl_dpo_rm", "minibatch": 2}, {"arm": "prime"}],
)
def test_control_micro_batches(more: dict[str, Any], start: Path, other: Path, prompts: Path, tmp_path: Path) -> None:
    """From a reward model far from the policy: differences of equals would be nothing but rounding."""
    common = {**STEADY, "rm_model": str(other), "minibatch": 0, **more}
    for name, budget in (("one", 1), ("some", 60), ("all", 100_000)):
        run(options(start, prompts, tmp_path / name, **common, batch_tokens=budget))
    for name in ("one", "some"):
        for number in ("loss", "rm_loss", "candidate_loss", "clip_fraction", "rm_accuracy", "kl_old"):
            expected = column(tmp_path / "all", number)
            assert column(tmp_path / name, number) == pytest.approx(expected, abs=1e-6, rel=1e-6)
        assert distance(tmp_path / name, tmp_path / "all") < 1e-5
        assert distance(tmp_path / name / "rm", tmp_path / "all" / "rm") < 1e-5
    assert distance(start, tmp_path / "all") > 1e-3


# --- directions ---------------------------------------------------------------------------------------------------


def gradients(
    folder: Path, given: Rows, config: ResolvedDistRL, given_advantages: Advantages, known: CandidateSet | None = None
) -> Tensor:
    """Of one minibatch of all rows, flat."""
    model = runner(folder)
    micros = micro_batches(given, [[i] for i in range(len(given.rows))], 64)
    nothing = Models(model, None, False, None)
    candidates = known or models.old_candidates(nothing, given, micros, 0.0)[0]
    targets = updates.policy_targets(given, candidates, given_advantages, None, config)
    updates.policy_gradients(model, given, list(range(len(given.rows))), targets, config, 64)
    return torch.cat([p.grad.flatten() for p in model.trained if p.grad is not None])


def moved(model: Runner, gradient: Tensor, rate: float) -> None:
    at = 0
    with torch.no_grad():
        for p in model.trained:
            p.sub_(rate * gradient[at : at + p.numel()].view_as(p))
            at += p.numel()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_update_moves_a_token_where_its_advantage_points(start: Path, sign: float) -> None:
    given = rows(row(3, 1, 0), row(4, 0, 0))
    config = resolve(DistRLConfig(arm="grpo", preset="paper"))
    tokens = torch.zeros(2, 4)
    tokens[1, 2] = sign  # token 5 of the flat order
    gradient = gradients(start, given, config, Advantages(tokens, torch.zeros(7, 0), {}))
    model = runner(start)
    micros = micro_batches(given, [[0], [1]], 64)
    ids = torch.tensor([t for r in given.rows for t in r.ids[r.start :]])[:, None]
    before = models.logprobs(model, given, micros, ids)[:, 0]
    moved(model, gradient, 0.01)
    after = models.logprobs(model, given, micros, ids)[:, 0]
    assert sign * float((after - before)[5]) > 1e-4


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_update_moves_a_candidate_where_its_td_points(start: Path, sign: float) -> None:
    given = rows(row(3, 1, 0), row(4, 0, 0))
    config = resolve(DistRLConfig(preset="paper"))
    model = runner(start)
    micros = micro_batches(given, [[0], [1]], 64)
    old, _ = models.old_candidates(Models(model, None, False, None), given, micros, 0.1)
    place = next(i for i in range(7) if int(old.mask[i].sum()) > 2)  # the sampled token and two candidates
    td = torch.zeros(7, old.mask.shape[1] - 1)
    td[place, 1] = sign
    gradient = gradients(start, given, config, Advantages(torch.zeros(2, 4), td, {}), old)
    moved(model, gradient, 0.5)
    after = models.logprobs(model, given, micros, old.token_ids)
    assert sign * float(after[place, 2] - old.old_logprobs[place, 2]) > 1e-4


# --- which model is asked what --------------------------------------------------------------------------------------


def test_td_is_to_the_behaviour_or_to_the_start(start: Path, other: Path, tmp_path: Path) -> None:
    third = save_policy(tmp_path / "third", 2)
    given = rows(row(3, 1, 0), row(4, 0, 0))
    micros = micro_batches(given, [[0], [1]], 64)
    found = Models(runner(start), runner(other), False, runner(third))
    candidates, _ = models.old_candidates(found, given, micros, 0.1)
    asked, known, mask = candidates
    says = {folder: models.logprobs(runner(folder), given, micros, asked) for folder in (start, other, third)}
    assert torch.allclose(says[start][:, 0], known[:, 0])
    config = resolve(DistRLConfig(preset="paper", rm_beta=3.0))
    for reference, expected in (("behaviour", known), ("sft", says[third])):
        td = models.temporal_differences(found, given, micros, candidates, replace(config, reference=reference))
        assert torch.allclose(td, objectives.td_advantages(says[other], expected, 3.0) * mask)
        assert mask[:, 0].all()
        assert float(td[:, 0].abs().max()) > 0.1
    # The policy as its own reward model (SPRO).
    spro = replace(config, reference="sft")
    td = models.temporal_differences(replace(found, rm=None), given, micros, candidates, spro)
    assert torch.allclose(td[:, 0], 3.0 * (known - says[third])[:, 0], atol=1e-6)


def test_candidates_are_all_likely_tokens_and_no_others(start: Path) -> None:
    given = rows(row(3, 1, 0), row(4, 0, 0))
    micros = micro_batches(given, [[0], [1]], 1)
    model = runner(start)
    candidates, entropies = models.old_candidates(Models(model, None, False, None), given, micros, 0.1)
    said = [distrl_naive.Said(torch.tensor(r.ids), r.start, r.group, 0.0, False) for r in given.rows]
    whole = torch.cat(distrl_naive.tables(model.model, said)).exp()
    for place in range(7):
        kept = candidates.token_ids[place, 1:][candidates.mask[place, 1:]].tolist()
        assert sorted(kept) == (whole[place] >= 0.1).nonzero()[:, 0].tolist()
        entropy = -(whole[place] * whole[place].log()).sum()
        assert float(entropies[place]) == pytest.approx(float(entropy), abs=1e-5)


def test_terminal_tokens_have_no_candidates_where_they_have_no_td(start: Path) -> None:
    given = rows(row(2, 1, 0), row(3, 0, 0), row(2, 0, 0, masked=True))
    micros = micro_batches(given, [[0], [1], [2]], 64)
    candidates, _ = models.old_candidates(Models(runner(start), None, False, None), given, micros, 0.1)
    td = torch.ones(candidates.mask.shape)
    td[:, 0] = torch.arange(1.0, 8.0)
    for zero in (True, False):
        config = replace(resolve(DistRLConfig(preset="paper")), zero_terminal=zero)
        targets = updates.policy_targets(given, candidates, advantages.compute(given, td, config), None, config)
        mask = targets.candidates.mask
        last = [1, 4]
        assert [bool(mask[i, 1:].any()) for i in last] == [not zero] * 2
        assert bool(mask[0, 1:].any())
        assert not mask[5:, 1:].any()
        assert mask[:, 0].tolist() == [True] * 5 + [False] * 2
        assert targets.advantages[5:, 0].tolist() == [0.0, 0.0]


def test_importance_weights_scale_the_token_branch_alone(start: Path) -> None:
    """Where another engine drew: pi_old over what it says, cut at 2; our own engine's draws weigh 1."""
    given = rows(*(replace(r, logprobs=(-2.0,) * r.size) for r in (row(3, 1, 0), row(4, 0, 0))))
    micros = micro_batches(given, [[0], [1]], 64)
    model = runner(start)
    candidates, _ = models.old_candidates(Models(model, None, False, None), given, micros, 0.1)
    old_logprobs = candidates.old_logprobs[:, 0]
    link: Any = None
    weight = importance_weights(given, old_logprobs, Source(link, dict, foreign=True))
    assert weight is not None
    assert torch.allclose(weight, (old_logprobs + 2.0).exp().clamp(max=2.0))
    assert len(set(weight.tolist())) > 2
    assert importance_weights(given, old_logprobs, Source(link, dict, foreign=False)) is None
    config = resolve(DistRLConfig(preset="paper"))
    told = advantages.compute(given, candidates.old_logprobs, config)
    sums = []
    for by in (None, torch.full_like(old_logprobs, 2.0)):
        targets = updates.policy_targets(given, candidates, told, by, config)
        sums.append(updates.policy_gradients(model, given, [0, 1], targets, config, 64))
    token = [s["loss"] - 0.1 * s["candidate_loss"] for s in sums]
    assert token[1] == pytest.approx(2 * token[0], abs=1e-6)
    assert abs(token[0]) > 1e-3
    assert sums[0]["candidate_loss"] == pytest.approx(sums[1]["candidate_loss"])
