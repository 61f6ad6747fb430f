"""The transformers engine: loads a model from the hub, a folder or a GGUF file, and runs forward passes.

The output head is applied only at the requested positions (token_logprobs.py); decoding.py samples.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from prmbench.config import check_model_path, public_name
from prmbench.core import extras, hub_access, provenance, reading
from prmbench.core.records import Notice, UserError
from prmbench.engines import NextTokens, TokenLogprobs, kernels, token_logprobs
from prmbench.engines.decoding import decode, decode_continuously
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import (
    CPU_CACHE_BYTES,
    CPU_MAX_BATCH_TOKENS,
    GPU_CACHE_BYTES,
    GPU_MAX_BATCH_TOKENS,
    OnFinished,
    SampledTokens,
    Sampling,
)
from prmbench.engines.loading import errors_in_one_line, head_in_memory, refuse_kernels, tensor_shapes

Head = Literal["lm", "classes", "none"]
_AUTO = {
    "lm": transformers.AutoModelForCausalLM,
    "classes": transformers.AutoModelForTokenClassification,
    "none": transformers.AutoModel,
}
FREE_SHARE = 0.8
"""Share of a GPU's free memory for keys and values while completions are sampled; the rest is for a step's logits and
for reading prompts."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of mallopt(3)."""
TOKENIZER_FILES = ("tokenizer.*", "tokenizer_config.json", "vocab.*", "spiece.model", "sentencepiece*")
"""Patterns of the files from which a tokenizer may be loaded."""
HEAD_WEIGHTS = ("score.weight", "classifier.weight")
"""Names that transformers' classifiers give the weights of their head, [classes, hidden]."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ZERO_IF_ABSENT = {"score.bias"}
"""Parameters that a checkpoint may omit, as a head trained without a bias does; they are zero then."""
HEAD_TOLERANCE = 0.05, 4
"""Largest difference between token_logprobs.py and the model's own logits: nats, plus roundings of the largest logit.

