"""Verifiable prompts: from our own rows, the published policy-evaluation schema, MATH-500, or reasoning-gym.

Whether a verifier can read an answer is its own business; here an answer must only be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prmbench.core import validation
from prmbench.core.records import UserError
from prmbench.data import files, gym, selection

BOXED = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
"""What the published prompts end with (IPVRM release, policy evaluation); added to rows that give a bare `problem`."""
VERIFIERS = ("math", "exact", "gym")
KEYS: dict[str, dict[int, str]] = {
    "aimo-aime2024": {90: "aime22-24", 30: "aime24"},
    "aime2024": {90: "aime22-24", 30: "aime24"},
    "aimo-amc": {83: "amc83", 40: "amc23"},
    "amc": {83: "amc83", 40: "amc23"},
    "math-500": {500: "math500"},
    "minerva-math": {272: "minerva"},
    "olympiad-bench": {675: "olympiadbench-en"},
}
"""Published name -> number of problems -> our subset: one name stands for different sets (IPVRM's "AIME 2024" is three
years, its AMC has 83 problems where others mean the 40 of AMC 2023)."""
SIZES = {name: size for sizes in KEYS.values() for size, name in sizes.items()}
"""How many problems our subsets have when whole."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy is asked, and what a verifier needs."""

    id: str
    text: str
    """The user turn, instructions on the form of the answer included."""
    gold: str
    """Reference answer; may be empty for reasoning-gym tasks, which bring their scorer."""
    subset: str
    verifier: str = ""
    """`math`, `exact` or `gym`; empty = whatever the command says."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of reasoning-gym what its scorer reads; else facts such as subject and level."""
    generated: bool = False
    """Whether reasoning-gym made it here: a row of a file does not choose that its scorer runs."""


def load(path: Path, subsets: Sequence[str] = (), limit: int | None = None) -> list[Prompt]:
    """Prompts of a file, a folder, or `gym:NAME[,NAME...][,size=N][,seed=N]`, subset after subset.

    `limit` keeps so many of each subset, evenly spaced. Raises UserError on a row that cannot be used.
    """
    files.check_limit(limit)
    found = _from(path)
    if not found:
        raise UserError(f"{path}: holds no prompt")
    files.unique_ids([p.id for p in found], str(path))
    present = list(dict.fromkeys(p.subset for p in found))
    for name in subsets:
        if name not in present:
            raise UserError(f"--subset {name}: {path} has {', '.join(present)}")
    chosen = [name for name in present if not subsets or name in subsets]
    return [p for name in chosen for p in selection.spread([p for p in found if p.subset == name], limit)]


def _from(path: Path) -> list[Prompt]:
    if str(path).startswith("gym:"):
        return [
            Prompt(id, text, gold, task, "gym", metadata, generated=True)
            for id, text, gold, task, metadata in gym.prompts(str(path))
        ]
    found = []
    for file in files.data_files(path):
        rows = files.read_rows(file)
        found += [_prompt(row, file.stem, number, f"{file} row {number}") for number, row in enumerate(rows)]
    return _named(found, path)


def _named(found: Sequence[Prompt], path: Path) -> list[Prompt]:
    """Published subset names become ours, told apart by size; rows without an id are numbered within their subset."""
    counts = Counter(p.subset for p in found)
    ours = {name: _key(name, count) for name, count in counts.items()}
    sizes = Counter(ours[p.subset] for p in found)
    taken: Counter[str] = Counter()
    named = []
    for prompt in found:
        subset = ours[prompt.subset]
        if not validation.NAME.fullmatch(subset):
            raise UserError(f"{path}: subset {subset!r}: use letters, digits and . + - _ only, also in file names")
        if sizes[subset] > SIZES.get(subset, sizes[subset]):
            raise UserError(
                f"{path}: subset {subset!r} stands for a set of {SIZES[subset]} problems, here it has "
                f"{sizes[subset]}; give the rows another `subset`"
            )
        named.append(replace(prompt, subset=subset, id=prompt.id or f"{subset}-{taken[subset]}"))
        taken[subset] += 1
    return named


def _key(name: str, count: int) -> str:
    """Our name of a published set; of a part of one, the name of the first that it can be a part of."""
    known = KEYS.get(name)
    if known is None:
        return name
    return known.get(count, f"{next(iter(known.values()))}-part")


def _prompt(row: Mapping[str, Any], stem: str, number: int, where: str) -> Prompt:
    """One row; a published one has no id yet."""
    if isinstance(row.get("reward_model"), dict):
        return _published(row, where)
    if row.get("completion") is not None:
        raise UserError(f"{where}: is a completion, not a prompt; give the file of prompts that it was drawn for")
    bare = row.get("prompt") is None
    text = files.text_field(row, "problem", f"{where}: no field 'prompt', so") + BOXED if bare else _text(row, where)
    verifier = row.get("verifier") or ""
    if verifier and verifier not in VERIFIERS:
        raise UserError(f"{where}: field 'verifier' is {verifier!r}; choose from {', '.join(VERIFIERS)}")
    metadata = row.get("metadata") or {k: row[k] for k in ("subject", "level") if row.get(k) is not None}
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: field 'metadata' is {files.shown(metadata)}; expected an object")
    name = "unique_id" if row.get("id") is None else "id"
    usual = "math500" if row.get("unique_id") is not None else stem
    return Prompt(
        id=f"{stem}-{number}" if row.get(name) is None else files.checked_name(row[name], name, where),
        text=text,
        gold=_answer(row.get("answer"), "answer", where),
        subset=files.text_field(row, "subset", where) if row.get("subset") else usual,
        verifier=str(verifier),
        metadata=metadata,
    )


def _published(row: Mapping[str, Any], where: str) -> Prompt:
    """`prompt` = one user turn, `reward_model.ground_truth`, `data_source`. Its index is not unique: not used as id."""
    return Prompt(
        id="",
        text=_text(row, where),
        gold=_answer(row["reward_model"].get("ground_truth"), "reward_model.ground_truth", where),
        subset=files.text_field(row, "data_source", where),
    )


def _text(row: Mapping[str, Any], where: str) -> str:
    """A prompt that is a text, or a conversation of one user turn."""
    turns = row.get("prompt")
    if not isinstance(turns, list):
        return files.text_field(row, "prompt", where)
    if len(turns) != 1 or not isinstance(turns[0], dict) or turns[0].get("role") != "user":
        raise UserError(f"{where}: field 'prompt' is {files.shown(turns)}; expected a text, or one turn of role user")
    return files.text_field(turns[0], "content", f"{where}: prompt")


def _answer(value: Any, name: str, where: str) -> str:
    """A reference answer as text; numbers are taken as written."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return files.text_field({name: value}, name, where)
