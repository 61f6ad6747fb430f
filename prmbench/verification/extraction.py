r"""Extracts the final answer of a text: its last box, the announced answer, its only line, or its last expression.

An announced answer may have several readings (`The answer is 42 in 2024.`), each a prefix of the announcement. The
answer is right when one of its readings is.
"""

from __future__ import annotations

import re

from prmbench.verification.answer_region import Box, boxes, filled_boxes
from prmbench.verification.latex import plain_latex
from prmbench.verification.units import unit_before_other_words

MAX_CHARACTERS = 50_000
"""Longer texts without a box are not searched: some of math-verify's patterns take time quadratic in the length."""
SEARCH_WINDOW = 4_000
"""Number of characters that are searched after an announcement and, for the last formulas, at the end of a text."""
MAX_LINE_CHARACTERS = 200
MAX_WORDS = 3
"""A line with words and more characters, or with more words, is prose, and not an answer by itself."""

_JOIN = re.compile(r"[A-Za-z()\s]{0,40}?\s*(?:,?\s*(?:and|or)\b|,|;)\s*(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?")
"""Between boxes that a sentence joins: `papers and`, `, y =`; but not `, then`."""
_MARKUP = re.compile(r"\$|\\[()\[\],;: ]|\\q?quad|\\text\s*\{|\}|\s+")
_KEY = re.compile(
    r"(?i)####|\b(answers?|ans)\b(?:(?<=\bans)\.(?=\s*[-$\\(\d]))?|\b(?:result|solution|solutions(?=\s+are\b))\b|\b(?:correct|right|best)\s+(?:option|choice|letter)\b|\bI\s+choose\b|\bchoice\b(?=[*_]*\s*(?:is\b|[:=]))|答案|答え|정답|réponse|respuesta|antwort|resposta|risposta|ответ"
)
_IS = r"(?:(?:is|are|was|be|est|es|ist|é|è)\b|[-=]>|[是为:：=→⇒])"
_FILLER = r"(?:therefore|thus|simply|just|indeed|then|exactly|equal to|for sure)\b"
_LINK = re.compile(
    r"(?i)[*_ \t]*[ \t][-–—][ \t]+(?=\S)"  # `Answer - 7`, but not `Answer -7`
    rf"|[*_\s]*{_IS}(?:[*_\s]*(?:{_IS}|{_FILLER}))*[*_]*|[*_ \t]*(?=[-$\\(\d])|(?<=####)"
)
_LONG_LINK = re.compile(rf"(?i)\s[^.\n:=$\\]{{0,80}}?\s{_IS}(?:[*_\s]*(?:{_IS}|{_FILLER}))*[*_]*")
"""Between "answer" and what it is: `is`, `: **`, `to your question is therefore`."""
_NEGATED = re.compile(r"(?i)\s*(?:not|neither|cannot|unclear|unknown|none of these)\b")
_IS_NOT = re.compile(r"(?i)\s*(?:is|are|was)n['o’]t\b")
_CANNOT = re.compile(r"(?i)\b(?:cannot|not|never|can['o’]t|couldn['o’]t|won['o’]t)\b")
_CORRECTION = re.compile(
    r"(?i)[.!?,;]\s*(?:wait|no|actually|hmm+|correction|sorry|oops)\b[,.:!]*\s*"
    r"(?:(?:it|that|the answer)(?:'s| is| should be)\s*)?(?=\S)"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|\*)|。|\n")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$((?:\\\$|[^$])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_MATH_JOINT = re.compile(r"\s*(?:,?\s*(?:and|or)\b|,|;)\s*")