A wrong scale of the logits exceeds it.
"""


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and precision of a model, and what makes its forward pass faster without another meaning."""

    device: str = "auto"
    dtype: str = "auto"
    kernels: str = "torch"
    """torch, or liger for Liger's Triton kernels on a GPU."""
    compile: bool = False
    """Whether torch.compile compiles the layers."""

    def resolve(self) -> Placement:
        """Replace `auto` by this process's GPU and bfloat16, or by the CPU and float32 where there is no GPU.

        Raises:
            UserError: The device does not exist, or cannot be used by several processes.
        """
        device = self.device
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|balanced|sequential", device):
            raise UserError(f"--device {device}: choose from auto, cpu, cuda, cuda:N, balanced")
        local_gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # under torchrun every process has a GPU of its own
        if device in ("auto", "cuda"):
            device = local_gpu if torch.cuda.is_available() or device == "cuda" else "cpu"
        if device.startswith("cuda") and int(device.partition(":")[2]) >= torch.cuda.device_count():
            raise UserError(f"--device {device}: torch sees {torch.cuda.device_count()} GPUs; use another, or cpu")
        if self.spread and "LOCAL_RANK" in os.environ:
            raise UserError(f"--device {device}: one model takes all GPUs; start it without torchrun")
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        if dtype == kernels.BF16_PRODUCTS:
            kernels.check_bf16_products(device)
        return replace(self, device=device, dtype=dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The precision in which weights are loaded; the dtype must be resolved."""
        return torch.float32 if self.dtype == kernels.BF16_PRODUCTS else getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def spread(self) -> bool:
        """Whether the model is split over several GPUs by `device_map`."""
        return self.device in ("balanced", "sequential")


class HFEngine:
    """A transformers model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, revision: str | None = None) -> None:
        """Wrap a loaded model; see `load`. `revision`: the model's hub commit; None for a local one."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.revision = revision
        self.head: torch.nn.Module | None = None
        """A head that replaces the model's own in `outputs`; the model is then one without a head."""
        self._padding_needs_mask: bool | None = None
        self.max_tokens: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def weight_bytes(self) -> int:
        """Memory of the parameters, in bytes."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def token_bytes(self) -> int:
        """Estimated bytes per padded token: a layer's widest activations, and the hidden states in float32."""
        shape = self.model.config.get_text_config()
        width = 3 * getattr(shape, "intermediate_size", 4 * shape.hidden_size) + 6 * shape.hidden_size
        return width * self.model.dtype.itemsize + 4 * shape.hidden_size

    @property
    def stops(self) -> frozenset[int]:
        """Token ids that end a completion: those of the generation config, and the tokenizer's end of sequence."""
        generation_config = getattr(self.model, "generation_config", None)
        eos_ids = getattr(generation_config, "eos_token_id", None)
        eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
        return frozenset(token for token in (*eos_ids, self.tokenizer.eos_token_id) if token is not None)

    @property
    def batch_tokens(self) -> int:
        """Default size of a batch of completions in tokens, from the size of their keys and values.

        A constant for each model and kind of device, since a run's identity holds its batches. How much is in memory at
        once is `cache_tokens`.
        """
        cpu = self.model.device.type in ("cpu", "meta")
        cache_bytes, max_tokens = (
            (CPU_CACHE_BYTES, CPU_MAX_BATCH_TOKENS) if cpu else (GPU_CACHE_BYTES, GPU_MAX_BATCH_TOKENS)
        )
        return min(cache_bytes // self._cache_bytes_per_token(self.model.dtype), max_tokens)

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values are in memory while sampling: what is free on one GPU, else `batch_tokens`."""
        device = self.model.device
        if device.type != "cuda" or len(set(getattr(self.model, "hf_device_map", {}).values())) > 1:
            return self.batch_tokens
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        dtype = token_logprobs.factor_dtype(self.model.dtype, device.type) or self.model.dtype
        return int(free * FREE_SHARE) // self._cache_bytes_per_token(dtype)

    def _cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        shape = self.model.config.get_text_config()
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        return int(2 * shape.num_hidden_layers * heads * width * dtype.itemsize)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[SampledTokens]:
        """Sample one completion for each prompt, of at most `limits[i]` tokens."""
        return decode(self.model, prompts, limits, seeds, sampling, stops, self.cache_tokens)

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
        """Sample as `sample` does, and report each completion; see `ContinuousSampler`."""
        cache_tokens = cache_tokens or self.cache_tokens
        decode_continuously(self.model, prompts, limits, seeds, sampling, stops, cache_tokens, on_finished)

    @torch.inference_mode()
    def logprobs(self, batch: Sequence[Encoded]) -> Iterator[TokenLogprobs]:
        """Yield the log-probabilities of each trace's step tokens, in order."""
        step_states, targets = [], []
        for encoded, states in zip(batch, self.hidden_states(batch), strict=True):
            step_states.append(states[encoded.start - 1 : encoded.ends[-1]])
            # After the last token only logsumexp is used, so any id will do.
            targets += [*encoded.ids[encoded.start : encoded.ends[-1]], 0]
        hidden = torch.cat(step_states)
        with head_in_memory(self.model.get_output_embeddings()):
            logp, logz = token_logprobs.read_target_logprobs(*self._head(hidden, torch.tensor(targets)))
        start = 0
        for n in [len(r) for r in step_states]:
            yield TokenLogprobs(logp[start : start + n - 1].cpu().numpy(), logz[start : start + n].cpu().numpy())
            start += n

    @torch.inference_mode()
    def next_tokens(self, batch: Sequence[Encoded], ids: Sequence[int]) -> Iterator[NextTokens]:
        """Yield, for each trace, the log-probabilities of `ids` as the token after each of its score positions."""
        states = self.hidden_states(batch)
        position_states = torch.cat(
            [row[list(encoded.score_positions)] for encoded, row in zip(batch, states, strict=True)]
        )
        with head_in_memory(self.model.get_output_embeddings()):
            hidden, weight, token_ids, bias, softcap = self._head(
                position_states, torch.tensor(ids).expand(len(position_states), -1)
            )
            logp, _ = token_logprobs.logprobs_at(hidden, weight, token_ids, bias, softcap)
            # With p_min = 1 there is room for one candidate beside the target: the most likely token.
            candidates = token_logprobs.candidates(hidden, weight, token_ids[:, 0], 1.0, bias, softcap)[0]
        likeliest = candidates.token_ids[:, 1]
        start = 0
        for n in [len(encoded.score_positions) for encoded in batch]:
            yield NextTokens(logp[start : start + n].cpu().numpy(), likeliest[start : start + n].cpu().numpy())
            start += n

    @torch.inference_mode()
    def outputs(
        self, batch: Sequence[Encoded], positions: Sequence[Sequence[int]] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield, for each trace, the outputs of the model's own head, or of `head` where that is set.

        Args:
            batch: The traces.
            positions: The n positions to read of each trace, increasing; only these are copied from the device. None
                for all T.

        Yields:
            [n, c] or [T, c] outputs, float32.
        """
        logits = self._forward(self.model, batch)
        if self.head is not None:
            weight = next(self.head.parameters())
            logits = self.head(logits.last_hidden_state.to(weight.device))
        else:
            logits = logits[0] if isinstance(logits, tuple) else logits.logits
        return _rows_on_host(logits, batch, positions)

    @torch.inference_mode()
    def states(
        self, batch: Sequence[Encoded], positions: Sequence[Sequence[int]] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Return, for each trace, the [n, h] or [T, h] last hidden states at the positions that `outputs` takes."""
        return _rows_on_host(self.hidden_states(batch), batch, positions)

    @torch.inference_mode()
    def hidden_states(self, batch: Sequence[Encoded]) -> list[Tensor]:
        """Return, for each trace, the [T, h] last hidden states, on the model's device."""
        out = self._forward(self.model.base_model, batch)
        return [row[: len(encoded.ids)] for encoded, row in zip(batch, out.last_hidden_state, strict=True)]

    def set_head(self, head: torch.nn.Module) -> None:
        """Let `outputs` apply a head, on the device and in the precision of the model's last layer."""
        last = list(self.model.parameters())[-1]
        device = self._input_device if last.device.type == "meta" else last.device
        self.head = head.to(device, last.dtype).eval()

    def check_head(self) -> None:
        """Raise UserError when the architecture changes its logits in a way that token_logprobs.py does not support."""
        ids = tuple(i % self.model.config.get_text_config().vocab_size for i in range(7, 71, 8))
        encoded = Encoded("probe", ids, start=1, ends=(len(ids),))
        ours = next(self.logprobs([encoded])).logprobs
        logits = torch.from_numpy(next(self.outputs([encoded])))[:-1]
        reference = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        nats, roundings = HEAD_TOLERANCE
        tolerance = nats + roundings * torch.finfo(self.model.dtype).eps * float(logits.nan_to_num().abs().max())
        if not np.allclose(ours, reference, rtol=0, atol=tolerance, equal_nan=True):
            kind = type(self.model).__name__
            raise UserError(
                f"{kind} rescales its logits in a way this version does not know; its numbers would be wrong"
            )

    def _head(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float | None]:
        """Return states, weights, ids, bias and softcap for token_logprobs.py, on the device of the head's weights."""
        layer = self.model.get_output_embeddings()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        device = layer.weight.device
        bias = getattr(layer, "bias", None)
        return hidden.to(device), layer.weight, ids.to(device), bias, softcap

    def _forward(self, module: Any, batch: Sequence[Encoded]) -> Any:
        """Run a right-padded batch; without a mask where nothing is masked, since attention is then faster.

        Padding is not masked in a causal model, where no position sees what follows it.
        """
        width = max(len(encoded.ids) for encoded in batch)
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, encoded in enumerate(batch):
            ids[row, : len(encoded.ids)] = encoded.ids
            mask[row, : len(encoded.ids)] = 1
            mask[row, list(encoded.masked_positions)] = 0
        is_masked = any(encoded.masked_positions for encoded in batch)
        if not mask.all() and not is_masked:
            is_masked = self.padding_needs_mask()
        device = self._input_device
        attention = torch.from_numpy(mask).to(device) if is_masked else None
        return module(input_ids=torch.from_numpy(ids).to(device), attention_mask=attention, use_cache=False)

    @property
    def _input_device(self) -> torch.device:
        """Where token ids go; weights that are set aside are on `meta`, and accelerate's hooks move ids themselves."""
        device: torch.device = self.model.device
        return torch.device("cpu") if device.type == "meta" else device

    def padding_needs_mask(self) -> bool:
        """Return whether padding on the right must be masked: unless the model is seen to be plainly causal.

        Models with sliding windows or other kinds of attention keep their masks. Of the others the first states of two
        inputs that differ in the last token must be equal to the last bit.
        """
        if self._padding_needs_mask is None:
            self._padding_needs_mask = not _has_full_attention(self.model.config) or not self._is_causal()
        return self._padding_needs_mask

    @torch.inference_mode()
    def _is_causal(self) -> bool:
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = torch.arange(7, 15, device=self._input_device).remainder(vocabulary)[None]
        other = ids.clone()
        other[0, -1] = 0 if ids[0, -1] else 1
        first, second = (self.model.base_model(input_ids=x, use_cache=False)[0][:, :-1] for x in (ids, other))
        return torch.equal(first, second)


def _has_full_attention(config: Any) -> bool:
    """Return whether every layer attends to all earlier positions, as far as the config says."""
    shape = config.get_text_config()
    kinds = set(getattr(shape, "layer_types", None) or ())
    has_window = getattr(shape, "sliding_window", None) is not None and getattr(shape, "use_sliding_window", True)
    return kinds <= {"full_attention"} and (bool(kinds) or not has_window)


def _rows_on_host(
    tensors: Iterable[Tensor], batch: Sequence[Encoded], positions: Sequence[Sequence[int]] | None
) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of each trace's [padded T, c] tensor in main memory; see `HFEngine.outputs`."""
    for i, (encoded, rows) in enumerate(zip(batch, tensors, strict=True)):
        read = rows[: len(encoded.ids)] if positions is None else _select_rows(rows, positions[i])
        yield read.float().cpu().numpy()


def _select_rows(rows: Tensor, positions: Sequence[int]) -> Tensor:
    """Return the [n, c] rows at increasing positions; a view where they are contiguous."""
    if positions and positions[-1] - positions[0] + 1 == len(positions):
        return rows[positions[0] : positions[-1] + 1]
    return rows[torch.tensor(positions, dtype=torch.int64, device=rows.device)]


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them to the kernel after every operation.

    On a CPU each forward pass would otherwise page in the same tens of megabytes hundreds of times.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def load(
    name: str,
    kind: Head,
    placement: Placement,
    revision: str | None = None,
    remote_code: bool = False,
    empty: bool = False,
) -> HFEngine:
    """Load a model and its tokenizer.

    Args:
        name: Hub id, folder, .gguf file, or folder of an adapter.
        kind: Kind of model class to load.
        placement: Device and precision, resolved.
        revision: Hub revision; None = the newest.
        remote_code: Whether the model's own code may run.
        empty: Create the model without weights: its shape and its tokenizer are all that a plan needs.

    Raises:
        UserError: The model or its tokenizer cannot be loaded; the message is one line.
    """
    logging.getLogger(__name__).info("loading the model %s", public_name(name))
    _prepare_process(placement.device)
    base, options = pretrained_source(name)
    adapter = _find_adapter(name)
    tokenizer_source = base
    if adapter is not None:  # transformers would load the base, but without its tokenizer and revision
        base, revision = adapter
        tokenizer_source = name if _has_tokenizer(Path(name)) else base
        if tokenizer_source == base:
            message = f"model {name}: an adapter of {base}, without a tokenizer; the base's is used"
            warnings.warn(message, Notice, stacklevel=1)  # one place, so that it is shown once
    revision = resolve_commit(base, revision)
    options |= {"revision": revision, "trust_remote_code": remote_code, **hub_options(base, revision)}
    if placement.spread:
        extras.require("accelerate", f"--device {placement.device}")
    device_map = {"device_map": placement.device} if placement.spread else {}
    labels = adapter_labels(name) if adapter is not None and kind == "classes" else None
    shape = {} if labels is None else {"num_labels": labels}
    dtype = placement.torch_dtype
    with errors_in_one_line(name):
        refuse_kernels(base, options)
        _check_tokenizer(tokenizer_source, options)
        check_class_names(Path(base) / "config.json")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_source, **options)
        tokenizer("1")  # some damaged files fail only when used
        if empty:
            with torch.device("meta"):
                config = transformers.AutoConfig.from_pretrained(base, **options, **shape)
                model = _AUTO[kind].from_config(config, dtype=dtype, trust_remote_code=remote_code)
                return HFEngine(_accelerate(model, placement), tokenizer, revision)
        model, loading_info = _AUTO[kind].from_pretrained(
            base, dtype=dtype, output_loading_info=True, **options, **device_map, **shape
        )
        missing_names = set(loading_info["missing_keys"])
        if adapter is not None:
            absent = {_without_peft_parts(key) for key in model.load_adapter(name).missing_keys}
            missing_names = absent | (missing_names - set(adapter_shapes(Path(name))))
    missing = sorted(missing_names - ZERO_IF_ABSENT)
    if missing:
        raise UserError(f"model {name}: lacks weights ({', '.join(missing[:3])}); random ones would score at random")
    model = model if placement.spread else model.to(placement.device)
    engine = HFEngine(_accelerate(model, placement), tokenizer, revision)
    if kind == "lm":
        engine.check_head()
    return engine


def _prepare_process(device: str) -> None:
    """Set what a process needs before it loads a model: how memory is returned, its GPU, and silence."""
    if device == "cpu":
        keep_freed_memory()
    elif device.startswith("cuda"):  # under torchrun Triton's kernels and memory figures then follow this GPU
        torch.cuda.set_device(device)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # no line for every retry of a download
    transformers.utils.logging.set_verbosity_error()  # missing weights raise an error of our own


def _accelerate(model: Any, placement: Placement) -> Any:
    """Return the model with the precision of products, the kernels and the compilation that the placement names."""
    if placement.dtype == kernels.BF16_PRODUCTS:
        kernels.round_products(model)
    if placement.kernels == "liger":
        kernels.apply_liger(model, placement.device)
    if placement.compile:
        kernels.compile_layers(model)
    return model


def _find_adapter(name: str) -> tuple[str, str | None] | None:
    """Return the base model and revision of the adapter in a local folder, or None where it holds none.

    Raises:
        UserError: The adapter cannot be loaded.
    """
    adapter = provenance.adapter_base(Path(name))
    if adapter is None:
        return None
    base = adapter[0]
    extras.require("peft", f"model {name}: an adapter of {base}")
    try:
        check_model_path(base)
    except UserError as error:
        raise UserError(f"model {name}: an adapter of {base}, and there is no such file or folder") from error
    if provenance.adapter_base(Path(base)) is not None:
        raise UserError(f"model {name}: an adapter of {base}, which is an adapter itself; merge that into its base")
    return adapter


def adapter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in an adapter's safetensors, by its name in the model; empty without that file.

    peft puts `base_model.model.` before the names, and `modules_to_save` or the adapter's name into some.

    Raises:
        UserError: The file is damaged.
    """
    shapes = tensor_shapes(folder / ADAPTER_WEIGHTS) if (folder / ADAPTER_WEIGHTS).is_file() else {}
    return {_without_peft_parts(name): shape for name, shape in shapes.items()}


def _without_peft_parts(name: str) -> str:
    return re.sub(r"^base_model\.model\.|\.modules_to_save(\.default)?(?=\.)", "", name)


def adapter_labels(name: str) -> int | None:
    """Return the number of classes of the head that an adapter brings; None where it brings none."""
    shapes = adapter_shapes(Path(name))
    return next((shapes[key][0] for key in HEAD_WEIGHTS if key in shapes), None)


def _check_tokenizer(name: str, options: Mapping[str, Any]) -> None:
    if Path(name).is_dir() and "gguf_file" not in options and not _has_tokenizer(Path(name)):
        raise UserError(f"model {name}: has no tokenizer; copy tokenizer.json and tokenizer_config.json next to it")


def check_class_names(config: Path | None) -> None:
    """Raise UserError on an id2label that transformers cannot read, with the one that it can."""
    content = reading.read_json(config) if config is not None and config.is_file() else {}
    names = content.get("id2label") if isinstance(content, dict) else None
    numbered = isinstance(names, dict) and all(re.fullmatch(r"-?\d+", key) for key in names)
    if isinstance(names, dict | list) and not numbered:
        example = dict(enumerate(names.values() if isinstance(names, dict) else names))
        raise UserError(
            f"{config}: id2label must be an object whose keys number the classes; write {json.dumps(example)} "
            "if they have this order"
        )


def _has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES)


def resolve_commit(name: str, revision: str | None) -> str | None:
    """Return the hub commit to which a branch or tag points, so that all files come from one; None for local files.

    When neither the hub nor the cache knows it, `revision` is returned, and loading will raise the error.
    """
    if reading.exists(Path(name)):
        return None
    try:
        sha: str | None = transformers.utils.extract_commit_hash(
            transformers.utils.cached_file(name, "config.json", revision=revision, **hub_options(name, revision)), None
        )
    except (OSError, ValueError):
        return revision
    return sha or revision


def hub_options(name: str, revision: str | None = None) -> dict[str, Any]:
    """Return the options for `from_pretrained` and `cached_file` that keep from waiting for a hub that does not answer.

    Raises:
        UserError: The model is on the hub, which cannot be reached, and not in its cache.
    """
    if reading.exists(Path(name)):
        return {}
    return {"local_files_only": True} if hub_access.is_local_only(name, revision) else {}


def pretrained_source(name: str) -> tuple[str, dict[str, Any]]:
    """Return the name and options for `from_pretrained`: a GGUF file is loaded by its folder and file name.

    Raises:
        UserError: There is no such file or folder.
    """
    path = Path(name)
    if path.suffix != ".gguf":
        check_model_path(name)
        return name, {}
    if not path.is_file():
        raise UserError(f"model {name}: no such file")
    extras.require("gguf", f"model {name}")
    return str(path.parent), {"gguf_file": path.name}
