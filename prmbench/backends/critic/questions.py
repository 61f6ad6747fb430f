"""The three kinds of generative critics: what is asked about traces in what order, and what the answers amount to.

Prompts: prompt_texts.py. Reading one answer: answer_parser.py. Models, facts and prices: backends/critic/__init__.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prmbench.backends.critic import answer_parser, prompt_texts
from prmbench.backends.critic.prompt_texts import Prompt
from prmbench.core.records import ScoreKind, Trace
from prmbench.engines.chat import Answer, Chat, ChatRequest, Messages, WordComparison
from prmbench.engines.generation import Sampling

HALF = 0.5


@dataclass(frozen=True, slots=True)
class Critic:
    """How a kind of critic is asked and read."""

    kind: ScoreKind
    prompt: str
    """The one for any chat model, in assets/prompts; checkpoints that were trained with another name it on their card.
    """
    greedy: Sampling
    """With one vote."""
    voting: Sampling
    """With several."""
    ask: Callable[[Asking, Sequence[Trace]], list[Heard]]
    decides: bool = False
    """Whether a critique that leaves the verdict open is followed by a question that forces one."""


@dataclass(slots=True)
class Heard:
    """What was said about one trace."""

    answers: list[Answer] = field(default_factory=list)
    """Every answer, those without a text too: all of them are paid for."""
    verdicts: tuple[int | None, ...] = ()
    values: tuple[float, ...] = ()
    unscored: str = ""


@dataclass(frozen=True, slots=True)
class Asking:
    """All that the questions about a trace depend on, beside the trace."""

    chat: Chat
    prompt: Prompt
    sampling: Sampling
    votes: int
    seed: int

    def ask(self, trace: Trace, vote: int, messages: Messages) -> ChatRequest:
        """The conversation with a seed of its own; non-negative and of 31 bits, which every server takes."""
        name = f"{self.seed}/{trace.id}/{vote}/{len(messages)}"
        return ChatRequest(messages, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1)


def ask_processbench(asking: Asking, traces: Sequence[Trace]) -> list[Heard]:
    """ProcessBench: the index of the first wrong paragraph; the majority of `votes` is taken when judging."""
    return [
        _heard(own, [answer_parser.index(answer.text, len(trace.steps)) for answer in own])
        for trace, own in _answers(asking, traces)
    ]


def ask_stepwise(asking: Asking, traces: Sequence[Trace]) -> list[Heard]:
    """ThinkPRM: correct or incorrect on every step, the first incorrect one is the verdict.

    A critique that was cut before its last step, or holds no verdict at all, and has named no incorrect step, is
    followed by a forced decision: yes = every step is right, no = nobody knows where the error is, so None.
    """
    answered = _answers(asking, traces)
    undecided = [
        (trace, vote, answer)
        for trace, own in answered
        for vote, answer in enumerate(own)
        if needs_decision(answer, len(trace.steps))
    ]
    asks = [
        asking.ask(trace, vote, prompt_texts.decide(question(asking.prompt, trace), answer.text))
        for trace, vote, answer in undecided
    ]
    decided = asking.chat.choose_word(asks, prompt_texts.DECISION) if asks else []
    forced = {(t.id, vote): d for (t, vote, _), d in zip(undecided, decided, strict=True)}
    found = []
    for trace, own in answered:
        votes = [forced.get((trace.id, vote)) for vote in range(len(own))]
        verdicts = tuple(stepwise_verdict(a, d, len(trace.steps)) for a, d in zip(own, votes, strict=True))
        heard = _heard(own, verdicts)
        heard.answers = [*own, *(d for d in votes if d is not None)]
        found.append(heard)
    return found


def needs_decision(answer: Answer, steps: int) -> bool:
    """Whether a critique leaves open what its model thinks of the solution."""
    if answer.refused or answer.unreadable:
        return False
    found = answer_parser.decisions(answer.text)
    return not found or (answer.finish == "length" and False not in found and len(found) < steps)


def stepwise_verdict(answer: Answer, decision: Answer | None, steps: int) -> int | None:
    """The first error that a critique names, or what the decision after it says."""
    if decision is not None:
        return -1 if decision.good_probability is not None and decision.good_probability > HALF else None
    found = answer_parser.decisions(answer.text)
    if answer.finish == "length" and False in found:
        found = found[: found.index(False) + 1]  # what follows was cut anyway
    return answer_parser.first_error(found, steps)


def ask_yes_no(asking: Asking, traces: Sequence[Trace]) -> list[Heard]:
    r"""GenPRM: a turn and a judgement for every step; its score is P(Yes) / (P(Yes) + P(No)) at the judgement's word.

    A model's own critiques stay in the conversation, each vote's in its own (GenPRM's code gives all votes those of the
    first). NO code is run: where a checkpoint writes Python to check a step, it goes on with the output that it
    imagines, and scores are those of the critic without its tool. Scores of several votes are averaged over those that
    can be read; a step without any leaves the trace unscored, and the rest is not asked.
    """
    weighing = WordComparison(prompt_texts.JUDGEMENT, answer_parser.judgement)
    heard = [Heard() for _ in traces]
    said: list[dict[int, list[str]]] = [{vote: [] for vote in range(asking.votes)} for _ in traces]
    for step in range(max((len(t.steps) for t in traces), default=0)):
        live = [i for i, t in enumerate(traces) if step < len(t.steps) and not heard[i].unscored]
        asks = [
            asking.ask(traces[i], vote, prompt_texts.yes_no(asking.prompt, traces[i], texts))
            for i in live
            for vote, texts in said[i].items()
        ]
        answers = iter(asking.chat.answer(asks, asking.sampling, weighing))
        for i in live:
            own = {vote: next(answers) for vote in said[i]}
            # A vote that is lost cannot go on: its conversation would have a turn in which nothing is said.
            said[i] = {vote: [*said[i][vote], a.text] for vote, a in own.items() if not (a.refused or a.unreadable)}
            _hear(heard[i], list(own.values()), step)
    return heard


def _hear(heard: Heard, answers: Sequence[Answer], step: int) -> None:
    """Adds a step's answers: its score is the mean share of the votes; without any, the trace is unscored."""
    heard.answers += answers
    shares = [a.good_probability for a in answers if a.good_probability is not None]
    if shares:
        heard.values = (*heard.values, sum(shares) / len(shares))
        return
    heard.values = ()
    heard.unscored = next((a.refused for a in answers if a.refused), f"no Yes or No on step {step + 1}")


