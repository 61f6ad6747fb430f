"""Generative critics: what they are asked (goldens), how answers are read (tables), and engines in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_model
from hypothesis import given
from hypothesis import strategies as st
from token_kinds import KINDS
from typer.testing import CliRunner, Result

from prmbench.backends import load_backend
from prmbench.backends.cards import ModelCard
from prmbench.backends.critic import CriticBackend, answer_parser, prompt_texts
from prmbench.backends.critic import load as load_critic
from prmbench.backends.critic.questions import CRITICS, CriticSettings, needs_decision, stepwise_verdict
from prmbench.cli import app
from prmbench.config import ModelConfig
from prmbench.core.records import StepScores, Trace, Usage, UserError
from prmbench.engines.chat import Answer, ChatRequest, LocalChat, Messages, WordComparison, render_chat, swap_word
from prmbench.engines.encoding import PLAIN
from prmbench.engines.generation import Completion, SampledTokens, Sampling, end_of_turn, generate, render_prompt
from prmbench.engines.hf import HFEngine, Placement
from prmbench.engines.hf import load as load_model
from prmbench.metrics.first_error import majority

TRACE = Trace("a", "Add {x} to $\\frac{1}{2}$.", ("Let {problem} be 1.", "Step 2: so\n<b>2</b> {0}"), 1)
CARD = ModelCard("m", "critic")

# --- prompts --------------------------------------------------------------------------------------------------------

PROCESSBENCH = r"""The following is a math problem and a solution (split into paragraphs, enclosed with tags and indexed from 0):

[Math Problem]

Add {x} to $\frac{1}{2}$.

[Solution]

<paragraph_0>
Let {problem} be 1.
</paragraph_0>

<paragraph_1>
Step 2: so
<b>2</b> {0}
</paragraph_1>

Your task is to review and critique the solution paragraph by paragraph. Once you identify an error in a paragraph, return the index of the paragraph where the earliest error occurs. Otherwise, return the index of -1 (which typically denotes "not found").

Please put your final answer (i.e., the index) in \boxed{}."""  # noqa: E501

STEPWISE = r"""Here are a math problem and a solution, cut into numbered steps.

[Math Problem]

Add {x} to $\frac{1}{2}$.

[Solution]

Step 1: Let {problem} be 1.
Step 2: so
<b>2</b> {0}

Check the steps one after the other. For each of them write "Step n:" with its number, work out whether it follows from the problem and the steps before it, and close your remarks on it with \boxed{correct} or \boxed{incorrect}. Give one such verdict for each step and use \boxed for nothing else. After the first incorrect step you may stop."""  # noqa: E501

THINKPRM = r"""You are given a math problem and a proposed step-by-step solution:

[Math Problem]

Add {x} to $\frac{1}{2}$.

[Solution]

Step 1: Let {problem} be 1.
Step 2: so
<b>2</b> {0}

