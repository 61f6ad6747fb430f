"""Published step labels -> labelled rollouts: PRM800K, Math-Shepherd, TRL's stepwise form. One row, one solution.

Trains and judges nothing; what is left out is counted by reason, rows that cannot be read among it. Facts about the
formats, and what makes a row unreadable: docs/data.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prmbench.config import ConvertConfig, coerced
from prmbench.core import output_checks, reading
from prmbench.core.records import UserError, text_hash
from prmbench.data import files, math_shepherd, rollouts, selection
from prmbench.data.rollouts import Rollout

RATINGS = (-1, 0, 1)
NO_STEP, BROKEN = "no rated step", "problem reported as broken"
UNREADABLE, UNREADABLE_ALTERNATIVE = "row that cannot be read", "alternative step that cannot be read"
Solutions = tuple[list[Rollout], list[str]]
"""What a row gives, without ids, and why something of it is left out."""
Reader = Callable[[Mapping[str, Any], str], Solutions]


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
    """Why rows, or alternatives in them, gave nothing -> how many."""
    unreadable: tuple[str, ...] = ()
    """The first few of the rows that cannot be read: which row, and why."""


def convert(config: ConvertConfig, data: Path) -> Converted:
    """Writes the file's solutions as grouped traces, as `train-rm --loss step_bce` and `eval` read them.

    Rows that cannot be read are left out and counted, with a warning that names the first few.

    Raises:
        UserError: No row gives a solution; or, with `strict`, one row cannot be read. Nothing is written then.
    """
    config = coerced(config)
    rollouts.check_suffix(config.out)
    output_checks.check([config.out], config, [data], force=config.force)
    faults: list[str] = []
    on_unreadable = None if config.strict else faults.append
    labelled, left, readable = read(data, config.format, config.neutral, config.alternatives, on_unreadable)
    left |= {UNREADABLE: len(faults)} if faults else {}
    rows = readable + len(faults)
    solutions = selection.spread(labelled, config.limit, lambda r: selection.sorts_of(r.first_error, None))
    if not solutions:
        why = ", ".join(f"{n} x {reason}" for reason, n in left.items())
        first = f"; the first is {faults[0]}" if faults else ""
        raise UserError(f"{data}: gives no labelled solution{f' ({why}{first})' if why else ''}")
    files.warn_of_unreadable_rows(data, faults, rows, "; --strict refuses them")
    rollouts.write(config.out, solutions)
    return Converted(
        out=config.out,
        rows=rows,
        solutions=len(solutions),
        with_error=sum(r.first_error not in (None, -1) for r in solutions),
        steps=sum(len(r.steps) for r in solutions),
        labels=sum(_labelled(r) for r in solutions),
        left_out=left,
        unreadable=tuple(faults[: files.NAMED_ROWS]),
    )


def read(
    path: Path,
    form: str = "auto",
    neutral: str = "right",
    alternatives: bool = False,
    on_unreadable: Callable[[str], None] | None = None,
) -> tuple[list[Rollout], dict[str, int], int]:
    """(labelled solutions, what is left out by reason, rows that can be read) of a file or the data files in a folder.

    Solutions of one problem share a group; ids are `<file>-<row>`, then `-1`, `-2`, ... for a row's alternatives.

    Args:
        path: A data file, or a folder of them.
        form: Format of the rows, or `auto`.
        neutral: What a step that PRM800K rates 0 counts as: `right` or `wrong`.
        alternatives: Whether PRM800K's rated steps that were not taken become solutions of their own.
        on_unreadable: Called with the reason for every row that cannot be read and is left out.

    Raises:
        UserError: A file cannot be read as a whole; without `on_unreadable`, also for the first row that cannot.
    """
    readers: dict[str, Reader] = {
        "prm800k": partial(prm800k, neutral=float(neutral == "right"), alternatives=alternatives),
        "math_shepherd": lambda row, where: ([math_shepherd.solution(row, where)], []),
        "trl": lambda row, where: ([trl(row, where)], []),
    }

    def read_row(row: Mapping[str, Any], where: str) -> Solutions:
        return readers[_format(row, where) if form == "auto" else form](row, where)

    labelled: list[Rollout] = []
    left: Counter[str] = Counter()
    count = 0
    for file, number, _, (solutions, reasons) in files.read_each(path, read_row, on_unreadable):
        left.update(reasons)
        labelled += [_named(r, f"{file.stem}-{number}", k) for k, r in enumerate(solutions)]
        count += 1
    files.unique_ids([r.id for r in labelled], str(path))
    return labelled, dict(left), count


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


# --- TRL --------------------------------------------------------------------------------------------------


def trl(row: Mapping[str, Any], where: str) -> Rollout:
    """prompt, completions (the steps), labels (one a step)."""
    steps = files.steps_field({"steps": row.get("completions")}, f"{where}: completions as steps")
    given = row.get("labels")
    if not isinstance(given, list) or len(given) != len(steps):
        raise UserError(
            f"{where}: field 'labels' is {files.shown(given)}; expected one label for each of {len(steps)} steps"
        )
    if not all(isinstance(y, bool | int | float) and 0 <= y <= 1 for y in given):
        raise UserError(f"{where}: field 'labels' is {files.shown(given)}; expected labels between 0 and 1")
    labels = tuple(float(y) for y in given)
    prompt = files.text_field(row, "prompt", where)
    return Rollout("", prompt, steps=steps, step_labels=labels, first_error=rollouts.first_error_of(labels))


# --- PRM800K ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """A step with the label that a person gave it; None = not rated."""

    text: str
    label: float | None


def prm800k(row: Mapping[str, Any], where: str, neutral: float = 1.0, alternatives: bool = False) -> Solutions:
    """question.problem and label.steps: at each the completion chosen, or the labeller's own text (which is right).

    Where nothing was chosen, the first completion ends the solution: it is the one that was judged. A solution found
    wrong goes on as it was generated, without labels, unless a label before its error says something else than right.
    Rows whose problem was reported as broken are left out. A completion that was not taken and cannot be read (a blank
    one is as good as unrated) costs nothing but an alternative.
    """
    question, label = (_object(row, name, where) for name in ("question", "label"))
    problem = files.text_field(question, "problem", f"{where}: question")
    stages = label.get("steps")
    if not isinstance(stages, list):
        raise UserError(f"{where}: label: field 'steps' is {files.shown(stages)}; expected a list of steps")
    if label.get("finish_reason") == "bad_problem":
        return [], [BROKEN]
    path: list[_Step] = []
    branches: list[tuple[_Step, ...]] = []
    unreadable = 0
    for number, stage in enumerate(stages):
        taken, others, goes_on = _stage(stage, f"{where}: label: step {number}", neutral)
        steps = [other for other in others if isinstance(other, _Step)]
        unreadable += len(others) - len(steps)
        branches += [(*path, step) for step in steps if step.label is not None]
        if taken is None or taken.label is None:
            break
        path.append(taken)
        if not goes_on:
            break
    tail = _tail(path, question.get("pre_generated_steps"), where)
    reached = label.get("finish_reason") == "solution" and len(path) == len(stages)
    gold = _gold(question, where)
    solutions = [_solution(problem, path, tail, gold, reached)] if path else []
    solutions += [_solution(problem, branch, (), gold, False) for branch in branches if alternatives]
    reasons = [UNREADABLE_ALTERNATIVE] * unreadable if alternatives else []
    return solutions, reasons if solutions else [*reasons, NO_STEP]


def _stage(stage: Any, where: str, neutral: float) -> tuple[_Step | None, list[_Step | UserError], bool]:
    """(step taken, rated steps that were not or why they cannot be read, whether the solution goes on after it)."""
    if not isinstance(stage, dict) or not isinstance(stage.get("completions") or [], list):
        raise UserError(f"{where} is {reading.shown(stage)}; expected an object with a list of completions")
    completions = stage.get("completions") or []
    offered = [_rated_or_fault(c, f"{where}, completion {k}", neutral) for k, c in enumerate(completions)]
    chosen = stage.get("chosen_completion")
    if chosen is not None:
        if type(chosen) is not int or not 0 <= chosen < len(offered):
            raise UserError(f"{where}: field 'chosen_completion' is {chosen!r}; it has {len(offered)} completions")
        taken = _rated(completions[chosen], f"{where}, completion {chosen}", neutral)
        return taken, offered[:chosen] + offered[chosen + 1 :], True
    human = stage.get("human_completion")
    text = human if isinstance(human, dict) else {"text": human}
    if not _says_nothing(text):
        return _Step(files.text_field(text, "text", f"{where}: human_completion").strip(), 1.0), offered, True
    if not completions or _says_nothing(completions[0]):
        return None, offered, False
    return _rated(completions[0], f"{where}, completion 0", neutral), offered[1:], False


def _says_nothing(completion: Any) -> bool:
    """Whether a completion has no text, or a blank one."""
    text = completion.get("text") if isinstance(completion, dict) else completion
    return text is None or (isinstance(text, str) and not text.strip())


def _rated_or_fault(completion: Any, where: str, neutral: float) -> _Step | UserError:
    if _says_nothing(completion):
        return _Step("", None)
    try:
        return _rated(completion, where, neutral)
    except UserError as error:
        return error


def _rated(completion: Any, where: str, neutral: float) -> _Step:
    if not isinstance(completion, dict):
        raise UserError(f"{where} is {reading.shown(completion)}; expected an object with text and rating")
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


def _solution(problem: str, path: Sequence[_Step], tail: Sequence[str], gold: str, reached: bool) -> Rollout:
    labels = tuple(float(s.label or 0.0) for s in path)
    return Rollout(
        "",
        problem,
        steps=(*(s.text for s in path), *tail),
        outcome=1 if reached else None,
        gold=gold,
        first_error=rollouts.first_error_of(labels),
        step_labels=() if tail else labels,
    )


def _gold(question: Mapping[str, Any], where: str) -> str:
    """The reference answer, a text or a number; empty where the row has neither."""
    gold = question.get("ground_truth_answer")
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        return str(gold)
    if not isinstance(gold, str) or not gold.strip():
        return ""
    return files.text_field(question, "ground_truth_answer", f"{where}: question")


def _object(row: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise UserError(f"{where}: field {name!r} is {files.shown(value)}; expected an object")
    return value
