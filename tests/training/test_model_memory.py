"""What lies in memory: frozen weights in half precision, one base for several models, Adam's state; same numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import model_runs
import pytest
import torch
import transformers
from forked import run_group
from model_runs import IDS, facts, logprobs
from rl_fixtures import SGD, column, distance, lines, options, run, save_policy, save_prompts, weights, words
from safetensors.torch import save_file
from torch import nn
from train_runs import data
from train_runs import options as train_options
from train_runs import run as train

from prmbench.config import TrainConfig
from prmbench.core.option_values import from_mapping
from prmbench.core.records import Notice, RetryError, UserError
from prmbench.engines.hf import Placement
from prmbench.rl import models
from prmbench.training import model as training_model
from prmbench.training import optimiser, run_setup
from prmbench.training.model import ModelSetup, Runner, open_runner, with_shared_base

BF16 = Placement("cpu", "bfloat16")
ADAPTERS = {"arm": "distrl_ipvrm", "lora_rank": 2, "alpha": 0.1, "gae_weight": 0.5, "steps": 4}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("start"))


def save_rounded(folder: Path, **more: Any) -> str:
    """A policy whose head is bfloat16 already: on a CPU products of the head are not rounded at these sizes."""
    save_policy(folder, **more)
    state = weights(folder)
    if "lm_head.weight" in state:
        state["lm_head.weight"] = state["lm_head.weight"].bfloat16().float()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelSetup, "frozen_dtype", torch.bfloat16)


# --- frozen weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "float32", torch.float32),
        ("cpu", "bfloat16", torch.float32),
        ("cuda:0", "bfloat16", torch.bfloat16),
        ("cuda:0", "float32", torch.float32),
    ],
)
def test_frozen_matrices_have_the_precision_of_the_forward_pass_on_a_gpu(
    device: str, dtype: str, expected: torch.dtype
) -> None:
    assert ModelSetup(Placement(device, dtype)).frozen_dtype == expected


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_model_gives_the_bits_of_float32_weights_under_autocast(tied: bool, tmp_path: Path) -> None:
    folder = save_rounded(tmp_path / "model", tie_word_embeddings=tied)
    trained = open_runner(folder, None, "lm", ModelSetup(BF16))
    frozen = open_runner(folder, None, "lm", ModelSetup(BF16, frozen=True))
    assert torch.equal(logprobs(frozen), logprobs(trained))
    assert {p.dtype for p in trained.trained} == {torch.float32}
    assert not frozen.trained
    assert not frozen.model.training
    dtypes = {name: p.dtype for name, p in frozen.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "proj" in name} == {torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if "norm" in name or "embed" in name} == {torch.float32}
    assert dtypes.get("lm_head.weight") == (None if tied else torch.bfloat16)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_adapters_on_a_base_in_half_precision_have_the_gradients_of_one_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_rounded(tmp_path / "model")

    def gradients() -> list[torch.Tensor]:
        runner = open_runner(folder, None, "lm", ModelSetup(BF16, lora_rank=2))
        for name, p in runner.model.named_parameters():
            assert p.dtype == torch.float32 or "base_layer" in name or name == "lm_head.weight"
            if ".lora_B." in name:
                nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
        runner.run(IDS, torch.arange(5), IDS[0, 1:]).sum().backward()
        return [p.grad for p in runner.trained if p.grad is not None]

    half = gradients()
    monkeypatch.setattr(training_model, "_cast_frozen_matrices", lambda *_: None)
    for ours, expected in zip(half, gradients(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_model_with_adapters_is_saved_in_float32(policy: Path, tmp_path: Path) -> None:
    more = {"lora_rank": 2, "dtype": "bfloat16", "steps": 2}
    train(train_options(policy, data(tmp_path), tmp_path / "out", **more))
    assert {w.dtype for w in weights(tmp_path / "out").values()} == {torch.float32}


def test_without_a_process_group_nothing_is_wrapped(start: Path) -> None:
    frozen = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "float32"), frozen=True))
    told = facts(frozen)
    assert (told["wrapper"], told["trained"], told["training"]) == ("Forward", 0, False)
    assert told["matrices"] == ["torch.float32"]


@pytest.mark.slow
def test_two_processes_wrap_what_is_trained_and_shard_what_is_not(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "told.json"
    run_group(model_runs.open_all, str(start), out)
    told = json.loads(out.read_text())
    wrappers = {name: runner["wrapper"] for name, runner in told.items()}
    assert wrappers["ddp lora"] == wrappers["ddp shared"] == "DistributedDataParallel"
    assert wrappers["ddp frozen"] == "Forward"
    assert wrappers["fsdp lora"] == wrappers["fsdp frozen"] == "FSDPForward"
    for name, runner in told.items():
        assert runner["matrices"] == ["torch.bfloat16"], name
        assert runner["others"] == ["torch.float32"], name
        assert (runner["trained"] > 0) == runner["training"] == ("frozen" not in name), name
    same = told["ddp frozen"]["logprobs"]  # adapters begin as zero
    assert told["ddp lora"]["logprobs"] == told["ddp shared"]["logprobs"] == same
    assert told["fsdp frozen"]["logprobs"] == told["fsdp lora"]["logprobs"]
    assert told["fsdp frozen"]["logprobs"] == pytest.approx(same, abs=0.05)  # FSDP's norms compute in bfloat16


# --- one base -----------------------------------------------------------------------------------------------------


def stored(*runners: Runner) -> int:
    """Bytes of all parameters, each counted once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for r in runners for p in r.model.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


