"""The authors' recorded numbers, from the folder that PRMBENCH_GOLDEN names (default: tests/golden)."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prmbench import data, objectives
from prmbench.backends import implicit
from prmbench.backends.ref_cache import step_logprobs
from prmbench.core.records import EvalProtocol, Readout, ScoredTrace
from prmbench.engines.encoding import encode_chat
from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.metrics import first_error
from prmbench.training.losses import LOSSES, denominator

FOLDER = Path(os.environ.get("PRMBENCH_GOLDEN") or Path(__file__).parent / "golden")
THEIR_NAMES: dict[str, Readout] = {
    "sum": "prefix_sum",
    "sum_diff": "step_sum",
    "mean": "prefix_mean",
    "mean_diff": "step_mean",
}
REWARD_TOLERANCE = 1e-6
"""In reward units, a thousandth of a nat: a wrong attention mask shows at 1e-4."""


# --- step_f1_*: the four readouts and their F1 on given scores ------------------------------------------


def their_trace(number: int, item: dict[str, Any]) -> ScoredTrace:
    """Cumulative rewards and averages -> step sums and token counts. Rewards are coef * log-ratio; F1 has no unit."""
    reward, average = np.array(item["reward"]), np.array(item["avg_reward"])
    counts: list[int] = []
    for total, mean in zip(reward, average, strict=True):  # their rule where the mean vanishes: one token more
        counts.append(round(total / mean) if abs(mean) > 1e-9 else (counts[-1] if counts else 0) + 1)
    return ScoredTrace(
        id=str(number),
        subset="golden",
        label=item["label"],
        outcome=None,
        cluster=str(number),
        steps=len(reward),
        values=tuple(np.diff(reward, prepend=0.0)),
        tokens=tuple(int(n) for n in np.diff(counts, prepend=0)),
    )


def their_threshold(name: str, threshold: float, coef: float) -> float:
    """Their thresholds are on sigmoid(reward), or on sigmoid(mean / sqrt(coef)): undo both."""
    logit = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else math.copysign(math.inf, threshold - 0.5)
    return logit * math.sqrt(coef) if name.startswith("mean") else logit


def f1_at(traces: list[ScoredTrace], protocol: EvalProtocol, threshold: float) -> float:
    sample = first_error.sample(traces, protocol)
    right = sample.matches(np.array([threshold]))
    return float(first_error.harmonic(*first_error.accuracies(sample, right, np.ones((1, len(sample)))))[0])


def check_step_f1(golden: dict[str, Any], _: pytest.FixtureRequest) -> None:
    traces = [their_trace(n, item) for n, item in enumerate(golden["items"])]
    for name, expected in golden["expected"].items():
        protocol = EvalProtocol(THEIR_NAMES[name], "oracle")
        theirs = their_threshold(name, expected["grid_threshold"], golden["coef"])
        assert f1_at(traces, protocol, theirs) == pytest.approx(expected["grid_f1"], rel=1e-5), name
        sample = first_error.sample(traces, protocol)
        best = float(first_error.best_threshold(sample, np.ones((1, len(sample))))[0])
        assert f1_at(traces, protocol, best) >= expected["grid_f1"] - 1e-9, name


# --- processbench_scores_*: step rewards of a real pair of models -------------------------------------------


@pytest.fixture(scope="module")
def noisy_pair(smollm2_model: Path) -> tuple[HFEngine, HFEngine]:
    """Reference = SmolLM2 in float32; reward model = the same weights with seeded noise (the recording's recipe)."""
    reference = load(str(smollm2_model), "lm", Placement("cpu", "float32"))
    policy = copy.deepcopy(reference.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(policy.named_parameters()):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02 * weight.std())
    return HFEngine(policy, reference.tokenizer), reference


def check_processbench_scores(golden: dict[str, Any], request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("shared_data") / "processbench"
    rows = golden["scores"]
    if "PRMBENCH_GOLDEN" not in os.environ:  # a quarter of the committed recording, short and long traces
        rows = sorted(rows, key=lambda row: len(row["reward"]))[::4]
    traces = {t.id: t for t in data.load("processbench", folder).traces}
    policy, reference = request.getfixturevalue("noisy_pair")
    for row in rows:
        encoded = encode_chat(policy.tokenizer, traces[row["id"]], boundary="release")
        scores = next(implicit.read(policy, lambda batch: step_logprobs(reference, batch), [encoded]))
        rewards = golden["coef"] * np.cumsum(scores.values)
        counts = np.cumsum(scores.tokens)
        assert counts.tolist() == [round(a / b) for a, b in zip(row["reward"], row["avg_reward"], strict=True)]
        assert rewards == pytest.approx(row["reward"], rel=0, abs=REWARD_TOLERANCE)
        assert rewards / counts == pytest.approx(row["avg_reward"], rel=0, abs=REWARD_TOLERANCE / counts[0])


# --- rm_losses_*: the losses of the authors' offline trainers --------------------------------------------------

THEIR_LOSSES = {
    "ipvrm_offline_tokenmean": "ipvrm",
    "implicit_prm": "implicit_prm",
    "dpo_rm_bt_sum": "dpo_rm",
    "qrm_bt_mean": "q_rm",
}
NUMBER = r"(\d+(?:\.\d+)?)"


def near(got: Any, expected: Any, name: str) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def check_rm_losses(golden: dict[str, Any], _: pytest.FixtureRequest) -> None:
    ratios, mask = torch.tensor(golden["log_ratio"]), torch.tensor(golden["response_mask"]).bool()
    labels = torch.tensor(golden["labels"])
    pairs = torch.arange(len(ratios)).view(2, -1).T.flatten()  # theirs: right ones, then wrong ones; ours: in turn
    for name, expected in golden["expected"].items():
        found = re.fullmatch(rf"(.+?)_beta{NUMBER}(?:_margin{NUMBER})?", name)
        assert found, name
        row = LOSSES[THEIR_LOSSES[found[1]]]
        order = pairs if row.view == "pair" else torch.arange(len(ratios))
        terms = row.terms(ratios[order], mask[order], labels[order], float(found[2]), float(found[3] or 0), "token")
        near(terms.sum() / denominator(row, mask.sum(1).tolist(), "token"), expected, name)


# --- online_rm_update_*: margins and weights by the difficulty of a prompt -----------------------------------------


def check_online_rm_update(golden: dict[str, Any], _: pytest.FixtureRequest) -> None:
    mask, outcome = torch.tensor(golden["response_mask"]).bool(), torch.tensor(golden["outcome"])
    group = torch.tensor(golden["prompt_group"])
    rewards = objectives.token_rewards(torch.tensor(golden["log_ratio"]), golden["beta"])
    v_bar = objectives.length_normalized(objectives.prefix_values(rewards, mask), mask)
    mu = objectives.group_mean(outcome, group)
    for name, expected in golden["expected"].items():
        offset, weight = torch.zeros_like(mu), torch.ones_like(mu)
        if "adb1" in name:
            offset = objectives.difficulty_offset(mu)
        if "dlw1" in name:
            weight = objectives.normalized_weight(objectives.rarity_weight(outcome, mu), group)
        near(golden["base_margin"] - offset * (2 * outcome - 1), expected["margin"], name)
        near(weight, expected["dlw_weight"], name)
        loss = (weight * objectives.ipvrm_loss(v_bar, mask, outcome, golden["base_margin"], offset)).mean()
        near(loss, expected["loss"], name)


# --- distrl_*: advantages and both branches of the release, the TD of the last token kept ----------------------------


def check_distrl(golden: dict[str, Any], _: pytest.FixtureRequest) -> None:
    mask, outcome = torch.tensor(golden["response_mask"]).bool(), torch.tensor(golden["outcome"])
    old, new, rm = (torch.tensor(golden[f"candidate_{name}_logp"]) for name in ("old", "new", "rm"))
    group = torch.arange(len(mask)) // golden["n_samples"]
    expected = golden["expected"]
    low, high, wide, dual = (golden[name] for name in ("clip_low", "clip_high", "clip_candidates", "dual_clip_c"))

    td = objectives.td_advantages(rm, old, golden["beta"])
    near(td.masked_fill(~mask[..., None], 0), expected["candidate_td"], "candidate_td")
    sampled = td[..., 0]
    values = objectives.prefix_values(sampled, mask)
    _, sigma = objectives.mean_and_std(objectives.moment_sums(values, mask))
    scaled = objectives.scaled_td(td, sigma)
    near(scaled.masked_fill(~mask[..., None], 0), expected["scaled_candidate_td"], "scaled_candidate_td")

    centre, _ = objectives.mean_and_std(objectives.moment_sums(sampled, mask))
    credit = objectives.gae(objectives.scaled_td(sampled - centre, sigma), mask, golden["gamma"], golden["lam"])
    moments = objectives.mean_and_std(objectives.moment_sums(credit, mask), unbiased=True)
    share = objectives.outcome_advantages(outcome, group)[:, None] * mask
    advantages = golden["outcome_coef"] * share + golden["gae_coef"] * objectives.whitened(credit, mask, *moments)
    near(advantages, expected["token_advantages"], "token_advantages")

    branch = (new[..., 0], old[..., 0], advantages, mask, low, high)
    near(objectives.token_surrogate(*branch, dual, "token").sum() / mask.sum(), expected["pg_loss"], "pg_loss")
    near(objectives.clipped(*branch).sum() / mask.sum(), expected["pg_clipfrac"], "pg_clipfrac")
    bounded = objectives.clipped(*branch, dual) & ~objectives.clipped(*branch)
    near(bounded.sum() / mask.sum(), expected["pg_clipfrac_lower"], "pg_clipfrac_lower")
    near((old - new)[..., 0][mask].mean(), expected["ppo_kl"], "ppo_kl")

    kept = (old > math.log(golden["p_min"])) | (torch.arange(old.shape[-1]) == 0)  # the sampled token whatever its p
    kept &= (mask & ~objectives.terminal(mask))[..., None]
    near(kept, expected["candidate_mask"], "candidate_mask")
    branch = (new, old, scaled, kept, wide, wide)
    mass = objectives.candidate_mass(old, kept).sum()
    loss = objectives.candidate_surrogate(*branch, dual, "mass", mask).sum() / mass
    near(loss, expected["dist_loss"], "dist_loss")
    near(objectives.clipped(*branch).sum() / kept.sum(), expected["dist_clipfrac"], "dist_clipfrac")
    bounded = objectives.clipped(*branch, dual) & ~objectives.clipped(*branch)
    near(bounded.sum() / kept.sum(), expected["dist_clipfrac_lower"], "dist_clipfrac_lower")
    near((old.exp() * (old - new))[kept].sum() / kept.sum(), expected["dist_kl"], "dist_kl")


CHECKS: dict[str, Callable[[dict[str, Any], pytest.FixtureRequest], None]] = {
    "step_f1_": check_step_f1,
    "processbench_scores_": check_processbench_scores,
    "rm_losses_": check_rm_losses,
    "online_rm_update_": check_online_rm_update,
    "distrl_": check_distrl,
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_recording(path: Path, request: pytest.FixtureRequest) -> None:
    check = next((check for start, check in CHECKS.items() if path.name.startswith(start)), None)
    if check is None:
        pytest.skip(f"{path.name}: recordings of this kind are not checked yet")
    check(json.loads(path.read_text(encoding="utf-8")), request)


def test_the_folder_holds_a_recording_we_know() -> None:
    assert any(path.name.startswith(tuple(CHECKS)) for path in FOLDER.glob("*.json")), f"no known recording in {FOLDER}"
