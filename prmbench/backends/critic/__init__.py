"""Generative critics: a chat model is asked about a trace, and its answers become verdicts or step scores.

How each kind is asked: questions.py. Who runs the model: engines/chat.py, engines/openai.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prmbench.backends import Facts
from prmbench.backends.cards import ModelCard
from prmbench.backends.critic import prompt_texts
from prmbench.backends.critic.prompt_texts import Prompt
from prmbench.backends.critic.questions import CRITICS, HALF, Asking, Critic, question
from prmbench.config import ModelConfig
from prmbench.core.records import StepScores, Trace, Usage, UserError
from prmbench.engines.chat import Chat, LocalChat, Messages
from prmbench.engines.cost_budget import MILLION, Budget
from prmbench.engines.generation import Sampling

MOST_PRICE = 1e6
"""Of a million tokens; with a larger one, what a run costs may be no number that a manifest can hold."""
LEAST_RATE = 0.001
"""Requests a minute: one in 17 hours."""
VLLM_BATCH_TOKENS = 2**20
"""Of vLLM, which makes its own batches: what goes into one entry of the journal."""


@dataclass(frozen=True, slots=True)
class CriticBackend:
    """A critic at work. Refused conversations are unscored; an answer that cannot be read is a vote for nothing."""

    facts: Facts
    critic: Critic
    asking: Asking
    prices: tuple[float, float] = (0.0, 0.0)
    """Of a million prompt tokens and of a million answer tokens."""
    budget: Budget | None = None
    """What the requests to a server may cost; scoring.py opens it. None where no server is asked."""

    def cost(self, trace: Trace) -> int:
        """Tokens that the answers about the trace may take at once; 0 when there is nothing to ask."""
        if not trace.steps:
            return 0
        asked = max(map(self.asking.chat.prompt_tokens, self._asked(trace)))
        turns = len(trace.steps) if self.critic.kind == "prob" else 1
        return self.asking.votes * (asked + turns * self.asking.sampling.max_new_tokens)

    def at_most(self, trace: Trace) -> Usage:
        """What the answers take if each is as long as it may be and every critique needs a forced decision."""
        if not trace.steps:
            return Usage()
        asked, longest = self._asked(trace), self.asking.sampling.max_new_tokens
        prompts = [self.asking.chat.prompt_tokens(m) + i * longest for i, m in enumerate(asked)]
        answers = [longest] * len(asked)
        if self.critic.decides:
            prompts.append(self.asking.chat.prompt_tokens(prompt_texts.decide(asked[0], "")) + longest)
            answers.append(1)
        return self._usage(self.asking.votes * sum(prompts), self.asking.votes * sum(answers))

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """One entry a trace, in order."""
        some = [trace for trace in traces if trace.steps]
        heard = dict(zip([t.id for t in some], self.critic.ask(self.asking, some), strict=True))
        for trace in traces:
            if trace.id not in heard:
                yield StepScores(trace.id, unscored="no steps")
                continue
            found = heard[trace.id]
            if any(self.prices) and any(a.finish and not a.prompt_tokens for a in found.answers):
                raise UserError("--input-price, --output-price: the server does not tell what it used; drop the prices")
            counts = ((a.prompt_tokens, a.completion_tokens) for a in found.answers)
            used = self._usage(*map(sum, zip(*counts, strict=True)))
            said = tuple(a.text or a.refused or a.unreadable or f"P(yes) = {a.good_probability}" for a in found.answers)
            changes = tuple(dict.fromkeys(change for a in found.answers for change in a.changes))
            scores = StepScores(trace.id, unscored=found.unscored, said=said, usage=used, request_changes=changes)
            yield scores if found.unscored else replace(scores, values=found.values, verdicts=found.verdicts)

    def _asked(self, trace: Trace) -> list[Messages]:
        """The conversations about a trace, without what is said in them."""
        if self.critic.kind == "prob":
            blank = ("",) * len(trace.steps)
            return [prompt_texts.yes_no(self.asking.prompt, trace, blank[:k]) for k in range(len(trace.steps))]
        return [question(self.asking.prompt, trace)]

    def _usage(self, prompts: int, answers: int) -> Usage:
        cost = (prompts * self.prices[0] + answers * self.prices[1]) / MILLION
        return Usage(prompts, answers, cost)


def load(card: ModelCard, config: ModelConfig) -> CriticBackend:
    """The critic that --critic or the card names, run by --engine. Raises UserError on options that do not fit."""
    check(config)
    trained = prompt_texts.load(card.prompt) if card.prompt else None
    prices = (config.input_price or 0.0, config.output_price or 0.0)
    config = replace(config, critic=config.critic or (trained.critic if trained else "processbench"))
    critic = CRITICS[str(config.critic)]
    prompt = trained or prompt_texts.load(critic.prompt)
    if prompt.critic != config.critic:
        raise UserError(f"{card.model}: was trained with a prompt of its own; drop --critic, or use {prompt.critic}")
    sampling = how_sampled(critic, config)
    budget = Budget(prices) if config.engine == "openai" else None
    chat, facts = _local(card, config, prompt) if budget is None else _http(card, config, prompt, budget)
    usual = replace(facts, kind=critic.kind, input_format=input_format(config, prompt, sampling))
    if critic.kind == "prob":
        usual = replace(usual, fixed=HALF, native=HALF)
    return CriticBackend(usual, critic, Asking(chat, prompt, sampling, config.votes, config.seed), prices, budget)


def check(config: ModelConfig) -> None:
    """Raises UserError on options that are out of range, or of use to nobody."""
    for name, least in (("votes", 1), ("requests", 1), ("input_price", 0), ("output_price", 0), ("max_cost", 0)):
        value = getattr(config, name)
        if value is not None and not least <= value < math.inf:  # NaN is neither
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least {least}")
        if value is not None and name.endswith("_price") and value > MOST_PRICE:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}; expected at most {MOST_PRICE:g}")
    if config.rate is not None and not LEAST_RATE <= config.rate < math.inf:
        raise UserError(f"--rate is {config.rate:g}; expected at least {LEAST_RATE} requests a minute")
    if config.max_cost is not None and (config.input_price is None or config.output_price is None):
        raise UserError("--max-cost: needs --input-price and --output-price (per million tokens) to know what is spent")


def how_sampled(critic: Critic, config: ModelConfig) -> Sampling:
    """The critic's own settings, for one vote or several, with those that were given put in."""
    own = critic.greedy if config.votes == 1 else critic.voting
    given: dict[str, Any] = {
        "temperature": config.critic_temperature,
        "top_p": config.critic_top_p,
        "top_k": config.critic_top_k,
        "max_new_tokens": config.critic_tokens,
    }
    try:
        sampling = replace(own, **{name: value for name, value in given.items() if value is not None})
    except UserError as error:  # names the options of a policy
        told = str(error).removeprefix("--").replace("max-new-tokens", "tokens")
        raise UserError(f"--critic-{told}") from error
    if config.votes > 1 and sampling.temperature == 0:
        raise UserError(f"--votes {config.votes}: at temperature 0 all votes are the same; use 1, or a temperature")
    return sampling


