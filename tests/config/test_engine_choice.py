"""`--engine` and `--tensor-parallel`: what does not go together is one line, before anything is loaded or drawn.

What vLLM then does is tests/test_vllm.py's.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from conftest import save_model
from typer.testing import CliRunner

from prmbench.backends.common import open_lm
from prmbench.backends.ref_cache import reference_identity
from prmbench.cli import app
from prmbench.config import EvalConfig, RolloutConfig
from prmbench.core.records import UserError
from prmbench.data.prompts import Prompt
from prmbench.engines.hf import Placement
from prmbench.engines.vllm import READ_TOKENS, VllmOptions, check_device
from prmbench.sampling.completions import open_policy, prepare

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")


def refused(*arguments: object) -> str:
    """The one line of a mistake."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    folder = save_model(tmp_path / "classifier", 0, "AutoModelForTokenClassification", num_labels=2)
    (folder / "prm.json").write_text(json.dumps({"backend": "token_cls", "separator": "\n"}))
    return folder


def test_only_transformers_gives_normalisers(policy: Path, benchmark_folder: Path) -> None:
    """Which backend endo needs; the line says what the engine is good for."""
    told = ("--backend", "endo", "--data", benchmark_folder)
    line = refused("eval", "--model", policy, "--engine", "vllm", *told)
    assert "--engine vllm: backend endo" in line
    assert "vllm runs the backends implicit, critic, token_cls, value_head and tag_lm with a tag" in line


