"""The rollout file: one completion with its outcome per row; best-of-N input, training data and policy results.

Reads its own format and the published ones, and writes jsonl and parquet. It reads every row; training_data.py selects
what training uses.
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
from prmbench.data import completion_rows, field_names, files, row_kinds, selection, solutions
from prmbench.data.field_names import Fields

FINISHES = ("stop", "length")
MAX_INTEGER = 2**63 - 1
"""Largest integer that a parquet file holds."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt, with its outcome and labels."""

    id: str
    """Unique; `<group>/<k>` where the data gives none."""
    prompt: str
    completion: str = ""
    """The assistant's text as sampled, without special tokens; empty when it was empty or only the steps are known."""
    steps: tuple[str, ...] = ()
    outcome: int | None = None
    """1 right, 0 wrong, None = not verified, or the verifier failed."""
    verdict: str = ""
    """Key of verifiers.OUTCOMES, such as right, no answer or timeout; empty = not verified."""
    answer: str = ""
    """Final answer, normalised so that equal answers vote together."""
    gold: str = ""
    """Reference answer."""
    finish: str = ""
    """`stop`, `length` (truncated), or empty when unknown."""
    tokens: int | None = None
    """Number of generated tokens, including the end of turn."""
    group: str = ""
    """The prompt's id; `text_hash` of the prompt where the data has none; for published pairs, an id of the pair."""
    subset: str = ""
    first_error: int | None = None
    """0-based index of the first wrong step, -1 = none, None = unlabelled."""
    step_labels: tuple[float, ...] = ()
    """Per step, in [0, 1]: hard labels or Monte-Carlo success."""


# --- traces and selection -----------------------------------------------------------------------------


def to_trace(rollout: Rollout, split: str = "paragraph") -> Trace:
    """Return a rollout as a trace, with its own steps or, without those, its completion cut by the splitter `split`.

    A completion without text gives a trace without steps, which backends report as unscored.
    """
    return Trace(
        id=rollout.id,
        prompt=rollout.prompt,
        steps=rollout.steps or split_completion(rollout.completion, split),
        first_error=rollout.first_error,
        step_labels=rollout.step_labels,
        outcome=rollout.outcome,
        group=_group(rollout),
        subset=rollout.subset,
        answer=rollout.answer,
        finish=rollout.finish,
    )


def split_completion(completion: str, split: str) -> tuple[str, ...]:
    """Return the non-blank steps of a completion.

    The splitter `numbered` also drops the headings, since encoders write `Step k:` themselves.
    """
    return solutions.split_text(completion, split, drop_headings=True)


def warn_if_never_split(rollouts: Iterable[Rollout], split: str, source: str) -> None:
    """Warn when the splitter leaves every completion of several lines a single step."""
    texts = [r.completion for r in rollouts if len(split_completion(r.completion, "line")) > 1]
    solutions.warn_if_never_cut(texts, split, source)


def warn_if_unverified(rollouts: Sequence[Rollout], source: str) -> None:
    """Warn when the verifier could judge none of the completions, so that the run measures nothing."""
    if rollouts and all(r.outcome is None for r in rollouts):
        verdicts = ", ".join(f"{count} {name}" for name, count in Counter(r.verdict for r in rollouts).most_common())
        message = f"{source}: none of {len(rollouts)} completions could be verified ({verdicts}); look at the answers"
        warnings.warn(message, Notice, stacklevel=2)


def first_error_of(labels: Sequence[float]) -> int | None:
    """Return the index of the first 0 in step labels, or -1 when all are 1; None when some labels are soft."""
    if not set(labels) <= {0.0, 1.0}:
        return None
    return labels.index(0.0) if 0.0 in labels else -1


def limit_prompts(rollouts: Sequence[Rollout], limit: int | None) -> list[Rollout]:
    """Return the rollouts of `limit` evenly spaced prompts per subset, with both classes where the subset has both.

    Raises:
        UserError: The limit is below 1.
    """
    files.check_limit(limit)
    groups: dict[str, list[tuple[str, selection.Classes]]] = {}
    for r in rollouts:
        groups.setdefault(r.subset, []).append((_group(r), selection.classes_of(r.first_error, r.outcome)))
    chosen = {subset: selection.spread_groups(rows, limit) for subset, rows in groups.items()}
    return [r for r in rollouts if _group(r) in chosen[r.subset]]


def _group(rollout: Rollout) -> str:
    return rollout.group or text_hash(rollout.prompt)


def content_hash(rollouts: Iterable[Rollout]) -> str:
    """Return the SHA-256 of all rows in order, since the batches of a training run depend on the order."""
    return result_files.sha256(_jsonl_bytes(rollouts))


# --- writing --------------------------------------------------------------------------------------------


