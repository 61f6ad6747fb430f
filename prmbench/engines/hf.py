"""The transformers engine: loads a model from the hub, a folder or a GGUF file, and runs forward passes.

Head weights meet only the positions that are asked for (token_logprobs.py). Sampling: decoding.py. No scoring rules.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from prmbench.config import missing_folder
from prmbench.core import provenance, reading
from prmbench.core.records import Notice, UserError
from prmbench.engines import NextTokens, TokenLogprobs, token_logprobs
from prmbench.engines.decoding import Drawn, decode
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import CPU_CACHE_BYTES, CPU_MOST_TOKENS, GPU_CACHE_BYTES, GPU_MOST_TOKENS, Sampling
from prmbench.engines.loading import errors_in_one_line, refuse_kernels

Head = Literal["lm", "classes", "none"]
_AUTO = {
    "lm": transformers.AutoModelForCausalLM,
    "classes": transformers.AutoModelForTokenClassification,
    "none": transformers.AutoModel,
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
TOKENIZER_FILES = ("tokenizer.*", "tokenizer_config.json", "vocab.*", "spiece.model", "sentencepiece*")
"""Patterns of the files that a tokenizer may be read from."""
ZERO_IF_ABSENT = {"score.bias"}
"""Parameters that a checkpoint may leave out: heads trained without a bias."""
PROBE_TOLERANCE = 0.05, 4
"""How far token_logprobs.py may be from the model's own logits: nats, plus roundings of the largest logit.

A wrong scale is further away than that.
"""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and in what precision a model runs."""

    device: str = "auto"
    dtype: str = "auto"

    def resolve(self) -> Placement:
        """`auto` made definite: this process's GPU if there is one, else the CPU; bfloat16 there, float32 here."""
        device = self.device
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|balanced|sequential", device):
            raise UserError(f"--device {device}: choose from auto, cpu, cuda, cuda:N, balanced")
        mine = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # under torchrun every process has a GPU of its own
        if device in ("auto", "cuda"):
            device = mine if torch.cuda.is_available() or device == "cuda" else "cpu"
        if device.startswith("cuda") and int(device.partition(":")[2]) >= torch.cuda.device_count():
            raise UserError(f"--device {device}: torch sees {torch.cuda.device_count()} GPUs; use another, or cpu")
        if self.spread and "LOCAL_RANK" in os.environ:
            raise UserError(f"--device {device}: one model takes all GPUs; start it without torchrun")
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        return Placement(device, dtype)

    @property
    def spread(self) -> bool:
        """Whether one model is spread over several GPUs by `device_map`."""
        return self.device in ("balanced", "sequential")