_LEADING_QUANTITY = re.compile(r"\s*((?:[$€£]|\\\$)?)\s*([-+−]?\d[\d,]*(?:\.\d+)?(?:\s+\d+/\d+|/\d+)?)(?![\d.,/]*\d)")
_LEADING_NUMBER = re.compile(
    r"\s*(?:[$€£]|\\\$)?\s*([-+−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s+\d+/\d+|/\d+)?\s*(?:\\?%)?)(?=[.,;:!?)*]*(?:\s|$))"
    r"(?![.,;:!?)*]*\s*(?:[-+*/^=<>\\$\d×÷·⋅±∓√π]|\((?!(?!mod)[A-Za-z]{3})|[A-Za-z]\b|sqrt\b|pi\b|more\b|less\b|fewer\b|remainder\b|choose\b|factorial\b|and\b|or\b|to\b|times\b|plus\b|minus\b|over\b|out\b|of\b|by\b|squared\b|cubed\b|divided\b|"
    r"multiplied\b|hundred\b|thousand\b|million\b|billion\b|trillion\b|dozen\b|half\b|halves\b|thirds?\b|fourths?\b|fifths?\b))"
)
_LEADING_LETTER = re.compile(r"\s*[*_]*\(?([A-J])\)?[*_]*(?=[.,;:)]|\s*$|\s+[-–—]|\s+(?:because|since|as)\b)")
_LEADING_OPTION = re.compile(
    r"\s*[*_]*(?:(?:option|choice)\s+)?(?:\(\s*([A-J])\s*\)|([A-J]))[*_]*(?:(?<=\))|\s*[).:,]|\s+[-–—]|\s+(?:because|since|as)\b|\s*$)"
)
_OPTION_LABEL = re.compile(r"[*_]*\(?[A-J][).:][*_]*\s*(?=[-$\\\d])")
_LEADING_WORD = re.compile(r"(?i)\s*[*_]*(yes|no|true|false)[*_]*(?=[.,;:!]|\s*$|\s+[-–—]|\s+(?:because|since|as)\b)")
_LEADING = (_LEADING_NUMBER, _LEADING_LETTER, _LEADING_WORD)
_NO_GOLD = frozenset(["nan", "null", "n/a"])
_SPECIAL = re.compile(r"<\|.*", re.DOTALL)
_LAST_TOKENS = re.compile(r"(?:\s*(?:<\|[^<>|]*\|>|<｜[^<>｜]*｜>|</s>|<eos>|<end_of_turn>))+\s*$")
"""Special tokens at the end of a completion."""
_NUMBER = re.compile(r"(?<![A-Za-z\d_.,])[-+]?\d[\d,]*(?:\.\d+)?(?![A-Za-z\d_]|[.,]\d)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCE_START = re.compile(
    r"(?i)\s*(?:so|thus|therefore|hence|then|finally|we|it|this|that)\b|[A-Za-z ]{2,}\s*:\s*[-$\d\\]"
)
_MINERVA_CLOSING = re.compile(r"(?i)final answer is\s*:?\s*(.*?)\.?\s*I hope it is correct", re.DOTALL)
_COPULA = re.compile(r"(?i)\b(?:is|are|was|equals?|be)\b\s*:?|[=:]")


def extract_answers(region: str, is_choice: bool = False) -> list[str]:
    """Return the readings of a completion's final answer in plain LaTeX, the best one first; empty where it has none.

    Args:
        region: The answer region of the completion, from `answer_region`.
        is_choice: Whether the letter of an option is asked for, so that `A. because it is even` answers A.
    """
    region = _LAST_TOKENS.sub("", region)
    region_boxes = filled_boxes(region)
    if region_boxes and (closing_line := _MINERVA_CLOSING.search(region, region_boxes[-1].end)):  # of Minerva's prompt
        return _plain_readings(_leading_readings(closing_line[1]))
    if region_boxes:
        return _plain_readings([_joined_boxes(region, region_boxes)])
    blank_boxes = boxes(region)
    for box in reversed(blank_boxes):
        region = f"{region[: box.start]} {region[box.end :]}"
    readings = announced_answers(region)
    if readings is None:
        return []
    line = region.strip()
    if blank_boxes or (is_choice and not readings and (readings := _leading_options(line))):
        return _plain_readings(readings)
    if not readings and "\n" not in line and not _is_prose(line):
        readings = [line, *_leading_readings(line)]
    elif not readings and (word := _LEADING_WORD.match(line)):
        readings = [word[1]]
    return (
        _plain_readings(readings)
        or _plain_readings(_last_formulas(region))
        or _plain_readings(_last_expression(region))
    )


def _leading_options(region: str) -> list[str]:
    """Return the letter of the option with which the last line of a text, else the first one, begins."""
    lines = region.splitlines()
    matches = [_LEADING_OPTION.match(line) for line in (*lines[-1:], *lines[:1])]
    options = [match[1] or match[2] for match in matches if match]
    return options[:1] if len(lines) > 1 or _is_prose(region) else []  # a line by itself is read as a whole


def _is_prose(line: str) -> bool:
    """Whether a line is a sentence that contains an answer, and not itself an answer."""
    if len(line) > SEARCH_WINDOW:
        return True
    outside = _MATH.sub(" ", line)
    words = [word for word in _WORD.findall(outside) if word not in ("and", "or")]
    return (
        (len(line) > MAX_LINE_CHARACTERS and bool(words))
        or len(words) > MAX_WORDS
        or len(re.findall(r"[^\W\d_a-zA-Z]", outside)) > MAX_WORDS  # in a script without spaces
        or (len(words) > 1 and (outside != line or line.rstrip().endswith((".", "!", "?"))))
        or _SENTENCE_START.match(line) is not None
    )


def extract_gold_answers(gold: str) -> list[str]:
    r"""Return the readings of a gold answer, which may be a whole solution; empty where none can be read.

    A reading with an open brace, such as `\frac{1}{`, cannot be read.
    """
    return [reading for reading in _gold_readings(gold) if _is_balanced(reading)]


def _is_balanced(text: str) -> bool:
    return text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")


def _gold_readings(gold: str) -> list[str]:
    if gold.strip().lower() in _NO_GOLD:
        return []
    gold_boxes = filled_boxes(gold)
    if gold_boxes:
        return _plain_readings([_joined_boxes(gold, gold_boxes, gold=True)])
    if "####" in gold:
        return _plain_readings([gold.rpartition("####")[2]])
    if _is_prose(gold):
        return _plain_readings(announced_answers(gold) or [])
    return _plain_readings([gold])


