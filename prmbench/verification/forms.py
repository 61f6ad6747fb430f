r"""Parses an answer into its structure: a list, a tuple or interval, a set, a matrix, a relation, or a scalar.

`parse` reads plain LaTeX (latex.py); grading.py compares the parsed forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

MAX_ITEMS = 200
"""A longer list is treated as one scalar."""
MAX_SIGNS = 3
"""Up to this many plus-minus signs are expanded."""
_LIST = re.compile(
    r",|;|\\&|(?<![A-Za-z\\])(?:and|or)(?![a-z])|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\\(?:land|lor|vee|wedge)(?![A-Za-z])"
)
_ONE_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_SEMICOLON = re.compile(";")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx|equiv)(?![A-Za-z])|[<>=]")
_OUTWARD_INTERVAL = re.compile(r"\][^\[\]]*[\[\]]|\[[^\[\]]*\[")
"""An interval with outward brackets at its open ends, as in `]0, 1[`."""
_LETTER = re.compile("[A-Za-z]")
_TRANSPOSED = re.compile(r"[(\[]([^(),]*,[^()]*)[)\]]\s*\^\s*\{?\s*(?:T|\\top(?![a-z]))\s*\}?")
_ROW = re.compile(r"\\\\(?:\[[^\[\]]*\])?")
_CELL = re.compile("&")
_SIGN = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_SUCH_THAT = re.compile(r"\\mid(?![A-Za-z])|\||:")
_ENVIRONMENT = re.compile(r"\\begin\{([pbB]?matrix|smallmatrix|array|cases)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.DOTALL)
_BRACKET = re.compile(r"\\(?:langle|rangle)(?![A-Za-z])|\\[{}]|\\(?:begin|end)\{[^{}]*\}|\\.|[()\[\]{}]", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle"}
_OPENS = (*_CLOSING, "{", "\\begin")
_CLOSES = (*_CLOSING.values(), "}", "\\end")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number, expression, word or name."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """Several values: `1, 2`, `(1, 2)`, `[1, 2)`, `{1, 2}`."""

    items: tuple[Form, ...]
    opening: str = ""
    r"""Empty for a bare list, else `(`, `[`, `\{`; an interval with outward brackets has the usual ones here."""
    closing: str = ""

    @property
    def ordered(self) -> bool:
        """Whether the brackets imply that the order matters."""
        return self.opening not in ("", "\\{")


@dataclass(frozen=True, slots=True)
class Joined:
    """Sets or conditions, joined by `or` or `and`."""

    parts: tuple[Form, ...]
    joint: str
    """`or`, `and`, or `,` where the text has only a comma."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    r"""A chain of sides with a sign between each two: `=`, `<`, `>`, `\le`, `\ge`, `\ne`, `\in`."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]

    @property
    def is_equation(self) -> bool:
        """Whether all signs are `=`, approximate equality or congruence."""
        return set(self.signs) <= {"=", "\\approx", "\\equiv"}


Form = Scalar | Items | Joined | Matrix | Relation


@lru_cache(maxsize=1024)
def parse(text: str) -> Form:
    """Return the form of an answer in plain LaTeX."""
    text = _without_parentheses(text.strip())
    if _OUTWARD_INTERVAL.fullmatch(text) and "," in text:
        return Items(
            tuple(map(parse, split(text[1:-1], _LIST)[0])),
            "(" if text[0] == "]" else "[",
            ")" if text[-1] == "[" else "]",
        )
    if column := _TRANSPOSED.fullmatch(text):
        text = f"({column[1]})"
    groups, semicolons = split(text, _SEMICOLON)
    if semicolons and "," in text and "" not in groups:  # `p = 5, q = 2; p = 7, q = 2`
        return Items(tuple(map(parse, groups)))
    words = _ONE_TEXT.fullmatch(text)
    pieces, joints = split(words[1] if words else text, _LIST)
    if joints and pieces[0] and joints[-1] in ",;" and not pieces[-1]:
        pieces, joints = pieces[:-1], joints[:-1]  # a trailing comma
    pieces = [piece for piece in pieces if piece]  # `1, 2, and 3` has an empty one
    if any(joint.startswith("\\") and joint[1] in "lvw" for joint in joints) and all(map(_LETTER.fullmatch, pieces)):
        return Scalar(text)  # a proposition
    if len(pieces) > 1 and len(pieces) <= MAX_ITEMS:
        return _list_of(tuple(map(parse, pieces)), joints)
    return (
        _relation(text) or _union(text) or _plus_minus(text) or _environment(text) or _bracketed(text) or Scalar(text)
    )


