"""Generative critics: a chat model is asked about a trace, and its answers become verdicts or step scores.

questions.py holds the kinds of critics; engines/chat.py and engines/openai.py run the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prmbench.backends import Facts
from prmbench.backends.cards import ModelCard
from prmbench.backends.critic import prompt_texts
from prmbench.backends.critic.prompt_texts import Prompt
from prmbench.backends.critic.questions import CRITICS, EVEN_ODDS, Critic, CriticSettings, single_turn
from prmbench.config import ModelConfig
from prmbench.core import extras
from prmbench.core.records import StepScores, Trace, Usage, UserError
from prmbench.engines.chat import Chat, LocalChat, Messages
from prmbench.engines.cost_budget import MILLION, Budget
from prmbench.engines.generation import Sampling

VLLM_BATCH_TOKENS = 2**20
"""Tokens per journal entry with vLLM, which makes its own batches."""


@dataclass(frozen=True, slots=True)
class CriticBackend:
    """Scores traces by a critic. Refused conversations are unscored; unreadable answers are votes without a verdict."""

    facts: Facts
    critic: Critic
    settings: CriticSettings
    prices: tuple[float, float] = (0.0, 0.0)
    """Price of a million prompt tokens and of a million answer tokens."""
    budget: Budget | None = None
    """Cost limit of the requests to a server, set by evaluation/scoring.py; None without a server."""

    def cost(self, trace: Trace) -> int:
        """Return the most tokens that all votes on the trace hold at once; 0 when there is nothing to ask."""
        if not trace.steps:
            return 0
        prompt_tokens = max(map(self.settings.chat.prompt_tokens, self._conversations(trace)))
        turns = len(trace.steps) if self.critic.kind == "prob" else 1
        return self.settings.votes * (prompt_tokens + turns * self.settings.sampling.max_new_tokens)

    def at_most(self, trace: Trace) -> Usage:
        """Return the usage if every answer has the largest length and every critique needs a forced decision."""
        if not trace.steps:
            return Usage()
        conversations, max_new_tokens = self._conversations(trace), self.settings.sampling.max_new_tokens
        prompts = [self.settings.chat.prompt_tokens(m) + i * max_new_tokens for i, m in enumerate(conversations)]
        answers = [max_new_tokens] * len(conversations)
        if self.critic.decides:
            prompts.append(
                self.settings.chat.prompt_tokens(prompt_texts.decision_messages(conversations[0], "")) + max_new_tokens
            )
            answers.append(1)
        return self._usage(self.settings.votes * sum(prompts), self.settings.votes * sum(answers))

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """Yield the scores of each trace, in order."""
        nonempty = [trace for trace in traces if trace.steps]
        results = dict(zip([t.id for t in nonempty], self.critic.ask(self.settings, nonempty), strict=True))
        for trace in traces:
            if trace.id not in results:
                yield StepScores(trace.id, unscored="no steps")
                continue
            result = results[trace.id]
            if any(self.prices) and any(a.finish and not a.prompt_tokens for a in result.answers):
                raise UserError("--input-price, --output-price: the server does not tell what it used; drop the prices")
            counts = ((a.prompt_tokens, a.completion_tokens) for a in result.answers)
            used = self._usage(*map(sum, zip(*counts, strict=True)))
            texts = tuple(
                a.text or a.refused or a.unreadable or f"P(yes) = {a.good_probability}" for a in result.answers
            )
            changes = tuple(dict.fromkeys(change for a in result.answers for change in a.changes))
            scores = StepScores(trace.id, unscored=result.unscored, said=texts, usage=used, request_changes=changes)
            yield scores if result.unscored else replace(scores, values=result.values, verdicts=result.verdicts)

    def _conversations(self, trace: Trace) -> list[Messages]:
        """Return the conversations about a trace with empty answers."""
        if self.critic.kind == "prob":
            blank = ("",) * len(trace.steps)
            return [prompt_texts.yes_no(self.settings.prompt, trace, blank[:k]) for k in range(len(trace.steps))]
        return [single_turn(self.settings.prompt, trace)]

    def _usage(self, prompts: int, answers: int) -> Usage:
        cost = (prompts * self.prices[0] + answers * self.prices[1]) / MILLION
        return Usage(prompts, answers, cost)


def load(card: ModelCard, config: ModelConfig) -> CriticBackend:
    """Load the critic that --critic or the card names, run by --engine. Raises UserError on options that do not fit."""
    check_options(config)
    trained_prompt = prompt_texts.load(card.prompt) if card.prompt else None
    prices = (config.input_price or 0.0, config.output_price or 0.0)
    config = replace(config, critic=config.critic or (trained_prompt.critic if trained_prompt else "processbench"))
    critic = CRITICS[str(config.critic)]
    prompt = trained_prompt or prompt_texts.load(critic.prompt)
    if prompt.critic != config.critic:
        raise UserError(f"{card.model}: was trained with a prompt of its own; drop --critic, or use {prompt.critic}")
    sampling = resolve_sampling(critic, config)
    budget = Budget(prices) if config.engine == "openai" else None
    chat, facts = _local_chat(card, config, prompt) if budget is None else _server_chat(card, config, prompt, budget)
    facts = replace(facts, kind=critic.kind, input_format=input_format(config, prompt, sampling))
    if critic.kind == "prob":
        facts = replace(facts, fixed=EVEN_ODDS, native=EVEN_ODDS)
    return CriticBackend(
        facts, critic, CriticSettings(chat, prompt, sampling, config.votes, config.seed), prices, budget
    )


def check_options(config: ModelConfig) -> None:
    """Raise UserError when a cap is given without the prices that it needs."""
    if config.max_cost is not None and (config.input_price is None or config.output_price is None):
        raise UserError("--max-cost: needs --input-price and --output-price (per million tokens) to know what is spent")


def resolve_sampling(critic: Critic, config: ModelConfig) -> Sampling:
    """Return the critic's default sampling for one vote or several, overridden by the options."""
    defaults = critic.greedy if config.votes == 1 else critic.voting
    overrides: dict[str, Any] = {
        "temperature": config.critic_temperature,
        "top_p": config.critic_top_p,
        "top_k": config.critic_top_k,
        "max_new_tokens": config.critic_tokens,
    }
    sampling = replace(defaults, **{name: value for name, value in overrides.items() if value is not None})
    if config.votes > 1 and sampling.temperature == 0:
        raise UserError(f"--votes {config.votes}: at temperature 0 all votes are the same; use 1, or a temperature")
    return sampling


