"""The three kinds of generative critics: their questions about a trace, and the scores made from the answers.

prompt_texts.py writes the prompts, answer_parser.py reads one answer, `CriticBackend` holds the model and the prices.
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

EVEN_ODDS = 0.5


@dataclass(frozen=True, slots=True)
class Critic:
    """A kind of critic: its prompt, its sampling and the function that asks it."""

    kind: ScoreKind
    prompt: str
    """Prompt in assets/prompts for any chat model; a checkpoint trained with another one names it in its card."""
    greedy: Sampling
    """Sampling with one vote."""
    voting: Sampling
    """Sampling with several votes."""
    ask: Callable[[CriticSettings, Sequence[Trace]], list[CriticResult]]
    decides: bool = False
    """Whether a critique without a clear verdict is followed by a question that forces one."""


@dataclass(slots=True)
class CriticResult:
    """The answers about one trace, and the verdicts or step scores made from them."""

    answers: list[Answer] = field(default_factory=list)
    """Every answer, also those without a text, since each is paid for."""
    verdicts: tuple[int | None, ...] = ()
    values: tuple[float, ...] = ()
    unscored: str = ""


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """Everything besides the trace that the questions depend on."""

    chat: Chat
    prompt: Prompt
    sampling: Sampling
    votes: int
    seed: int

    def request(self, trace: Trace, vote: int, messages: Messages) -> ChatRequest:
        """Return a request with a seed of its own, non-negative and of 31 bits, which every server accepts."""
        seed_name = f"{self.seed}/{trace.id}/{vote}/{len(messages)}"
        return ChatRequest(messages, int.from_bytes(hashlib.sha256(seed_name.encode()).digest()[:4]) >> 1)


def ask_processbench(settings: CriticSettings, traces: Sequence[Trace]) -> list[CriticResult]:
    """Ask for the index of the first wrong paragraph (ProcessBench); judging takes the majority of the votes."""
    return [
        _to_result(answers, [answer_parser.parse_index(answer.text, len(trace.steps)) for answer in answers])
        for trace, answers in _ask_votes(settings, traces)
    ]


def ask_stepwise(settings: CriticSettings, traces: Sequence[Trace]) -> list[CriticResult]:
    """Ask for correct or incorrect on every step (ThinkPRM); the verdict is the first incorrect step.

    A critique that names no incorrect step and was cut before its last step, or holds no verdict at all, is followed by
    a forced decision: yes means that every step is right; no leaves the place of the error unknown, so the verdict is
    None.
    """
    answers_by_trace = _ask_votes(settings, traces)
    undecided = [
        (trace, vote, answer)
        for trace, answers in answers_by_trace
        for vote, answer in enumerate(answers)
        if needs_decision(answer, len(trace.steps))
    ]
    requests = [
        settings.request(trace, vote, prompt_texts.decision_messages(single_turn(settings.prompt, trace), answer.text))
        for trace, vote, answer in undecided
    ]
    decisions = settings.chat.choose_word(requests, prompt_texts.DECISION_WORDS) if requests else []
    decision_of = {(t.id, vote): decision for (t, vote, _), decision in zip(undecided, decisions, strict=True)}
    results = []
    for trace, answers in answers_by_trace:
        vote_decisions = [decision_of.get((trace.id, vote)) for vote in range(len(answers))]
        verdicts = tuple(
            stepwise_verdict(answer, decision, len(trace.steps))
            for answer, decision in zip(answers, vote_decisions, strict=True)
        )
        result = _to_result(answers, verdicts)
        result.answers = [*answers, *(decision for decision in vote_decisions if decision is not None)]
        results.append(result)
    return results


def needs_decision(answer: Answer, steps: int) -> bool:
    """Return whether a critique leaves open whether the solution is correct."""
    if answer.refused or answer.unreadable:
        return False
    step_verdicts = answer_parser.parse_decisions(answer.text)
    return not step_verdicts or (
        answer.finish == "length" and False not in step_verdicts and len(step_verdicts) < steps
    )


def stepwise_verdict(answer: Answer, decision: Answer | None, steps: int) -> int | None:
    """Return the first error that a critique names, or else the forced decision's verdict.

    Returns:
        Index of the first wrong step, -1 when all are right, None when the answers do not tell.
    """
    if decision is not None:
        return -1 if decision.good_probability is not None and decision.good_probability > EVEN_ODDS else None
    step_verdicts = answer_parser.parse_decisions(answer.text)
    if answer.finish == "length" and False in step_verdicts:
        step_verdicts = step_verdicts[: step_verdicts.index(False) + 1]  # later verdicts may be incomplete
    return answer_parser.first_error(step_verdicts, steps)


def ask_yes_no(settings: CriticSettings, traces: Sequence[Trace]) -> list[CriticResult]:
    r"""Ask for a judgement of every step in its own turn (GenPRM); the score is P(Yes) / (P(Yes) + P(No)) at its word.

    The critiques stay in the conversation, each vote with its own (GenPRM's code gives all votes those of the first).
    NO code is run: a checkpoint that writes Python to check a step continues with the output that it imagines, so its
    scores are those of the critic without its tool. A step's score is the mean over the readable votes; a step without
    any leaves the trace unscored, and its later steps are not asked.
    """
    comparison = WordComparison(prompt_texts.JUDGEMENT_WORDS, answer_parser.judgement)
    results = [CriticResult() for _ in traces]
    critiques: list[dict[int, list[str]]] = [{vote: [] for vote in range(settings.votes)} for _ in traces]
    for step in range(max((len(t.steps) for t in traces), default=0)):
        open_traces = [i for i, t in enumerate(traces) if step < len(t.steps) and not results[i].unscored]
        requests = [
            settings.request(traces[i], vote, prompt_texts.yes_no(settings.prompt, traces[i], texts))
            for i in open_traces
            for vote, texts in critiques[i].items()
        ]
        answers = iter(settings.chat.answer(requests, settings.sampling, comparison))
        for i in open_traces:
            answer_of_vote = {vote: next(answers) for vote in critiques[i]}
            # A vote without a readable answer ends here: its conversation would contain an empty turn.
            critiques[i] = {
                vote: [*critiques[i][vote], a.text]
                for vote, a in answer_of_vote.items()
                if not (a.refused or a.unreadable)
            }
            _add_step(results[i], list(answer_of_vote.values()), step)
    return results


def _add_step(result: CriticResult, answers: Sequence[Answer], step: int) -> None:
    """Add a step's answers; its score is the votes' mean probability, and without any the trace is unscored."""
    result.answers += answers
    probabilities = [a.good_probability for a in answers if a.good_probability is not None]
    if probabilities:
        result.values = (*result.values, sum(probabilities) / len(probabilities))
        return
    result.values = ()
    result.unscored = next((a.refused for a in answers if a.refused), f"no Yes or No on step {step + 1}")


def single_turn(prompt: Prompt, trace: Trace) -> Messages:
    """Return the single turn of a critic that judges the whole solution at once."""
    return (prompt_texts.stepwise if prompt.critic == "stepwise" else prompt_texts.processbench)(prompt, trace)


def _ask_votes(settings: CriticSettings, traces: Sequence[Trace]) -> list[tuple[Trace, list[Answer]]]:
    """Return every trace with the answers of its votes."""
    requests = [
        settings.request(t, vote, single_turn(settings.prompt, t)) for t in traces for vote in range(settings.votes)
    ]
    answers = settings.chat.answer(requests, settings.sampling)
    return [(t, answers[i * settings.votes : (i + 1) * settings.votes]) for i, t in enumerate(traces)]


def _to_result(answers: Sequence[Answer], verdicts: Sequence[int | None]) -> CriticResult:
    """Return the answers with their verdicts; unscored when a conversation was refused."""
    refused = next((a.refused for a in answers if a.refused), "")
    return CriticResult(list(answers), () if refused else tuple(verdicts), unscored=refused)


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
"""The critics by their name for --critic.

ProcessBench's script has other settings for models called Qwen2.5-Math (T 0.7, top-p 0.8, top-k 20) and QwQ (32768
tokens). Here a model's name changes nothing: pass them as options. Temperature 0.7 is ThinkPRM's default."""
