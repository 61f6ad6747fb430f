"""The rows of cards.py in words, for `prmbench models` and the README: what goes in, where the score is, whose label.

Derived from the same fields that the backends read, so that no row can say one thing and do another.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from prmbench.backends.cards import MODELS, ModelCard

_CHAT = 'chat: problem; "Step i: ..." with blank lines between'
_LIKELIER = "the likelier of two (0.5)"
_CRITICS = {
    "thinkprm": ("verdicts of its critique, one a step", "the first step that it calls incorrect"),
    "genprm": ("P(Yes) at the last judgement of a step's critique", _LIKELIER),
}
_TUNED = "none: threshold tuned on gsm8k"
_OFFLINE = "offline: random weights, real architecture"
_OWN_CODE = "offline: stand-in for its code, same head"
_ASKED = "offline: golden of the prompt, scripted answers"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One checkpoint that `eval` knows how to read."""

    model: str
    family: str
    backend: str
    input: str
    """What the model is fed."""
    position: str
    """Where the score of a step is read."""
    label: str
    """The model's own label, where it has one; every protocol can be asked for with any of them."""
    signal: str
    trained_on: tuple[str, ...]
    remote_code: bool
    verified: str
    """How we know. Golden inputs and a slow second computation are in tests/backends/test_families.py."""
    note: str


def rows(cards: Iterable[ModelCard] = MODELS.values()) -> list[ModelRow]:
    """The rows of `prmbench models`, in the order of cards.py."""
    return [_row(card) for card in cards]


def _row(card: ModelCard) -> ModelRow:
    fed, position, label = _convention(card)
    return ModelRow(
        card.model,
        card.family,
        card.backend,
        fed,
        position,
        label,
        card.signal,
        card.trained_on,
        card.remote_code,
        _OWN_CODE if card.remote_code else _ASKED if card.backend == "critic" else _OFFLINE,
        card.note,
    )


def _convention(card: ModelCard) -> tuple[str, str, str]:
    """Input, score position, label rule."""
    if card.backend == "token_cls":
        chat = f"chat: {'system prompt, ' if card.prompt else ''}problem; bare steps, each + {card.tag}"
        apart = f"ids: problem, then step and {card.separator!r} tokenised apart; no chat"
        return (chat, "class 1 at the tag", _LIKELIER) if card.tag else (apart, "class 1 at its last token", _LIKELIER)
    if card.backend == "tag_lm" and card.joint is not None:
        turns = f"chat: a user turn a step, the first problem + {card.joint!r} + step; {card.good!r} as every answer"
        return turns, f"next token before {card.good!r}", f"likeliest token is {card.good!r} (series greedy)"
    if card.backend == "tag_lm":
        text = f'text: problem, then "Step i: ... {card.tag}" a line; no chat'
        return text, f"next token at the tag, {card.good!r} or {card.bad!r}", _LIKELIER
    if card.backend == "value_head":
        fed = f"ids: problem, then pieces cut at every {card.separator!r}; no chat" if card.separator else _CHAT
        last = "last separator" if card.separator else "last token"
        squashed = "sigmoid(value)" if card.activation == "sigmoid" else "value"
        where = "values of its tokens, summed" if card.reading == "cumulative" else f"{squashed} at its {last}"
        return fed, where, _TUNED
    if card.backend == "critic":
        return f"chat: prompt {card.prompt}", *_CRITICS[str(card.prompt)]
    return _CHAT, f"log-ratio to {card.ref_model}, summed over its tokens", _TUNED


def paragraph(row: ModelRow) -> str:
    """A row for the terminal, 80 columns wide."""
    told = {
        "reads": row.input,
        "score": row.position,
        "label": row.label,
        "trained": f"from {row.signal or 'unknown'}" + (f", on {', '.join(row.trained_on)}" if row.trained_on else ""),
        "code": "its own: --trust-remote-code and --revision SHA" if row.remote_code else "",
        "verified": row.verified,
        "note": row.note,
    }
    wrap = textwrap.TextWrapper(width=80, initial_indent="  ", subsequent_indent=" " * 12)
    lines = [wrap.fill(f"{name:<10}{words}") for name, words in told.items() if words]
    return "\n".join([f"{row.model}  ({row.family}; backend {row.backend})", *lines, ""])
