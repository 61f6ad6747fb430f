"""The vLLM engine in this process: samples, scores tokens, and loads new weights or adapters between batches.

It gives no logits, hidden states or gradients; hf.py does. server.py asks a vLLM server, weight_sync.py sends weights.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from prmbench.config import public_name
from prmbench.core import extras, processes, provenance
from prmbench.core.records import UserError
from prmbench.core.redaction import first_line
from prmbench.engines import TokenLogprobs
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import CPU_CACHE_BYTES, SampledTokens, Sampler, Sampling
from prmbench.engines.hf import Placement, pretrained_source, resolve_commit
from prmbench.engines.loading import errors_in_one_line

Push = Literal["nothing", "weights", "adapter"]
"""What will be sent to an engine later, which it must know at its start."""
DEFAULT_SHARE, EXCLUSIVE_SHARE = 0.5, 0.9
"""Fraction of a GPU's free memory that an engine in this process takes beside a model in training, and on its own."""
READ_TOKENS = 2048
"""Tokens of a forward pass that returns log-probabilities: vLLM's memory profile omits their logits, which it holds
twice in float32. Longer traces are read in chunks."""
NO_LIMIT = 2**40
"""Batch size in tokens that is never reached: vLLM makes its own batches, so it gets all prompts at once."""
LORA_RANKS = 1, 8, 16, 32, 64, 128, 256, 320, 512
"""Values that vLLM allows for `max_lora_rank`."""
LOGPROBS_MODE = "processed_logprobs"
"""Log-probabilities after temperature, top-k and top-p; vLLM's default is before them."""


