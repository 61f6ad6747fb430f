"""The vLLM engine: samples and reads in this process, and takes new weights or a new adapter between batches.

For logits, hidden states and gradients see hf.py, for a vLLM server see server.py, for when weights are sent see
weight_sync.py.
"""

from __future__ import annotations

import json
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

from prmbench.core import processes, provenance
from prmbench.core.records import UserError
from prmbench.core.redaction import first_line
from prmbench.engines import TokenLogprobs
from prmbench.engines.decoding import Drawn
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import CPU_CACHE_BYTES, Sampler, Sampling
from prmbench.engines.hf import Placement, commit, source
from prmbench.engines.loading import errors_in_one_line

Push = Literal["nothing", "weights", "adapter"]
"""What an engine is to be sent later: it must know when it starts."""
SHARE, ALONE = 0.5, 0.9
"""Of a GPU's free memory that an engine in this process takes: beside a model in training, and with no other."""
READ_TOKENS = 2048
"""Tokens of a forward pass where log-probabilities are read: their logits, in float32 and twice, are not in vLLM's plan
of its memory. Longer traces are read in pieces."""
NO_LIMIT = 2**40
"""Tokens of a batch: vLLM makes its own batches, so it may have all prompts at once."""
LORA_RANKS = 1, 8, 16, 32, 64, 128, 256, 320, 512
"""What vLLM lets `max_lora_rank` be."""
PROCESSED = "processed_logprobs"
"""Log-probabilities behind temperature, top-k and top-p; vLLM's default is in front of them."""


class Reloadable(Sampler, Protocol):
    """An engine that holds weights of its own."""

    def reload(self, folder: Path) -> None:
        """Takes all weights from a folder, and forgets what it computed with the old ones."""

    def adapter(self, folder: Path) -> None:
        """Takes an adapter, named after its folder, in place of the one before; completions now come from it."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a vLLM engine is started, in process or as a server."""

    push: Push = "nothing"
    """`weights`: a model with tied embeddings is built untied, and has an output head of zeros until the first push."""
    lora_rank: int = 0
    """Of the adapter that is pushed."""
    max_tokens: int | None = None
    """Context length; None = the model's own."""
    memory: float | None = None
    """Share of the device that it fills, weights and cache; None = in process `share` of what is free, and vLLM's
    default, nearly all, for a server."""
    share: float = SHARE
    """In process: of the memory that is free when it starts."""
    cache_gib: float | None = None
    """Memory for keys and values, whatever the share; None = 1 GiB in process on a CPU."""
    eager: bool = False
    """Without compilation and CUDA graphs: starts faster, runs slower. In process on a CPU always."""
    reads: bool = False
    """Whether `logprobs` is called: smaller pieces."""
    tensor_parallel: int = 1
    """GPUs that share the model."""

    def arguments(self, dtype: str) -> dict[str, Any]:
        """Names and values as `vllm.LLM` takes them; None where vLLM decides."""
        if self.push == "adapter" and not 1 <= self.lora_rank <= LORA_RANKS[-1]:
            raise UserError(f"--lora-rank {self.lora_rank}: vLLM takes 1 to {LORA_RANKS[-1]}")
        found: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": self.max_tokens,
            "gpu_memory_utilization": self.memory,
            "kv_cache_memory_bytes": None if self.cache_gib is None else int(self.cache_gib * 2**30),
            "enforce_eager": self.eager or None,
            "max_num_batched_tokens": READ_TOKENS if self.reads else None,
            "tensor_parallel_size": self.tensor_parallel if self.tensor_parallel > 1 else None,
            "logprobs_mode": PROCESSED,
            "generation_config": "vllm",  # no defaults from the model's files: every request says all it wants
        }
        if self.push == "weights":
            found["hf_overrides"] = {"tie_word_embeddings": False}
        if self.push == "adapter":
            rank = next(r for r in LORA_RANKS if r >= self.lora_rank)
            found |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        return {name: value for name, value in found.items() if value is not None}


