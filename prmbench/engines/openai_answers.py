"""What a chat completion holds: the answer and its thought, what it took, and log-probabilities of words.

Pure functions of a body that a server sent; nothing in it is believed before it is checked.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prmbench.core.redaction import scrub
from prmbench.engines.chat import Answer, Weighing, other_word, share
from prmbench.engines.http_errors import clipped

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "reasoning_details")
"""Fields of a message in which servers keep a model's thought apart from its answer."""
_ANSWER_PARTS = ("text", "output_text")
_THOUGHT_PART = re.compile(r"think|thought|reason|summary")
"""In the type of a part; a part without a type may hold its thought under such a key alone."""
_TEXT_KEYS = ("text", "value", "thinking", "reasoning", "reasoning_content", "thought", "summary", "content")
"""Where a part of a message holds its text, or further parts."""
_DEPTH = 8
"""Levels of parts within parts that are looked at."""
_CUT = re.compile(r"(?i)length|max_?(new_|output_|completion_)?tokens")
"""How servers say in `finish_reason` that an answer reached its limit."""
_TAG = re.compile(r"(?i)</?\s*(?:think|thinking|thought|reasoning)\s*>|\[/?think\]")
"""Marks that some servers leave in a thought which they keep apart."""
_LEAST_LOGPROB, _MOST_LOGPROB = -1e4, 0.01
"""Servers write -9999 for what they cut off, and rounding may exceed 0."""


def answer_of(body: Mapping[str, Any], usage: tuple[int, int]) -> Answer:
    """Return the first choice of a chat completion.

    The thought stands in front of the answer, in `<think>` tags, wherever the server keeps it. A thought behind which
    no answer came is left open, as one that was cut: it is stored, and nothing is read in it. Halves of surrogate
    pairs, which no file can hold, become U+FFFD.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = _answer_and_thought(message.get("content"))
        fields = ("".join(_texts(message.get(name))) for name in THOUGHT_FIELDS)
        apart = next((text for text in fields if text.strip()), "")
    except (LookupError, TypeError, AttributeError):
        return Answer("", "", *usage, lost="malformed answer: no choice in it")
    if content is None:
        return Answer("", "", *usage, lost="malformed answer: its content is no text")
    answer, thought = content[0], _TAG.sub("", apart or content[1])
    opened = f"<think>\n{thought}" if thought.strip() else ""
    text = f"{opened}\n</think>\n{answer}" if opened and answer.strip() else opened or answer
    finish = "length" if _CUT.search(str(choice.get("finish_reason"))) else "stop"
    lost = "" if text.strip() else _why_empty(choice, message)
    return Answer(scrub(well_formed(text)), finish, *usage, lost=lost)


def well_formed(text: str) -> str:
    """Return a text with halves of surrogate pairs joined where they meet, and replaced by U+FFFD where they do not."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _why_empty(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return f"the model refuses: {clipped(refusal)}"
    return "held back by a content filter" if choice.get("finish_reason") == "content_filter" else "empty answer"


def _answer_and_thought(content: Any) -> tuple[str, str] | None:
    """The answer and the thought in a message's content, which is a text or parts; None when it is neither."""
    if content is None or isinstance(content, str):
        return content or "", ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    thought = (text for part in parts if _is_thought(part) for text in _texts(part))
    answer = (text for part in parts if _is_answer(part) for text in _texts(part))
    return "".join(answer), "".join(thought)


def _is_thought(part: Mapping[str, Any]) -> bool:
    """By its type, its mark, or, without a type, by where its text is."""
    kind = part.get("type") or " ".join(key for key in part if "text" not in part)
    return part.get("thought") is True or bool(_THOUGHT_PART.search(str(kind).lower()))


def _is_answer(part: Mapping[str, Any]) -> bool:
    return not _is_thought(part) and str(part.get("type") or "text").lower() in _ANSWER_PARTS


def _texts(part: Any, depth: int = _DEPTH) -> Iterator[str]:
    """Every text of a part, in order."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list) and depth:
        for inner in part:
            yield from _texts(inner, depth - 1)
    elif isinstance(part, dict) and depth:
        held = next((part[key] for key in _TEXT_KEYS if part.get(key)), None)
        yield from _texts(held, depth - 1)


def usage_of(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the prompt and answer tokens that a server says it used, or None when it does not give both.

    Some servers count thoughts, or what they read from a cache, beside the two counts. A part that exceeds its whole
    is added to it, and what a total has beyond the two counts as answer: thus nothing that is billed is left out.

    Raises:
        ValueError: One of the counts is no whole number of at least 0.
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
    """One of the counts; None where it is not there."""
    count = counts.get(name) if isinstance(counts, dict) else None
    whole = type(count) is int or (isinstance(count, float) and count.is_integer())
    if count is not None and not (whole and count >= 0):
        raise ValueError(clipped(f"{name} is {count!r}")[:80])
    return None if count is None else int(count)


def listed_logprobs(body: Mapping[str, Any]) -> list[Any]:
    """Return the log-probabilities of the answer's tokens, as far as the server gives alternatives for any.

    Raises:
        LookupError, TypeError, AttributeError: The body is malformed.
    """
    listed = (body["choices"][0].get("logprobs") or {}).get("content") or []
    return listed if any(entry.get("top_logprobs") for entry in listed) else []


def weigh(listed: Sequence[Mapping[str, Any]], weighing: Weighing) -> float | None:
    """The share of the good word where the last of the two stands in the tokens listed; None where it is no one token.

    A word that is not among the likeliest has at most the probability of the last of them, and is given that (GenPRM).
    Raises ValueError on a log-probability that is none.
    """
    tokens = [str(entry["token"]) for entry in listed]
    text = "".join(tokens)
    span = weighing.find(text)
    if span is None:
        return None
    starts = list(accumulate(map(len, tokens), initial=0))
    at = bisect_right(starts, span[0], hi=len(tokens)) - 1
    if span[1] > starts[at + 1]:
        return None
    word = text[slice(*span)]
    other = text[starts[at] : span[0]] + other_word(word, weighing.words) + text[span[1] : starts[at + 1]]
    likeliest = {str(e["token"]): _logprob(e["logprob"]) for e in listed[at]["top_logprobs"]}
    mine, theirs = _logprob(listed[at]["logprob"]), likeliest.get(other, min(likeliest.values()))
    good = word.lower() == weighing.words[0].lower()
    return share(mine, theirs) if good else share(theirs, mine)


def choice(listed: Sequence[Mapping[str, Any]], words: tuple[str, str]) -> float | None:
    """The share of the first word among the likeliest first tokens, in lower case or capitalised, blanks aside.

    Raises ValueError on a log-probability that is none.
    """
    masses = [0.0, 0.0]
    for entry in listed[0]["top_logprobs"] if listed else ():
        for i, word in enumerate(words):
            if str(entry["token"]).strip() in (word, word.capitalize()):
                masses[i] += math.exp(_logprob(entry["logprob"]))
    return masses[0] / sum(masses) if sum(masses) else None


def _logprob(value: Any) -> float:
    """A log-probability as a finite number; -inf becomes the least one that servers write."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _MOST_LOGPROB:
        raise ValueError(f"{value!r} is no log-probability")
    return float(max(value, _LEAST_LOGPROB))
