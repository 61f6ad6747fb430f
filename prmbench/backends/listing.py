"""Describes the rows of cards.py for `prmbench models` and the README: input, score position and label of each model.

The text is derived from the fields that the backends use, so that it cannot contradict them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from prmbench.backends.cards import MODELS, ModelCard, tie_rule
from prmbench.core.option_values import check_names

_CHAT = 'chat: problem; "Step i: ..." with blank lines between'
_LIKELIER_LABEL = "the likelier of two (0.5)"
_CRITICS = {
    "thinkprm": ("verdicts of its critique, one a step", "the first step that it calls incorrect"),
    "genprm": ("P(Yes) at the last judgement of a step's critique", _LIKELIER_LABEL),
}
_TUNED_LABEL = "none: threshold tuned on gsm8k"
_RANDOM_WEIGHTS = "offline: random weights, real architecture"
_STAND_IN_CODE = "offline: stand-in for its code, same head"
_SCRIPTED_ANSWERS = "offline: golden of the prompt, scripted answers"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """The description of one known checkpoint."""

    model: str
    family: str
    backend: str
    input: str
    """The model's input."""
    position: str
    """Where a step's score is read."""
    label: str
    """The model's native label, if it has one; every protocol works with every model."""
    tie: str
    """The label of a step whose score equals the threshold."""
    signal: str
    trained_on: tuple[str, ...]
    remote_code: bool
    verified: str
    """How the row was verified. Golden inputs and an independent computation are in tests/backends/test_families.py."""
    note: str


def describe_models(cards: Iterable[ModelCard] = MODELS.values()) -> list[ModelRow]:
    """Return the rows of `prmbench models`, in the order of cards.py."""
    return [_row(card) for card in cards]


def named_cards(names: Sequence[str]) -> list[ModelCard]:
    """Return the cards of these models, or all where none is named. Raises UserError for one without a card."""
    check_names(names, MODELS, "models: no card of")
    return [MODELS[name] for name in names] or list(MODELS.values())


def table(rows: Sequence[ModelRow]) -> Table:
    """Return the table of `prmbench models`, a row for each checkpoint, at most 80 columns wide."""
    overview = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for heading in ("model", "backend", "trained\nfrom", "own\ncode"):
        overview.add_column(heading, no_wrap=True)
    for row in rows:
        overview.add_row(row.model, row.backend, row.signal or "unknown", "yes" if row.remote_code else "")
    overview.caption = (
        "`prmbench models MODEL` describes one: its input, where its score is read, its own label. Own code needs "
        "--trust-remote-code and --revision SHA."
    )
    return overview


def _row(card: ModelCard) -> ModelRow:
    model_input, position, label = _convention(card)
    return ModelRow(
        card.model,
        card.family,
        card.backend,
        model_input,
        position,
        label,
        tie_rule(card),
        card.signal,
        card.trained_on,
        card.remote_code,
        _STAND_IN_CODE if card.remote_code else _SCRIPTED_ANSWERS if card.backend == "critic" else _RANDOM_WEIGHTS,
        card.note,
    )


def _convention(card: ModelCard) -> tuple[str, str, str]:
    """Return input, score position and label rule."""
    if card.backend == "token_cls":
        if card.tag:
            model_input = f"chat: {'system prompt, ' if card.prompt else ''}problem; bare steps, each + {card.tag}"
            return model_input, "class 1 at the tag", _LIKELIER_LABEL
        model_input = f"ids: problem, then step and {card.separator!r} tokenised apart; no chat"
        return model_input, "class 1 at its last token", _LIKELIER_LABEL
    if card.backend == "tag_lm" and card.joint is not None:
        turns = f"chat: a user turn a step, the first problem + {card.joint!r} + step; {card.good!r} as every answer"
        return turns, f"next token before {card.good!r}", f"likeliest token is {card.good!r} (series greedy)"
    if card.backend == "tag_lm":
        text = f'text: problem, then "Step i: ... {card.tag}" a line; no chat'
        return text, f"next token at the tag, {card.good!r} or {card.bad!r}", _LIKELIER_LABEL
    if card.backend == "value_head":
        model_input = f"ids: problem, then pieces cut at every {card.separator!r}; no chat" if card.separator else _CHAT
        position = "last separator" if card.separator else "last token"
        value = "sigmoid(value)" if card.activation == "sigmoid" else "value"
        score = "values of its tokens, summed" if card.reading == "cumulative" else f"{value} at its {position}"
        return model_input, score, _TUNED_LABEL
    if card.backend == "critic":
        return f"chat: prompt {card.prompt}", *_CRITICS[str(card.prompt)]
    return _CHAT, f"log-ratio to {card.ref_model}, summed over its tokens", _TUNED_LABEL


def format_row(row: ModelRow) -> str:
    """Format a row for the terminal, 80 columns wide."""
    lines_by_name = {
        "reads": row.input,
        "score": row.position,
        "label": row.label,
        "tie": f"a score at the threshold is {row.tie}",
        "trained": f"from {row.signal or 'unknown'}" + (f", on {', '.join(row.trained_on)}" if row.trained_on else ""),
        "code": "its own: --trust-remote-code and --revision SHA" if row.remote_code else "",
        "verified": row.verified,
        "note": row.note,
    }
    wrap = textwrap.TextWrapper(width=80, initial_indent="  ", subsequent_indent=" " * 12)
    lines = [wrap.fill(f"{name:<10}{text}") for name, text in lines_by_name.items() if text]
    return "\n".join([f"{row.model}  ({row.family}; backend {row.backend})", *lines, ""])
