"""Chat with a model: requests, answers, and the probability of one word of an answer against another.

`LocalChat` runs an engine of this process; `HttpChat` in openai.py asks a server.
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
from prmbench.core.token_batches import token_batches
from prmbench.engines import Reader
from prmbench.engines.encoding import PLAIN, Encoded, bare_ids, render
from prmbench.engines.generation import Completion, Sampler, Sampling, end_of_turn, generate, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = tuple[dict[str, str], ...]
"""The turns of a conversation, each with `role` and `content`."""
_GENERATE = "{% set add_generation_prompt = true %}\n"
"""Prepended to a chat template so that it opens the assistant's turn. Thinking stays as the template sets it."""
_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
"""Matches a prompt in which the template opened the thought, so that the answer holds at most its closing tag."""
_READ_TOKENS = 2**14
"""Most padded tokens of the rows whose words are read in one forward pass."""
_MAX_GAP = 700.0
"""Largest difference of two log-probabilities in nats: beyond it exp overflows, and a probability is 0."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to be answered, with the seed of its sampling."""

    messages: Messages
    seed: int = 0


class WordComparison(NamedTuple):
    """Two words whose probabilities are compared at a place in the answer."""

    words: tuple[str, str]
    """The good word and the bad word."""
    find: Callable[[str], tuple[int, int] | None]
    """Returns the start and end in an answer's text of the one word that it holds; None when it holds neither."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one conversation, or the reason why there is none."""

    text: str = ""
    """The answer, preceded by the model's thought in `<think>` tags; the tag stays open where no answer follows."""
    finish: str = ""
    """`stop`, `length` (cut), or empty when nothing was generated."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    good_probability: float | None = None
    """P(good word) / (P(good) + P(bad)) at temperature 1, in [0, 1]; None when neither word was found or compared."""
    refused: str = ""
    """Why the conversation was not answered at all, as when it does not fit the context."""
    unreadable: str = ""
    """Why an answer that came cannot be used: it is malformed, empty, or was withheld by a filter."""
    changes: tuple[str, ...] = ()
    """How the request was changed after the server refused parameters, e.g. `temperature left out`."""


class Chat(Protocol):
    """A model that answers conversations. Thread-safe only where its engine is."""

    def answer(
        self, requests: Sequence[ChatRequest], sampling: Sampling, comparison: WordComparison | None = None
    ) -> list[Answer]:
        """Return one answer for each conversation, in order."""

    def choose_word(self, requests: Sequence[ChatRequest], words: tuple[str, str]) -> list[Answer]:
        """Return answers without text that hold the probability of `words[0]` against `words[1]` as the first word.

        Both words count in lower case and capitalised.
        """

    def prompt_tokens(self, messages: Messages) -> int:
        """Return the number of tokens of a conversation; an upper bound where only the server has the tokenizer."""


class LocalEngine(Sampler, Reader, Protocol):
    """An engine that generates completions and scores tokens."""


class _Continuations(NamedTuple):
    """Continuations of one prefix, in tokens, whose probabilities are compared."""

    prefix: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def longest(self) -> int:
        """Tokens of the prefix with its longest continuation."""
        return len(self.prefix) + max(map(len, self.continuations))


@dataclass(frozen=True, slots=True)
class LocalChat:
    """Chat with an engine in this process."""

    engine: LocalEngine
    template: str | None = None
    """Chat template, as `encoding.encode_chat` takes it."""
    opening: str = ""
    """Text put after the generation prompt, with which every answer begins; not part of `Answer.text`."""

    def prompt_tokens(self, messages: Messages) -> int:
        """Return the number of tokens of the rendered conversation."""
        return len(token_ids(self.engine.tokenizer, [self.text(messages)])[0])

    def text(self, messages: Messages) -> str:
        """Return the rendered conversation up to where the answer begins."""
        return render_chat(self.engine.tokenizer, messages, self.template) + self.opening

    def answer(
        self, requests: Sequence[ChatRequest], sampling: Sampling, comparison: WordComparison | None = None
    ) -> list[Answer]:
        """Return one answer for each conversation, in order, generated in batches of the engine's size."""
        prompts = [self.text(request.messages) for request in requests]
        ids = token_ids(self.engine.tokenizer, prompts)
        stops = end_of_turn(self.engine.tokenizer, self.template)
        completions = generate(self.engine, prompts, sampling, [request.seed for request in requests], stops=stops)
        answers: list[Answer] = []
        compared: dict[int, tuple[_Continuations, bool]] = {}
        for text, prompt, completion in zip(prompts, ids, completions, strict=True):
            open_thought = "<think>\n" if _OPEN_THOUGHT.search(text) and not completion.refused else ""
            answer = Answer(
                open_thought + completion.text,
                completion.finish,
                len(prompt),
                completion.tokens,
                refused=completion.refused,
            )
            if comparison is not None and not completion.refused:
                found = self._find_word(prompt, completion, comparison, open_thought)
                if found is not None:
                    compared[len(answers)] = found
            answers.append(answer)
        logprobs = self._logprobs([case for case, _ in compared.values()])
        for (i, (_, is_good)), pair in zip(compared.items(), logprobs, strict=True):
            if pair is not None:
                probability = two_way_softmax(*(pair if is_good else pair[::-1]))
                answers[i] = replace(answers[i], good_probability=probability)
        return answers

    def choose_word(self, requests: Sequence[ChatRequest], words: tuple[str, str]) -> list[Answer]:
        """Return the probability of the first word against the second, each in lower case and capitalised."""
        answers, tokenizer = [], self.engine.tokenizer
        texts = [render_chat(tokenizer, request.messages, self.template) for request in requests]
        prompts = token_ids(tokenizer, texts)
        forms = [bare_ids(tokenizer, form) for word in words for form in (word, word.capitalize())]
        read = self._logprobs([_Continuations(prompt, forms) for prompt in prompts])
        for prompt, logprobs in zip(prompts, read, strict=True):
            probability = (
                None if logprobs is None else two_way_softmax(_log_sum_exp(logprobs[:2]), _log_sum_exp(logprobs[2:]))
            )
            refused = "" if logprobs is not None else f"{len(prompt)} tokens of prompt fill the context"
            answers.append(
                Answer(prompt_tokens=len(prompt), completion_tokens=1, good_probability=probability, refused=refused)
            )
        return answers

    def _find_word(
        self, prompt: Sequence[int], completion: Completion, comparison: WordComparison, open_thought: str
    ) -> tuple[_Continuations, bool] | None:
        """Return the word in the answer and the other word in its place, after one prefix, and whether it is the good.

        None where the answer holds no such word.

        `open_thought` is the opening tag that stands in the prompt but belongs to the answer's text.
        """
        match = comparison.find(open_thought + completion.text)
        if match is None:
            return None
        span = match[0] - len(open_thought), match[1] - len(open_thought)
        start, written, other = swap_word(self.engine.tokenizer, completion, span, comparison.words)
        is_good = completion.text[slice(*span)].lower() == comparison.words[0].lower()
        return _Continuations([*prompt, *completion.ids[:start]], [written, other]), is_good

    def _logprobs(self, cases: Sequence[_Continuations]) -> list[list[float] | None]:
        """Return log P(continuation | prefix) of each case's continuations; None where one does not fit the context.

        The rows of all cases share forward passes.
        """
        limit = self.engine.max_tokens
        rows = [
            Encoded(str(i), (*case.prefix, *words), len(case.prefix), (len(case.prefix) + len(words),))
            for i, case in enumerate(cases)
            if limit is None or case.longest <= limit
            for words in case.continuations
        ]
        sums = np.zeros(len(rows))
        for batch in token_batches([len(row.ids) for row in rows], min(self.engine.batch_tokens, _READ_TOKENS)):
            for i, out in zip(batch, self.engine.logprobs([rows[i] for i in batch]), strict=True):
                sums[i] = out.logprobs.astype(np.float64).sum()
        logprobs: dict[str, list[float]] = {}
        for row, total in zip(rows, sums.tolist(), strict=True):
            logprobs.setdefault(row.id, []).append(total)
        return [logprobs.get(str(i)) for i in range(len(cases))]


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, template: str | None) -> str:
    """Return the text of a conversation up to where the assistant answers.

    For a template that ignores add_generation_prompt this includes what it writes before an assistant's turn.

    Raises:
        UserError: There is no template, or it cannot render the conversation.
    """
    turns = list(messages)
    if template == PLAIN:
        return render(tokenizer, turns, PLAIN) + "\n\n"
    without_opening = render(tokenizer, turns, template)
    source = template or str(tokenizer.get_chat_template())
    with_opening = render(tokenizer, turns, _GENERATE + source)
    if with_opening != without_opening:
        return with_opening
    stand_in = "0answer0"
    rendered = render(tokenizer, [*turns, {"role": "assistant", "content": stand_in}], template)
    before, separator, _ = rendered.rpartition(stand_in)
    if not separator:
        raise UserError("the chat template drops an assistant's turn; pass --template plain or --template FILE")
    return before.rstrip(" ")