Review and critique each step in the proposed solution to determine whether each step is correct. If the solution is incomplete, only verify the provided steps."""  # noqa: E501


def test_prompts() -> None:
    def user(text: str) -> Messages:
        return ({"role": "user", "content": text},)

    assert prompt_texts.processbench(prompt_texts.load("critic_processbench"), TRACE) == user(PROCESSBENCH)
    assert prompt_texts.stepwise(prompt_texts.load("critic_stepwise"), TRACE) == user(STEPWISE)
    assert prompt_texts.stepwise(prompt_texts.load("thinkprm"), TRACE) == user(THINKPRM)
    assert prompt_texts.load("thinkprm").opening == "\nLet's verify step by step:"


@pytest.mark.parametrize(
    ("step", "thinkprm", "own"),
    [
        ("Step 2: so 2", "so 2", "so 2"),
        ("By Step 1: it is 2.\nStep 3: so 3", "By  it is 2.\n so 3", "By Step 1: it is 2.\nStep 3: so 3"),
        ("### Step 2: so 2", "###  so 2", "### Step 2: so 2"),
        ("Step 12: Step 13: 30.", "30.", "Step 13: 30."),
        ("see Step 2, and step 3: no", "see Step 2, and step 3: no", "see Step 2, and step 3: no"),
        (" blanks ", "blanks", " blanks "),
        ("Step 4:", "", ""),
    ],
)
def test_thinkprm_loses_every_inner_header_as_in_its_own_code(step: str, thinkprm: str, own: str) -> None:
    trace = Trace("a", "Step 1: is in the problem, too.", ("one", step))
    for name, expected in (("thinkprm", thinkprm), ("critic_stepwise", own)):
        (turn,) = prompt_texts.stepwise(prompt_texts.load(name), trace)
        problem, solution = turn["content"].split("[Math Problem]\n\n")[1].split("\n\n[Solution]\n\n")
        assert problem == trace.prompt
        assert solution.startswith(f"Step 1: one\nStep 2: {expected}\n\n")


def test_turns() -> None:
    asked = prompt_texts.yes_no(prompt_texts.load("genprm"), TRACE, ["fine {x}"])
    assert [(m["role"], m["content"]) for m in asked] == [
        (
            "system",
            "You are a math teacher. Your task is to review and critique the paragraphs in solution step by step.",
        ),
        ("user", "Add {x} to $\\frac{1}{2}$.\nLet {problem} be 1."),
        ("assistant", "fine {x}"),
        ("user", "Step 2: so\n<b>2</b> {0}"),
    ]
    assert len(prompt_texts.yes_no(prompt_texts.load("genprm"), TRACE)) == 2
    own = prompt_texts.yes_no(prompt_texts.load("critic_yes_no"), TRACE)
    assert own[0]["content"].endswith(
        r"end your message with \boxed{Yes} if the paragraph is right, or with \boxed{No} if it holds an error."
    )


def test_the_official_prompt_is_quoted(shared_data: Path) -> None:
    official = (shared_data / "templates" / "processbench_critique.txt").read_text()
    assert prompt_texts.load("critic_processbench").text == official
    filled = official.format(problem="P", tagged_response="<paragraph_0>\nS\n</paragraph_0>")
    (turn,) = prompt_texts.processbench(prompt_texts.load("critic_processbench"), Trace("t", "P", ("S",)))
    assert turn["content"] == filled


def test_a_prompt_that_is_none() -> None:
    for name in ("qwen_math_prm_system", "../x", "nothing"):
        with pytest.raises(UserError, match="has no critic's prompt of that name"):
            prompt_texts.load(name)


# --- reading answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{2}", 2),
        (r"\boxed{1} no, \boxed{2}.", 2),
        (r"\boxed{\text{2}}", 2),
        (r"$\boxed{\mathbf{\text{ 2 }}}$", 2),
        (r"\boxed{\boxed{2}}", 2),
        (r"\boxed{paragraph_2}", 2),
        (r"\boxed{\text{paragraph\_2}}", 2),
        (r"\boxed{<paragraph_2>}", 2),
        (r"\boxed{Paragraph 2}", 2),
        (r"\boxed{02}", 2),
        (r"\boxed {2.}", 2),
        (r"\boxed{-1}", -1),
        (r"\boxed{$-1$}", -1),
        (r"\boxed{\(-1\)}", -1),
        ("\\boxed{\u22121}", -1),
        ("\\boxed{\u20131}", -1),
        (r"\boxed{- 1}", -1),
        (r"\boxed{0} then \boxed{1", None),  # the last box was cut
        (r"\boxed{+2}", 2),
        ("\\boxed{\uff0b\uff12}", 2),
        ("\\boxed{\uff12}", 2),
        ("\\boxed{\u0662}", 2),
        (r"\boxed{ 2 }", 2),
        ("\\boxed{\n2\n}", 2),
        (r"\boxed{{2}}", 2),
        (r"\boxed{\boxed{\text{2}}}", 2),
        (r"\boxed{\text{The index is \boxed{2}}}", None),
        (r"\boxed{\mathrm{paragraph}~2}", 2),
        (r"\boxed{paragraph_{2}}", 2),
        (r"\boxed{\displaystyle 2}", 2),
        (r"\boxed{\textsf{\underline{2}}}", 2),
        (r"\boxed{\,2\,}", 2),
        (r"\fbox{2}", 2),
        (r"\boxed{\textcolor{red}{2}}", 2),
        (r"\boxed{\color{red} -1}", -1),
        (r"\boxed{+-1}", None),
        (r"\boxed{1\boxed{2}}", None),
        (r"\boxed{\sqrt{2}}", None),
        (r"\boxed{\frac{1}{2}}", None),
        (r"\boxed{2^{1}}", None),
        (r"\boxed{\{2\}}", None),
        ("<think>Paragraph 0 looks off, maybe \\boxed{0}. Hmm, no", None),
        ("Maybe \\boxed{0}.</think> It is \\boxed{1}.", 1),
        ("<think>Maybe \\boxed{0}.</think> Nothing.", None),
        ("<think>Maybe \\boxed{0}.</think>", None),
        ("<think>a</think> \\boxed{1} <think> or \\boxed{2}", None),
        ("\\boxed{0} <answer>\\boxed{1}</answer> \\boxed{2}", 1),
        ("<answer>\\boxed{1}", None),
        (r"\boxed{paragraph_-1}", -1),
        (r"\boxed{\text{index: }-1}", -1),
        (r"\boxed{paragraph-1}", None),  # the second paragraph, or none?
        (r"\boxed{-2}", None),
        (r"\boxed{3}", None),
        (r"\boxed{}", None),
        (r"\boxed{1} and \boxed{none}", None),
        (r"\boxed{1, 2}", None),
        (r"\boxed{1.5}", None),
        (r"\boxed{x_2}", None),
        (r"\boxed{paragraph_1 and paragraph_2}", None),
        (r"\boxed{" + "1" * 5000 + "}", None),
        ("the answer is 2", None),
        ("\boxed{2}", None),  # a backspace, as from a prompt that was not raw
        ("", None),
    ],
)
def test_index(text: str, expected: int | None) -> None:
    assert answer_parser.parse_index(text, 3) == expected


@given(
    content=st.from_regex(r"\A[ \t\n]*[+-]?[0-9\uff10-\uff19\u0660-\u0669]{1,3}[ \t]*\Z"),
    before=st.sampled_from(["", r"\boxed{9} "]),
)
def test_what_the_official_parser_reads_is_read_alike(content: str, before: str) -> None:
    official = int(re.findall(r"\\boxed\{([^}]*)\}", rf"{before}\boxed{{{content}}}")[-1].strip())
    assert answer_parser.parse_index(rf"{before}\boxed{{{content}}}", 1000) == (official if official >= -1 else None)


def test_long_and_deep_contents_are_read_in_no_time() -> None:
    for text in (
        r"\text{" * 20_000,
        r"\boxed{" + r"\text{" * 20_000 + "1" + "}" * 20_001,
        r"\boxed{" * 20_000 + "}" * 20_000,
    ):
        assert answer_parser.parse_index(text, 3) is None
        assert answer_parser.parse_decisions(text) == []
        assert answer_parser.judgement(text) is None


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([0, 1, 1], 1),
        ([None, None, None, 2], 2),
        ([2, 0, 0, 2], 2),
        ([0, 2, 2, 0], 0),
        ([None, -1, 3, -1], -1),
        ([None, None], None),
    ],
)
def test_majority(verdicts: list[int | None], expected: int | None) -> None:
    assert majority(verdicts) == expected


T, F = r"\boxed{correct}", r"\boxed{incorrect}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (T + F + T, [True, False, True]),
        (r"\boxed{\text{Correct}.} \boxed{5} \boxed{ incorrect }", [True, False]),
        (f"<think>{T}{T}</think>{F}", [False]),
        (f"<think>{T}{F}</think> Is the solution correct? No", [True, False]),
        (f"<think>{T}{F}", []),
        (f"<think>{T}{F}</think>{T}<think>{F}", []),
        (r"\boxed{\mathrm{correct}} \boxed{\textbf{Incorrect!}} \boxed{**correct**}", [True, False, True]),
        (r"\boxed{\boxed{correct}} \boxed{'incorrect'} \fbox{correct}", [True, False, True]),
        (r"\boxed{Step 1: correct} \boxed{step 2 is \text{incorrect}} \boxed{partly correct}", [True, False]),
        (r"\boxed{correct} \boxed{incorr", [True]),
        ("incorrect", []),
    ],
)
def test_decisions(text: str, expected: list[bool]) -> None:
    assert answer_parser.parse_decisions(text) == expected


@pytest.mark.parametrize(
    ("text", "finish", "asked", "verdict"),
    [
        (T * 3, "stop", False, -1),
        (T * 3, "length", False, -1),
        (T + F, "stop", False, 1),
        (T + F + T, "stop", False, 1),
        (F, "stop", False, 0),
        (F + T, "stop", False, None),  # neither up to the first error nor all
        (F + T, "length", False, 0),
        (T * 2, "stop", False, None),
        (T * 4, "stop", False, None),
        (T * 3 + F, "stop", False, None),
        (T * 2, "length", True, None),
        ("", "length", True, None),
        ("no verdict", "stop", True, None),
    ],
)
def test_stepwise_verdict(text: str, finish: str, asked: bool, verdict: int | None) -> None:
    answer = Answer(text, finish)
    assert needs_decision(answer, 3) is asked
    assert stepwise_verdict(answer, None, 3) == verdict


def test_forced_decision() -> None:
    cut = Answer(T, "length")
    assert [stepwise_verdict(cut, Answer(good_probability=p), 3) for p in (0.51, 0.5, 0.2, None)] == [
        -1,
        None,
        None,
        None,
    ]
    assert not needs_decision(Answer(refused="too long"), 3)
    assert not needs_decision(Answer(unreadable="malformed"), 3)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (r"Yes. \boxed{No} Yes", "No"),
        (r"\boxed{No} \boxed{\text{Yes}}", "Yes"),
        (r"\boxed{ yes}", "yes"),
        (r"\boxed{\textcolor{red}{Yes}}", "Yes"),
        (r"\boxed{\color{no}\mathsf{Yes}}", None),
        (r"\boxed{\color{blue} \textbf{No}}", "No"),
        (r"\boxed{\hspace{1em}Yes}", "Yes"),
        (r"\boxed{No errors found}", None),
        (r"\boxed{No obvious mistakes}", None),
        (r"\boxed{Yesterday}", None),
        (r"\boxed{Not}", None),
        ("Yes", None),
        (r"\boxed{\mathrm{Yes}}", "Yes"),
        (r"\boxed{\textbf{No}}", "No"),
        (r"\boxed{\textsf{ no }}", "no"),
        (r"\boxed{\text{\bf YES}}", "YES"),
        (r"\boxed{**Yes**}", "Yes"),
        (r"\boxed{$\text{Yes}$}", "Yes"),
        (r"\boxed{\boxed{No}}", "No"),
        (r"\boxed{\text{Yes, it is right.}}", "Yes"),
        (r"\fbox{Yes}", "Yes"),
        (r"**Judgement**: $\boxed{Yes}$ as 2 = \boxed{2}", "Yes"),
        ("**Yes**", "Yes"),
        ("**Judgement:** **No.**", "No"),
        (r"**No** \boxed{Yes}", "Yes"),
        (r"\boxed{Yes/No}", None),
        (r"\boxed{Yes or No}", None),
        (r"\boxed{\xno}", None),
        (r"\boxed{Yes} \boxed{N", None),
        (r"\boxed{Yes", None),
        (r"<think>\boxed{Yes}", None),
        (r"<think>\boxed{Yes}</think> done", None),
        (r"<think>\boxed{Yes}</think> \boxed{No}", "No"),
        (r"<answer>\boxed{No}</answer> not \boxed{Yes}", "No"),
    ],
)
def test_judgement(text: str, word: str | None) -> None:
    span = answer_parser.judgement(text)
    assert (None if span is None else text[slice(*span)]) == word


# --- asked of a script ------------------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A chat whose answers are made up; what it was asked is kept."""

    script: Callable[[ChatRequest], Answer]
    good_probability: float | None = None
    asked: list[ChatRequest] = field(default_factory=list)
    forced: list[ChatRequest] = field(default_factory=list)

    def answer(
        self, requests: Sequence[ChatRequest], sampling: Sampling, comparison: WordComparison | None = None
    ) -> list[Answer]:
        self.asked += requests
        return [self.script(request) for request in requests]

    def choose_word(self, requests: Sequence[ChatRequest], words: tuple[str, str]) -> list[Answer]:
        self.forced += requests
        return [Answer(prompt_tokens=7, completion_tokens=1, good_probability=self.good_probability) for _ in requests]

    def prompt_tokens(self, messages: Messages) -> int:
        return sum(len(m["content"]) for m in messages)


