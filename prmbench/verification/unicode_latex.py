"""Converts Unicode mathematics to LaTeX: signs, Greek letters, superscripts, subscripts, fractions, roots."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙₘᵢⱼₖ", "0123456789+-=()aeoxnmijk")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙₘᵢⱼₖ]+")
_GREEK = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau
    upsilon phi chi psi omega
    """.split()
_CAPITALS = "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()
_SYMBOLS = {
    **{chr(0x3B1 + k): f"\\{name} " for k, name in enumerate(_GREEK)},
    **{capital: f"\\{name} " for capital, name in zip("ΓΔΘΛΞΠΣΦΨΩ", _CAPITALS, strict=True)},
    **dict.fromkeys("−–—‐‑‒﹣－", "-"),
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    "÷": r"\div ",
    "∕": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "≦": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "≧": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≃": r"\approx ",
    "≅": r"\cong ",
    "≡": r"\equiv ",
    "∞": r"\infty ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "⌀": r"\emptyset ",
    "Ø": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℚ": r"\mathbb{Q}",
    "ℕ": r"\mathbb{N}",
    "ℂ": r"\mathbb{C}",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∖": r"\setminus ",
    "°": r"^\circ ",
    "˚": r"^\circ ",
    "º": r"^\circ ",
    "℃": r"^\circ C",
    "℉": r"^\circ F",
    "。": ".",
    "、": ",",
    "′": "'",
    "’": "'",
    "‘": "'",
    "”": '"',
    "“": '"',
    "µ": r"\mu ",
    "ϕ": r"\phi ",
    "ϵ": r"\epsilon ",
    "⁄": "/",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "→": r"\to ",
    "⇒": r"\implies ",
    "…": "...",
    "∗": r"\cdot ",
    "∆": r"\Delta ",
    "ℓ": r"\ell ",
    "∶": ":",
    "″": "''",
    "∣": "|",
    "∥": r"\parallel ",
    **dict.fromkeys("ħℏ", r"\hbar "),
    **dict.fromkeys("✓✔✅∎■□", " "),
}
_SYMBOL = re.compile("[" + re.escape("".join(_SYMBOLS)) + "]")
_INVISIBLE = re.compile(
    "[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\x00-\x08\x0e-\x1f\x7f]"
)
_SPACE = re.compile(r"\s")
_STYLED_LETTER = re.compile("[\U0001d400-\U0001d7ff]")
_SUPERSCRIPT_FRACTION = re.compile(r"([⁰¹²³⁴⁵⁶⁷⁸⁹]+)\s*[⁄∕/]\s*([₀₁₂₃₄₅₆₇₈₉]+)")
_FRACTION_CHARACTER = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_ROOT = re.compile(r"([√∛∜])[ ]?(\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+|\([^()]*\)|\{[^{}]*\})")
_ROOT_NAMES = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}


def latex_of_unicode(text: str) -> str:
    """Return a text with Unicode mathematics as LaTeX, and full-width characters and other look-alikes as ASCII."""
    text = _SPACE.sub(" ", _INVISIBLE.sub("", text))
    text = _STYLED_LETTER.sub(lambda m: unicodedata.normalize("NFKC", m[0]), text)
    text = _FRACTION_CHARACTER.sub(_fraction_latex, text)
    text = _SUPERSCRIPT_FRACTION.sub(
        lambda m: f"\\frac{{{m[1].translate(_SUPERSCRIPTS)}}}{{{m[2].translate(_SUBSCRIPTS)}}}", text
    )
    text = _SUPERSCRIPT_RUN.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = _SYMBOL.sub(lambda m: _SYMBOLS[m[0]], text)
    text = _ROOT.sub(lambda m: f"{_ROOT_NAMES[m[1]]}{{{m[2].strip('(){}')}}}", unicodedata.normalize("NFKC", text))
    return text


def _fraction_latex(match: re.Match[str]) -> str:
    numerator, denominator = unicodedata.normalize("NFKC", match[0]).split("\u2044")
    return f"\\frac{{{numerator}}}{{{denominator or 1}}}"
