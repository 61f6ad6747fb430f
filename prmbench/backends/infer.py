"""Infers how a model without a prm.json is read: from its config, tokenizer, adapter and the names of its tensors.

Nothing is guessed from the model's name. What several readings fit is not inferred: `Inference.problem` says why.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prmbench.backends import trl_files
from prmbench.backends.cards import ModelCard
from prmbench.backends.head_weights import CHECKPOINTS, HEAD_FILES, download, read_weight_map
from prmbench.backends.step_labels import RIGHT, find_class, is_generic, means_wrong, numbered_labels, right_class
from prmbench.core import provenance, reading
from prmbench.core.records import UserError
from prmbench.engines.hf import HEAD_WEIGHTS, adapter_shapes, check_class_names
from prmbench.engines.loading import tensor_shapes

QWEN_TAG, QWEN_PROMPT = "<extra_0>", "qwen_math_prm_system"
STEP_TAG = re.compile(
    r"<extra_0>|ки|[<\[(|/]*(end[_ -]?of[_ -]?|eo)?(step|prm|reward|rm|score|verdict|judge)"
    r"([_ -]?(end|sep|separator|tag|token|id|\d+))*[>\])|]*",
    re.IGNORECASE,
)
"""Matches an added token that closes steps, by what it is called: `<extra_0>`, `<|step_end|>`, `[STEP]`, `<prm>`."""
HEADS = re.compile(
    r"(?!.*layers\.)(?:.*\.)?(?:score|(?:[a-z]+_)*(?:value|reward|v|rm|prm|critic|regression)_?(?:head|layer))\..*"
)
"""Matches the names of the tensors of a reward head among a checkpoint's weights; a language head is none."""
TASKS = {"TOKEN_CLS": "token classifier", "SEQ_CLS": "sequence classifier", "CAUSAL_LM": "causal language model"}
"""peft's task types -> kind of model."""
QWEN_HEADS = ("Qwen2ForProcessRewardModel", "Qwen2ForRewardModel")
"""Architectures whose head is known to have ReLU between its layers."""
SKYWORK = "Qwen2ForPrmModel"
"""Architecture of Skywork-o1-Open-PRM."""
PLACEHOLDER = "PATH OR HUB ID"
"""Stands in an example for a reference model that no file names."""


