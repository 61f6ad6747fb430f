"""Which engine samples completions, and how it gets the policy's weights: the model itself, a copy, vLLM, or servers.

Only the choice is made here; engines/weight_sync.py and engines/weight_sync_check.py do the work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prmbench import objectives
from prmbench.core import processes, writing
from prmbench.data.rollouts import Rollout
from prmbench.engines import weight_sync_check
from prmbench.engines.frozen_weights import frozen_weights_in
from prmbench.engines.generation import OnFinished, SampledTokens, Sampling
from prmbench.engines.hf import load
from prmbench.engines.weight_sync import (
    AdapterWeights,
    AdapterWriter,
    EngineLink,
    ModelCopyLink,
    ModelWeights,
    SamplerLink,
    SharedModelLink,
    WeightFilesLink,
    Weights,
    WeightsWriter,
    full_tensor,
)
from prmbench.engines.weight_sync_check import Mismatch
from prmbench.rl.models import logprobs
from prmbench.rl.setup import Job
from prmbench.rl.token_rows import Row, Rows, micro_batches
from prmbench.training.memory import MOMENTS
from prmbench.training.model import Runner, merged

CAP = 2.0
"""Largest importance weight; verl's default."""
PROBE_TOKENS = 64
"""Tokens of each completion that the self-test samples."""


class InTraining:
    """Samples from the model in training, in the precision of its forward passes."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.tokenizer = runner.engine.tokenizer
        self.max_tokens = runner.engine.max_tokens
        self.stops = runner.engine.stops
        self.batch_tokens = runner.engine.batch_tokens

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[SampledTokens]:
        """Samples one completion for each prompt, as `HFEngine.sample` does."""
        with self._sampling():
            return self.runner.engine.sample(prompts, limits, seeds, sampling, stops)

    def sample_continuously(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
        cache_tokens: int | None,
        on_finished: OnFinished,
    ) -> None:
        """Samples and reports completions, as `HFEngine.sample_continuously` does."""
        with self._sampling():
            self.runner.engine.sample_continuously(prompts, limits, seeds, sampling, stops, cache_tokens, on_finished)

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        model = self.runner.model
        model.eval()
        try:
            with self.runner.precision(), frozen_weights_in(model, self.runner.autocast):
                yield
        finally:
            model.train()


@dataclass(frozen=True, slots=True)
class Source:
    """The sampler, and the weights that are pushed to it."""

    link: SamplerLink
    weights: Weights
    foreign: bool
    """Whether the sampler's log-probabilities are not exactly the old policy's: another engine, or half precision, in
    which reading a completion token by token and as a whole round differently."""

    def push(self, version: int) -> None:
        """Gives the sampler the current weights, and wakes it up where it sleeps. All processes call it."""
        self.link.push(version, self.weights)

    def sleep(self) -> None:
        """Frees the memory of a sampler beside the trainer until the next push; elsewhere it does nothing."""
        if isinstance(self.link, EngineLink):
            self.link.sampler.sleep()


def later_bytes(optimizers: Iterable[torch.optim.Optimizer], name: str) -> int:
    """Returns the bytes that training will take on this process's device and keep between steps.

    That is the state of the optimizers of --optimizer `name`, unless a checkpoint brought it, and with several
    processes the float32 buckets in which DDP reduces gradients; FSDP has none.
    """
    total = 0
    for optimizer in optimizers:
        state = 0 if optimizer.state else MOMENTS[name]
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            part = getattr(parameter, "_local_tensor", parameter)
            buckets = 4 if processes.world_size() > 1 and part is parameter else 0
            total += part.numel() * (state + buckets)
    return total


def open_source(job: Job, policy: Runner, trainer_bytes: int = 0) -> Source:
    """Opens the sampler of --engine. All processes call it.

    `trainer_bytes`: memory of this process's device that training will take later and keep between its steps. Raises
    UserError when the engine is not available, or does not use the weights it is sent.
    """
    source = _open_vllm(job, policy, trainer_bytes) if job.config.engine != "hf" else _open_hf(job, policy)
    sampler: Any = source.link.sampler
    limits = [n for n in (sampler.max_tokens, job.max_tokens) if n is not None]
    sampler.max_tokens = min(limits, default=None)  # the reward model reads the completions, too
    if job.config.engine == "hf":
        return source
    tolerance = weight_sync_check.TOLERANCE[job.setup.placement.dtype]
    weight_sync_check.self_test(
        source.link,
        source.weights,
        lambda: weight_sync_check.perturbed_weights(policy.module, job.config.seed),
        lambda: _probe_draw(job, source),
        lambda sampled: _probe_logprobs(job, policy, sampled),
        tolerance,
    )
    return source


def _open_hf(job: Job, policy: Runner) -> Source:
    foreign = job.setup.placement.dtype != "float32"
    if not job.setup.sharded:
        return Source(SharedModelLink(InTraining(policy)), (), foreign)
    copy = load(job.config.model, "lm", job.setup.placement, job.revision, job.config.trust_remote_code)
    return Source(ModelCopyLink(copy), MergedWeights(policy), foreign)


@dataclass(frozen=True, slots=True)
class MergedWeights:
    """All weights of the policy, each with its adapter merged in."""

    policy: Runner

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yields each name with its whole tensor; gathers no more than one layer's weight and adapter at a time."""
        state = self.policy.model.state_dict()
        for name in state:
            stem, separator, leaf = name.partition(".base_layer.")
            adapted = separator and leaf == "weight"
            names = [name, *(f"{stem}.lora_{part}.default.weight" for part in "AB" if adapted)]
            if ".lora_" not in name:
                yield from merged({part: full_tensor(state[part]) for part in names}, self.policy.model).items()


