"""Published step labels -> labelled rollouts: PRM800K, Math-Shepherd, TRL's stepwise form. One row, one solution.

Trains and judges nothing; what is left out is counted by reason. Facts about the formats: docs/data.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prmbench import outputs
from prmbench.config import ConvertConfig
from prmbench.data import files, rollouts
from prmbench.data.rollouts import Rollout
from prmbench.schema import UserError, text_hash

TAG = "ки"
"""Math-Shepherd: closes every step of `input`; `label` has + or - in its place."""
RATINGS = (-1, 0, 1)
NO_STEP, BROKEN = "no rated step", "problem reported as broken"
_FIRST_STEP = re.compile(r"(?<!\S)Step 1:")
_HEADING = re.compile(r"\AStep \d+:\s*")
_MARK = re.compile(rf"{TAG}(?:[ \t]*\?)?|\Z")
_SIGN = re.compile(rf"(?:{TAG}\s*)?([+-])")

Found = tuple[list[Rollout], str]
"""What a row gives, without ids; or nothing, and why."""
Reader = Callable[[Mapping[str, Any], str], Found]


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of a file."""

    out: Path
    rows: int
    solutions: int
    with_error: int
    steps: int
    labels: int
    """Steps with a label: those after a first error may have none."""
    left_out: Mapping[str, int]
    """Why rows gave nothing -> how many."""


def convert(config: ConvertConfig, data: Path) -> Converted:
    """Writes the file's solutions as grouped traces, as `train-rm --loss step_bce` and `eval` read them.

    Raises UserError naming the file and the row that cannot be read.
    """
    files.check_limit(config.limit)
    rollouts.check_suffix(config.out)
    outputs.check([config.out], config, [data], force=config.force)
    found, left, rows = read(data, config.format, config.neutral, config.alternatives)
    kept = files.spread(found, config.limit)
    if not kept:
        why = ", ".join(f"{n} x {reason}" for reason, n in left.items())
        raise UserError(f"{data}: gives no labelled solution{f' ({why})' if why else ''}")
    rollouts.write(config.out, kept)
    return Converted(
        out=config.out,
        rows=rows,
        solutions=len(kept),
        with_error=sum(r.first_error not in (None, -1) for r in kept),
        steps=sum(len(r.steps) for r in kept),
        labels=sum(_labelled(r) for r in kept),
        left_out=left,
    )


def read(
    path: Path, form: str = "auto", neutral: str = "right", alternatives: bool = False
) -> tuple[list[Rollout], dict[str, int], int]:
    """(labelled solutions, rows left out by reason, rows read) of a file, or of the data files in a folder.

    Solutions of one problem share a group; ids are `<file>-<row>`, then `-1`, `-2`, ... for a row's alternatives.
    """
    readers: dict[str, Reader] = {
        "prm800k": partial(prm800k, neutral=float(neutral == "right"), alternatives=alternatives),
        "math_shepherd": math_shepherd,
        "trl": trl,
    }
    found: list[Rollout] = []
    left: Counter[str] = Counter()
    count = 0
    for file in files.data_files(path):
        for number, row in enumerate(files.read_rows(file)):
            where = f"{file} row {number}"
            read_row, reason = readers[_format(row, where) if form == "auto" else form](row, where)
            left.update([reason] if reason else [])
            found += [_named(r, f"{file.stem}-{number}", k) for k, r in enumerate(read_row)]
            count += 1
    files.unique_ids([r.id for r in found], str(path))
    return found, dict(left), count


def _format(row: Mapping[str, Any], where: str) -> str:
    if isinstance(row.get("question"), dict) and isinstance(row.get("label"), dict):
        return "prm800k"
    if isinstance(row.get("input"), str) and isinstance(row.get("label"), str):
        return "math_shepherd"
    if row.get("completions") is not None and row.get("labels") is not None:
        return "trl"
    raise UserError(
        f"{where}: is of no known format; expected question + label (PRM800K), input + label (Math-Shepherd) or "
        f"prompt + completions + labels (TRL)"
    )


def _named(rollout: Rollout, name: str, k: int) -> Rollout:
    return replace(rollout, id=f"{name}-{k}" if k else name, group=text_hash(rollout.prompt))