def _plain_readings(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(plain for plain in map(plain_latex, texts) if plain))


def _joined_boxes(text: str, text_boxes: list[Box], gold: bool = False) -> str:
    """Return the last box, with the boxes before it that the sentence joins to it; empty when the last one is open.

    A gold answer is not truncated: its last box may be open, and boxes without a word between them belong together.
    """
    contents: list[str] = []
    for k in range(len(text_boxes) - 1, -1, -1):
        between = _MARKUP.sub(" ", text[text_boxes[k].end : text_boxes[k + 1].start]).strip() if contents else ""
        if contents and not (_JOIN.fullmatch(between + " ") or (gold and not re.search(r"[\w.]", between))):
            break
        content = text_boxes[k].content
        if content is None:
            if not gold:
                break
            content = text[text_boxes[k].start :].partition("{")[2]
        contents.insert(0, content)
    return ", ".join(contents)


def announced_answers(text: str) -> list[str] | None:
    """Return the readings of the text after the last "answer" or `####`; empty where no answer is announced.

    Returns:
        None when the text only announces what the answer is not.
    """
    negated = False
    for key in reversed(list(_KEY.finditer(text))):
        if _IS_NOT.match(text, key.end()):
            negated = True
            continue
        link = _LINK.match(text, key.end()) or (_LONG_LINK.match(text, key.end()) if key[1] else None)
        if link is None:
            continue
        if _NEGATED.match(text, link.end()) or _CANNOT.search(link[0]):
            negated = True
            continue
        tail = text[link.end() :].lstrip(" \t*_:：=\n}")[:SEARCH_WINDOW]
        if not tail.strip():
            continue
        corrected = [c.end() for c in _CORRECTION.finditer(tail.partition("\n")[0])]
        for start in [*reversed(corrected), 0]:
            if readings := _leading_readings(tail[start:]):
                return readings
    return None if negated else []


def _leading_readings(tail: str) -> list[str]:
    """Return the readings of the start of a text: its first formulas, sentence, number, letter or word."""
    tail = tail.lstrip()
    math, position = list[str](), 0
    while segment := _MATH.match(tail, position):
        math.append(next(group for group in segment.groups() if group is not None))
        position = segment.end()
        joint = _MATH_JOINT.match(tail, position)
        if joint is None or not _MATH.match(tail, joint.end()):
            break
        position = joint.end()
    if math:
        unit = unit_before_other_words(tail[position:]) if len(math) == 1 else ""
        return [", ".join(math) + unit]
    quantity = _leading_quantity(tail)
    readings = quantity or [match[1] for leading in _LEADING if (match := leading.match(tail))]
    if label := _OPTION_LABEL.match(tail):  # of an option whose value may be asked for
        readings += _leading_readings(tail[label.end() :])
    sentence = _SENTENCE_END.split(_SPECIAL.sub("", tail), maxsplit=1)[0].strip()
    if not _is_prose(sentence):
        return [*readings, sentence] if sentence else readings
    if readings:
        return readings
    copulas = list(_COPULA.finditer(sentence))
    if copulas:
        readings += _leading_readings(sentence[copulas[-1].end() :])
    numbers = list(_NUMBER.finditer(sentence))
    if len(numbers) != 1:
        return readings
    return [*readings, numbers[0][0] + unit_before_other_words(sentence[numbers[0].end() :])]


def _leading_quantity(text: str) -> list[str]:
    """Return the number with a unit or currency with which a text begins, as the only reading; empty without one."""
    match = _LEADING_QUANTITY.match(text)
    if match is None:
        return []
    rest = text[match.end() :]
    if unit := unit_before_other_words(rest):
        return [match[2] + unit]
    currency = match[1].removeprefix("\\")
    is_number = _LEADING_NUMBER.match(text)
    return [f"\\{currency}{match[2]}" if currency == "$" else currency + match[2]] if currency and is_number else []


def _last_formulas(text: str) -> list[str]:
    """Return the last formulas of a text that its sentence joins, as in `$x = 1$, $x = 2$ and $x = 3$`."""
    joined: list[str] = []
    end: int | None = None
    text = text[-SEARCH_WINDOW:]
    for segment in reversed(list(_MATH.finditer(text))):
        if end is not None and not _MATH_JOINT.fullmatch(text, segment.end(), end):
            break
        end = segment.start()
        joined.insert(0, next(group for group in segment.groups() if group is not None).strip(" ,"))
    return [", ".join(joined)] if len(joined) > 1 and all(re.search(r"\d", formula) for formula in joined) else []


def _last_expression(text: str) -> list[str]:
    """Return the last formula or number that math-verify finds in a text without an announced answer."""
    from math_verify import parse

    if len(text) > MAX_CHARACTERS:
        return []
    parsed = parse(text, parsing_timeout=None, raise_on_error=True)
    if not parsed or not isinstance(parsed[-1], str):
        return []
    _, expression, after = text.rpartition(parsed[-1])
    return [parsed[-1] + (unit_before_other_words(after.lstrip("$")) if expression else "")]
