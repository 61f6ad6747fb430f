"""The miniature world: chains of sums modulo 11, solved step by step, with an oracle that knows every step.

Problems, solutions, labels and data sets, all pure functions of a seed. Its model is in tiny_model.py.
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
"""A prime: an error in one step survives all later ones, unless a second error undoes it."""
LENGTHS = (4, 7)
"""Fewest and most operations of a problem; a solution has one step more, which states the answer."""
OPERANDS = (2, 5)
"""Few, so that a few hundred updates half learn the 132 results, which is the policy that is wanted."""
SHIFTED_SHARE = 0.4
"""Of the supervised examples, in equal parts over the five shifts, so that no format is news to the policy."""
Split = Literal["sft", "train", "validation", "test"]
_SHARES: dict[str, range] = {"sft": range(4), "train": range(4, 8), "validation": range(8, 9), "test": range(9, 10)}
"""Tenths of all problems, by the hash of their text: no problem is in two splits, whatever the seeds."""

_NUMBER = rf"(?:{'|'.join(str(n) for n in reversed(range(MODULUS)))})"
_EQUATION = rf"({_NUMBER}) ([-+*]|plus|minus|times) ({_NUMBER}) (?:=|gives) ({_NUMBER})"
_HEAD, _TAIL = r"(?:Next : )?", r"(?: ;)?"
_WORK = re.compile(rf"{_HEAD}(?:we have ({_NUMBER}) , then )?{_EQUATION}(?: , {_EQUATION})?{_TAIL}")
_ANSWER = re.compile(rf"{_HEAD}Answer: ({_NUMBER}){_TAIL}")
_PROMPT = re.compile(rf"\[\w+\] ({_NUMBER})((?: #\d+ [-+*] {_NUMBER})+) \?")
_MOVE = re.compile(rf" #\d+ ([-+*]) ({_NUMBER})")
_SIGNS = {"plus": "+", "minus": "-", "times": "*"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A start and operations on it, worked from left to right modulo 11."""

    start: int
    moves: tuple[tuple[str, int], ...]
    """(sign, operand) each."""

    def values(self) -> tuple[int, ...]:
        """The running value: the start, then after each operation. The last one is the answer."""
        found = [self.start]
        for sign, operand in self.moves:
            found.append(apply(found[-1], sign, operand))
        return tuple(found)

    def text(self) -> str:
        """`7 #1 + 5 #2 * 3`. The numbered operations let a small model find its place in any format."""
        return " ".join([str(self.start), *(f"#{k} {sign} {n}" for k, (sign, n) in enumerate(self.moves, 1))])

    def prompt(self, style: str = format_shifts.PLAIN) -> str:
        """What the policy is asked: the format wanted, then the problem."""
        return f"{format_shifts.marker(style)} {self.text()} ?"


def apply(value: int, sign: str, operand: int) -> int:
    """One operation modulo 11."""
    result = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
    return result % MODULUS


def problem(split: Split, seed: int, index: int) -> Problem:
    """Problem `index` of a split: the first that falls into the split, of an endless series of its own."""
    rng = Random(f"{split}/{seed}/{index}")
    while True:
        length = rng.randint(*LENGTHS)
        moves = tuple((rng.choice("+-*"), rng.randint(*OPERANDS)) for _ in range(length))
        drawn = Problem(rng.randrange(MODULUS), moves)
        if int(text_hash(drawn.text()), 16) % 10 in _SHARES[split]:
            return drawn


def parse_prompt(prompt: str) -> Problem:
    """The problem of a prompt in any format. Raises UserError on a prompt that is not of this world."""
    found = _PROMPT.fullmatch(prompt)
    if found is None:
        raise UserError(f"prompt {prompt[:60]!r}: not one of the miniature world, such as '[plain] 7 #1 + 5 #2 * 3 ?'")
    return Problem(int(found[1]), tuple((sign, int(operand)) for sign, operand in _MOVE.findall(found[2])))


