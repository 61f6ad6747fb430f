"""The grouped traces file: one row a completion, with its outcome. Best-of-N input, training data and policy results.

Reads its own rows and the schemas others publish; writes jsonl and parquet. Leaves nothing out: training_data.py does.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from prmbench.core import result_files, writing
from prmbench.core.records import Notice, Trace, UserError, text_hash
from prmbench.data import files, selection, solutions

FINISHES = ("stop", "length")
LARGEST = 2**63 - 1
"""Of the integers that a parquet file holds."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt, and what is known about it."""

    id: str
    """Unique; `<group>/<k>` where the data gives none."""
    prompt: str
    completion: str = ""
    """The assistant's text as sampled, without special tokens; empty when only steps are known, or nothing was said."""
    steps: tuple[str, ...] = ()
    outcome: int | None = None
    """1 right, 0 wrong, None = not verified, or the verifier failed."""
    verdict: str = ""
    """The verifier's word: right, wrong, no answer (outcome 0), timeout, crash (outcome None); empty = not asked."""
    answer: str = ""
    """Final answer, normalised: equal texts vote together."""
    gold: str = ""
    """Reference answer."""
    finish: str = ""
    """`stop`, `length` (cut), or empty when unknown."""
    tokens: int | None = None
    """Generated tokens, end of turn included."""
    group: str = ""
    """The prompt's id; `text_hash` of the prompt where the data gives none; of published pairs, the pair's own."""
    subset: str = ""
    first_error: int | None = None
    """0-based index of the first wrong step, -1 = none, None = unlabelled."""
    step_labels: tuple[float, ...] = ()
    """Per step, in [0, 1]: hard labels or Monte-Carlo success."""


# --- what a rollout becomes -----------------------------------------------------------------------------


def trace(rollout: Rollout, split: str = "paragraph") -> Trace:
    """The rollout as an evaluation item: its own steps, or its completion cut by the splitter of that name.

    A completion without text gives a trace without steps, which backends report as unscored.
    """
    return Trace(
        id=rollout.id,
        prompt=rollout.prompt,
        steps=rollout.steps or cut(rollout.completion, split),
        first_error=rollout.first_error,
        step_labels=rollout.step_labels,
        outcome=rollout.outcome,
        group=_group(rollout),
        subset=rollout.subset,
        answer=rollout.answer,
        finish=rollout.finish,
    )


def cut(completion: str, split: str) -> tuple[str, ...]:
    """The completion's steps, blank ones left out.

    `numbered` also drops the headings, since encoders write `Step k:` themselves.
    """
    return solutions.split_text(completion, split, drop_headings=True)


def warn_if_never_cut(rollouts: Iterable[Rollout], split: str, source: str) -> None:
    """Warn where every completion of several lines is one step under the splitter; in one line there is no place."""
    texts = [r.completion for r in rollouts if len(cut(r.completion, "line")) > 1]
    solutions.warn_if_never_cut(texts, split, source)


def warn_if_unverified(rollouts: Sequence[Rollout], source: str) -> None:
    """Warn where there are completions and the verifier could judge none of them: the run measures nothing."""
    if rollouts and all(r.outcome is None for r in rollouts):
        verdicts = ", ".join(f"{count} {name}" for name, count in Counter(r.verdict for r in rollouts).most_common())
        message = f"{source}: none of {len(rollouts)} completions could be verified ({verdicts}); look at the answers"
        warnings.warn(message, Notice, stacklevel=2)


def first_error_of(labels: Sequence[float]) -> int | None:
    """Index of the first 0, -1 when all are 1; None when soft labels leave it open."""
    if not set(labels) <= {0.0, 1.0}:
        return None
    return labels.index(0.0) if 0.0 in labels else -1


def limited(rollouts: Sequence[Rollout], limit: int | None) -> list[Rollout]:
    """Keep the rollouts of `limit` prompts of each subset: evenly spaced, of both sorts where there are both.

    Raises:
        UserError: The limit is below 1.
    """
    files.check_limit(limit)
    groups: dict[str, list[tuple[str, selection.Sorts]]] = {}
    for r in rollouts:
        groups.setdefault(r.subset, []).append((_group(r), selection.sorts_of(r.first_error, r.outcome)))
    chosen = {subset: selection.spread_groups(rows, limit) for subset, rows in groups.items()}
    return [r for r in rollouts if _group(r) in chosen[r.subset]]


def _group(rollout: Rollout) -> str:
    return rollout.group or text_hash(rollout.prompt)