def input_format(config: ModelConfig, prompt: Prompt, sampling: Sampling) -> str:
    """The critic, and what is not its own: everything that moves an answer, so that it moves the run's id."""
    critic = CRITICS[str(config.critic)]
    own = critic.greedy if config.votes == 1 else critic.voting
    parts = [f"critic/{config.critic}"]
    if prompt.name != critic.prompt:
        parts.append(f"prompt={prompt.name}")
    if prompt.removed:
        parts.append("inner-headers=removed")
    if config.votes > 1:
        parts.append(f"votes={config.votes}")
    names = {"temperature": "T", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "tokens"}
    told = ((short, getattr(sampling, name), getattr(own, name)) for name, short in names.items())
    return " ".join(parts + [f"{short}={value:g}" for short, value, usual in told if value != usual])


def _http(card: ModelCard, config: ModelConfig, prompt: Prompt, budget: Budget) -> tuple[Chat, Facts]:
    try:
        from prmbench.engines.openai import HttpChat
    except ImportError as error:
        raise UserError(f"engine openai: cannot be imported ({error}); pip install 'prmbench[openai]'") from error
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


def _local(card: ModelCard, config: ModelConfig, prompt: Prompt) -> tuple[Chat, Facts]:
    from prmbench.backends.common import model_facts, open_lm, template_source
    from prmbench.engines.vllm import ALONE, Options

    if config.base_url is not None:
        raise UserError(f"--base-url: engine {config.engine} runs the model here; drop it, or use --engine openai")
    code = card.remote_code and config.trust_remote_code
    reads = config.critic != "processbench"  # the others weigh words against each other
    engine = open_lm(card.model, card.revision, config, Options(reads=reads, share=ALONE), config.dry_run, code)
    chat = LocalChat(engine, template_source(config), prompt.opening)
    facts = model_facts(card, config, engine, kind="verdict", input_format="")
    return chat, replace(facts, batch_tokens=min(engine.batch_tokens, VLLM_BATCH_TOKENS))