def solution(task: Problem, wrong_step: int = -1, shift: int = 0) -> tuple[str, ...]:
    """The steps of a solution. `wrong_step` >= 0 makes its result too large by `shift` modulo 11.

    All later steps then go on from the wrong result without a further error, and so does the answer.
    """
    steps, value = [], task.start
    for k, (sign, operand) in enumerate(task.moves):
        result = apply(value, sign, operand)
        result = (result + shift) % MODULUS if k == wrong_step else result
        steps.append(f"{value} {sign} {operand} = {result}")
        value = result
    return (*steps, f"Answer: {value}")


def completion(steps: Iterable[str]) -> str:
    """The text that a policy would write for these steps."""
    return "\n\n".join(f"Step {k}: {step}" for k, step in enumerate(steps, 1))


# --- the oracle -----------------------------------------------------------------------------------------


def first_error(prompt: str, steps: Sequence[str]) -> int:
    """Index of the first wrong step, or -1. Reads the plain format and every shift of it.

    A step is right when it carries on the problem with its own sign, operand and running value and states the right
    result; the answer is a step, in order after the last operation. Anything else is wrong where it stands.
    """
    task = parse_prompt(prompt)
    values, done = task.values(), 0
    for k, step in enumerate(steps):
        said = _equations(step)
        ahead = [
            (values[i], *task.moves[i], values[i + 1]) for i in range(done, min(done + len(said), len(task.moves)))
        ]
        is_answer = done == len(task.moves) and answer([step]) == str(values[-1])
        if said != ahead or not (said or is_answer):
            return k
        done += len(said) or 1  # past the answer nothing is right any more
    return -1


def answer(steps: Sequence[str]) -> str:
    """What the last step states as the answer, or nothing."""
    found = _ANSWER.fullmatch(steps[-1]) if steps else None
    return found[1] if found else ""


def solves(trace: Trace, completion: str) -> bool:
    """Whether a completion ends in the right answer to the trace's prompt; the judge of monte_carlo.py."""
    return answer(rollouts.cut(completion, "numbered")) == str(parse_prompt(trace.prompt).values()[-1])


def labelled(rollout: Rollout) -> Rollout:
    """The same with the oracle's word on everything: steps, first error, answer, outcome."""
    steps = rollout.steps or rollouts.cut(rollout.completion, "numbered")
    gold, said = str(parse_prompt(rollout.prompt).values()[-1]), answer(steps)
    return replace(
        rollout,
        steps=steps,
        first_error=first_error(rollout.prompt, steps) if steps else None,
        answer=said,
        gold=gold,
        outcome=int(said == gold),
        verdict="no answer" if not said else "right" if said == gold else "wrong",
    )


def _equations(step: str) -> list[tuple[int, str, int, int]]:
    """(value, sign, operand, result) of each equation; none when the step is anything but equations."""
    found = _WORK.fullmatch(step)
    if found is None or found[1] not in (None, found[2]):
        return []
    groups = [found.groups()[i : i + 4] for i in (1, 5)]
    return [(int(a), _SIGNS.get(sign, sign), int(b), int(c)) for a, sign, b, c in groups if a is not None]


# --- data sets ------------------------------------------------------------------------------------------


def prompts(split: Split, seed: int, count: int, first: int = 0) -> list[Prompt]:
    """Problems to sample completions of, in the plain format; `first` passes over those that were used elsewhere."""
    tasks = ((i, problem(split, seed, i)) for i in range(first, first + count))
    return [
        Prompt(f"{split}-{seed}-{i}", task.prompt(), str(task.values()[-1]), format_shifts.PLAIN, verifier="exact")
        for i, task in tasks
    ]


def examples(seed: int, count: int) -> list[Rollout]:
    """Right solutions for supervised training, a share of them in each shifted format."""
    return [_example(seed, i) for i in range(count)]


