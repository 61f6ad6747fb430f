"""A run of train-distrl that is killed, stopped or run twice: weights and metrics are those of one that was not."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import distrl_runs
import pytest
from forked import Child
from rl_fixtures import HELD_OUT, column, lines, options, run, save_prompts

from prmbench.config.distrl_options import DistRLConfig
from prmbench.core.records import UserError
from prmbench.rl import distrl, step_rollouts
from prmbench.rl.monitors import TIMING

STEPS = 5
OPTIONS = {
    "steps": STEPS,
    "minibatch": 1,
    "rm_minibatch": 2,
    "save_every": 2,
    "validate_every": 2,
    "validation_samples": 2,
    "warmup": 3,
    "learning_rate": 3e-3,
    "rm_learning_rate": 3e-3,
}
KILLS = [
    # (where, at which call since the run went on): a step has two updates of the reward model and three of the policy.
    ("prmbench.engines.generation.decode_completion", 20),  # while completions of a step are drawn
    ("prmbench.rl.updates.rm_gradients", 4),  # in the reward model's second update of step 2
    ("prmbench.training.checkpoints._seal", 1),  # in saving: shares are written, the manifest is not
    ("prmbench.rl.updates.policy_gradients", 8),  # in the policy's second update of step 3
    ("prmbench.rl.resume.store_rollouts", 1),  # completions of step 4 are drawn and not kept
    ("prmbench.training.run_folder.log", 2),  # step 4 is done and not yet told of
    ("prmbench.core.result_files.write_run", 1),  # all steps done, the result half-written
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prompts(tmp_path_factory.mktemp("prompts") / "held_out.jsonl", HELD_OUT)


def arguments(config: DistRLConfig) -> list[str]:
    """The command line of a run."""
    usual = DistRLConfig()
    found = ["--quiet"]
    for f in fields(config):
        if getattr(config, f.name) != getattr(usual, f.name):
            found += [f"--{f.name.replace('_', '-')}", str(getattr(config, f.name))]
    return found


def numbers(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl less what differs from machine to machine."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in found]


def alike(a: Path, b: Path) -> bool:
    """Weights of policy and reward model, byte for byte, and all that was written down."""
    files = ("model.safetensors", "rm/model.safetensors")
    return numbers(a) == numbers(b) and all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


@pytest.mark.slow
def test_resume_after_kills_gives_what_an_uninterrupted_run_gives(
    start: Path, prompts: Path, held_out: Path, tmp_path: Path
) -> None:
    """A kill -9 in every part of the loop, the same command each time, and SIGTERM twice besides."""

    def code(out: Path, *signal: object) -> int:
        config = options(start, prompts, out, validation_data=held_out, **OPTIONS)
        with Child(distrl_runs.with_signal, arguments(config), *signal) as command:
            return command.wait()

    whole, killed, stopped = (tmp_path / name for name in ("whole", "killed", "stopped"))
    assert code(whole) == 0
    assert [code(killed, *kill, "SIGKILL") for kill in KILLS] == [-9] * len(KILLS)
    assert code(killed) == 0
    assert code(stopped, "prmbench.rl.updates.policy_gradients", 2, "SIGTERM") == 143
    assert code(stopped, "prmbench.sampling.completions.sample_plan", 2, "SIGINT") == 143
    assert [code(stopped), code(whole)] == [0, 0]
    assert len(lines(whole)) == STEPS
    assert [line["step"] for line in lines(whole, validations=True)] == [0, 2, 4, 5]
    assert alike(whole, killed)
    assert alike(whole, stopped)
    (first,), (second,) = ([f.name for f in (out / "result").glob("*[0-9a-f].json")] for out in (whole, killed))
    assert first == second
    scores = f"result/{first}".replace(".json", ".scores.jsonl.gz")
    assert (whole / scores).read_bytes() == (killed / scores).read_bytes()


def interrupted(config: DistRLConfig, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in the midst of the policy's update number `at`: the step ends, and so does the run."""
    import os
    import signal

    inner, calls = distrl.updates.policy_gradients, []

    def counted(*args: Any) -> Any:
        calls.append(0)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*args)

    with monkeypatch.context() as patched:
        patched.setattr(distrl.updates, "policy_gradients", counted)
        with pytest.raises(KeyboardInterrupt):
            run(config)