def serve_command(model: str, dtype: str, options: Options, port: int = 8000, host: str = "127.0.0.1") -> list[str]:
    """The command that starts a server for server.py, to be run where vLLM is installed.

    Its endpoints for weights ask nobody who they are: keep `host` on the loopback or a private network. Beside the
    `vllm` command the module also starts where the package has another name, as the CPU build does.
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


def request(sampling: Sampling, limit: int, seed: int, stops: Collection[int]) -> dict[str, Any]:
    """One completion's settings, by the names that `SamplingParams` and the HTTP endpoint share.

    The token drawn is always reported, with `logprobs` further ones; end-of-sequence counts only where `stops` says.
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
    """A `vllm.LLM` in this process. `Drawn.logprobs` are behind top-k and top-p, other than the HF engine's."""

    weight_bytes = token_bytes = 0
    """Not known: a dry run, which asks, starts no vLLM."""

    def __init__(self, llm: Any, tokenizer: Any, stops: frozenset[int], revision: str | None = None) -> None:
        """Takes a started engine; `open_vllm` is the usual way here. `revision`: the hub commit it is of."""
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
    ) -> list[Drawn]:
        """One completion a prompt, of at most `limits[i]` tokens. Raises UserError when the output is not finite."""
        from vllm import SamplingParams

        settings = [
            SamplingParams(detokenize=False, **request(sampling, limit, seed, stops))
            for limit, seed in zip(limits, seeds, strict=True)
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        said = self._generate(asked, settings)
        return [_drawn(answer.outputs[0]) for answer in said]

    def logprobs(self, batch: Sequence[Encoded]) -> Iterator[TokenLogprobs]:
        """Log-probabilities of the step tokens, one entry a trace, under the plain softmax; no normalisers.

        What follows the last step is not read. Raises UserError when memory runs out.
        """
        from vllm import SamplingParams

        reading = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=0, detokenize=False)
        asked = [{"prompt_token_ids": list(encoded.ids[: encoded.ends[-1]])} for encoded in batch]
        try:
            said = self._generate(asked, reading)
        except torch.OutOfMemoryError as error:  # its requests are half done: the same engine cannot be asked again
            raise UserError(
                "vLLM: out of memory while reading log-probabilities; use a smaller model, more GPUs "
                "(--tensor-parallel), or the engine hf (what was finished is kept)"
            ) from error
        for encoded, answer in zip(batch, said, strict=True):
            yield TokenLogprobs(_read(encoded, answer.prompt_logprobs), None)

    def reload(self, folder: Path) -> None:
        """Takes all weights from a folder of safetensors, untied. Raises UserError when they do not fit."""
        with _one_line(folder):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder.resolve())})
        self._forget()

    def adapter(self, folder: Path) -> None:
        """Takes the adapter in a folder in place of the one before. Raises UserError when it does not fit.

        Each has a number of its own: `load_inplace` would read the files again with every batch.
        """
        from vllm.lora.request import LoRARequest

        before, number = self._adapter, 1 if self._adapter is None else self._adapter.lora_int_id + 1
        new = LoRARequest(folder.name, number, str(folder.resolve()))
        with _one_line(folder):
            self.llm.llm_engine.add_lora(new)
            if before is not None:
                self.llm.llm_engine.remove_lora(before.lora_int_id)
        self._adapter = new
        self._forget()

    def _generate(self, asked: Sequence[Any], settings: Any) -> list[Any]:
        """An answer to each. Raises UserError when vLLM finds only now that it cannot run the model."""
        try:
            return list(self.llm.generate(asked, settings, use_tqdm=False, lora_request=self._adapter))
        except torch.OutOfMemoryError:
            raise  # what to do about it depends on who asked
        except (ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"vLLM: cannot run this model here ({first_line(error)}); use the engine hf") from error

    def _forget(self) -> None:
        """Keys and values of prompts were computed with the old weights."""
        if not self.llm.reset_prefix_cache():
            raise UserError("vLLM: its prefix cache is in use and cannot be reset; send weights between batches only")


def _drawn(output: Any) -> Drawn:
    ids = tuple(output.token_ids)
    logprobs = tuple(found[token].logprob for found, token in zip(output.logprobs, ids, strict=True))
    if not ids or not all(map(math.isfinite, logprobs)):
        raise UserError("vLLM: an answer without tokens, or with log-probabilities that are NaN; check the weights")
    return Drawn(ids, logprobs)


def _read(encoded: Encoded, found: Sequence[Any]) -> np.ndarray:
    """`found[i]` is what vLLM says of token i, given those before it: {id: its log-probability}."""
    at = range(encoded.start, encoded.ends[-1])
    return np.array([found[i][encoded.ids[i]].logprob for i in at], dtype=np.float32)


