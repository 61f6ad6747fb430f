"""Backends say what a step score means. A backend is an encoder, a reader and the facts a manifest needs.

Which backend a model takes comes from its card, its own prm.json, or --backend; nothing is guessed from names.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prmbench.backends import cards
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig, missing_folder
from prmbench.core.records import READOUTS, ScoreKind, StepScores, Trace, UserError

if TYPE_CHECKING:
    from prmbench.engines.encoding import Encoded

BACKENDS = {
    "implicit": "prmbench.backends.implicit:load",
    "endo": "prmbench.backends.endo:load",
    "value_head": "prmbench.backends.value_head:load",
    "token_cls": "prmbench.backends.token_cls:load",
    "tag_lm": "prmbench.backends.tag_lm:load",
    "critic": "prmbench.backends.critic:load",
    "baseline": "prmbench.backends.baseline:load",
}
"""Strings, so that nothing is imported until it is used."""
CRITIC_OPTIONS = ("critic", "votes", "base_url", "max_cost")
"""Those that nobody gives who does not mean to ask a critic."""
BASELINES = ("random", "step-length", "all-right", "position-only", "outcome-oracle", "gold")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a manifest says of a backend; the names are RunManifest's."""

    kind: ScoreKind
    input_format: str
    series: tuple[str, ...] = ()
    native: float | None = None
    fixed: float | None = None
    revision: str | None = None
    weights: str | None = None
    ref_model: str | None = None
    ref_revision: str | None = None
    ref_weights: str | None = None
    template: str | None = None
    beta: float | None = None
    signal: str = ""
    trained_on: tuple[str, ...] = ()
    dtype: str = ""
    engine: str = ""
    device: str = ""
    hardware: str = ""
    backend: str = ""
    """Empty for a class of the user's own: then --backend names it."""
    weight_bytes: int = 0
    """Of all models that the backend holds; for --dry-run, like the next."""
    token_bytes: int = 0
    """Rough memory that a padded token of a batch takes."""
    batch_tokens: int = 0
    """Padded tokens a batch holds unless told otherwise; 0 = by device."""
    workers: int = 1
    """Batches that may be under way at once, each in a thread."""


class Backend(Protocol):
    """What `pkg.mod:Class(config)` must be to serve as --backend."""

    facts: Facts

    def cost(self, trace: Trace) -> int:
        """Tokens the trace takes; batches are formed by it."""

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """One entry a trace, in order."""


@dataclass(frozen=True, slots=True)
class ModelBackend:
    """A backend that pushes encoded traces through a model."""

    facts: Facts
    encode: Callable[[Trace], Encoded]
    read: Callable[[Sequence[Encoded]], Iterator[StepScores]]
    """Scores of traces that could be encoded."""

    def cost(self, trace: Trace) -> int:
        """Tokens of the encoded trace; 0 when it cannot be scored."""
        return len(self.encode(trace).ids)

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """One entry a trace, in order; what could not be encoded is unscored with its reason."""
        encoded = [self.encode(trace) for trace in traces]
        usable = [e for e in encoded if not e.unscored]
        scores = self.read(usable) if usable else iter(())
        for e in encoded:
            yield StepScores(e.id, unscored=e.unscored) if e.unscored else next(scores)


def load_backend(config: ModelConfig) -> Backend:
    """The backend for a model. Raises UserError when it is not known how to read the model."""
    card = find_card(config)
    if ":" in card.backend:
        if config.backend != card.backend:  # a downloaded prm.json may not choose what is run
            raise UserError(f"{card.model}: its prm.json names code; pass --backend {card.backend} if you trust it")
        own: Backend = _load(card.backend)(config)
        if own.facts.kind not in READOUTS:
            raise UserError(f"--backend {card.backend}: kind {own.facts.kind!r}; choose from {', '.join(READOUTS)}")
        return own
    if card.backend not in BACKENDS:
        raise UserError(f"--backend {card.backend}: choose from auto, {', '.join(BACKENDS)} or give pkg.mod:Class")
    if card.backend != "critic":
        _check_no_critic(card, config)
    _check_remote_code(card, config)
    if card.backend != "implicit" and config.ref_model:
        raise UserError(f"--ref-model: backend {card.backend} has no reference; drop it, or use backend implicit")
    if card.backend not in ("implicit", "endo") and config.boundary != "exact":
        raise UserError(f"--boundary {config.boundary}: backend {card.backend} has no such positions; use exact")
    return _load(BACKENDS[card.backend])(card, config)  # type: ignore[no-any-return]


def _check_no_critic(card: ModelCard, config: ModelConfig) -> None:
    """Raises UserError on options that would ask the model something, of which nothing would be done."""
    if config.engine == "openai":
        raise UserError(
            f"--engine openai: asks critics, and {card.model} is read by backend {card.backend}; "
            "use --engine hf, or ask it with --backend critic"
        )
    none = ModelConfig()
    given = [name for name in CRITIC_OPTIONS if getattr(config, name) != getattr(none, name)]
    if given:
        raise UserError(
            f"--{given[0].replace('_', '-')}: is of critics, and {card.model} is read by backend {card.backend}; "
            "drop it, or ask it with --backend critic"
        )


def find_card(config: ModelConfig) -> ModelCard:
    """The card row, prm.json, or flags that say how to read the model; flags win."""
    if not config.model:
        raise UserError("--model is missing: give a hub id, a folder, a .gguf file or a baseline")
    if config.backend == "auto" and config.model in BASELINES:
        return ModelCard(config.model, "baseline")
    if config.engine != "openai":  # a server's names are its own
        missing_folder(config.model)
    card = cards.MODELS.get(config.model) or cards.from_folder(Path(config.model))
    if config.backend != "auto":
        card = cards.override(card or ModelCard(config.model, config.backend), backend=config.backend)
    if card is None:
        known = "critic" if config.engine == "openai" else "|".join(BACKENDS)
        raise UserError(f"--model {config.model}: no card and no prm.json say how to read it; pass --backend {known}")
    return cards.override(card, ref_model=config.ref_model, revision=config.revision)


def _check_remote_code(card: ModelCard, config: ModelConfig) -> None:
    if not card.remote_code:
        if config.trust_remote_code:
            raise UserError(
                f"--trust-remote-code: the card of {card.model} asks for no code of the model's own; drop it"
            )
        return
    if not config.trust_remote_code:
        raise UserError(
            f"{card.model} runs code of its own; pass --trust-remote-code and a full --revision if you trust it"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", card.revision or ""):
        raise UserError(f"{card.model} runs code of its own; pin it: --revision must be a full 40-digit sha")


def _load(path: str) -> Callable[..., Backend]:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"--backend {path}: cannot be imported ({error}); is its folder on PYTHONPATH?") from error
