"""Converts published step labels (PRM800K, Math-Shepherd, TRL's stepwise format) into rollouts with labelled steps.

Whatever is left out, unreadable rows included, is counted by reason. docs/data.md describes the formats and says when a
row is unreadable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prmbench.config import ConvertConfig, validate
from prmbench.core import output_checks, reading
from prmbench.core.records import UserError, text_hash
from prmbench.data import files, math_shepherd, rollouts, row_kinds, selection
from prmbench.data.rollouts import Rollout

RATINGS = (-1, 0, 1)
NO_RATED_STEP, BROKEN_PROBLEM = "no rated step", "problem reported as broken"
UNREADABLE, UNREADABLE_ALTERNATIVE = "row that cannot be read", "alternative step that cannot be read"
Solutions = tuple[list[Rollout], list[str]]
"""The solutions of a row, still without ids, and the reasons why parts of the row are left out."""
Reader = Callable[[Mapping[str, Any], str], Solutions]


@dataclass(frozen=True, slots=True)
class Converted:
    """Summary of a conversion."""

    out: Path
    rows: int
    solutions: int
    with_error: int
    steps: int
    labels: int
    """Steps with a label; steps after the first error may have none."""
    left_out: Mapping[str, int]
    """Reason -> how many rows, or alternative steps in them, were left out for it."""
    unreadable: tuple[str, ...] = ()
    """Location and reason of the first few unreadable rows."""


def convert(config: ConvertConfig, data: Path) -> Converted:
    """Convert a file to rollouts, which `train-rm --loss step_bce` and `eval` read.

    Unreadable rows are left out and counted, with a warning that quotes the first few.

    Raises:
        UserError: No row has a solution or, with `strict`, one row is unreadable. Nothing is written then.
    """
    config = validate(config)
    rollouts.check_suffix(config.out)
    output_checks.check_outputs([config.out], config, [data], force=config.force)
    unreadable: list[str] = []
    on_unreadable = None if config.strict else unreadable.append
    labelled, left_out, readable = read(data, config.format, config.neutral, config.alternatives, on_unreadable)
    left_out |= {UNREADABLE: len(unreadable)} if unreadable else {}
    rows = readable + len(unreadable)
    solutions = selection.spread(labelled, config.limit, lambda r: selection.classes_of(r.first_error, None))
    if not solutions:
        why = ", ".join(f"{n} x {reason}" for reason, n in left_out.items())
        first = f"; the first is {unreadable[0]}" if unreadable else ""
        raise UserError(f"{data}: gives no labelled solution{f' ({why}{first})' if why else ''}")
    files.warn_of_unreadable_rows(data, unreadable, rows, "; --strict refuses them")
    rollouts.write(config.out, solutions)
    return Converted(
        out=config.out,
        rows=rows,
        solutions=len(solutions),
        with_error=sum(r.first_error not in (None, -1) for r in solutions),
        steps=sum(len(r.steps) for r in solutions),
        labels=sum(_label_count(r) for r in solutions),
        left_out=left_out,
        unreadable=tuple(unreadable[: files.MAX_QUOTED_ROWS]),
    )


def read(
    path: Path,
    row_format: str = "auto",
    neutral: str = "right",
    alternatives: bool = False,
    on_unreadable: Callable[[str], None] | None = None,
) -> tuple[list[Rollout], dict[str, int], int]:
    """Read the labelled solutions of a file, or of the data files in a folder.

    Solutions of one problem share a group; ids are `<file>-<row>`, then `-1`, `-2`, ... for a row's alternatives.

    Args:
        path: A data file, or a folder of them.
        row_format: Format of the rows, or `auto`.
        neutral: What a step that PRM800K rates 0 counts as: `right` or `wrong`.
        alternatives: Whether PRM800K's rated steps that were not chosen become solutions of their own.
        on_unreadable: Called with the reason for every unreadable row, which is then left out.

    Returns:
        The solutions, how much is left out for each reason, and the number of readable rows.

    Raises:
        UserError: A file cannot be read as a whole; without `on_unreadable`, also for the first unreadable row.
    """
    readers: dict[str, Reader] = {
        "prm800k": partial(prm800k, neutral=float(neutral == "right"), alternatives=alternatives),
        "math_shepherd": lambda row, location: ([math_shepherd.solution(row, location)], []),
        "trl": lambda row, location: ([trl(row, location)], []),
    }

    def read_row(row: Mapping[str, Any], location: str) -> Solutions:
        with row_kinds.advice(row, path, "step_labels"):
            return readers[_format(row, location) if row_format == "auto" else row_format](row, location)

    labelled: list[Rollout] = []
    left_out: Counter[str] = Counter()
    readable = 0
    for file, number, _, (solutions, reasons) in files.read_each(path, read_row, on_unreadable):
        left_out.update(reasons)
        labelled += [_with_id(r, f"{file.stem}-{number}", k) for k, r in enumerate(solutions)]
        readable += 1
    files.check_unique_ids([r.id for r in labelled], str(path))
    return labelled, dict(left_out), readable


def _format(row: Mapping[str, Any], location: str) -> str:
    if isinstance(row.get("question"), dict) and isinstance(row.get("label"), dict):
        return "prm800k"
    if isinstance(row.get("input"), str) and isinstance(row.get("label"), str):
        return "math_shepherd"
    if row.get("completions") is not None and row.get("labels") is not None:
        return "trl"
    raise UserError(
        f"{location}: is of no known format; expected question + label (PRM800K), input + label (Math-Shepherd) or "
        f"prompt + completions + labels (TRL)"
    )


def _with_id(rollout: Rollout, name: str, k: int) -> Rollout:
    return replace(rollout, id=f"{name}-{k}" if k else name, group=text_hash(rollout.prompt))


def _label_count(rollout: Rollout) -> int:
    """Return how many steps of a rollout have a label."""
    if rollout.step_labels:
        return len(rollout.step_labels)
    first = rollout.first_error
    return 0 if first is None else len(rollout.steps) if first < 0 else first + 1


# --- TRL --------------------------------------------------------------------------------------------------


def trl(row: Mapping[str, Any], location: str) -> Rollout:
    """Convert a row with `prompt`, `completions` (the steps) and `labels` (one per step)."""
    steps = files.steps_field({"steps": row.get("completions")}, f"{location}: completions as steps")
    values = row.get("labels")
    if not isinstance(values, list) or len(values) != len(steps):
        raise UserError(
            f"{location}: field 'labels' is {files.quoted_value(values)}; expected one label for each of "
            f"{len(steps)} steps"
        )
    if not all(isinstance(y, bool | int | float) and 0 <= y <= 1 for y in values):
        raise UserError(f"{location}: field 'labels' is {files.quoted_value(values)}; expected labels between 0 and 1")
    labels = tuple(float(y) for y in values)
    prompt = files.text_field(row, "prompt", location)
    return Rollout("", prompt, steps=steps, step_labels=labels, first_error=rollouts.first_error_of(labels))


# --- PRM800K ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """A step, and its label in [0, 1] or None where the step was not rated."""

    text: str
    label: float | None


def prm800k(row: Mapping[str, Any], location: str, neutral: float = 1.0, alternatives: bool = False) -> Solutions:
    """Convert a PRM800K row, with `question.problem` and `label.steps`.

    The solution consists of the chosen completion of each step, or of the labeller's own text, which counts as right.
    Where nothing was chosen, the first completion, which is the one that was rated, ends the solution. After a first
    error the solution continues as it was generated, without labels, provided that all labels before the error are
    right. Rows whose problem was reported as broken are left out. An unreadable completion that was not chosen only
    costs an alternative; a blank one counts as unrated.

    Args:
        row: The row.
        location: Location of the row, for error messages.
        neutral: Label of steps that are rated 0, in [0, 1].
        alternatives: Whether rated steps that were not chosen become solutions of their own.

    Raises:
        UserError: The row is not of this format, or a step of the solution is unreadable.
    """
    question, label = (_object(row, name, location) for name in ("question", "label"))
    problem = files.text_field(question, "problem", f"{location}: question")
    stages = label.get("steps")
    if not isinstance(stages, list):
        raise UserError(f"{location}: label: field 'steps' is {files.quoted_value(stages)}; expected a list of steps")
    if label.get("finish_reason") == "bad_problem":
        return [], [BROKEN_PROBLEM]
    path: list[_Step] = []
    branches: list[tuple[_Step, ...]] = []
    unreadable = 0
    for number, stage in enumerate(stages):
        chosen_step, others, continues = _stage(stage, f"{location}: label: step {number}", neutral)
        steps = [other for other in others if isinstance(other, _Step)]
        unreadable += len(others) - len(steps)
        branches += [(*path, step) for step in steps if step.label is not None]
        if chosen_step is None or chosen_step.label is None:
            break
        path.append(chosen_step)
        if not continues:
            break
    tail = _tail(path, question.get("pre_generated_steps"), location)
    solved = label.get("finish_reason") == "solution" and len(path) == len(stages)
    gold = _gold(question, location)
    solutions = [_solution(problem, path, tail, gold, solved)] if path else []
    solutions += [_solution(problem, branch, (), gold, False) for branch in branches if alternatives]
    reasons = [UNREADABLE_ALTERNATIVE] * unreadable if alternatives else []
    return solutions, reasons if solutions else [*reasons, NO_RATED_STEP]


def _stage(stage: Any, location: str, neutral: float) -> tuple[_Step | None, list[_Step | UserError], bool]:
    """Return the chosen step, the other steps (or why one is unreadable), and whether the solution continues."""
    if not isinstance(stage, dict) or not isinstance(stage.get("completions") or [], list):
        raise UserError(f"{location} is {reading.short_repr(stage)}; expected an object with a list of completions")
    completions = stage.get("completions") or []
    rated = [_rated_step_or_error(c, f"{location}, completion {k}", neutral) for k, c in enumerate(completions)]
    chosen = stage.get("chosen_completion")
    if chosen is not None:
        if type(chosen) is not int or not 0 <= chosen < len(rated):
            raise UserError(f"{location}: field 'chosen_completion' is {chosen!r}; it has {len(rated)} completions")
        chosen_step = _rated_step(completions[chosen], f"{location}, completion {chosen}", neutral)
        return chosen_step, rated[:chosen] + rated[chosen + 1 :], True
    human = stage.get("human_completion")
    text = human if isinstance(human, dict) else {"text": human}
    if not _is_blank(text):
        return _Step(files.text_field(text, "text", f"{location}: human_completion").strip(), 1.0), rated, True
    if not completions or _is_blank(completions[0]):
        return None, rated, False
    return _rated_step(completions[0], f"{location}, completion 0", neutral), rated[1:], False


def _is_blank(completion: Any) -> bool:
    """Whether a completion has no text or a blank one."""
    text = completion.get("text") if isinstance(completion, dict) else completion
    return text is None or (isinstance(text, str) and not text.strip())


def _rated_step_or_error(completion: Any, location: str, neutral: float) -> _Step | UserError:
    if _is_blank(completion):
        return _Step("", None)
    try:
        return _rated_step(completion, location, neutral)
    except UserError as error:
        return error


def _rated_step(completion: Any, location: str, neutral: float) -> _Step:
    if not isinstance(completion, dict):
        raise UserError(f"{location} is {reading.short_repr(completion)}; expected an object with text and rating")
    text = files.text_field(completion, "text", location).strip()
    rating = completion.get("rating")
    if rating is None or completion.get("flagged"):  # flagged: the labeller could not decide
        return _Step(text, None)
    if type(rating) is not int or rating not in RATINGS:
        raise UserError(f"{location}: field 'rating' is {rating!r}; expected -1, 0 or 1")
    return _Step(text, {-1: 0.0, 0: neutral, 1: 1.0}[rating])


def _tail(path: Sequence[_Step], generated: Any, location: str) -> tuple[str, ...]:
    """Return the unrated steps that were generated after the first error."""
    if not generated or not path or [s.label for s in path] != [1.0] * (len(path) - 1) + [0.0]:
        return ()
    field = files.steps_field({"steps": generated}, f"{location}: question.pre_generated_steps")
    generated_steps = [step.strip() for step in field]
    return tuple(generated_steps[len(path) :]) if generated_steps[: len(path)] == [s.text for s in path] else ()


def _solution(problem: str, path: Sequence[_Step], tail: Sequence[str], gold: str, solved: bool) -> Rollout:
    labels = tuple(float(s.label or 0.0) for s in path)
    return Rollout(
        "",
        problem,
        steps=(*(s.text for s in path), *tail),
        outcome=1 if solved else None,
        gold=gold,
        first_error=rollouts.first_error_of(labels),
        step_labels=() if tail else labels,
    )


def _gold(question: Mapping[str, Any], location: str) -> str:
    """Return the reference answer, which may be a text or a number; empty where the row has neither."""
    gold = question.get("ground_truth_answer")
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        return str(gold)
    if not isinstance(gold, str) or not gold.strip():
        return ""
    return files.text_field(question, "ground_truth_answer", f"{location}: question")


def _object(row: Mapping[str, Any], name: str, location: str) -> Mapping[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise UserError(f"{location}: field {name!r} is {files.quoted_value(value)}; expected an object")
    return value