def split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Return the pieces between separators that stand outside of all brackets, stripped, and the separators."""
    depths = _depths(text)
    pieces, separators, position = [], [], 0
    for match in separator.finditer(text):
        if depths[match.start()] == 0:
            pieces.append(text[position : match.start()].strip())
            separators.append(match[0])
            position = match.end()
    return [*pieces, text[position:].strip()], separators


@lru_cache(maxsize=64)
def _depths(text: str) -> tuple[int, ...]:
    """Return how many brackets are open at each character; an opening bracket counts itself, a closing one does not."""
    depths: list[int] = []
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depths += [depth] * (bracket.start() - len(depths))
        depth = max(0, depth + bracket[0].startswith(_OPENS) - bracket[0].startswith(_CLOSES))
        depths += [depth] * len(bracket[0])
    return (*depths, *[depth] * (len(text) - len(depths)))


def _encloses(text: str, opening: str, closing: str) -> bool:
    """Whether the brackets at the ends of the text form a pair."""
    if not (text.startswith(opening) and text.endswith(closing)) or len(text) < len(opening) + len(closing):
        return False
    return 0 not in _depths(text)[: len(text) - len(closing)]


def _without_parentheses(text: str) -> str:
    """Return `(x + 1)` as `x + 1`; parentheses around a list stay."""
    while _encloses(text, "(", ")") or _encloses(text, "{", "}"):
        inner = text[1:-1].strip()
        if text[0] == "(" and (not inner or split(inner, re.compile("[,;]"))[1]):
            break
        text = inner
    return text


def _list_of(parts: tuple[Form, ...], joints: list[str]) -> Form:
    """Return Items or, where all parts are conditions or equations and at least one is a condition, Joined."""
    if not any(_is_condition(part) for part in parts) or not all(
        _is_condition(part) or isinstance(part, Relation) for part in parts
    ):
        return Items(flattened(parts))
    words = " ".join(joints)
    joint = "or" if re.search("or|vee", words) else "and" if re.search("and|wedge", words) else ","
    return Joined(parts, joint)


def _is_condition(form: Form) -> bool:
    return isinstance(form, Joined) or (isinstance(form, Relation) and not form.is_equation)


def flattened(items: Iterable[Form]) -> tuple[Form, ...]:
    r"""Return the members of a list, with bare lists inside it expanded: `1 \pm x, 2` has three."""
    members: list[Form] = []
    for item in items:
        members.extend(item.items if isinstance(item, Items) and not item.opening else (item,))
    return tuple(members)


def _relation(text: str) -> Form | None:
    sides, signs = split(text, _RELATION)
    if not signs or "" in sides[1:] or (not sides[0] and signs[0] in ("=", "\\in")):
        return None
    while len(signs) > 1 and signs[-1] == "\\approx":  # the value of `x = 1/3 \approx 0.33` is 1/3
        sides, signs = sides[:-1], signs[:-1]
    return Relation(tuple(sides), tuple(signs))


def _union(text: str) -> Form | None:
    parts, signs = split(text, _UNION)
    return Joined(tuple(map(parse, parts)), "or") if signs and "" not in parts else None


def _plus_minus(text: str) -> Form | None:
    r"""Return `1 \pm x` as the list `1 + x, 1 - x`."""
    pieces, signs = _SIGN.split(text), _SIGN.findall(text)
    if not signs or len(signs) > MAX_SIGNS:
        return None
    if "\\mp" in signs:  # the upper signs belong together
        choices = [
            ["+" if sign == "\\pm" else "-" for sign in signs],
            ["-" if sign == "\\pm" else "+" for sign in signs],
        ]
    else:
        choices = [list(choice) for choice in product("+-", repeat=len(signs))]
    values = (pieces[0] + "".join(map("".join, zip(choice, pieces[1:], strict=True))) for choice in choices)
    return Items(tuple(parse(value.strip().removeprefix("+")) for value in values))


def _environment(text: str) -> Form | None:
    match = _ENVIRONMENT.fullmatch(text)
    if match is None or "\\end" in match[2]:
        return None
    rows = [row for row in split(match[2], _ROW)[0] if row]
    cells = [split(row, _CELL)[0] for row in rows]
    if match[1] == "cases":
        return parse(", ".join(rows)) if all(len(row) == 1 for row in cells) else None
    if match[1] == "array":  # which also arranges lines below each other
        lines = [parse(" ".join(row)) for row in cells]
        if len(cells) == 1 == len(cells[0]) or all(isinstance(line, Relation) for line in lines):
            return _list_of(tuple(lines), [","]) if len(lines) > 1 else lines[0]
    return Matrix(tuple(tuple(map(parse, row)) for row in cells))


def _bracketed(text: str) -> Form | None:
    for opening, matching in _CLOSING.items():
        for closing in (matching, *((")", "]") if opening in "([" else ())):
            if _encloses(text, opening, closing):
                return _inside(text[len(opening) : -len(closing)].strip(), opening, closing)
    return None


def _inside(inner: str, opening: str, closing: str) -> Form | None:
    if opening == "\\{":
        condition = split(inner, _SUCH_THAT)
        if condition[1]:
            return parse(", ".join(condition[0][1:]))
    items = [piece for piece in split(inner, _LIST)[0] if piece]
    if not items or len(items) > MAX_ITEMS:
        return None
    if len(items) == 1 and (isinstance(only := parse(items[0]), Matrix) or (isinstance(only, Items) and only.opening)):
        return only
    if opening == "\\langle":
        opening, closing = "(", ")"
    members = tuple(map(parse, items))
    if opening == "\\{":
        return Items(flattened(members), opening, closing)
    rows = [member.items for member in members if isinstance(member, Items) and member.opening == "["]
    if opening == "[" and 1 < len(members) == len(rows):  # `[[1, 2], [3, 4]]`, as programs write a matrix
        return Matrix(tuple(rows))
    return Items(members, opening, closing)
