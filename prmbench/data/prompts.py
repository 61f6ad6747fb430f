"""Reads prompts with reference answers: our own rows, the published policy-evaluation schema, MATH-500, reasoning-gym.

An answer must be present here; whether the verifier can parse it is checked in sampling/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prmbench.core import validation
from prmbench.core.records import UserError
from prmbench.data import chat_texts, field_names, files, gym, row_kinds, selection
from prmbench.data.field_names import ANSWER, PROMPT, Fields

BOXED = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
"""Instruction at the end of the published prompts (IPVRM release, policy evaluation); appended to a row's `problem`."""
VERIFIERS = ("math", "exact", "gym")
SUBSETS_BY_SIZE: dict[str, dict[int, str]] = {
    "aimo-aime2024": {90: "aime22-24", 30: "aime24"},
    "aime2024": {90: "aime22-24", 30: "aime24"},
    "aimo-amc": {83: "amc83", 40: "amc23"},
    "amc": {83: "amc83", 40: "amc23"},
    "math-500": {500: "math500"},
    "minerva-math": {272: "minerva"},
    "olympiad-bench": {675: "olympiadbench-en"},
}
"""Published name -> number of problems -> our subset. One published name may stand for different sets: IPVRM's "AIME
2024" covers three years, and its AMC has 83 problems where others mean the 40 of AMC 2023."""
SIZES = {name: size for sizes in SUBSETS_BY_SIZE.values() for size, name in sizes.items()}
"""Number of problems of our complete subsets."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for a policy, with what the verifier needs."""

    id: str
    text: str
    """The user turn, including instructions on the form of the answer."""
    gold: str
    """Reference answer; may be empty for reasoning-gym tasks, which have their own scorer."""
    subset: str
    verifier: str = ""
    """`math`, `exact` or `gym`; empty = the command's choice."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """For reasoning-gym the input of its scorer, else facts such as subject and level."""
    generated: bool = False
    """Whether reasoning-gym generated it in this process; a row of a file must not be able to start its scorer."""


def load(
    path: Path, subsets: Sequence[str] = (), limit: int | None = None, fields: Fields | None = None
) -> list[Prompt]:
    """Return the prompts of a file or folder, subset after subset.

    Args:
        path: A file, a folder, or `gym:NAME[,NAME...][,size=N][,seed=N]`.
        subsets: Subsets to keep; empty keeps all.
        limit: Number of prompts per subset, evenly spaced; None keeps all.
        fields: The names that the rows have for prompt and answer, where they are unusual.

    Raises:
        UserError: A row cannot be used, or a subset does not exist.
    """
    files.check_limit(limit)
    prompts = _read(path, fields)
    if not prompts:
        raise UserError(f"{path}: holds no prompt")
    files.check_unique_ids([p.id for p in prompts], str(path))
    present = list(dict.fromkeys(p.subset for p in prompts))
    for name in subsets:
        if name not in present:
            raise UserError(f"--subset {name}: {path} has {', '.join(present)}")
    chosen = [name for name in present if not subsets or name in subsets]
    return [p for name in chosen for p in selection.spread([p for p in prompts if p.subset == name], limit)]


def _read(path: Path, fields: Fields | None) -> list[Prompt]:
    if str(path).startswith("gym:"):
        return [
            Prompt(id, text, gold, task, "gym", metadata, generated=True)
            for id, text, gold, task, metadata in gym.prompts(str(path))
        ]
    prompts = []
    for file in files.data_files(path):
        for number, (location, row) in enumerate(field_names.rows(file, fields)):
            with row_kinds.advice(row, file, "prompts"):
                prompts.append(_prompt(row, file.stem, number, location))
    return _with_our_names(prompts, path)


def _with_our_names(prompts: Sequence[Prompt], path: Path) -> list[Prompt]:
    """Map published subset names to ours, by size, and number the rows without an id within their subset."""
    counts = Counter(p.subset for p in prompts)
    ours = {name: _our_subset(name, count) for name, count in counts.items()}
    sizes = Counter(ours[p.subset] for p in prompts)
    numbers: Counter[str] = Counter()
    renamed = []
    for prompt in prompts:
        subset = ours[prompt.subset]
        if not validation.NAME.fullmatch(subset):
            raise UserError(f"{path}: subset {subset!r}: use letters, digits and . + - _ only, also in file names")
        if sizes[subset] > SIZES.get(subset, sizes[subset]):
            raise UserError(
                f"{path}: subset {subset!r} stands for a set of {SIZES[subset]} problems, here it has "
                f"{sizes[subset]}; give the rows another `subset`"
            )
        renamed.append(replace(prompt, subset=subset, id=prompt.id or f"{subset}-{numbers[subset]}"))
        numbers[subset] += 1
    return renamed


def _our_subset(name: str, count: int) -> str:
    """Return our name of a published set; an incomplete one gets the first possible name, with `-part`."""
    by_size = SUBSETS_BY_SIZE.get(name)
    if by_size is None:
        return name
    return by_size.get(count, f"{next(iter(by_size.values()))}-part")


def _prompt(row: Mapping[str, Any], stem: str, number: int, location: str) -> Prompt:
    """Return a row as a Prompt; a published one has no id yet."""
    if isinstance(row.get("reward_model"), dict):
        return _published_prompt(row, location)
    if row_kinds.has_completion(row):
        raise UserError(f"{location}: is a completion, not a prompt; give the file of prompts that it was drawn for")
    is_bare_problem = row.get("prompt") is None
    text = _bare_problem(row, location) + BOXED if is_bare_problem else _text(row, location)
    verifier = row.get("verifier") or ""
    if verifier and verifier not in VERIFIERS:
        raise UserError(f"{location}: field 'verifier' is {verifier!r}; choose from {', '.join(VERIFIERS)}")
    metadata = row.get("metadata") or {k: row[k] for k in ("subject", "level") if row.get(k) is not None}
    if not isinstance(metadata, dict):
        raise UserError(f"{location}: field 'metadata' is {files.quoted_value(metadata)}; expected an object")
    name = "unique_id" if row.get("id") is None else "id"
    default_subset = "math500" if row.get("unique_id") is not None else stem
    return Prompt(
        id=f"{stem}-{number}" if row.get(name) is None else files.checked_name(row[name], name, location),
        text=text,
        gold=_gold(row, location),
        subset=files.text_field(row, "subset", location) if row.get("subset") else default_subset,
        verifier=str(verifier),
        metadata=metadata,
    )


def _bare_problem(row: Mapping[str, Any], location: str) -> str:
    """Return the problem of a row without a field `prompt`: its field `problem`, or that of another usual name."""
    name, value = ("", None) if row.get("problem") is not None else field_names.find(row, PROMPT, location)
    if not name:
        return files.text_field(row, "problem", f"{location}: no field 'prompt', so")
    return chat_texts.prompt(value, f"{location}: field {name!r}")


def _gold(row: Mapping[str, Any], location: str) -> str:
    """Return the reference answer of a row: its field `answer`, or that of another usual name."""
    name, value = ("", None) if row.get("answer") is not None else field_names.find(row, ANSWER, location)
    return _answer(value, name, location) if name else _answer(row.get("answer"), "answer", location)


def _published_prompt(row: Mapping[str, Any], location: str) -> Prompt:
    """Return a row with `prompt` (one user turn), `reward_model.ground_truth` and `data_source`.

    The row's index is not unique, so it is not used as the id.
    """
    return Prompt(
        id="",
        text=_text(row, location),
        gold=_answer(row["reward_model"].get("ground_truth"), "reward_model.ground_truth", location),
        subset=files.text_field(row, "data_source", location),
    )


def _text(row: Mapping[str, Any], location: str) -> str:
    """Return a prompt that is a text, or a conversation of one user turn."""
    turns = row.get("prompt")
    if not isinstance(turns, list):
        return files.text_field(row, "prompt", location)
    if len(turns) != 1 or not isinstance(turns[0], dict) or turns[0].get("role") != "user":
        raise UserError(
            f"{location}: field 'prompt' is {files.quoted_value(turns)}; expected a text, or one turn of role user"
        )
    return files.text_field(turns[0], "content", f"{location}: prompt")


def _answer(value: Any, name: str, location: str) -> str:
    """Return a reference answer as text; a number as it is written."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return files.text_field({name: value}, name, location)