def test_a_shared_base_is_in_memory_once(start: Path) -> None:
    setup = ModelSetup(Placement("cpu", "float32"), lora_rank=2)
    policy = open_runner(str(start), None, "lm", setup)
    rm = with_shared_base(policy, setup)
    adapters = sum(4 * p.numel() for p in policy.trained)
    assert stored(policy, rm) == stored(policy) + adapters
    apart = open_runner(str(start), None, "lm", setup)
    for ours, expected in zip(rm.trained, apart.trained, strict=True):
        assert torch.equal(ours, expected)  # as if it had been opened by itself
    with torch.no_grad():
        for p in rm.trained:
            p.add_(0.1)
    assert torch.equal(logprobs(policy), logprobs(apart))  # the policy keeps its own adapters
    assert not torch.equal(logprobs(rm), logprobs(apart))
    with rm.adapters.disable_adapter():
        assert torch.equal(logprobs(rm), logprobs(apart))


@pytest.mark.parametrize("reference", ["behaviour", "sft"])
def test_a_run_on_one_base_gives_the_bits_of_a_run_on_two(
    reference: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that was stopped when bases were apart goes on with one."""
    prompts = save_prompts(tmp_path / "prompts.jsonl")

    def config(name: str, **more: Any) -> Any:
        return options(start, prompts, tmp_path / name, **SGD, **ADAPTERS, save_every=2, reference=reference, **more)

    opened: list[Runner] = []

    def apart(_: Runner, setup: ModelSetup) -> Runner:
        opened.append(open_runner(str(start), None, "lm", setup))
        return opened[-1]

    run(config("one"))
    with monkeypatch.context() as patched:
        patched.setattr(models, "with_shared_base", apart)
        run(config("two"))
        (tmp_path / "stopped").mkdir()
        stop_after(config("stopped"), 2)
    assert opened
    run(config("stopped"))
    for other in ("two", "stopped"):
        assert distance(tmp_path / "one", tmp_path / other) == 0, other
        assert distance(tmp_path / "one" / "rm", tmp_path / other / "rm") == 0, other
        for name in ("loss", "rm_loss", "grad_norm", "rm_grad_norm", "entropy", "kl_old"):
            assert column(tmp_path / "one", name) == column(tmp_path / other, name), (other, name)
    assert distance(tmp_path / "one", tmp_path / "one" / "rm") > 0
    assert len(lines(tmp_path / "stopped")) == 4


def stop_after(config: Any, steps: int) -> None:
    class Stop(Exception):
        pass

    def progress(done: int, *_: Any) -> None:
        if done == steps + 1:
            raise Stop

    from prmbench.rl.distrl import train_distrl

    with pytest.raises(Stop):
        train_distrl(config, progress)


# --- what a GPU has by default --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "option", "expected"),
    [("cuda:0", "auto", True), ("cuda:0", "off", False), ("cpu", "auto", False), ("cpu", "on", True)],
)
def test_checkpointing_is_on_by_default_on_a_gpu(
    device: str, option: Literal["auto", "on", "off"], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_setup, "placement", lambda _: Placement(device, "bfloat16"))
    setup = run_setup.model_setup(TrainConfig(gradient_checkpointing=option))
    assert setup.gradient_checkpointing is expected
    assert "gradient_checkpointing" in run_setup.NOT_IDENTITY


def test_a_model_that_cannot_recompute_activations_is_trained_all_the_same(
    start: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """On a GPU nobody has asked for it."""
    config = transformers.OpenAIGPTConfig(vocab_size=len(words()), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt")
    words().save_pretrained(tmp_path / "gpt")
    setup = ModelSetup(Placement("cpu", "float32"), gradient_checkpointing=True)
    recomputing = [m for m in open_runner(str(start), None, "lm", setup).model.modules() if hasattr(m, "layers")]
    assert [m.gradient_checkpointing for m in recomputing] == [True]
    assert not recwarn.list
    with pytest.warns(Notice, match="OpenAIGPTLMHeadModel has no gradient checkpointing"):
        runner = open_runner(str(tmp_path / "gpt"), None, "lm", setup)
    logprobs(runner)


@pytest.mark.parametrize(("stored", "expected"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_files_and_records_may_have_the_switch_that_checkpointing_was(stored: object, expected: str) -> None:
    assert from_mapping(TrainConfig, {"gradient_checkpointing": stored}, "run.toml").gradient_checkpointing == expected


# --- the optimizer --------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_in_the_first_update_is_one_line(
    start: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("as a GPU says it")

    monkeypatch.setattr(torch.optim.AdamW, "step", short)
    config = options(start, save_prompts(tmp_path / "prompts.jsonl"), tmp_path / "rl", arm="grpo", optimizer="adamw")
    for start_run in (
        lambda: run(config),
        lambda: train(train_options(policy, data(tmp_path), tmp_path / "rm", steps=1)),
    ):
        with pytest.raises(RetryError, match="out of memory in the optimizer's update; give --optimizer") as caught:
            start_run()
        assert "\n" not in str(caught.value)


def test_eight_bit_adam_gets_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which the next test needs."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(__spec__=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=torch.optim.AdamW))
    parameter = nn.Parameter(torch.ones(2))
    made = optimiser.make([parameter], TrainConfig(optimizer="adamw_8bit", weight_decay=0.5))
    assert made.param_groups[0]["weight_decay"] == 0.5
    assert made.param_groups[0]["betas"] == (0.9, 0.999)
    with pytest.raises(UserError, match="takes whole weights; give --strategy ddp"):
        optimiser.check("adamw_8bit", sharded=True)


def test_eight_bit_adam_has_a_quarter_of_the_state_and_goes_on_where_it_was_stopped(
    policy: Path, tmp_path: Path
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    weight = nn.Parameter(torch.randn(256, 64))
    made = optimiser.make([weight], TrainConfig(optimizer="adamw_8bit"))
    assert isinstance(made, bitsandbytes.optim.AdamW8bit)
    weight.grad = torch.randn_like(weight)
    optimiser.step(made, 1e-3)
    tensors = [value for value in made.state[weight].values() if isinstance(value, torch.Tensor)]
    moments = sum(tensor.nbytes for tensor in tensors if tensor.shape == weight.shape)
    assert moments == 2 * weight.numel()
    file = data(tmp_path)

    def config(name: str) -> Any:
        return train_options(policy, file, tmp_path / name, optimizer="adamw_8bit", steps=4, save_every=2)

    class Stop(Exception):
        pass

    def progress(done: int, *_: Any) -> None:
        if done == 3:
            raise Stop

    train(config("through"))
    with pytest.raises(Stop):
        train(config("stopped"), progress=progress)
    train(config("stopped"))
    assert distance(tmp_path / "through", tmp_path / "stopped") == 0
    assert distance(tmp_path / "through", policy) > 0
