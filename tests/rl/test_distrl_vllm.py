"""train-distrl beside an engine that sleeps while the policy learns. A stand-in takes vLLM's place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_fixtures import lines, options, run, save_policy, save_prompts
from safetensors.torch import load_file
from torch import Tensor

from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.engines.vllm import VllmEngine, VllmOptions, _with_memory_limits
from prmbench.engines.weight_sync_check import perturbed_weights
from prmbench.rl import distrl
from prmbench.rl.sampler import MergedWeights, later_bytes
from prmbench.training.model import ModelSetup, merged, open_runner


class StandIn:
    """A copy of the policy with the methods of `VllmEngine`; asleep it has no weights and refuses to draw."""

    def __init__(self, engine: HFEngine, events: list[str]) -> None:
        self.engine, self.events, self.asleep = engine, events, False

    def __getattr__(self, name: str) -> Any:
        if name == "sample_continuously":  # vLLM takes batches
            raise AttributeError(name)
        return getattr(self.engine, name)

    def sample(self, *arguments: Any) -> Any:
        assert not self.asleep
        self.events.append("draw")
        return self.engine.sample(*arguments)

    def sleep(self) -> None:
        self.asleep = True
        self.events.append("sleep")
        with torch.no_grad():
            for weight in self.engine.model.parameters():  # as vLLM's level 2 leaves them
                weight.fill_(float("nan"))

    def wake_up(self) -> None:
        self.events.append("wake up" if self.asleep else "awake")
        self.asleep = False

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        assert not self.asleep
        self.events.append("push")
        self.engine.model.load_state_dict(dict(weights))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    happened: list[str] = []

    def opened(name: str, revision: str | None, placement: Placement, options: VllmOptions) -> StandIn:
        assert options.push == "weights"
        assert options.trainer_bytes > 0
        return StandIn(load(name, "lm", placement), happened)

    inner = distrl.learn

    def learn(*arguments: Any) -> Any:
        happened.append("learn")
        return inner(*arguments)

    monkeypatch.setattr("prmbench.engines.vllm.open_vllm", opened)
    monkeypatch.setattr(distrl, "learn", learn)
    return happened


def test_the_engine_sleeps_while_the_policy_learns(tmp_path: Path, events: list[str]) -> None:
    """Woken, it gets weights before it draws: asleep it had none. The metrics are those of our own sampler."""
    start, prompts = save_policy(tmp_path / "start", 0), save_prompts(tmp_path / "prompts.jsonl")
    config = dict(arm="grpo", steps=2, rounds=1, draw=6)
    run(options(start, prompts, tmp_path / "out", engine="vllm", **config))
    self_test = ["awake", "push", "draw"] * 2
    step = ["draw", "sleep", "learn", "wake up", "push"]
    assert events == [*self_test, "awake", "push", *step, *step]
    assert not (tmp_path / "out" / "weights").exists()
    run(options(start, prompts, tmp_path / "hf", **config))
    by_vllm, by_hf = ([(line["length"], line["accuracy"]) for line in lines(tmp_path / n)] for n in ("out", "hf"))
    assert by_vllm == by_hf
    assert max(line["mismatch_rms"] for line in lines(tmp_path / "out")) < 1e-5


def test_a_sleeping_engine_leaves_room_for_what_the_trainer_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizers' state, and DDP's buckets of gradients, 4 bytes a number; a checkpoint has brought the state."""
    parameter = torch.nn.Parameter(torch.ones(10))
    optimizer = torch.optim.AdamW([parameter])
    kept = {name: later_bytes([optimizer, optimizer], name) for name in ("adamw", "adamw_8bit", "sgd")}
    assert kept == {"adamw": 2 * 80, "adamw_8bit": 2 * 20, "sgd": 0}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert later_bytes([optimizer, optimizer], "adamw_8bit") == 2 * (20 + 40)
    parameter.grad = torch.ones(10)
    optimizer.step()
    assert later_bytes([optimizer], "adamw") == 40
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert later_bytes([optimizer], "adamw") == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 100))
    shares = [
        _with_memory_limits(VllmOptions("weights", trainer_bytes=kept), "cuda:0", sleeps).memory
        for kept, sleeps in ((20, False), (20, True), (80, True))
    ]
    assert shares == pytest.approx([0.3, 0.32, 0.0])


class Llm:
    """Notes what is asked of a `vllm.LLM`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self) -> None:
        self.calls.append("wake_up")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_vllm_sleeps_at_its_level_and_wakes_once(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = Llm()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: llm.calls.append("empty_cache"))
    engine = VllmEngine.__new__(VllmEngine)
    engine.llm, engine.sleep_level, engine._is_asleep = llm, level, False
    for _ in range(2):
        engine.wake_up()  # it is awake
        engine.sleep()
        engine.sleep()
        engine.wake_up()
    assert llm.calls == [("sleep", level), "empty_cache", "wake_up"] * (2 if level else 0)


def test_adapters_are_merged_one_layer_at_a_time(tmp_path: Path) -> None:
    """As a whole state would be: every weight under its own name, W + B A where there is an adapter."""
    start = save_policy(tmp_path / "start", 0)
    policy = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "float32"), lora_rank=2))
    with perturbed_weights(policy.module):
        found = dict(MergedWeights(policy))
        expected = merged(policy.model.state_dict(), policy.model)
    assert (
        found.keys() == expected.keys() == load(str(start), "lm", Placement("cpu", "float32")).model.state_dict().keys()
    )
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    before = load_file(start / "model.safetensors")
    assert sum(not torch.equal(weight, before[name]) for name, weight in found.items() if name in before) == 2 * 7
