"""The vLLM engine in this process: samples, scores tokens, and loads new weights or adapters between batches.

It gives no logits of the vocabulary, hidden states or gradients; hf.py does. server.py asks a vLLM server, and
weight_sync.py sends weights.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from prmbench.config import public_name
from prmbench.core import extras, processes, provenance
from prmbench.core.records import UserError
from prmbench.core.redaction import first_line
from prmbench.engines import TokenLogprobs
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import CPU_CACHE_BYTES, SampledTokens, Sampling
from prmbench.engines.hf import Placement, pretrained_source, resolve_commit
from prmbench.engines.loading import errors_in_one_line

Push = Literal["nothing", "weights", "adapter"]
"""What will be sent to an engine later, which it must know at its start."""
DEFAULT_SHARE, EXCLUSIVE_SHARE, SLEEPING_SHARE = 0.5, 0.9, 0.8
"""Fraction of a GPU's free memory that an engine in this process takes beside a model in training, on its own, and
where it sleeps while the model is trained."""
READ_TOKENS = 2048
"""Tokens of a forward pass that returns log-probabilities: vLLM's memory profile omits their logits, which it holds
twice in float32. Longer traces are read in chunks."""
NO_LIMIT = 2**40
"""Batch size in tokens that is never reached: vLLM makes its own batches, so it gets all prompts at once."""
LORA_RANKS = 1, 8, 16, 32, 64, 128, 256, 320, 512
"""Values that vLLM allows for `max_lora_rank`."""
MAX_LOGPROBS = 20
"""Most tokens whose log-probabilities vLLM returns at a position, unless it is started for more."""
LOGPROBS_MODE = "processed_logprobs"
"""Log-probabilities after temperature, top-k and top-p; vLLM's default is before them."""


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
    trainer_bytes: int = 0
    """Memory on the device that a trainer in this process will take after the start and keep while vLLM is awake."""
    cache_gib: float | None = None
    """Memory for keys and values in GiB, which overrides `share`; None = 1 GiB in this process on a CPU."""
    eager: bool = False
    """No compilation and no CUDA graphs: a faster start, slower passes. Always on in this process on a CPU."""
    reads: bool = False
    """Whether `logprobs` will be called, which needs smaller forward passes."""
    tensor_parallel: int = 1
    """Number of GPUs that share the model."""
    classifies: bool = False
    """Whether `outputs` will be called: vLLM's pooling, which neither samples nor returns log-probabilities."""
    label_tokens: tuple[str, ...] = ()
    """Tokens of the vocabulary whose logits at every position are the classes of a causal language model."""

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
        if self.classifies:
            arguments |= {"runner": "pooling", "pooler_config": {"task": "token_classify", "tok_pooling_type": "ALL"}}
        if self.label_tokens:
            labels = {"classifier_from_token": list(self.label_tokens), "method": "no_post_processing"}
            arguments |= {"convert": "classify", "hf_overrides": labels}
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
    arguments = options.arguments(dtype)
    if options.push == "weights":
        arguments["weight_transfer_config"] = {"backend": "nccl"}  # for GPUs; on a CPU it is not used
    for name, value in arguments.items():
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

    def __init__(
        self, llm: Any, tokenizer: Any, stops: frozenset[int], revision: str | None = None, sleep_level: int = 0
    ) -> None:
        """Wrap a started engine; see `open_vllm`.

        Args:
            llm: The `vllm.LLM`.
            tokenizer: The model's tokenizer.
            stops: Ids of the tokens that end a completion.
            revision: The model's hub commit.
            sleep_level: vLLM's level of sleep: 1 keeps the weights in main memory, 2 drops them, 0 = it cannot sleep.
        """
        self.llm = llm
        self.tokenizer = tokenizer
        self.stops = stops
        self.revision = revision
        self.batch_tokens = NO_LIMIT
        self.max_tokens: int | None = llm.model_config.max_model_len
        self.sleep_level = sleep_level
        self._adapter: Any = None
        self._is_asleep = False
        self._reads_by_ids = _can_read_by_ids(llm)

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

        Traces whose only step token follows the same tokens, as the words that a critic weighs, are one request.

        Raises:
            UserError: Memory runs out.
        """
        from vllm import SamplingParams

        words = _next_words(batch) if hasattr(SamplingParams, "logprob_token_ids") else {}
        requests: dict[Any, tuple[tuple[int, ...], dict[str, Any]]] = {
            prefix: (prefix, next_token_request(ids)) for prefix, ids in words.items()
        }
        keys = [_prefix(e) if e.ids[e.start] in words.get(_prefix(e), ()) else i for i, e in enumerate(batch)]
        for key, encoded in zip(keys, batch, strict=True):
            if key not in requests:
                requests[key] = encoded.ids[: encoded.ends[-1]], reading_request(encoded, self._reads_by_ids)
        vllm_prompts = [{"prompt_token_ids": list(ids)} for ids, _ in requests.values()]
        settings = [SamplingParams(**request) for _, request in requests.values()]
        with _reading_errors():
            outputs = dict(zip(requests, self._generate(vllm_prompts, settings), strict=True))
        for key, encoded in zip(keys, batch, strict=True):
            output = outputs[key]
            if isinstance(key, int):
                yield TokenLogprobs(_step_logprobs(encoded, output, self._reads_by_ids), None)
            else:
                logprob = output.outputs[0].logprobs[0][encoded.ids[encoded.start]].logprob
                yield TokenLogprobs(np.array([logprob], dtype=np.float32), None)

    def outputs(
        self, batch: Sequence[Encoded], positions: Sequence[Sequence[int]] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield, for each trace, the [n, c] logits of the model's own head at `positions`; at all [T, c] for None.

        Raises:
            UserError: vLLM cannot run the model, or memory runs out.
        """
        from vllm import PoolingParams

        vllm_prompts = [{"prompt_token_ids": list(encoded.ids)} for encoded in batch]
        settings = PoolingParams(use_activation=False)
        with _reading_errors(), _run_errors():
            outputs = self.llm.encode(vllm_prompts, settings, pooling_task="token_classify", use_tqdm=False)
        for i, output in enumerate(outputs):
            rows = output.outputs.data.float().cpu().numpy()
            yield rows if positions is None else rows[list(positions[i])]

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, one tensor at a time, by vLLM's own reload. Raises UserError when they do not fit.

        Args:
            weights: Names and tensors as in a checkpoint with untied embeddings: with tied ones, vLLM keeps its head.
        """
        with _load_errors("in training"):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._reset_prefix_cache()

    def load_adapter(self, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace the adapter, and sample from the new one. Raises UserError when it does not fit.

        Args:
            name: Name of the adapter.
            config: Fields of its `peft.LoraConfig`.
            tensors: Its tensors by the names in peft's files.
        """
        from vllm.lora.request import LoRARequest

        previous, adapter_id = self._adapter, 1 if self._adapter is None else self._adapter.lora_int_id + 1
        with _load_errors("in training"):
            if previous is not None:  # there is one place for adapters
                self.llm.llm_engine.remove_lora(previous.lora_int_id)
            self.llm.collective_rpc(_add_adapter, args=(adapter_id, dict(config), dict(tensors)))
        self._adapter = LoRARequest(name, adapter_id, "(in memory)")  # a path is demanded, and not read: it is loaded
        self._reset_prefix_cache()

    def sleep(self) -> None:
        """Give the memory on the device back until `wake_up`, where vLLM can: not on a CPU.

        Weights that the next push replaces are dropped; those under an adapter move to main memory.
        """
        if self.sleep_level and not self._is_asleep:
            self.llm.sleep(self.sleep_level)
            self._is_asleep = True

    def wake_up(self) -> None:
        """Take the memory again; all weights are undefined until the next push, those under an adapter excepted."""
        if self._is_asleep:
            torch.cuda.empty_cache()  # what the trainer's allocator holds unused
            self.llm.wake_up()
            self._is_asleep = False

    def _generate(self, prompts: Sequence[Any], settings: Any) -> list[Any]:
        """Return one output for each prompt. Raises UserError when vLLM only now finds that it cannot run the model."""
        with _run_errors():
            return list(self.llm.generate(prompts, settings, use_tqdm=False, lora_request=self._adapter))

    def _reset_prefix_cache(self) -> None:
        """Clear the cached keys and values of prompts, which were computed with the old weights."""
        if not self.llm.reset_prefix_cache():
            raise UserError("vLLM: its prefix cache is in use and cannot be reset; send weights between batches only")


