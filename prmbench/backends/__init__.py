"""Backends turn a model's outputs into step scores. A backend is an encoder, a scorer and facts for the manifest.

A model's backend comes from its card, its own prm.json or --backend; nothing is guessed from its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prmbench.backends import cards
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig, check_model_path, unused_options, validate
from prmbench.core.plugins import import_named
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
"""The backends' loaders, as strings so that nothing is imported before it is used."""
BASELINES = ("random", "step-length", "all-right", "position-only", "outcome-oracle", "gold")


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a loaded backend for the manifest; the names are those of RunManifest."""

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
    """Empty for a user's own class, which --backend names."""
    weight_bytes: int = 0
    """Bytes of the weights of all models in the backend; for --dry-run, as the next field."""
    token_bytes: int = 0
    """Estimated bytes per padded token of a batch."""
    batch_tokens: int = 0
    """Default size of a batch in padded tokens; 0 = chosen by device."""
    workers: int = 1
    """Batches that may be scored at once, each in its own thread."""


class Backend(Protocol):
    """The interface of a backend, which `pkg.mod:Class(config)` must have to serve as --backend."""

    facts: Facts

    def cost(self, trace: Trace) -> int:
        """Return the size of the trace in tokens, by which batches are formed."""

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """Yield the scores of each trace, in order."""


@dataclass(frozen=True, slots=True)
class ModelBackend:
    """A backend that encodes traces and scores them by a model."""

    facts: Facts
    encode: Callable[[Trace], Encoded]
    read: Callable[[Sequence[Encoded]], Iterator[StepScores]]
    """Scores a batch of encoded traces, one entry for each."""

    def cost(self, trace: Trace) -> int:
        """Return the tokens of the encoded trace; 0 when it cannot be scored."""
        return len(self.encode(trace).ids)

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """Yield the scores of each trace, in order; a trace that could not be encoded is unscored with its reason."""
        encodings = [self.encode(trace) for trace in traces]
        usable = [encoding for encoding in encodings if not encoding.unscored]
        scores = self.read(usable) if usable else iter(())
        for encoding in encodings:
            yield StepScores(encoding.id, unscored=encoding.unscored) if encoding.unscored else next(scores)

    def forget_encodings(self) -> None:
        """Empty the cache of `encode`, where it has one: the traces of a server never end."""
        clear = getattr(self.encode, "cache_clear", None)
        if clear is not None:
            clear()


def load_backend(config: ModelConfig) -> Backend:
    """Load the backend for a model.

    Args:
        config: The options of `prmbench eval` or `prmbench score`; the model's card or prm.json says the rest.

    Returns:
        What turns traces into scores, with its model loaded.

    Raises:
        UserError: No card, prm.json or option says how the model is read, or options do not fit its backend.
    """
    config = validate(config)
    card = find_card(config)
    if ":" in card.backend:
        return _load_plugin(card.backend, config)
    if card.backend not in BACKENDS:
        raise UserError(f"--backend {card.backend}: choose from auto, {', '.join(BACKENDS)} or give pkg.mod:Class")
    if card.backend != "critic":
        _check_no_critic(card, config)
    _check_remote_code(card, config)
    if card.backend != "implicit" and config.ref_model:
        raise UserError(f"--ref-model: backend {card.backend} has no reference; drop it, or use backend implicit")
    if card.backend not in ("implicit", "endo") and config.boundary != "exact":
        raise UserError(f"--boundary {config.boundary}: backend {card.backend} has no such positions; use exact")
    _warn_of_unused_options(card, config)
    return import_named(BACKENDS[card.backend], "--backend")(card, config)  # type: ignore[no-any-return]


def _load_plugin(path: str, config: ModelConfig) -> Backend:
    """Return a backend of the user's own, `pkg.mod:Class`. Raises UserError where it lacks what a backend has."""
    if config.backend != path:  # a downloaded prm.json must not choose code to run
        raise UserError(f"{config.model}: its prm.json names code; pass --backend {path} if you trust it")
    backend_class = import_named(path, "--backend")
    if not callable(backend_class):
        raise UserError(f"--backend {path}: is a {type(backend_class).__name__}; name a class or a function")
    backend: Backend = backend_class(config)
    for name in ("facts", "cost", "score"):
        if not hasattr(backend, name):
            raise UserError(f"--backend {path}: has no {name}; a backend has facts, cost(trace) and score(traces)")
    if not isinstance(backend.facts, Facts):
        raise UserError(f"--backend {path}: facts is a {type(backend.facts).__name__}; use prmbench.backends.Facts")
    if backend.facts.kind not in READOUTS:
        raise UserError(f"--backend {path}: kind {backend.facts.kind!r}; choose from {', '.join(READOUTS)}")
    return backend


def _check_no_critic(card: ModelCard, config: ModelConfig) -> None:
    """Raise UserError on options for critics, which other backends would ignore."""
    if config.engine == "openai":
        raise UserError(
            f"--engine openai: asks critics, and {card.model} is read by backend {card.backend}; "
            "use --engine hf, or ask it with --backend critic"
        )
    if critic_options := unused_options.changed(config, unused_options.CRITIC):
        raise UserError(
            f"{unused_options.flags(critic_options[:1])}: is of critics, and {card.model} is read by backend "
            f"{card.backend}; drop it, or ask it with --backend critic"
        )


def _warn_of_unused_options(card: ModelCard, config: ModelConfig) -> None:
    """Give a Notice on options that this backend, or its engine, does not read."""
    unused = [*(("decay",) if card.backend != "endo" else ())]
    unused += [*(("ref_revision", "ref_cache") if card.backend != "implicit" else ())]
    unused_options.warn_of_unused(config, unused, f"backend {card.backend} reads {card.model}")
    if card.backend == "baseline":
        unused_options.warn_of_unused(config, unused_options.FORWARD_PASS, f"{card.model} is a baseline, no model")
    elif card.backend == "critic" and config.engine == "openai":
        here = ("revision", *unused_options.PLACEMENT, "tensor_parallel", "batch_tokens")
        unused_options.warn_of_unused(config, here, "the server runs the model (--engine openai)")
    elif card.backend == "critic":
        unused_options.warn_of_unused(config, ("requests", "rate"), f"engine {config.engine} asks no server")


def find_card(config: ModelConfig) -> ModelCard:
    """Return how the model is read, from its card or prm.json; options override both.

    Raises:
        UserError: Nothing says how the model is read.
    """
    if not config.model:
        raise UserError("--model is missing: give a hub id, a folder, a .gguf file or a baseline")
    if config.backend == "auto" and config.model in BASELINES:
        return ModelCard(config.model, "baseline")
    if config.engine != "openai":  # a server's model names need not be paths
        check_model_path(config.model)
    card = cards.MODELS.get(config.model) or cards.from_folder(Path(config.model))
    if config.backend != "auto":
        card = cards.override(card or ModelCard(config.model, config.backend), backend=config.backend)
    if card is None:
        choices = "critic" if config.engine == "openai" else "|".join(BACKENDS)
        raise UserError(f"--model {config.model}: no card and no prm.json say how to read it; pass --backend {choices}")
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
