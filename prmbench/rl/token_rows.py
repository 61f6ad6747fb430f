"""One step's completions in this process, and how they lie in tensors: flat over all tokens, padded in micro-batches.

Everything known of a token is one flat tensor; a micro-batch takes its part. No model here.
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


@dataclass(frozen=True, slots=True)
class Row:
    """A completion as token ids."""

    rollout: Rollout
    ids: tuple[int, ...]
    """Prompt and completion, end of turn included."""
    start: int
    """Where the completion begins."""
    group: int
    """Place of its prompt among all that this step trains on, the same in every process."""
    logprobs: tuple[float, ...] = ()
    """Of the completion's tokens as they were drawn; empty where unknown."""
    masked: bool = False
    """Its tokens have no part in any loss; its outcome counts in its group."""

    @property
    def outcome(self) -> int:
        """1 or 0; rows without a verdict are not trained on."""
        assert self.rollout.outcome is not None
        return self.rollout.outcome

    @property
    def size(self) -> int:
        """Tokens of the completion."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a step in this process; n tokens of completions in all, one row after the other."""

    rows: tuple[Row, ...]
    device: str

    @property
    def sizes(self) -> list[int]:
        """Tokens of each row's completion."""
        return [row.size for row in self.rows]

    @property
    def mask(self) -> Tensor:
        """[b, T] where a token stands."""
        sizes = torch.tensor(self.sizes, dtype=torch.long, device=self.device)
        return torch.arange(max(self.sizes, default=0), device=self.device) < sizes[:, None]

    @property
    def learning(self) -> Tensor:
        """[b, T] where a token has a part in the losses."""
        masked = torch.tensor([row.masked for row in self.rows], dtype=torch.bool, device=self.device)
        return self.mask & ~masked[:, None]

    @property
    def outcome(self) -> Tensor:
        """[b] float."""
        return torch.tensor([row.outcome for row in self.rows], dtype=torch.float32, device=self.device)

    @property
    def group(self) -> Tensor:
        """[b]."""
        return torch.tensor([row.group for row in self.rows], dtype=torch.long, device=self.device)

    def padded(self, flat: Tensor) -> Tensor:
        """[n] -> [b, T], zero where nothing stands."""
        mask = self.mask
        return flat.new_zeros(mask.shape).masked_scatter(mask, flat)

    def behaviour(self) -> Tensor | None:
        """[n] the log-probabilities as drawn; None where one is unknown."""
        if any(len(row.logprobs) != row.size for row in self.rows):
            return None
        return torch.tensor([p for row in self.rows for p in row.logprobs], device=self.device)


@dataclass(frozen=True, slots=True)
class Micro:
    """A micro-batch of b rows, right-padded to t; n of its tokens are completions', at most T in a row."""

    ids: Tensor
    """[b, t]. No attention mask goes with it: nobody looks ahead, so nobody sees the padding."""
    reads: Tensor
    """[n] positions before each completion token, in `ids` laid flat."""
    targets: Tensor
    """[n] those tokens."""
    mask: Tensor
    """[b, T] where they stand."""
    at: Tensor
    """[n] their places in the flat tensors of `Rows`."""
    rows: Tensor
    """[b] which rows."""
    real: bool
    """False for a stand-in that keeps the processes in step: it counts nothing."""

    def spread(self, values: Tensor) -> Tensor:
        """[n] or [n, k] -> [b, T] or [b, T, k], zero where nothing stands."""
        shape = (*self.mask.shape, *values.shape[1:])
        mask = self.mask if values.dim() == 1 else self.mask[..., None].expand(shape)
        return values.new_zeros(shape).masked_scatter(mask, values)


def micro_batches(rows: Rows, units: Sequence[Sequence[int]], budget: int) -> list[Micro]:
    """Rows, longest first, in micro-batches of at most `budget` padded tokens; as many in every process.

    A unit's rows stay together. A completion without a token has nothing to read.
    """
    wholes = [unit for unit in ([i for i in unit if rows.rows[i].size] for unit in units) if unit]
    widths = [max(len(rows.rows[i].ids) for i in unit) for unit in wholes]
    batches = token_batches(widths, budget, longest_first(widths, wholes), [len(unit) for unit in wholes])
    packed = [[i for unit in batch for i in wholes[unit]] for batch in batches]
    lacking = processes.largest(len(packed)) - len(packed)
    offsets = np.concatenate([[0], np.cumsum(rows.sizes)]).astype(np.int64)
    made = [_collate([rows.rows[i] for i in batch], batch, offsets, rows.device) for batch in packed]
    return made + [_stand_in(rows.device)] * lacking


def _collate(taken: Sequence[Row], numbers: Sequence[int], offsets: NDArray[np.int64], device: str) -> Micro:
    ids = np.zeros((len(taken), max(len(row.ids) for row in taken)), dtype=np.int64)
    mask = np.zeros((len(taken), max(row.size for row in taken)), dtype=np.bool_)
    for k, row in enumerate(taken):
        ids[k, : len(row.ids)] = row.ids
        mask[k, : row.size] = True
    base = np.arange(len(taken)) * ids.shape[1]
    reads = [np.arange(row.start, len(row.ids)) - 1 + b for row, b in zip(taken, base, strict=True)]
    places = [np.arange(row.size) + offsets[i] for row, i in zip(taken, numbers, strict=True)]
    targets = [row.ids[row.start :] for row in taken]

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(values).to(device)

    return Micro(
        ids=tensor(ids),
        reads=tensor(np.concatenate(reads)),
        targets=tensor(np.concatenate([np.asarray(t, dtype=np.int64) for t in targets])),
        mask=tensor(mask),
        at=tensor(np.concatenate(places)),
        rows=tensor(np.asarray(numbers, dtype=np.int64)),
        real=True,
    )


def _stand_in(device: str) -> Micro:
    """Two tokens that a process without rows pushes through the model, for the sake of those that wait for it."""
    one = torch.zeros(1, dtype=torch.long, device=device)
    return Micro(one.expand(1, 2), one, one, torch.ones(1, 1, dtype=torch.bool, device=device), one, one, real=False)