def _labelled(rollout: Rollout) -> int:
    """How many steps have a label."""
    if rollout.step_labels:
        return len(rollout.step_labels)
    first = rollout.first_error
    return 0 if first is None else len(rollout.steps) if first < 0 else first + 1


def _first_error(labels: Sequence[float]) -> int | None:
    """Index of the first 0, -1 when all are 1; None when soft labels leave it open."""
    if not set(labels) <= {0.0, 1.0}:
        return None
    return labels.index(0.0) if 0.0 in labels else -1


# --- TRL --------------------------------------------------------------------------------------------------


def trl(row: Mapping[str, Any], where: str) -> Found:
    """prompt, completions (the steps), labels (one a step)."""
    steps = files.steps_field({"steps": row.get("completions")}, f"{where}: completions as steps")
    given = row.get("labels")
    if not isinstance(given, list) or len(given) != len(steps):
        raise UserError(
            f"{where}: field 'labels' is {repr(given)[:60]}; expected one label for each of {len(steps)} steps"
        )
    if not all(isinstance(y, bool | int | float) and 0 <= y <= 1 for y in given):
        raise UserError(f"{where}: field 'labels' is {repr(given)[:60]}; expected labels between 0 and 1")
    labels = tuple(float(y) for y in given)
    prompt = files.text_field(row, "prompt", where)
    return [Rollout("", prompt, steps=steps, step_labels=labels, first_error=_first_error(labels))], ""


# --- Math-Shepherd ------------------------------------------------------------------------------------------


def math_shepherd(row: Mapping[str, Any], where: str) -> Found:
    """The problem and its steps in `input`, each closed by the tag; in `label` the same text, + or - for every tag.

    `Step k:` is dropped, since encoders write it. A label is what sampling from there reached, not a person's word.
    """
    text, labelled = (files.text_field(row, name, where) for name in ("input", "label"))
    pieces = [piece for piece in _MARK.split(text) if piece.strip()]
    if text.count(TAG) != len(pieces) or not pieces:
        raise UserError(f"{where}: field 'input' has {text.count(TAG)} tags {TAG!r}; expected one after every step")
    labels = _signs(pieces, labelled, where)
    starts = list(_FIRST_STEP.finditer(pieces[0]))
    if not starts or not pieces[0][: starts[-1].start()].strip():
        raise UserError(f"{where}: field 'input' has no 'Step 1:' after the problem")
    problem, pieces[0] = pieces[0][: starts[-1].start()].strip(), pieces[0][starts[-1].start() :]
    steps = tuple(_HEADING.sub("", piece.strip()) or piece.strip() for piece in pieces)
    subset = files.text_field(row, "task", where).lower() if row.get("task") else ""
    made = Rollout("", problem, steps=steps, step_labels=labels, first_error=_first_error(labels), subset=subset)
    return [made], ""


def _signs(pieces: Sequence[str], labelled: str, where: str) -> tuple[float, ...]:
    """The sign behind every piece. A step may hold + and - of its own, so the label is read along the input."""
    labels, at = [], 0
    for number, piece in enumerate(pieces):
        at += len(labelled[at:]) - len(labelled[at:].lstrip())
        body = piece.strip()
        sign = _SIGN.match(labelled[at + len(body) :].lstrip()) if labelled.startswith(body, at) else None
        if sign is None:
            raise UserError(f"{where}: field 'label' has no + or - for step {number} of 'input', or another text there")
        labels.append(float(sign[1] == "+"))
        at = labelled.index(sign[1], at + len(body)) + 1
    if labelled[at:].strip():
        raise UserError(f"{where}: field 'label' goes on after the last step of 'input'")
    return tuple(labels)


# --- PRM800K ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """A step with the label that a person gave it; None = not rated."""

    text: str
    label: float | None