def backend(name: str, chat: Scripted, votes: int = 1, prices: tuple[float, float] = (0.0, 0.0)) -> CriticBackend:
    critic = CRITICS[name]
    loaded = load_critic(CARD, ModelConfig(model="m", engine="openai", base_url="http://localhost/v1", critic=name))  # type: ignore[arg-type]
    settings = CriticSettings(chat, prompt_texts.load(critic.prompt), Sampling(max_new_tokens=10), votes, 5)
    return CriticBackend(loaded.facts, critic, settings, prices)


TRACES = [
    Trace("a", "P", ("one", "two", "three"), 1),
    Trace("none", "P", ()),
    Trace("b", "Q", ("four",), -1),
]


def test_processbench_scores() -> None:
    answers = iter([r"\boxed{1}", "hm", r"\boxed{2}", r"\boxed{-1}", r"\boxed{7}", r"\boxed{0}"])
    chat = Scripted(lambda request: Answer(next(answers), "stop", 10, 2))
    scores = list(backend("processbench", chat, 3, (1.0, 2.0)).score(TRACES))
    assert scores == [
        StepScores("a", verdicts=(1, None, 2), said=(r"\boxed{1}", "hm", r"\boxed{2}"), usage=Usage(30, 6, 42e-6)),
        StepScores("none", unscored="no steps"),
        StepScores(
            "b", verdicts=(-1, None, 0), said=(r"\boxed{-1}", r"\boxed{7}", r"\boxed{0}"), usage=Usage(30, 6, 42e-6)
        ),
    ]
    assert len({request.seed for request in chat.asked}) == 6
    assert all(0 <= request.seed < 2**31 for request in chat.asked)