def content_hash(rollouts: Iterable[Rollout]) -> str:
    """SHA-256 over all rows in their order, on which the batches of a training run depend."""
    return result_files.sha256(_lines(rollouts))


# --- writing --------------------------------------------------------------------------------------------


def to_row(rollout: Rollout) -> dict[str, Any]:
    """A JSON row; empty fields are left out, except that a row always has its completion or its steps."""
    row = {f.name: getattr(rollout, f.name) for f in fields(Rollout)}
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in row.items() if v not in (None, "", ())}
    return kept if rollout.steps else {**kept, "completion": rollout.completion}


def from_row(row: Mapping[str, Any]) -> Rollout:
    """Inverse of `to_row`, for rows of our own writing: nothing is checked."""
    names = [f.name for f in fields(Rollout) if f.name in row]
    known: dict[str, Any] = {n: tuple(row[n]) if isinstance(row[n], list) else row[n] for n in names}
    return Rollout(**known)


def write(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Writes the whole file or nothing, as its suffix says. Raises UserError on a suffix other than these two."""
    check_suffix(path)
    writing.write_atomic(path, _parquet(rollouts) if path.suffix == ".parquet" else _lines(rollouts))


def check_suffix(path: Path) -> None:
    """Raises UserError where `write` would, so that a command can ask before it begins."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{path}: rollouts are written as .jsonl or .parquet; name the file so")


def _lines(rollouts: Iterable[Rollout]) -> bytes:
    return "".join(json.dumps(to_row(r), sort_keys=True, ensure_ascii=False) + "\n" for r in rollouts).encode()