@pytest.mark.parametrize(
    "card",
    [
        {"backend": "token_cls", "separator": "\n"},  # a language model, without a head
        {"backend": "value_head"},
        {"backend": "value_head", "head": "v_head.summary."},
        {"backend": "token_cls", "separator": "\n", "head": "score."},  # of another architecture than Qwen's
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_head_that_vllm_does_not_read_is_refused(
    card: dict[str, str], more: tuple[str, ...], policy: Path, benchmark_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(policy, tmp_path / "model")
    (folder / "prm.json").write_text(json.dumps(card))
    line = refused("eval", "--model", folder, "--engine", "vllm", "--data", benchmark_folder, *more)
    assert f"--engine vllm: the head of {folder} (LlamaForCausalLM) is not one that vLLM reads" in line
    assert line.endswith("Qwen2ForProcessRewardModel, Qwen2ForRewardModel); use --engine hf")


def test_turns_need_the_whole_vocabulary(policy: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(policy, tmp_path / "model")
    (folder / "prm.json").write_text(json.dumps({"backend": "tag_lm", "joint": "\n\n"}))
    line = refused("eval", "--model", folder, "--engine", "vllm", "--data", benchmark_folder)
    assert "--engine vllm: backend tag_lm" in line


@pytest.mark.parametrize(
    "model",
    ["Qwen/Qwen2.5-Math-PRM-7B", "PRIME-RL/EurusPRM-Stage1", "peiyi9979/math-shepherd-mistral-7b-prm", "random"],
)
def test_a_server_is_asked_by_critics_alone(model: str, benchmark_folder: Path) -> None:
    """And the line says so, before it says what else such a model needs."""
    line = refused("eval", "--model", model, "--engine", "openai", "--data", benchmark_folder)
    assert "--engine openai: asks critics, and" in line
    assert line.endswith("use --engine hf, or ask it with --backend critic")
    unknown = refused("eval", "--model", "a-name", "--engine", "openai", "--data", benchmark_folder)
    assert unknown.endswith("say how to read it; pass --backend critic")


@pytest.mark.parametrize(
    "options", [("--critic", "yes_no"), ("--votes", 8), ("--base-url", "http://127.0.0.1:9/v1"), ("--max-cost", 1)]
)
def test_options_of_critics_are_not_passed_over(
    options: tuple[object, ...], policy: Path, benchmark_folder: Path
) -> None:
    line = refused("eval", "--model", policy, "--backend", "endo", "--data", benchmark_folder, *options)
    assert line.startswith(f"{options[0]}: is of critics, and ")
    assert line.endswith("is read by backend endo; drop it, or ask it with --backend critic")


@without_vllm
def test_a_classifier_needs_vllm_for_vllm(classifier: Path, benchmark_folder: Path) -> None:
    command = ("eval", "--model", classifier, "--data", benchmark_folder, "--engine", "vllm")
    assert "pip install 'prmbench[vllm]'" in refused(*command)
    planned = CliRunner().invoke(app, [str(a) for a in (*command, "--dry-run")])
    assert planned.exit_code == 0, planned.output


@without_vllm
def test_without_vllm_the_line_says_what_to_install(policy: Path, reference: Path, benchmark_folder: Path) -> None:
    line = refused(
        *("eval", "--model", policy, "--backend", "implicit", "--ref-model", reference),
        *("--engine", "vllm", "--data", benchmark_folder),
    )
    assert "pip install 'prmbench[vllm]', or use the engine hf" in line


def test_a_server_reads_no_log_ratio_and_draws_no_rollouts(
    policy: Path, reference: Path, benchmark_folder: Path
) -> None:
    told = ("--engine", "openai", "--data", benchmark_folder)
    line = refused("eval", "--model", policy, "--backend", "implicit", "--ref-model", reference, *told)
    assert "--engine openai: asks critics" in line
    with pytest.raises(UserError, match="--engine openai: asks critics"):
        open_policy(EvalConfig(model=str(policy), engine="openai", benchmark="policy"))


def test_hidden_tokens_are_not_vllms(policy: Path, reference: Path, benchmark_folder: Path) -> None:
    line = refused(
        *("eval", "--model", policy, "--backend", "implicit", "--ref-model", reference, "--boundary", "release"),
        *("--engine", "vllm", "--data", benchmark_folder),
    )
    assert "--boundary release: hides tokens from attention, and vLLM cannot" in line


@pytest.mark.parametrize("backend", ["endo", "implicit"])
def test_tensor_parallel_is_vllms(backend: str, policy: Path, reference: Path, benchmark_folder: Path) -> None:
    more = ("--ref-model", reference) if backend == "implicit" else ()
    told = ("eval", "--model", policy, "--backend", backend, *more, "--data", benchmark_folder)
    assert "--tensor-parallel 2: is vLLM's" in refused(*told, "--tensor-parallel", 2)
    assert "--device balanced" in refused(*told, "--tensor-parallel", 2)
    assert "expected at least 1" in refused(*told, "--tensor-parallel", 0)


@pytest.mark.parametrize(
    ("device", "gpus", "world", "built_for", "said"),
    [
        ("balanced", 1, "1", "cuda", "--device balanced: vLLM spreads a model by --tensor-parallel"),
        ("cpu", 1, "1", "cuda", "--device cpu: the vLLM that is installed runs on cuda"),
        ("cpu", 1, "1", "", "finds no device to run on; a CPU needs its CPU build"),
        ("cuda:1", 1, "1", "cuda", "set CUDA_VISIBLE_DEVICES=1"),
        ("cuda:0", 2, "2", "cuda", "start it without torchrun"),
        ("cpu", 99, "1", "cpu", "--tensor-parallel 99: torch sees"),
        ("cpu", 1, "2", "cpu", None),
        ("cuda:1", 1, "2", "cuda", None),
    ],
)
def test_devices_that_vllm_does_not_take(
    device: str, gpus: int, world: str, built_for: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun each process has the GPU of its number; alone vLLM takes the first."""
    monkeypatch.setenv("WORLD_SIZE", world)
    where, options = Placement(device, "float32"), VllmOptions(tensor_parallel=gpus)
    if said is None:
        check_device(where, options, built_for)
        return
    with pytest.raises(UserError) as caught:
        check_device(where, options, built_for)
    assert said in str(caught.value)


def test_options_reach_vllm() -> None:
    """The names are those of `vllm.LLM`."""
    found = VllmOptions(tensor_parallel=4, reads=True).arguments("bfloat16")
    assert found["tensor_parallel_size"] == 4
    assert found["max_num_batched_tokens"] == READ_TOKENS
    assert not {"tensor_parallel_size", "max_num_batched_tokens"} & set(VllmOptions().arguments("bfloat16"))


def test_a_dry_run_plans_for_vllm_and_starts_none(policy: Path) -> None:
    """Batches are journal entries there, and far larger than a forward pass."""
    asked = [Prompt(str(n), "What is 1 plus 1?", "2", "sums") for n in range(40)]
    batches = []
    for engine in ("hf", "vllm"):
        config = RolloutConfig(model=str(policy), engine=engine, dry_run=True, max_new_tokens=2000, device="cpu")
        batches.append(len(prepare(open_policy(config), asked, config).batches))
    assert batches[0] == batches[1] > 1  # the tiny model's own batches are as large as they get on a CPU
    named = RolloutConfig(model=str(policy), engine="vllm", dry_run=True, batch_tokens=1)
    assert len(prepare(open_policy(named), asked, named).batches) == 40 * named.group_size


def test_the_reference_cache_keeps_engines_apart() -> None:
    where = Placement("cpu", "float32")
    assert reference_identity("w", where) == reference_identity("w", where, "hf") == "w cpu float32"
    assert reference_identity("w", where, "vllm") != reference_identity("w", where)


def test_code_of_a_models_own_stays_with_transformers(policy: Path) -> None:
    with pytest.raises(UserError, match="runs code of its own; use --engine hf"):
        open_lm(str(policy), None, RolloutConfig(engine="vllm"), remote_code=True)
