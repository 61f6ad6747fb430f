"""Page data of best-of-N runs: completions by problem, their scores, and which one each protocol picks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from prmbench.core.records import ScoredTrace, Trace, text_hash
from prmbench.core.result_files import Run
from prmbench.report.verdicts import PICK_KINDS
from prmbench.report.viewer import TraceTexts, look_up, round_score
from prmbench.tasks.best_of_n import completion_scores, recommended
from prmbench.tasks.wording import run_name, subset_rank

MAX_PROTOCOLS = 40
"""Protocols of a run, which has a handful for each of its series."""
Key = tuple[str, str]
"""Subset and problem."""


def picks_view(runs: Sequence[Run], max_completions: int, data: TraceTexts | None = None) -> dict[str, Any]:
    """Returns problems with at most `max_completions` completions in all, every run's picks, and known texts.

    The data have the shape of `trace_view`, a problem in the place of a trace, so that the page lists, searches and
    filters both alike.
    """
    by_problem = _completions(runs)
    shown = _choose_problems(by_problem, max_completions)
    problems = [_problem_data(key, by_problem[key]) for key in shown]
    counts = Counter(problem["id"] for problem in problems)
    for (_, cluster), problem in zip(shown, problems, strict=True):
        if counts[problem["id"]] > 1:  # ids need not begin with their problem's name
            problem["id"] += f" ({cluster[:8]})"
    return {
        "task": "best_of_n",
        "traces": problems,
        "total": len(by_problem),
        "runs": [_run_data(run, [by_problem[key] for key in shown]) for run in runs],
        "texts": _texts(data, problems),
    }


def _completions(runs: Sequence[Run]) -> dict[Key, list[ScoredTrace]]:
    """The verified completions of each problem that any run scored, sorted."""
    completions: dict[Key, dict[str, ScoredTrace]] = {}
    for run in runs:
        for trace in run.scores:
            if trace.outcome is not None:
                completions.setdefault((trace.subset, trace.cluster), {}).setdefault(trace.id, trace)
    sorted_problems = {key: sorted(members.values(), key=_natural_order) for key, members in completions.items()}
    return dict(sorted(sorted_problems.items(), key=lambda item: (subset_rank(item[0][0]), _natural_order(item[1][0]))))


def _natural_order(trace: ScoredTrace) -> list[tuple[int, str]]:
    """Sort key that puts p2/10 after p2/9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,15})", trace.id) if part]


def _choose_problems(by_problem: Mapping[Key, Sequence[ScoredTrace]], max_completions: int) -> list[Key]:
    """As many problems as fit, at least one, chosen by hash and returned in order."""
    chosen: set[Key] = set()
    count = 0
    for key in sorted(by_problem, key=lambda key: text_hash("/".join(key))):
        count += len(by_problem[key])
        if chosen and count > max_completions:
            break
        chosen.add(key)
    return [key for key in by_problem if key in chosen]


def _problem_data(key: Key, members: Sequence[ScoredTrace]) -> dict[str, Any]:
    answers = {answer: number for number, answer in enumerate(dict.fromkeys(t.answer for t in members if t.answer))}
    return {
        "id": _common_name([t.id for t in members]) or key[1],
        "subset": key[0],
        "k": len(members),
        "completions": [
            {"id": t.id, "right": t.outcome == 1, "answer": answers.get(t.answer), "cut": t.finish == "length"}
            for t in members
        ],
    }


def _common_name(ids: Sequence[str]) -> str:
    """What the ids of a problem's completions begin with, without a separator or a part of a number at its end."""
    if len(ids) == 1:
        return ids[0]
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))
    return re.sub(r"[\W_]+$", "", re.sub(r"\d+$", "", "".join(column[0] for column in columns)))


def _run_data(run: Run, problems: Sequence[Sequence[ScoredTrace]]) -> dict[str, Any]:
    manifest = run.result.manifest
    own = {(t.subset, t.id): t for t in run.scores}
    members = [[own.get((t.subset, t.id)) for t in completions] for completions in problems]
    present = [t for completions in members for t in completions if t is not None]
    scores = completion_scores(manifest, present)
    default = recommended(scores)
    keys = [key for key in ([default] if default else []) + [key for key in scores if key != default]][:MAX_PROTOCOLS]
    index = {(t.subset, t.id): i for i, t in enumerate(present)}
    return {
        "id": manifest.run_id,
        "model": run_name(run),
        "default": default or (keys[0] if keys else ""),
        "readouts": {},
        "votes": None,
        "unscored": {},
        "protocols": [_protocol_data(key, scores[key], members, index) for key in keys],
    }


def _protocol_data(
    key: str, scores: Any, members: Sequence[Sequence[ScoredTrace | None]], index: Mapping[Key, int]
) -> dict[str, Any]:
    rows = [[-np.inf if t is None else float(scores[index[t.subset, t.id]]) for t in row] for row in members]
    picked = [_best(row) for row in rows]
    return {
        "key": key,
        "scores": [[None if np.isneginf(s) else round_score(s) for s in row] for row in rows],
        "picked": picked,
        "kind": [_kind(row, best) for row, best in zip(members, picked, strict=True)],
    }


def _best(scores: Sequence[float]) -> list[int]:
    """The completions that share the highest score: all of them are as likely to be picked."""
    highest = max(scores, default=-np.inf)
    return [] if np.isneginf(highest) else [i for i, score in enumerate(scores) if score == highest]


def _kind(row: Sequence[ScoredTrace | None], best: Sequence[int]) -> int:
    """Number of the kind of pick in KINDS of the viewer; -1 where the run scored none of the completions."""
    if all(trace is None for trace in row):
        return -1
    is_right = {trace.outcome == 1 for i in best if (trace := row[i]) is not None}
    if not is_right:
        return PICK_KINDS.index("unscored")
    return PICK_KINDS.index("tie" if len(is_right) > 1 else "right pick" if True in is_right else "wrong pick")


def _texts(data: TraceTexts | None, problems: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Prompt and completions by problem, for those whose text is known; `steps` holds what the search reads."""
    texts = {}
    for problem in problems:
        traces: list[Trace | None] = [look_up(data, completion["id"]) for completion in problem["completions"]]
        prompt = next((trace.prompt for trace in traces if trace is not None), None)
        if prompt is not None:
            completions = [list(trace.steps) if trace else [] for trace in traces]
            steps = ["\n".join(completion) for completion in completions]
            texts[problem["id"]] = {"problem": prompt, "steps": steps, "completions": completions}
    return texts
