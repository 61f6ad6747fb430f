"""Problems, solutions, labels and data sets of the miniature world: chains of operations modulo 11.

Everything is a pure function of a seed. An exact oracle labels every step of a solution. The model is in tiny_model.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from prmbench.core import writing
from prmbench.core.records import Trace, UserError, text_hash
from prmbench.data import rollouts
from prmbench.data.prompts import Prompt
from prmbench.data.rollouts import Rollout
from prmbench.studies.miniature import format_shifts

MODULUS = 11
"""A prime, so that an error in one step changes all later values unless a second error undoes it."""
OPERATION_COUNTS = (4, 7)
"""Fewest and most operations of a problem; a solution has one step more, which states the answer."""
OPERAND_RANGE = (2, 5)
"""Small, so that a few hundred updates half learn the 132 results: the study needs a policy that is half right."""
SHIFTED_SHARE = 0.4
"""Share of the SFT examples in shifted formats, equal parts of each, so that the policy has seen every format."""
Split = Literal["sft", "train", "validation", "test"]
_SPLIT_TENTHS: dict[str, range] = {
    "sft": range(4),
    "train": range(4, 8),
    "validation": range(8, 9),
    "test": range(9, 10),
}
"""Tenths of all problems, by the hash of their text: no problem is in two splits, whatever the seeds."""

_NUMBER = rf"(?:{'|'.join(str(n) for n in reversed(range(MODULUS)))})"
_EQUATION = rf"({_NUMBER}) ([-+*]|plus|minus|times) ({_NUMBER}) (?:=|gives) ({_NUMBER})"
_PREFIX, _SUFFIX = r"(?:Next : )?", r"(?: ;)?"
_EQUATION_STEP = re.compile(rf"{_PREFIX}(?:we have ({_NUMBER}) , then )?{_EQUATION}(?: , {_EQUATION})?{_SUFFIX}")
_ANSWER_STEP = re.compile(rf"{_PREFIX}Answer: ({_NUMBER}){_SUFFIX}")
_PROMPT = re.compile(rf"\[\w+\] ({_NUMBER})((?: #\d+ [-+*] {_NUMBER})+) \?")
_OPERATION = re.compile(rf" #\d+ ([-+*]) ({_NUMBER})")
_SIGNS = {"plus": "+", "minus": "-", "times": "*"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A start value and operations on it, applied from left to right modulo 11."""

    start: int
    operations: tuple[tuple[str, int], ...]
    """(sign, operand) each."""

    def values(self) -> tuple[int, ...]:
        """Returns the start value and the value after each operation; the last one is the answer."""
        values = [self.start]
        for sign, operand in self.operations:
            values.append(apply_operation(values[-1], sign, operand))
        return tuple(values)

    def text(self) -> str:
        """Returns `7 #1 + 5 #2 * 3`. Numbered operations let a small model find its place in any format."""
        return " ".join([str(self.start), *(f"#{k} {sign} {n}" for k, (sign, n) in enumerate(self.operations, 1))])

    def prompt(self, style: str = format_shifts.PLAIN) -> str:
        """Returns the policy's prompt: the marker of the format, then the problem."""
        return f"{format_shifts.marker(style)} {self.text()} ?"


def apply_operation(value: int, sign: str, operand: int) -> int:
    """Returns the result of one operation modulo 11."""
    result = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
    return result % MODULUS


def make_problem(split: Split, seed: int, index: int) -> Problem:
    """Returns problem `index` of a split: the first random problem of its own sequence that falls into the split."""
    rng = Random(f"{split}/{seed}/{index}")
    while True:
        length = rng.randint(*OPERATION_COUNTS)
        operations = tuple((rng.choice("+-*"), rng.randint(*OPERAND_RANGE)) for _ in range(length))
        problem = Problem(rng.randrange(MODULUS), operations)
        if int(text_hash(problem.text()), 16) % 10 in _SPLIT_TENTHS[split]:
            return problem


