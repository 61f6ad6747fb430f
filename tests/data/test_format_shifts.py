"""The five format shifts: a golden each, and that none of them moves which step is first wrong."""

from __future__ import annotations

import pytest

from prmbench.core.records import Trace
from prmbench.studies.miniature import arithmetic, format_shifts

STEPS = ("7 + 5 = 1", "1 * 3 = 4", "4 - 2 = 2", "Answer: 2")
TRACE = Trace("t", "[plain] 7 #1 + 5 #2 * 3 #3 - 2 ?", STEPS, first_error=1, step_labels=(0.5, 0.1, 0.2, 0.3))
"""1 * 3 is not 4, so step 1 is wrong."""

GOLDEN = {
    "headers": ("Next : 7 + 5 = 1", "Next : 1 * 3 = 4", "Next : 4 - 2 = 2", "Next : Answer: 2"),
    "separators": ("7 + 5 = 1 ;", "1 * 3 = 4 ;", "4 - 2 = 2 ;", "Answer: 2"),
    "words": ("7 plus 5 gives 1", "1 times 3 gives 4", "4 minus 2 gives 2", "Answer: 2"),
    "merged": ("7 + 5 = 1 , 1 * 3 = 4", "4 - 2 = 2", "Answer: 2"),
    "verbose": (
        "we have 7 , then 7 + 5 = 1",
        "we have 1 , then 1 * 3 = 4",
        "we have 4 , then 4 - 2 = 2",
        "Answer: 2",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    shifted = format_shifts.SHIFTS[name](TRACE)
    assert shifted.steps == GOLDEN[name]
    assert shifted.prompt == f"[{name}] 7 #1 + 5 #2 * 3 #3 - 2 ?"
    assert shifted.subset == name
    assert shifted.first_error == (0 if name == "merged" else 1)
    assert shifted.step_labels == ((0.1, 0.2, 0.3) if name == "merged" else TRACE.step_labels)


def test_the_table_is_complete() -> None:
    assert list(GOLDEN) == list(format_shifts.SHIFTS)


@pytest.mark.parametrize(("label", "moved"), [(-1, -1), (0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (None, None)])
def test_merged_moves_the_label_with_its_step(label: int | None, moved: int | None) -> None:
    steps = ("0 + 2 = 2", "2 + 2 = 4", "4 + 2 = 6", "6 + 2 = 8", "8 + 2 = 10", "Answer: 10")
    trace = Trace("t", "[plain] 0 #1 + 2 #2 + 2 #3 + 2 #4 + 2 #5 + 2 ?", steps, first_error=label)
    shifted = format_shifts.merged(trace)
    assert len(shifted.steps) == 4
    assert shifted.first_error == moved


@pytest.mark.parametrize("name", format_shifts.SHIFTS)
def test_the_oracle_reads_the_mapped_label_off_the_shifted_text(name: str) -> None:
    traces = [*arithmetic.injected("test", 3, 60), *_wrong_answers(20)]
    assert {t.first_error for t in traces} >= {-1, 0, 1, 2, 3, 4}
    for shifted in map(format_shifts.SHIFTS[name], traces):
        assert arithmetic.first_error(shifted.prompt, shifted.steps) == shifted.first_error, shifted


def _wrong_answers(count: int) -> list[Trace]:
    """Right up to the last step, whose answer is one too large."""
    found = []
    for i in range(count):
        task = arithmetic.problem("test", 5, i)
        steps = (*arithmetic.solution(task)[:-1], f"Answer: {(task.values()[-1] + 1) % 11}")
        found.append(Trace(f"t{i}", task.prompt(), steps, first_error=len(steps) - 1))
    return found