def _open_vllm(job: Job, policy: Runner, trainer_bytes: int) -> Source:
    from prmbench.engines.vllm import VllmOptions, open_vllm

    if job.config.engine == "server":
        return _open_server(job, policy)
    rank = job.config.lora_rank
    options = VllmOptions(
        push="adapter" if rank else "weights",
        lora_rank=rank,
        max_tokens=job.max_tokens,
        trainer_bytes=trainer_bytes,
    )
    sampler = open_vllm(_as_folder(job, policy), job.revision, job.setup.placement, options)
    if rank:
        link = EngineLink(sampler, policy.adapters.peft_config["default"])
        return Source(link, AdapterWeights(policy.model), foreign=True)
    return Source(EngineLink(sampler), ModelWeights(policy.model, _dtype(job)), foreign=True)


def _open_server(job: Job, policy: Runner) -> Source:
    """Connects to this process's server. Adapters travel as files, for which vLLM has no other way."""
    from prmbench.engines.server import open_server
    from prmbench.engines.weight_transfer import open_transfer

    config, folder = job.config, job.config.out / "weights"
    url = config.server[processes.rank() % len(config.server)]
    is_leader = processes.rank() < len(config.server)
    sampler = open_server(url, config.model, job.revision, sends_weights=is_leader)
    if config.lora_rank:
        link = WeightFilesLink(sampler, folder, AdapterWriter(policy.adapters.peft_config["default"]))
        return Source(link, AdapterWeights(policy.model), foreign=True)
    weights = ModelWeights(policy.model, _dtype(job))
    writer = WeightsWriter(policy.model, job.tokenizer, _dtype(job))
    transfer = open_transfer(sampler, weights, job.setup.placement.device)
    return Source(transfer or WeightFilesLink(sampler, folder, writer), weights, foreign=True)


def _dtype(job: Job) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, job.setup.placement.dtype)
    return dtype


def _as_folder(job: Job, policy: Runner) -> str:
    """Returns a hub name or a folder for vLLM; the weights of a .gguf file are written to one."""
    if Path(job.config.model).suffix != ".gguf":
        return job.config.model
    folder = job.config.out / "weights" / "start"
    is_writer = processes.rank() == 0
    state = {name: tensor.to("cpu") for name, tensor in MergedWeights(policy) if is_writer}
    if is_writer:
        with writing.translate_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            WeightsWriter(policy.model, job.tokenizer, _dtype(job))(folder, state)
    processes.barrier()
    return str(folder)


# --- the probe --------------------------------------------------------------------------------------------


def step_mismatch(rows: Rows, old_logprobs: Tensor, source: Source, dtype: str) -> Mismatch | None:
    """Returns how far the sampler's log-probabilities of a step are from the policy's; None where they are unknown.

    Raises RetryError where another engine cannot have had the policy's weights. All processes call it.
    """
    logprobs = rows.sampler_logprobs()
    if not all(processes.all_gather(logprobs is not None)):
        return None
    assert logprobs is not None
    mismatch = weight_sync_check.measure_mismatch(old_logprobs.cpu().numpy(), logprobs.cpu().numpy())
    if source.foreign and not isinstance(source.link, SharedModelLink):  # no weights travel to the model itself
        weight_sync_check.check_mismatch(mismatch, weight_sync_check.TOLERANCE[dtype])
    return mismatch


def importance_weights(rows: Rows, old_logprobs: Tensor, source: Source) -> Tensor | None:
    """Returns the [n] truncated importance weights; None where the sampler is exact."""
    logprobs = rows.sampler_logprobs() if source.foreign else None
    return None if logprobs is None else objectives.importance_weights(old_logprobs, logprobs, CAP)


def _probe_draw(job: Job, source: Source) -> list[SampledTokens]:
    ids = [job.prompt_ids[p.id] for p in job.prompts[:4]]
    sampling = Sampling(max_new_tokens=PROBE_TOKENS)
    limits = [PROBE_TOKENS if job.max_tokens is None else min(PROBE_TOKENS, job.max_tokens - len(i)) for i in ids]
    return source.link.sampler.sample(ids, limits, list(range(len(ids))), sampling, source.link.sampler.stops)


def _probe_logprobs(job: Job, policy: Runner, sampled: Sequence[SampledTokens]) -> NDArray[np.floating[Any]]:
    prompts = [job.prompt_ids[p.id] for p in job.prompts[:4]]
    placeholder = Rollout("", "", outcome=0)
    pairs = zip(prompts, sampled, strict=True)
    rows = Rows(tuple(Row(placeholder, (*p, *d.ids), len(p), 0) for p, d in pairs), policy.device)
    micros = micro_batches(rows, [[i] for i in range(len(rows.rows))], job.budget)
    targets = torch.tensor([i for d in sampled for i in d.ids], dtype=torch.long, device=policy.device)[:, None]
    return logprobs(policy, rows, micros, targets)[:, 0].cpu().numpy()