def parse_prompt(prompt: str) -> Problem:
    """Returns the problem of a prompt in any format. Raises UserError on a prompt that is not of this world."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise UserError(f"prompt {prompt[:60]!r}: not one of the miniature world, such as '[plain] 7 #1 + 5 #2 * 3 ?'")
    return Problem(int(match[1]), tuple((sign, int(operand)) for sign, operand in _OPERATION.findall(match[2])))


def solution_steps(problem: Problem, wrong_step: int = -1, offset: int = 0) -> tuple[str, ...]:
    """Returns the steps of a solution.

    Args:
        problem: the problem to solve.
        wrong_step: index of a step whose result is made too large by `offset` modulo 11; -1 for a right solution. All
            later steps, and the answer, follow from the wrong result without a further error.
        offset: size of the error.
    """
    steps, value = [], problem.start
    for k, (sign, operand) in enumerate(problem.operations):
        result = apply_operation(value, sign, operand)
        result = (result + offset) % MODULUS if k == wrong_step else result
        steps.append(f"{value} {sign} {operand} = {result}")
        value = result
    return (*steps, f"Answer: {value}")


def completion_text(steps: Iterable[str]) -> str:
    """Returns the steps as the policy writes them: numbered paragraphs."""
    return "\n\n".join(f"Step {k}: {step}" for k, step in enumerate(steps, 1))


# --- the oracle -----------------------------------------------------------------------------------------


def first_error(prompt: str, steps: Sequence[str]) -> int:
    """Returns the index of the first wrong step, or -1. Reads the plain format and every shifted one.

    A step is right when it applies the problem's next operation to the right running value and states the right result;
    the answer is a step of its own, after the last operation. Any other step is wrong.
    """
    problem = parse_prompt(prompt)
    values, done = problem.values(), 0
    for k, step in enumerate(steps):
        equations = _parse_equations(step)
        expected = [
            (values[i], *problem.operations[i], values[i + 1])
            for i in range(done, min(done + len(equations), len(problem.operations)))
        ]
        is_answer = done == len(problem.operations) and final_answer([step]) == str(values[-1])
        if equations != expected or not (equations or is_answer):
            return k
        # Counting the answer as an operation makes any step after it wrong.
        done += len(equations) or 1
    return -1


def final_answer(steps: Sequence[str]) -> str:
    """Returns the answer that the last step states; empty when it states none."""
    match = _ANSWER_STEP.fullmatch(steps[-1]) if steps else None
    return match[1] if match else ""


def is_solved(trace: Trace, completion: str) -> bool:
    """Whether a completion ends in the right answer to the trace's prompt; Monte-Carlo values are made with it."""
    return final_answer(rollouts.split_completion(completion, "numbered")) == str(
        parse_prompt(trace.prompt).values()[-1]
    )


def label_rollout(rollout: Rollout) -> Rollout:
    """Returns the rollout with the oracle's labels: steps, first error, answer, outcome and verdict."""
    steps = rollout.steps or rollouts.split_completion(rollout.completion, "numbered")
    gold, answer = str(parse_prompt(rollout.prompt).values()[-1]), final_answer(steps)
    return replace(
        rollout,
        steps=steps,
        first_error=first_error(rollout.prompt, steps) if steps else None,
        answer=answer,
        gold=gold,
        outcome=int(answer == gold),
        verdict="no answer" if not answer else "right" if answer == gold else "wrong",
    )


def _parse_equations(step: str) -> list[tuple[int, str, int, int]]:
    """Returns (value, sign, operand, result) of each equation; nothing when the step has any other text."""
    match = _EQUATION_STEP.fullmatch(step)
    if match is None or match[1] not in (None, match[2]):
        return []
    groups = [match.groups()[i : i + 4] for i in (1, 5)]
    return [(int(a), _SIGNS.get(sign, sign), int(b), int(c)) for a, sign, b, c in groups if a is not None]


# --- data sets ------------------------------------------------------------------------------------------


def make_prompts(split: Split, seed: int, count: int, first: int = 0) -> list[Prompt]:
    """Returns `count` prompts of a split in the plain format, from problem `first` on."""
    problems = ((i, make_problem(split, seed, i)) for i in range(first, first + count))
    return [
        Prompt(f"{split}-{seed}-{i}", problem.prompt(), str(problem.values()[-1]), format_shifts.PLAIN, "exact")
        for i, problem in problems
    ]


def sft_examples(seed: int, count: int) -> list[Rollout]:
    """Returns right solutions for supervised training, SHIFTED_SHARE of them in shifted formats."""
    return [_sft_example(seed, i) for i in range(count)]


