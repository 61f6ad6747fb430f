"""What a step of DistRL costs, counted: forward passes per completion, floating-point operations, bytes of a sync."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_fixtures import HELD_OUT, distance, lines, options, row, rows, run, save_prompts
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from prmbench.config.distrl_options import DistRLConfig, resolve
from prmbench.engines.hf import Placement
from prmbench.engines.weight_sync import AdapterWeights, AdapterWriter, ModelWeights, WeightsWriter
from prmbench.rl import advantages, distrl, models, updates
from prmbench.rl.monitors import TIMING
from prmbench.rl.token_rows import micro_batches
from prmbench.training.model import Forward, ModelSetup, open_runner, with_shared_base


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Counter[str]]:
    """The models that a run opens, and the rows that go through each: policy first, then reward model, then start."""
    opened: list[Any] = []
    passed: Counter[str] = Counter()

    def watching(inner: Callable[..., Any], *args: Any) -> Any:
        runner = inner(*args)
        name = ("policy", "rm", "start")[len(opened)]
        opened.append(runner)
        runner.module.register_forward_hook(lambda _, given, __: passed.update({name: len(given[0])}))
        return runner

    for module, opener in ((models, open_runner), (distrl, open_runner), (models, with_shared_base)):
        monkeypatch.setattr(module, opener.__name__, partial(watching, opener))
    return opened, passed


@pytest.mark.parametrize(
    ("arm", "more", "expected"),
    [
        ("distrl_ipvrm", {}, {"policy": 2, "rm": 2}),
        ("distrl_ipvrm", {"lora_rank": 2}, {"policy": 2, "rm": 2}),
        ("distrl_dpo_rm", {"minibatch": 1, "rm_minibatch": 1}, {"policy": 2, "rm": 2}),
        ("distrl_ipvrm_frozen", {"rm_model": "start"}, {"policy": 2, "rm": 1}),
        ("prime", {}, {"policy": 2, "rm": 2, "start": 1}),
        ("distrl_ipvrm", {"reference": "sft"}, {"policy": 2, "rm": 2, "start": 1}),
        ("grpo", {}, {"policy": 1}),
        ("grpo", {"lora_rank": 2, "truncated": "mask"}, {"policy": 1}),
        ("grpo", {"minibatch": 1}, {"policy": 2}),
    ],
)
def test_a_step_makes_no_more_passes_than_its_arm_needs(
    arm: Any,
    more: dict[str, Any],
    expected: dict[str, int],
    start: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, passed = watched(monkeypatch)
    more = {**more, "rm_model": str(start)} if "rm_model" in more else more
    run(options(start, prompts, tmp_path / "out", arm=arm, **more))
    used = sum(line["kept"] for line in lines(tmp_path / "out"))
    assert used == 24
    assert {name: rows / used for name, rows in passed.items()} == expected
    assert len(opened) == len(expected)


def test_an_old_pass_is_made_for_another_engine_s_completions(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = distrl.open_source
    monkeypatch.setattr(distrl, "open_source", lambda *args: replace(inner(*args), foreign=True))
    _, passed = watched(monkeypatch)
    run(options(start, prompts, tmp_path / "out", arm="grpo"))
    assert passed["policy"] == 2 * sum(line["kept"] for line in lines(tmp_path / "out"))


@pytest.mark.parametrize(
    "more",
    [
        {"preset": "paper"},
        {"preset": "release", "truncated": "mask", "minibatch": 0},
        {"arm": "vineppo", "batch_tokens": 40},
        {"arm": "grpo_vps", "lora_rank": 2, "gradient_checkpointing": True},
        {"dtype": "bfloat16"},
    ],
)
def test_the_update_s_own_pass_gives_the_numbers_of_a_pass_before_it(
    more: dict[str, Any], start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All numbers of metrics.jsonl but those of the machine, and the weights of every checkpoint, to the last bit."""
    held_out = save_prompts(tmp_path / "held_out.jsonl", HELD_OUT[:2])
    usual = {"arm": "grpo", "validation_data": held_out, "validate_every": 1, "validation_samples": 1, "save_every": 1}
    for name in ("one", "two"):
        run(options(start, prompts, tmp_path / name, **{**usual, **more}))
        monkeypatch.setattr(distrl, "_is_one_pass", lambda *_: False)
    one, two = (
        [{k: v for k, v in line.items() if k not in TIMING} for line in lines(tmp_path / name)]
        for name in ("one", "two")
    )
    assert one == two
    assert [list(line) for line in one] == [list(line) for line in two]
    assert all(line["entropy"] > 0.1 and line["kl_sft"] is not None and line["mismatch_rms"] < 0.1 for line in one)
    assert distance(tmp_path / "one", tmp_path / "two") == 0
    checkpoints = [sorted((tmp_path / name / "checkpoints").iterdir()) for name in ("one", "two")]
    assert [path.name for path in checkpoints[0]] == [path.name for path in checkpoints[1]] != []