def test_resume_uses_the_completions_that_were_drawn(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never those of another step."""
    config = options(start, prompts, tmp_path / "out", steps=3)
    run(options(start, prompts, tmp_path / "whole", steps=3))
    drawn: list[int] = []
    inner = step_rollouts.draw

    def counted(*args: Any) -> Any:
        drawn.append(args[-1])  # where in the stream of prompts
        return inner(*args)

    monkeypatch.setattr(step_rollouts, "draw", counted)

    def breaks(*_: Any) -> Any:
        raise RuntimeError("as if killed")

    with monkeypatch.context() as patched:
        patched.setattr(distrl.updates, "rm_gradients", breaks)
        with pytest.raises(RuntimeError):
            run(config)
    assert drawn == [0]  # drawn for step 1, and kept
    interrupted(config, monkeypatch, 1)  # step 1 is done with those
    assert drawn == [0]
    kept = tmp_path / "out" / "drawn" / "0.jsonl"
    assert json.loads(kept.read_text().splitlines()[0])["done"] == 0
    run(config)  # the file of step 1 is not taken for step 2
    assert len(drawn) == 3
    assert drawn == sorted(set(drawn))
    assert alike(tmp_path / "out", tmp_path / "whole")


def test_resume_draws_again_where_the_kept_completions_are_damaged_or_foreign(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(start, prompts, tmp_path / "out", steps=2)
    run(options(start, prompts, tmp_path / "whole", steps=2))
    interrupted(config, monkeypatch, 1)
    kept = tmp_path / "out" / "drawn" / "0.jsonl"
    head, *rest = kept.read_text().splitlines()
    kept.write_text("\n".join([json.dumps({**json.loads(head), "done": 1, "run": "another"}), *rest]))
    run(config)
    assert alike(tmp_path / "out", tmp_path / "whole")
    again = options(start, prompts, tmp_path / "again", steps=2)
    interrupted(again, monkeypatch, 1)
    (tmp_path / "again" / "drawn" / "0.jsonl").write_text("{")
    run(again)
    assert alike(tmp_path / "again", tmp_path / "whole")


def test_resume_refuses_the_checkpoint_of_another_run(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (options(start, prompts, tmp_path / n, steps=2, seed=s) for n, s in (("one", 0), ("two", 1)))
    for config in (one, two):
        interrupted(config, monkeypatch, 1)
    shutil.rmtree(two.out / "checkpoints")
    shutil.copytree(one.out / "checkpoints", two.out / "checkpoints")
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        run(two)
    assert run(one).fresh


def test_resume_never_refuses_and_a_finished_run_does_nothing(
    start: Path, prompts: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(start, prompts, tmp_path / "out", validation_data=held_out)
    interrupted(config, monkeypatch, 1)
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--resume is never"):
        run(options(start, prompts, tmp_path / "out", validation_data=held_out, resume="never"))
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before
    first = run(config)
    assert first.fresh
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    again = run(config)
    assert not again.fresh
    assert (again.before, again.after, again.result) == (first.before, first.after, first.result)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp
    assert column(tmp_path / "out", "step") == [1, 2]


def test_resume_goes_on_from_half_the_budget_or_a_smaller_one(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What memory allowed is remembered; --batch-tokens, given anew, holds."""
    config = options(start, prompts, tmp_path / "out", batch_tokens=64, steps=3)
    seen: list[int] = []
    inner = distrl.updates.policy_gradients

    def watched(*args: Any) -> Any:
        seen.append(args[-1])
        if len(seen) == 1:
            import torch

            raise torch.OutOfMemoryError("as a GPU says it")
        return inner(*args)

    monkeypatch.setattr(distrl.updates, "policy_gradients", watched)
    interrupted(config, monkeypatch, 2)
    assert seen == [64, 32]
    interrupted(config, monkeypatch, 1)
    assert seen == [64, 32, 32]
    run(options(start, prompts, tmp_path / "out", batch_tokens=20, steps=3))
    assert seen == [64, 32, 32, 10]