def _add_adapter(worker: Any, adapter_id: int, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Put an adapter's tensors into a vLLM worker, as its manager does with those that it reads from a file.

    vLLM has no public call for this; the self-test shows whether it works.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = worker.model_runner.lora_manager
    helper = PEFTHelper.from_dict(config)
    helper.validate_legal(manager.lora_config)
    names = getattr(manager._adapter_manager.model, "hf_to_vllm_mapper", None)
    adapter = LoRAModel.from_lora_tensors(
        adapter_id,
        tensors,
        helper,
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=None if names is None else names.get_rename_mapper(),
    )
    manager._adapter_manager.add_adapter(adapter)
    manager._adapter_manager.activate_adapter(adapter_id)


def _to_drawn(output: Any) -> SampledTokens:
    ids = tuple(output.token_ids)
    logprobs = tuple(alternatives[token].logprob for alternatives, token in zip(output.logprobs, ids, strict=True))
    if not ids or not all(map(math.isfinite, logprobs)):
        raise UserError("vLLM: an answer without tokens, or with log-probabilities that are NaN; check the weights")
    return SampledTokens(ids, logprobs)


def reading_request(encoded: Encoded, by_ids: bool) -> dict[str, Any]:
    """Return the settings of `SamplingParams` that read the log-probabilities of a trace's step tokens.

    Args:
        encoded: The trace, whose prompt ends with its last step.
        by_ids: Ask for one token at each position of the steps, with which vLLM computes no other logits and ranks
            nothing; else for every position's token.
    """
    request: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "ignore_eos": True, "detokenize": False}
    if not by_ids:
        return request | {"prompt_logprobs": 0}
    targets = np.array(encoded.ids[encoded.start : encoded.ends[-1]], dtype=np.int32)[:, None]
    # Row i of the logits predicts token i + 1.
    return request | {"prompt_logprob_token_ids": targets, "prompt_logprob_start": encoded.start - 1}