def open_vllm(name: str, revision: str | None, placement: Placement, options: Options | None = None) -> VllmEngine:
    """Starts an engine in this process, on the device that vLLM was built for.

    `placement` gives the precision, `options` the rest. Raises UserError when vLLM is not installed or cannot start.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # read at import
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # training shares these threads
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING" if sys.stderr.isatty() else "ERROR")
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(
            f"engine vllm: cannot be imported ({error}); pip install 'prmbench[vllm]', or use the engine hf"
        ) from error
    where, how = placement.resolve(), options or Options()
    check_device(where, how, current_platform.device_type)
    if source(name)[1]:
        raise UserError(f"model {name}: vLLM reads hub ids and folders; use the engine hf for a .gguf file")
    if (adapted := provenance.adapter_base(Path(name))) is not None:
        raise UserError(f"model {name}: an adapter of {adapted[0]}, and vLLM reads whole models; use the engine hf")
    revision = commit(name, revision)
    processes.start(where.device)  # first: vLLM would make a process group of its own, of one process
    settings = _sharing(how, where.device).arguments(where.dtype)
    if processes.world_size() > 1:
        settings["distributed_executor_backend"] = "external_launcher"  # each process on the GPU that is its own
    if not sys.stderr.isatty():
        settings["use_tqdm_on_load"] = False
    tokenizer, stops = tokens_of(name, revision)
    with _one_line(name):
        llm = vllm.LLM(model=name, revision=revision, disable_log_stats=True, **settings)
    engine = VllmEngine(llm, tokenizer, stops, revision)
    if how.reads and engine.max_tokens is not None:
        engine.max_tokens -= 1  # vLLM wants room for an answer, to whatever it reads
    return engine


def check_device(where: Placement, options: Options, built_for: str) -> None:
    """Raises UserError on a device that vLLM would not take; `built_for`: cpu, cuda, or empty where it finds none."""
    kind, _, index = where.device.partition(":")
    gpus = torch.cuda.device_count()
    if where.spread:
        raise UserError(f"--device {kind}: vLLM spreads a model by --tensor-parallel; use --device auto")
    if not built_for:
        raise UserError("engine vllm: the vLLM that is installed finds no device to run on; a CPU needs its CPU build")
    if kind != built_for:
        raise UserError(f"--device {kind}: the vLLM that is installed runs on {built_for}; give --device {built_for}")
    if index not in ("", "0") and processes.world_size() == 1:
        raise UserError(f"--device {where.device}: vLLM takes the first GPU it sees; set CUDA_VISIBLE_DEVICES={index}")
    if options.tensor_parallel > 1 and processes.world_size() > 1:
        raise UserError(
            f"--tensor-parallel {options.tensor_parallel}: one model takes several GPUs; start it without torchrun"
        )
    if options.tensor_parallel > max(1, gpus):
        raise UserError(f"--tensor-parallel {options.tensor_parallel}: torch sees {gpus} GPUs; use at most that many")


def _sharing(options: Options, device: str) -> Options:
    """With limits that leave the trainer its memory, and without compiling for a CPU, unless told otherwise."""
    if device == "cpu":
        cache = CPU_CACHE_BYTES / 2**30 if options.cache_gib is None else options.cache_gib
        return replace(options, cache_gib=cache, eager=True)
    if options.memory is not None:
        return options
    free, total = torch.cuda.mem_get_info(device)
    return replace(options, memory=options.share * free / total)


@contextmanager
def _one_line(name: object) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise UserError(f"model {name}: vLLM cannot load it ({first_line(error)})") from error


def tokens_of(name: str, revision: str | None = None) -> tuple[Any, frozenset[int]]:
    """A model's tokenizer and the tokens that end its completions, without its weights. Raises UserError."""
    import transformers

    with errors_in_one_line(name, "has no tokenizer or config"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision)
        config = transformers.AutoConfig.from_pretrained(name, revision=revision)
    try:
        told = transformers.GenerationConfig.from_pretrained(name, revision=revision or "main").eos_token_id
    except OSError:
        told = config.get_text_config().eos_token_id
    listed = told if isinstance(told, list) else [told]
    return tokenizer, frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)
