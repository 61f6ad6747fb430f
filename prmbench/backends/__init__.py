"""Backends turn a model's outputs into step scores. A backend is an encoder, a scorer and facts for the manifest.

A model's backend comes from its card, its own prm.json, --backend or its files; nothing is guessed from its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prmbench.backends.builtin import BACKENDS, BASELINES
from prmbench.backends.resolve import checked_card, find_card, warn_of_unused_options
from prmbench.config import ModelConfig, validate
from prmbench.core import hub_access, reading
from prmbench.core.plugins import check_arguments, import_named
from prmbench.core.records import READOUTS, ScoreKind, StepScores, Tie, Trace, UserError

if TYPE_CHECKING:
    from prmbench.engines.encoding import Encoded

__all__ = [
    "BACKENDS",
    "BASELINES",
    "Backend",
    "Facts",
    "ModelBackend",
    "check_model",
    "find_card",
    "load_backend",
]


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a loaded backend for the manifest; the names are those of RunManifest."""

    kind: ScoreKind
    input_format: str
    series: tuple[str, ...] = ()
    native: float | None = None
    fixed: float | None = None
    tie: Tie = "right"
    revision: str | None = None
    weights: str | None = None
    ref_model: str | None = None
    ref_revision: str | None = None
    ref_weights: str | None = None
    template: str | None = None
    beta: float | None = None
    positive_class: int | None = None
    assumed: Mapping[str, Any] = field(default_factory=dict)
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
    from prmbench.engines.choice import with_engine  # loads torch, which looking up a card does not need

    card, assumed = checked_card(config)
    if ":" not in card.backend:
        warn_of_unused_options(card, config)
    config = with_engine(config, samples=card.backend == "critic")
    if ":" in card.backend:
        return _load_plugin(card.backend, config)
    loaded = import_named(BACKENDS[card.backend], "--backend")(card, config)
    if assumed:
        loaded = replace(loaded, facts=replace(loaded.facts, assumed=assumed))
    return loaded  # type: ignore[no-any-return]


def check_model(config: ModelConfig) -> None:
    """Raise UserError on a model or options that `load_backend` would refuse, where that shows without loading.

    A model on a hub that cannot be reached, and that is not cached, is refused at once, and so is its reference.
    """
    card, _ = checked_card(config)
    if config.engine == "openai" or card.backend == "baseline" or ":" in card.backend:
        return
    for name, revision in ((card.model, card.revision), (card.ref_model, config.ref_revision or card.ref_revision)):
        if name is not None and not reading.exists(Path(name)):
            hub_access.check_reachable(name, revision)


def _load_plugin(path: str, config: ModelConfig) -> Backend:
    """Return a backend of the user's own, `pkg.mod:Class`. Raises UserError where it lacks what a backend has."""
    backend_class = import_named(path, "--backend")
    if not callable(backend_class):
        raise UserError(f"--backend {path}: is a {type(backend_class).__name__}; name a class or a function")
    check_arguments(backend_class, ("config",), f"--backend {path}")
    backend: Backend = backend_class(config)
    for name in ("facts", "cost", "score"):
        if not hasattr(backend, name):
            raise UserError(f"--backend {path}: has no {name}; a backend has facts, cost(trace) and score(traces)")
    check_arguments(backend.cost, ("trace",), f"--backend {path}: cost")
    check_arguments(backend.score, ("traces",), f"--backend {path}: score")
    if not isinstance(backend.facts, Facts):
        raise UserError(f"--backend {path}: facts is a {type(backend.facts).__name__}; use prmbench.backends.Facts")
    if backend.facts.kind not in READOUTS:
        raise UserError(f"--backend {path}: kind {backend.facts.kind!r}; choose from {', '.join(READOUTS)}")
    return backend
