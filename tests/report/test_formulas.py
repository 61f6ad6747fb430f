"""Formulas in foreign text: what is converted, what stays text, and that nothing but MathML comes out."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from prmbench.report import formulas
from prmbench.report.formulas import ATTRIBUTES, ELEMENTS, MAX_LENGTH, mathml


def leaves(tree: list[Any]) -> str:
    """All text of a tree."""
    return "".join(child if isinstance(child, str) else leaves(child) for child in tree[2:])


def test_a_fraction_is_the_tree_that_its_source_says() -> None:
    x, one, half = ["mi", 0, "x"], ["mn", 0, "1"], ["mn", 0, "2"]
    power = ["msup", 0, x, ["mrow", 0, half]]
    assert mathml(r"$x^{2}=\frac{1}{2}$") == [
        "math",
        {"display": "inline"},
        power,
        ["mo", 0, "="],
        ["mfrac", 0, ["mrow", 0, one], ["mrow", 0, half]],
    ]


@pytest.mark.parametrize(
    ("source", "display"),
    [
        ("$x$", "inline"),
        (r"\(x\)", "inline"),
        (r"\boxed{x}", "inline"),
        ("$$x$$", "block"),
        (r"\[x\]", "block"),
        (r"\begin{align*}x\end{align*}", "block"),
        (r"\begin{pmatrix} x \end{pmatrix}", "block"),
    ],
)
def test_every_delimiter_is_found_in_a_text(source: str, display: str) -> None:
    ((found, tree),) = formulas.formulas([f"so {source}, which", "and again " + source]).items()
    assert found == source
    assert tree[1]["display"] == display
    assert leaves(tree).strip("( )") == "x"


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $6.",
        "from $5 to $6-$7",
        "US$5 or 5$ each",
        r"\$5 and \$6",
        "a $ b $ c",
        "no formula",
        r"open \[ x",
        "$x$5",
        "$$",
        "",
    ],
)
def test_prices_and_single_delimiters_stay_text(text: str) -> None:
    assert formulas.formulas([text]) == {}


@pytest.mark.parametrize(
    "source",
    [
        r"$\unheardof{x}$",
        "$x_1_2$",
        r"$\left( x$",
        r"$\newcommand{\a}{\a\a}\a$",
        r"$\unicode{xD800}$",
        r"$\unicode{x110000}$",
        "$20% of x$",
        r"$\sqrt 23$",
        "$" + "{" * 490 + "x",
        "$" + "x" * MAX_LENGTH + "$",
    ],
)
def test_what_cannot_be_converted_stays_text(source: str) -> None:
    assert mathml(source) is None


@pytest.mark.parametrize(
    "source",
    [
        r"$\text{<script>alert(1)</script>}$",
        r"$\text{<img src=x onerror=alert(1)>}$",
        r"$\href{javascript:alert(1)}{x}$",
        r"$\style{background:url(https://example.org)}{x}$",
        r"$\class{notice}{x}$",
        r"$\color{red}{x}$",
        r"$\rule{900em}{900em}$",
        r"$\hspace{900em} x$",
        r'$x" onmouseover="alert(1)$',
        "$a < b & c > d$",
        r"$\text{&lt;b&gt;}$",
        r"$\unicode{x3C}script\unicode{x3E}$",
    ],
)
def test_nothing_but_mathml_comes_out_of_hostile_latex(source: str) -> None:
    check(mathml(source))


def test_nothing_but_mathml_comes_out_of_random_latex() -> None:
    parts = r"\frac { } ^ _ \left \right ( ) \begin{matrix} \end{matrix} & \\ \sqrt [ ] a 1 \text{<b>} \href{x}{y}"
    parts += r" \over \style{x}{y} \unicode{x41} \hspace{2em} \sideset \genfrac \tag \mathbf \limits \sum ' % \verb|x|"
    rng = random.Random(0)
    converted = 0
    for _ in range(3000):
        tree = mathml("$" + "".join(rng.choices(parts.split(), k=rng.randint(1, 25))) + "$")
        check(tree)
        converted += tree is not None
    assert converted > 100


def check(tree: list[Any] | None) -> None:
    """Only listed elements and attributes, text in the leaves, and all of it can be written as UTF-8."""
    if tree is None:
        return
    name, attributes, *children = tree
    assert name in ELEMENTS
    assert not attributes or set(attributes) <= set(ATTRIBUTES)
    assert not any(
        word in value for value in (attributes or {}).values() for word in ("url", "script", ":", "<", "900")
    )
    json.dumps(tree, ensure_ascii=False).encode()
    for child in children:
        if not isinstance(child, str):
            check(child)


def test_the_limits_hold_over_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"$x_{{{i}}}$" for i in range(10)]
    monkeypatch.setattr(formulas, "MAX_FORMULAS", 4)
    assert list(formulas.formulas(texts)) == texts[:4]
    monkeypatch.setattr(formulas, "MAX_FORMULAS", 100)
    monkeypatch.setattr(formulas, "MAX_CHARACTERS", 3 * len(texts[0]))
    assert list(formulas.formulas(texts)) == texts[:3]


@pytest.mark.parametrize("opening", [r"\[", r"\(", "$", "$a ", r"\begin{align}", r"\boxed{"])
def test_a_text_of_openings_alone_has_no_formula(opening: str) -> None:
    """Each is searched from at most once over MAX_LENGTH characters, so that this ends."""
    assert formulas.formulas([opening * 3000]) == {}
