"""Transfers new weights to the engine that samples: a shared model, a copy, vLLM's memory, or files for a server.

weight_transfer.py sends them to a server's GPUs; weight_sync_check.py checks that they arrived.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prmbench.core import processes, writing
from prmbench.core.records import RetryError, UserError
from prmbench.engines.generation import Sampler
from prmbench.engines.hf import HFEngine
from prmbench.engines.vllm import VllmEngine

STABLE = "STABLE"
"""Name of an empty file that is written last, when all weights of a version are on disk."""
Weights = Iterable[tuple[str, Tensor]]
"""Weights by the parameter names of the transformers model (for an adapter, the names in peft's files). Every process
gets each tensor whole, on its own device. Sharded ones are gathered while iterating, so all processes iterate together
and to the end, and none holds more than the tensors that the receiver keeps."""


class SamplerLink(Protocol):
    """An engine that samples, and the way in which new weights reach it."""

    @property
    def sampler(self) -> Sampler:
        """The engine that samples from the weights pushed last."""

    def push(self, version: int, weights: Weights) -> None:
        """Send the sampler new weights. All processes call it; when it returns, every sampler has them."""


class Reloadable(Sampler, Protocol):
    """A sampling engine that loads new weights from files."""

    def reload(self, folder: Path) -> None:
        """Load all weights from a folder and drop cached results of the old ones."""

    def adapter(self, folder: Path) -> None:
        """Replace the adapter by the one in a folder, named after it, and sample from it."""


@dataclass(frozen=True, slots=True)
class SharedModelLink:
    """The sampler runs the model in training itself."""

    sampler: Sampler

    def push(self, version: int, weights: Weights) -> None:
        """Do nothing: the sampler already has the weights."""


@dataclass(frozen=True, slots=True)
class ModelCopyLink:
    """Every process holds a full copy of a model that is trained in shards."""

    sampler: HFEngine

    def push(self, version: int, weights: Weights) -> None:
        """Copy every tensor into the process's own copy.

        Args:
            version: Not used.
            weights: All weights, with adapters merged in.

        Raises:
            UserError: A weight of the copy is not among them.
        """
        copied = self.sampler.model.state_dict()
        missing = set(copied) - _tied_weights(self.sampler.model).keys()
        for name, tensor in weights:
            if name in copied:
                copied[name].copy_(tensor)
                missing.discard(name)
        if missing:
            raise UserError(f"the trained model has no weight {min(missing)}, which the one that samples needs")


@dataclass(frozen=True, slots=True)
class EngineLink:
    """Every process holds a vLLM engine, which takes the tensors from memory: no file is written."""

    sampler: VllmEngine
    adapter: Any = None
    """The `peft.LoraConfig` of the adapter that is pushed; None = all weights are."""

    def push(self, version: int, weights: Weights) -> None:
        """Wake the engine up where it sleeps, and load the weights.

        Args:
            version: Number of the version, which names an adapter.
            weights: All weights with untied embeddings, or the adapter's.

        Raises:
            UserError: They do not fit; raised in every process.
        """
        self.sampler.wake_up()
        run_in_all_processes(lambda: self._load(version, weights))

    def _load(self, version: int, weights: Weights) -> None:
        with one_pass(weights) as tensors:
            if self.adapter is None:
                self.sampler.load_weights(tensors)
            else:
                self.sampler.load_adapter(f"v{version:06d}", self.adapter.to_dict(), dict(tensors))


@dataclass(frozen=True, slots=True)
class WeightFilesLink:
    """Process 0 writes the weights to files, and every vLLM server loads them."""

    sampler: Reloadable
    folder: Path
    """Folder that all processes and servers see at the same path; only the newest version stays in it."""
    write: Callable[[Path, Mapping[str, Tensor]], None]
    """`WeightsWriter` or `AdapterWriter`."""

    def push(self, version: int, weights: Weights) -> None:
        """Write the weights, have every engine load them, then remove older versions.

        Args:
            version: Number of the version, which names its folder.
            weights: The weights; process 0 holds all of them in main memory while it writes.

        Raises:
            UserError: They cannot be written or do not fit; raised in every process.
            RetryError: An engine does not answer any more; raised in every process.
        """
        path, is_writer = self.folder / f"v{version:06d}", processes.rank() == 0
        state = {name: tensor.to("cpu") for name, tensor in weights if is_writer}
        run_in_all_processes(lambda: self._write_version(path, state) if is_writer else None)
        load = self.sampler.adapter if isinstance(self.write, AdapterWriter) else self.sampler.reload
        run_in_all_processes(lambda: load(path))
        if is_writer:
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


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All weights of a transformers model, sharded or not; tied ones under each name, adapters not merged."""

    model: nn.Module
    dtype: torch.dtype | None = None
    """What they are cast to, before they are gathered; None = they stay as they are."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each name with its whole tensor."""
        for name, tensor in self.model.state_dict().items():
            yield name, full_tensor(tensor.to(self._dtype(tensor)))

    def metadata(self) -> list[WeightInfo]:
        """Return what iterating will yield, in order, without gathering anything."""
        state = self.model.state_dict().items()
        return [WeightInfo(name, self._dtype(tensor), tuple(tensor.shape)) for name, tensor in state]

    def _dtype(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """Name, precision and full shape of a weight; the attributes are those of vLLM's `ParamMeta`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The LoRA weights of a transformers model, under the names in peft's files."""

    model: nn.Module

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each name with its whole tensor."""
        for name, tensor in self.model.state_dict().items():
            if ".lora_" in name:
                yield f"base_model.model.{name.replace('.default.', '.')}", full_tensor(tensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor whole. All processes call it for a shard, and it does nothing for any other tensor."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


@contextmanager
def one_pass(weights: Weights) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """Yield an iterator over weights that is exhausted at the end, also when its receiver fails.

    The other processes gather with this one until the last tensor, and would wait for it.
    """
    tensors = iter(weights)
    try:
        yield tensors
    finally:
        for _ in tensors:
            pass


def _tied_weights(model: Any) -> Mapping[str, str]:
    """Return the names of tied parameters with the names of those that they are tied to."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def run_in_all_processes(action: Callable[[], None]) -> None:
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
