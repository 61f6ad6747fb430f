"""Chat with a model: conversations in, answers out, and how likely one of two words was. What is asked is a backend's.

Engines in this process come here as LocalChat; a server over HTTP is openai.py's.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from prmbench.core.records import UserError
from prmbench.engines import Reader
from prmbench.engines.encoding import PLAIN, Encoded, bare_ids, render
from prmbench.engines.generation import Completion, Sampler, Sampling, end_of_turn, generate, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = tuple[dict[str, str], ...]
"""Turns with `role` and `content`."""
_GENERATE = "{% set add_generation_prompt = true %}\n"
"""Put before a template: it then opens the assistant's turn. Thinking is left as the template has it."""
_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
"""At the end of a prompt: the template opened the thought, and the answer holds only its end, if that."""
_FAR = 700.0
"""Nats beyond which exp overflows, or a share is 0."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A conversation that wants an answer."""

    messages: Messages
    seed: int = 0


class Weighing(NamedTuple):
    """A word of an answer that is weighed against another one."""

    words: tuple[str, str]
    """The good and the bad one."""
    find: Callable[[str], tuple[int, int] | None]
    """Where in an answer one of them stands (start and end); None = nowhere."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    text: str = ""
    """With the model's thought in front, in `<think>` tags; left open where no answer came behind it."""
    finish: str = ""
    """`stop`, `length` (cut), or empty when nothing came."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    share: float | None = None
    """P(good word) / (P(good) + P(bad)) where it was to be weighed, by the model's plain softmax; None = not found."""
    refused: str = ""
    """Why the conversation could not be taken at all: it does not fit the context."""
    lost: str = ""
    """Why nothing can be read although there was an answer: it was malformed, or held back."""
    changes: tuple[str, ...] = ()
    """What a server's refusals changed in the request: `temperature left out`."""


class Chat(Protocol):
    """A model that answers. Safe to be called from several threads only where its engine is."""

    def answer(self, asks: Sequence[Ask], sampling: Sampling, weighing: Weighing | None = None) -> list[Answer]:
        """One answer for each conversation, in order."""

    def choose(self, asks: Sequence[Ask], words: tuple[str, str]) -> list[Answer]:
        """Without a text: only the share of the first word, in lower case or capitalised, as the answer's first one."""

    def prompt_tokens(self, messages: Messages) -> int:
        """Tokens that the conversation takes; an upper bound where the tokenizer is elsewhere."""


class LocalEngine(Sampler, Reader, Protocol):
    """An engine that writes and reads."""