def prm800k(row: Mapping[str, Any], where: str, neutral: float = 1.0, alternatives: bool = False) -> Found:
    """question.problem and label.steps: at each the completion chosen, or the labeller's own text (which is right).

    Where nothing was chosen, the first completion ends the solution: it is the one that was judged. A solution found
    wrong goes on as it was generated, without labels, unless a label before its error says something else than right.
    Rows whose problem was reported as broken are left out.
    """
    question, label = (_object(row, name, where) for name in ("question", "label"))
    problem = files.text_field(question, "problem", f"{where}: question")
    stages = label.get("steps")
    if not isinstance(stages, list):
        raise UserError(f"{where}: label: field 'steps' is {repr(stages)[:60]}; expected a list of steps")
    if label.get("finish_reason") == "bad_problem":
        return [], BROKEN
    path: list[_Step] = []
    branches: list[tuple[_Step, ...]] = []
    for number, stage in enumerate(stages):
        taken, others, goes_on = _stage(stage, f"{where}: label: step {number}", neutral)
        branches += [(*path, other) for other in others if other.label is not None]
        if taken is None or taken.label is None:
            break
        path.append(taken)
        if not goes_on:
            break
    tail = _tail(path, question.get("pre_generated_steps"), where)
    reached = label.get("finish_reason") == "solution" and len(path) == len(stages)
    made = [_solution(problem, path, tail, question, reached)] if path else []
    made += [_solution(problem, branch, (), question, False) for branch in branches if alternatives]
    return made, "" if made else NO_STEP


def _stage(stage: Any, where: str, neutral: float) -> tuple[_Step | None, list[_Step], bool]:
    """(step taken, rated steps that were not, whether the solution goes on after it)."""
    if not isinstance(stage, dict) or not isinstance(stage.get("completions") or [], list):
        raise UserError(f"{where} is {repr(stage)[:60]}; expected an object with a list of completions")
    offered = [_rated(c, f"{where}, completion {k}", neutral) for k, c in enumerate(stage.get("completions") or [])]
    chosen = stage.get("chosen_completion")
    if chosen is not None:
        if type(chosen) is not int or not 0 <= chosen < len(offered):
            raise UserError(f"{where}: field 'chosen_completion' is {chosen!r}; it has {len(offered)} completions")
        return offered[chosen], offered[:chosen] + offered[chosen + 1 :], True
    human = stage.get("human_completion")
    if human is not None:
        text = human if isinstance(human, dict) else {"text": human}
        return _Step(files.text_field(text, "text", f"{where}: human_completion").strip(), 1.0), offered, True
    return (offered[0], offered[1:], False) if offered else (None, [], False)


def _rated(completion: Any, where: str, neutral: float) -> _Step:
    if not isinstance(completion, dict):
        raise UserError(f"{where} is {repr(completion)[:60]}; expected an object with text and rating")
    text = files.text_field(completion, "text", where).strip()
    rating = completion.get("rating")
    if rating is None or completion.get("flagged"):  # flagged: the labeller did not know
        return _Step(text, None)
    if type(rating) is not int or rating not in RATINGS:
        raise UserError(f"{where}: field 'rating' is {rating!r}; expected -1, 0 or 1")
    return _Step(text, {-1: 0.0, 0: neutral, 1: 1.0}[rating])


def _tail(path: Sequence[_Step], generated: Any, where: str) -> tuple[str, ...]:
    """The steps that were generated after the first error and that nobody rated."""
    if not generated or not path or [s.label for s in path] != [1.0] * (len(path) - 1) + [0.0]:
        return ()
    whole = [step.strip() for step in files.steps_field({"steps": generated}, f"{where}: question.pre_generated_steps")]
    return tuple(whole[len(path) :]) if whole[: len(path)] == [s.text for s in path] else ()


def _solution(
    problem: str, path: Sequence[_Step], tail: Sequence[str], question: Mapping[str, Any], reached: bool
) -> Rollout:
    labels = tuple(float(s.label or 0.0) for s in path)
    gold = question.get("ground_truth_answer")
    return Rollout(
        "",
        problem,
        steps=(*(s.text for s in path), *tail),
        outcome=1 if reached else None,
        gold=gold if isinstance(gold, str) else "",
        first_error=_first_error(labels),
        step_labels=() if tail else labels,
    )


def _object(row: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise UserError(f"{where}: field {name!r} is {repr(value)[:60]}; expected an object")
    return value
