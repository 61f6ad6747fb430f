"""Generates completions: sampling settings, rendered prompts, and batches by token budget.

vLLM forms its own batches; for transformers decoding.py does, of the prompts of several batches together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from prmbench.core.records import UserError
from prmbench.core.token_batches import token_batches
from prmbench.engines.completion_encoding import encode_completion
from prmbench.engines.encoding import PLAIN, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_CACHE_BYTES, GPU_CACHE_BYTES = 2**30, 8 * 2**30
"""Default limits of the memory for a batch's keys and values."""
CPU_MAX_BATCH_TOKENS, GPU_MAX_BATCH_TOKENS = 2**16, 2**20
"""Default limits of the tokens of a batch, however small the model."""
BATCHES_AT_ONCE = 8
"""Batches whose completions `generate` samples together where the engine refills places: its longest row waits alone
once in so many batches."""
_STAND_IN = "0completion0"
_GENERATE = "{% set add_generation_prompt = true %}{% set enable_thinking = false %}\n"
"""Prepended to a chat template so that it opens the assistant's turn, and omits thinking where it can."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings. The temperature applies first, then top-k, then top-p among the tokens that top-k left."""

    temperature: float = 1.0
    """At least 0; 0 = greedy."""
    top_p: float = 1.0
    """In (0, 1]; 1 = off."""
    top_k: int = 0
    """At least 0; 0 = off."""
    max_new_tokens: int = 2048
    """At least 1."""


class SampledTokens(NamedTuple):
    """The tokens of one sampled completion, with their log-probabilities."""

    ids: tuple[int, ...]
    """Token ids, with the end of turn where it was sampled."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under softmax(logits / temperature), before top-k and top-p; at temperature 0 under
    softmax(logits)."""


OnFinished = Callable[[int, SampledTokens], None]
"""Called with the index of a prompt and its completion when that is finished, while others are still being sampled."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The completion of one prompt."""

    text: str
    """Its text, without special tokens."""
    tokens: int
    """Number of generated tokens, with the end of turn."""
    finish: str
    """`stop`, `length` (cut), or empty when nothing was generated: see `refused`."""
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Log-probabilities of the sampled tokens, as in `SampledTokens`."""
    refused: str = ""
    """Why nothing was generated: the prompt fills the context. A prompt is never cut."""


class Sampler(Protocol):
    """An engine that samples completions."""

    tokenizer: Any
    max_tokens: int | None
    """Most tokens of prompt and completion together; None = no limit known."""

    @property
    def stops(self) -> frozenset[int]:
        """Token ids that end a completion, from the model's own files."""

    @property
    def batch_tokens(self) -> int:
        """Default size of a batch in tokens of prompts and completions."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[SampledTokens]:
        """Sample one completion for each prompt, of at most `limits[i]` tokens, in one batch."""


@runtime_checkable
class ContinuousSampler(Sampler, Protocol):
    """A sampler that takes the prompts of many batches at once, and begins one when another is finished."""

    def sample_continuously(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
        cache_tokens: int | None,
        on_finished: OnFinished,
    ) -> None:
        """Sample as `sample` does, and report each completion.

        Args:
            prompts: Token ids of each prompt.
            limits: Most tokens of each completion.
            seeds: Seed of each completion.
            sampling: Sampling settings.
            stops: Token ids that end a completion.
            cache_tokens: Most tokens of prompts and completions in memory; None = the engine's default.
            on_finished: Called with each completion.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """A completion to be sampled."""

    prompt: Sequence[int]
    limit: int
    seed: int


def sample_batches(
    engine: Sampler,
    requests: Sequence[Request],
    batches: Sequence[Sequence[int]],
    sampling: Sampling,
    stops: Collection[int],
    batch_tokens: int | None,
    on_finished: OnFinished,
) -> None:
    """Sample batches of completions, all together where the engine can begin one when another ends.

    Args:
        engine: The engine that samples.
        requests: The completions to be sampled.
        batches: Indices of the requests of each batch.
        sampling: The sampling settings.
        stops: Token ids that end a completion.
        batch_tokens: Most tokens in memory at the same time; None = the engine's default.
        on_finished: Called with the index of a request and its completion.
    """
    together = [[i for batch in batches for i in batch]] if isinstance(engine, ContinuousSampler) else batches
    for batch in together:
        chosen = [requests[i] for i in batch]
        inputs = [r.prompt for r in chosen], [r.limit for r in chosen], [r.seed for r in chosen], sampling, stops
        if isinstance(engine, ContinuousSampler):
            engine.sample_continuously(*inputs, batch_tokens, lambda k, tokens: on_finished(together[0][k], tokens))
        else:
            for i, tokens in zip(batch, engine.sample(*inputs), strict=True):
                on_finished(i, tokens)