class Reloadable(Sampler, Protocol):
    """A sampling engine that loads new weights from files."""

    def reload(self, folder: Path) -> None:
        """Load all weights from a folder and drop cached results of the old ones."""

    def adapter(self, folder: Path) -> None:
        """Replace the adapter by the one in a folder, named after it, and sample from it."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How a vLLM engine is started, in this process or as a server."""

    push: Push = "nothing"
    """`weights` unties a model's embeddings, so that its output head is zero until the first push."""
    lora_rank: int = 0
    """Rank of the adapter to be pushed."""
    max_tokens: int | None = None
    """Context length; None = the model's own."""
    memory: float | None = None
    """Fraction of the device's memory for weights and cache; None = in this process `share` of the free memory, and for
    a server vLLM's default."""
    share: float = DEFAULT_SHARE
    """Fraction of the memory free at the start; in this process only."""
    cache_gib: float | None = None
    """Memory for keys and values in GiB, which overrides `share`; None = 1 GiB in this process on a CPU."""
    eager: bool = False
    """No compilation and no CUDA graphs: a faster start, slower passes. Always on in this process on a CPU."""
    reads: bool = False
    """Whether `logprobs` will be called, which needs smaller forward passes."""
    tensor_parallel: int = 1
    """Number of GPUs that share the model."""

    def arguments(self, dtype: str) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM`, without those that vLLM chooses itself."""
        if self.push == "adapter" and not 1 <= self.lora_rank <= LORA_RANKS[-1]:
            raise UserError(f"--lora-rank {self.lora_rank}: vLLM takes 1 to {LORA_RANKS[-1]}")
        arguments: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": self.max_tokens,
            "gpu_memory_utilization": self.memory,
            "kv_cache_memory_bytes": None if self.cache_gib is None else int(self.cache_gib * 2**30),
            "enforce_eager": self.eager or None,
            "max_num_batched_tokens": READ_TOKENS if self.reads else None,
            "tensor_parallel_size": self.tensor_parallel if self.tensor_parallel > 1 else None,
            "logprobs_mode": LOGPROBS_MODE,
            "generation_config": "vllm",  # ignore the model's sampling defaults: every request is explicit
        }
        if self.push == "weights":
            arguments["hf_overrides"] = {"tie_word_embeddings": False}
        if self.push == "adapter":
            rank = next(r for r in LORA_RANKS if r >= self.lora_rank)
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        return {name: value for name, value in arguments.items() if value is not None}


def serve_command(model: str, dtype: str, options: VllmOptions, port: int = 8000, host: str = "127.0.0.1") -> list[str]:
    """Return the command that starts a server for server.py, to be run where vLLM is installed.

    Its endpoints for weights have no authentication: keep `host` on the loopback or a private network. The command
    names the module rather than `vllm`, which also works where the package has another name, as the CPU build has.

    Args:
        model: Hub id or folder.
        dtype: Precision of the weights.
        options: How the engine is started.
        port: Port to listen on.
        host: Address to listen on.
    """
    switches = ["env", "VLLM_SERVER_DEV_MODE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"]
    command = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", host, "--port", str(port)]
    for name, value in options.arguments(dtype).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            value = json.dumps(value)  # noqa: PLW2901
        command += [flag] if value is True else [flag, str(value)]
    return switches + command


def sampling_request(sampling: Sampling, limit: int, seed: int, stops: Collection[int]) -> dict[str, Any]:
    """Return one completion's settings under the names that `SamplingParams` and the HTTP endpoint share.

    `logprobs: 0` reports the sampled token only; end-of-sequence stops a completion only when it is among `stops`.

    Args:
        sampling: Temperature, top-p and top-k.
        limit: Most tokens of the completion.
        seed: Seed of the completion.
        stops: Token ids that end it.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": limit,
        "seed": seed % 2**63,
        "stop_token_ids": sorted(stops),
        "ignore_eos": True,
        "logprobs": 0,
    }


class VllmEngine:
    """A `vllm.LLM` in this process.

    Unlike the HF engine's, its log-probabilities of sampled tokens are after top-k and top-p.
    """

    weight_bytes = token_bytes = 0
    """Unknown; only a dry run needs them, and that starts no vLLM."""

    def __init__(self, llm: Any, tokenizer: Any, stops: frozenset[int], revision: str | None = None) -> None:
        """Wrap a started engine; see `open_vllm`. `revision`: the model's hub commit."""
        self.llm = llm
        self.tokenizer = tokenizer
        self.stops = stops
        self.revision = revision
        self.batch_tokens = NO_LIMIT
        self.max_tokens: int | None = llm.model_config.max_model_len
        self._adapter: Any = None

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[SampledTokens]:
        """Return one completion for each prompt, of at most `limits[i]` tokens.

        Raises:
            UserError: The output is not finite.
        """
        from vllm import SamplingParams

        settings = [
            SamplingParams(detokenize=False, **sampling_request(sampling, limit, seed, stops))
            for limit, seed in zip(limits, seeds, strict=True)
        ]
        vllm_prompts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._generate(vllm_prompts, settings)
        return [_to_drawn(answer.outputs[0]) for answer in outputs]

    def logprobs(self, batch: Sequence[Encoded]) -> Iterator[TokenLogprobs]:
        """Yield the log-probabilities of each trace's step tokens at temperature 1, without normalisers.

        Raises:
            UserError: Memory runs out.
        """
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=0, detokenize=False)
        vllm_prompts = [{"prompt_token_ids": list(encoded.ids[: encoded.ends[-1]])} for encoded in batch]
        try:
            outputs = self._generate(vllm_prompts, settings)
        except torch.OutOfMemoryError as error:  # its requests stay half done, so a retry on this engine fails
            raise UserError(
                "vLLM: out of memory while reading log-probabilities; use a smaller model, more GPUs "
                "(--tensor-parallel), or the engine hf (what was finished is kept)"
            ) from error
        for encoded, output in zip(batch, outputs, strict=True):
            yield TokenLogprobs(_step_logprobs(encoded, output.prompt_logprobs), None)

    def reload(self, folder: Path) -> None:
        """Load all weights from a folder of untied safetensors. Raises UserError when they do not fit."""
        with _load_errors(folder):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder.resolve())})
        self._reset_prefix_cache()

    def adapter(self, folder: Path) -> None:
        """Replace the adapter by the one in a folder. Raises UserError when it does not fit.

        Each adapter gets a new id: `load_inplace` would read the files again with every batch.
        """
        from vllm.lora.request import LoRARequest

        previous, adapter_id = self._adapter, 1 if self._adapter is None else self._adapter.lora_int_id + 1
        sampling_request = LoRARequest(folder.name, adapter_id, str(folder.resolve()))
        with _load_errors(folder):
            self.llm.llm_engine.add_lora(sampling_request)
            if previous is not None:
                self.llm.llm_engine.remove_lora(previous.lora_int_id)
        self._adapter = sampling_request
        self._reset_prefix_cache()

    def _generate(self, prompts: Sequence[Any], settings: Any) -> list[Any]:
        """Return one output for each prompt. Raises UserError when vLLM only now finds that it cannot run the model."""
        try:
            return list(self.llm.generate(prompts, settings, use_tqdm=False, lora_request=self._adapter))
        except torch.OutOfMemoryError:
            raise  # each caller handles it differently
        except (ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"vLLM: cannot run this model here ({first_line(error)}); use the engine hf") from error

    def _reset_prefix_cache(self) -> None:
        """Clear the cached keys and values of prompts, which were computed with the old weights."""
        if not self.llm.reset_prefix_cache():
            raise UserError("vLLM: its prefix cache is in use and cannot be reset; send weights between batches only")


def _to_drawn(output: Any) -> SampledTokens:
    ids = tuple(output.token_ids)
    logprobs = tuple(alternatives[token].logprob for alternatives, token in zip(output.logprobs, ids, strict=True))
    if not ids or not all(map(math.isfinite, logprobs)):
        raise UserError("vLLM: an answer without tokens, or with log-probabilities that are NaN; check the weights")
    return SampledTokens(ids, logprobs)


def _step_logprobs(encoded: Encoded, prompt_logprobs: Sequence[Any]) -> np.ndarray:
    """Return the step tokens' log-probabilities; `prompt_logprobs[i]` maps ids to log-probabilities at token i."""
    positions = range(encoded.start, encoded.ends[-1])
    return np.array([prompt_logprobs[i][encoded.ids[i]].logprob for i in positions], dtype=np.float32)


def open_vllm(name: str, revision: str | None, placement: Placement, options: VllmOptions | None = None) -> VllmEngine:
    """Start an engine in this process, on the device that vLLM was built for.

    Args:
        name: Hub id or folder of the model.
        revision: Hub revision; None = the newest.
        placement: Device and precision.
        options: How the engine is started; None = the defaults.

    Raises:
        UserError: vLLM is not installed, or cannot start or run the model.
    """
    logging.getLogger(__name__).info("starting vLLM with the model %s", public_name(name))
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # read at import
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # training shares these threads
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING" if sys.stderr.isatty() else "ERROR")
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(
            f"engine vllm: cannot be imported ({error}); {extras.remedy('vllm')}, or use the engine hf"
        ) from error
    placement, options = placement.resolve(), options or VllmOptions()
    check_device(placement, options, current_platform.device_type)
    if pretrained_source(name)[1]:
        raise UserError(f"model {name}: vLLM reads hub ids and folders; use the engine hf for a .gguf file")
    if (adapted := provenance.adapter_base(Path(name))) is not None:
        raise UserError(f"model {name}: an adapter of {adapted[0]}, and vLLM reads whole models; use the engine hf")
    revision = resolve_commit(name, revision)
    processes.start(placement.device)  # before vLLM, which would else start a process group of one process
    settings = _with_memory_limits(options, placement.device).arguments(placement.dtype)
    if processes.world_size() > 1:
        settings["distributed_executor_backend"] = "external_launcher"  # each process on its own GPU
    if not sys.stderr.isatty():
        settings["use_tqdm_on_load"] = False
    tokenizer, stops = load_tokenizer(name, revision)
    with _load_errors(name):
        llm = vllm.LLM(model=name, revision=revision, disable_log_stats=True, **settings)
    engine = VllmEngine(llm, tokenizer, stops, revision)
    if options.reads and engine.max_tokens is not None:
        engine.max_tokens -= 1  # vLLM always generates at least one token
    return engine


def check_device(placement: Placement, options: VllmOptions, built_for: str) -> None:
    """Raise UserError on a device that vLLM cannot use; `built_for`: cpu, cuda, or empty when it finds no device."""
    kind, _, index = placement.device.partition(":")
    gpus = torch.cuda.device_count()
    if placement.spread:
        raise UserError(f"--device {kind}: vLLM spreads a model by --tensor-parallel; use --device auto")
    if not built_for:
        raise UserError("engine vllm: the vLLM that is installed finds no device to run on; a CPU needs its CPU build")
    if kind != built_for:
        raise UserError(f"--device {kind}: the vLLM that is installed runs on {built_for}; give --device {built_for}")
    if index not in ("", "0") and processes.world_size() == 1:
        raise UserError(
            f"--device {placement.device}: vLLM takes the first GPU it sees; set CUDA_VISIBLE_DEVICES={index}"
        )
    if options.tensor_parallel > 1 and processes.world_size() > 1:
        raise UserError(
            f"--tensor-parallel {options.tensor_parallel}: one model takes several GPUs; start it without torchrun"
        )
    if options.tensor_parallel > max(1, gpus):
        raise UserError(f"--tensor-parallel {options.tensor_parallel}: torch sees {gpus} GPUs; use at most that many")


def _with_memory_limits(options: VllmOptions, device: str) -> VllmOptions:
    """Return options with default memory limits that leave room for the trainer; on a CPU without compilation."""
    if device == "cpu":
        cache = CPU_CACHE_BYTES / 2**30 if options.cache_gib is None else options.cache_gib
        return replace(options, cache_gib=cache, eager=True)
    if options.memory is not None:
        return options
    free, total = torch.cuda.mem_get_info(device)
    return replace(options, memory=options.share * free / total)


@contextmanager
def _load_errors(name: object) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise UserError(f"model {name}: vLLM cannot load it ({first_line(error)})") from error


def load_tokenizer(name: str, revision: str | None = None) -> tuple[Any, frozenset[int]]:
    """Load a model's tokenizer and the ids of the tokens that end its completions, without its weights.

    Raises:
        UserError: The model has no usable tokenizer or config.
    """
    import transformers

    with errors_in_one_line(name, "has no tokenizer or config"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision)
        config = transformers.AutoConfig.from_pretrained(name, revision=revision)
    try:
        eos_ids = transformers.GenerationConfig.from_pretrained(name, revision=revision or "main").eos_token_id
    except OSError:
        eos_ids = config.get_text_config().eos_token_id
    eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    return tokenizer, frozenset(token for token in (*eos_ids, tokenizer.eos_token_id) if token is not None)
