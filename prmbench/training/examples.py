"""Encodes rollouts as training examples: completions, pairs of them, or labelled steps.

Examples that cannot be used are left out and counted by reason; no sequence is truncated.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prmbench.core.records import UserError
from prmbench.data import rollouts, training_data
from prmbench.data.rollouts import Rollout
from prmbench.engines.completion_encoding import (
    EncodedCompletion,
    PromptCompletion,
    encode_completions,
    encode_steps,
    render_steps,
)
from prmbench.tasks.problem_groups import verify_advice
from prmbench.training.losses import LossRow

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded completion."""

    id: str
    ids: Ints
    """[t] token ids."""
    score_positions: Ints
    """[n] positions that are read: for log-probabilities the one before each token of the completion, for a value head
    the token itself, for labelled steps the end of each step."""
    labels: NDArray[np.float32]
    """[1] the outcome, or [n] a label for each step; NaN = unlabelled."""

    @property
    def key(self) -> str:
        """A hash of the token ids and the positions read: 16 hex digits."""
        return hashlib.sha256(self.ids.tobytes() + b"|" + self.score_positions.tobytes()).hexdigest()[:16]


Unit = tuple[int, ...]
"""Indices of the examples that stay together in a batch: one completion, or the right and the wrong one of a pair."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of a run, and how they form units."""

    examples: tuple[Example, ...]
    units: tuple[Unit, ...]
    left_out: Mapping[str, int]
    """Number of rows, pairs or prompts that were left out, by reason."""

    @property
    def tokens(self) -> int:
        """Tokens of all examples, without padding."""
        return sum(len(e.ids) for e in self.examples)


@dataclass(frozen=True, slots=True)
class Encoder:
    """How texts become token ids: the same ids that evaluation gives the trained model."""

    tokenizer: Any
    template: str | None
    max_tokens: int | None
    separator: str | None
    """Text that ends each step where steps are read at a separator; None = chat text."""


def build(
    rows: Sequence[Rollout], loss: LossRow, encoder: Encoder, pairs: training_data.PairSelection | None, seed: int
) -> Dataset:
    """Encodes rollouts as a loss needs them; with `pairs`, pointwise losses get both halves of a pair as one unit."""
    if loss.view == "steps":
        return _steps(rows, encoder)
    return _points(rows, loss, encoder) if pairs is None else _pairs(rows, loss, encoder, pairs, seed)


def _points(rows: Sequence[Rollout], loss: LossRow, encoder: Encoder) -> Dataset:
    points, left_out = (
        training_data.demonstrations(rows) if loss.scores is None else training_data.verified_completions(rows)
    )
    encoded = _encode(points, encoder)
    usable = [(row, ids) for row, ids in zip(points, encoded, strict=True) if not ids.unscored]
    examples = tuple(_example(row, ids, loss) for row, ids in usable)
    reasons = Counter(ids.unscored for ids in encoded if ids.unscored)
    return Dataset(examples, tuple((i,) for i in range(len(examples))), {**left_out, **reasons})


def _pairs(
    rows: Sequence[Rollout], loss: LossRow, encoder: Encoder, how: training_data.PairSelection, seed: int
) -> Dataset:
    pairs, left_out = training_data.preference_pairs(rows, how, seed)
    members = training_data.completions_of_pairs(pairs)
    encoded = {row.id: ids for row, ids in zip(members, _encode(members, encoder), strict=True)}
    reasons: Counter[str] = Counter()
    units = []
    index: dict[str, int] = {}
    examples: list[Example] = []
    for pair in pairs:
        halves = (pair.right, pair.wrong)
        reason = next((encoded[half.id].unscored for half in halves if encoded[half.id].unscored), "")
        if reason:
            reasons[f"pairs with a half of which: {reason}"] += 1
            continue
        for half in halves:
            if half.id not in index:
                index[half.id] = len(examples)
                examples.append(_example(half, encoded[half.id], loss))
        units.append(tuple(index[half.id] for half in halves))
    return Dataset(tuple(examples), tuple(units), {**left_out, **reasons})


def _steps(rows: Sequence[Rollout], encoder: Encoder) -> Dataset:
    step_rows, left_out = training_data.labelled_steps(rows)
    reasons: Counter[str] = Counter()
    examples = []
    for step_row in step_rows:
        encoded = encode_steps(
            encoder.tokenizer,
            rollouts.to_trace(step_row.rollout),
            "chat" if encoder.separator is None else "separated",
            encoder.template,
            encoder.separator or "",
            encoder.max_tokens,
        )
        if encoded.unscored:
            reasons[encoded.unscored] += 1
            continue
        labels = np.array(step_row.labels, dtype=np.float32)
        examples.append(
            Example(step_row.rollout.id, _int_array(encoded.ids), _int_array(encoded.score_positions), labels)
        )
    return Dataset(tuple(examples), tuple((i,) for i in range(len(examples))), {**left_out, **reasons})


def _encode(rows: Sequence[Rollout], encoder: Encoder) -> list[EncodedCompletion]:
    """Encodes completions; where a row has only steps, as the text that evaluation renders them as."""
    texts = [row.completion if row.completion.strip() else render_steps(row.steps) for row in rows]
    exchanges = [
        PromptCompletion(row.prompt, text, row.finish != "length") for row, text in zip(rows, texts, strict=True)
    ]
    return encode_completions(encoder.tokenizer, exchanges, encoder.template, encoder.max_tokens)


def _example(rollout: Rollout, encoded: EncodedCompletion, loss: LossRow) -> Example:
    offset = 1 if loss.head == "lm" else 0  # a token's log-probability is read at the position before it
    score_positions = np.arange(encoded.start, encoded.stop, dtype=np.int64) - offset
    outcome = np.nan if rollout.outcome is None else rollout.outcome
    return Example(rollout.id, _int_array(encoded.ids), score_positions, np.array([outcome], dtype=np.float32))


def _int_array(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _mend(dataset: Dataset, path: Path) -> str:
    """Returns how to mend data that has nothing to train on, by the reason for which rollouts are left out."""
    if "rollouts not verified" in dataset.left_out:
        return f"{verify_advice(str(path))} (step labels train with --loss step_bce)"
    if "rollouts without step labels" in dataset.left_out:
        return "`prmbench convert` reads published step labels, other losses need only outcomes"
    return "check the outcomes"


def check_usable(dataset: Dataset, loss: LossRow, path: Path) -> None:
    """Raises UserError when there is nothing to train on, or when all labels are equal; `path` is that of the data."""
    why = "; ".join(f"left out: {count} {reason}" for reason, count in dataset.left_out.items())
    unit = {"point": "completion", "pair": "right-wrong pair", "steps": "row of labelled steps"}[loss.view]
    if not dataset.units:
        raise UserError(f"--data: no {unit} to train on ({why or 'no rows'}); {_mend(dataset, path)}, or --max-tokens")
    if loss.scores is None or loss.view == "pair":
        return
    labels = np.concatenate([e.labels for e in dataset.examples])
    labels = labels[~np.isnan(labels)]
    if len(labels) == 0 or np.all(labels == labels[0]):
        value = f"{labels[0]:g}" if len(labels) else "missing"
        reasons = f" ({why})" if why else ""
        raise UserError(f"--data: every label is {value}{reasons}; a reward model needs right and wrong examples")