def input_format(config: ModelConfig, prompt: Prompt, sampling: Sampling) -> str:
    """Return the critic's name and its non-default settings: all that changes an answer, and so the run's id."""
    critic = CRITICS[str(config.critic)]
    defaults = critic.greedy if config.votes == 1 else critic.voting
    parts = [f"critic/{config.critic}"]
    if prompt.name != critic.prompt:
        parts.append(f"prompt={prompt.name}")
    if prompt.removed:
        parts.append("inner-headers=removed")
    if config.votes > 1:
        parts.append(f"votes={config.votes}")
    names = {"temperature": "T", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "tokens"}
    settings = ((short, getattr(sampling, name), getattr(defaults, name)) for name, short in names.items())
    return " ".join(parts + [f"{short}={value:g}" for short, value, default in settings if value != default])


def _server_chat(card: ModelCard, config: ModelConfig, prompt: Prompt, budget: Budget) -> tuple[Chat, Facts]:
    try:
        from prmbench.engines.openai import HttpChat
    except ImportError as error:
        raise UserError(f"engine openai: cannot be imported ({error}); {extras.remedy('openai')}") from error
    if config.base_url is None:
        raise UserError("--base-url is missing: give the server's address, e.g. http://127.0.0.1:8000/v1")
    if config.template != "auto":
        raise UserError("--template: the server renders its own chat template; drop it, or use --engine hf or vllm")
    if prompt.opening:
        raise UserError(
            f"{card.model}: its answers have a fixed opening, which a server cannot be told; use --engine hf"
        )
    facts = Facts(
        "verdict",
        "",
        signal=card.signal,
        trained_on=card.trained_on,
        engine="openai",
        backend="critic",
        batch_tokens=1,
        workers=config.requests,
    )
    return HttpChat(config.base_url, card.model, config.rate, budget=budget), facts


def _local_chat(card: ModelCard, config: ModelConfig, prompt: Prompt) -> tuple[Chat, Facts]:
    from prmbench.backends.common import model_facts, open_lm, template_source
    from prmbench.engines.vllm import EXCLUSIVE_SHARE, VllmOptions

    if config.base_url is not None:
        raise UserError(f"--base-url: engine {config.engine} runs the model here; drop it, or use --engine openai")
    trust_code = card.remote_code and config.trust_remote_code
    reads_logprobs = config.critic != "processbench"  # the other critics compare probabilities of words
    engine = open_lm(
        card.model,
        card.revision,
        config,
        VllmOptions(reads=reads_logprobs, share=EXCLUSIVE_SHARE),
        config.dry_run,
        trust_code,
    )
    chat = LocalChat(engine, template_source(config), prompt.opening)
    facts = model_facts(card, config, engine, kind="verdict", input_format="")
    return chat, replace(facts, batch_tokens=min(engine.batch_tokens, VLLM_BATCH_TOKENS))
