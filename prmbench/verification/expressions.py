r"""Equality of mathematical expressions, which are parsed by latex2sympy and compared exactly or at sample points.

Constants are compared to 50 digits relative to their size, so that `\frac{1}{2^{98}}` is not `\frac{1}{2^{97}}`.
Expressions with variables are compared at fixed rational points with positive, negative and mixed signs. A point with a
negative coordinate counts only where both values are real, since a root may not be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
from sympy.core.function import AppliedUndef, Derivative  # type: ignore[import-untyped]
from sympy.functions.elementary.trigonometric import TrigonometricFunction  # type: ignore[import-untyped]

from prmbench.verification.latex import FUNCTIONS
from prmbench.verification.numbers import ENOUGH_DIGITS, Number

MAX_CHARACTERS = 2_000
"""Longer expressions are not parsed."""
DIGITS = 50
_PRECISION = DIGITS + 20
_POSITIVE = ("7/5", "19/8", "61/7", "379/9", "5/11", "43/12", "17/3", "29/13", "31/9", "3/10")
"""Values of the variables, in order; the k-th point begins with the k-th value."""
_POINTS = 4
_INTEGER_POINTS = 24
"""Number of integer points that are used instead of fractions where one of _INTEGER_FUNCTIONS occurs."""
_INTEGER_FUNCTIONS = (sympy.floor, sympy.ceiling, sympy.Mod, sympy.factorial, sympy.binomial)
"""Functions that are meant for integers."""
_VARIABLE = r"(\\?[A-Za-z]+(?:_\s*(?:\{[^{}]*\}|\w))?)"
_COMMAND_BELOW = re.compile(
    r"_\s*(?:\{\s*\\text\s*\{\s*([A-Za-z]+)\s*\}\s*\}|\{\s*\\([A-Za-z]+)\s*\}|\\(?!text)([A-Za-z]+))"
)
"""A subscript that is a command: `L_\\odot`, `m_{\\max}`, `v_{\\text{max}}`."""
_SLASHED_DERIVATIVE = re.compile(rf"\(?(?<![A-Za-z\\])d\s*{_VARIABLE}\)?\s*/\s*\(?d\s*{_VARIABLE}\)?")
_DERIVATIVE = re.compile(
    rf"\\frac\s*\{{\s*(?:d|\\partial)\s*(?:\^\s*\{{?\s*(\d)\s*\}}?)?\s*{_VARIABLE}\s*\}}"
    rf"\s*\{{\s*(?:d|\\partial)\s*{_VARIABLE}\s*(?:\^\s*\{{?\s*(\d)\s*\}}?)?\s*\}}"
)
"""`\\frac{d^2 x}{d t^2}`; the parser reads the derivative of a name as zero, so it is replaced by a name."""
_SIGNS = ((1,), (-1,), (1, -1), (1, 1, -1))
"""Signs of the variables, in turn: `|xy|` is `xy` where all are positive, and where all are negative."""
_RENAMED = {"I": "\\varrho ", "T": "\\vartheta ", "\\gamma": "\\varphi ", "\\Gamma": "\\varepsilon "}
"""Variables that the parser misreads as the unit matrix, a transposition or Euler's constant. The new names do not
occur in plain LaTeX."""


class UnreadableError(Exception):
    """The parser failed on an expression, which does not make the answer wrong."""


@lru_cache(maxsize=256)
def expression(text: str) -> sympy.Basic:
    """Return plain LaTeX as a sympy expression, decimals as exact fractions, `i` as the imaginary unit.

    Raises:
        UnreadableError: The parser failed, or the text is longer than MOST_CHARACTERS.
    """
    parsed = _parse_latex(text)
    if not isinstance(parsed, sympy.Basic):
        raise UnreadableError("not one expression")
    if "!!" in text:
        parsed = parsed.replace(
            lambda e: isinstance(e, sympy.factorial) and isinstance(e.args[0], sympy.factorial),
            lambda e: sympy.factorial2(e.args[0].args[0]),
        )
    exact = {number: sympy.Rational(str(number)) for number in parsed.atoms(sympy.Float)}
    names = {call: sympy.Symbol(str(call)) for call in parsed.atoms(AppliedUndef)}
    rates = {  # else `dy/dx` of a name without arguments is 0
        rate: sympy.Symbol(str(rate))
        for rate in parsed.atoms(Derivative)
        if rate.expr not in rate.variables and isinstance(rate.expr, sympy.Symbol | AppliedUndef)
    }
    products = {  # `2db` is `2bd`
        symbol: sympy.Mul(*(sympy.Symbol(letter, **symbol.assumptions0) for letter in symbol.name))
        for symbol in parsed.atoms(sympy.Symbol)
        if re.fullmatch("d[A-Za-z]", symbol.name)
    }
    parsed = parsed.xreplace(rates).xreplace({**exact, **names, **products})
    units = {symbol: sympy.I for symbol in parsed.atoms(sympy.Symbol) if symbol.name == "i"}
    return parsed.xreplace(units)


def _parse_latex(text: str) -> sympy.Basic | sympy.MatrixBase:
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if len(text) > MAX_CHARACTERS:
        raise UnreadableError(f"{len(text)} characters")
    if "..." in text:  # the parser would ignore it
        raise UnreadableError("something is left out")
    if re.search(r"(?<![\w{}\\])\d+_", text):  # the parser would ignore the base of a number
        raise UnreadableError("a number in a base")
    text = _rewrite_for_parser(text)
    if re.search(r"\d\s+\d", text):  # the parser would add the two
        raise UnreadableError("two numbers side by side")
    try:
        return latex2sympy(
            text,
            is_real=False,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),  # R is not r
        )
    except Exception as error:
        raise UnreadableError(str(error).split("\n")[0]) from error


def _rewrite_for_parser(text: str) -> str:
    """Rewrite the parts of a text that the parser misreads.

    These are primes, bare names of functions, `E_1` (read as the constant e), `2(3)` (as a mixed number), `1.5e3`, sums
    over i, derivatives of unknown functions (as zero), transposes (ignored) and subscripts that are commands.
    """
    text = _COMMAND_BELOW.sub(lambda m: f"_{{{m[1] or m[2] or m[3]}}}", text)
    text = re.sub(r"_\s*\{\s*([A-Za-z]{2,})\s*\}", r"_{q\1}", text)  # so that `max` is not a function there
    text = _SLASHED_DERIVATIVE.sub(r"\\frac{d \1}{d \2}", text)
    text = _DERIVATIVE.sub(
        lambda m: "\\Psi_{" + re.sub(r"[^A-Za-z\d]", "", "".join(filter(None, m.groups()))) + "}", text
    )
    text = re.sub(
        r"((?<![A-Za-z])[A-Za-df-z]|\})\s*\^\s*\{?\s*(?:(\\top)|\*|\\(?:ast|star|dagger))(?![A-Za-z])\s*\}?",
        lambda m: f"{m[1]}_{{{'T' if m[2] else 'star'}}}",
        text,
    )
    text = re.sub(
        r"\(([^()]*)\)\s*/\s*\(([^()]*)\)", r"\\frac{\1}{\2}", text
    )  # else it divides by everything that follows
    text = re.sub(r"(?<![\w.^}\)])(\d+)/(\d+)(?=\s)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"_\s*(\w)", r"_{\1}", text)
    text = re.sub(r"(?<![A-Za-z\\])([Ee])_\{([^{}]*)\}", r"\\Psi_{\1\2}", text)
    text = re.sub(r"(?<![\w.^])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\w.])", r"(\1\\cdot 10^{\2})", text)
    text = re.sub(r"((?<![\w.^\\])\d+(?:\.\d+)?|\))\s*\(", r"\1\\cdot (", text)
    if re.search(r"\\(?:sum|prod)_\{i=", text):
        text = re.sub(r"(?<![A-Za-z\\])i(?![A-Za-z])", r"\\iota ", text)
    text = re.sub(r"([A-Za-z])('+)", lambda m: f"{m[1]}_{{{'p' * len(m[2])}}}", text)
    text = re.sub(r"(?<![A-Za-z\\])(sqrt|pi|" + "|".join(sorted(FUNCTIONS)) + r")(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\bmod(?![A-Za-z])", r"\\mod ", text)
    text = re.sub(r"\\(gcd|lcm)\s*\(([^(){}]*[A-Za-z][^(){}]*)\)", _divisor_name, text)
    if re.search(r"\\(?:gcd|lcm)(?!\s*\([\d\s,]*\))", text):  # the parser returns 1 where it does not find numbers
        raise UnreadableError("a divisor or multiple of variables")
    if "matrix}" not in text:
        text = re.sub(r"\\Gamma(?=\s*\()|\\[A-Za-z]+|[IT]", lambda m: _RENAMED.get(m[0], m[0]), text)
    return re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)


def _divisor_name(match: re.Match[str]) -> str:
    """Return a name for a greatest common divisor or least common multiple of variables."""
    return f"\\varpi_{{{','.join(sorted([match[1].capitalize(), *match[2].replace(' ', '').split(',')]))}}}"


def same_expression(left: str, right: str) -> bool:
    """Return whether two expressions in plain LaTeX are equal.

    Raises:
        UnreadableError: One of them cannot be parsed.
    """
    return same_value(expression(left), expression(right))


def matrix_rows(text: str) -> list[list[sympy.Expr]]:
    """Return the entries of a matrix that is written as an expression, such as a sum of two matrices.

    Raises:
        UnreadableError: It cannot be parsed, or is not a matrix.
    """
    matrix = _parse_latex(text).doit()
    if not isinstance(matrix, sympy.MatrixBase):
        raise UnreadableError("no matrix")
    return [list(map(sympy.sympify, row)) for row in matrix.tolist()]


def same_value(left: sympy.Basic, right: sympy.Basic) -> bool:
    """Return whether two sympy expressions are equal, wherever both have a value."""
    if left == right and not left.has(sympy.zoo, sympy.nan):
        return True
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return False
    variables = sorted(left.free_symbols | right.free_symbols, key=str)
    return _equal_at_points(left, right, variables)


def _equal_at_points(left: sympy.Expr, right: sympy.Expr, variables: list[sympy.Symbol]) -> bool:
    compared = 0
    growth = 10 if any(map(_has_pieces, (left, right))) else 1
    for values in _points(variables, growth, whole=left.has(*_INTEGER_FUNCTIONS) or right.has(*_INTEGER_FUNCTIONS)):
        a, b = _value(left, values), _value(right, values)
        if a is None or b is None:
            continue
        if any(value < 0 for value in values.values()) and not (_is_real(a) and _is_real(b)):
            continue
        if not _close(a, b):
            return False
        compared += 1
    return compared > 0


def _points(variables: list[sympy.Symbol], growth: int, *, whole: bool) -> Iterator[dict[sympy.Symbol, sympy.Rational]]:
    """Yield the points at which expressions are compared: fractions of both signs or, with `whole`, integers."""
    if not variables:
        yield {}
    elif whole:
        for first in range(1, _INTEGER_POINTS + 1):
            yield {v: sympy.Integer((first * (7 * k + 1)) % 29) for k, v in enumerate(variables)}
    else:
        for signs in _SIGNS[: min(len(variables), 2) * 2]:
            for first in range(_POINTS):
                places = [(first + 3 * k) % len(_POSITIVE) for k in range(len(variables))]
                yield {
                    v: signs[k % len(signs)] * growth**first * sympy.Rational(_POSITIVE[place])
                    for k, (v, place) in enumerate(zip(variables, places, strict=True))
                }


def _has_pieces(expr: sympy.Expr) -> bool:
    """Whether an expression may equal another one near 0 only, as `|x - 5|` equals `5 - x` there."""
    pieces = sympy.Abs, sympy.Max, sympy.Min
    return bool(expr.has(*pieces)) or any(power.exp == sympy.S.Half for power in expr.atoms(sympy.Pow))


def _value(expr: sympy.Expr, values: dict[sympy.Symbol, Any]) -> sympy.Expr | None:
    """Return the value at a point, or None where it is not a finite number."""
    try:
        number = expr.subs(values).doit()
        if not number.is_Rational:
            number = number.evalf(_PRECISION, maxn=400)
    except (ArithmeticError, TypeError, ValueError, AttributeError, NotImplementedError):
        return None
    return number if number.is_number and number.is_finite else None


def _is_real(value: sympy.Expr) -> bool:
    return bool(abs(value.as_real_imag()[1]) <= sympy.Float(10) ** -DIGITS)


def _close(a: sympy.Expr, b: sympy.Expr) -> bool:
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    scale = max(abs(a), abs(b))
    return bool(scale == 0 or abs(a - b) <= scale * sympy.Float(10) ** -DIGITS)


def equals_number(text: str, number: Number) -> bool:
    """Return whether a constant expression equals a number, within the precision to which the number is written.

    Raises:
        UnreadableError: The expression cannot be parsed.
    """
    exact = expression(text)
    if not isinstance(exact, sympy.Expr):
        return False
    if exact.free_symbols:
        return _equal_at_points(exact, sympy.Rational(number.value), sorted(exact.free_symbols, key=str))
    value = _value(exact, {})
    if value is None:
        return False
    expected = sympy.Rational(number.value)
    if _close(value, expected):
        return True
    if number.last_digit is None or number.digits < ENOUGH_DIGITS:
        return False
    return bool(abs(value - expected) <= sympy.Rational(number.last_digit))


def same_equation(left: tuple[str, str], right: tuple[str, str], positive: bool = False) -> bool:
    """Return whether two equations, each a pair of sides, are multiples of each other.

    Args:
        left: Sides of the first, in plain LaTeX.
        right: Sides of the second.
        positive: Whether the factor must be positive, as between inequalities.

    Raises:
        UnreadableError: A side cannot be parsed.
    """
    first, second = (_difference(*sides, keep_denominator=positive) for sides in (left, right))
    if first.free_symbols != second.free_symbols or not first.free_symbols:
        return False
    variables = sorted(first.free_symbols, key=str)
    ratio = first / second
    factor = _value(ratio, {v: sympy.Rational(_POSITIVE[3 * k % len(_POSITIVE)]) for k, v in enumerate(variables)})
    if factor is None or factor == 0 or (positive and not factor > 0):
        return False
    return _equal_at_points(ratio, factor, variables)


def _difference(left: str, right: str, keep_denominator: bool) -> sympy.Expr:
    """Return left minus right side; without its denominator (by which an equation may be multiplied) or with it."""
    sides = expression(left), expression(right)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        raise UnreadableError("a side is no expression")
    difference = (sides[0] - sides[1]).doit()
    return difference if keep_denominator else sympy.together(difference).as_numer_denom()[0]


def latex(expr: sympy.Expr) -> str:
    """Return an expression as LaTeX."""
    return str(sympy.latex(expr))


def canonical_expression(expr: sympy.Basic) -> str:
    """Return the canonical form of an expression: constants simplified, rational functions cancelled and expanded."""
    if not isinstance(expr, sympy.Expr):
        return str(expr)
    expr = expr.doit()
    if expr.has(TrigonometricFunction):
        expr = sympy.trigsimp(expr)
    if expr.free_symbols:
        expr = sympy.cancel(sympy.together(expr))
        return str(sympy.expand(expr) if expr.is_polynomial() else expr)
    if expr.has(sympy.I):
        expr = expr.expand(complex=True)
    return str(expr if expr.is_Rational else sympy.simplify(sympy.sqrtdenest(expr)))


def canonical_equation(left: str, right: str) -> str:
    """Return the canonical form of an equation, the same for all its multiples.

    Raises:
        UnreadableError: A side cannot be parsed.
    """
    difference = sympy.expand(_difference(left, right, keep_denominator=False)).as_content_primitive()[1]
    return f"{min(str(difference), str(sympy.expand(-difference)), key=lambda side: (side.count('-'), side))} = 0"