@dataclass(frozen=True, slots=True)
class Inference:
    """What the files of a model say about how it is read."""

    fields: Mapping[str, Any]
    """Fields of a ModelCard: all that are needed, or, with a problem, an example of them."""
    reasons: tuple[str, ...] = ()
    """What each was inferred from, for the notice."""
    problem: str = ""
    """Why the fields cannot be inferred; empty when they are."""
    flags: str = ""
    """The flags that do the same as the fields with a problem, and those that were given without one."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in a folder or on the hub; those of an adapter together with its base's."""

    model: str
    revision: str | None = None
    base: ModelFiles | None = None
    """The base of an adapter; None for a whole model."""

    @classmethod
    def open(cls, model: str, revision: str | None = None) -> ModelFiles:
        """Return the files of a model. Raises UserError where an adapter names no base that exists."""
        adapter = provenance.adapter_base(Path(model))
        if adapter is None:
            return cls(model, revision)
        return cls(model, revision, cls(*adapter))

    def path(self, name: str) -> Path | None:
        """Return a file of the model itself; None where it has no such file."""
        if reading.exists(Path(self.model)):
            path = Path(self.model) / name
            return path if path.is_file() else None
        return download(ModelCard(self.model, "", self.revision), name)

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file; empty where there is none. Raises UserError on a damaged file."""
        path = self.path(name)
        values = reading.read_json(path) if path else {}
        return values if isinstance(values, dict) else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json, an adapter's with what it lacks from that of its base."""
        return {**(self.base.json("config.json") if self.base else {}), **self.json("config.json")}

    @cached_property
    def task(self) -> str:
        """The task type of an adapter, as peft calls it; empty for a whole model."""
        return str(self.json(provenance.ADAPTER_FILE).get("task_type") or "") if self.base else ""

    @cached_property
    def architecture(self) -> str:
        """Name of the model's class, an adapter's that of its base; empty where config.json names none."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that can be a head, by name; only shards with a head are looked at."""
        own = adapter_shapes(Path(self.model)) if self.base else {}
        found = dict((self.base or self)._checkpoint_shapes())
        return {
            name: shape for name, shape in {**found, **own}.items() if HEADS.fullmatch(name) or name in HEAD_WEIGHTS
        }

    def _checkpoint_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name in CHECKPOINTS:
            index = self.path(f"{name}.index.json")
            if index:
                of_heads = {k: shard for k, shard in read_weight_map(index).items() if HEADS.fullmatch(k)}
                files = [path for shard in sorted(set(of_heads.values())) if (path := self.path(shard))]
            else:
                files = [path] if (path := self.path(name)) else []
            for path in files:
                yield from tensor_shapes(path).items()
            if index or files:
                return

    @cached_property
    def classes(self) -> int:
        """Number of classes of the model's own head."""
        shape = next((self.shapes[name] for name in HEAD_WEIGHTS if name in self.shapes), None)
        if shape is not None:
            return shape[0]
        labels = self.config.get("id2label")
        count = self.config.get("num_labels")
        return len(labels) if isinstance(labels, dict | list) else count if isinstance(count, int) else RIGHT + 1

    @cached_property
    def labels(self) -> dict[int, str]:
        """Names of the classes; empty where config.json names none, or another number of them."""
        return numbered_labels(self.config.get("id2label"), self.classes)

    @cached_property
    def added_tokens(self) -> tuple[str, ...]:
        """Texts of the tokens that were added to the tokenizer's vocabulary."""
        texts: list[str] = []
        for files in filter(None, (self, self.base)):
            listed = files.json("tokenizer.json").get("added_tokens")
            decoder = files.json("tokenizer_config.json").get("added_tokens_decoder")
            entries = [
                *(listed if isinstance(listed, list) else []),
                *(decoder.values() if isinstance(decoder, dict) else []),
            ]
            texts += [entry["content"] for entry in entries if isinstance(entry, dict) and "content" in entry]
            texts += files.json("added_tokens.json")
        return tuple(dict.fromkeys(text for text in texts if isinstance(text, str)))


def infer(model: str, revision: str | None, stated: ModelCard) -> Inference:
    """Infer how a model is read.

    Args:
        model: Hub id, folder, .gguf file, or folder of an adapter.
        revision: Hub revision; None = the newest.
        stated: What options say about it; a backend `auto` is inferred too.

    Returns:
        The fields of its card, those of `stated` included, or why they cannot be inferred.

    Raises:
        UserError: A file is damaged, the folder holds no model, or the hub cannot be reached.
    """
    if Path(model).suffix == ".gguf":
        return _causal(model, f"a causal language model ({Path(model).name})", stated, None)
    files = ModelFiles.open(model, revision)
    _check_is_model(files)
    if (name := next((name for name in HEAD_FILES if files.path(name)), None)) is not None:
        return _value_head(files, stated, f"its head is {name}", {})
    prefixes = _head_prefixes(files)
    if len(prefixes) > 1:
        names = ", ".join(f"{prefix}*" for prefix in prefixes)
        return _unknown(
            files, f"its weights have several heads ({names})", {"backend": "value_head", "head": prefixes[0]}
        )
    for prefix in prefixes:
        outputs, fields = _outputs(files.shapes, prefix), {"head": prefix}
        if outputs == 1:
            return _value_head(files, stated, f"a head with one output in {prefix}*", fields)
        return _token_classifier(files, stated, outputs, f"a head with {outputs} outputs in {prefix}*", fields)
    kind = _kind(files)
    if kind.endswith("classifier"):
        return _classifier(files, stated, kind)
    if kind == "causal language model":
        named = f"{files.task} adapter of {files.base.model}" if files.base else files.architecture
        return _causal(model, f"a causal language model ({named})", stated, _reference(files))
    return _unknown(files, f"a {files.architecture or 'model of no named class'} without a head for rewards", {})