def test_what_does_not_fit_is_unscored() -> None:
    refused = Answer(refused="99 tokens of prompt fill the context")
    (a,) = backend("processbench", Scripted(lambda request: refused)).score(TRACES[:1])
    assert (a.unscored, a.verdicts) == ("99 tokens of prompt fill the context", ())
    (b,) = backend("yes_no", Scripted(lambda request: refused)).score(TRACES[:1])
    assert (b.unscored, b.values) == ("99 tokens of prompt fill the context", ())
    (c,) = backend("processbench", Scripted(lambda request: Answer(unreadable="malformed answer"))).score(TRACES[:1])
    assert (c.unscored, c.verdicts, c.said) == ("", (None,), ("malformed answer",))


def test_stepwise_scores() -> None:
    cut = Answer(T, "length", 10, 2)
    answers_of = {"P": iter([Answer(T + F, "stop", 10, 2), cut]), "Q": iter([cut, cut])}

    def script(request: ChatRequest) -> Answer:
        return next(answers_of["P" if "Step 1: one" in request.messages[0]["content"] else "Q"])

    chat = Scripted(script, good_probability=0.9)
    a, _, b = backend("stepwise", chat, 2).score(TRACES)
    assert (a.verdicts, b.verdicts) == ((1, -1), (-1, -1))
    assert (a.usage, a.said) == (Usage(27, 5), (T + F, T, "P(yes) = 0.9"))
    (forced,) = chat.forced
    assert [m["role"] for m in forced.messages] == ["user", "assistant", "user"]
    assert forced.messages[1:] == (
        {"role": "assistant", "content": T},
        {"role": "user", "content": "Is the solution correct? Answer with one word, yes or no."},
    )


