"""Transfers new weights to the engine that samples: a shared model, a copy in memory, or files for vLLM.

weight_sync_check.py checks that they arrived.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prmbench.core import processes, writing
from prmbench.core.records import RetryError, UserError
from prmbench.engines.generation import Sampler
from prmbench.engines.hf import HFEngine
from prmbench.engines.vllm import Reloadable

STABLE = "STABLE"
"""Name of an empty file that is written last, when all weights of a version are on disk."""
GatherWeights = Callable[[], Mapping[str, Tensor] | None]
"""Gathers weights; all processes call it together. Process 0 gets unsharded tensors on the CPU, by the parameter names
of the transformers model (for an adapter, the names in peft's files); the others get None."""


class SamplerLink(Protocol):
    """An engine that samples, and the way in which new weights reach it."""

    @property
    def sampler(self) -> Sampler:
        """The engine that samples from the weights pushed last."""

    def push(self, version: int, state: GatherWeights) -> None:
        """Send the sampler new weights. All processes call it; when it returns, every sampler has them."""


@dataclass(frozen=True, slots=True)
class SharedModelLink:
    """The sampler runs the model in training itself."""

    sampler: Sampler

    def push(self, version: int, state: GatherWeights) -> None:
        """Do nothing: the sampler already has the weights."""


@dataclass(frozen=True, slots=True)
class ModelCopyLink:
    """Every process holds a full copy of a model that is trained in shards."""

    sampler: HFEngine

    def push(self, version: int, state: GatherWeights) -> None:
        """Broadcast every tensor from process 0 into the copies.

        Args:
            version: Not used.
            state: Gathers all weights, with adapters merged in.

        Raises:
            UserError: A weight of the copy is not among them.
        """
        weights = state()
        shapes = processes.broadcast({n: tuple(t.shape) for n, t in weights.items()} if weights is not None else {})
        copied = self.sampler.model.state_dict()
        missing = sorted(copied.keys() - shapes.keys() - _tied_weights(self.sampler.model).keys())
        if missing:
            raise UserError(f"the trained model has no weight {missing[0]}, which the one that samples needs")
        for name in (n for n in shapes if n in copied):
            tensor = torch.empty(shapes[name]) if weights is None else weights[name].detach().float().contiguous()
            if processes.world_size() > 1:
                dist.broadcast(tensor, 0)
            copied[name].copy_(tensor)


@dataclass(frozen=True, slots=True)
class WeightFilesLink:
    """Process 0 writes the weights to files, and every vLLM engine, in process or a server, loads them."""

    sampler: Reloadable
    folder: Path
    """Folder that all processes and servers see at the same path; only the newest version stays in it."""
    write: Callable[[Path, Mapping[str, Tensor]], None]
    """`WeightsWriter` or `AdapterWriter`."""

    def push(self, version: int, state: GatherWeights) -> None:
        """Write the weights, have every engine load them, then remove older versions.

        Args:
            version: Number of the version, which names its folder.
            state: Gathers the weights.

        Raises:
            UserError: They cannot be written or do not fit; raised in every process.
            RetryError: An engine does not answer any more; raised in every process.
        """
        weights, path = state(), self.folder / f"v{version:06d}"
        _run_in_all_processes(lambda: self._write_version(path, weights) if weights is not None else None)
        load = self.sampler.adapter if isinstance(self.write, AdapterWriter) else self.sampler.reload
        _run_in_all_processes(lambda: load(path))
        if processes.rank() == 0:
            for old in self.folder.glob("v*"):
                if old != path:
                    shutil.rmtree(old, ignore_errors=True)

    def _write_version(self, path: Path, state: Mapping[str, Tensor]) -> None:
        with writing.translate_write_errors(path):
            shutil.rmtree(path, ignore_errors=True)  # left by an earlier start of this run
            path.mkdir(parents=True)
            self.write(path, state)
            for file in [*path.iterdir(), path]:
                writing.fsync(file)
        writing.write_atomic(path / STABLE, b"")


@dataclass(frozen=True, slots=True)
class WeightsWriter:
    """Writes all weights as a model folder with untied embeddings: without an output head, vLLM keeps its old one."""

    model: Any
    """The trained transformers model, used for its config only."""
    tokenizer: Any
    dtype: torch.dtype

    def __call__(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write safetensors, config, generation config and tokenizer."""
        config = copy.deepcopy(self.model.config)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        with torch.device("meta"):
            skeleton = type(self.model)(config).to(self.dtype)
        skeleton.generation_config = self.model.generation_config
        tensors = {name: tensor.detach().to(self.dtype) for name, tensor in state.items()}
        for name, source in _tied_weights(self.model).items():
            tensors[name] = tensors[source].clone()
        skeleton.save_pretrained(folder, state_dict=tensors)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class AdapterWriter:
    """Writes a LoRA adapter in peft's format."""

    config: Any
    """The adapter's `peft.LoraConfig`."""

    def __call__(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        from safetensors.torch import save_file

        self.config.save_pretrained(folder)
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def weights_gatherer(model: nn.Module) -> GatherWeights:
    """Return a function that gathers all weights of a transformers model, sharded or not; adapters are not merged."""
    return lambda: _gather_weights(model, trained_only=False)


def adapter_gatherer(model: nn.Module) -> GatherWeights:
    """Return a function that gathers the adapter weights of a transformers model under the names in peft's files."""

    def get_state() -> Mapping[str, Tensor] | None:
        weights = _gather_weights(model, trained_only=True)
        if weights is None:
            return None
        return {
            f"base_model.model.{name.replace('.default.', '.')}": tensor
            for name, tensor in weights.items()
            if ".lora_" in name
        }

    return get_state


def _gather_weights(model: nn.Module, trained_only: bool) -> Mapping[str, Tensor] | None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights if processes.rank() == 0 else None


def _tied_weights(model: Any) -> Mapping[str, str]:
    """Return the names of tied parameters with the names of those that they are tied to."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def _run_in_all_processes(action: Callable[[], None]) -> None:
    """Run an action in every process, and raise in all of them when it fails in one, so that none is left waiting."""
    local_error: Exception | None = None
    try:
        action()
    except (UserError, RetryError) as error:
        local_error = error
    failures = int(processes.all_reduce_sum([float(local_error is not None)])[0])
    if local_error is not None:
        raise local_error
    if failures:
        raise RetryError("weights did not reach the samplers: another process says why")
