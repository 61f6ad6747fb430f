"""Completions of prompts: how they are drawn, the text a prompt is rendered to, and batches by token budget.

An engine draws one batch at a time (decoding.py for transformers); answers are not looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prmbench.core.records import UserError
from prmbench.engines.completion_encoding import encode_completion
from prmbench.engines.encoding import PLAIN, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prmbench.engines.decoding import Drawn

CPU_CACHE_BYTES, GPU_CACHE_BYTES = 2**30, 8 * 2**30
"""What a batch's keys and values may take, by default."""
CPU_MOST_TOKENS, GPU_MOST_TOKENS = 2**16, 2**20
"""A batch holds no more tokens than this by default, however small the model."""
_STAND_IN = "0completion0"
_GENERATE = "{% set add_generation_prompt = true %}{% set enable_thinking = false %}\n"
"""Put before a template: it then opens the assistant's turn, and does not ask for thinking where it can leave that."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature first, then top-k, then top-p among what top-k left."""

    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    max_new_tokens: int = 2048

    def __post_init__(self) -> None:
        """Raises UserError on a value that draws nothing."""
        for option, good, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top-p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("top-k", self.top_k >= 0, "0 (off) or more"),
            ("max-new-tokens", self.max_new_tokens >= 1, "at least 1"),
        ):
            if not good:
                value = getattr(self, option.replace("-", "_"))
                raise UserError(f"--{option} is {value}; expected {expected}")


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine said to one prompt."""

    text: str
    """Without the special tokens that `ids` may hold."""
    tokens: int
    """Generated ones, end of turn included."""
    finish: str
    """`stop`, `length` (cut), or empty when nothing was drawn: see `refused`."""
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """As drawn: see decoding.Drawn."""
    refused: str = ""
    """Why nothing was drawn: the prompt leaves no room. A prompt is never cut."""


class Sampler(Protocol):
    """What an engine that can generate offers."""

    tokenizer: Any
    max_tokens: int | None
    """Prompt and completion together; None = no limit known."""

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end a completion, as the model's own files say."""

    @property
    def batch_tokens(self) -> int:
        """Tokens, prompts and completions together, that a batch holds by default."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[Drawn]:
        """One completion a prompt, of at most `limits[i]` tokens, in one batch."""


def generate(
    engine: Sampler,
    prompts: Sequence[str],
    sampling: Sampling,
    seeds: Sequence[int],
    batch_tokens: int | None = None,
    stops: Collection[int] = (),
) -> Iterator[Completion]:
    """One completion for each rendered prompt, in order, drawn with its own seed, in batches of similar length.

    A prompt and its seed give the same completion in whatever company they come, but for the last bits of a sum: two
    tokens whose scores agree to seven digits may change places. `stops` are ended by besides the engine's own:
    `end_of_turn` for chat. `batch_tokens` bounds prompt and longest completion over a batch (default: engine's).
    """
    ids = token_ids(engine.tokenizer, prompts)
    room = [sampling.max_new_tokens if r is None else min(r, sampling.max_new_tokens) for r in rooms(engine, ids)]
    batches = plan([len(i) + r if r > 0 else 0 for i, r in zip(ids, room, strict=True)], budget(engine, batch_tokens))
    ending = engine.stops | frozenset(stops)
    found: dict[int, Completion] = {}
    at = 0
    for batch in batches:
        if room[batch[0]] < 1:
            found |= {
                i: Completion("", 0, "", refused=f"{len(ids[i])} tokens of prompt fill the context") for i in batch
            }
        else:
            drawn = engine.sample(
                [ids[i] for i in batch], [room[i] for i in batch], [seeds[i] for i in batch], sampling, ending
            )
            found |= {i: completion(engine.tokenizer, d, ending) for i, d in zip(batch, drawn, strict=True)}
        while at in found:
            yield found.pop(at)
            at += 1


def completion(tokenizer: PreTrainedTokenizerBase, drawn: Drawn, stops: Collection[int]) -> Completion:
    """What was drawn, as text. Tokenised again, the text may give other ids: see completion_encoding.py."""
    stopped = drawn.ids[-1] in stops
    text = tokenizer.decode(
        list(drawn.ids[:-1] if stopped else drawn.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return Completion(str(text), len(drawn.ids), "stop" if stopped else "length", *drawn)


def rooms(engine: Sampler, ids: Sequence[Sequence[int]]) -> list[int | None]:
    """Tokens that each prompt leaves for its completion; None = no limit known. 0 or less: the prompt is too long."""
    return [None if engine.max_tokens is None else engine.max_tokens - len(prompt) for prompt in ids]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of rendered texts, which carry their own special tokens. Raises UserError where a text has none."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    if not all(found):
        raise UserError("a prompt gives no token; use --template auto, or a template that opens with some text")
    return found


def budget(engine: Sampler, batch_tokens: int | None) -> int:
    """Tokens a batch may hold: what was asked for, or the engine's default."""
    if batch_tokens is not None and batch_tokens < 1:
        raise UserError(f"--batch-tokens is {batch_tokens}; expected at least 1")
    return batch_tokens or engine.batch_tokens


def plan(costs: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Batches of indices, longest first, each of at most `most` padded tokens; what costs 0 has a batch of its own."""
    batches: list[list[int]] = []
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        widest = costs[batches[-1][0]] if batches else 0
        fits = (len(batches[-1]) + 1) * widest <= most if batches else False
        if batches and fits and bool(costs[i]) == bool(widest):
            batches[-1].append(i)
        else:
            batches.append([i])
    return [tuple(batch) for batch in batches]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str | None = None) -> str:
    """The prompt as a user's turn, up to where the assistant begins. `template` as in encoding.py.

    Where a template takes no notice of add_generation_prompt, what it writes before an assistant's turn is used.
    """
    user = {"role": "user", "content": prompt}
    said = [user, {"role": "assistant", "content": _STAND_IN}]
    if template == PLAIN:
        return render(tokenizer, said, PLAIN).removesuffix(_STAND_IN)
    bare = render(tokenizer, [user], template)
    opened = render(tokenizer, [user], _GENERATE + (template or str(tokenizer.get_chat_template())))
    if opened != bare:
        return opened
    before, found, _ = render(tokenizer, said, template).rpartition(_STAND_IN)
    return before.rstrip(" ") if found else bare


def end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> frozenset[int]:
    """The token that closes an assistant's turn, as training puts it behind a completion; empty where there is none."""
    cut, whole = (encode_completion(tokenizer, "0", _STAND_IN, template, finished) for finished in (False, True))
    return frozenset(whole.ids[-1:]) if len(whole.ids) > len(cut.ids) else frozenset()
