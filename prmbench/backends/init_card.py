"""`prmbench init`: writes the prm.json that says how a model is read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from prmbench.backends import BACKENDS, cards, infer
from prmbench.backends.cards import TRAINING_RECORD_KEYS, ModelCard
from prmbench.backends.resolve import check_card_options, check_reference
from prmbench.config import InitConfig, check_model_path, validate
from prmbench.core import provenance, reading, writing
from prmbench.core.option_values import check_choice
from prmbench.core.records import Notice, UserError

KEPT_KEYS = TRAINING_RECORD_KEYS | {"signal", "trained_on", "beta", "note"}
"""Keys of a replaced prm.json that stay: they say how the model was trained, and not how it is read."""
NEEDS = {"implicit": "ref_model", "tag_lm": "tag"}
"""Backends that are not inferred -> the option that they cannot do without."""


def init(config: InitConfig, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write the prm.json of a model's folder: what options say, and what its files say about the rest.

    Args:
        config: The options of `prmbench init`.
        folder: A model's folder.

    Returns:
        The file, and its content.

    Raises:
        UserError: There is no such folder, it has a prm.json, or how the model is read cannot be inferred.
    """
    config = validate(config)
    if not folder.is_dir():
        check_model_path(str(folder), option="init")
        raise UserError(f"init {folder}: not a folder on this machine; a prm.json lies beside a model's weights")
    path = folder / provenance.CARD_FILE
    if reading.lexists(path) and not config.force:
        raise UserError(f"{path}: exists; pass --force to replace it")
    writing.check_target(path)
    fields = _fields(config, folder)
    if "ref_model" in fields:
        fields["ref_model"] = infer.relative_model(folder, fields["ref_model"])
    content = {**fields, **_kept_fields(path)}
    writing.write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path, content


def _fields(config: InitConfig, folder: Path) -> dict[str, Any]:
    """Return the fields of the card. Raises UserError."""
    check_choice(
        config.backend, ("auto", *(name for name in BACKENDS if name != "baseline")), f"--backend is {config.backend!r}"
    )
    if config.ref_model is not None:
        check_model_path(config.ref_model, option="--ref-model")
    card = cards.override(ModelCard(str(folder), config.backend), **cards.from_options(config))
    if config.backend in ("auto", "token_cls", "value_head"):
        inference = infer.infer(str(folder), None, card)
        backend = inference.fields["backend"]
        if inference.problem or config.backend not in ("auto", backend):
            raise UserError(infer.refusal(str(folder), inference, config.backend))
        check_card_options(cards.override(card, backend=backend), config)
        check_reference(cards.override(card, backend=backend), config.ref_model)
        warnings.warn(f"model {folder}: {'; '.join(inference.reasons)}", Notice, stacklevel=1)
        return dict(inference.fields)
    needed = NEEDS.get(config.backend)
    if needed is not None and getattr(card, needed) is None:
        raise UserError(f"init {folder}: backend {config.backend} needs --{needed.replace('_', '-')}")
    check_card_options(card, config)
    check_reference(card, config.ref_model)
    return {"backend": config.backend, **infer.stated_fields(card)}


def _kept_fields(path: Path) -> dict[str, Any]:
    """Return the fields of an earlier prm.json that say how the model was trained; empty where it is none."""
    try:
        values = reading.read_json(path) if reading.exists(path) else {}
    except UserError:
        return {}
    return {name: value for name, value in values.items() if name in KEPT_KEYS} if isinstance(values, dict) else {}
