"""Reads a chat completion: the answer with its thought, the token usage, and the log-probabilities of words.

Pure functions of a server's response body, in which every value is checked before use.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prmbench.core.redaction import scrub
from prmbench.engines.chat import Answer, WordComparison, other_word, two_way_softmax
from prmbench.engines.http_errors import clip

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "reasoning_details")
"""Fields of a message in which servers put a model's thought, separate from its answer."""
_ANSWER_PARTS = ("text", "output_text")
_THOUGHT_PART = re.compile(r"think|thought|reason|summary")
"""Matches the type of a part that holds a thought, or, in a part without a type, its keys."""
_TEXT_KEYS = ("text", "value", "thinking", "reasoning", "reasoning_content", "thought", "summary", "content")
"""Keys under which a part of a message holds its text or further parts."""
_MAX_DEPTH = 8
"""Levels of nested parts that are read."""
_LENGTH_REASON = re.compile(r"(?i)length|max_?(new_|output_|completion_)?tokens")
"""Matches a `finish_reason` that says that an answer reached its length limit."""
_THOUGHT_TAG = re.compile(r"(?i)</?\s*(?:think|thinking|thought|reasoning)\s*>|\[/?think\]")
"""Tags that some servers leave in a thought that has a field of its own."""
_MIN_LOGPROB, _MAX_LOGPROB = -1e4, 0.01
"""Bounds of a log-probability: servers write -9999 for tokens that they cut off, and rounding may exceed 0."""