class HFEngine:
    """A transformers model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, revision: str | None = None) -> None:
        """Takes a loaded model; `load` is the usual way here. `revision`: the hub commit it is of; None if local."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.revision = revision
        self.max_tokens: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def weight_bytes(self) -> int:
        """Memory of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def token_bytes(self) -> int:
        """Rough memory of one padded token: a layer's widest activations, and its hidden states in float32."""
        shape = self.model.config.get_text_config()
        width = 3 * getattr(shape, "intermediate_size", 4 * shape.hidden_size) + 6 * shape.hidden_size
        return width * self.model.dtype.itemsize + 4 * shape.hidden_size

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end a completion: those of the generation config, and the tokenizer's end of sequence."""
        settings = getattr(self.model, "generation_config", None)
        told = getattr(settings, "eos_token_id", None)
        listed = told if isinstance(told, list) else [told]
        return frozenset(token for token in (*listed, self.tokenizer.eos_token_id) if token is not None)

    @property
    def batch_tokens(self) -> int:
        """Tokens that a batch of completions holds by default: by the size of their keys and values."""
        shape = self.model.config.get_text_config()
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        each = 2 * shape.num_hidden_layers * heads * width * self.model.dtype.itemsize
        cpu = self.model.device.type in ("cpu", "meta")
        size, most = (CPU_CACHE_BYTES, CPU_MOST_TOKENS) if cpu else (GPU_CACHE_BYTES, GPU_MOST_TOKENS)
        return min(size // each, most)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[Drawn]:
        """One completion a prompt, of at most `limits[i]` tokens, in one batch."""
        return decode(self.model, prompts, limits, seeds, sampling, stops)

    @torch.inference_mode()
    def logprobs(self, batch: Sequence[Encoded]) -> Iterator[TokenLogprobs]:
        """Log-probabilities of the step tokens, one entry a trace."""
        rows, targets = [], []
        for encoded, states in zip(batch, self._states(batch), strict=True):
            rows.append(states[encoded.start - 1 : encoded.ends[-1]])
            targets += [*encoded.ids[encoded.start : encoded.ends[-1]], 0]  # after the last token only logsumexp counts
        hidden = torch.cat(rows)
        logp, logz = token_logprobs.target_logprobs(*self._head(hidden, torch.tensor(targets)))
        at = 0
        for n in [len(r) for r in rows]:
            yield TokenLogprobs(logp[at : at + n - 1].cpu().numpy(), logz[at : at + n].cpu().numpy())
            at += n

    @torch.inference_mode()
    def next_tokens(self, batch: Sequence[Encoded], ids: Sequence[int]) -> Iterator[NextTokens]:
        """Log-probabilities of `ids` right after each read position, one entry a trace; no other position has any."""
        states = self._states(batch)
        read = torch.cat([row[list(encoded.reads)] for encoded, row in zip(batch, states, strict=True)])
        hidden, weight, asked, bias, softcap = self._head(read, torch.tensor(ids).expand(len(read), -1))
        logp, _ = token_logprobs.logprobs_at(hidden, weight, asked, bias, softcap)
        likeliest = token_logprobs.candidates(hidden, weight, asked[:, 0], 1.0, bias, softcap).ids[
            :, 0
        ]  # one has p = 1 at most
        at = 0
        for n in [len(encoded.reads) for encoded in batch]:
            yield NextTokens(logp[at : at + n].cpu().numpy(), likeliest[at : at + n].cpu().numpy())
            at += n

    @torch.inference_mode()
    def outputs(self, batch: Sequence[Encoded]) -> Iterator[NDArray[np.float32]]:
        """[T, c] outputs of the model's own head, one array a trace."""
        logits = self._forward(self.model, batch)
        logits = logits[0] if isinstance(logits, tuple) else logits.logits
        for encoded, row in zip(batch, logits, strict=True):
            yield row[: len(encoded.ids)].float().cpu().numpy()

    @torch.inference_mode()
    def states(self, batch: Sequence[Encoded]) -> Iterator[NDArray[np.float32]]:
        """[T, h] last hidden states, one array a trace."""
        for states in self._states(batch):
            yield states.float().cpu().numpy()

    def check_head(self) -> None:
        """Raises UserError when this architecture changes its logits in a way that token_logprobs.py does not know."""
        ids = tuple(i % self.model.config.get_text_config().vocab_size for i in range(7, 71, 8))
        probe = Encoded("probe", ids, start=1, ends=(len(ids),))
        mine = next(self.logprobs([probe])).logprobs
        logits = torch.from_numpy(next(self.outputs([probe])))[:-1]
        theirs = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        nats, roundings = PROBE_TOLERANCE
        tolerance = nats + roundings * torch.finfo(self.model.dtype).eps * float(logits.nan_to_num().abs().max())
        if not np.allclose(mine, theirs, rtol=0, atol=tolerance, equal_nan=True):
            kind = type(self.model).__name__
            raise UserError(
                f"{kind} rescales its logits in a way this version does not know; its numbers would be wrong"
            )

    def _head(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float | None]:
        """What token_logprobs.py takes, on the device of the head's weights: states, weights, ids, bias, softcap."""
        layer = self.model.get_output_embeddings()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        device = layer.weight.device
        bias = getattr(layer, "bias", None)
        return hidden.to(device), layer.weight, ids.to(device), bias, softcap

    def _states(self, batch: Sequence[Encoded]) -> list[Tensor]:
        out = self._forward(self.model.base_model, batch)
        return [row[: len(encoded.ids)] for encoded, row in zip(batch, out.last_hidden_state, strict=True)]

    def _forward(self, module: Any, batch: Sequence[Encoded]) -> Any:
        """Right-padded; without a mask where nothing is hidden, which lets attention take its fast path."""
        width = max(len(encoded.ids) for encoded in batch)
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, encoded in enumerate(batch):
            ids[row, : len(encoded.ids)] = encoded.ids
            mask[row, : len(encoded.ids)] = 1
            mask[row, list(encoded.masked)] = 0
        device = self.model.device
        attention = None if mask.all() else torch.from_numpy(mask).to(device)
        return module(input_ids=torch.from_numpy(ids).to(device), attention_mask=attention, use_cache=False)


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks instead of returning them to the kernel after every operation.

    On a CPU each forward pass would otherwise fault the same tens of megabytes in again, hundreds of times.
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
    """Loads a model and its tokenizer; `empty` leaves the weights out, for a dry run.

    Raises UserError when either cannot be had, with the reason in one line.
    """
    if placement.device == "cpu":
        keep_freed_memory()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # nor its retries, one line each
    transformers.utils.logging.set_verbosity_error()  # its table of missing weights is our error, in one line
    where, options = source(name)
    adapter = _adapter(name)
    tokens = where
    if adapter is not None:  # transformers would find the base, but not its tokenizer, nor its revision
        where, revision = adapter
        tokens = name if _has_tokenizer(Path(name)) else where
        if tokens == where:
            message = f"model {name}: an adapter of {where}, without a tokenizer; the base's is used"
            warnings.warn(message, Notice, stacklevel=1)  # at one place, so that it is said once
    revision = commit(where, revision)
    options |= {"revision": revision, "trust_remote_code": remote_code}
    place = {"device_map": placement.device} if placement.spread else {}
    dtype = getattr(torch, placement.dtype)
    with errors_in_one_line(name):
        refuse_kernels(where, options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokens, **options)
        tokenizer("1")  # some damage shows in use alone
        if empty:
            with torch.device("meta"):
                shape = transformers.AutoConfig.from_pretrained(where, **options)
                return HFEngine(
                    _AUTO[kind].from_config(shape, dtype=dtype, trust_remote_code=remote_code), tokenizer, revision
                )
        model, found = _AUTO[kind].from_pretrained(where, dtype=dtype, output_loading_info=True, **options, **place)
        lacking = set(found["missing_keys"])
        if adapter is not None:
            lacking |= set(model.load_adapter(name).missing_keys)
    missing = sorted(lacking - ZERO_IF_ABSENT)
    if missing:
        raise UserError(f"model {name}: lacks weights ({', '.join(missing[:3])}); random ones would score at random")
    engine = HFEngine(model if placement.spread else model.to(placement.device), tokenizer, revision)
    if kind == "lm":
        engine.check_head()
    return engine


def _adapter(name: str) -> tuple[str, str | None] | None:
    """The base of the adapter in a local folder, and its revision. Raises UserError where it cannot be loaded."""
    adapted = provenance.adapter_base(Path(name))
    if adapted is None:
        return None
    base = adapted[0]
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"model {name}: an adapter of {base}, which needs peft; pip install 'prmbench[train]'")
    try:
        missing_folder(base)
    except UserError as error:
        raise UserError(f"model {name}: an adapter of {base}, and there is no such file or folder") from error
    if provenance.adapter_base(Path(base)) is not None:
        raise UserError(f"model {name}: an adapter of {base}, which is an adapter itself; merge that into its base")
    return adapted


def _has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES)


def commit(name: str, revision: str | None) -> str | None:
    """The hub commit that a branch or tag points to, so that all files come from one; None for local files.

    Where the hub cannot be asked and no cache knows, what was asked for: loading then says what is wrong.
    """
    if reading.exists(Path(name)):
        return None
    try:
        sha: str | None = transformers.utils.extract_commit_hash(
            transformers.utils.cached_file(name, "config.json", revision=revision), None
        )
    except (OSError, ValueError):
        return revision
    return sha or revision


def source(name: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes: a hub id or folder as it is, a GGUF file as its folder and name."""
    path = Path(name)
    if path.suffix != ".gguf":
        missing_folder(name)
        return name, {}
    if not path.is_file():
        raise UserError(f"model {name}: no such file")
    return str(path.parent), {"gguf_file": path.name}