def _example(seed: int, index: int) -> Rollout:
    rng = Random(f"style/{seed}/{index}")
    given = _gold("sft", seed, index)
    if rng.random() < SHIFTED_SHARE:
        given = format_shifts.SHIFTS[rng.choice(list(format_shifts.SHIFTS))](given)
    text = completion(given.steps)
    return Rollout(given.id, given.prompt, text, outcome=1, answer=given.answer, group=given.id, finish="stop")


def _gold(split: Split, seed: int, index: int) -> Trace:
    task = problem(split, seed, index)
    steps = solution(task)
    name = f"{split}-{seed}-{index}"
    return Trace(
        name, task.prompt(), steps, -1, outcome=1, group=name, subset=format_shifts.PLAIN, answer=answer(steps)
    )


def injected(split: Split, seed: int, count: int) -> list[Trace]:
    """Solutions of `count` problems, every other one with a single wrong result at a random operation.

    What follows it is consistent: later steps compute correctly from the wrong number (see `solution`).
    """
    return [_injected(split, seed, i) for i in range(count)]


def _injected(split: Split, seed: int, index: int) -> Trace:
    given = replace(_gold(split, seed, index), id=f"injected-{split}-{seed}-{index}", subset="injected")
    if index % 2 == 0:
        return given
    rng = Random(f"error/{split}/{seed}/{index}")
    task = parse_prompt(given.prompt)
    at = rng.randrange(len(task.moves))
    steps = solution(task, at, rng.randrange(1, MODULUS))
    return replace(given, steps=steps, first_error=at, outcome=0, answer=answer(steps))


def on_policy(sampled: Iterable[Rollout], subset: str, count: int) -> list[Trace]:
    """Traces from a policy's own completions, labelled by the oracle: half all right, half with an error.

    At most one of either kind a prompt, in their order. Left out: completions that state no answer, and those whose
    headings are not 1, 2, 3 ..., since encoders number steps afresh and would show the reader other tokens. A wrong
    step with a right answer in the end stays in, as in ProcessBench.
    """
    found = [r for r in map(labelled, sampled) if r.answer and r.completion == completion(r.steps)]
    right = islice(_first_of_group(r for r in found if r.first_error == -1), count - count // 2)
    wrong = islice(_first_of_group(r for r in found if r.first_error != -1), count // 2)
    chosen = [replace(rollouts.trace(r), subset=subset) for r in (*right, *wrong)]
    if len(chosen) < count:
        raise UserError(f"miniature: {len(chosen)} traces of {count} for {subset}; sample more prompts or completions")
    return chosen


def _first_of_group(found: Iterable[Rollout]) -> Iterator[Rollout]:
    seen: set[str] = set()
    for rollout in found:
        if rollout.group not in seen:
            seen.add(rollout.group)
            yield rollout


def shifted(traces: Iterable[Trace]) -> list[Trace]:
    """Every trace in all five formats, a subset each; ids say which."""
    kept = list(traces)
    return [
        replace(shift(trace), id=f"{name}-{trace.id}") for name, shift in format_shifts.SHIFTS.items() for trace in kept
    ]


# --- files ----------------------------------------------------------------------------------------------


def write_prompts(path: Path, asked: Iterable[Prompt]) -> None:
    """A file for `prmbench rollout --data`."""
    fields = ("id", "subset", "verifier")
    _write(path, ({"prompt": p.text, "answer": p.gold, **{name: getattr(p, name) for name in fields}} for p in asked))


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """A file in ProcessBench's schema for `prmbench eval --data`, with `step_labels` where they are known."""
    _write(path, map(_row, traces))


def _row(trace: Trace) -> dict[str, Any]:
    row = {"id": trace.id, "problem": trace.prompt, "steps": list(trace.steps), "label": trace.first_error}
    row |= {"final_answer_correct": bool(trace.outcome), "subset": trace.subset}
    return row | ({"step_labels": list(trace.step_labels)} if trace.step_labels else {})


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    writing.write_atomic(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
