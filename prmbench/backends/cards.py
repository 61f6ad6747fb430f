"""Known checkpoints, one row each, and prm.json: the same fields in a trained model's folder.

A revision is None until one has been seen; it is resolved at run time and recorded. listing.py describes the rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from prmbench.config import CardOptions, from_mapping, unescape
from prmbench.core import reading
from prmbench.core.option_values import check_names
from prmbench.core.provenance import CARD_FILE
from prmbench.core.records import Tie, UserError

TRAINING_RECORD_KEYS = {
    *("loss", "margin", "reduction", "start_model", "seed", "prmbench", "commit", "dirty"),
    *("template", "data_hash", "updates"),
}
"""Keys of a prm.json that record how the model was trained; none of them changes how it is read."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """How a checkpoint is encoded and scored."""

    model: str
    backend: str
    revision: str | None = None
    ref_model: str | None = None
    """implicit: the reference model of the log-ratio; in prm.json a path may be relative to the file."""
    ref_revision: str | None = None
    """implicit: the hub revision of the reference that it was trained against."""
    beta: float | None = None
    """implicit: the scale in training. It is recorded; no readout depends on it."""
    tag: str | None = None
    """token_cls, value_head: a token that closes every step in a chat. tag_lm: one that does so in plain text."""
    separator: str | None = None
    """token_cls: a text that closes every step, tokenised by itself (TRL). value_head: a text at which the solution is
    cut, also inside steps (Skywork); without it the input is a chat."""
    joint: str | None = None
    """tag_lm: the text between the problem and step 1 when each step has its own turn instead of a tag (RLHFlow)."""
    good: str = "+"
    """tag_lm: the token that says a step is right."""
    bad: str = "-"
    """tag_lm: the token that says a step is wrong."""
    prompt: str | None = None
    """token_cls: the system prompt; critic: the question. Name of a file in assets/prompts."""
    reading: Literal["at_step", "cumulative"] = "at_step"
    """value_head: the value at a step's last token, or the sum over its tokens (Q-RM)."""
    head: str | None = None
    """value_head, token_cls: prefix of the names of the head's tensors among the model's own weights."""
    positive_class: int | str | None = None
    """token_cls: the class of a right step, by its index or its name in id2label; None = class 1 of two."""
    activation: Literal["none", "sigmoid", "negate"] = "none"
    """value_head: sigmoid makes the value at a step's end P(step is right); negate turns a value that rises with
    errors."""
    tie: Tie | None = None
    """The label of a step whose score equals the threshold; None = as the authors of this kind of model have it, see
    `tie_rule`."""
    signal: str = ""
    """Labels of its training data: outcome, steps, or none."""
    trained_on: tuple[str, ...] = ()
    remote_code: bool = False
    family: str = ""
    """Name of the checkpoints that are read in the same way."""
    note: str = ""
    """Caveats for users of the row, above all what has not been verified."""


def _qwen_prm(model: str, trained_on: tuple[str, ...] = ()) -> ModelCard:
    return ModelCard(
        model,
        "token_cls",
        tag="<extra_0>",
        prompt="qwen_math_prm_system",
        signal="steps",
        trained_on=trained_on,
        head="score.",
        family="Qwen2.5-Math-PRM",
        note="its two-layer head is put on transformers' own Qwen2: none of the repository's code runs",
    )


def _trl_prm(model: str) -> ModelCard:
    return ModelCard(
        model,
        "token_cls",
        separator="\n\n",
        signal="steps",
        trained_on=("PRM800K",),
        family="TRL",
        note="separator as in the recipes of huggingface/search-and-learn",
    )


def _rlhflow_prm(data: str) -> ModelCard:
    return ModelCard(
        f"RLHFlow/Llama3.1-8B-PRM-{data}-Data",
        "tag_lm",
        joint="\n\n",
        signal="steps",
        trained_on=(f"RLHFlow/{data}-PRM-Data",),
        family="RLHFlow",
        note="read as ProcessBench's script does: the published rows are greedy.as_is/native; the authors have a blank "
        "after the problem: joint in a prm.json",
    )


def _skywork_prm(size: str) -> ModelCard:
    return ModelCard(
        f"Skywork/Skywork-o1-Open-PRM-Qwen-2.5-{size}",
        "value_head",
        separator="\n",
        head="v_head.summary.",
        activation="sigmoid",
        family="Skywork-o1-PRM",
        note="place of the head from the authors' loader; a step with line breaks is scored at its last one; PRMBench "
        "has a threshold of -0.05 on step differences: step_diff/fixed:-0.05",
    )


def _eurus_prm(stage: int, signal: str) -> ModelCard:
    return ModelCard(
        f"PRIME-RL/EurusPRM-Stage{stage}",
        "implicit",
        ref_model="Qwen/Qwen2.5-Math-7B-Instruct",
        signal=signal,
        trained_on=(f"PRIME-RL/EurusPRM-Stage{stage}-Data",),
        family="EurusPRM",
        note="template unverified: the tokenizer's own, system prompt included; reference from ports of its card",
    )


def _thinkprm(size: str) -> ModelCard:
    return ModelCard(
        f"launch/ThinkPRM-{size}",
        "critic",
        prompt="thinkprm",
        signal="steps",
        trained_on=("PRM800K",),
        family="ThinkPRM",
        note="prompt and step verdicts from its code; its own scorer judges whole solutions only",
    )


def _genprm(size: str) -> ModelCard:
    return ModelCard(
        f"GenPRM/GenPRM-{size}",
        "critic",
        prompt="genprm",
        signal="steps",
        family="GenPRM",
        note="prompt from its code, which also begins every answer and runs the Python in it: here neither is done, "
        "so its numbers are not the paper's",
    )


