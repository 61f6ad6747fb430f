"""Which engine `--engine auto` is: vLLM where it is installed for this GPU and takes the model, else transformers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from prmbench.config import ModelConfig, RolloutConfig, unused_options
from prmbench.config.distrl_options import ResolvedDistRL
from prmbench.core import processes, provenance
from prmbench.engines.hf import Placement

AUTO = "auto"
C = TypeVar("C", bound=ModelConfig | RolloutConfig | ResolvedDistRL)


def with_engine(config: C, samples: bool, recorded: object = None) -> C:
    """Return the config with the engine that `--engine auto` stands for.

    Args:
        config: The options.
        samples: Whether completions are sampled, which is much faster with vLLM; scoring is not.
        recorded: Engine with which an earlier process began the same run.
    """
    if config.engine != AUTO:
        return config
    has_kernels = isinstance(config, ModelConfig) and unused_options.changed(config, unused_options.HF_FORWARD)
    engine = "hf"
    if samples and not (has_kernels or config.trust_remote_code):
        engine = sampling_engine(AUTO, config.model, Placement(config.device, config.dtype), recorded)
    return replace(config, engine=engine)  # type: ignore[arg-type]  # a name that each of them has


def sampling_engine(engine: str, model: str, placement: Placement, recorded: object = None) -> str:
    """Return the engine that samples completions: `engine` itself, or the one that `auto` stands for.

    Args:
        engine: The value of --engine.
        model: Hub id, folder or .gguf file of the policy.
        placement: Device and precision.
        recorded: Engine with which an earlier process began the same run, which goes on with it; None = there is none.
    """
    if engine != AUTO:
        return engine
    if recorded in ("hf", "vllm"):
        return str(recorded)
    return "vllm" if _takes_vllm(model, placement.resolve().device) else "hf"


def _takes_vllm(model: str, device: str) -> bool:
    """Return whether vLLM would start: it takes the first GPU it sees, no CPU build on one, and whole models only."""
    kind, _, index = device.partition(":")
    is_first = index in ("", "0") or processes.world_size() > 1
    is_whole = Path(model).suffix != ".gguf" and provenance.adapter_base(Path(model)) is None
    return kind == "cuda" and is_first and is_whole and _has_vllm_for_gpus()


def _has_vllm_for_gpus() -> bool:
    """Return whether vLLM is installed, and not its CPU build, which has another name or version."""
    if importlib.util.find_spec("vllm") is None:
        return False
    try:
        return "cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False
