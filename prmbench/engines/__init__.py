"""Engines run forward passes; what their numbers mean is a backend's business."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from prmbench.engines.encoding import Encoded


class TokenLogprobs(NamedTuple):
    """Of one trace with n = ends[-1] - start step tokens; float32 natural logs."""

    logprobs: NDArray[np.float32]
    """[n]: log p(token | everything before it), for the tokens start .. ends[-1] - 1."""
    normalisers: NDArray[np.float32] | None
    """[n + 1]: logsumexp of the logits that predict those tokens, then of the logits after the last one. None where an
    engine keeps its logits to itself, as vLLM does."""


class NextTokens(NamedTuple):
    """What may follow each of a trace's n read positions."""

    logprobs: NDArray[np.float32]
    """[n, k]: log p of the k tokens asked for, over the whole vocabulary, natural logs."""
    likeliest: NDArray[np.int64]
    """[n]: the id of the likeliest of all tokens."""


class Reader(Protocol):
    """A causal language model with its tokenizer, ready to read."""

    tokenizer: Any
    max_tokens: int | None
    """Longest input the model takes; None = no limit known."""

    def logprobs(self, batch: Sequence[Encoded]) -> Iterator[TokenLogprobs]:
        """One entry a trace, in order."""


class Engine(Reader, Protocol):
    """A model of any kind, down to its hidden states."""

    def next_tokens(self, batch: Sequence[Encoded], ids: Sequence[int]) -> Iterator[NextTokens]:
        """How likely `ids` are right after each of a trace's `reads`; one entry a trace, in order."""

    def outputs(self, batch: Sequence[Encoded]) -> Iterator[NDArray[np.float32]]:
        """[T, c] outputs of the model's own head at every position, one array a trace."""

    def states(self, batch: Sequence[Encoded]) -> Iterator[NDArray[np.float32]]:
        """[T, h] last hidden states, one array a trace."""
