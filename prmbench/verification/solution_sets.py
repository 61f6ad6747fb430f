r"""Reads sets of real numbers in any notation: `[2,5)`, `2 \le x < 5`, `x \in [2,5)`, `\mathbb{R}`, unions."""

from __future__ import annotations

import re
from dataclasses import dataclass

import sympy  # type: ignore[import-untyped]

from prmbench.verification.expressions import UnreadableError, expression
from prmbench.verification.forms import Form, Items, Joined, Relation, Scalar, parse

_VARIABLE = re.compile(r"(?:(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|\w))?(?:\([A-Za-z]\))?)?")
"""A variable, or nothing, as before the sign in `> 3`."""
_REALS = re.compile(
    r"(?i)\\mathbb\{R\}|(?:\\text\s*\{)?\s*(?:(?:all|any|every)\s+)?(?:the\s+)?"
    r"real(?:s|\s+numbers?)?\s*(?:(?:values\s+)?(?:of\s+)?\}?\s*[a-z])?\s*\}?"
)
_NO_SOLUTION = re.compile(
    r"(?i)\\emptyset|(?:\\text\s*\{)?\s*(?:(?:there\s+(?:is|are)\s+)?no\s+(?:real\s+)?solutions?(?:\s+exists?)?"
    r"|(?:the\s+)?empty\s+set)\s*\}?"
)
_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError, UnreadableError)


@dataclass(frozen=True, slots=True)
class SolutionSet:
    """A set of real numbers, and the variable that takes these values; empty where none is named."""

    variable: str
    numbers: sympy.Set

    def equals(self, other: SolutionSet) -> bool:
        """Whether both contain the same numbers and do not name different variables."""
        if self.variable and other.variable and self.variable != other.variable:
            return False
        return bool(self.numbers == other.numbers)


def solution_set(form: Form) -> SolutionSet | None:
    """Return the set of real numbers that a form describes, or None where it describes none or cannot be read."""
    try:
        return _solution_set(form)
    except _FAILURES:
        return None


def _solution_set(form: Form) -> SolutionSet | None:
    if isinstance(form, Scalar):
        numbers = _named_set(form.text)
        return None if numbers is None else SolutionSet("", numbers)
    if isinstance(form, Items):
        return _items(form)
    if isinstance(form, Joined):
        return _joined(form)
    if isinstance(form, Relation):
        return _relation(form)
    return None


def _named_set(text: str) -> sympy.Set | None:
    base, minus, removed = text.partition("\\setminus")
    if not minus:
        return (
            sympy.S.Reals
            if _REALS.fullmatch(text.strip())
            else sympy.S.EmptySet
            if _NO_SOLUTION.fullmatch(text.strip())
            else None
        )
    parts = solution_set(parse(base)), solution_set(parse(removed))
    return None if parts[0] is None or parts[1] is None else parts[0].numbers - parts[1].numbers


def _items(form: Items) -> SolutionSet | None:
    if not form.opening and all(isinstance(item, Items) and item.opening for item in form.items):
        parts = [part.numbers for part in map(_solution_set, form.items) if part is not None]
        return SolutionSet("", sympy.Union(*parts)) if len(parts) == len(form.items) else None
    values = [_real(item.text) for item in form.items if isinstance(item, Scalar)]
    if len(values) != len(form.items):
        return None
    if form.opening == "\\{":
        return SolutionSet("", sympy.FiniteSet(*values))
    if form.ordered and len(values) == 2 and form.closing in (")", "]"):
        return SolutionSet("", sympy.Interval(*values, form.opening == "(", form.closing == ")"))
    return None


def _joined(form: Joined) -> SolutionSet | None:
    parts = [_part(part) for part in form.parts]
    readable = [part for part in parts if part is not None]
    variables = {part.variable for part in readable if part.variable}
    if len(readable) != len(parts) or len(variables) > 1:
        return None
    sets = [part.numbers for part in readable]
    numbers = sympy.Union(*sets) if form.joint == "or" else sympy.Intersection(*sets)
    if form.joint == "," and numbers is sympy.S.EmptySet:  # `x < -2, x > 2` means either
        numbers = sympy.Union(*sets)
    return SolutionSet("".join(variables), numbers)


def _part(form: Form) -> SolutionSet | None:
    """Return the numbers that a condition allows; it may be an equation, as in `x < 0 or x = 1`."""
    if isinstance(form, Relation) and form.signs == ("=",) and _VARIABLE.fullmatch(form.sides[0].replace(" ", "")):
        return SolutionSet(form.sides[0].replace(" ", ""), sympy.FiniteSet(_real(form.sides[1])))
    return _solution_set(form)


def _relation(form: Relation) -> SolutionSet | None:
    if set(form.signs) & {"\\approx", "\\equiv"}:
        return None
    if form.signs == ("\\in",):
        inside = _solution_set(parse(form.sides[1]))
        return None if inside is None else SolutionSet(form.sides[0].replace(" ", ""), inside.numbers)
    places = [k for k, side in enumerate(form.sides) if _VARIABLE.fullmatch(side.replace(" ", ""))]
    if len(places) != 1 or "=" in form.signs or "\\in" in form.signs:
        return _solved(form)
    variable = form.sides[places[0]].replace(" ", "")
    numbers: sympy.Set = sympy.S.Reals
    for left, sign, right in zip(form.sides, form.signs, form.sides[1:], strict=False):
        if variable not in (left.replace(" ", ""), right.replace(" ", "")):
            return None
        flipped = right.replace(" ", "") == variable
        bound = _real(left if flipped else right)
        numbers = sympy.Intersection(numbers, _half_line(sign, bound, flipped))
    return SolutionSet(variable, numbers)


def _half_line(sign: str, bound: sympy.Expr, flipped: bool) -> sympy.Set:
    """Return the numbers x with `x sign bound` or, when flipped, with `bound sign x`."""
    if sign == "\\ne":
        return sympy.S.Reals - sympy.FiniteSet(bound)
    open_end = sign in "<>"
    if (sign in ("<", "\\le")) != flipped:
        return sympy.Interval(-sympy.oo, bound, True, open_end)
    return sympy.Interval(bound, sympy.oo, open_end, True)


def _solved(form: Relation) -> SolutionSet | None:
    """Solve inequalities in one variable, such as `1 < |x| < 3`."""
    relations = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge}
    real = sympy.Symbol("x", real=True)
    numbers: sympy.Set = sympy.S.Reals
    variables: set[sympy.Symbol] = set()
    for left, sign, right in zip(form.sides, form.signs, form.sides[1:], strict=False):
        difference = expression(left) - expression(right)
        variables |= difference.free_symbols
        if sign not in relations or len(variables) != 1:
            return None
        relation = relations[sign](difference.subs(dict.fromkeys(variables, real)), 0)
        numbers = sympy.Intersection(numbers, sympy.solveset(relation, real, sympy.S.Reals))
    return SolutionSet("".join(map(str, variables)), numbers)


def _real(text: str) -> sympy.Expr:
    """Return a bound or member.

    Raises:
        UnreadableError: It is neither a real number nor infinite.
    """
    value = expression(text.strip().removeprefix("+")).doit()
    if not isinstance(value, sympy.Expr) or value.free_symbols or not value.is_extended_real:
        raise UnreadableError("no real number")
    return value if value.is_Rational or value.is_infinite else sympy.simplify(value)