def next_token_request(ids: Sequence[int]) -> dict[str, Any]:
    """Return the settings of `SamplingParams` that read the log-probabilities of some tokens as the next one."""
    return {
        "temperature": 1.0,  # what is reported is after the temperature
        "seed": 0,
        "max_tokens": 1,
        "ignore_eos": True,
        "detokenize": False,
        "logprob_token_ids": list(ids),
    }


def _next_words(batch: Sequence[Encoded]) -> dict[tuple[int, ...], list[int]]:
    """Return for each prefix the tokens that are all that a trace reads after it, where they are several."""
    words: dict[tuple[int, ...], list[int]] = {}
    for encoded in batch:
        if encoded.ends[-1] == encoded.start + 1:
            ids = words.setdefault(_prefix(encoded), [])
            if encoded.ids[encoded.start] not in ids and len(ids) < MAX_LOGPROBS:
                ids.append(encoded.ids[encoded.start])
    return {prefix: ids for prefix, ids in words.items() if len(ids) > 1}


def _prefix(encoded: Encoded) -> tuple[int, ...]:
    return encoded.ids[: encoded.start]


def _step_logprobs(encoded: Encoded, output: Any, by_ids: bool) -> NDArray[np.float32]:
    """Return the step tokens' log-probabilities in the answer to `reading_request`."""
    if by_ids:
        return np.asarray(output.prompt_token_id_logprobs, dtype=np.float32)[:, 0]
    positions = range(encoded.start, encoded.ends[-1])  # at each, the answer maps ids to log-probabilities
    return np.array([output.prompt_logprobs[i][encoded.ids[i]].logprob for i in positions], dtype=np.float32)


def _can_read_by_ids(llm: Any) -> Any:
    """Return whether this vLLM scores given tokens of a prompt: since 0.32, with its second model runner."""
    from vllm import SamplingParams

    return hasattr(SamplingParams, "prompt_logprob_token_ids") and llm.llm_engine.vllm_config.use_v2_model_runner


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
    if options is not None and options.push != "nothing":
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # no other process takes an iterator of tensors
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
    sleep_level = _sleep_level(options.push) if current_platform.is_sleep_mode_available() else 0
    settings = _with_memory_limits(options, placement.device, sleep_level > 0).arguments(placement.dtype)
    if sleep_level:
        settings["enable_sleep_mode"] = True
    if processes.world_size() > 1:
        settings["distributed_executor_backend"] = "external_launcher"  # each process on its own GPU
    if not sys.stderr.isatty():
        settings["use_tqdm_on_load"] = False
    tokenizer, stops = load_tokenizer(name, revision)
    with _load_errors(name):
        llm = vllm.LLM(model=name, revision=revision, disable_log_stats=True, **settings)
    engine = VllmEngine(llm, tokenizer, stops, revision, sleep_level)
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


def _sleep_level(push: Push) -> int:
    """Return how deeply an engine sleeps while its weights are trained; 0 where nothing is."""
    return {"nothing": 0, "adapter": 1, "weights": 2}[push]


def _with_memory_limits(options: VllmOptions, device: str, sleeps: bool = False) -> VllmOptions:
    """Return options with default memory limits that leave room for the trainer; on a CPU without compilation.

    An engine that sleeps while the trainer learns shares the device with what the trainer keeps, and not with its
    activations.
    """
    if device == "cpu":
        cache = CPU_CACHE_BYTES / 2**30 if options.cache_gib is None else options.cache_gib
        return replace(options, cache_gib=cache, eager=True)
    if options.memory is not None:
        return options
    free, total = torch.cuda.mem_get_info(device)
    share, kept = (SLEEPING_SHARE, options.trainer_bytes) if sleeps else (options.share, 0)
    return replace(options, memory=share * max(free - kept, 0) / total)


@contextmanager
def _run_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # each caller handles it differently
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"vLLM: cannot run this model here ({first_line(error)}); use the engine hf") from error


@contextmanager
def _reading_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:  # its requests stay half done, so a retry on this engine fails
        raise UserError(
            "vLLM: out of memory while reading a batch; use a smaller model, more GPUs (--tensor-parallel), or the "
            "engine hf (what was finished is kept)"
        ) from error


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