MODELS = {
    card.model: card
    for card in (
        _qwen_prm("Qwen/Qwen2.5-Math-PRM-7B"),
        _qwen_prm("Qwen/Qwen2.5-Math-PRM-72B"),
        _qwen_prm("Qwen/Qwen2.5-Math-7B-PRM800K", ("PRM800K",)),
        ModelCard(
            "peiyi9979/math-shepherd-mistral-7b-prm",
            "tag_lm",
            tag="ки",
            signal="steps",
            trained_on=("Math-Shepherd",),
            family="Math-Shepherd",
            note='a step that begins with "Step i:" has that header twice',
        ),
        _rlhflow_prm("Mistral"),
        _rlhflow_prm("Deepseek"),
        _skywork_prm("1.5B"),
        _skywork_prm("7B"),
        _trl_prm("HuggingFaceH4/Qwen2.5-Math-1.5B-Instruct-PRM-0.2"),
        _trl_prm("HuggingFaceH4/Qwen2.5-Math-7B-Instruct-PRM-0.2"),
        ModelCard(
            "jinachris/PURE-PRM-7B",
            "token_cls",
            separator="\n\n",
            signal="steps",
            trained_on=("PRM800K",),
            family="PURE",
            note="separator from ports of its model card, where a step is right if P(right) - P(wrong) is above 0",
        ),
        _eurus_prm(1, "outcome"),
        _eurus_prm(2, "steps"),
        _thinkprm("1.5B"),
        _thinkprm("14B"),
        _genprm("1.5B"),
        _genprm("7B"),
    )
}


def tie_rule(card: ModelCard) -> Tie:
    """Return the label of a step whose score equals the threshold, by the card or by the convention of its kind.

    ImplicitPRM's, IPVRM's and GenPRM's scripts and ProcessBench's rule for scalar models flag a step whose score is
    strictly below the threshold, so that a tie is right. TRL takes the first class of highest probability, PURE and
    readers of Math-Shepherd's and RLHFlow's label tokens want more than even odds, so that a tie is wrong.
    """
    if card.tie is not None:
        return card.tie
    wants_more = card.backend == "tag_lm" or (card.backend == "token_cls" and card.separator is not None)
    return "wrong" if wants_more else "right"


def override(card: ModelCard, **values: Any) -> ModelCard:
    """Return the card with every value that is not None replaced; `UNSET` becomes None."""
    set_values: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return replace(card, **{name: _value_or_none(value) for name, value in set_values.items()})


def _value_or_none(value: Any) -> Any:
    return None if value is UNSET else value


UNSET = object()
"""Takes a field's value away in `override`."""


def from_folder(folder: Path) -> ModelCard | None:
    """Return the card in a folder's prm.json, or None where there is no such file.

    Raises:
        UserError: The file is not a model card; see `read_fields`.
    """
    values = read_fields(folder)
    if values is None:
        return None
    path = folder / CARD_FILE
    card_values = {
        name: value for name, value in values.items() if name not in TRAINING_RECORD_KEYS and value is not None
    }
    try:
        card = from_mapping(ModelCard, {"model": str(folder), **card_values}, str(path))
    except TypeError as error:
        if "backend" in card_values:
            raise UserError(f"{path}: not a model card ({error})") from error
        raise UserError(
            f"{path}: has no backend; `prmbench init {folder} --force` writes one that is inferred"
        ) from error
    reference = folder / (card.ref_model or "")
    if card.ref_model and reading.exists(reference):
        return replace(card, ref_model=str(reference))
    return card


def from_options(config: CardOptions) -> dict[str, Any]:
    """Return the fields of a card that options set, for `override`; a tag takes a separator's place and vice versa.

    Raises:
        UserError: An option is empty, or both close a step.
    """
    separator, tag = (None if text is None else unescape(text) for text in (config.separator, config.tag))
    for name in ("separator", "tag", "positive_class"):
        if getattr(config, name) == "":
            raise UserError(f"--{name.replace('_', '-')} is empty; give a text, or drop it")
    if separator is not None and tag is not None:
        raise UserError("--separator and --tag both close a step; keep the one that the model was trained with")
    names = ("positive_class", "ref_model", "revision")
    values = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    if separator is not None:
        values |= {"separator": separator, "tag": UNSET, "joint": UNSET}
    if tag is not None:
        values |= {"tag": tag, "separator": UNSET, "joint": UNSET}
    return values


def read_fields(folder: Path) -> dict[str, Any] | None:
    """Return all fields of a folder's prm.json, or None where there is no such file.

    Raises:
        UserError: The file is no JSON object, or has a key that neither `ModelCard` nor `TRAINING_RECORD_KEYS` knows.
    """
    path = folder / CARD_FILE
    if not reading.exists(path):
        return None
    try:
        values = reading.read_json(path)
    except UserError as error:
        raise UserError(f"{error}; not a model card") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a model card; it needs an object with at least a backend")
    card_keys = {f.name for f in fields(ModelCard)} - {"model"}
    check_names(values, card_keys | TRAINING_RECORD_KEYS, f"{path}: unknown key")
    return values


def prompt_text(name: str) -> str:
    """Return a prompt from assets/prompts, where it is quoted with its source and licence.

    Raises:
        UserError: There is none of that name.
    """
    source = files("prmbench") / "assets" / "prompts" / f"{name}.json"
    if not (name.isidentifier() and source.is_file()):
        raise UserError(f"prompt {name!r}: there is none of that name in prmbench/assets/prompts")
    return str(json.loads(source.read_text(encoding="utf-8"))["text"])
