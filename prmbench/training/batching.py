"""Which units an update takes, which process gets which of them, and how they lie in padded tensors.

All of it is a function of (seed, update) and the lengths, so a resumed run needs no sampler state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prmbench.core.token_batches import longest_first, token_batches
from prmbench.training.examples import Dataset, Example, Unit

CPU_TOKENS, GPU_TOKENS = 1024, 8192
"""Default padded tokens of a micro-batch, whose activations are kept for the backward pass."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a run's units: passes over all of them, each shuffled by (seed, number of the pass)."""

    units: int
    batch: int
    """Units of an update, over all processes; no more than there are."""
    end: int
    """Units taken in all; the last update may get fewer than `batch`."""
    seed: int

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return -(-self.end // self.batch)

    def positions(self, update: int) -> range:
        """Returns the positions of an update's units in the endless stream of passes."""
        return range(update * self.batch, min((update + 1) * self.batch, self.end))

    def pass_ends(self, updates: int) -> bool:
        """Returns whether a pass is complete after `updates` updates, and was not before the last of them."""
        last = self.positions(updates - 1)
        return last.stop // self.units > last.start // self.units

    def batch_of(self, update: int) -> list[int]:
        """Returns the indices of the units of an update, which are counted from 0."""
        passes = {position // self.units for position in self.positions(update)}
        shuffled = {n: np.random.default_rng([self.seed, n]).permutation(self.units) for n in passes}
        return [int(shuffled[position // self.units][position % self.units]) for position in self.positions(update)]


def make_order(units: int, batch: int, epochs: float, steps: int | None, seed: int) -> Order:
    """Returns the order of `steps` full updates, or else of `epochs` passes over the units."""
    batch = min(batch, units)
    return Order(units, batch, steps * batch if steps is not None else max(round(epochs * units), 1), seed)


def micro_batches(
    units: Sequence[Unit], lengths: Sequence[int], budget: int, processes: int
) -> list[list[tuple[Unit, ...]]]:
    """Returns the micro-batches of each process, the same number for all.

    Units are dealt out by length, so that shares are even; a process with fewer micro-batches gets empty ones.

    Args:
        units: The units of an update.
        lengths: Tokens of each example.
        budget: Padded tokens that a micro-batch may hold.
        processes: Number of processes.
    """
    widths = [max(lengths[i] for i in unit) for unit in units]
    order = longest_first(widths, units)
    sequences = [len(unit) for unit in units]
    shares = [token_batches(widths, budget, order[process::processes], sequences) for process in range(processes)]
    count = max(map(len, shares))
    return [[tuple(units[i] for i in batch) for batch in share] + [()] * (count - len(share)) for share in shares]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """b sequences of t tokens, right-padded, with the n positions that are read; at most T of them in a sequence."""

    ids: Tensor
    """[b, t]. There is no attention mask: no position of a causal model sees the padding after it."""
    score_positions: Tensor
    """[n] positions that are read, in `ids` laid flat."""
    targets: Tensor
    """[n] the token after each of them."""
    mask: Tensor
    """[b, T] where a read position stands; laid flat, its true places take the n values in order."""
    real: bool
    """False for a stand-in that keeps the processes in step: its loss counts nothing."""

    def spread(self, values: Tensor) -> Tensor:
        """Lays [n] or [n, k] values out as [b, T] or [b, T, k], zero where no position is read."""
        shape = (*self.mask.shape, *values.shape[1:])
        mask = self.mask if values.dim() == 1 else self.mask[..., None].expand(shape)
        return values.new_zeros(shape).masked_scatter(mask, values)


@dataclass(frozen=True, slots=True)
class LabelledBatch(MicroBatch):
    """A micro-batch with the labels of its sequences or steps."""

    counted: Tensor
    """[b, T] where a value counts in the loss: `mask`, less the unlabelled steps."""
    labels: Tensor
    """[b], or [b, T] of steps."""
    reference: Tensor | None
    """[b, T] the reference's log-probabilities."""


def pad_sequences(
    ids: Sequence[NDArray[np.int64]], score_positions: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Lays sequences out side by side.

    Args:
        ids: Token ids of each sequence.
        score_positions: Positions to read in each sequence.

    Returns:
        `ids`, `score_positions`, `targets` and `mask` of a `MicroBatch`.
    """
    padded = _padded(ids, np.int64)
    row_starts = np.arange(len(ids)) * padded.shape[1]
    flat_reads = np.concatenate(
        [positions + start for positions, start in zip(score_positions, row_starts, strict=True)]
    )
    targets = np.append(padded.reshape(-1), 0)[flat_reads + 1]
    return padded, flat_reads, targets, _padded([np.ones(len(positions)) for positions in score_positions], np.bool_)


def collate(
    dataset: Dataset,
    units: Sequence[Unit],
    stepwise: bool,
    reference: Sequence[NDArray[np.float32]] | None,
    device: str,
) -> LabelledBatch:
    """Lays units out as tensors; without any, the dataset's shortest unit stands in.

    Args:
        dataset: What the units' indices point into.
        units: The units of the micro-batch.
        stepwise: Whether labels are those of steps, or one a sequence.
        reference: The reference's log-probabilities, one array an example.
        device: Where the tensors go.
    """
    chosen = [i for unit in units or _shortest(dataset) for i in unit]
    examples = [dataset.examples[i] for i in chosen]
    ids, score_positions, targets, mask = pad_sequences(
        [e.ids for e in examples], [e.score_positions for e in examples]
    )
    labels = _labels(examples, stepwise)
    counted = mask & ~np.isnan(labels) if stepwise else mask
    logprobs = None if reference is None else _padded([reference[i] for i in chosen], np.float32)

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device)

    return LabelledBatch(
        ids=tensor(ids),
        score_positions=tensor(score_positions),
        targets=tensor(targets),
        mask=tensor(mask),
        real=bool(units),
        counted=tensor(counted),
        labels=tensor(np.nan_to_num(labels)),
        reference=None if logprobs is None else tensor(logprobs),
    )


def _labels(examples: Sequence[Example], stepwise: bool) -> NDArray[np.float32]:
    if stepwise:
        return _padded([example.labels for example in examples], np.float32)
    return np.concatenate([example.labels for example in examples])


def _shortest(dataset: Dataset) -> list[Unit]:
    return [min(dataset.units, key=lambda unit: (max(len(dataset.examples[i].ids) for i in unit), unit))]


def _padded(rows: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