def _sft_example(seed: int, index: int) -> Rollout:
    rng = Random(f"style/{seed}/{index}")
    trace = _right_trace("sft", seed, index)
    if rng.random() < SHIFTED_SHARE:
        trace = format_shifts.SHIFTS[rng.choice(list(format_shifts.SHIFTS))](trace)
    text = completion_text(trace.steps)
    return Rollout(trace.id, trace.prompt, text, outcome=1, answer=trace.answer, group=trace.id, finish="stop")


def _right_trace(split: Split, seed: int, index: int) -> Trace:
    problem = make_problem(split, seed, index)
    steps = solution_steps(problem)
    name = f"{split}-{seed}-{index}"
    return Trace(
        id=name,
        prompt=problem.prompt(),
        steps=steps,
        first_error=-1,
        outcome=1,
        group=name,
        subset=format_shifts.PLAIN,
        answer=final_answer(steps),
    )


def injected_traces(split: Split, seed: int, count: int) -> list[Trace]:
    """Returns solutions of `count` problems, every other one with a wrong result at one random operation.

    Later steps compute correctly from the wrong result (see `solution_steps`).
    """
    return [_injected_trace(split, seed, i) for i in range(count)]


def _injected_trace(split: Split, seed: int, index: int) -> Trace:
    right = replace(_right_trace(split, seed, index), id=f"injected-{split}-{seed}-{index}", subset="injected")
    if index % 2 == 0:
        return right
    rng = Random(f"error/{split}/{seed}/{index}")
    problem = parse_prompt(right.prompt)
    wrong_step = rng.randrange(len(problem.operations))
    steps = solution_steps(problem, wrong_step, rng.randrange(1, MODULUS))
    return replace(right, steps=steps, first_error=wrong_step, outcome=0, answer=final_answer(steps))


def on_policy_traces(sampled: Iterable[Rollout], subset: str, count: int) -> list[Trace]:
    """Returns `count` traces from a policy's own completions, half without an error and half with one.

    At most one of each kind per prompt, in the order of `sampled`. Left out are completions that state no answer, and
    those whose headings are not 1, 2, 3 ...: encoders number steps afresh, so a model would read other tokens than the
    policy wrote. A trace with a wrong step and a right final answer stays in, as in ProcessBench.

    Raises:
        UserError: there are fewer than `count` traces.
    """
    labelled = [r for r in map(label_rollout, sampled) if r.answer and r.completion == completion_text(r.steps)]
    right = islice(_first_of_each_group(r for r in labelled if r.first_error == -1), count - count // 2)
    wrong = islice(_first_of_each_group(r for r in labelled if r.first_error != -1), count // 2)
    traces = [replace(rollouts.to_trace(r), subset=subset) for r in (*right, *wrong)]
    if len(traces) < count:
        raise UserError(f"miniature: {len(traces)} traces of {count} for {subset}; sample more prompts or completions")
    return traces


def _first_of_each_group(labelled: Iterable[Rollout]) -> Iterator[Rollout]:
    seen: set[str] = set()
    for rollout in labelled:
        if rollout.group not in seen:
            seen.add(rollout.group)
            yield rollout


def shifted_traces(traces: Iterable[Trace]) -> list[Trace]:
    """Returns every trace in all five shifted formats; each format is a subset, and ids begin with its name."""
    originals = list(traces)
    return [
        replace(shift(trace), id=f"{name}-{trace.id}")
        for name, shift in format_shifts.SHIFTS.items()
        for trace in originals
    ]


# --- files ----------------------------------------------------------------------------------------------


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Writes a file for `prmbench rollout --data`."""
    fields = ("id", "subset", "verifier")
    _write_rows(
        path, ({"prompt": p.text, "answer": p.gold, **{name: getattr(p, name) for name in fields}} for p in prompts)
    )


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Writes a file in ProcessBench's schema for `prmbench eval --data`; traces that have step labels keep them."""
    _write_rows(path, map(_trace_row, traces))


def _trace_row(trace: Trace) -> dict[str, Any]:
    row = {"id": trace.id, "problem": trace.prompt, "steps": list(trace.steps), "label": trace.first_error}
    row |= {"final_answer_correct": bool(trace.outcome), "subset": trace.subset}
    return row | ({"step_labels": list(trace.step_labels)} if trace.step_labels else {})


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    writing.write_atomic(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