@dataclass(frozen=True, slots=True)
class LocalChat:
    """Chat with an engine in this process."""

    engine: LocalEngine
    template: str | None = None
    """As in encoding.py."""
    opening: str = ""
    """What every answer begins with, behind the generation prompt; not part of `Answer.text`."""

    def prompt_tokens(self, messages: Messages) -> int:
        """Tokens of the rendered conversation."""
        return len(token_ids(self.engine.tokenizer, [self.text(messages)])[0])

    def text(self, messages: Messages) -> str:
        """The conversation up to where the answer begins."""
        return render_chat(self.engine.tokenizer, messages, self.template) + self.opening

    def answer(self, asks: Sequence[Ask], sampling: Sampling, weighing: Weighing | None = None) -> list[Answer]:
        """One answer for each conversation, in order, in batches of the engine's size."""
        prompts = [self.text(ask.messages) for ask in asks]
        ids = token_ids(self.engine.tokenizer, prompts)
        stops = end_of_turn(self.engine.tokenizer, self.template)
        drawn = generate(self.engine, prompts, sampling, [ask.seed for ask in asks], stops=stops)
        found = []
        for text, prompt, said in zip(prompts, ids, drawn, strict=True):
            thought = "<think>\n" if _OPEN_THOUGHT.search(text) and not said.refused else ""
            answer = Answer(thought + said.text, said.finish, len(prompt), said.tokens, refused=said.refused)
            if weighing is not None and not said.refused:
                answer = replace(answer, share=self._weigh(prompt, said, weighing, thought))
            found.append(answer)
        return found

    def choose(self, asks: Sequence[Ask], words: tuple[str, str]) -> list[Answer]:
        """The share of the first word; both ways to write each are put behind the prompt and read."""
        found, tokenizer = [], self.engine.tokenizer
        for ask in asks:
            (prompt,) = token_ids(tokenizer, [render_chat(tokenizer, ask.messages, self.template)])
            tails = [bare_ids(tokenizer, form) for word in words for form in (word, word.capitalize())]
            read = self._logprobs(prompt, tails)
            likely = None if read is None else share(_sum(read[:2]), _sum(read[2:]))
            refused = "" if read is not None else f"{len(prompt)} tokens of prompt fill the context"
            found.append(Answer(prompt_tokens=len(prompt), completion_tokens=1, share=likely, refused=refused))
        return found

    def _weigh(self, prompt: Sequence[int], said: Completion, weighing: Weighing, thought: str) -> float | None:
        """The word as drawn against the other one in its place: two readings of the same prefix.

        `thought`: what the prompt ends with and the answer is to be read with.
        """
        found = weighing.find(thought + said.text)
        if found is None:
            return None
        span = found[0] - len(thought), found[1] - len(thought)
        at, own, other = swapped(self.engine.tokenizer, said, span, weighing.words)
        read = self._logprobs([*prompt, *said.ids[:at]], [own, other])
        if read is None:
            return None
        good = said.text[slice(*span)].lower() == weighing.words[0].lower()
        return share(*(read if good else read[::-1]))

    def _logprobs(self, prefix: Sequence[int], tails: Sequence[Sequence[int]]) -> list[float] | None:
        """Log P(tail | prefix) of each tail; None where one does not fit the context."""
        start = len(prefix)
        longest = start + max(map(len, tails))
        if self.engine.max_tokens is not None and longest > self.engine.max_tokens:
            return None
        rows = [Encoded(str(i), (*prefix, *tail), start, (start + len(tail),)) for i, tail in enumerate(tails)]
        return [float(row.logprobs.astype(np.float64).sum()) for row in self.engine.logprobs(rows)]


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, template: str | None) -> str:
    """The text of a conversation up to where the assistant answers. Raises UserError when there is no template.

    A template that takes no notice of add_generation_prompt gives what it writes before an assistant's turn.
    """
    listed = list(messages)
    if template == PLAIN:
        return render(tokenizer, listed, PLAIN) + "\n\n"
    bare = render(tokenizer, listed, template)
    source = template or str(tokenizer.get_chat_template())
    opened = render(tokenizer, listed, _GENERATE + source)
    if opened != bare:
        return opened
    stand_in = "0answer0"
    whole = render(tokenizer, [*listed, {"role": "assistant", "content": stand_in}], template)
    before, found, _ = whole.rpartition(stand_in)
    if not found:
        raise UserError("the chat template drops an assistant's turn; pass --template plain or --template FILE")
    return before.rstrip(" ")


def swapped(
    tokenizer: PreTrainedTokenizerBase, said: Completion, span: tuple[int, int], words: tuple[str, str]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where in `said.ids` the word at `span` begins, its tokens, and those of the other word in its place.

    Whatever else its tokens hold (a brace, say) stays. The other word is spelled like the one found.
    """
    at = _token(tokenizer, said.ids, span[0] + 1) - 1
    end = _token(tokenizer, said.ids, span[1])
    begin, stop = (len(_decoded(tokenizer, said.ids[:k])) for k in (at, end))
    lead, word, trail = said.text[begin : span[0]], said.text[slice(*span)], said.text[span[1] : stop]
    piece = lead + other_word(word, words) + trail
    return at, said.ids[at:end], _continued(tokenizer, said.text[:begin], piece)


def _continued(tokenizer: PreTrainedTokenizerBase, before: str, piece: str) -> tuple[int, ...]:
    """The tokens of a piece of text that goes on from `before`, whose tokens stay as they are.

    Where the piece would merge with what is before it, its tokens behind something else are taken.
    """
    for anchor in (before, "\n", ":", "("):
        behind, both = bare_ids(tokenizer, anchor), bare_ids(tokenizer, anchor + piece)
        if both[: len(behind)] == behind:
            return both[len(behind) :]
    return bare_ids(tokenizer, piece)


def other_word(word: str, words: tuple[str, str]) -> str:
    """The other of two words, in the case of the one found."""
    other = words[1] if word.lower() == words[0].lower() else words[0]
    return other.lower() if word.islower() else other.upper() if word.isupper() else other


def _token(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], characters: int) -> int:
    """How many tokens it takes until so many characters are there."""
    counts = range(len(ids) + 1)
    return bisect_left(counts, characters, key=lambda k: len(_decoded(tokenizer, ids[:k])))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """As generation.py decodes completions."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def share(good: float, bad: float) -> float:
    """Softmax of two log-probabilities, at the first."""
    gap = min(max(bad - good, -_FAR), _FAR)
    return 1 / (1 + math.exp(gap))


def _sum(logprobs: Sequence[float]) -> float:
    """Log of the sum of probabilities; -inf of none."""
    top = max(logprobs, default=-math.inf)
    return top if math.isinf(top) else top + math.log(sum(math.exp(x - top) for x in logprobs))
