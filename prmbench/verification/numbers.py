r"""Reads numbers as exact fractions; for a decimal, also the unit of its last digit.

No number is rounded to a float: `1.38\times10^{-23}` and `6.63\times10^{-34}` differ, and so do two numbers of
twenty digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

ENOUGH_DIGITS = 6
"""A decimal with at least this many significant digits may be the rounding of an exact value."""
MIN_REPEATED = 2
"""Three dots after more repeated digits than this mean that the repetition continues: `0.333...` is a third."""
MAX_CHARACTERS = 60
"""In longer texts no repetition is searched for."""
MAX_EXPONENT = 4_000
"""Larger powers of ten are left to the expression parser, which does not expand them."""
_DECIMAL = r"\d+(?:\.\d+)?"
_DECIMAL_NUMBER = re.compile(
    rf"([+-]?)\s*({_DECIMAL})(?:[eE]([+-]?\d+)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{{?\s*([+-]?\s*\d+)\s*\}}?)?"
)
_POWER = re.compile(r"([+-]?)\s*10\s*\^\s*(?:\{\s*([+-]?\s*\d+)\s*\}|(\d))")
_RATIO = re.compile(
    rf"([+-]?)\s*(?:\\frac\s*\{{\s*([+-]?)\s*({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}|({_DECIMAL})\s*/\s*({_DECIMAL}))"
)
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s*(?:(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\})|\s(\d+)\s*/\s*(\d+))")
_REPEATING = re.compile(
    r"([+-]?)\s*(\d+)\.(\d*)\s*(?:\\(?:overline|bar|dot)\s*\{(\d+)\}|\\dot\s*\{(\d)\}(\d*)\\dot\s*\{(\d)\}|(?<=\.)\((\d+)\))"
)
_CONTINUED_REPETITION = re.compile(r"([+-]?\s*\d+\.\d*?)(\d+?)(\2+)\.\.\.")


@dataclass(frozen=True, slots=True)
class Number:
    """A number and the precision to which it was written."""

    value: Fraction
    last_digit: Fraction | None = None
    """The unit of the last digit written, for a number with a decimal point; None for exact numbers."""

    @property
    def digits(self) -> int:
        """Number of significant digits of a number with a decimal point; 0 for exact numbers."""
        return 0 if not self.last_digit else len(str(abs(self.value) // self.last_digit))

    def times(self, factor: Fraction) -> Number:
        """Return a multiple of the number, with equally many significant digits."""
        return Number(self.value * factor, None if self.last_digit is None else self.last_digit * abs(factor))

    def equals(self, other: Number) -> bool:
        """Whether both are the same number.

        A decimal with at least ENOUGH_DIGITS significant digits equals an exact value, or one with more digits, that
        differs from it by at most one unit of its last digit: `0.333333` is a third and `0.333` is not. What could be
        written out with these digits is no exact value behind them: `6.999999` is not 7.
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
        coarse, fine = (self, other) if self.last_digit == max(units) else (other, self)
        return (fine.value / max(units)).denominator != 1 and abs(coarse.value - fine.value) <= max(units)


def read_number(text: str) -> Number | None:
    r"""Return the number that the whole text is, e.g. `2e-4`, `7\times 10^{5}`, `\frac{1}{2}`, `3 1/4`, or None."""
    text = text.strip()
    if (
        len(text) <= MAX_CHARACTERS
        and (match := _CONTINUED_REPETITION.fullmatch(text))
        and len(match[2] + match[3]) > MIN_REPEATED
    ):
        text = f"{match[1]}\\overline{{{match[2]}}}"
    if match := _REPEATING.fullmatch(text):
        once, period = match[3], match[4] or match[8] or "".join(match.group(5, 6, 7))
        value = Fraction(
            int(match[2] + once + period) - int(match[2] + once), 10 ** len(once) * (10 ** len(period) - 1)
        )
        return Number(-value if match[1] == "-" else value)
    if match := _DECIMAL_NUMBER.fullmatch(text):
        sign, digits, *exponents = match.groups()
        power = _exponent(next((e for e in exponents if e), "0"))
        if power is None:
            return None
        decimals = len(digits.partition(".")[2])
        unit = Fraction(10) ** (power - decimals)
        value = int(digits.replace(".", "")) * unit * (-1 if sign == "-" else 1)
        return Number(value, unit if decimals else None)
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


def _exponent(text: str) -> int | None:
    digits = text.replace(" ", "")
    return int(digits) if len(digits) <= len(str(MAX_EXPONENT)) and abs(int(digits)) <= MAX_EXPONENT else None
