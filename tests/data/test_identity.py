"""Which files are the published data: by fingerprints where there are some, else by what is published about them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prmbench import data
from prmbench.core.records import Notice, Trace
from prmbench.data import prmbench_preview, processbench
from prmbench.data.processbench import OMNIMATH_FACTS


def omnimath(**changes: int) -> list[Trace]:
    """Return invented traces with the ids of omnimath, and the published counts with these changes."""
    facts = OMNIMATH_FACTS | {name.replace("_", " "): count for name, count in changes.items()}
    size, right = facts["traces"], facts["traces without an error"]
    lengths = [2] * (size - facts["traces of at least 10 steps"]) + [10] * facts["traces of at least 10 steps"]
    lengths[-1] = facts["steps of the longest trace"]
    for n in range(size):
        while lengths[n] < 9 and sum(lengths) < facts["steps"]:
            lengths[n] += 1
    for n in range(facts["traces of at least 10 steps"]):
        while lengths[-2 - n] < 30 and sum(lengths) < facts["steps"]:
            lengths[-2 - n] += 1
    right_but_wrong = facts["traces with an error and a right answer"]
    return [
        Trace(
            f"omnimath-{n}",
            f"Problem {n}",
            tuple(f"step {k}" for k in range(lengths[n])),
            -1 if n < right else 0,
            outcome=int(n < right + right_but_wrong),
            group=str(min(n, facts["different problems"] - 1)),
            subset="omnimath",
        )
        for n in range(size)
    ]


def test_invented_traces_with_all_counts_of_omnimath_are_taken_for_it_with_a_doubt() -> None:
    assert processbench.is_official(omnimath())
    assert "no fingerprints" in processbench.doubt(omnimath())


@pytest.mark.parametrize(
    "name",
    [
        "traces_without_an_error",
        "traces_with_an_error_and_a_right_answer",
        "traces_of_at_least_10_steps",
        "different_problems",
        "steps",
        "steps_of_the_longest_trace",
    ],
)
def test_one_count_that_differs_makes_omnimath_another_set(name: str) -> None:
    count = OMNIMATH_FACTS[name.replace("_", " ")]
    traces = omnimath(**{name: count - 1})
    assert not processbench.is_official(traces)
    assert f"{count - 1} {name.replace('_', ' ')} instead of {count}" in processbench.doubt(traces)


@pytest.mark.parametrize(
    "change",
    [
        lambda traces: [],
        lambda traces: traces[:-1],
        lambda traces: traces[:5],
        lambda traces: [*traces[:-1], replace(traces[-1], id="omnimath-1000")],
        lambda traces: [*traces, replace(traces[0], subset="gsm8k", id="gsm8k-0")],
        lambda traces: [*traces[:-1], replace(traces[-1], outcome=None)],
    ],
)
def test_a_part_of_omnimath_and_a_mixture_are_not_official(change: Callable[[Sequence[Trace]], list[Trace]]) -> None:
    assert not processbench.is_official(change(omnimath()))


def write(path: Path, traces: Sequence[Trace]) -> Path:
    rows = [{"id": t.id, "problem": t.prompt, "steps": t.steps, "label": t.first_error} for t in traces]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_run_says_that_omnimath_is_unverified_and_files_it_under_the_files_name(tmp_path: Path) -> None:
    with pytest.warns(Notice, match=r"unverified: only 5 of the 1000 .* filed under omnimath.*Qwen/ProcessBench"):
        assert data.load("processbench", write(tmp_path / "omnimath.jsonl", omnimath()[:5])).benchmark == "omnimath"


# --- PRMBench ---


@pytest.fixture(scope="module")
def first_part(shared_data: Path) -> list[Trace]:
    return prmbench_preview.from_files(shared_data / "prmbench_preview")


def test_the_first_part_of_prmbench_is_official_as_a_whole_and_in_part(first_part: list[Trace]) -> None:
    for traces in (first_part, first_part[:7], random.Random(0).sample(first_part, 20)):
        assert prmbench_preview.is_official(traces)
        assert not prmbench_preview.doubt(traces)


@pytest.mark.parametrize(
    "change",
    [
        lambda trace: replace(trace, steps=(*trace.steps[:-1], "Another step.")),
        lambda trace: replace(trace, prompt="Another question"),
        lambda trace: replace(trace, step_labels=tuple(1 - label for label in trace.step_labels)),
        lambda trace: replace(trace, id=trace.id.replace("_p1_", "_p2_")),
        lambda trace: replace(trace, id="mine"),
    ],
)
def test_a_trace_that_differs_is_not_prmbenchs(first_part: list[Trace], change: Callable[[Trace], Trace]) -> None:
    assert not prmbench_preview.is_official([*first_part[:5], change(first_part[5])])


def test_invented_rows_with_ids_of_prmbench_are_not_official() -> None:
    traces = [
        Trace(f"circular_prm_test_p{n}_0", "Q", ("a",), -1, (1.0,), group="q", subset="circular") for n in range(1, 4)
    ]
    assert not prmbench_preview.is_official(traces)
    assert not prmbench_preview.is_official([])
    assert "prm_test_p1_0" in prmbench_preview.doubt(traces)
    assert "first part" in prmbench_preview.doubt(traces[1:])


def test_the_whole_of_prmbench_is_taken_for_it_with_a_doubt(first_part: list[Trace]) -> None:
    there = {name: sum(t.subset == name for t in first_part) for name in prmbench_preview.COUNTS}
    rest = [
        Trace(f"{name}_prm_test_p2_{n}", "Q", ("a",), -1, (1.0,), group="q", subset=name)
        for name, count in prmbench_preview.COUNTS.items()
        for n in range(count - there[name])
    ]
    assert prmbench_preview.is_official([*first_part, *rest])
    assert "no fingerprints" in prmbench_preview.doubt([*first_part, *rest])
    assert not prmbench_preview.is_official([*first_part, *rest[1:]])
    assert not prmbench_preview.is_official(rest)
