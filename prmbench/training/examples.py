"""From rollouts to what a loss eats: encoded completions, pairs of them, labelled steps. Encoded once.

What is left out is counted by reason; nothing is cut off. No tensors, no batches.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prmbench.core.records import UserError
from prmbench.data import rollouts, training_data
from prmbench.data.rollouts import Rollout
from prmbench.engines.completion import CompletionIds, Exchange, encode_completions, encode_steps, steps_text
from prmbench.training.losses import LossRow

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded completion."""

    id: str
    ids: Ints
    """[t] token ids."""
    reads: Ints
    """[n] positions whose output gives a value: before each token of the completion where the value is that token's
    log-probability, at it where a value head is read, at each step's end where steps are labelled."""
    labels: NDArray[np.float32]
    """[1] the outcome, or [n] one a step; NaN = unlabelled."""

    @property
    def key(self) -> str:
        """16 hex digits of what a model sees of it."""
        return hashlib.sha256(self.ids.tobytes() + b"|" + self.reads.tobytes()).hexdigest()[:16]


Unit = tuple[int, ...]
"""What batches count, as indices of examples: one completion, or the right and the wrong one of a pair."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything a run trains on."""

    examples: tuple[Example, ...]
    units: tuple[Unit, ...]
    left_out: Mapping[str, int]
    """Reason -> how many."""

    @property
    def tokens(self) -> int:
        """Of all examples, padding left out."""
        return sum(len(e.ids) for e in self.examples)


@dataclass(frozen=True, slots=True)
class Encoder:
    """How texts become token ids: the same tokens that evaluation will give the trained model."""

    tokenizer: Any
    template: str | None
    max_tokens: int | None
    separator: str | None
    """Closes a step where steps are read at a separator; None = chat text."""


def build(
    found: Sequence[Rollout], row: LossRow, encoder: Encoder, pairs: training_data.How | None, seed: int
) -> Dataset:
    """The rollouts in the loss's view, encoded; with `pairs`, pointwise losses get both halves of each as one unit."""
    if row.view == "steps":
        return _steps(found, row, encoder)
    return _points(found, row, encoder) if pairs is None else _pairs(found, row, encoder, pairs, seed)


def _points(found: Sequence[Rollout], row: LossRow, encoder: Encoder) -> Dataset:
    kept, left = training_data.demonstrations(found) if row.scores is None else training_data.points(found)
    encoded = _completions(kept, encoder)
    usable = [(r, e) for r, e in zip(kept, encoded, strict=True) if not e.unscored]
    examples = tuple(_example(r, e, row) for r, e in usable)
    reasons = Counter(e.unscored for e in encoded if e.unscored)
    return Dataset(examples, tuple((i,) for i in range(len(examples))), {**left, **reasons})


def _pairs(found: Sequence[Rollout], row: LossRow, encoder: Encoder, how: training_data.How, seed: int) -> Dataset:
    kept, left = training_data.pairs(found, how, seed)
    members = training_data.halves(kept)
    encoded = {r.id: e for r, e in zip(members, _completions(members, encoder), strict=True)}
    reasons: Counter[str] = Counter()
    units = []
    at: dict[str, int] = {}
    examples: list[Example] = []
    for pair in kept:
        both = (pair.right, pair.wrong)
        reason = next((encoded[r.id].unscored for r in both if encoded[r.id].unscored), "")
        if reason:
            reasons[f"pairs with a half of which: {reason}"] += 1
            continue
        for half in both:
            if half.id not in at:
                at[half.id] = len(examples)
                examples.append(_example(half, encoded[half.id], row))
        units.append(tuple(at[half.id] for half in both))
    return Dataset(tuple(examples), tuple(units), {**left, **reasons})


def _steps(found: Sequence[Rollout], row: LossRow, encoder: Encoder) -> Dataset:
    kept, left = training_data.step_rows(found)
    reasons: Counter[str] = Counter()
    examples = []
    for step_row in kept:
        encoded = encode_steps(
            encoder.tokenizer,
            rollouts.trace(step_row.rollout),
            "chat" if encoder.separator is None else "separated",
            encoder.template,
            encoder.separator or "",
            encoder.max_tokens,
        )
        if encoded.unscored:
            reasons[encoded.unscored] += 1
            continue
        labels = np.array(step_row.labels, dtype=np.float32)
        examples.append(Example(step_row.rollout.id, _ints(encoded.ids), _ints(encoded.reads), labels))
    return Dataset(tuple(examples), tuple((i,) for i in range(len(examples))), {**left, **reasons})


def _completions(found: Sequence[Rollout], encoder: Encoder) -> list[CompletionIds]:
    """Bare steps become the text that evaluation renders them as."""
    texts = [r.completion if r.completion.strip() else steps_text(r.steps) for r in found]
    exchanges = [Exchange(r.prompt, text, r.finish != "length") for r, text in zip(found, texts, strict=True)]
    return encode_completions(encoder.tokenizer, exchanges, encoder.template, encoder.max_tokens)


def _example(rollout: Rollout, encoded: CompletionIds, row: LossRow) -> Example:
    before = 1 if row.head == "lm" else 0
    reads = np.arange(encoded.start, encoded.stop, dtype=np.int64) - before
    outcome = np.nan if rollout.outcome is None else rollout.outcome
    return Example(rollout.id, _ints(encoded.ids), reads, np.array([outcome], dtype=np.float32))


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def check_usable(dataset: Dataset, row: LossRow) -> None:
    """Raises UserError when there is nothing to train on, or nothing to tell apart."""
    why = "; ".join(f"left out: {count} {reason}" for reason, count in dataset.left_out.items())
    what = {"point": "completion", "pair": "right-wrong pair", "steps": "row of labelled steps"}[row.view]
    if not dataset.units:
        raise UserError(f"--data: no {what} to train on ({why or 'no rows'}); check the outcomes, or --max-tokens")
    if row.scores is None or row.view == "pair":
        return
    labels = np.concatenate([e.labels for e in dataset.examples])
    known = labels[~np.isnan(labels)]
    if len(known) == 0 or np.all(known == known[0]):
        value = f"{known[0]:g}" if len(known) else "missing"
        told = f" ({why})" if why else ""
        raise UserError(f"--data: every label is {value}{told}; a reward model needs right and wrong examples")
