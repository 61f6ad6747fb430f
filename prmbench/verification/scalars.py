r"""Equality of single values: numbers with units, words, clock times, ratios, numbers in a base, expressions."""

from __future__ import annotations

import re

from prmbench.verification import expressions
from prmbench.verification.expressions import UnreadableError
from prmbench.verification.latex import FUNCTIONS
from prmbench.verification.numbers import Number, read_number
from prmbench.verification.quantities import Quantity, read_quantity
from prmbench.verification.units import ratio

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_CLOCK = re.compile(r"(\d{1,2})(?::([0-5]\d)(?::[0-5]\d)?(?:([ap])\.?m\.?)?|([ap])\.?m\.?)", re.IGNORECASE)
_RATIO = re.compile(r"\d+(?:\.\d+)?(?::\d+(?:\.\d+)?)+")
_IN_BASE = re.compile(r"\(?(\d[\dA-Za-z]*)\)?_\{?\(?(?:\\text\{)?(\w+)\}*\)?\}?")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
          "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip
_NUMBERS_SIDE_BY_SIDE = re.compile(r"(?<![\w.])\d[\d.]* +\d+(?! *(?:/|\d*/))")
_CONGRUENCE = re.compile(r"(?:(.+?)\\equiv)?([^()]+?)\(?\\(?:pmod|bmod|mod)\{?(\w+)\}?\)?")
LONG_WORD = 3
"""Only longer words can be plurals: SSS is not the plural of SS."""


def without_spaces(text: str) -> str:
    """Return the text without braces around single characters and without spaces, except between two digits."""
    return re.sub(r"(?<!\\)\{(\w)\}", r"\1", re.sub(r"(?<!\d)\s+|\s+(?!\d|\s)", "", text))


def without_text_commands(text: str) -> str:
    r"""Return the text with `\text{...}` replaced by its content."""
    return _TEXT.sub(r"\1", text).strip()


def same_scalar(gold: str, answer: str) -> bool:
    """Return whether two answers without commas, relations and brackets around them are equal.

    Raises:
        UnreadableError: A parser failed on one of them.
    """
    if without_spaces(gold) == without_spaces(answer):
        return True
    as_text = _same_as_text(gold, answer)
    if as_text is not None:
        return as_text
    one, other = read_quantity(gold), read_quantity(answer)
    if one.units and other.units:
        converted = in_unit_of(other, one)
        if converted is not None and same_scalar(one.core, converted):
            return True  # 5 km and 5000 m; else units are decoration, as in the peers
    return _same_quantity(gold, one, answer, other)


def _same_quantity(gold: str, one: Quantity, answer: str, other: Quantity) -> bool:
    """Compare quantities whatever their units are. Raises UnreadableError where a parser fails."""
    if one.noun and other.noun and _singular(one.noun) != _singular(other.noun):
        return False
    if one.number is not None and other.number is not None:
        return _same_number(one.number, one.percent, other.number, other.percent)
    words = is_words(one.core), is_words(other.core)
    if all(words):
        return _singular(plain_words(gold)) == _singular(plain_words(answer))
    if any(words) and not all(
        re.fullmatch("[a-z]{2,3}", core) or not is_word
        for core, is_word in zip((one.core, other.core), words, strict=True)
    ):
        return False
    if one.number is not None:
        return _equals_number(other.core, one.number)
    if other.number is not None:
        return _equals_number(one.core, other.number)
    return expressions.same_expression(one.core, other.core)


def in_unit_of(quantity: Quantity, other: Quantity) -> str | None:
    """Return the number or expression of a quantity in the unit of another; None where they measure different things.

    Args:
        quantity: One with a unit; without one, or with a percent sign, it is in no unit.
        other: One with a unit.
    """
    factor = None if quantity.percent else ratio(quantity.units, other.units)
    if factor is None:
        return None
    rational, pi_power = factor
    if pi_power == 0 and rational == 1:
        return quantity.core
    if pi_power == 0 and quantity.number is not None:
        return str(quantity.number.times(rational).value)
    pi = {0: "", 1: " \\cdot \\pi", -1: " \\cdot \\frac{1}{\\pi}"}.get(pi_power)
    return (
        None if pi is None else f"({quantity.core}) \\cdot \\frac{{{rational.numerator}}}{{{rational.denominator}}}{pi}"
    )


def _same_congruence(gold: re.Match[str], answer: re.Match[str]) -> bool:
    r"""Whether two congruences such as `n \equiv 1 \pmod 4` are equivalent."""
    if gold[3] != answer[3] or (gold[1] and answer[1] and gold[1] != answer[1]):
        return False
    residue, other, modulus = (read_number(text) for text in (gold[2], answer[2], gold[3]))
    if residue and other and modulus:
        return (residue.value - other.value) % modulus.value == 0
    return without_spaces(gold[2]) == without_spaces(answer[2])


