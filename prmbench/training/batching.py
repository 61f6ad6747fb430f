"""Which units an update takes, which of them are mine, and how they lie in padded tensors.

A pure function of (seed, update) and the lengths, so a resumed run needs no sampler state. No model here.
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
"""Padded tokens of a micro-batch with its activations, unless --batch-tokens says otherwise."""


@dataclass(frozen=True, slots=True)
class Order:
    """In which order a run takes its units: passes over all of them, each shuffled by (seed, number of the pass)."""

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

    def taken(self, update: int) -> range:
        """Positions of an update's units in the endless stream of passes."""
        return range(update * self.batch, min((update + 1) * self.batch, self.end))

    def pass_ends(self, updates: int) -> bool:
        """Whether the last of so many updates completes a pass."""
        last = self.taken(updates - 1)
        return last.stop // self.units > last.start // self.units

    def batch_of(self, update: int) -> list[int]:
        """Units of update 0, 1, ..., as indices."""
        passes = {p // self.units for p in self.taken(update)}
        shuffled = {p: np.random.default_rng([self.seed, p]).permutation(self.units) for p in passes}
        return [int(shuffled[p // self.units][p % self.units]) for p in self.taken(update)]


def make_order(units: int, batch: int, epochs: float, steps: int | None, seed: int) -> Order:
    """`steps` full updates, or `epochs` passes over the units."""
    batch = min(batch, units)
    return Order(units, batch, steps * batch if steps is not None else max(round(epochs * units), 1), seed)


def micro_batches(
    units: Sequence[Unit], lengths: Sequence[int], budget: int, processes: int
) -> list[list[tuple[Unit, ...]]]:
    """For each process its micro-batches of at most `budget` padded tokens, the same number for all.

    Units are dealt out by length, so that shares are even; who lacks a micro-batch gets an empty one. `lengths` are
    those of the examples.
    """
    widths = [max(lengths[i] for i in unit) for unit in units]
    order = longest_first(widths, units)
    sequences = [len(unit) for unit in units]
    shares = [token_batches(widths, budget, order[process::processes], sequences) for process in range(processes)]
    count = max(map(len, shares))
    return [[tuple(units[i] for i in batch) for batch in share] + [()] * (count - len(share)) for share in shares]


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch, right-padded. b sequences of t tokens, n values in all, T of the one with the most."""

    ids: Tensor
    """[b, t]. No attention mask goes with it: nobody looks ahead, so nobody sees the padding."""
    reads: Tensor
    """[n] positions that give values, in `ids` laid flat."""
    targets: Tensor
    """[n] the token after each of them."""
    mask: Tensor
    """[b, T] where a value stands; laid flat, its true places take the n values in order."""
    counted: Tensor
    """[b, T] where a value counts: `mask`, less the unlabelled steps."""
    labels: Tensor
    """[b], or [b, T] of steps."""
    reference: Tensor | None
    """[b, T] the reference's log-probabilities."""
    real: bool
    """False for a stand-in that keeps the processes in step: its loss counts nothing."""

    def spread(self, values: Tensor) -> Tensor:
        """[n] -> [b, T], zero where there is none."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def collate(
    dataset: Dataset,
    units: Sequence[Unit],
    stepwise: bool,
    reference: Sequence[NDArray[np.float32]] | None,
    device: str,
) -> Batch:
    """Units as tensors; without any, the dataset's shortest unit stands in. `reference` has an entry an example."""
    chosen = [i for unit in units or _shortest(dataset) for i in unit]
    rows = [dataset.examples[i] for i in chosen]
    ids = _padded([row.ids for row in rows], np.int64)
    mask = _padded([np.ones(len(row.reads)) for row in rows], np.bool_)
    base = np.arange(len(rows)) * ids.shape[1]
    reads = np.concatenate([row.reads + at for row, at in zip(rows, base, strict=True)])
    following = np.append(ids.reshape(-1), 0)[reads + 1]
    labels = _labels(rows, stepwise)
    counted = mask & ~np.isnan(labels) if stepwise else mask
    known = None if reference is None else _padded([reference[i] for i in chosen], np.float32)

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Batch(
        tensor(ids),
        tensor(reads),
        tensor(following),
        tensor(mask),
        tensor(counted),
        tensor(np.nan_to_num(labels)),
        None if known is None else tensor(known),
        bool(units),
    )


def _labels(rows: Sequence[Example], stepwise: bool) -> NDArray[np.float32]:
    if stepwise:
        return _padded([row.labels for row in rows], np.float32)
    return np.concatenate([row.labels for row in rows])


def _shortest(dataset: Dataset) -> list[Unit]:
    return [min(dataset.units, key=lambda unit: (max(len(dataset.examples[i].ids) for i in unit), unit))]


def _padded(rows: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    out = np.zeros((len(rows), max(map(len, rows))), dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
