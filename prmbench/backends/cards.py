"""Known checkpoints, one row each, and prm.json: the same fields beside a trained model's weights.

A revision is None until someone has seen one; it is resolved at run time and recorded in the manifest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from prmbench.config import from_mapping
from prmbench.manifest import CARD_FILE
from prmbench.schema import UserError


@dataclass(frozen=True, slots=True)
class ModelCard:
    """How a checkpoint is read."""

    model: str
    backend: str
    revision: str | None = None
    ref_model: str | None = None
    """implicit: what the log-ratio is taken against; in prm.json a path may be relative to the file."""
    ref_revision: str | None = None
    """implicit: the hub revision of the reference that it was trained against."""
    beta: float | None = None
    """implicit: the scale it was trained with. Recorded; no readout depends on it."""
    tag: str | None = None
    """token_cls: a token that closes every step."""
    separator: str | None = None
    """token_cls: a text that closes every step, tokenised apart (TRL)."""
    prompt: str | None = None
    """token_cls: the system prompt, as the name of a file in assets/prompts."""
    reading: Literal["at_step", "cumulative"] = "at_step"
    """value_head: the value at a step's last token, or the sum over its tokens (Q-RM)."""
    signal: str = ""
    """What it was trained from: outcome, steps, or none."""
    trained_on: tuple[str, ...] = ()
    remote_code: bool = False


def _qwen_prm(model: str, trained_on: tuple[str, ...] = ()) -> ModelCard:
    return ModelCard(
        model,
        "token_cls",
        tag="<extra_0>",
        prompt="qwen_math_prm_system",
        signal="steps",
        trained_on=trained_on,
        remote_code=True,
    )


def _trl_prm(model: str) -> ModelCard:
    """Trained with TRL's stepwise trainer by the recipes of huggingface/search-and-learn, separator a blank line."""
    return ModelCard(model, "token_cls", separator="\n\n", signal="steps", trained_on=("PRM800K",))


MODELS = {
    card.model: card
    for card in (
        _qwen_prm("Qwen/Qwen2.5-Math-PRM-7B"),
        _qwen_prm("Qwen/Qwen2.5-Math-PRM-72B"),
        _qwen_prm("Qwen/Qwen2.5-Math-7B-PRM800K", ("PRM800K",)),
        _trl_prm("HuggingFaceH4/Qwen2.5-Math-1.5B-Instruct-PRM-0.2"),
        _trl_prm("HuggingFaceH4/Qwen2.5-Math-7B-Instruct-PRM-0.2"),
    )
}


def override(card: ModelCard, **values: Any) -> ModelCard:
    """The card with every value that is not None put in."""
    return replace(card, **{name: value for name, value in values.items() if value is not None})


def from_folder(folder: Path) -> ModelCard | None:
    """The card in a folder's prm.json, or None. Raises UserError when the file is not one."""
    path = folder / CARD_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(ModelCard)} - {"model"}  # training may write down more
        row = {name: value for name, value in values.items() if name in known and value is not None}
        card = from_mapping(ModelCard, {"model": str(folder), **row}, str(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a model card ({error}); it needs at least a backend") from error
    reference = folder / (card.ref_model or "")
    return replace(card, ref_model=str(reference)) if card.ref_model and reference.exists() else card


def prompt_text(name: str) -> str:
    """A prompt that is part of a protocol, quoted in assets/prompts with its source and licence."""
    source = files("prmbench") / "assets" / "prompts" / f"{name}.json"
    if not (name.isidentifier() and source.is_file()):
        raise UserError(f"prompt {name!r}: there is none of that name in prmbench/assets/prompts")
    return str(json.loads(source.read_text(encoding="utf-8"))["text"])