def test_operations_are_those_of_eight_forward_passes(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both models a pass without and one with gradients, which is three; the head's logits once more, backwards.

    A unit is a pass of the body, or of the head, over what a micro-batch holds, padding included. Products inside the
    attention are in neither number: on a CPU they are one operation that FlopCounterMode does not know.
    """
    body = head = 0
    inner = Forward.forward
    config = dict(hidden=16, inside=24, layers=2, kv=8, vocabulary=10)
    h, i, kv = config["hidden"], config["inside"], config["kv"]
    weights = config["layers"] * (h * h * 2 + h * kv * 2 + 3 * h * i)

    def counting(
        self: Any, ids: torch.Tensor, score_positions: torch.Tensor, targets: torch.Tensor, p_min: Any = None
    ) -> Any:
        nonlocal body, head
        tokens = ids.numel()
        times = 3 if torch.is_grad_enabled() else 1
        body += times * tokens * 2 * weights
        head += (4 if times == 3 else 1) * len(score_positions) * 2 * h * config["vocabulary"]
        return inner(self, ids, score_positions, targets, p_min)

    monkeypatch.setattr(Forward, "forward", counting)
    learnt: list[int] = []
    inner_learn = distrl.learn

    def counted(*args: Any) -> Any:
        with FlopCounterMode(display=False) as flops:
            found = inner_learn(*args)
        learnt.append(flops.get_total_flops())
        return found

    monkeypatch.setattr(distrl, "learn", counted)
    run(options(start, prompts, tmp_path / "out", batch_tokens=100_000, steps=1, adb=False, dlw=False))
    assert sum(learnt) <= 1.05 * (body + head)
    assert sum(learnt) >= 0.95 * (body + head)  # it is what is counted


def test_a_sync_sends_two_bytes_a_weight_or_the_adapter_alone(start: Path, tmp_path: Path) -> None:
    whole = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "bfloat16")))
    (tmp_path / "weights").mkdir()
    (tmp_path / "adapter").mkdir()
    WeightsWriter(whole.model, whole.engine.tokenizer, torch.bfloat16)(
        tmp_path / "weights", dict(ModelWeights(whole.model))
    )
    count = sum(p.numel() for p in whole.model.parameters())
    header = 8 * 1024  # names and shapes
    assert (tmp_path / "weights" / "model.safetensors").stat().st_size <= 2 * count + header
    adapted = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "float32"), lora_rank=2))
    state = dict(AdapterWeights(adapted.model))
    AdapterWriter(adapted.adapters.peft_config["default"])(tmp_path / "adapter", state)
    trained = sum(p.numel() for p in adapted.trained)
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert 4 * trained <= size <= 4 * trained + header
    assert trained == sum(tensor.numel() for tensor in state.values())


class _Waits(TorchDispatchMode):
    """Counts the numbers that are read from tensors one by one, for each of which a GPU is waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", ["ipvrm", "dpo_rm"])
def test_gradients_wait_for_the_device_no_more_often_for_more_micro_batches(loss: Any, start: Path) -> None:
    """Transformers waits once in each pass, when it makes its mask."""
    model = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "float32")))
    given = rows(*(row(3 + i % 2, i % 2, i // 4) for i in range(16)))
    every = list(range(16))
    config = resolve(DistRLConfig(preset="release", rm_loss=loss))
    zeros = advantages.Advantages(torch.zeros(16, 4), torch.zeros(56, 0), {})
    waits, passes = [], []
    for budget in (1, 10_000):
        with _Waits() as counter:
            updates.rm_gradients(model, given, every, torch.full((56,), -2.0), config, budget)
            candidates, entropy = updates.unread_candidates(given)
            targets = updates.policy_targets(given, candidates, zeros, None, config, entropy)
            updates.policy_gradients(model, given, every, targets, config, budget)
        waits.append(counter.count)
        units = [every[i : i + 4] for i in range(0, 16, 4)] if loss == "dpo_rm" else [[i] for i in every]
        passes.append(sum(len(micro_batches(given, u, budget)) for u in (units, [[i] for i in every])))
    assert passes[0] >= passes[1] + 18
    assert waits[0] - waits[1] <= passes[0] - passes[1]
    assert waits[1] < 10  # nor once a row
