"""What goes wrong in a run of train-distrl and must not end it, or must end it in a way that can be mended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_fixtures import column, distance, lines, options, row, rows, run, save_prompts, weights
from typer.testing import CliRunner

from prmbench.cli import app
from prmbench.config.distrl_options import resolve
from prmbench.core.records import NonFiniteError, Notice, RetryError, UserError
from prmbench.data.rollouts import Rollout, write
from prmbench.engines.generation import SampledTokens
from prmbench.engines.hf import Placement
from prmbench.rl import advantages, distrl, models, step_rollouts, updates
from prmbench.rl.models import Models
from prmbench.rl.token_rows import Row, micro_batches
from prmbench.sampling import completions
from prmbench.training.model import ModelSetup, open_runner

Change = Callable[[int, Rollout], Rollout]


def judged(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Changes what is known of each completion k of a prompt, once it is drawn and verified."""
    inner = completions.sample_plan

    def changed(*args: Any) -> list[tuple[Rollout, SampledTokens | None]]:
        return [(change(int(r.id.rpartition("/")[2]), r), d) for r, d in inner(*args)]

    monkeypatch.setattr(completions, "sample_plan", changed)


def prompt_of(rollout: Rollout) -> int:
    """0 to 5."""
    return int(rollout.group[-1])


