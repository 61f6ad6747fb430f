"""Mechanical facts about the demo traces that ship with the package: schema, counts and arithmetic.

Answers are worked out here from the problems' numbers, not read from the file.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

KEYS = {"id", "generator", "subset", "problem", "steps", "final_answer_correct", "label"}

REASONING = {
    "gradeschool-02a",  # forgets the first six days
    "gradeschool-03b",  # area in place of the perimeter
    "gradeschool-05b",  # leaves the rest out of the time
    "gradeschool-07b",  # rounds the buses down
    "gradeschool-09b",  # adds the leak to the pump
    "gradeschool-11b",  # adds the 4 years in place of taking them away
    "gradeschool-17a",  # takes the children's fiction from all books
    "gradeschool-20a",  # overlooks the second piece
    "gradeschool-21a",  # 100 milliliters in a liter
    "gradeschool-22a",  # half of the morning's distance, not of the rest
}
"""Traces whose first error is a wrong idea, computed without a slip."""

COMPENSATED = {"gradeschool-10a", "gradeschool-24a"}
"""Traces with an error that nevertheless end in the right answer."""

ANSWERS = {
    "01": (12 * 15 - 128) / 2,
    "02": 6 + (340 - 6 * 25) / 38,
    "03": (2 * (14 + 9) - 2) * 6 + 45,
    "04": 84 * 3 / 7 + 84 * 4 / 7 / 4,
    "05": (2 * 21 + 1.5 * 28) / (2 + 0.5 + 1.5),
    "06": (80 * 0.75 - 12) * 1.05,
    "07": (math.ceil((156 + 12) / 48) * 312 - 468) / 156,
    "08": 8 * 10 + 3 * 8 * 5 + 5 * 25,
    "09": 600 * 2 / 3 / (30 - 10),
    "10": (9 * 16 - 24) // 12 * 4.50,
    "11": (68 - 4) / 2 - 25 + 5,
    "12": (2 * 5 * 3 + 2 * 4 * 3 - 2) * 2 / 13,
    "13": 40 * 14 + (46 - 40) * 14 * 1.5,
    "14": (27 + 2 * 27 + (2 * 27 - 15)) / 6,
    "15": 18 * 22 * 3 / 4 * 9,
    "16": (45 * 3 + 60 * 1.50 - 70 - 25) / 13,
    "17": 1250 * 0.4 * (1 - 0.3),
    "18": (17 * 24 + 92) / 25 - 4,
    "19": (8 - 5) * 2.50,
    "20": 2 * (96 - 16) / 4,
    "21": 24 * 2 * 125 / 1000 / 1.5,
    "22": 30 * 3 / 5 / 2,
    "23": 6 * (22 + (140 - 40) * 0.05),
    "24": math.ceil((225 - (60 - 12)) / (35 - 9)),
}

NUMBER = r"\$?\d[\d,]*(?:\.\d+)?"
EQUATION = re.compile(rf"({NUMBER}(?: [-+*/x] {NUMBER})+) = ({NUMBER})")


def numbers(text: str) -> list[float]:
    return [float(found.strip("$,").replace(",", "")) for found in re.findall(NUMBER, text)]


def value(expression: str) -> float:
    """Evaluates `a op b op c`, products before sums."""
    total, sign, term, pending = 0.0, 1.0, 1.0, "*"
    for token in expression.split():
        if token in "*x/":
            pending = token
        elif token in "+-":
            total, sign, term, pending = total + sign * term, 1.0 if token == "+" else -1.0, 1.0, "*"
        else:
            (number,) = numbers(token)
            term = term / number if pending == "/" else term * number
    return total + sign * term


def equations(step: str) -> list[tuple[str, bool]]:
    """Every equation of a step, and whether it holds."""
    return [
        (match[0], math.isclose(value(match[1]), numbers(match[2])[0], rel_tol=1e-9))
        for match in EQUATION.finditer(step)
    ]


@pytest.fixture(scope="module")
def traces() -> list[dict[str, Any]]:
    text = files("prmbench").joinpath("assets/demo_traces.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("it is 2 + 3 * 4 = 14.", [True]),
        ("it is 2 + 3 * 4 = 20.", [False]),
        ("so $1,250 - $150 = $1,100 remain, and 3 x 5 = 16.", [True, False]),
        ("10 - 4 - 3 = 3, 24 / 4 / 3 = 2 and 80 * 0.25 = $20", [True, True, True]),
        ("10 - 4 - 3 = 9", [False]),
        ("with 4n + 16 = 96 nothing is computed", []),
    ],
)
def test_the_checker_itself(step: str, expected: list[bool]) -> None:
    assert [holds for _, holds in equations(step)] == expected


def test_schema(traces: list[dict[str, Any]]) -> None:
    for trace in traces:
        assert set(trace) == KEYS
        assert trace["generator"] == "prmbench-authors"
        assert trace["subset"] == "gradeschool"
        assert isinstance(trace["final_answer_correct"], bool)
        assert 3 <= len(trace["steps"]) <= 7
        assert -1 <= trace["label"] < len(trace["steps"])
        for step in trace["steps"]:
            assert step == step.strip() != ""
            assert "\n" not in step
            assert not step.startswith("Step")


def test_counts(traces: list[dict[str, Any]]) -> None:
    assert len({trace["id"] for trace in traces}) == len(traces) == 36
    assert Counter(trace["label"] for trace in traces) == {-1: 16, 0: 3, 1: 4, 2: 5, 3: 4, 4: 3, 5: 1}
    solutions: dict[str, list[bool]] = {}
    for trace in traces:
        solutions.setdefault(trace["problem"], []).append(trace["label"] == -1)
    assert Counter(tuple(sorted(right)) for right in solutions.values()) == {(False, True): 12, (True,): 4, (False,): 8}


def test_one_problem_per_number(traces: list[dict[str, Any]]) -> None:
    assert len({(trace["id"][-3:-1], trace["problem"]) for trace in traces}) == len(ANSWERS) == 24
    assert {trace["id"][-3:-1] for trace in traces} == set(ANSWERS)


def test_steps_before_the_first_error_compute_correctly(traces: list[dict[str, Any]]) -> None:
    checked = 0
    for trace in traces:
        sound = trace["steps"] if trace["label"] == -1 else trace["steps"][: trace["label"]]
        for step in sound:
            for equation, holds in equations(step):
                assert holds, f"{trace['id']}: {equation}"
                checked += 1
    assert checked >= 100


def test_the_first_error_is_where_the_label_says(traces: list[dict[str, Any]]) -> None:
    for trace in traces:
        if trace["label"] >= 0:
            slips = [holds for _, holds in equations(trace["steps"][trace["label"]])].count(False)
            assert (slips == 0) == (trace["id"] in REASONING), trace["id"]
    assert len(REASONING) == 10
    assert {trace["id"] for trace in traces if trace["label"] >= 0} >= REASONING | COMPENSATED


def test_later_steps_compute_correctly_from_the_wrong_value(traces: list[dict[str, Any]]) -> None:
    for trace in traces:
        if trace["label"] >= 0:
            for step in trace["steps"][trace["label"] + 1 :]:
                assert all(holds for _, holds in equations(step)), trace["id"]


def test_final_answers(traces: list[dict[str, Any]]) -> None:
    for trace in traces:
        right = math.isclose(numbers(trace["steps"][-1])[-1], ANSWERS[trace["id"][-3:-1]], rel_tol=1e-9)
        assert right == trace["final_answer_correct"], trace["id"]
    recovered = {trace["id"] for trace in traces if trace["label"] >= 0 and trace["final_answer_correct"]}
    assert recovered == COMPENSATED
    assert all(trace["final_answer_correct"] for trace in traces if trace["label"] == -1)