def to_row(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as a JSON row, without empty fields; every row has its completion or its steps."""
    row = {f.name: getattr(rollout, f.name) for f in fields(Rollout)}
    filled = {k: list(v) if isinstance(v, tuple) else v for k, v in row.items() if v not in (None, "", ())}
    return filled if rollout.steps else {**filled, "completion": rollout.completion}


def from_row(row: Mapping[str, Any]) -> Rollout:
    """Return the rollout of a row that `to_row` wrote; nothing is checked."""
    names = [f.name for f in fields(Rollout) if f.name in row]
    values: dict[str, Any] = {n: tuple(row[n]) if isinstance(row[n], list) else row[n] for n in names}
    return Rollout(**values)


def write(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Write a jsonl or parquet file, completely or not at all.

    Raises:
        UserError: The suffix is neither `.jsonl` nor `.parquet`.
    """
    check_suffix(path)
    writing.write_atomic(path, _parquet_bytes(rollouts) if path.suffix == ".parquet" else _jsonl_bytes(rollouts))


def check_suffix(path: Path) -> None:
    """Raise UserError on a suffix that `write` refuses, so that a command can check before it starts."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{path}: rollouts are written as .jsonl or .parquet; name the file so")


def _jsonl_bytes(rollouts: Iterable[Rollout]) -> bytes:
    return "".join(json.dumps(to_row(r), sort_keys=True, ensure_ascii=False) + "\n" for r in rollouts).encode()


def _parquet_bytes(rollouts: Iterable[Rollout]) -> bytes:
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


def read(path: Path, names: Fields | None = None) -> list[Rollout]:
    """Return all rollouts of a file, or of the data files in a folder, in order.

    A row has one of these formats: ours (or ProcessBench's, or prompt + completion + label); `conversation` + `label`;
    `chosen` + `rejected` conversations (two rollouts that share a group); TRL's `prompt` + `completions` + `labels`;
    or one of those that completion_rows.py knows. Empty completions are read, since a policy may produce them.

    Args:
        path: A data file, or a folder of them.
        names: The names that the rows have for some of their fields.

    Raises:
        UserError: A row is invalid; the message names the file and the row.
    """
    rollouts: list[tuple[Rollout, str]] = []
    nulls: Counter[str] = Counter()
    for file in files.data_files(path):
        for location, row in field_names.rows(file, names):
            with row_kinds.advice(row, file, "rollouts"):
                reader = _reader(row)
                rollouts += [(rollout, location) for rollout in reader(row, location)]
                nulls[location] = completion_rows.null_completions(row, location) if reader is from_other_tools else 0
    warn_of_nulls(path, nulls)
    if not rollouts:
        raise UserError(f"{path}: holds no rollout")
    return with_ids(rollouts)


Reader = Callable[[Mapping[str, Any], str], list[Rollout]]


def _reader(row: Mapping[str, Any]) -> Reader:
    present = {name for name, value in row.items() if value is not None}
    for required, reader in (
        ({"conversation"}, _pointwise),
        ({"chosen", "rejected"}, _pairwise),
        ({"completions", "labels"}, _stepwise),
    ):
        if required <= present:
            return reader
    has_problem = isinstance(row.get("prompt"), str) or isinstance(row.get("problem"), str)
    has_completion = isinstance(row.get("completion"), str) and has_problem
    return _our_format if has_completion or row.get("steps") is not None else from_other_tools


def from_other_tools(row: Mapping[str, Any], location: str) -> list[Rollout]:
    """Return the completions of a row in one of the shapes that completion_rows.py knows.

    Raises:
        UserError: The row has none of them.
    """
    return [rollout for own in completion_rows.own_rows(row, location) for rollout in _our_format(own, location)]


def warn_of_nulls(path: Path, nulls: Mapping[str, int]) -> None:
    """Emit one warning that completions that are null are left out.

    Args:
        path: What was read.
        nulls: Location of a row -> how many of its completions are null.
    """
    places = [location for location, count in nulls.items() if count]
    if places:
        more = ", ..." if len(places) > files.MAX_QUOTED_ROWS else ""
        quoted = ", ".join(places[: files.MAX_QUOTED_ROWS]) + more
        message = f"{path}: completions that are null are left out: {sum(nulls.values())}, in {quoted}"
        warnings.warn(message, Notice, stacklevel=3)


def with_ids(rollouts: Sequence[tuple[Rollout, str]]) -> list[Rollout]:
    """Give every rollout its group and id; a group must have one prompt, and ids must be unique."""
    group_sizes: Counter[str] = Counter()
    prompts: dict[str, str] = {}
    ids: set[str] = set()
    identified = []
    for rollout, location in rollouts:
        group = _group(rollout)
        name = rollout.id or f"{group}/{group_sizes[group]}"
        group_sizes[group] += 1
        if prompts.setdefault(group, rollout.prompt) != rollout.prompt:
            raise UserError(f"{location}: group {group!r} has two prompts; give each prompt a group of its own")
        if name in ids:
            raise UserError(f"{location}: id {name!r} occurs twice; every rollout needs an id of its own")
        ids.add(name)
        identified.append(replace(rollout, id=name, group=group))
    return identified


def _pointwise(row: Mapping[str, Any], location: str) -> list[Rollout]:
    prompt, completion = _conversation(row, "conversation", location)
    return [Rollout("", prompt, completion, outcome=_outcome(row, "label", location, required=True))]


def _pairwise(row: Mapping[str, Any], location: str) -> list[Rollout]:
    prompt, right = _conversation(row, "chosen", location)
    other, wrong = _conversation(row, "rejected", location)
    if other != prompt:
        raise UserError(f"{location}: 'chosen' and 'rejected' answer two different prompts; a pair shares one")
    group = text_hash("\0".join((prompt, right, wrong)))
    return [Rollout("", prompt, text, outcome=y, group=group) for text, y in ((right, 1), (wrong, 0))]


def _stepwise(row: Mapping[str, Any], location: str) -> list[Rollout]:
    steps = _steps(row, "completions", location)
    return [
        Rollout(
            "",
            files.text_field(row, "prompt", location),
            steps=steps,
            step_labels=_labels(row, "labels", steps, location),
        )
    ]


def _our_format(row: Mapping[str, Any], location: str) -> list[Rollout]:
    if row.get("completion") is None and row.get("steps") is None:
        raise UserError(
            f"{location}: has neither 'completion' nor 'steps'; rollouts need one of them, or 'conversation', "
            f"or 'chosen' and 'rejected'"
        )
    steps = files.steps_field(row, location) if row.get("steps") or row.get("completion") is None else ()
    label = "label" if row.get("first_error") is None else "first_error"
    outcome = "final_answer_correct" if row.get("outcome") is None else "outcome"
    if not steps and row.get("outcome") is None:
        outcome = "label"  # in rows of prompt, completion and label it cannot be a step index
    finish = _text(row, "finish", location)
    if finish and finish not in FINISHES:
        raise UserError(f"{location}: field 'finish' is {finish!r}; expected one of {', '.join(FINISHES)}")
    return [
        Rollout(
            id=_text(row, "id", location),
            prompt=field_names.problem_text(row, location, ("prompt", "problem")),
            completion=_text(row, "completion", location),
            steps=steps,
            outcome=_outcome(row, outcome, location),
            verdict=_text(row, "verdict", location),
            answer=_text(row, "answer", location),
            gold=_text(row, "gold", location),
            finish=finish,
            tokens=_integer(row, "tokens", location, 0),
            group=_text(row, "group", location),
            subset=_text(row, "subset", location),
            first_error=_integer(row, label, location, -1, len(steps) - 1) if steps else None,
            step_labels=_labels(row, "step_labels", steps, location),
        )
    ]


def _conversation(row: Mapping[str, Any], name: str, location: str) -> tuple[str, str]:
    """Return the prompt and the completion of a conversation of one user turn and one assistant turn."""
    turns = row[name]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{location}: field {name!r} is {turns!r:.60}; expected a list of turns with role and content")
    roles = [turn.get("role") for turn in turns]
    if roles != ["user", "assistant"]:
        raise UserError(
            f"{location}: field {name!r} has the turns {roles}; expected one of user, then one of assistant"
        )
    return files.text_field(turns[0], "content", f"{location}: {name}, user turn"), _text(
        turns[1], "content", f"{location}: {name}, assistant turn"
    )


def _steps(row: Mapping[str, Any], name: str, location: str) -> tuple[str, ...]:
    return files.steps_field({"steps": row[name]}, f"{location}: {name} as steps")


def _text(row: Mapping[str, Any], name: str, location: str) -> str:
    """Return a text field that may be empty or absent."""
    value = row.get(name)
    if value is None or value == "":
        return ""
    if isinstance(value, str) and not value.strip():
        return value
    return files.text_field(row, name, location)


def _outcome(row: Mapping[str, Any], name: str, location: str, required: bool = False) -> int | None:
    value = row.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, int | float) or value not in (0, 1):
        raise UserError(f"{location}: field {name!r} is {files.quoted_value(value)}; expected 0 or 1")
    return int(value)


def _integer(row: Mapping[str, Any], name: str, location: str, low: int, high: int | None = None) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= (MAX_INTEGER if high is None else high):
        limits = f"{low} or more" if high is None else f"{low} to {high}"
        raise UserError(f"{location}: field {name!r} is {files.quoted_value(value)}; expected a whole number, {limits}")
    return value


def _labels(row: Mapping[str, Any], name: str, steps: Sequence[str], location: str) -> tuple[float, ...]:
    values = row.get(name)
    if values is None or values == []:
        return ()
    if not isinstance(values, list) or len(values) != len(steps):
        raise UserError(
            f"{location}: field {name!r} is {files.quoted_value(values)}; expected one label for each of "
            f"{len(steps)} steps"
        )
    if not all(isinstance(v, int | float) and 0 <= v <= 1 for v in values):
        raise UserError(f"{location}: field {name!r} is {files.quoted_value(values)}; expected labels between 0 and 1")
    return tuple(float(v) for v in values)