def _equals_number(text: str, number: Number) -> bool:
    """Whether an expression equals a number; one with a variable that cannot be parsed does not."""
    try:
        return expressions.equals_number(text, number)
    except UnreadableError:
        letters = re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", text)
        if set(letters) <= {"e", "i"}:
            raise
        return False


def canonical_text(text: str) -> str:
    """Return the canonical form of a clock time, a number in a base, a ratio or a congruence; empty for other texts."""
    text = _with_colons(text)
    if clock := _CLOCK.fullmatch(text):
        half = (clock[3] or clock[4] or "").lower()
        return f"{int(clock[1])}:{clock[2] or '00'}{half and f' {half}m'}"
    if in_base := _IN_BASE.fullmatch(text):
        return f"{in_base[1].upper()}_{_base(in_base[2])}"
    if congruence := _CONGRUENCE.fullmatch(text):
        number = read_number(congruence[2])
        return f"{congruence[2] if number is None else number.value} mod {congruence[3]}"
    if not _RATIO.fullmatch(text):
        return ""
    quotient = read_number(text.replace(":", "/", 1))
    return text if quotient is None else str(quotient.value)


def _with_colons(text: str) -> str:
    """Return a text with `3 to 2` as `3:2`, without spaces and text commands."""
    return re.sub(r"(?<=\d)to(?=\d)", ":", without_spaces(without_text_commands(text)))


def _same_as_text(gold: str, answer: str) -> bool | None:
    """Compare clock times, ratios, congruences, numbers in a base and adjacent numbers; None for other texts."""
    texts = [_with_colons(text) for text in (gold, answer)]
    clocks = [_CLOCK.fullmatch(text) for text in texts]
    if clocks[0] and clocks[1]:
        halves = {half.lower() for clock in clocks if clock for half in clock.group(3, 4) if half}
        minutes = {clock[2] or "00" for clock in clocks if clock}
        return len(minutes) == 1 and int(clocks[0][1]) == int(clocks[1][1]) and len(halves) < 2
    if any(clock[2] for clock in clocks if clock):
        return False
    ratios = [_RATIO.fullmatch(text) for text in texts]
    if all(ratios):
        return texts[0] == texts[1]
    if any(ratios):
        ratio, other = (texts[0], answer) if ratios[0] else (texts[1], gold)
        number = read_quantity(other).number
        quotient = read_number(ratio.replace(":", "/", 1))
        return number is not None and quotient is not None and number.equals(quotient)
    congruences = [_CONGRUENCE.fullmatch(text) for text in texts]
    if congruences[0] and congruences[1]:
        return _same_congruence(congruences[0], congruences[1])
    bases = [_IN_BASE.fullmatch(text) for text in texts]
    if bases[0] and bases[1]:
        return bases[0][1].upper() == bases[1][1].upper() and _base(bases[0][2]) == _base(bases[1][2])
    if any(bases):
        return False
    side_by_side = any(_NUMBERS_SIDE_BY_SIDE.search(text) for text in (gold, answer))
    return False if side_by_side else None


def _base(name: str) -> str:
    return _BASES.get(name.lower(), name)


def _same_number(gold: Number, gold_percent: bool, answer: Number, answer_percent: bool) -> bool:
    """Whether two numbers are equal; 50% equals 50 and the decimal 0.5, but not the fraction 1/2."""
    if gold.equals(answer):
        return True
    if gold_percent == answer_percent:
        return False
    percentage, share = (gold, answer) if gold_percent else (answer, gold)
    return share.last_digit is not None and share.value == percentage.value / 100


def _singular(noun: str) -> str:
    return " ".join(word.removesuffix("s") if len(word) > LONG_WORD else word for word in noun.split())


def is_words(text: str) -> bool:
    r"""Whether a text consists of words and not of variables: `\text{east}`, `ABC`, `June 20`; not `2xy`."""
    if any(re.search(r"[^\W\d_]{2}", content) for content in _TEXT.findall(text)):
        return True
    bare = re.sub(r"_\s*(?:\{[^{}]*\}|\\[A-Za-z]+|\S)|\\[A-Za-z]+", " ", text)
    for run in re.finditer(r"[^\W\d_]{2,}", bare):
        if run[0] in FUNCTIONS or run[0] == "pi":
            continue
        before, after = bare[: run.start()], bare[run.end() :]
        in_product = re.search(r"[\d+*/^()|{}-]$", before) or re.match(r"[+*/^()|{}-]", after)
        if len(run[0]) > 3 or not in_product or not run[0].isascii():
            return True
    return bool(re.search(r"[^\W\d_]", bare)) and not bare.isascii()


def plain_words(text: str) -> str:
    """Return words in lower case, without articles, punctuation and commands."""
    text = re.sub(r"[^\w\s+./:-]|_", " ", without_text_commands(text).casefold().replace("\\", " "))
    text = re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", " ", text)
    return " ".join(word for word in (w.strip(".:") for w in text.split()) if word not in ("", "a", "an", "the"))
