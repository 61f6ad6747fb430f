"""Formats of benchmark format_shift: a golden each, what all keep, and scores on their way back to original steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prmbench import data
from prmbench.backends import Facts
from prmbench.backends.rendered import RenderedBackend
from prmbench.core.records import ScoreKind, StepScores, Trace, UserError
from prmbench.data import renderings
from prmbench.data.renderings import RENDERINGS, RULE, Rendered, combine_split_scores
from prmbench.tasks.format_shift import NAMES, base_and_rendering, rendered_id, rendered_name

TRACE = Trace(
    id="t",
    prompt="How wide is it?",
    steps=(
        "Let x be the width. Then $x + 1. $ is the height.",
        "Step 2: so\n\\[ x. = 3 \\]",
        "Add them up! The answer is 7.",
        "**Final answer:** 7 m. So it is \\boxed{\\frac{14}{2}} and $x$.",
        "Done, the answer: \\boxed{7}.",
    ),
    first_error=3,
    outcome=0,
    group="g",
    subset="math",
    answer="7",
)
GOLDEN = {
    "plain": (TRACE.steps, (0, 1, 2, 3, 4), 3),
    "headers": (
        (
            f"Step 1: {TRACE.steps[0]}",
            TRACE.steps[1],
            f"Step 3: {TRACE.steps[2]}",
            f"Step 4: {TRACE.steps[3]}",
            f"Step 5: {TRACE.steps[4]}",
        ),
        (0, 1, 2, 3, 4),
        3,
    ),
    "markdown": (
        (
            f"### Step 1\n{TRACE.steps[0]}",
            TRACE.steps[1],
            f"### Step 3\n{TRACE.steps[2]}",
            f"### Step 4\n{TRACE.steps[3]}",
            f"### Step 5\n{TRACE.steps[4]}",
        ),
        (0, 1, 2, 3, 4),
        3,
    ),
    "separators": (tuple(f"{step}\n--------------------" for step in TRACE.steps), (0, 1, 2, 3, 4), 3),
    "merged": (
        (f"{TRACE.steps[0]}\n{TRACE.steps[1]}", f"{TRACE.steps[2]}\n{TRACE.steps[3]}", TRACE.steps[4]),
        (0, 2, 4),
        1,
    ),
    "split": (
        (
            "Let x be the width.",
            "Then $x + 1. $ is the height.",
            "Step 2: so",
            "\\[ x. = 3 \\]",
            "Add them up!",
            "The answer is 7.",
            "**Final answer:** 7 m.",
            "So it is \\boxed{\\frac{14}{2}} and $x$.",
            "Done, the answer: \\boxed{7}.",
        ),
        (0, 0, 1, 1, 2, 2, 3, 3, 4),
        6,
    ),
    "answerless": ((*TRACE.steps[:4], "Done, the answer: \\boxed{?}."), (0, 1, 2, 3, 4), 3),
    "prefix": (TRACE.steps[:3], (0, 1, 2), -1),
}


def label(trace: Trace) -> int:
    assert trace.first_error is not None
    return trace.first_error


@pytest.mark.parametrize("name", RENDERINGS)
def test_golden(name: str) -> None:
    result = RENDERINGS[name](TRACE)
    assert (result.trace.steps, result.parents, result.trace.first_error) == GOLDEN[name]
    plain = name == "plain"
    assert result.trace.id == ("t" if plain else f"t@{name}")
    assert result.trace.subset == ("math" if plain else f"math+{name}")
    assert (result.trace.prompt, result.trace.group) == (TRACE.prompt, TRACE.group)
    assert result.trace.outcome == (None if name == "prefix" else 0)


def test_names_are_the_judges_and_lead_back() -> None:
    assert tuple(RENDERINGS) == NAMES == tuple(GOLDEN)
    for name in NAMES:
        assert base_and_rendering(rendered_name("a+b", name)) == ("a+b", name)
        assert rendered_id("x", name) == ("x" if name == "plain" else f"x@{name}")


LAST_STEPS = {
    "So \\boxed{1} or \\boxed { {a}{b} } here": "So \\boxed{?} or \\boxed {?} here",
    "The answer is 3.5, that is\nmore. It is 3.5": "The answer is ?\nmore. It is 3.5",
    "The final answer is: $\\boxed{1}$.": "The final answer is: $\\boxed{?}$.",
    "Final Answer: The final answer is \\((1, 2)\\). I hope so.": "Final Answer: ?. I hope so.",
    "Thus, the answer is:\n\\[\nx = 1.\n\\]": "Thus, the answer is:\n?",
    "ANSWER is **12**.": "ANSWER is **?**.",
    "The answers are 3 and 4.": "The answers are 3 and 4.",
    "It is \\boxed{1": "It is \\boxed{1",
    "It is 5.": "It is 5.",
}


@pytest.mark.parametrize("step", LAST_STEPS)
def test_answers_that_are_taken_out(step: str) -> None:
    result = renderings.answerless(replace(TRACE, steps=("The answer is 1.", step), first_error=-1))
    assert result.trace.steps == ("The answer is 1.", LAST_STEPS[step])


UNCUT = (
    "One sentence.",
    "a $x. y$",
    "$$a. b. c$$",
    "we \\(a.\n b\\)",
    "\\begin{align*} a. \n b \\end{align*}",
    "\\boxed{a. b}",
    "$a. b",
    "\\[ a. \n b",
    "1. First",
    "### Step 1\nfoo",
    "foo. \\]",
)


@pytest.mark.parametrize("step", UNCUT)
def test_what_is_never_cut(step: str) -> None:
    assert renderings.split(replace(TRACE, steps=(step,), first_error=-1)).trace.steps == (step,)


def test_the_cut_is_nearest_to_the_middle() -> None:
    for step, halves in {
        "A. Bb. Cc ccc ccc ccc": ("A. Bb.", "Cc ccc ccc ccc"),
        "Aaaa aaaa aaaa! B. C": ("Aaaa aaaa aaaa!", "B. C"),
        "It costs \\$5. He pays \\$6": ("It costs \\$5.", "He pays \\$6"),
        '"So it is." It is': ('"So it is."', "It is"),
    }.items():
        assert renderings.split(replace(TRACE, steps=(step,), first_error=-1)).trace.steps == halves


WORDS = st.sampled_from(
    ["Step 1: ", "a", " ", ". ", "\n", "$", "\\[", "\\]", "\\boxed{", "}", "12", "answer is ", "!", "*"]
)
STEP = st.lists(WORDS, min_size=1, max_size=12).map("".join).filter(lambda s: s.strip() != "")


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    steps = tuple(draw(st.lists(STEP, min_size=1, max_size=7)))
    first_error = draw(st.integers(-1, len(steps) - 1))
    return replace(TRACE, steps=steps, first_error=first_error, outcome=draw(st.sampled_from([0, 1, None])))


def bare(steps: Sequence[str]) -> str:
    return "".join("".join(steps).split())


@settings(deadline=None)
@given(traces())
def test_what_every_format_keeps(trace: Trace) -> None:
    by_name = {name: render(trace) for name, render in RENDERINGS.items()}
    for name, result in by_name.items():
        steps, parents = result.trace.steps, result.parents
        assert len(steps) == len(parents)
        assert all(step.strip() for step in steps)
        assert all(a <= b for a, b in pairwise(parents))
        assert -1 <= label(result.trace) < len(steps)
        if name not in ("merged", "prefix"):  # every original step is there
            assert set(parents) == set(range(len(trace.steps)))
        if label(result.trace) >= 0:
            assert parents[label(result.trace)] == label(trace) - label(trace) % (2 if name == "merged" else 1)
        else:
            assert label(trace) == -1 or (name == "prefix" and label(trace) >= len(steps))
    for name in ("merged", "split", "plain"):
        assert bare(by_name[name].trace.steps) == bare(trace.steps)
    assert len(by_name["merged"].parents) == math.ceil(len(trace.steps) / 2)
    assert by_name["prefix"].trace.steps == trace.steps[: math.ceil(len(trace.steps) / 2)]
    for k, step in enumerate(trace.steps):
        assert by_name["separators"].trace.steps[k] == f"{step}\n{RULE}"
        assert by_name["headers"].trace.steps[k] in (step, f"Step {k + 1}: {step}")
        assert by_name["markdown"].trace.steps[k] in (step, f"### Step {k + 1}\n{step}")
    assert by_name["answerless"].trace.steps[:-1] == trace.steps[:-1]


@settings(deadline=None)
@given(traces(), st.integers(-1, 6))
def test_no_format_looks_at_the_label(trace: Trace, other: int) -> None:
    relabelled = replace(trace, first_error=min(other, len(trace.steps) - 1))
    for render in RENDERINGS.values():
        assert render(trace).trace.steps == render(relabelled).trace.steps


def test_no_format_writes_what_a_family_reads_as_its_own() -> None:
    for render in RENDERINGS.values():
        text = "".join(render(replace(TRACE, steps=("a", "b. c"), first_error=-1)).trace.steps)
        assert not any(tag in text for tag in ("\n\n", "ки", "<extra_0>", "+"))


# --- the benchmark ---------------------------------------------------------------------------------------------


def test_traces_as_they_are_judged() -> None:
    late = replace(TRACE, id="late", first_error=4)
    result = renderings.render_traces([TRACE, late])
    assert [t.id for t in result[:4]] == ["t", "late", "t@headers", "late@headers"]
    by_id = {t.id: t for t in result}
    assert "late@answerless" not in by_id  # its wrong last step may be right without its answer
    assert len(result) == 2 * len(RENDERINGS) - 1
    assert (by_id["t@split"].steps, by_id["t@split"].first_error) == (TRACE.steps, 3)
    assert by_id["t@merged"].first_error == 1
    some = renderings.render_traces([TRACE], ("prefix", "headers"))
    assert [t.id for t in some] == ["t", "t@headers", "t@prefix"]
    assert [t.id for t in renderings.render_traces([TRACE], ("plain",))] == ["t"]


def test_names_that_cannot_be_used() -> None:
    with pytest.raises(UserError, match=r"--rendering bold: choose from plain, headers"):
        renderings.render_traces([TRACE], ("bold",))
    with pytest.raises(UserError, match=r"subset 'a\+headers': ends like a rendering's name"):
        renderings.render_traces([replace(TRACE, subset="a+headers")])
    with pytest.raises(UserError, match="id 't@headers' occurs twice"):
        renderings.render_traces([TRACE, replace(TRACE, id="t@headers")])


def test_real_traces(shared_data: Path) -> None:
    plain = data.load("processbench", shared_data / "processbench").traces
    result = renderings.render_traces(plain)
    sizes = {name: sum(base_and_rendering(t.subset)[1] == name for t in result) for name in NAMES}
    assert sizes == {**dict.fromkeys(NAMES, 2400), "answerless": 2323}
    expected = {name: [RENDERINGS[name](t) for t in plain] for name in NAMES}

    def changed(name: str, subset: str) -> int:
        pairs = zip(plain, expected[name], strict=True)
        return sum(t.steps[-1] != r.trace.steps[-1] for t, r in pairs if t.subset == subset)

    assert [changed("answerless", s) for s in ("gsm8k", "math", "olympiadbench")] == ANSWERS
    headed = sum(
        a == b
        for t, r in zip(plain, expected["headers"], strict=True)
        for a, b in zip(t.steps, r.trace.steps, strict=True)
    )
    assert headed == 10 + 120 + 161  # steps that begin with "Step n" or "### Step n" as they are
    assert sum(len(r.parents) for r in expected["split"]) == HALVES
    assert not any("\n\n" in step for r in expected["split"] for step in r.trace.steps)


ANSWERS, HALVES = [340, 909, 917], 30366


# --- scores on their way back ------------------------------------------------------------------------------------

PARENTS = (0, 0, 1, 2, 2)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_any_line_end_is_a_place_to_cut(ending: str) -> None:
    step = f"a is 1{ending}b is 2"
    halves = renderings.split(replace(TRACE, steps=(step,), first_error=-1, step_labels=())).trace.steps
    assert halves == ("a is 1", "b is 2")


def test_scores_of_halves_become_those_of_steps() -> None:
    scores = StepScores("x", (1.0, 2.0, -4.0, 8.0, -16.0), (1, 2, 3, 4, 5), also={"more": (5.0, 4.0, 3.0, 2.0, 1.0)})
    summed = combine_split_scores(3, PARENTS, scores, "logratio")
    assert (summed.values, summed.tokens, summed.also) == ((3.0, -4.0, -8.0), (3, 3, 9), {"more": (9.0, 3.0, 3.0)})
    for kind in ("value", "prob"):
        lowest = combine_split_scores(3, PARENTS, scores, kind)
        assert (lowest.values, lowest.tokens, lowest.also) == ((1.0, -4.0, -16.0), (3, 3, 9), {"more": (4.0, 3.0, 1.0)})
    verdicts = StepScores("x", verdicts=(-1, None, 0, 1, 2, 3, 4, 5, -2), said=("a",))
    merged_scores = combine_split_scores(3, PARENTS, verdicts, "verdict")
    assert (merged_scores.verdicts, merged_scores.said) == ((-1, None, 0, 0, 1, 2, 2, None, None), ("a",))


@pytest.mark.parametrize("kind", ["logratio", "prob"])
def test_scores_that_cannot_be_brought_back_stay_visible(kind: ScoreKind) -> None:
    assert combine_split_scores(3, PARENTS, StepScores("x", unscored="why"), kind).unscored == "why"
    assert combine_split_scores(3, PARENTS, StepScores("x", (1.0,) * 3), kind).unscored == "3 values for 5 steps"
    for series in ((math.nan, 1.0, 1.0, 1.0, 1.0), (1.0, math.nan, 1.0, 1.0, 1.0)):
        assert math.isnan(combine_split_scores(3, PARENTS, StepScores("x", series), kind).values[0])
    whole = StepScores("x", (1.0, 2.0, 3.0))
    assert combine_split_scores(3, (0, 1, 2), whole, kind) is whole


class _Lengths:
    """Scores a step by its length; keeps what it was shown."""

    facts = Facts("logratio", "none")

    def __init__(self) -> None:
        self.seen: list[Trace] = []

    def cost(self, trace: Trace) -> int:
        return len(trace.steps)

    def score(self, traces: Sequence[Trace]):  # type: ignore[no-untyped-def]
        self.seen += traces
        for t in traces:
            yield StepScores(t.id, tuple(float(len(s)) for s in t.steps), tuple(len(s) for s in t.steps))


def test_a_model_reads_halves_and_is_judged_on_steps() -> None:
    model = _Lengths()
    backend = RenderedBackend(model)
    judged = [t for t in renderings.render_traces([TRACE]) if base_and_rendering(t.subset)[1] in ("headers", "split")]
    headers, split = backend.score(judged)
    halves = Rendered(replace(TRACE, steps=GOLDEN["split"][0]), GOLDEN["split"][1]).trace.steps
    assert [t.steps for t in model.seen] == [GOLDEN["headers"][0], halves]
    assert [t.id for t in model.seen] == ["t@headers", "t@split"]
    assert split.id == "t@split"
    assert split.tokens[:2] == (len(halves[0]) + len(halves[1]), len(halves[2]) + len(halves[3]))
    assert len(split.values) == len(headers.values) == 5
    assert [backend.cost(t) for t in judged] == [5, 9]
    assert backend.facts is model.facts
