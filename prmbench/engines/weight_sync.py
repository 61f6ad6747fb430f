"""How new weights reach the engine that samples: not at all (the same model), as a copy, or by files for vLLM.

Whether they arrived is weight_sync_check.py's question. What is trained, and when, is the loop's business.
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
"""Beside weights that are all on disk: an empty file, written last."""
State = Callable[[], Mapping[str, Tensor] | None]
"""All processes call it together. Process 0 gets whole tensors on the CPU, by the parameter names of the transformers
model (or, for an adapter, the names in peft's files); the others get None."""


class Link(Protocol):
    """An engine that samples, and the way to it."""

    @property
    def sampler(self) -> Sampler:
        """Draws completions from the weights that were pushed last."""

    def push(self, version: int, state: State) -> None:
        """Gives the sampler new weights. All processes call it; when it returns, every sampler has them."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The sampler runs the very model that is trained."""

    sampler: Sampler

    def push(self, version: int, state: State) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A whole copy of the model in every process, for a trained one that lies in shards."""

    sampler: HFEngine

    def push(self, version: int, state: State) -> None:
        """Sends every tensor from process 0 into the copies. `state` gives all weights, adapters merged in.

        Raises UserError when a weight of the copy is not among them.
        """
        found = state()
        names = processes.from_first({n: tuple(t.shape) for n, t in found.items()} if found is not None else {})
        own = self.sampler.model.state_dict()
        missing = sorted(own.keys() - names.keys() - _tied(self.sampler.model).keys())
        if missing:
            raise UserError(f"the trained model has no weight {missing[0]}, which the one that samples needs")
        for name in (n for n in names if n in own):
            whole = torch.empty(names[name]) if found is None else found[name].detach().float().contiguous()
            if processes.world_size() > 1:
                dist.broadcast(whole, 0)
            own[name].copy_(whole)


@dataclass(frozen=True, slots=True)
class Written:
    """vLLM, in this process or a server: process 0 writes the weights, and every engine reads them."""

    sampler: Reloadable
    folder: Path
    """Seen by all processes and servers, at the same path. The newest version alone stays in it."""
    write: Callable[[Path, Mapping[str, Tensor]], None]
    """`Weights` or `Adapter`."""

    def push(self, version: int, state: State) -> None:
        """Writes, waits, has the engines read, waits, removes older versions.

        Raises UserError where it cannot be written, RetryError where an engine went away, in every process.
        """
        found, path = state(), self.folder / f"v{version:06d}"
        _together(lambda: self._written(path, found) if found is not None else None)
        tell = self.sampler.adapter if isinstance(self.write, Adapter) else self.sampler.reload
        _together(lambda: tell(path))
        if processes.rank() == 0:
            for old in self.folder.glob("v*"):
                if old != path:
                    shutil.rmtree(old, ignore_errors=True)

    def _written(self, path: Path, state: Mapping[str, Tensor]) -> None:
        with writing.library_writes(path):
            shutil.rmtree(path, ignore_errors=True)  # of an earlier sitting
            path.mkdir(parents=True)
            self.write(path, state)
            for file in [*path.iterdir(), path]:
                writing.sync(file)
        writing.write_atomic(path / STABLE, b"")


@dataclass(frozen=True, slots=True)
class Weights:
    """Writes all weights as a model of its own, untied: where a file has no output head, vLLM keeps its old one."""

    model: Any
    """The trained transformers model, for its config; its weights are not looked at."""
    tokenizer: Any
    dtype: torch.dtype

    def __call__(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Safetensors, config, generation config and tokenizer."""
        config = copy.deepcopy(self.model.config)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        with torch.device("meta"):
            bare = type(self.model)(config).to(self.dtype)
        bare.generation_config = self.model.generation_config
        whole = {name: tensor.detach().to(self.dtype) for name, tensor in state.items()}
        for name, source in _tied(self.model).items():
            whole[name] = whole[source].clone()
        bare.save_pretrained(folder, state_dict=whole)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Writes a LoRA adapter as peft does."""

    config: Any
    """Its `peft.LoraConfig`."""

    def __call__(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """adapter_config.json and adapter_model.safetensors."""
        from safetensors.torch import save_file

        self.config.save_pretrained(folder)
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def weights_of(model: nn.Module) -> State:
    """All weights of a transformers model, spread over processes or not. One with adapters needs merging besides."""
    return lambda: _gathered(model, trained_only=False)


def adapter_of(model: nn.Module) -> State:
    """The adapters inside a transformers model, by the names in peft's files."""

    def state() -> Mapping[str, Tensor] | None:
        found = _gathered(model, trained_only=True)
        if found is None:
            return None
        inside = {name: tensor for name, tensor in found.items() if ".lora_" in name}
        return {f"base_model.model.{name.replace('.default.', '.')}": tensor for name, tensor in inside.items()}

    return state


def _gathered(model: nn.Module, trained_only: bool) -> Mapping[str, Tensor] | None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return found if processes.rank() == 0 else None


def _tied(model: Any) -> Mapping[str, str]:
    """Names of tied parameters, and of those that they are tied to."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def _together(action: Callable[[], None]) -> None:
    """Runs it in every process, and raises in every process when it failed in one: nobody is left waiting."""
    failed: Exception | None = None
    try:
        action()
    except (UserError, RetryError) as error:
        failed = error
    failures = int(processes.sums([float(failed is not None)])[0])
    if failed is not None:
        raise failed
    if failures:
        raise RetryError("weights did not reach the samplers: another process says why")
