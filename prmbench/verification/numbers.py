r"""Numbers as they are written: exact fractions, and decimals with the unit of their last digit.

Nothing is ever rounded to a float: `1.38\times10^{-23}` and `6.63\times10^{-34}` differ, and so do two numbers of
twenty digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

ENOUGH_DIGITS = 6
"""A decimal of so many significant digits may stand for an exact value that it is the rounding of."""
MOST_EXPONENT = 4_000
"""Larger powers of ten are left to the expression parser, which does not write them out."""
_DECIMAL = r"\d+(?:\.\d+)?"
_WRITTEN = re.compile(
    rf"([+-]?)\s*({_DECIMAL})(?:[eE]([+-]?\d+)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{{?\s*([+-]?\s*\d+)\s*\}}?)?"
)
_POWER = re.compile(r"([+-]?)\s*10\s*\^\s*(?:\{\s*([+-]?\s*\d+)\s*\}|(\d))")
_RATIO = re.compile(
    rf"([+-]?)\s*(?:\\frac\s*\{{\s*([+-]?)\s*({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}|({_DECIMAL})\s*/\s*({_DECIMAL}))"
)
_REPEATING = re.compile(
    r"([+-]?)\s*(\d+)\.(\d*)\s*(?:\\(?:overline|bar|dot)\s*\{\s*(\d+)\s*\}|\((\d+)\))\s*(?:\.\.\.)?"
)
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s*(?:(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\})|\s(\d+)\s*/\s*(\d+))")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written."""

    value: Fraction
    last_digit: Fraction | None = None
    """The unit of the last digit written, for a number with a decimal point; None for exact numbers."""

    @property
    def digits(self) -> int:
        """How many significant digits were written, for a number with a decimal point."""
        return 0 if not self.last_digit else len(str(abs(self.value) // self.last_digit))

    def equals(self, other: Number) -> bool:
        """Whether both are the same number.

        A decimal with at least ENOUGH_DIGITS significant digits equals an exact value, or one with more digits, that
        differs from it by at most one unit of its last digit: `0.333333` is a third and `0.333` is not.
        """
        if self.value == other.value:
            return True
        units = {n.last_digit for n in (self, other) if n.last_digit is not None}
        if (
            not units
            or (len(units) == 1 and self.last_digit == other.last_digit)
            or any(n.last_digit is not None and n.digits < ENOUGH_DIGITS for n in (self, other))
        ):
            return False
        return abs(self.value - other.value) <= max(units)


def read_number(text: str) -> Number | None:
    r"""Return the number that the whole text is, e.g. `2e-4`, `7\times 10^{5}`, `\frac{1}{2}`, `3 1/4`, or None."""
    text = text.strip()
    if match := _WRITTEN.fullmatch(text):
        sign, digits, *exponents = match.groups()
        power = _exponent(next((e for e in exponents if e), "0"))
        if power is None:
            return None
        decimals = len(digits.partition(".")[2])
        unit = Fraction(10) ** (power - decimals)
        value = int(digits.replace(".", "")) * unit * (-1 if sign == "-" else 1)
        return Number(value, unit if decimals else None)
    if match := _REPEATING.fullmatch(text):
        return Number(_repeating(match[2], match[3], match[4] or match[5]) * (-1 if match[1] == "-" else 1))
    if match := _POWER.fullmatch(text):
        power = _exponent(match[2] or match[3])
        return None if power is None else Number(Fraction(10) ** power * (-1 if match[1] == "-" else 1))
    if match := _MIXED.fullmatch(text):
        whole, over, under = int(match[2]), int(match[3] or match[5]), int(match[4] or match[6])
        if over < under:
            return Number((whole + Fraction(over, under)) * (-1 if match[1] == "-" else 1))
    if match := _RATIO.fullmatch(text):
        over_text, under_text = match[3] or match[5], match[4] or match[6]
        if Fraction(under_text) != 0:
            negative = (match[1] == "-") != (match[2] == "-")
            return Number(Fraction(over_text) / Fraction(under_text) * (-1 if negative else 1))
    return None


def _repeating(whole: str, decimals: str, period: str) -> Fraction:
    r"""The value of `0.1\overline{6}`."""
    return Fraction(
        int(whole + decimals + period) - int(whole + decimals), 10 ** len(decimals) * (10 ** len(period) - 1)
    )


def _exponent(text: str) -> int | None:
    digits = text.replace(" ", "")
    return int(digits) if len(digits) <= len(str(MOST_EXPONENT)) and abs(int(digits)) <= MOST_EXPONENT else None