def swap_word(
    tokenizer: PreTrainedTokenizerBase, completion: Completion, span: tuple[int, int], words: tuple[str, str]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Tokenise the other of two words in the place of the one that a completion holds.

    Characters that share tokens with the word, such as a brace, stay. The other word takes the case of the first.

    Args:
        tokenizer: The tokenizer of the model that wrote the completion.
        completion: The completion.
        span: Start and end of the word in `completion.text`.
        words: The two words.

    Returns:
        The index in `completion.ids` at which the word's tokens begin, these tokens, and those of the other word.
    """
    start = _tokens_until(tokenizer, completion.ids, span[0] + 1) - 1
    end = _tokens_until(tokenizer, completion.ids, span[1])
    text_start, text_end = (len(_decode(tokenizer, completion.ids[:k])) for k in (start, end))
    lead, word, trail = (
        completion.text[text_start : span[0]],
        completion.text[slice(*span)],
        completion.text[span[1] : text_end],
    )
    piece = lead + other_word(word, words) + trail
    return start, completion.ids[start:end], _continuation_ids(tokenizer, completion.text[:text_start], piece)


def _continuation_ids(tokenizer: PreTrainedTokenizerBase, before: str, piece: str) -> tuple[int, ...]:
    """Tokenise a piece of text that follows `before`, whose own tokens stay as they are.

    Where the piece would merge with the text before it, its tokens after a neutral character are used instead.
    """
    for anchor in (before, "\n", ":", "("):
        anchor_ids, joined_ids = bare_ids(tokenizer, anchor), bare_ids(tokenizer, anchor + piece)
        if joined_ids[: len(anchor_ids)] == anchor_ids:
            return joined_ids[len(anchor_ids) :]
    return bare_ids(tokenizer, piece)


def other_word(word: str, words: tuple[str, str]) -> str:
    """Return the other of two words, in the case of `word`."""
    other = words[1] if word.lower() == words[0].lower() else words[0]
    return other.lower() if word.islower() else other.upper() if word.isupper() else other


def _tokens_until(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], characters: int) -> int:
    """Return how many leading tokens decode to at least `characters` characters."""
    counts = range(len(ids) + 1)
    return bisect_left(counts, characters, key=lambda k: len(_decode(tokenizer, ids[:k])))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode ids as generation.py decodes completions."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def two_way_softmax(good: float, bad: float) -> float:
    """Return the softmax of two log-probabilities at the first: exp(good) / (exp(good) + exp(bad))."""
    gap = min(max(bad - good, -_MAX_GAP), _MAX_GAP)
    return 1 / (1 + math.exp(gap))


def _log_sum_exp(logprobs: Sequence[float]) -> float:
    """Return the log of a sum of probabilities; -inf for an empty sequence."""
    top = max(logprobs, default=-math.inf)
    return top if math.isinf(top) else top + math.log(sum(math.exp(x - top) for x in logprobs))
