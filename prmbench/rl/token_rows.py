"""One step's completions in this process, and how they lie in tensors: flat over all tokens, padded in micro-batches.

What is known of each token is one flat tensor, and a micro-batch takes its part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prmbench.core import processes
from prmbench.core.token_batches import longest_first, token_batches
from prmbench.data.rollouts import Rollout
from prmbench.training.batching import MicroBatch, pad_sequences


@dataclass(frozen=True, slots=True)
class Row:
    """A completion as token ids."""

    rollout: Rollout
    ids: tuple[int, ...]
    """Prompt and completion, end of turn included."""
    start: int
    """Where the completion begins."""
    group: int
    """Index of its prompt among all that this step trains on, the same in every process."""
    logprobs: tuple[float, ...] = ()
    """Log-probabilities of the completion's tokens under the sampler; empty where unknown."""
    masked: bool = False
    """Whether its tokens are left out of every loss; its outcome counts in its group all the same."""
    step_starts: tuple[int, ...] = ()
    """The first token of each of its steps, among those of the completion; empty without --step-values."""
    step_values: tuple[float, ...] = ()
    """The value before each of its steps; empty without --step-values."""

    @property
    def outcome(self) -> int:
        """1 = right, 0 = wrong; rows without a verdict are not trained on."""
        assert self.rollout.outcome is not None
        return self.rollout.outcome

    @property
    def size(self) -> int:
        """Number of tokens of the completion."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class Rows:
    """All b rows of a step in this process: n tokens of completions, one row after the other; at most T in a row."""

    rows: tuple[Row, ...]
    device: str

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of each completion."""
        return [row.size for row in self.rows]

    @property
    def mask(self) -> Tensor:
        """[b, T] where a completion has a token."""
        sizes = torch.tensor(self.sizes, dtype=torch.long, device=self.device)
        return torch.arange(max(self.sizes, default=0), device=self.device) < sizes[:, None]

    @property
    def learning(self) -> Tensor:
        """[b, T] where a token takes part in the losses."""
        masked = torch.tensor([row.masked for row in self.rows], dtype=torch.bool, device=self.device)
        return self.mask & ~masked[:, None]

    @property
    def outcome(self) -> Tensor:
        """[b] float: 1 = right, 0 = wrong."""
        return torch.tensor([row.outcome for row in self.rows], dtype=torch.float32, device=self.device)

    @property
    def tokens(self) -> Tensor:
        """[n] ids of the completions' tokens."""
        ids = [token for row in self.rows for token in row.ids[row.start :]]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    @property
    def group(self) -> Tensor:
        """[b] index of each row's prompt."""
        return torch.tensor([row.group for row in self.rows], dtype=torch.long, device=self.device)

    def padded(self, flat: Tensor) -> Tensor:
        """Lays [n] values out as [b, T], zero where a completion has no token."""
        mask = self.mask
        return flat.new_zeros(mask.shape).masked_scatter(mask, flat)

    def sampler_logprobs(self) -> Tensor | None:
        """Returns the sampler's log-probabilities, [n]; None where a row has none."""
        if any(len(row.logprobs) != row.size for row in self.rows):
            return None
        return torch.tensor([p for row in self.rows for p in row.logprobs], device=self.device)


@dataclass(frozen=True, slots=True)
class Micro(MicroBatch):
    """A micro-batch of completions: the position before each of their tokens is read."""

    places: Tensor
    """[n] the tokens' places in the flat tensors of `Rows`."""
    rows: Tensor
    """[b] indices of the rows."""


def micro_batches(rows: Rows, units: Sequence[Sequence[int]], budget: int) -> list[Micro]:
    """Returns micro-batches of rows, longest first, as many in every process.

    A completion without a token has nothing to read, and is left out.

    Args:
        rows: The step's completions in this process.
        units: Indices of rows that stay together.
        budget: Padded tokens that a micro-batch may hold.
    """
    units = [unit for unit in ([i for i in unit if rows.rows[i].size] for unit in units) if unit]
    widths = [max(len(rows.rows[i].ids) for i in unit) for unit in units]
    batches = token_batches(widths, budget, longest_first(widths, units), [len(unit) for unit in units])
    offsets = np.concatenate([[0], np.cumsum(rows.sizes)]).astype(np.int64)
    micros = [_collate(rows, [i for unit in batch for i in units[unit]], offsets) for batch in batches]
    return micros + [_stand_in(rows.device)] * (processes.all_reduce_max(len(micros)) - len(micros))


def _collate(rows: Rows, chosen: Sequence[int], offsets: NDArray[np.int64]) -> Micro:
    """`offsets`: where each row begins in the flat tensors."""
    batch = [rows.rows[i] for i in chosen]
    ids, score_positions, targets, mask = pad_sequences(
        [np.asarray(row.ids, dtype=np.int64) for row in batch],
        [np.arange(row.start - 1, len(row.ids) - 1) for row in batch],
    )
    places = np.concatenate([np.arange(row.size) + offsets[i] for row, i in zip(batch, chosen, strict=True)])

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(rows.device)

    return Micro(
        ids=tensor(ids),
        score_positions=tensor(score_positions),
        targets=tensor(targets),
        mask=tensor(mask),
        real=True,
        places=tensor(places),
        rows=tensor(np.asarray(chosen, dtype=np.int64)),
    )


def _stand_in(device: str) -> Micro:
    """Two tokens that a process without rows pushes through the model, since the other processes wait for it."""
    zero = torch.zeros(1, dtype=torch.long, device=device)
    return Micro(
        ids=zero.expand(1, 2),
        score_positions=zero,
        targets=zero,
        mask=torch.ones(1, 1, dtype=torch.bool, device=device),
        real=False,
        places=zero,
        rows=zero,
    )