def generate(
    engine: Sampler,
    prompts: Sequence[str],
    sampling: Sampling,
    seeds: Sequence[int],
    batch_tokens: int | None = None,
    stops: Collection[int] = (),
) -> Iterator[Completion]:
    """Yield one completion for each rendered prompt, in order, sampled in batches of similar length.

    A prompt and its seed give the same completion in any batch, up to rounding: two tokens whose scores agree to seven
    digits may be exchanged.

    Args:
        engine: The engine that samples.
        prompts: The rendered prompts.
        sampling: The sampling settings.
        seeds: Seed of each completion.
        batch_tokens: Most tokens of a batch, counting for each row its prompt and longest completion; None = the
            engine's default.
        stops: Token ids that end a completion besides the engine's own, such as `end_of_turn` for chat.
    """
    ids = token_ids(engine.tokenizer, prompts)
    room = [
        sampling.max_new_tokens if r is None else min(r, sampling.max_new_tokens)
        for r in remaining_context(engine, ids)
    ]
    costs = [len(i) + r if r > 0 else 0 for i, r in zip(ids, room, strict=True)]
    batches = token_batches(costs, budget(engine, batch_tokens))
    stop_ids = engine.stops | frozenset(stops)
    requests = [Request(*fields) for fields in zip(ids, room, seeds, strict=True)]
    completions: dict[int, Completion] = {}

    def finish(i: int, tokens: SampledTokens) -> None:
        completions[i] = decode_completion(engine.tokenizer, tokens, stop_ids)

    next_index = 0
    for start in range(0, len(batches), BATCHES_AT_ONCE):
        group = batches[start : start + BATCHES_AT_ONCE]
        completions |= {
            i: Completion("", 0, "", refused=f"{len(ids[i])} tokens of prompt fill the context")
            for batch in group
            for i in batch
            if room[i] < 1
        }
        sampled = [batch for batch in group if room[batch[0]] > 0]  # refused prompts have batches of their own
        sample_batches(engine, requests, sampled, sampling, stop_ids, batch_tokens, finish)
        while next_index in completions:
            yield completions.pop(next_index)
            next_index += 1


def decode_completion(tokenizer: PreTrainedTokenizerBase, sampled: SampledTokens, stops: Collection[int]) -> Completion:
    """Decode a sampled completion. Tokenising its text again may give other ids: see completion_encoding.py."""
    stopped = sampled.ids[-1] in stops
    text = tokenizer.decode(
        list(sampled.ids[:-1] if stopped else sampled.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return Completion(str(text), len(sampled.ids), "stop" if stopped else "length", *sampled)


def remaining_context(engine: Sampler, ids: Sequence[Sequence[int]]) -> list[int | None]:
    """Return the tokens that each prompt leaves for its completion; None = no limit known, <= 0 = prompt too long."""
    return [None if engine.max_tokens is None else engine.max_tokens - len(prompt) for prompt in ids]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of rendered texts without adding special tokens. Raises UserError where a text has none."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    if not all(ids):
        raise UserError("a prompt gives no token; use --template auto, or a template that opens with some text")
    return ids


def budget(engine: Sampler, batch_tokens: int | None) -> int:
    """Return the most tokens of a batch: `batch_tokens`, or the engine's default."""
    return batch_tokens or engine.batch_tokens


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str | None = None) -> str:
    """Return the prompt rendered as a user turn up to where the assistant begins.

    For a template that ignores add_generation_prompt this includes what it writes before an assistant's turn.

    Args:
        tokenizer: The tokenizer.
        prompt: The user's text.
        template: Chat template, as `encoding.encode_chat` takes it.
    """
    user = {"role": "user", "content": prompt}
    turns = [user, {"role": "assistant", "content": _STAND_IN}]
    if template == PLAIN:
        return render(tokenizer, turns, PLAIN).removesuffix(_STAND_IN)
    without_opening = render(tokenizer, [user], template)
    with_opening = render(tokenizer, [user], _GENERATE + (template or str(tokenizer.get_chat_template())))
    if with_opening != without_opening:
        return with_opening
    before, separator, _ = render(tokenizer, turns, template).rpartition(_STAND_IN)
    return before.rstrip(" ") if separator else without_opening


def end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> frozenset[int]:
    """Return the id of the token that closes an assistant's turn, as in training; empty when there is none."""
    open_, closed = (encode_completion(tokenizer, "0", _STAND_IN, template, finished) for finished in (False, True))
    return frozenset(closed.ids[-1:]) if len(closed.ids) > len(open_.ids) else frozenset()