def _check_is_model(files: ModelFiles) -> None:
    """Raise UserError unless there is a config.json that transformers can read."""
    if files.config:
        check_class_names((files.base or files).path("config.json"))
        return
    folder = Path((files.base or files).model)
    checkpoints = sorted((path.parent for path in folder.glob("*/config.json")), key=lambda path: path.stat().st_mtime)
    checkpoints += sorted(path.parent for path in folder.glob(f"*/{provenance.ADAPTER_FILE}"))
    gguf = sorted(folder.glob("*.gguf"))
    nearest = [*checkpoints[-1:], *gguf[:1]]
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise UserError(f"--model {files.model}: no card and no prm.json say how to read it, and no config.json{hint}")


def _head_prefixes(files: ModelFiles) -> list[str]:
    """Return the prefixes of the reward heads that transformers' own classes do not read."""
    names = {name for name in files.shapes if HEADS.fullmatch(name)} - {"score.weight", "score.bias"}
    return sorted({re.sub(r"(\d+\.)?(weight|bias)$", "", name) for name in names})


def _outputs(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Return the number of outputs of a head: the rows of the weight of its last layer."""
    weights = {name: shape for name, shape in shapes.items() if name.startswith(prefix) and name.endswith("weight")}
    if not weights:
        return 0
    shape = weights[max(weights, key=lambda name: (len(name), name))]
    return shape[0] if len(shape) > 1 else 1


def _kind(files: ModelFiles) -> str:
    """Return what the model is by its task type, the tensors of its head, or its architecture."""
    if files.task in TASKS:
        return TASKS[files.task]
    name = files.architecture
    if "ForTokenClassification" in name or ("score.weight" in files.shapes and "ForSequence" not in name):
        return TASKS["TOKEN_CLS"]
    if "ForSequenceClassification" in name:
        return TASKS["SEQ_CLS"]
    return TASKS["CAUSAL_LM"] if re.search(r"(CausalLM|LMHeadModel|ForConditionalGeneration)$", name) else "model"


# --- readings ---


def _classifier(files: ModelFiles, stated: ModelCard, kind: str) -> Inference:
    """A classifier of transformers: with one class a value head."""
    what = f"{kind}, {files.task or files.architecture}, {files.classes} label{'s' * (files.classes != 1)}"
    if kind == TASKS["SEQ_CLS"] and "score.weight" not in files.shapes:  # e.g. BERT's, over a pooled text
        return _unknown(files, f"its {what}, scores a text as a whole, not its steps", {})
    if files.classes == 1:
        return _value_head(files, stated, what, {})
    return _token_classifier(files, stated, files.classes, what, {})


def _value_head(files: ModelFiles, stated: ModelCard, what: str, fields: Mapping[str, Any]) -> Inference:
    """One value a token: read at the tag or separator that options name, else at a step's last token in a chat."""
    values: dict[str, Any] = {"backend": "value_head", **fields, **stated_fields(stated)}
    reasons = [f"backend value_head ({what})", *_layer_reason(files, fields)]
    if files.architecture == SKYWORK:
        values = {"separator": "\n", "activation": "sigmoid", **values}
        reasons.append(r"pieces at '\n' and a sigmoid (Skywork's architecture)")
    elif stated.tag is None and stated.separator is None:
        tags = _step_tags(files)
        if len(tags) == 1:
            values["tag"] = tags[0]
            reasons.append(f"tag {tags[0]} (an added token of its tokenizer)")
        else:
            reasons.append("the value at a step's last token, in a chat with `Step i:` headers")
    name = files.labels.get(0, "") if len(files.labels) == 1 else ""
    if means_wrong(name) and "activation" not in values:
        values["activation"] = "negate"
        keeps = json.dumps({"backend": "value_head", "activation": "none"})
        reasons.append(f"its value negated, since its only class is named {name!r} (a prm.json with {keeps} keeps it)")
    return Inference(values, tuple(reasons), flags=_flags(stated_fields(stated)))


def _token_classifier(
    files: ModelFiles, stated: ModelCard, classes: int, what: str, fields: Mapping[str, Any]
) -> Inference:
    values: dict[str, Any] = {"backend": "token_cls", **fields, **stated_fields(stated)}
    reasons = [f"backend token_cls ({what})", *_layer_reason(files, fields)]
    problems = []
    if stated.tag is not None or stated.separator is not None:
        given = f"tag {stated.tag}" if stated.tag is not None else f"separator {stated.separator!r}"
        reasons.append(f"{given} (as an option says)")
    else:
        place, reason, problem = _step_end(files)
        values |= place
        reasons += [reason] if reason else []
        problems += [problem] if problem else []
    if values.get("tag") == QWEN_TAG and "ProcessRewardModel" in files.architecture:
        values["prompt"] = QWEN_PROMPT
        reasons.append("Qwen2.5-Math-PRM's system prompt")
    labels = files.labels if len(files.labels) == classes else {}
    positive, reason = _positive(labels, classes, stated.positive_class, files)
    if positive is None:
        problems.append(reason)
        values["positive_class"] = min(RIGHT if classes == RIGHT + 1 else classes - 1, classes - 1)
    else:
        values["positive_class"] = positive
        reasons.append(reason)
    if classes == RIGHT + 1 and positive == RIGHT:
        del values["positive_class"]  # the default
    flags = _flags(values if problems else stated_fields(stated))
    return Inference(values, tuple(reasons), "; ".join(problems), flags)


def _layer_reason(files: ModelFiles, fields: Mapping[str, Any]) -> list[str]:
    """Return what is assumed between the layers of a head; nothing for one layer, and where the family tells."""
    prefix = fields.get("head")
    layers = sum(name.startswith(prefix) and name.endswith("weight") for name in files.shapes) if prefix else 1
    if layers == 1 or files.architecture in QWEN_HEADS:
        return []
    return [f"ReLU between the {layers} layers of its head (a guess: no file names the function)"]


def _step_end(files: ModelFiles) -> tuple[dict[str, str], str, str]:
    """Return the tag or separator that closes a step as a field of the card, with its evidence or a problem."""
    training_args = files.path(trl_files.TRAINING_ARGS)
    separator = trl_files.step_separator(training_args) if training_args else None
    if separator is not None:
        return {"separator": separator}, f"separator {separator!r} (step_separator in {trl_files.TRAINING_ARGS})", ""
    tags = _step_tags(files)
    if len(tags) == 1:
        return {"tag": tags[0]}, f"tag {tags[0]} (an added token of its tokenizer)", ""
    if tags:
        names = ", ".join(tags)
        return {"tag": tags[0]}, "", f"its tokenizer has several tokens that may close a step ({names})"
    guess = "a guess, TRL's default: no file names it; a wrong one gives numbers near the floors"
    return {"separator": trl_files.DEFAULT_SEPARATOR}, f"separator {trl_files.DEFAULT_SEPARATOR!r} ({guess})", ""


def _step_tags(files: ModelFiles) -> list[str]:
    """Return the added tokens that may close a step; of an opening and a closing one, the closing one."""
    tags = [token for token in files.added_tokens if STEP_TAG.fullmatch(token)]
    if QWEN_TAG in tags:
        return [QWEN_TAG]
    openers = {token.replace("/", "", 1) for token in tags if "/" in token}
    return [token for token in tags if token not in openers]


def _positive(
    labels: Mapping[int, str], classes: int, stated: int | str | None, files: ModelFiles
) -> tuple[int | None, str]:
    """Return the class of a right step and why; or None and why it cannot be told."""
    if stated is not None:
        positive = find_class(stated, labels, classes, f"--model {files.model}")
        return positive, f"class {positive} means right (--positive-class)"
    named = right_class(labels)
    if named is not None:
        return named, f"class {named} means right (named {labels[named]!r})"
    names = files.config.get("id2label")
    if isinstance(names, Mapping) and len(names) == classes and not labels:
        return None, (
            f"which class means that a step is right cannot be told: its id2label numbers them {', '.join(names)}, and "
            f"classes count from 0 to {classes - 1}"
        )
    if classes == RIGHT + 1 and (not labels or is_generic(labels)):
        return RIGHT, f"class {RIGHT} means right (its classes have no names; TRL's order)"
    names = ", ".join(f"{index}: {name}" for index, name in labels.items()) or f"{classes} without names"
    return None, f"which class means that a step is right cannot be told from its classes ({names})"


def _causal(model: str, what: str, stated: ModelCard, reference: str | None) -> Inference:
    """A causal language model: implicit with a reference, tag_lm with a tag; otherwise there is a choice to make."""
    if stated.ref_model:
        reason = f"backend implicit ({what} with --ref-model {stated.ref_model})"
        fields = stated_fields(stated)
        return Inference({"backend": "implicit", **fields}, (reason,), flags=_flags(fields))
    if stated.tag is not None:
        reasons = (f"backend tag_lm ({what} with --tag)", "+ and - as the next token mean right and wrong")
        fields = stated_fields(stated)
        return Inference({"backend": "tag_lm", **fields}, reasons, flags=_flags(fields))
    problem = (
        f"{what} can be read in several ways: with --ref-model MODEL as an implicit PRM (log-ratio to the model that "
        "its training started from), with --tag TAG by + or - after each step, with --backend endo by its own logits, "
        "with --backend critic by asking it"
    )
    reference = PLACEHOLDER if reference is None else reference
    quoted = f"'{reference}'" if " " in reference else reference
    return Inference({"backend": "implicit", "ref_model": reference}, (), problem, f"--ref-model {quoted}")


def _unknown(files: ModelFiles, problem: str, example: Mapping[str, Any]) -> Inference:
    """A model that none of the readings fits for certain."""
    example = example or {"backend": "implicit", "ref_model": _reference(files) or PLACEHOLDER}
    return Inference(example, (), problem, f"--backend {example['backend']} {_flags(example)}".rstrip())


def _reference(files: ModelFiles) -> str | None:
    """Return the model that training started from; None where the files name none."""
    if files.base:
        return relative_model(Path(files.model), files.base.model)
    origin = files.config.get("_name_or_path")
    if isinstance(origin, str) and origin and Path(origin).resolve() != Path(files.model).resolve():
        return relative_model(Path(files.model), origin)
    readme = files.path("README.md")
    text = readme.read_text(encoding="utf-8", errors="replace") if readme else ""
    match = re.search(r"^base_model:\s*\[?['\"]?([\w./-]+)", text, re.MULTILINE)
    return match[1] if match else None


def relative_model(folder: Path, model: str) -> str:
    """Return a local model's path relative to the folder whose prm.json names it; a hub id unchanged."""
    if not reading.exists(Path(model)):
        return model
    return os.path.relpath(os.path.realpath(model), os.path.realpath(folder))


def stated_fields(stated: ModelCard) -> dict[str, Any]:
    """Return the fields that options have set, as a prm.json holds them."""
    names = ("separator", "tag", "positive_class", "ref_model")
    return {name: value for name in names if (value := getattr(stated, name)) is not None}


def _flags(fields: Mapping[str, Any]) -> str:
    """Return the flags that say what the fields say."""
    names = ("separator", "tag", "positive_class", "ref_model")
    values = {name: fields[name] for name in names if name in fields}
    return " ".join(f"--{name.replace('_', '-')} {_quoted(value)}" for name, value in values.items())


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)[1:-1] if isinstance(value, str) else str(value)
    return text if re.fullmatch(r"[\w./-]+", text) else f"'{text}'"


