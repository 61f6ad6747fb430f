"""What an engine returns and offers. Engines run forward passes; backends turn their outputs into step scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from prmbench.engines.encoding import Encoded


class TokenLogprobs(NamedTuple):
    """Log-probabilities of the n = ends[-1] - start step tokens of one trace; float32, natural logs."""

    logprobs: NDArray[np.float32]
    """[n]: log p(token | all tokens before it), for the tokens start .. ends[-1] - 1."""
    normalisers: NDArray[np.float32] | None
    """[n + 1]: logsumexp of the logits that predict those tokens, then of the logits after the last one. None for an
    engine that does not return logits, as vLLM."""


class NextTokens(NamedTuple):
    """Next-token predictions at the n score positions of one trace."""

    logprobs: NDArray[np.float32]
    """[n, k]: natural log-probabilities of the k requested tokens, normalised over the whole vocabulary."""
    likeliest: NDArray[np.int64]
    """[n]: the id of the most likely token of the vocabulary."""


class Reader(Protocol):
    """A causal language model that returns log-probabilities of given tokens."""

    tokenizer: Any
    max_tokens: int | None
    """Longest input in tokens; None = no limit known."""

    def logprobs(self, batch: Sequence[Encoded]) -> Iterator[TokenLogprobs]:
        """Yield the log-probabilities of each trace's step tokens, in order."""


class Engine(Reader, Protocol):
    """A model of any kind that also returns next-token predictions, head outputs and hidden states."""

    def next_tokens(self, batch: Sequence[Encoded], ids: Sequence[int]) -> Iterator[NextTokens]:
        """Yield, for each trace, the log-probabilities of `ids` as the token after each of its score positions."""

    def outputs(
        self, batch: Sequence[Encoded], positions: Sequence[Sequence[int]] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield, for each trace, the [n, c] outputs of the model's own head at `positions`; at all [T, c] for None."""

    def states(
        self, batch: Sequence[Encoded], positions: Sequence[Sequence[int]] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield, for each trace, the [n, h] last hidden states at `positions`; all [T, h] for None."""