def read_answer(body: Mapping[str, Any], usage: tuple[int, int]) -> Answer:
    """Return the first choice of a chat completion as an answer.

    The thought precedes the answer in `<think>` tags, wherever the server puts it. A thought without an answer keeps
    its tag open, like one that was cut: it is stored, but no verdict is read from it. Unpaired surrogates, which no
    file can hold, become U+FFFD.

    Args:
        body: The response body.
        usage: Its prompt and answer tokens.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = _answer_and_thought(message.get("content"))
        fields = ("".join(_texts_in(message.get(name))) for name in THOUGHT_FIELDS)
        separate_thought = next((text for text in fields if text.strip()), "")
    except (LookupError, TypeError, AttributeError):
        return Answer("", "", *usage, unreadable="malformed answer: no choice in it")
    if content is None:
        return Answer("", "", *usage, unreadable="malformed answer: its content is no text")
    answer, thought = content[0], _THOUGHT_TAG.sub("", separate_thought or content[1])
    thought_text = f"<think>\n{thought}" if thought.strip() else ""
    text = f"{thought_text}\n</think>\n{answer}" if thought_text and answer.strip() else thought_text or answer
    finish = "length" if _LENGTH_REASON.search(str(choice.get("finish_reason"))) else "stop"
    unreadable = "" if text.strip() else _why_empty(choice, message)
    return Answer(scrub(repair_surrogates(text)), finish, *usage, unreadable=unreadable)


def repair_surrogates(text: str) -> str:
    """Return a text with adjacent surrogate halves joined and unpaired ones replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _why_empty(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return f"the model refuses: {clip(refusal)}"
    return "held back by a content filter" if choice.get("finish_reason") == "content_filter" else "empty answer"


def _answer_and_thought(content: Any) -> tuple[str, str] | None:
    """Return the answer and the thought in a message's content, which is a text or parts; None when it is neither."""
    if content is None or isinstance(content, str):
        return content or "", ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    thought = (text for part in parts if _is_thought(part) for text in _texts_in(part))
    answer = (text for part in parts if _is_answer(part) for text in _texts_in(part))
    return "".join(answer), "".join(thought)


def _is_thought(part: Mapping[str, Any]) -> bool:
    """Return whether a part holds a thought, by its `thought` flag, its type or, without a type, its keys."""
    kind = part.get("type") or " ".join(key for key in part if "text" not in part)
    return part.get("thought") is True or bool(_THOUGHT_PART.search(str(kind).lower()))


def _is_answer(part: Mapping[str, Any]) -> bool:
    return not _is_thought(part) and str(part.get("type") or "text").lower() in _ANSWER_PARTS


def _texts_in(part: Any, depth: int = _MAX_DEPTH) -> Iterator[str]:
    """Yield every text of a part, in order."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list) and depth:
        for inner in part:
            yield from _texts_in(inner, depth - 1)
    elif isinstance(part, dict) and depth:
        value = next((part[key] for key in _TEXT_KEYS if part.get(key)), None)
        yield from _texts_in(value, depth - 1)


def read_usage(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the prompt and answer tokens that a server reports, or None when it does not report both.

    Some servers count thoughts or cached tokens outside these two. A detail that exceeds its count is added to it, and
    what a total has beyond both counts is added to the answer, so that no billed token is missed.

    Raises:
        ValueError: A count is not a whole number of at least 0.
    """
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, answer, total = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    cached = _count(usage.get("prompt_tokens_details"), "cached_tokens") or 0
    thought = _count(usage.get("completion_tokens_details"), "reasoning_tokens") or 0
    if prompt is None or answer is None:
        return None
    prompt += cached if cached > prompt else 0
    answer += thought if thought > answer else 0
    return prompt, max(answer, (total or 0) - prompt)


def _count(counts: Any, name: str) -> int | None:
    """Return one of the counts; None when it is absent."""
    count = counts.get(name) if isinstance(counts, dict) else None
    is_whole = type(count) is int or (isinstance(count, float) and count.is_integer())
    if count is not None and not (is_whole and count >= 0):
        raise ValueError(clip(f"{name} is {count!r}")[:80])
    return None if count is None else int(count)


def token_logprobs(body: Mapping[str, Any]) -> list[Any]:
    """Return the entries of the answer's token log-probabilities; empty when no entry has alternatives.

    Raises:
        LookupError, TypeError, AttributeError: The body is malformed.
    """
    entries = (body["choices"][0].get("logprobs") or {}).get("content") or []
    return entries if any(entry.get("top_logprobs") for entry in entries) else []


def located_word_probability(logprobs: Sequence[Mapping[str, Any]], comparison: WordComparison) -> float | None:
    """Return the probability of the good word against the bad one at the place where the answer holds one of them.

    A word that is not among the listed alternatives gets the probability of the least likely of these, which is an
    upper bound (as in GenPRM's code).

    Args:
        logprobs: The answer's tokens with their alternatives.
        comparison: The two words, and how one of them is found.

    Returns:
        A probability in [0, 1]; None when neither word is found, or when it spans several tokens.

    Raises:
        ValueError: A log-probability is not one.
    """
    tokens = [str(entry["token"]) for entry in logprobs]
    text = "".join(tokens)
    span = comparison.find(text)
    if span is None:
        return None
    starts = list(accumulate(map(len, tokens), initial=0))
    index = bisect_right(starts, span[0], hi=len(tokens)) - 1
    if span[1] > starts[index + 1]:
        return None
    word = text[slice(*span)]
    other = text[starts[index] : span[0]] + other_word(word, comparison.words) + text[span[1] : starts[index + 1]]
    likeliest = {str(e["token"]): _logprob(e["logprob"]) for e in logprobs[index]["top_logprobs"]}
    word_logprob, other_logprob = _logprob(logprobs[index]["logprob"]), likeliest.get(other, min(likeliest.values()))
    is_good = word.lower() == comparison.words[0].lower()
    return two_way_softmax(word_logprob, other_logprob) if is_good else two_way_softmax(other_logprob, word_logprob)


def first_word_probability(logprobs: Sequence[Mapping[str, Any]], words: tuple[str, str]) -> float | None:
    """Return the probability of `words[0]` against `words[1]` among the alternatives of the first token.

    Both words count in lower case and capitalised, with or without surrounding blanks.

    Returns:
        A probability in [0, 1]; None when neither word is listed.

    Raises:
        ValueError: A log-probability is not one.
    """
    probabilities = [0.0, 0.0]
    for entry in logprobs[0]["top_logprobs"] if logprobs else ():
        for i, word in enumerate(words):
            if str(entry["token"]).strip() in (word, word.capitalize()):
                probabilities[i] += math.exp(_logprob(entry["logprob"]))
    return probabilities[0] / sum(probabilities) if sum(probabilities) else None


def _logprob(value: Any) -> float:
    """Return a log-probability as a finite number; -inf becomes the lowest one that servers write."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _MAX_LOGPROB:
        raise ValueError(f"{value!r} is no log-probability")
    return float(max(value, _MIN_LOGPROB))