def question(prompt: Prompt, trace: Trace) -> Messages:
    """The one turn of a critic that judges the whole solution at once."""
    return (prompt_texts.stepwise if prompt.critic == "stepwise" else prompt_texts.processbench)(prompt, trace)


def _answers(asking: Asking, traces: Sequence[Trace]) -> list[tuple[Trace, list[Answer]]]:
    """Every trace with the answers of its votes."""
    asks = [asking.ask(t, vote, question(asking.prompt, t)) for t in traces for vote in range(asking.votes)]
    answers = asking.chat.answer(asks, asking.sampling)
    return [(t, answers[i * asking.votes : (i + 1) * asking.votes]) for i, t in enumerate(traces)]


def _heard(answers: Sequence[Answer], verdicts: Sequence[int | None]) -> Heard:
    refused = next((a.refused for a in answers if a.refused), "")
    return Heard(list(answers), () if refused else tuple(verdicts), unscored=refused)


CRITICS = {
    "processbench": Critic(
        "verdict",
        "critic_processbench",
        Sampling(temperature=0.0, max_new_tokens=8192),
        Sampling(temperature=1.0, top_p=0.9, max_new_tokens=8192),
        ask_processbench,
    ),
    "stepwise": Critic(
        "verdict",
        "critic_stepwise",
        Sampling(temperature=0.0, max_new_tokens=8192),
        Sampling(temperature=0.7, max_new_tokens=8192),
        ask_stepwise,
        decides=True,
    ),
    "yes_no": Critic(
        "prob",
        "critic_yes_no",
        Sampling(temperature=0.0, max_new_tokens=2048),
        Sampling(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=2048),
        ask_yes_no,
    ),
}
"""By --critic. ProcessBench's script has other settings for models called Qwen2.5-Math (T 0.7, top-p 0.8, top-k 20) and
QwQ (32768 tokens); here nothing goes by names: give them as options. Temperature 0.7: ThinkPRM's default."""
