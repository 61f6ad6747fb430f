"""The numbers of metrics.jsonl, against ones worked out by hand on two or three rows; validations and the result."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_fixtures import HELD_OUT, lines, options, row, rows, run, save_policy, save_prompts

from prmbench import tasks
from prmbench.config.distrl_options import DistRLConfig, resolve
from prmbench.core import result_files
from prmbench.data.rollouts import Rollout
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl import advantages, monitors, step_rollouts, updates
from prmbench.rl.step_rollouts import StepRollouts
from prmbench.rl.updates import RM_SUMS, SUMS
from prmbench.training.optimiser import warmed_up


def test_numbers_of_all_that_is_drawn() -> None:
    tally = {
        "prompts": 4,
        "mixed": 1,
        "completions": 8,
        "verified": 6,
        "right": 3,
        "unverified": 2,
        "truncated": 1,
        "empty": 4,
        "tokens": 80,
        "steps": 12,
        "rounds": 2,
        "groups": 1,
        "prompts_cut": 2,
    }
    found = monitors.completion_metrics(StepRollouts((), tally, 0))
    assert found == {
        "reward": 3 / 8,
        "accuracy": 0.5,
        "mixed": 0.25,
        "unverified": 0.25,
        "truncated": 0.125,
        "empty": 0.5,
        "length": 10,
        "step_count": 1.5,
        "completions": 8,
        "tokens": 80,
        "prompts_drawn": 4,
        "groups": 1,
        "rounds": 2,
        "prompts_cut": 2,
    }
    nothing = monitors.completion_metrics(StepRollouts((), dict.fromkeys(tally, 0), 0))
    assert nothing["reward"] is None
    assert nothing["length"] is None


def test_numbers_of_a_tally() -> None:
    group = [row(3, 1, 0, steps=2), row(4, 0, 0, steps=1)]
    said = [
        replace(group[0].rollout, completion="x", tokens=3, finish="stop"),
        replace(group[1].rollout, completion=" \n", tokens=4, finish="length"),
        replace(group[1].rollout, completion="y", tokens=2, finish="stop", outcome=None),
    ]
    found = step_rollouts._tally([(r, None) for r in said], "keep")
    expected = dict(prompts=1, mixed=1, completions=3, verified=2, right=1, unverified=1, truncated=1, empty=1)
    assert dict(found) == {**expected, "tokens": 9, "steps": 4, "prompts_unverified": 1}
    assert step_rollouts._tally([(said[0], None), (said[2], None)], "keep")["mixed"] == 0


def test_why_a_prompt_is_not_trained_on() -> None:
    right, wrong = row(3, 1, 0).rollout, row(4, 0, 0).rollout
    cut, unknown = replace(wrong, finish="length"), replace(wrong, outcome=None)

    def why(rule: str, *each: Rollout) -> str:
        return step_rollouts.skip_reason([(r, None) for r in each], rule)

    assert why("drop", right, wrong) == ""
    assert [why(rule, right, cut) for rule in ("keep", "mask", "drop")] == ["", "", "cut"]
    assert [why(rule, replace(right, finish="length"), cut) for rule in ("keep", "mask")] == ["", "cut"]
    assert why("keep", right, right) == "all_right"
    assert why("keep", wrong, cut) == "all_wrong"
    assert why("drop", right, cut, unknown) == "unverified"


def test_candidates_their_mass_and_entropy() -> None:
    """Three tokens of two rows: two candidates of mass 0.9, one of 0.5, none."""
    given = rows(row(2, 1, 0), row(1, 0, 0))
    kept = torch.tensor([[True, True], [True, False], [False, False]])
    told = torch.tensor([[0.6, 0.3], [0.5, 1.0], [1.0, 1.0]]).log()
    entropy = torch.tensor([0.3, 0.6, 1.2])
    sampled = torch.zeros(3, 1)
    ids = torch.zeros(3, 3, dtype=torch.long)
    mask = torch.cat([torch.ones(3, 1, dtype=torch.bool), kept], dim=1)
    found = monitors.policy_metrics(given, CandidateSet(ids, torch.cat([sampled, told], dim=1), mask), entropy)
    assert found == pytest.approx({"kept": 2, "entropy": 0.7, "candidates": 1.0, "candidate_mass": 1.4 / 3})
    none = CandidateSet(ids[:, :1], sampled, mask[:, :1])
    assert monitors.policy_metrics(given, none, entropy) == pytest.approx({"kept": 2, "entropy": 0.7})


def test_scores_of_steps_and_their_correlation_with_the_outcome() -> None:
    """TD sums 6, -2 and 4 in 3, 1 and 2 steps; TD means 3, -1 and 1 for outcomes 1, 0, 0."""
    given = rows(row(2, 1, 0, steps=3), row(2, 0, 0, steps=1), row(4, 0, 0, steps=2))
    td = torch.tensor([1.0, 5.0, -3.0, 1.0, 4.0, 0.0, 0.0, 0.0])
    found = monitors.reward_model_metrics(given, td[:, None])
    x, y = torch.tensor([3.0, -1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    expected = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    assert found == pytest.approx({"rm_score": (2 - 2 + 2) / 3, "td_outcome_correlation": expected})
    flat = monitors.reward_model_metrics(rows(row(2, 1, 0), row(2, 0, 0)), torch.ones(4, 1))
    assert flat["td_outcome_correlation"] is None


def test_verdicts_of_a_reward_model() -> None:
    """Rows of two tokens and one: IPVRM decides by the mean of the rewards, others by the sum."""
    given = rows(row(2, 1, 0), row(1, 0, 0), row(0, 0, 0), row(1, 1, 1))
    td = torch.tensor([3.0, -1.0, 2.0, -0.5])[:, None]
    for loss, first in (("ipvrm", 1.0), ("implicit_prm", 2.0)):
        found = monitors.verdict_metrics(given, td, loss)
        logits = torch.tensor([first, 2.0, -0.5])
        gap = float((logits.sigmoid() - torch.tensor([1.0, 0.0, 1.0])).mean())
        assert found == pytest.approx({"rm_accuracy": 1 / 3, "rm_gap": gap})
    at_zero = monitors.verdict_metrics(given, torch.zeros(4, 1), "ipvrm")
    assert at_zero == pytest.approx({"rm_accuracy": 1 / 3, "rm_gap": 0.5 - 2 / 3})  # 0 is a no


def test_numbers_of_updates() -> None:
    rm = [dict(zip(RM_SUMS, v, strict=True)) for v in ((0.5, 3, 4, 0.4), (0.3, 1, 2, -0.1))]
    assert monitors.rm_update_metrics(rm, [1.0, 3.0]) == pytest.approx(
        {"rm_loss": 0.4, "rm_accuracy": 4 / 6, "rm_gap": 0.3 / 6, "rm_grad_norm": 2.0}
    )
    sums = [dict(zip(SUMS, v, strict=True)) for v in ((1.0, 0.2, 10, 2, 20, 5, 0.0), (3.0, 0.4, 30, 0, 20, 1, 0.6))]
    assert monitors.policy_update_metrics(sums, [2.0, 4.0]) == pytest.approx(
        {
            "loss": 2.0,
            "candidate_loss": 0.3,
            "clip_fraction": 2 / 40,
            "candidate_clip_fraction": 6 / 40,
            "kl_old": 0.02,
            "grad_norm": 3.0,
        }
    )


def test_kl_of_the_drawing_policy_to_another() -> None:
    old_logprobs = torch.tensor([[0.5], [0.25]]).log()
    old = CandidateSet(torch.zeros(2, 1, dtype=torch.long), old_logprobs, torch.ones(2, 1, dtype=torch.bool))
    other = torch.tensor([0.25, 0.5]).log()
    expected = ((0.5 - 1 - math.log(0.5)) + (2 - 1 - math.log(2))) / 2
    assert monitors.kl_metric(old, other) == pytest.approx(expected)
    assert monitors.kl_metric(old, old_logprobs[:, 0]) == 0


def test_sums_of_a_policy_update() -> None:
    """Ratios 1.5, 0.5 and 1 with advantages 1, 1 and -1: the first alone is clipped."""
    config = resolve(DistRLConfig(preset="paper"))
    ratio = torch.tensor([[1.5, 0.5, 1.0]])
    mask = torch.tensor([[[True, True], [True, True], [True, False]]])
    part = updates.PolicyTargets(
        CandidateSet(torch.zeros(1, 3, 2, dtype=torch.long), torch.zeros(1, 3, 2), mask),
        advantages=torch.tensor([[[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]]),
        weight=torch.ones(1, 3),
    )
    new = torch.stack([ratio.log(), torch.tensor([[0.5, 1.5, 1.5]]).log()], dim=-1)
    found = dict(
        zip(SUMS, updates._sums(torch.tensor(2.0), torch.tensor(0.5), new, part, config).tolist(), strict=True)
    )
    kl = (1.5 - 1 - math.log(1.5)) + (0.5 - 1 - math.log(0.5))
    counts = {"tokens": 3, "clipped": 1, "candidates": 2, "candidates_clipped": 2}
    assert found == pytest.approx({"loss": 2.0, "candidate_loss": 0.5, **counts, "kl_old": kl})


def test_ratio_of_process_to_outcome_and_sigma() -> None:
    """One prompt, TD 2, -2 | 0: prefix values 2, 0 | 0; outcome advantages 1, 1 | -1."""
    given = rows(row(2, 1, 0), row(1, 0, 0))
    config = replace(resolve(DistRLConfig(preset="paper")), gae_weight=0.5)
    td = torch.tensor([[2.0, 1.0], [-2.0, 2.0], [0.0, 3.0]])
    found = advantages.compute(given, td, config)
    sigma = (8 / 9) ** 0.5
    # Mean 0 and standard deviation sqrt(8/3): GAE 0, -sqrt(3/2) | 0, of which half is taken.
    half = 0.5 * 1.5**0.5
    assert found.tokens.tolist() == [pytest.approx([1.0, 1 - half]), pytest.approx([-1.0, 0.0])]
    assert found.metrics == pytest.approx({"sigma_v": sigma, "gae_outcome_ratio": half / 3**0.5})
    assert found.candidates[:, 0].tolist() == pytest.approx([1 / sigma, 2 / sigma, 3 / sigma])
    alone = advantages.compute(given, td, replace(config, reward="rm"))
    assert alone.tokens.tolist() == [pytest.approx([0.0, -half]), [0.0, 0.0]]


@pytest.mark.parametrize("kind", ["rloo", "masked_step", "score"])
def test_other_kinds_of_credit(kind: Any) -> None:
    """Two completions of a prompt, TD 2, 4 | 1."""
    given = rows(row(2, 1, 0), row(1, 0, 0))
    config = replace(resolve(DistRLConfig(preset="paper")), credit=kind, reward="both" if kind == "rloo" else "rm")
    found = advantages.compute(given, torch.tensor([[2.0], [4.0], [1.0]]), config).tokens.tolist()
    expected = {
        # Each less the mean of the row means 3 and 1, twice (n / (n - 1)), summed from the end; the outcome likewise.
        "rloo": [[0 + 4 + 1, 4 + 1], [-2 - 1, 0]],
        # Sums 2, 6 | 1 less the mean of those that still run: 1.5, then 6 itself.
        "masked_step": [[0.5, 0], [-0.5, 0]],
        "score": [[2, 4], [1, 0]],
    }
    assert found == [pytest.approx(line) for line in expected[kind]]


def test_learning_rates_rise_and_stay() -> None:
    assert [warmed_up(0.8, 4, step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert warmed_up(0.8, 0, 0) == 0.8


def test_what_json_cannot_say_is_none() -> None:
    line = {"loss": math.nan, "kl": -math.inf, "reward": 0.5, "step": 3, "alarms": ["clipping"], "x": None}
    assert monitors.finite_or_none(line) == {**line, "loss": None, "kl": None}


# --- validations and the result -----------------------------------------------------------------------------------


def test_validations_become_a_result_that_can_be_judged_again(tmp_path: Path) -> None:
    start, prompts = save_policy(tmp_path / "start"), save_prompts(tmp_path / "prompts.jsonl")
    held_out = save_prompts(tmp_path / "held.jsonl", HELD_OUT)
    config = options(start, prompts, tmp_path / "out", validation_data=held_out, validate_every=2, steps=3)
    seen: list[tuple[int, int, bool]] = []
    told = {"model": "mine", "config": {"panel": "plain", "sft_seed": 4}}
    done = run(
        replace(config, validation_samples=4),
        progress=lambda step, steps, line: seen.append((step, steps, "validation" in line)),
        manifest_fields=told,
    )
    assert seen == [(0, 3, True), (1, 3, False), (2, 3, False), (2, 3, True), (3, 3, False), (3, 3, True)]
    checks = lines(tmp_path / "out", validations=True)
    means = [sum(c["validation"]["accuracy"]) / len(HELD_OUT) for c in checks]
    assert [c["validation_accuracy"] for c in checks] == pytest.approx(means)
    assert (done.before, done.after) == (checks[0]["validation_accuracy"], checks[-1]["validation_accuracy"])
    assert done.completions == sum(line["completions"] for line in lines(tmp_path / "out"))
    assert done.result is not None
    found = tasks.read_run(done.result)
    facts = found.result.manifest
    assert (facts.task, facts.model, facts.kind, facts.n) == ("distrl", "mine", "outcome", 4)
    kept = {name: facts.config[name] for name in ("validated_at", "samples", "panel", "sft_seed", "arm", "alpha")}
    expected = {"validated_at": [0, 2, 3], "samples": 4, "panel": "plain", "sft_seed": 4}
    assert kept == {**expected, "arm": "distrl_ipvrm", "alpha": 0.1}
    for i, trace in enumerate(found.scores):
        assert trace.values == pytest.approx([c["validation"]["accuracy"][i] for c in checks])
        assert trace.also["truncated"] == pytest.approx([c["validation"]["truncated"][i] for c in checks])
    packed = result_files.metrics_path(done.result).read_bytes()
    assert result_files.sha256(packed) == facts.config["metrics_sha256"]
    assert [json.loads(line) for line in gzip.decompress(packed).splitlines()] == lines(tmp_path / "out")
    assert tasks.judge(facts, found.scores) == found.result.rows


def test_a_validation_problem_that_is_never_verified_is_left_out(tmp_path: Path) -> None:
    from prmbench.rl.validation import Validation, _numbers

    said = [replace(row(2, 1, 0).rollout, outcome=o, finish=f) for o, f in ((1, "stop"), (None, "length"), (0, "stop"))]
    assert _numbers(said) == (0.5, 1 / 3)
    assert _numbers([said[1]]) == (None, 1.0)
    assert Validation((0.5, None, 1.0), (0.0,) * 3).mean == 0.75
    assert Validation((None,), (0.0,)).mean is None
