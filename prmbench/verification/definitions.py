"""Reads equations as definitions: a name, as in `x = 3` and `f(n) = n^2`, and its value; also lists of definitions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prmbench.verification.forms import Form, Items, Relation, Scalar, flattened, parse
from prmbench.verification.scalars import is_words, without_spaces, without_text_commands

_SYMBOL = r"(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|\w))?'*"
_NAME = re.compile(
    rf"{_SYMBOL}(?:\^\{{-1\}}(?=\())?(?:\([^()]*\))?"
    rf"|(?:m?\\(?:angle|overline|triangle)\{{?)?[A-Z]{{2,4}}\}}?|\|[A-Z]{{2}}\||\[[A-Z]{{3,4}}\]"
    rf"|\({_SYMBOL}(?:,{_SYMBOL})+\)|{_SYMBOL}(?::{_SYMBOL})+|[A-Z]{{2}}/[A-Z]{{2}}|\\frac\{{[A-Z]{{2}}\}}\{{[A-Z]{{2}}\}}"
    r"|\\frac\{d[A-Za-z]\}\{d[A-Za-z]\}"
)
"""A name that an equation can define: x, f(x), P(A), AB, |AB|, [ABC], (x, y), a:b, AB/CD, dy/dx."""
_PRODUCT = re.compile(r"[a-z]{2}|[b-df-hj-np-tv-z]{3}")
"""Letters that are a product and not a word: `xy`, `mn`."""
FUNCTION_NAME = re.compile(rf"y|{_SYMBOL}\([^()]*\)")
_VARIABLE_OF = re.compile(rf"{_SYMBOL}\(([A-Za-z])\)")
PAIR = 2
_INDEXED = re.compile(r"([A-Za-z]|\\[A-Za-z]+)_\{?\d\}?")
"""A name with an index: `x_1`."""
_ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def defined_name(relation: Form) -> str:
    """Return the name that an equation defines: `x` for `x = 3` and `3 = x`; empty for other relations."""
    if not isinstance(relation, Relation) or not relation.is_equation:
        return ""
    for side in (relation.sides[0], relation.sides[-1]):
        name = without_spaces(without_text_commands(side))
        if _NAME.fullmatch(name) or (is_words(side) and not _PRODUCT.fullmatch(name)):
            return name
    return ""


def defined_value(relation: Relation) -> Form | None:
    """Return the value that an equation gives to a name, or None where it defines no name."""
    name = defined_name(relation)
    if not name:
        return parse(relation.sides[-1]) if relation.is_equation and len(relation.sides) > 2 else None
    return parse(
        relation.sides[-1] if without_spaces(without_text_commands(relation.sides[0])) == name else relation.sides[0]
    )


def stated_values(relation: Relation) -> list[Form]:
    """Return the values that an answer's equation states: 5 for `10/2 = 5` and `a + b = 5`; none for `2x = 4`."""
    if not relation.is_equation:
        return []
    value = defined_value(relation)
    if value is not None:
        return [value]
    if relation.signs == ("\\approx",):  # the exact value, or the rounded one
        return [parse(side) for side in relation.sides]
    if len(relation.sides) == PAIR and _multiple_of_name(relation.sides[0]):
        return []
    return [] if without_spaces(relation.sides[-1]) == "0" else [parse(relation.sides[-1])]


def _multiple_of_name(side: str) -> bool:
    """Whether a side is a name with a factor: `2x = 4` and `-x = 1` do not state x."""
    name = re.sub(r"^[-+]?(?:\d+(?:\.\d+)?)?(?:\\cdot|\*)?", "", without_spaces(without_text_commands(side)))
    return bool(name) and _NAME.fullmatch(name) is not None


def with_argument_of(gold_name: str, name: str, value: Form) -> Form:
    """Return a function's value in the gold answer's variable: `n^2` as `x^2` where the gold answer defines f(x)."""
    variables = [_VARIABLE_OF.fullmatch(text) for text in (name, gold_name)]
    if not (isinstance(value, Scalar) and variables[0] and variables[1]):
        return value
    old, new = variables[0][1], variables[1][1]
    either = re.compile(rf"(?<![A-Za-z\\])[{old}{new}](?![A-Za-z])")
    return Scalar(either.sub(lambda letter: new if letter[0] == old else old, value.text))


def assignments(form: Items) -> dict[str, Form]:
    """Return a map from name to value for a list such as `x = 1, y = 2`; empty for other lists.

    Names that are neighbours in the alphabet are sorted, as in `(x, y)`.
    """
    names = [defined_name(item) for item in form.items]
    if not all(names) or len(set(names)) < len(names) or len(names) < 2:
        return {}
    values = [defined_value(item) for item in form.items if isinstance(item, Relation)]
    named = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
    return dict(sorted(named, key=lambda item: item[0]) if "".join(sorted(names)) in _ALPHABET else named)


def common_name(form: Items) -> str:
    """Return the name whose values a list gives, as in `x = 1 or x = 2` and `x = 1, 2`; empty for other lists."""
    names = {defined_name(item) for item in form.items if isinstance(item, Relation)}
    return names.pop() if len(names) == 1 else ""


def are_indexed(names: Iterable[str]) -> bool:
    """Return whether the names are those of roots, `x_1, x_2`, whose order has no meaning."""
    letters = {match[1] if (match := _INDEXED.fullmatch(name)) else "" for name in names}
    return len(letters) == 1 and "" not in letters


def values_of_one_name(form: Items) -> Items:
    """Return `x = 1 or x = 2` and `x = 1, 2` as the list `1, 2`; other lists as they are."""
    if not common_name(form):
        return form
    values = [defined_value(item) if isinstance(item, Relation) else item for item in form.items]
    return Items(flattened(v for v in values if v is not None), form.opening, form.closing)


def in_groups(form: Items) -> Items:
    """Return `p = 5, q = 2, p = 7, q = 2` as two groups of assignments; other lists as they are."""
    names = [defined_name(item) for item in form.items]
    size = names.index(names[0], 1) if names.count(names[0]) > 1 else 0
    if form.opening or size < 2 or not all(names) or names != names[:size] * (len(names) // size):
        return form
    return Items(tuple(Items(form.items[k : k + size]) for k in range(0, len(names), size)))