# --- completions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [0, 1])
def test_steps_without_mixed_outcomes_are_counted_and_left_alone(
    outcome: int, start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step finds none in three rounds; the second trains as ever."""
    first: list[int] = []

    def change(_: int, rollout: Rollout) -> Rollout:
        first.append(0)
        return replace(rollout, outcome=outcome) if len(first) <= 3 * 6 * 4 else rollout

    judged(monkeypatch, change)
    words = "18 with right ones only" if outcome else "18 with wrong ones only"
    with pytest.warns(Notice, match=f"step 1 has nothing to train on: none of 18 prompts .*{words}"):
        run(options(start, prompts, tmp_path / "out"))
    one, two = lines(tmp_path / "out")
    assert ("nothing_to_train_on" in one["alarms"], "nothing_to_train_on" in two["alarms"]) == (True, False)
    assert (one["mixed"], one["groups"], one["rounds"], one["prompts_drawn"]) == (0, 0, 3, 18)
    assert (one["reward"], one["accuracy"]) == (outcome, outcome)
    assert "loss" not in one
    assert "rm_loss" not in one
    assert two["groups"] == 3
    assert math.isfinite(two["loss"])
    assert distance(start, tmp_path / "out") > 1e-3


def test_a_run_that_never_finds_mixed_outcomes_stops_and_may_be_told_to_go_on(
    start: Path, prompts: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said at the first step, stops at the third whenever that is, and ends where it began if it is to go on."""
    judged(monkeypatch, lambda _, r: replace(r, outcome=0))
    config = options(start, prompts, tmp_path / "out", steps=5, save_every=2, validation_data=held_out)
    with (
        pytest.warns(Notice, match=r"step 1 .*18 with wrong ones only.*take easier prompts") as said,
        pytest.raises(UserError, match=r"step 3 has .*The last 3 steps were like that.*--allow-empty") as caught,
    ):
        run(config)
    assert len([w for w in said if w.category is Notice]) == 1
    assert "\n" not in str(caught.value)
    assert column(tmp_path / "out", "alarms")[0] == ["nothing_to_train_on"]
    assert (tmp_path / "out" / "checkpoints" / "00000003").is_dir()
    with pytest.raises(UserError, match=r"step 4 has .*The last 4 steps"):  # the streak is not forgotten
        run(config)
    done = run(replace(config, allow_empty=True))
    assert distance(start, tmp_path / "out") == 0
    assert distance(start, tmp_path / "out" / "rm") == 0
    assert {"nothing_to_train_on", "few_mixed"} <= set(done.alarms)
    assert done.result is not None
    assert column(tmp_path / "out", "step") == [1, 2, 3, 4, 5]


def test_the_last_steps_of_a_run_may_stop_it_too(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, lambda _, r: replace(r, outcome=0))
    config = options(start, prompts, tmp_path / "out", steps=3)
    with pytest.warns(Notice), pytest.raises(UserError, match="step 3 has"):
        run(config)
    with pytest.raises(UserError, match="step 3 has"):  # rather than to end as if all were well
        run(config)
    assert run(replace(config, allow_empty=True)).fresh


def test_two_empty_steps_and_two_more_do_not_stop_a_run(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def change(_: int, rollout: Rollout) -> Rollout:
        calls.append(0)
        step = (len(calls) - 1) // 24  # with one round a step
        return replace(rollout, outcome=int(rollout.id.endswith("/0"))) if step == 2 else replace(rollout, outcome=1)

    judged(monkeypatch, change)
    with pytest.warns(Notice) as said:
        run(options(start, prompts, tmp_path / "out", steps=5, rounds=1))
    assert [line["groups"] > 0 for line in lines(tmp_path / "out")] == [False, False, True, False, False]
    assert [str(w.message)[:6] for w in said if w.category is Notice] == ["step 1", "step 4"]  # once a streak


@pytest.mark.parametrize(
    ("change", "more", "counts", "advice"),
    [
        ({"outcome": 1}, {}, {"all_right": 6}, "take harder prompts"),
        ({"outcome": 0}, {}, {"all_wrong": 6}, "take easier prompts"),
        ({"outcome": None, "verdict": "timeout"}, {}, {"unverified": 6}, "check --verifier"),
        ({"finish": "length"}, {"truncated": "drop"}, {"cut": 6}, r"raise --max-new-tokens \(8 now\)"),
        ({"finish": "length"}, {"truncated": "mask"}, {"cut": 6}, "raise --max-new-tokens"),
        ({"finish": "length", "outcome": 0}, {}, {"all_wrong": 6}, "raise --max-new-tokens .*take easier prompts"),
    ],
)
def test_the_cause_and_the_option_that_mends_it_are_named(
    change: dict[str, Any],
    more: dict[str, Any],
    counts: dict[str, int],
    advice: str,
    start: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged(monkeypatch, lambda k, r: replace(r, **{"outcome": k % 2, "finish": "stop", **change}))
    with pytest.warns(Notice, match=f"none of 6 prompts .*{advice}"):
        run(options(start, prompts, tmp_path / "out", steps=1, rounds=1, **more))
    (line,) = lines(tmp_path / "out")
    found = {reason: line[f"prompts_{reason}"] for reason in ("unverified", "cut", "all_right", "all_wrong")}
    assert found == {**dict.fromkeys(found, 0), **counts}


@pytest.mark.filterwarnings("always::prmbench.core.records.Notice")
def test_silence_is_broken_on_the_command_line_too(start: Path, prompts: Path, tmp_path: Path) -> None:
    """Completions of one token are all cut, and `--quiet` does not hide it; the exit code is that of bad input."""
    arguments = ["train-distrl", "--model", str(start), "--data", str(prompts), "--out", str(tmp_path / "out")]
    arguments += ["--verifier", "exact", "--group-size", "2", "--prompts", "2", "--draw", "4", "--lora-rank", "0"]
    arguments += ["--max-new-tokens", "1", "--truncated", "drop", "--steps", "9", "--device", "cpu", "--quiet"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    first, last = done.stderr.splitlines()
    assert first.startswith("note: step 1 has nothing to train on: none of 12 prompts")
    assert "completions are cut" in first
    assert "raise --max-new-tokens (1 now)" in first
    assert last.startswith("error: step 3 has nothing to train on")
    assert done.stdout == ""


def test_fewer_mixed_prompts_than_asked_for_make_a_smaller_batch(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, lambda k, r: replace(r, outcome=int(k == 0 and prompt_of(r) == 2)))
    run(options(start, prompts, tmp_path / "out", steps=1, rounds=2))
    (line,) = lines(tmp_path / "out")
    assert (line["groups"], line["kept"], line["rounds"], line["mixed"]) == (2, 8, 2, 2 / 12)


@pytest.mark.parametrize("verdict", ["timeout", "crash"])
def test_what_the_verifier_cannot_say_drops_the_group(
    verdict: str, start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(k: int, r: Rollout) -> Rollout:
        told = replace(r, outcome=int(k == 0))
        return replace(told, outcome=None, verdict=verdict) if prompt_of(r) == 1 and k == 3 else told

    judged(monkeypatch, change)
    run(options(start, prompts, tmp_path / "out", steps=1, prompts=6, rounds=1))
    (line,) = lines(tmp_path / "out")
    assert (line["groups"], line["kept"]) == (5, 20)
    assert line["unverified"] == pytest.approx(1 / 24)
    assert (line["reward"], line["accuracy"]) == (pytest.approx(6 / 24), pytest.approx(6 / 23))
    kept = [json.loads(told) for told in (tmp_path / "out" / "drawn" / "0.jsonl").read_text().splitlines()[1:]]
    assert not any(told["rollout"]["group"].endswith("p1") for told in kept)


@pytest.mark.parametrize("rule", ["drop", "mask", "keep"])
def test_truncated_completions(
    rule: Any, start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of prompt 1 is cut: its group is dropped, or its tokens are left out, or nothing happens."""

    def change(k: int, r: Rollout) -> Rollout:
        return replace(r, outcome=int(k == 0), finish="length" if (prompt_of(r), k) == (1, 2) else "stop")

    judged(monkeypatch, change)
    run(options(start, prompts, tmp_path / "out", truncated=rule, steps=1, prompts=6, rounds=1))
    (line,) = lines(tmp_path / "out")
    assert line["truncated"] == pytest.approx(1 / 24)
    assert line["groups"] == (5 if rule == "drop" else 6)
    assert line["mixed"] == 1
    kept = [json.loads(told) for told in (tmp_path / "out" / "drawn" / "0.jsonl").read_text().splitlines()[1:]]
    assert [told["masked"] for told in kept].count(True) == (rule == "mask")
    assert all(told["masked"] == (told["rollout"]["finish"] == "length") for told in kept) or rule != "mask"


def test_masked_tokens_are_in_no_loss_and_their_outcome_counts(start: Path) -> None:
    def given(masked: bool, tail: int) -> tuple[Row, ...]:
        cut = row(4, 0, 0, masked=masked)
        return row(3, 1, 0), replace(cut, ids=(*cut.ids[:-1], tail)), row(2, 0, 0)

    both = [losses(start, *given(True, tail)) for tail in (4, 9)]
    assert both[0] == both[1]
    seen = [losses(start, *given(False, tail)) for tail in (4, 9)]
    assert abs(seen[0][0] - seen[1][0]) > 1e-4
    assert abs(seen[0][1] - seen[1][1]) > 1e-4
    config = resolve(distrl.DistRLConfig(arm="grpo", preset="paper"))
    tokens = advantages.compute(rows(*given(True, 4)), None, config).tokens
    assert float(tokens[0, 0]) == pytest.approx((1 - 1 / 3) / (2 / 9) ** 0.5, abs=1e-5)  # of three, not of two
    assert tokens[1].tolist() == [0.0] * 4


def losses(start: Path, *given: Row) -> tuple[float, float]:
    """(reward model's, policy's) over these rows."""
    told = rows(*given)
    config = resolve(distrl.DistRLConfig(preset="paper", rm_margin=0.1))
    model = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "float32")))
    micros = micro_batches(told, [[i] for i in range(len(given))], 64)
    candidates, _ = models.old_candidates(Models(model, None, False, None), told, micros, 0.1)
    old_logprobs = candidates.old_logprobs
    every = list(range(len(given)))
    rm = updates.rm_gradients(model, told, every, torch.full_like(old_logprobs[:, 0], -2.0), config, 64)["rm_loss"]
    assigned = advantages.compute(told, 0.1 * old_logprobs, config)
    targets = updates.policy_targets(told, candidates, assigned, None, config)
    return rm, updates.policy_gradients(model, told, every, targets, config, 64)["loss"]


def test_completions_without_a_token_count_and_have_no_terms(start: Path) -> None:
    """Two groups: an empty wrong answer makes the right one rarer, and adds nothing to any sum."""
    config = resolve(distrl.DistRLConfig(arm="grpo", preset="paper"))
    told = rows(row(3, 1, 0), row(0, 0, 0), row(0, 0, 0), row(0, 1, 1), row(2, 0, 1))
    tokens = advantages.compute(told, None, config).tokens
    assert tokens.shape == (5, 3)
    assert float(tokens[0, 0]) == pytest.approx(2**0.5, abs=1e-5)
    assert tokens[1].tolist() == tokens[3].tolist() == [0.0] * 3
    found = losses(start, *told.rows)
    assert all(math.isfinite(loss) for loss in found)
    # A mean over five sequences, of which three are 0.
    fuller = losses(start, *told.rows, row(0, 0, 1))
    assert found[0] != 0
    assert fuller[1] != found[1]
    assert advantages.compute(rows(row(0, 1, 0), row(0, 0, 0)), None, config).tokens.shape == (2, 0)


@pytest.mark.filterwarnings("ignore::prmbench.core.records.Notice")
def test_a_prompt_that_leaves_little_room_is_drawn_as_far_as_it_goes(start: Path, tmp_path: Path) -> None:
    prompts = save_prompts(tmp_path / "long.jsonl", ("x" * 55, "xy"))
    run(options(start, prompts, tmp_path / "out", steps=1, draw=2, prompts=2))
    assert max(column(tmp_path / "out", "length")) <= 8


def test_the_start_policys_rollouts_are_trained_on_first(
    start: Path, prompts: Path, held_out: Path, tmp_path: Path
) -> None:
    """Control: GRPO with the completions that a reward model was trained on."""
    given = [
        Rollout(f"q{p}/{k}", "xyx", f"x{'y' * k}Answer: {k}\n", outcome=int(k == p), finish="stop", group=f"q{p}")
        for p in (0, 1, 5)
        for k in (0, 1)
    ]
    write(tmp_path / "first.jsonl", given)
    common = {"arm": "grpo", "validation_data": held_out, "steps": 1}
    first = options(start, prompts, tmp_path / "out", first_rollouts=tmp_path / "first.jsonl", **common)
    run(first)
    assert column(tmp_path / "out", "step") == [0, 1]
    zero, _ = lines(tmp_path / "out")
    assert (zero["groups"], zero["kept"], zero["completions"]) == (2, 4, 6)  # the third prompt is all wrong
    assert [line["step"] for line in lines(tmp_path / "out", validations=True)] == [0, 1]
    run(options(start, prompts, tmp_path / "without", **common))
    assert distance(tmp_path / "out", tmp_path / "without") > 1e-4
    write(tmp_path / "none.jsonl", given[4:])
    with pytest.raises(UserError, match="no prompt has right and wrong"):
        run(replace(first, out=tmp_path / "no", first_rollouts=tmp_path / "none.jsonl"))


# --- numbers that are not finite ----------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, at: Sequence[int], key: str = "loss") -> None:
    """Makes the loss of certain updates NaN, gradients included."""
    inner, calls = getattr(updates, name), []

    def broken(runner: Any, *args: Any) -> dict[str, float]:
        found = inner(runner, *args)
        calls.append(0)
        if len(calls) not in at:
            return found
        for p in runner.trained:
            if p.grad is not None:
                p.grad.fill_(math.nan)
        return {**found, key: math.nan}

    monkeypatch.setattr(updates, name, broken)


@pytest.mark.parametrize(("name", "key"), [("policy_gradients", "loss"), ("rm_gradients", "rm_loss")])
def test_an_update_that_is_not_finite_is_left_out_and_counted(
    name: str, key: str, start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, name, [2], key)
    done = run(options(start, prompts, tmp_path / "out", steps=3))
    assert column(tmp_path / "out", "skipped") == [0, 1, 0]
    assert done.alarms == tuple(sorted({*done.alarms, "skipped"}))
    assert "skipped" in column(tmp_path / "out", "alarms")[1]
    assert column(tmp_path / "out", key)[1] is None
    assert all(w.isfinite().all() for w in weights(tmp_path / "out").values())
    told = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert "NaN" not in told
    assert "Infinity" not in told


def test_three_in_a_row_end_the_run_and_the_checkpoint_stays(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(start, prompts, tmp_path / "out", arm="grpo", steps=6, save_every=1)
    spoil(monkeypatch, "policy_gradients", [2, 4, 5, 6])
    with pytest.raises(NonFiniteError, match=r"step 6: policy loss nan.*3 times in a row") as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert column(tmp_path / "out", "skipped") == [0, 1, 0, 1, 1]
    assert sorted(p.name for p in (tmp_path / "out" / "checkpoints").iterdir()) == ["00000004", "00000005"]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    monkeypatch.undo()
    assert run(config).fresh  # the sixth step again, from the checkpoint of the fifth
    assert column(tmp_path / "out", "skipped") == [0, 1, 0, 1, 1, 0]


def test_weights_that_an_update_spoils_are_not_kept(start: Path, prompts: Path, tmp_path: Path) -> None:
    """Loss and gradient are finite, and the product with the rate is not: nothing could be drawn from such weights."""
    common = {"arm": "grpo_ipvrm", "gae_weight": 1e4, "optimizer": "sgd", "max_grad_norm": 0.0, "save_every": 1}
    config = options(start, prompts, tmp_path / "out", learning_rate=3e38, **common)
    with pytest.raises(NonFiniteError, match="step 1: leaves weights of the policy that are not finite"):
        run(config)
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


# --- memory -----------------------------------------------------------------------------------------------------------


def short_of_memory(monkeypatch: pytest.MonkeyPatch, name: str, most: int, seen: list[int]) -> None:
    """A forward or backward pass of more than `most` padded tokens at a time runs out of memory, half-way through."""
    inner = getattr(updates, name)

    def limited(*args: Any) -> Any:
        seen.append(args[-1])
        found = inner(*args)
        if args[-1] > most:
            raise torch.OutOfMemoryError("as a GPU says it")
        return found

    monkeypatch.setattr(updates, name, limited)


@pytest.mark.parametrize("name", ["policy_gradients", "rm_gradients"])
def test_out_of_memory_halves_the_batch_once(
    name: str, start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(start, prompts, tmp_path / "out", batch_tokens=64)
    seen: list[int] = []
    with monkeypatch.context() as patched:
        short_of_memory(patched, name, 32, seen)
        run(config)
    assert seen == [64, 32, 32]  # and gradients of the first try are gone
    run(replace(config, out=tmp_path / "small", batch_tokens=32))
    assert distance(tmp_path / "out", tmp_path / "small") < 1e-3
    assert column(tmp_path / "out", "grad_norm") == pytest.approx(column(tmp_path / "small", "grad_norm"), rel=1e-3)


def test_out_of_memory_twice_is_a_clear_stop(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(start, prompts, tmp_path / "out", batch_tokens=64, save_every=1)
    seen: list[int] = []
    with monkeypatch.context() as patched:
        short_of_memory(patched, "policy_gradients", 16, seen)
        with pytest.raises(RetryError, match="out of memory at 32 padded tokens") as caught:
            run(config)
    assert seen == [64, 32]
    assert "\n" not in str(caught.value)
    assert run(replace(config, batch_tokens=16)).fresh


def test_out_of_memory_in_a_forward_pass_without_gradients(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, calls = models.old_candidates, []

    def limited(*args: Any) -> Any:
        calls.append(len(args[2]))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("as a GPU says it")
        return inner(*args)

    monkeypatch.setattr(models, "old_candidates", limited)
    run(options(start, prompts, tmp_path / "out", batch_tokens=100, steps=1))
    assert calls[1] > calls[0]  # micro-batches


def test_a_row_longer_than_the_budget_has_a_micro_batch_of_its_own() -> None:
    told = rows(*(row(size, 0, 0) for size in (1, 9, 3, 9, 2)))
    found = micro_batches(told, [[i] for i in range(5)], 10)
    assert [m.rows.tolist() for m in found] == [[1], [3], [2, 4], [0]]
    assert sorted(int(i) for m in found for i in m.places) == list(range(24))
    unit = micro_batches(told, [[0, 1], [2, 3, 4]], 10)
    assert [m.rows.tolist() for m in unit] == [[0, 1], [2, 3, 4]]  # pairs stay together


def test_a_stand_in_counts_nothing(start: Path) -> None:
    """What a process does that has no rows while the others have some."""
    config = resolve(distrl.DistRLConfig(preset="paper"))
    model = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "float32")))
    nothing = rows()
    from prmbench.rl.token_rows import _stand_in

    stand_in = _stand_in("cpu")
    candidates, entropy = models.old_candidates(Models(model, None, False, None), nothing, [stand_in], 0.1)
    assert (len(entropy), candidates.token_ids.shape) == (0, (0, 11))
    both = Models(model, model, False, None)
    td = models.temporal_differences(both, nothing, [stand_in], candidates, config)
    assigned = advantages.compute(nothing, td, config)
    targets = updates.policy_targets(nothing, candidates, assigned, None, config)
    assert len(targets.advantages) == 0
    assert step_rollouts.skip_reason([], "drop") == "unverified"
