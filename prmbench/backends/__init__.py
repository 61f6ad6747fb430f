"""Backends turn a model's outputs into step scores. A backend is an encoder, a scorer and facts for the manifest.

A model's backend comes from its card, its own prm.json, --backend or its files; nothing is guessed from its name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prmbench.backends import cards
from prmbench.backends.cards import ModelCard
from prmbench.config import CardOptions, ModelConfig, check_model_path, unused_options, validate
from prmbench.config.model_names import nearest_model
from prmbench.core import hub_access, reading
from prmbench.core.plugins import import_named
from prmbench.core.records import READOUTS, Notice, ScoreKind, StepScores, Trace, UserError

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
    card, assumed = _checked_card(config)
    if ":" in card.backend:
        return _load_plugin(card.backend, config)
    _warn_of_unused_options(card, config)
    loaded = import_named(BACKENDS[card.backend], "--backend")(card, config)
    if assumed:
        loaded = replace(loaded, facts=replace(loaded.facts, assumed=assumed))
    return loaded  # type: ignore[no-any-return]


def check_model(config: ModelConfig) -> None:
    """Raise UserError on a model or options that `load_backend` would refuse, where that shows without loading.

    A model on a hub that cannot be reached, and that is not cached, is refused at once, and so is its reference.
    """
    card, _ = _checked_card(config)
    if config.engine == "openai" or card.backend == "baseline" or ":" in card.backend:
        return
    for name, revision in ((card.model, card.revision), (card.ref_model, config.ref_revision or card.ref_revision)):
        if name is not None and not reading.exists(Path(name)):
            hub_access.check_reachable(name, revision)


def _checked_card(config: ModelConfig) -> tuple[ModelCard, dict[str, Any]]:
    """Return what `_resolve_card` does, with the options checked against the card's backend. Raises UserError."""
    card, assumed = _resolve_card(config)
    if ":" in card.backend:
        if config.backend != card.backend:  # a downloaded prm.json must not choose code to run
            raise UserError(f"{card.model}: its prm.json names code; pass --backend {card.backend} if you trust it")
        return card, assumed
    if card.backend not in BACKENDS:
        raise UserError(f"--backend {card.backend}: choose from auto, {', '.join(BACKENDS)} or give pkg.mod:Class")
    if card.backend != "critic":
        _check_no_critic(card, config)
    _check_remote_code(card, config)
    check_reference(card, config.ref_model)
    if card.backend not in ("implicit", "endo") and config.boundary != "exact":
        raise UserError(f"--boundary {config.boundary}: backend {card.backend} has no such positions; use exact")
    return card, assumed


def _load_plugin(path: str, config: ModelConfig) -> Backend:
    """Return a backend of the user's own, `pkg.mod:Class`. Raises UserError where it lacks what a backend has."""
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


def check_reference(card: ModelCard, ref_model: str | None) -> None:
    """Raise UserError on a reference that the card's backend does not read."""
    if card.backend != "implicit" and ref_model:
        raise UserError(f"--ref-model: backend {card.backend} has no reference; drop it, or use backend implicit")


def find_card(config: ModelConfig) -> ModelCard:
    """Return how the model is read: from its card or prm.json, else inferred from its files; options override all.

    Raises:
        UserError: Nothing says how the model is read, or options do not fit it.
    """
    return _resolve_card(config)[0]


def _resolve_card(config: ModelConfig) -> tuple[ModelCard, dict[str, Any]]:
    """Return the card of the model, and those of its fields that were inferred or set by options. Raises UserError."""
    if not config.model:
        raise UserError("--model is missing: give a hub id, a folder, a .gguf file or a baseline")
    if config.backend == "auto" and config.model in BASELINES:
        baseline = ModelCard(config.model, "baseline")
        check_card_options(baseline, config)
        return baseline, {}
    if config.backend != "auto" and ":" not in config.backend and config.backend not in BACKENDS:
        raise UserError(f"--backend {config.backend}: choose from auto, {', '.join(BACKENDS)} or give pkg.mod:Class")
    names_a_model = config.engine != "openai" and config.backend != "baseline" and ":" not in config.backend
    if names_a_model:  # a server's models and classes of the user's own have names of their own
        check_model_path(config.model, (*BASELINES, *cards.MODELS))
    stated = cards.MODELS.get(config.model) or cards.from_folder(Path(config.model))
    options = cards.from_options(config)
    if stated is None and config.backend == "auto" and config.engine == "openai":
        raise UserError(f"--model {config.model}: no card and no prm.json say how to read it; pass --backend critic")
    start = stated or ModelCard(config.model, config.backend)
    if config.backend != "auto":
        start = cards.override(start, backend=config.backend)
    card = cards.override(start, **options)
    if _is_incomplete(card, stated):
        card = _infer(card)
    check_card_options(card, config)
    if card.backend == "implicit" and card.ref_model:
        check_model_path(card.ref_model, option="--ref-model" if config.ref_model else "prm.json: ref_model")
    chosen = {f.name: getattr(card, f.name) for f in fields(ModelCard) if f.name in READING_FIELDS}
    assumed = {name: value for name, value in chosen.items() if value != getattr(start, name)}
    return card, assumed


READING_FIELDS = ("backend", "separator", "tag", "positive_class", "prompt", "head", "activation")
"""Fields of a card that inference and options set, other than models and revisions, which have fields of their own."""


def _is_incomplete(card: ModelCard, stated: ModelCard | None) -> bool:
    """Return whether the card does not say all that its backend needs, and the model's files may."""
    if card.backend == "token_cls":
        return stated is None or (card.tag is None and card.separator is None)
    return card.backend == "auto" or (card.backend == "value_head" and stated is None)


def _infer(card: ModelCard) -> ModelCard:
    """Return the card with what the model's files say, and print what was assumed. Raises UserError."""
    from prmbench.backends import infer  # reads weights' names, which other cards do not need

    is_local = reading.exists(Path(card.model))
    try:
        if not is_local:
            hub_access.check_reachable(card.model, card.revision)
        inference = infer.infer(card.model, card.revision, card)
    except UserError as error:
        if is_local:
            raise
        nearest = nearest_model(card.model, cards.MODELS)
        hint = f"; did you mean {nearest}?" if nearest else ""
        raise UserError(f"--model {card.model}: no card and no prm.json say how to read it; {error}{hint}") from error
    backend = inference.fields["backend"]
    if card.backend not in ("auto", backend) or (card.backend == "value_head" and "head" not in inference.fields):
        return card  # the option is taken at its word; loading says what does not fit
    if inference.problem:
        raise UserError(infer.refusal(card.model, inference))
    warnings.warn(infer.notice(card.model, inference), Notice, stacklevel=1)  # one place, so that it is shown once
    values = {name: value for name, value in inference.fields.items() if name != "positive_class"}
    positive = inference.fields.get("positive_class")
    return cards.override(card, positive_class=None if positive is None else str(positive), **values)


OPTION_BACKENDS = {
    "separator": ("token_cls", "value_head"),
    "tag": ("token_cls", "value_head", "tag_lm"),
    "positive_class": ("token_cls",),
}
"""Options that override a card -> the backends that have them."""


def check_card_options(card: ModelCard, config: CardOptions) -> None:
    """Raise UserError on options that the card's backend does not have."""
    if ":" in card.backend:
        return
    for name, backends in OPTION_BACKENDS.items():
        if getattr(config, name) is not None and card.backend not in backends:
            raise UserError(
                f"--{name.replace('_', '-')}: is of {', '.join(backends)}, and {card.model} is read by backend "
                f"{card.backend}; drop it, or name another --backend"
            )


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
