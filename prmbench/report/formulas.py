"""LaTeX in the texts of traces as MathML, converted when the page is written, because the page may load no script.

Traces are foreign text. What the converter returns is not trusted either: of its elements and attributes only those
listed here reach the page, as data from which the page's script builds nodes. A formula that cannot be converted, or is
longer than the limits, is absent from the result, and the page shows it as the text that it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any
from xml.etree.ElementTree import Element

MAX_LENGTH = 1000
"""Characters of a formula with its delimiters."""
MAX_FORMULAS, MAX_CHARACTERS = 20_000, 1_500_000
"""Of all formulas on a page together: a few seconds of work."""
MAX_NODES = 2_000
_ENVIRONMENTS = (
    r"(align\*?|aligned|alignat\*?|array|bmatrix|Bmatrix|cases|gather\*?|matrix|pmatrix|split|vmatrix|Vmatrix)"
)
PATTERN = "|".join(
    (
        rf"\$\$[^$]{{1,{MAX_LENGTH}}}\$\$",
        rf"\\\[(?:(?!\\\[)[\s\S]){{1,{MAX_LENGTH}}}?\\\]",  # without another opening, or many of them would take long
        rf"\\\((?:(?!\\\()[\s\S]){{1,{MAX_LENGTH}}}?\\\)",
        rf"(?<![\\$A-Za-z0-9])\$(?![ \t\r\n$])[^$\n]{{0,{MAX_LENGTH}}}?[^ \t\r\n\\$]\$(?![0-9$])",
        r"\\boxed\{[^{}$\\\n]{1,200}\}",  # as many models end their last step, without delimiters
        rf"\\begin\{{{_ENVIRONMENTS}\}}[\s\S]{{1,{MAX_LENGTH}}}?\\end\{{\1\}}",
    )
)
r"""A formula with its delimiters, as a regular expression of Python and of JavaScript: the page finds with it what was
converted. Between single dollars there is no space at either end and no digit behind, so that prices stay text."""
_FORMULA = re.compile(PATTERN)
_MACROS = re.compile(r"\\(?:(?:re)?newcommand|providecommand|def|let)(?![A-Za-z])")
"""Definitions, which could grow without bound."""
_MISREAD = re.compile(r"(?<!\\)%|\\sqrt\s*\d\d")
"""A comment, which swallows the rest of a line that was meant to be read, and a root of digits without braces."""
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ENTITY = re.compile(r"&#x([0-9A-Fa-f]{1,6});")
_SURROGATES = 0xD800, 0xDFFF
_ESCAPED = re.compile(r"\\([$%&#_{}])")
Tree = list[Any]
"""An element: its name, its attributes (0 without any), then its children, which are texts or elements."""

_WORD = r"[a-z]+(?: [a-z]+){0,40}"
_BOOLEAN = r"true|false"
_SIZE = r"-?[0-3]?(?:\.\d{1,4})?em"
ELEMENTS = frozenset(
    (
        *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mpadded", "mphantom", "mstyle", "menclose"),
        *("msup", "msub", "msubsup", "mover", "munder", "munderover", "mmultiscripts", "mprescripts", "none"),
        *("mfrac", "msqrt", "mroot", "mtable", "mtr", "mtd"),
    )
)
ATTRIBUTES = {
    "display": "block|inline",
    "mathvariant": r"[a-z]+(?:-[a-z]+)*",
    "displaystyle": _BOOLEAN,
    "scriptlevel": r"[+-]?\d",
    "stretchy": _BOOLEAN,
    "fence": _BOOLEAN,
    "separator": _BOOLEAN,
    "largeop": _BOOLEAN,
    "symmetric": _BOOLEAN,
    "movablelimits": _BOOLEAN,
    "accent": _BOOLEAN,
    "accentunder": _BOOLEAN,
    "form": "prefix|infix|postfix",
    "minsize": _SIZE,
    "maxsize": _SIZE,
    "lspace": _SIZE,
    "rspace": _SIZE,
    "width": _SIZE,
    "linethickness": r"0|[0-3](?:\.\d{1,3})?(?:px|pt|em)?",
    "columnalign": _WORD,
    "columnspacing": rf"{_SIZE}(?: {_SIZE}){{0,40}}",
    "rowspacing": rf"{_SIZE}(?: {_SIZE}){{0,40}}",
    "columnlines": _WORD,
    "rowlines": _WORD,
    "notation": r"box|top|bottom|left|right|(?:up|down)diagonalstrike|horizontalstrike",
}
"""Attributes that may reach the page, with the form of their values. None of them can hold an address or a style."""
_ATTRIBUTES = {name: re.compile(form) for name, form in ATTRIBUTES.items()}


def formulas(texts: Iterable[str]) -> dict[str, Tree]:
    """Returns the formulas in the texts that can be converted: source with delimiters -> MathML.

    Args:
        texts: Texts that the page shows; the first formulas are converted when there are more than the limits allow.
    """
    trees: dict[str, Tree] = {}
    seen: set[str] = set()
    characters = 0
    for text in texts:
        for match in _FORMULA.finditer(text):
            source = match[0]
            if source in seen:
                continue
            seen.add(source)
            characters += len(source)
            if len(seen) > MAX_FORMULAS or characters > MAX_CHARACTERS:
                return trees
            tree = mathml(source)
            if tree is not None:
                trees[source] = tree
    return trees


@lru_cache(maxsize=MAX_FORMULAS)
def mathml(source: str) -> Tree | None:
    """Returns a formula with its delimiters as MathML; None where it cannot be converted."""
    from latex2mathml import converter

    if len(source) > MAX_LENGTH or _MACROS.search(source) or _MISREAD.search(source):
        return None
    is_block = source.startswith(("$$", "\\[", "\\begin"))
    try:
        element = converter.convert_to_element(_without_delimiters(source), display="block" if is_block else "inline")
    except _errors():
        return None
    if sum(1 for _ in element.iter()) > MAX_NODES:
        return None
    try:
        return _tree(element)
    except _NotConvertedError:
        return None


@cache
def _errors() -> tuple[type[Exception], ...]:
    """Everything that the converter raises on LaTeX that it cannot read."""
    from latex2mathml import exceptions

    own = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, StopIteration)


class _NotConvertedError(Exception):
    """Part of a formula is not in the result as it should be."""


def _without_delimiters(source: str) -> str:
    if source.startswith(("\\begin", "\\boxed")):
        return source
    return source[2:-2] if source.startswith(("$$", "\\")) else source[1:-1]


def _tree(element: Element) -> Tree:
    if element.tag not in ELEMENTS:
        raise _NotConvertedError
    attributes = {
        name: value
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _ATTRIBUTES[name].fullmatch(value)
    }
    children: list[Any] = [_text(element.text)] if element.text else []
    for child in element:
        children.append(_tree(child))
        if child.tail and child.tail.strip():
            children.append(_text(child.tail))
    if element.tag == "math" and len(children) == 1 and children[0][:2] == ["mrow", 0]:
        children = children[0][2:]  # the row around everything says nothing
    return [element.tag, attributes or 0, *children]


def _text(text: str) -> str:
    """The characters that a text stands for; a command left in it was not understood."""
    characters = _ESCAPED.sub(r"\1", _ENTITY.sub(_character, text))
    if _COMMAND.search(characters) or "&#x" in characters or characters == "\\":
        raise _NotConvertedError
    return characters


def _character(match: re.Match[str]) -> str:
    """The character of a numeric entity; half a one could not be written."""
    code = int(match[1], 16)
    if code > sys.maxunicode or _SURROGATES[0] <= code <= _SURROGATES[1]:
        raise _NotConvertedError
    return chr(code)