def test_yes_no_scores() -> None:
    """Shares by step and vote; each vote keeps its own history; a vote that is lost ends; the mean is over the rest."""
    shares = {("one", 0): 0.9, ("one", 1): 0.7, ("two", 0): 0.2, ("two", 1): None, ("three", 1): 0.5, ("four", 0): 0.1}
    order: dict[str, int] = {}

    def script(request: ChatRequest) -> Answer:
        step = request.messages[-1]["content"].split("\n")[-1]
        own = [m["content"] for m in request.messages if m["role"] == "assistant"]
        vote = int(own[0][-1]) if own else order.setdefault(step, -1) + 1
        order[step] = vote
        if (step, vote) == ("two", 0):
            return Answer("", "", 10, 0, good_probability=0.2, unreadable="broken")
        return Answer(f"{step} {vote}", "stop", 10, 2, good_probability=shares.get((step, vote)))

    chat = Scripted(script)
    a, _, b = backend("yes_no", chat, 2).score(TRACES)
    assert a.values == pytest.approx((0.8, 0.2, 0.5))
    assert b.values == (0.1,)
    assert a.said == ("one 0", "one 1", "broken", "two 1", "three 1")
    assert chat.asked[-1].messages[1:] == (
        {"role": "user", "content": "P\none"},
        {"role": "assistant", "content": "one 1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "two 1"},
        {"role": "user", "content": "three"},
    )


def test_an_unread_step_ends_a_trace() -> None:
    chat = Scripted(
        lambda request: Answer("x", "stop", 10, 2, good_probability=0.5 if len(request.messages) == 2 else None)
    )
    a, _, b = backend("yes_no", chat).score(TRACES)
    assert (a.unscored, a.values, a.usage) == ("no Yes or No on step 2", (), Usage(20, 4))
    assert b.values == (0.5,)
    assert len(chat.asked) == 3  # step 3 of a is not asked


def test_the_estimate_of_a_critic_that_decides_holds_the_decision() -> None:
    critic = backend("stepwise", Scripted(lambda request: Answer()), 3)
    used = critic.at_most(TRACES[0])
    (asked,) = prompt_texts.stepwise(prompt_texts.load("critic_stepwise"), TRACES[0])
    question = len(asked["content"])
    assert used.completion_tokens == 3 * (10 + 1)
    assert used.prompt_tokens == 3 * (question + question + 10 + len(prompt_texts.DECISION_QUESTION))


def test_estimates() -> None:
    for name, prompts, answers in (("processbench", 1, 10), ("yes_no", 3, 30)):
        critic = backend(name, Scripted(lambda request: Answer()), 2, (1.0, 10.0))
        used = critic.at_most(TRACES[0])
        assert used.completion_tokens == 2 * answers
        assert used.cost == pytest.approx((used.prompt_tokens + 10 * used.completion_tokens) / 1e6)
        assert critic.at_most(TRACES[1]) == Usage()
        assert critic.cost(TRACES[1]) == 0
        system = len(prompt_texts.load("critic_yes_no").text.replace("{{", "{").replace("}}", "}"))
        if prompts == 3:  # system, then "P\none", "two", "three", and what was said before each
            said = sum((system + 5, system + 5 + 3 + 10, system + 5 + 3 + 5 + 20))
            assert used.prompt_tokens == 2 * said
            assert critic.cost(TRACES[0]) == 2 * (system + 13 + 30)


# --- an engine in this process ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(policy: Path) -> HFEngine:
    return load_model(str(policy), "lm", Placement("cpu", "float32"))


def test_same_completions_as_sampling(engine: HFEngine) -> None:
    prompts = ["What is 2 + 3?", "Find the value."]
    sampling = Sampling(temperature=1.0, max_new_tokens=12)
    requests = [ChatRequest(({"role": "user", "content": p},), seed) for seed, p in enumerate(prompts)]
    stops = end_of_turn(engine.tokenizer)
    texts = [render_prompt(engine.tokenizer, p) for p in prompts]
    expected = list(generate(engine, texts, sampling, [0, 1], stops=stops))
    answers = LocalChat(engine).answer(requests, sampling)
    assert [(a.text, a.finish, a.completion_tokens) for a in answers] == [
        (c.text, c.finish, c.tokens) for c in expected
    ]
    sizes = [len(engine.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    assert [a.prompt_tokens for a in answers] == sizes
    (opened,) = LocalChat(engine, opening="\nLet's").answer(requests[:1], sampling)
    (behind,) = generate(engine, [texts[0] + "\nLet's"], sampling, [0], stops=stops)
    assert (opened.text, opened.prompt_tokens > sizes[0]) == (behind.text, True)


def test_an_answer_ends_with_its_turn(engine: HFEngine) -> None:
    """Also where the model's files name no token that ends a completion."""
    asked: list[Any] = []

    class Endless(Fixed):
        stops = frozenset()

        def sample(self, prompts: Sequence[Any], *how: Any) -> list[SampledTokens]:
            asked.append(how[-1])
            return super().sample(prompts)

    (answer,) = LocalChat(Endless(engine, "x")).answer([ChatRequest(({"role": "user", "content": "y"},))], Sampling())
    assert asked == [{engine.tokenizer.eos_token_id}]
    assert (answer.text, answer.finish) == ("x", "stop")


def test_a_prompt_that_fills_the_context(engine: HFEngine) -> None:
    (answer,) = LocalChat(engine).answer([ChatRequest(({"role": "user", "content": "1 + " * 3000},))], Sampling())
    assert answer.refused.endswith("tokens of prompt fill the context")
    (choice,) = LocalChat(engine).choose_word(
        [ChatRequest(({"role": "user", "content": "1 + " * 3000},))], ("yes", "no")
    )
    assert choice.refused.endswith("tokens of prompt fill the context")


def naive(engine: HFEngine, ids: Sequence[int], tail: Sequence[int]) -> float:
    """ln P(tail | ids) from full logits."""
    with torch.inference_mode():
        logits = engine.model(torch.tensor([[*ids, *tail]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(ids) - 1 + k, token]) for k, token in enumerate(tail))


class Fixed(HFEngine):
    """The engine, but for what it writes."""

    def __init__(self, engine: HFEngine, text: str) -> None:
        super().__init__(engine.model, engine.tokenizer)
        self.text = text

    def sample(self, prompts: Sequence[Any], *_: Any) -> list[SampledTokens]:
        ids = (*self.tokenizer(self.text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id)
        return [SampledTokens(ids, (0.0,) * len(ids)) for _ in prompts]

    def sample_continuously(self, *inputs: Any) -> None:
        *how, _, on_finished = inputs
        for i, tokens in enumerate(self.sample(*how)):
            on_finished(i, tokens)


THOUGHTFUL = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
"""How QwQ's and DeepSeek-R1's templates open the thought."""


@pytest.mark.parametrize(
    ("text", "verdict"), [(r"Maybe \boxed{0}. Hmm", None), (r"Maybe \boxed{0}.</think>So \boxed{1}.", 1)]
)
def test_a_thought_that_the_template_opened_is_a_thought(engine: HFEngine, text: str, verdict: int | None) -> None:
    (answer,) = LocalChat(Fixed(engine, text), THOUGHTFUL).answer(
        [ChatRequest(({"role": "user", "content": "x"},))], Sampling()
    )
    assert answer.text == f"<think>\n{text}"
    assert answer_parser.parse_index(answer.text, 3) == verdict


@pytest.mark.parametrize("word", ["Yes", "No"])
def test_weighing_behind_a_thought_that_the_template_opened(engine: HFEngine, word: str) -> None:
    text = rf"It is \boxed{{No}}?</think>So \boxed{{{word}}}."
    request, comparison = (
        ChatRequest(({"role": "user", "content": "x"},)),
        WordComparison(("Yes", "No"), answer_parser.judgement),
    )
    chat = LocalChat(Fixed(engine, text), THOUGHTFUL)
    (answer,) = chat.answer([request], Sampling(), comparison)
    before = engine.tokenizer(chat.text(request.messages), add_special_tokens=False)["input_ids"]
    before += engine.tokenizer(text[: text.rindex(word + "}")], add_special_tokens=False)["input_ids"]
    yes, no = (naive(engine, before, engine.tokenizer(w, add_special_tokens=False)["input_ids"]) for w in ("Yes", "No"))
    assert answer.good_probability == pytest.approx(np.exp(yes) / (np.exp(yes) + np.exp(no)), abs=1e-6)
    (cut,) = LocalChat(Fixed(engine, r"It is \boxed{No}"), THOUGHTFUL).answer([request], Sampling(), comparison)
    assert cut.good_probability is None


@pytest.mark.parametrize("word", ["Yes", "No"])
def test_weighing_equals_a_naive_softmax(engine: HFEngine, word: str) -> None:
    text = rf"First \boxed{{No}}. It is 2, so \boxed{{{word}}}. Yes!"
    chat = LocalChat(Fixed(engine, text))
    request = ChatRequest(({"role": "user", "content": "Is 1 + 1 = 2?"},))
    (answer,) = chat.answer([request], Sampling(), WordComparison(("Yes", "No"), answer_parser.judgement))
    bare = engine.tokenizer
    before = bare(chat.text(request.messages), add_special_tokens=False)["input_ids"]
    before += bare(text[: text.rindex(word + "}")], add_special_tokens=False)["input_ids"]
    yes, no = (naive(engine, before, bare(w, add_special_tokens=False)["input_ids"]) for w in ("Yes", "No"))
    assert answer.text == text
    assert answer.good_probability == pytest.approx(np.exp(yes) / (np.exp(yes) + np.exp(no)), abs=1e-6)
    assert answer.good_probability != pytest.approx(0.5, abs=1e-3)


def test_choosing_equals_a_naive_softmax(engine: HFEngine) -> None:
    request = ChatRequest(({"role": "user", "content": "Is 1 + 1 = 2?"},))
    (answer,) = LocalChat(engine).choose_word([request], ("yes", "no"))
    bare = engine.tokenizer
    before = bare(LocalChat(engine).text(request.messages), add_special_tokens=False)["input_ids"]
    p = {
        w: np.exp(naive(engine, before, bare(w, add_special_tokens=False)["input_ids"]))
        for w in ("yes", "Yes", "no", "No")
    }
    assert answer.good_probability == pytest.approx((p["yes"] + p["Yes"]) / sum(p.values()), abs=1e-6)
    assert answer.completion_tokens == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [r"So \boxed{Yes}.", r"∠ ist größer \boxed{ No}", r"\boxed{\text{yes}}"])
def test_the_other_word_takes_its_place(kind: str, text: str) -> None:
    """Own tokens are as drawn, and either word, put behind the tokens before it, reads as it should."""
    tokenizer = KINDS[kind]()
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    written = str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    span = answer_parser.judgement(written)
    if span is None:
        pytest.skip("this tokenizer cannot spell the word")
    at, own, other = swap_word(tokenizer, Completion(written, len(ids), "stop", ids), span, ("Yes", "No"))
    word = written[slice(*span)]
    swap = {"Yes": "No", "No": "Yes", "yes": "no"}[word]
    assert ids[at : at + len(own)] == own
    if tokenizer.unk_token_id in other:
        pytest.skip("this tokenizer cannot spell the other word")
    read = str(tokenizer.decode([*ids[:at], *other, *ids[at + len(own) :]], skip_special_tokens=True))
    assert read == written[: span[0]] + swap + written[span[1] :]


def test_rendered_chat(engine: HFEngine) -> None:
    talk: Messages = (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U {x}"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    )
    body = "<|system|>\nS<|end|>\n<|user|>\nU {x}<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n"
    assert render_chat(engine.tokenizer, talk, None) == body + "<|assistant|>\n"
    generating = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    assert render_chat(engine.tokenizer, talk, generating) == "[S][U {x}][A][V]>"
    assert render_chat(engine.tokenizer, talk, PLAIN) == "<s>S\n\nU {x}\n\nA\n\nV\n\n"


# --- through the command line -----------------------------------------------------------------------------------------


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("critic", ["processbench", "stepwise", "yes_no"])
def test_eval_in_this_process(critic: str, policy: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    """A random model says nothing of use: all of it is counted, nothing fails, and done again it is the same."""
    how = ("--backend", "critic", "--critic", critic, "--votes", 2, "--critic-tokens", 12, "--limit", 2)
    results = []
    for out in ("one", "two"):
        run = call("eval", "--model", policy, "--data", benchmark_folder, *how, "--out", tmp_path / out, "--json")
        assert run.exit_code == 0, run.output
        results.append(json.loads(run.stdout))
    manifest = results[0]["manifest"]
    assert results[0]["rows"] == results[1]["rows"]
    assert manifest["scores_sha256"] == results[1]["manifest"]["scores_sha256"]
    assert manifest["kind"] == ("prob" if critic == "yes_no" else "verdict")
    assert manifest["input_format"] == f"critic/{critic} votes=2 tokens=12"
    assert manifest["completion_tokens"] >= 4 * 2
    assert (manifest["native"], manifest["fixed"]) == ((0.5, 0.5) if critic == "yes_no" else (None, None))
    (texts,) = (tmp_path / "one").glob("*.critiques.jsonl")
    assert len(texts.read_text().splitlines()) == 4


def test_bad_input(policy: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    bare = save_model(tmp_path / "bare", 3)
    (bare / "chat_template.jinja").unlink()
    how = ("--backend", "critic", "--data", benchmark_folder, "--out", tmp_path / "out")
    for options, line in (
        (("--model", bare), "the tokenizer has no chat template; pass --template plain"),
        (("--model", policy, "--base-url", "http://localhost/v1"), "--base-url: engine hf runs the model here"),
        (("--model", policy, "--engine", "openai"), "--base-url is missing"),
        (("--model", policy, "--critic", "other"), "other"),
        (("--model", policy, "--max-cost", 3), "--max-cost: needs --input-price"),
    ):
        result = call("eval", *how, *options)
        assert result.exit_code == 2, result.output
        assert line in result.stderr
        assert "Traceback" not in result.stderr


def test_a_checkpoint_with_a_prompt_of_its_own(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = ModelCard(str(policy), "critic", prompt="thinkprm", signal="steps")
    with pytest.raises(UserError, match="was trained with a prompt of its own; drop --critic, or use stepwise"):
        load_critic(card, ModelConfig(model=str(policy), critic="processbench"))
    critic = load_critic(card, ModelConfig(model=str(policy)))
    assert critic.facts.input_format == "critic/stepwise prompt=thinkprm inner-headers=removed"
    assert isinstance(critic.settings.chat, LocalChat)
    assert critic.settings.chat.text(({"role": "user", "content": "x"},)).endswith(
        "<|assistant|>\n\nLet's verify step by step:"
    )
    there = ModelConfig(model="m", critic="stepwise", engine="openai", base_url="http://localhost/v1")
    with pytest.raises(UserError, match="its answers have a fixed opening, which a server cannot be told"):
        load_critic(card, there)


def test_settings(policy: Path) -> None:
    def sampling(**options: Any) -> Sampling:
        critic = load_backend(ModelConfig(model=str(policy), backend="critic", dry_run=True, **options))
        assert isinstance(critic, CriticBackend)
        return critic.settings.sampling

    assert sampling() == Sampling(0.0, 1.0, 0, 8192)
    assert sampling(votes=8) == Sampling(1.0, 0.9, 0, 8192)
    assert sampling(critic="yes_no") == Sampling(0.0, 1.0, 0, 2048)
    assert sampling(critic="yes_no", votes=8) == Sampling(0.6, 0.95, 20, 2048)
    own = sampling(votes=8, critic_temperature=0.7, critic_top_p=0.8, critic_top_k=20, critic_tokens=32768)
    assert own == Sampling(0.7, 0.8, 20, 32768)


# --- how many forward passes words take -------------------------------------------------------------------------------


def counted(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each forward pass that reads log-probabilities."""
    rows: list[int] = []
    real = engine.logprobs
    monkeypatch.setattr(engine, "logprobs", lambda batch: (rows.append(len(batch)), real(batch))[1], raising=False)
    return rows


def questions(*texts: str) -> list[ChatRequest]:
    return [ChatRequest(({"role": "user", "content": text},)) for text in texts]


def test_words_of_all_answers_are_weighed_in_one_pass(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of one answer at a time; an answer without the word, between others, takes no row."""
    texts = [r"So \boxed{Yes}.", "I cannot say.", r"It is 2 and not 3, so \boxed{No}."]

    class Several(Fixed):
        def sample(self, prompts: Sequence[Any], *_: Any) -> list[SampledTokens]:
            return [super(Several, Several(engine, text)).sample([0])[0] for text in texts[: len(prompts)]]

    comparison = WordComparison(("Yes", "No"), answer_parser.judgement)
    asked = questions("Is 1 + 1 = 2?", "What?", "Is 1 + 1 = 3, or is it something else?")
    together = Several(engine, "")
    rows = counted(together, monkeypatch)
    answers = LocalChat(together).answer(asked, Sampling(), comparison)
    assert sorted(a.text for a in answers) == sorted(texts)
    assert rows == [4]
    for request, answer in zip(asked, answers, strict=True):
        (alone,) = LocalChat(Fixed(engine, answer.text)).answer([request], Sampling(), comparison)
        assert answer.good_probability == pytest.approx(alone.good_probability, abs=1e-6)
    assert [a.good_probability is None for a in answers] == ["cannot" in a.text for a in answers]


def test_first_words_of_all_requests_are_weighed_in_one_pass(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, asked = LocalChat(engine), questions("Is 1 + 1 = 2?", "1 + " * 3000, "Is this so, or is it not?")
    alone = [chat.choose_word([request], ("yes", "no"))[0] for request in asked]
    rows = counted(engine, monkeypatch)
    together = chat.choose_word(asked, ("yes", "no"))
    assert rows == [8]
    assert [a.refused for a in together] == [a.refused for a in alone]
    for mine, other in zip(together, alone, strict=True):
        assert mine.good_probability == (other.good_probability and pytest.approx(other.good_probability, abs=1e-6))
    monkeypatch.setattr("prmbench.engines.chat._READ_TOKENS", 2 * (together[2].prompt_tokens + 8))
    rows.clear()
    limited = chat.choose_word(asked, ("yes", "no"))
    assert len(rows) > 1
    assert limited[2].good_probability == pytest.approx(alone[2].good_probability, abs=1e-6)
