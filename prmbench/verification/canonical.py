"""Canonical form of an answer, the same for equal answers, so that they vote together."""

from __future__ import annotations

import re

from prmbench.verification import expressions, extraction
from prmbench.verification.definitions import are_indexed, assignments, defined_value, values_of_one_name
from prmbench.verification.expressions import UnreadableError, expression
from prmbench.verification.forms import Form, Items, Matrix, Relation, Scalar, parse
from prmbench.verification.grading import choice_letter, without_modulus
from prmbench.verification.quantities import read_quantity
from prmbench.verification.scalars import (
    canonical_text,
    in_unit_of,
    is_words,
    plain_words,
    without_spaces,
    without_text_commands,
)
from prmbench.verification.solution_sets import solution_set

MAX_MAGNITUDE = 10**1000
"""Larger numerators and denominators are left as they were written."""


def vote(answer: str, gold: str, verdict: str) -> str:
    """Return what an answer votes for: all right answers for the gold answer, and no wrong one for it.

    Args:
        answer: Answer in plain LaTeX.
        gold: The reference answer; without a verdict it tells nothing.
        verdict: Whether the answer is right.
    """
    golds = extraction.extract_gold_answers(gold)
    if not golds or verdict not in ("right", "wrong"):
        return canonical_answer(answer)
    right = canonical_answer(golds[0])
    if verdict == "right":
        return right
    form = parse(answer)
    quantities = read_quantity(golds[0]), read_quantity(answer)
    if isinstance(form, Scalar) and all(quantity.units for quantity in quantities):
        answer = in_unit_of(quantities[1], quantities[0]) or answer
    wrong = canonical_answer(answer)
    return wrong if wrong != right else f"{without_spaces(answer)} (not {right})"


def canonical_answer(answer: str) -> str:
    r"""Return the canonical form of an answer in plain LaTeX: `1/2` for `\frac{1}{2}` and `0.5`, `3` for `x = 3`."""
    answer, _ = without_modulus(answer)
    return choice_letter(without_text_commands(answer)) or _form(parse(answer))


def _form(form: Form) -> str:
    numbers = solution_set(form) if not isinstance(form, Items) else None
    if numbers is not None:
        return _set(numbers.numbers)
    if isinstance(form, Items):
        return _items(form)
    if isinstance(form, Matrix):
        if all(len(row) == 1 for row in form.rows):
            return f"({', '.join(_form(row[0]) for row in form.rows)})"
        return f"[{', '.join('[' + ', '.join(map(_form, row)) + ']' for row in form.rows)}]"
    if isinstance(form, Relation):
        return _relation(form)
    return _scalar(form.text) if isinstance(form, Scalar) else without_spaces(str(form))


def _items(form: Items) -> str:
    values = assignments(form)
    if are_indexed(values):
        form = Items(tuple(values.values()))
    elif values:
        return f"({', '.join(_form(value) for value in values.values())})"
    form = values_of_one_name(form)
    items = [_form(item) for item in form.items]
    if form.ordered:
        return f"{form.opening}{', '.join(items)}{form.closing}"
    items = sorted(set(items) if form.opening else items, key=_sort_key)
    return items[0] if len(items) == 1 else f"{{{', '.join(items)}}}"


def _sort_key(item: str) -> tuple[float, str]:
    number = read_quantity(item).number
    return (float(number.value) if number else float("inf"), item)


def _set(numbers: object) -> str:
    import sympy  # type: ignore[import-untyped]

    if isinstance(numbers, sympy.Interval):
        opening, closing = "(" if numbers.left_open else "[", ")" if numbers.right_open else "]"
        return f"{opening}{numbers.start}, {numbers.end}{closing}"
    if isinstance(numbers, sympy.Union):
        return " U ".join(_set(part) for part in numbers.args)
    return str(numbers)


def _relation(form: Relation) -> str:
    value = defined_value(form)
    if value is not None:
        return _form(value)
    if form.signs == ("\\in",) or (form.is_equation and not re.search("[A-Za-z]", "".join(form.sides[:-1]))):
        return _form(parse(form.sides[-1]))  # the answer of `3 + 4 = 7` is 7
    if form.signs == ("=",):
        try:
            return expressions.canonical_equation(*form.sides)
        except UnreadableError:
            pass
    return without_spaces("".join(side + sign for side, sign in zip(form.sides, [*form.signs, ""], strict=True)))


def _scalar(text: str) -> str:
    if text_form := canonical_text(text):
        return text_form
    quantity = read_quantity(text)
    if quantity.number is not None:
        value = quantity.number.value
        return (
            str(value)
            if value.denominator < MAX_MAGNITUDE and abs(value.numerator) < MAX_MAGNITUDE
            else without_spaces(quantity.core)
        )
    if is_words(quantity.core):
        return plain_words(text)
    try:
        return expressions.canonical_expression(expression(quantity.core))
    except UnreadableError:
        return without_spaces(text)