# --- messages ---


def notice(model: str, inference: Inference) -> str:
    """Return the line that says what was assumed."""
    change = {
        "token_cls": "; --separator, --tag and --positive-class change that",
        "value_head": "; --separator and --tag change that",
    }.get(inference.fields["backend"], "")
    command = f"prmbench init {model} {inference.flags}".rstrip()
    write = f", and `{command}` writes it down" if Path(model).is_dir() else ""
    lacks = "its prm.json does not say all" if (Path(model) / provenance.CARD_FILE).is_file() else "no prm.json"
    return f"model {model}: {lacks}, so assumed from its files: {'; '.join(inference.reasons)}{change}{write}"


def refusal(model: str, inference: Inference, backend: str = "auto") -> str:
    """Return the line that says why nothing was assumed, with the prm.json and the flags that mend it."""
    problem = inference.problem or f"its files are not those of {backend} but of {inference.fields['backend']}"
    example = json.dumps(dict(inference.fields), ensure_ascii=False)
    place = f"put {example} into {Path(model) / provenance.CARD_FILE}, or pass" if Path(model).is_dir() else "pass"
    flags = inference.flags or f"--backend {inference.fields['backend']}"
    return f"--model {model}: no card and no prm.json say how to read it: {problem}; {place} {flags}"
