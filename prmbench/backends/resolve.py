"""Resolves how a model is read: by its card, its prm.json or its files, with options over them; checks the options."""

from __future__ import annotations

import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from prmbench.backends import cards
from prmbench.backends.builtin import BACKENDS, BASELINES
from prmbench.backends.cards import ModelCard
from prmbench.config import CardOptions, ModelConfig, check_model_path, unused_options
from prmbench.config.model_names import nearest_model
from prmbench.core import hub_access, reading
from prmbench.core.records import Notice, UserError

READING_FIELDS = ("backend", "separator", "tag", "positive_class", "prompt", "head", "activation")
"""Fields of a card that inference and options set, other than models and revisions, which have fields of their own."""
OPTION_BACKENDS = {
    "separator": ("token_cls", "value_head"),
    "tag": ("token_cls", "value_head", "tag_lm"),
    "positive_class": ("token_cls",),
}
"""Options that override a card -> the backends that have them."""


def find_card(config: ModelConfig) -> ModelCard:
    """Return how the model is read: from its card or prm.json, else inferred from its files; options override all.

    Raises:
        UserError: Nothing says how the model is read, or options do not fit it.
    """
    return _resolve_card(config)[0]


def checked_card(config: ModelConfig) -> tuple[ModelCard, dict[str, Any]]:
    """Return the card of the model, and those of its fields that were inferred or set by options.

    Raises:
        UserError: Nothing says how the model is read, or options do not fit it or its backend.
    """
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
    notice = ""
    if _is_incomplete(card, stated):
        card, notice = _infer(card)
    check_card_options(card, config)
    if notice:  # it names a command with the options, so these are checked before
        check_reference(card, config.ref_model)
        warnings.warn(notice, Notice, stacklevel=1)  # one place, so that it is shown once
    if card.backend == "implicit" and card.ref_model:
        check_model_path(card.ref_model, option="--ref-model" if config.ref_model else "prm.json: ref_model")
    chosen = {f.name: getattr(card, f.name) for f in fields(ModelCard) if f.name in READING_FIELDS}
    assumed = {name: value for name, value in chosen.items() if value != getattr(start, name)}
    return card, assumed


def _is_incomplete(card: ModelCard, stated: ModelCard | None) -> bool:
    """Return whether the card does not say all that its backend needs, and the model's files may."""
    if card.backend == "token_cls":
        return stated is None or (card.tag is None and card.separator is None)
    return card.backend == "auto" or (card.backend == "value_head" and stated is None)


def _infer(card: ModelCard) -> tuple[ModelCard, str]:
    """Return the card with what the model's files say, and what was assumed, if anything. Raises UserError."""
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
    if card.backend not in ("auto", backend):
        return card, ""  # the option is taken at its word; loading says what does not fit
    if inference.problem:
        raise UserError(infer.refusal(card.model, inference))
    return cards.override(card, **inference.fields), infer.notice(card.model, inference)


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


def warn_of_unused_options(card: ModelCard, config: ModelConfig) -> None:
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
    if card.backend == "implicit" or not ref_model:
        return
    if card.backend in ("token_cls", "value_head"):
        kind = f"a classifier, whose steps backend {card.backend} scores by its own head without a reference"
        raise UserError(f"--ref-model {ref_model}: {card.model} is {kind}; drop it")
    raise UserError(
        f"--ref-model {ref_model}: backend {card.backend}, which reads {card.model}, has no reference; "
        "drop it, or pass --backend implicit"
    )


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
