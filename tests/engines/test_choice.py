"""What `--engine auto` stands for, and that a run goes on with the engine that it began with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prmbench.config import EvalConfig, RolloutConfig
from prmbench.config.distrl_options import DistRLConfig
from prmbench.engines.choice import sampling_engine, with_engine
from prmbench.engines.hf import Placement
from prmbench.rl import setup as rl_setup
from prmbench.sampling import rollout

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with so many GPUs, and vLLM of a version; None = vLLM is not installed."""

    def pretend(gpus: int, version: str | None) -> None:
        find, read = importlib.util.find_spec, importlib.metadata.version
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: version if name == "vllm" else find(name, *a))

        def version_of(name: str) -> str:
            if name != "vllm":
                return read(name)
            if version == "another distribution":
                raise importlib.metadata.PackageNotFoundError(name)
            return str(version)

        monkeypatch.setattr(importlib.metadata, "version", version_of)

    return pretend


@pytest.mark.parametrize(
    ("gpus", "version", "model", "device", "engine"),
    [
        (1, "0.32.0", "org/name", "auto", "vllm"),
        (0, "0.32.0", "org/name", "auto", "hf"),
        (1, None, "org/name", "auto", "hf"),
        (1, "0.32.0+cpu", "org/name", "auto", "hf"),
        (1, "another distribution", "org/name", "auto", "hf"),
        (1, "0.32.0", "org/name", "cpu", "hf"),
        (2, "0.32.0", "org/name", "cuda:0", "vllm"),
        (2, "0.32.0", "org/name", "cuda:1", "hf"),
        (2, "0.32.0", "org/name", "balanced", "hf"),
        (1, "0.32.0", "folder/model.gguf", "auto", "hf"),
    ],
)
def test_auto_is_vllm_where_it_would_start(
    machine: Machine, gpus: int, version: str | None, model: str, device: str, engine: str
) -> None:
    machine(gpus, version)
    assert sampling_engine("auto", model, Placement(device)) == engine
    assert sampling_engine("hf", model, Placement(device)) == "hf"
    assert sampling_engine("vllm", model, Placement(device)) == "vllm"


def test_an_adapter_is_not_for_vllm(machine: Machine, tmp_path: Path) -> None:
    machine(1, "0.32.0")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/name"}))
    assert sampling_engine("auto", str(tmp_path), Placement()) == "hf"


def test_a_run_goes_on_with_its_engine(machine: Machine) -> None:
    machine(1, "0.32.0")
    assert sampling_engine("auto", "org/name", Placement(), recorded="hf") == "hf"
    machine(0, None)
    assert sampling_engine("auto", "org/name", Placement(), recorded="vllm") == "vllm"


@pytest.mark.parametrize("config", [EvalConfig(model="org/name"), RolloutConfig(model="org/name")])
def test_auto_is_the_default_and_scoring_keeps_to_transformers(machine: Machine, config: Any) -> None:
    machine(1, "0.32.0")
    assert config.engine == "auto"
    assert with_engine(config, samples=True).engine == "vllm"
    assert with_engine(config, samples=False).engine == "hf"


def test_options_of_transformers_keep_to_it(machine: Machine) -> None:
    machine(1, "0.32.0")
    for own in ({"kernels": "liger"}, {"compile": True}, {"trust_remote_code": True}):
        config = EvalConfig(model="org/name", **own)  # type: ignore[arg-type]
        assert with_engine(config, samples=True).engine == "hf"


def test_rollout_takes_the_engine_of_its_sidecar_or_journal(machine: Machine, tmp_path: Path) -> None:
    machine(1, "0.32.0")
    config = RolloutConfig(model="org/name", out=tmp_path / "r.jsonl")
    assert rollout._with_engine(config).engine == "vllm"
    journal = tmp_path / "r.jsonl.journal"
    journal.mkdir()
    (journal / "run.json").write_text('{"engine": "hf"}')
    assert rollout._with_engine(config).engine == "hf"
    rollout.sidecar_path(config.out).write_text('{"identity": {"engine": "vllm"}}')
    assert rollout._with_engine(config).engine == "vllm"


def test_train_distrl_takes_the_engine_of_its_folder(machine: Machine, tmp_path: Path) -> None:
    machine(1, "0.32.0")
    assert DistRLConfig().engine == "auto"
    assert rl_setup._recorded_engine(tmp_path) is None
    (tmp_path / "train.json").write_text('{"identity": {"engine": "hf"}}')
    assert rl_setup._recorded_engine(tmp_path) == "hf"
    (tmp_path / "train.json").write_text("[")
    assert rl_setup._recorded_engine(tmp_path) is None