def _parquet(rollouts: Iterable[Rollout]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    lists = {"steps": pyarrow.list_(pyarrow.string()), "step_labels": pyarrow.list_(pyarrow.float64())}
    integers = dict.fromkeys(("outcome", "tokens", "first_error"), pyarrow.int64())
    kinds = [(f.name, {**lists, **integers}.get(f.name, pyarrow.string())) for f in fields(Rollout)]
    table = pyarrow.Table.from_pylist([to_row(r) for r in rollouts], schema=pyarrow.schema(kinds))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


# --- reading --------------------------------------------------------------------------------------------


def read(path: Path) -> list[Rollout]:
    """All rollouts of a file, or of the data files in a folder, in their order.

    A row is one of: our own (or ProcessBench's, or prompt + completion + label); `conversation` + `label`;
    `chosen` + `rejected` conversations (two rollouts that share a group); TRL's `prompt` + `completions` + `labels`.
    Raises UserError naming file and row. Empty completions are read: a policy may well say nothing.
    """
    found: list[tuple[Rollout, str]] = []
    for file in files.data_files(path):
        for number, row in enumerate(files.read_rows(file)):
            where = f"{file} row {number}"
            found += [(rollout, where) for rollout in _reader(row)(row, where)]
    if not found:
        raise UserError(f"{path}: holds no rollout")
    return _named(found)


Reader = Callable[[Mapping[str, Any], str], list[Rollout]]


def _reader(row: Mapping[str, Any]) -> Reader:
    has = {name for name, value in row.items() if value is not None}
    for telltale, reader in (
        ({"conversation"}, _pointwise),
        ({"chosen", "rejected"}, _pairwise),
        ({"completions", "labels"}, _stepwise),
    ):
        if telltale <= has:
            return reader
    return _own


def _named(found: Sequence[tuple[Rollout, str]]) -> list[Rollout]:
    """Gives every rollout its group and id; a group has one prompt, an id occurs once."""
    taken: Counter[str] = Counter()
    prompts: dict[str, str] = {}
    ids: set[str] = set()
    named = []
    for rollout, where in found:
        group = _group(rollout)
        name = rollout.id or f"{group}/{taken[group]}"
        taken[group] += 1
        if prompts.setdefault(group, rollout.prompt) != rollout.prompt:
            raise UserError(f"{where}: group {group!r} has two prompts; give each prompt a group of its own")
        if name in ids:
            raise UserError(f"{where}: id {name!r} occurs twice; every rollout needs an id of its own")
        ids.add(name)
        named.append(replace(rollout, id=name, group=group))
    return named


def _pointwise(row: Mapping[str, Any], where: str) -> list[Rollout]:
    prompt, completion = _conversation(row, "conversation", where)
    return [Rollout("", prompt, completion, outcome=_outcome(row, "label", where, required=True))]


def _pairwise(row: Mapping[str, Any], where: str) -> list[Rollout]:
    prompt, right = _conversation(row, "chosen", where)
    other, wrong = _conversation(row, "rejected", where)
    if other != prompt:
        raise UserError(f"{where}: 'chosen' and 'rejected' answer two different prompts; a pair shares one")
    group = text_hash("\0".join((prompt, right, wrong)))
    return [Rollout("", prompt, text, outcome=y, group=group) for text, y in ((right, 1), (wrong, 0))]


def _stepwise(row: Mapping[str, Any], where: str) -> list[Rollout]:
    steps = _steps(row, "completions", where)
    return [
        Rollout(
            "", files.text_field(row, "prompt", where), steps=steps, step_labels=_labels(row, "labels", steps, where)
        )
    ]


def _own(row: Mapping[str, Any], where: str) -> list[Rollout]:
    if row.get("completion") is None and row.get("steps") is None:
        raise UserError(
            f"{where}: has neither 'completion' nor 'steps'; rollouts need one of them, or 'conversation', "
            f"or 'chosen' and 'rejected'"
        )
    steps = files.steps_field(row, where) if row.get("steps") or row.get("completion") is None else ()
    label = "label" if row.get("first_error") is None else "first_error"
    outcome = "final_answer_correct" if row.get("outcome") is None else "outcome"
    if not steps and row.get("outcome") is None:
        outcome = "label"  # prompt, completion, label: there is no step that it could point at
    finish = _text(row, "finish", where)
    if finish and finish not in FINISHES:
        raise UserError(f"{where}: field 'finish' is {finish!r}; expected one of {', '.join(FINISHES)}")
    return [
        Rollout(
            id=_text(row, "id", where),
            prompt=files.text_field(row, "problem" if row.get("prompt") is None else "prompt", where),
            completion=_text(row, "completion", where),
            steps=steps,
            outcome=_outcome(row, outcome, where),
            verdict=_text(row, "verdict", where),
            answer=_text(row, "answer", where),
            gold=_text(row, "gold", where),
            finish=finish,
            tokens=_integer(row, "tokens", where, 0),
            group=_text(row, "group", where),
            subset=_text(row, "subset", where),
            first_error=_integer(row, label, where, -1, len(steps) - 1) if steps else None,
            step_labels=_labels(row, "step_labels", steps, where),
        )
    ]


def _conversation(row: Mapping[str, Any], name: str, where: str) -> tuple[str, str]:
    """(prompt, completion) of one user turn and one assistant turn."""
    turns = row[name]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: field {name!r} is {turns!r:.60}; expected a list of turns with role and content")
    roles = [turn.get("role") for turn in turns]
    if roles != ["user", "assistant"]:
        raise UserError(f"{where}: field {name!r} has the turns {roles}; expected one of user, then one of assistant")
    return files.text_field(turns[0], "content", f"{where}: {name}, user turn"), _text(
        turns[1], "content", f"{where}: {name}, assistant turn"
    )


def _steps(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    return files.steps_field({"steps": row[name]}, f"{where}: {name} as steps")


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text that may be empty or absent."""
    value = row.get(name)
    if value is None or value == "":
        return ""
    if isinstance(value, str) and not value.strip():
        return value
    return files.text_field(row, name, where)


def _outcome(row: Mapping[str, Any], name: str, where: str, required: bool = False) -> int | None:
    value = row.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, int | float) or value not in (0, 1):
        raise UserError(f"{where}: field {name!r} is {files.shown(value)}; expected 0 or 1")
    return int(value)


def _integer(row: Mapping[str, Any], name: str, where: str, low: int, high: int | None = None) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= (LARGEST if high is None else high):
        limits = f"{low} or more" if high is None else f"{low} to {high}"
        raise UserError(f"{where}: field {name!r} is {files.shown(value)}; expected a whole number, {limits}")
    return value


def _labels(row: Mapping[str, Any], name: str, steps: Sequence[str], where: str) -> tuple[float, ...]:
    values = row.get(name)
    if values is None or values == []:
        return ()
    if not isinstance(values, list) or len(values) != len(steps):
        raise UserError(
            f"{where}: field {name!r} is {files.shown(values)}; expected one label for each of {len(steps)} steps"
        )
    if not all(isinstance(v, int | float) and 0 <= v <= 1 for v in values):
        raise UserError(f"{where}: field {name!r} is {files.shown(values)}; expected labels between 0 and 1")
    return tuple(float(v) for v in values)
