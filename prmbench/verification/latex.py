r"""Converts answers as people and models write them to plain LaTeX: `**\dfrac12$**` becomes `\frac{1}{2}`.

`plain_latex` removes formatting: fonts, spacing, delimiters, final punctuation, currency, degree signs, digit groups.
Anything that may carry meaning (words, units, percent signs, brackets, commas) stays for forms.py to read. Every
pattern is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from prmbench.verification.unicode_latex import latex_of_unicode

FUNCTIONS = frozenset(
    """
    sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth log ln lg exp gcd lcm max min mod det
    arg deg dim ker sup inf lim sqrt abs floor ceil
    """.split()
)
"""Names of functions, which are not words even between digits and letters."""

_TAKES_ARGUMENTS = re.compile(
    r"(\\(?:sqrt|bar|hat|vec|d?dot|tilde|overline)(?![A-Za-z])\s*(?:\[[^\[\]]*\])?)|\\(?:[dtcsx]|nice)?(frac)(?![A-Za-z])|\\[dt]?(binom)(?![A-Za-z])"
)
_TOKEN = re.compile(r"\{|\\[A-Za-z]+|[^\s{}]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|sc|up|md|normal)?|[mh]box|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|mathop"
    r"|boldsymbol|bm|pmb|emph|underline|ensuremath)\s*+\{([^{}]*)\}"
)
_UNIT_POWER = re.compile(r"(\\(?:mathrm|text)\s*+\{[^{}]*)\^\{\s*(-?\d)\s*\}")
_PATTERNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Delimiters, fonts, spacing.
        (r"(?<!\\)\\[()]|(?<!\\)\\[\[\]]", " "),
        (
            r"\\begin\{(?:aligned|align\*?|equation\*?|gathered|split)\}|\\end\{(?:aligned|align\*?|equation\*?|gathered|split)\}",
            " ",
        ),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.", " "),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*", ""),
        (
            r"\\(?:(?:display|text|script|scriptscript)style|(?:no)?limits|tiny|scriptsize|footnotesize|small|normalsize"
            r"|[lL]arge|LARGE|[hH]uge|therefore)(?![A-Za-z])",
            " ",
        ),
        (r"\{\\(?:rm|bf|it|tt|sf|cal)(?![A-Za-z])\s*([^{}]*)\}", r"{\\text{\1}}"),
        (r"\\(?:rm|bf|it|tt|sf|cal)(?![A-Za-z])", " "),
        (
            r"\\color\s*\{[^{}]*\}|\\label\s*\{[^{}]*\}|\\tag\*?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}|\\hspace\*?\s*\{[^{}]*\}",
            " ",
        ),
        (r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}", " "),
        (r"(\d)\s*(?:\{\s*\\?,\s*\}|,\s*\\!|\\[,!;: ]|')\s*(?=\d{3}(?!\d))", r"\1"),
        (r"\\!", ""),
        (r"\\q?quad(?=\s*[A-Za-z](?:_\w)?\s*=)", ", "),
        (
            r"(?<!\\)\\[,;:> ]|\\(?:q?quad|enspace|(?:thin|med|thick|nobreak)space|hfill)(?![A-Za-z])|(?<!\\)~|&nbsp;",
            " ",
        ),
        # One form for each sign.
        (r"(?<=[\w)}\]])\s*\*\*\s*(-?(?:\d+|[A-Za-z]))", r"^{\1}"),
        (r"(?<=[\w)}\]])\s*\*\*\s*(?=\()", "^"),
        (r"\^\s*(?:\{\s*(?:\\prime\s*)+\}|(?:\\prime\s*)+)", lambda m: "'" * m[0].count("prime")),
        (r"\^\s*(-\s*(?:\d+|[A-Za-z]))", r"^{\1}"),
        (r"\\cr(?![A-Za-z])", r"\\\\ "),
        (r"\{\s*([:=+]|\\(?:times|cdot|div))\s*\}", r" \1 "),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\\?(?<![A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])sqrt\s*(\d+)", r"\\sqrt{\1}"),
        (r"\\lg(?![A-Za-z])|(?<![A-Za-z\\])lg(?![A-Za-z])", r"\\log "),
        (r"(?<![A-Za-z\\.])(?:np|numpy|math)\.(?=[a-z])", ""),
        (r"\\bigcup(?![A-Za-z])", r"\\cup "),
        (r"\\(?:backslash|smallsetminus)(?![A-Za-z])|(?<=\})\s*(?:-|\\)\s*(?=\\\{)", r"\\setminus "),
        (r"\\le(?:q|qslant|qq)?(?![A-Za-z])|\\lt(?![A-Za-z])\s*=|<=|=<", r"\\le "),
        (r"\\ge(?:q|qslant|qq)?(?![A-Za-z])|\\gt(?![A-Za-z])\s*=|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq?(?![A-Za-z])|\\not\s*=|!=", r"\\ne "),
        (r"\\(?:approx|approxeq|simeq|thickapprox|doteq)(?![A-Za-z])|~=", r"\\approx "),
        (r"\\(?:lbrace|lcurly)(?![A-Za-z])\s*", r"\\{"),
        (r"\\(?:rbrace|rcurly)(?![A-Za-z])\s*", r"\\}"),
        (r"\\lbrack(?![A-Za-z])\s*", "["),
        (r"\\rbrack(?![A-Za-z])\s*", "]"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\(?:varnothing|O)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\infin(?![A-Za-z])|(?<![A-Za-z\\])\+?(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"\\(?:Bbb|mathbb)\s*([RQZNC])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\(?:Bbb|mathbb)\s*\{\s*([RQZNC])\s*\}", r"\\mathbb{\1}"),
        (r"\\mathbf\{R\}|\\(?:reals|Reals|R)(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\(?:var)?(epsilon|phi|theta|rho|sigma|kappa)(?![A-Za-z])", r"\\\1 "),
        (r"\\imath(?![A-Za-z])", "i"),
        (r"\\ast(?![A-Za-z])", r"\\cdot "),
        (r"\\(?:dots|ldots|cdots|dotsc|dotsb)(?![A-Za-z])", "..."),
        (r"\\dbinom(?![A-Za-z])|\\tbinom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:checkmark|blacksquare|square|qed|newline)(?![A-Za-z])", " "),
        (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1\\text{\2}"),
        (r"<(b|i|em|strong|u|p|span)>(.{0,200}?)</\1>", r" \2 "),
        # Degrees, currency, percent. A sign that is the unit of the whole answer becomes one in words.
        (
            r"^\s*(?:(\\\$)|(€|\\euro(?![A-Za-z]))|(£|\\pounds(?![A-Za-z])))\s*(-?\s*[\d.,]*\d)"
            r"((?:\s|\\text\s*\{)*(?:thousand|million|billion|trillion)\s*\}?)?\s*\.?\s*$",
            lambda m: f"{m[4]}{m[5] or ''} \\text{{ {'usd' if m[1] else 'eur' if m[2] else 'gbp'}}}",
        ),
        (
            r"(\\?(?<![A-Za-z])(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*(?:\d|\{\d\}))?\s*[({]?\s*)(\d+(?:\.\d+)?)"
            r"\s*(?:\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z]))",
            r"\1\\frac{\2\\pi}{180}",
        ),
        (
            r"\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})\s*(?:([CF])|\\text\s*\{\s*([CF])\s*\})?\s*\.?\s*$",
            lambda m: f"\\text{{ deg{m[1] or m[2] or ''}}}",
        ),
        (
            r"(?<=\d)(?:\s*\^\s*(?:\{(?:st|nd|rd|th)\}|(?:\{\s*)?\\text(?:rm)?\{(?:st|nd|rd|th)\}\s*\}?)|(?:st|nd|rd|th)(?![A-Za-z]))",
            " ",
        ),
        (
            r"\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})\s*(?:[CF](?![A-Za-z]))?|\\degree(?:s)?(?![A-Za-z])|\\textdegree"
            r"|(?<=\d)\^(?:o|\{o\})(?![A-Za-z])",
            " ",
        ),
        (r"(?<=\d)\s*(?:¢|\\cents?(?![A-Za-z]))\s*$", r"\\text{ cents}"),
        (r"\\\$|\\pounds(?![A-Za-z])|\\euro(?![A-Za-z])|[€£¥₹₽₩₪฿¢]", " "),
        (
            r"\\?%|\s*\\text\s*\{\s*(?:percent(?:age)?|per cent|pct\.?)\s*\}|\s*\b(?:percent(?:age)?|per cent|pct)\b",
            r"\\% ",
        ),
        (r"``(.*?)''", r"\1"),
        (r"\\?\"|\$|\\?#(?=\s*\d)", " "),
    )
)
DIGIT_GROUPS = re.compile(r"(?<![\d.,(\[])(?<!\\\{)([1-9]\d{0,2}(?:,\d{3})+)(?!\d|,(?! )|\.\d*,)")
"""1,000 and 12,345,678; directly after a bracket the comma separates two numbers."""
_DECIMAL_COMMA = re.compile(r"(?<![\d.,(\[])0,(?=\d{3,}(?![\d,]))")
_SPACED_GROUPS = re.compile(r"(?<![\d.,/])(?<!\d )(\d{1,3}(?: \d{3})+)(?![\d/]| \d)")
_BARE_POINT = re.compile(r"(?<![\d.])\.(?=\d)")
_LAST_POINT = re.compile(r"(\d)\.(?![\d.(]|\s*\\(?:overline|bar|dot)(?![A-Za-z]))")
_ANNOUNCEMENT = re.compile(
    r"(?i)^(?:the\s+)?(?:final\s+)?(?:answer|ans|result|solution|total)s?\s*(?:is|are|[:=])\s*[:=]?\s*"
)
_LEADING_MARKS = re.compile(r"^[\s,;:?*_`]+|^\\approx\s*|^=\s*|^(?:about|approximately|roughly|exactly)\s+(?=[-\d\\])")
ALSO_UNITS = ("deg", "min", "sec")
"""Function names that are units inside a text command and at the end of an answer."""
_INTEGER_CONDITION = re.compile(
    r"[\s,;(]*+(?:\\text\s*\{[\s,]*(?:for|where|with)[^{}]*\}|for|where|with)?\s*(?:(?:all|any)\s+)?([kmn])\s*\\in\s*"
    r"\\mathbb\{Z\}\s*\)?$"
)
"""Condition of a family of values, as in `2k\\pi, k \\in \\mathbb{Z}`; it is removed, since it is implied."""
_ONE_COMMAND = re.compile(r"\\[A-Za-z]+\s*")
_NUMBER_FIRST = re.compile(r"([-+]?\d[\d.,]*)(\s+[A-Za-z]{2}[^:\d]*)")
_JOINT_AT_END = re.compile(r"(.*[A-Za-z])\s+(and|or)()|()(and|or)\s+(\w.*)")
_QUOTED = re.compile(r"^'([^']+)'$")
_TRAILING_MARKS = re.compile(r"[\s,;:?_`\\]+$|(?<!\^)\*+$|(?<!\.)\.{1,2}$")


def plain_latex(text: str) -> str:
    r"""Return an answer as plain LaTeX, e.g. `\frac{1}{2}` for `½`, `$\dfrac12$.` and `\( \tfrac{1}2 \)`."""
    text = re.sub(r"(?<![\w)}\]])\*\*(.+?)\*\*", r"\1", latex_of_unicode(text))
    if r"\begin" not in text:  # there a double backslash ends a row
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    if r"\begin" not in text and "\\\\" in text:  # lines below each other: of one equation, or a list
        text = re.sub(r"\\\\\s*(?=[=<>]|\\(?:le|ge|approx) )", " ", text.replace("&", " "))
        text = re.sub(r"\\\\\s*(?=\S)", ", ", text)
    text = _plain_text_commands(text)
    text = _braced_arguments(text)
    text = DIGIT_GROUPS.sub(lambda m: m[1].replace(",", ""), text)
    text = _DECIMAL_COMMA.sub("0.", text)
    text = re.sub(r"\s", " ", text)
    text = re.sub(" +", " ", text)
    text = _SPACED_GROUPS.sub(lambda m: m[1].replace(" ", ""), text)
    text = _BARE_POINT.sub("0.", text)
    text = _trimmed(text)
    integer = _INTEGER_CONDITION.search(text)
    if integer and re.search(rf"(?<![A-Za-z\\]){integer[1]}(?![A-Za-z])", text[: integer.start()]):
        text = text[: integer.start()]
    return _LAST_POINT.sub(r"\1", text)


def _plain_text_commands(text: str) -> str:
    r"""Unwrap `\text{17}`, `\mathrm{e}` and `\operatorname{arcsin}`; words stay in `\text{...}`."""

    def plain(match: re.Match[str]) -> str:
        content = _ANNOUNCEMENT.sub("", match[1].strip())
        if content in FUNCTIONS and not (content in ALSO_UNITS and match[0].startswith("\\text")):
            return f"\\{content} "
        if _ONE_COMMAND.fullmatch(content):
            return f" {content} "
        if number := _NUMBER_FIRST.fullmatch(content):
            return f" {number[1]} \\text\0{{{number[2]}}}"
        if joint := _JOINT_AT_END.fullmatch(content):
            return "".join(f" \\text\0{{{part}}} " for part in joint.groups() if part)
        words = re.search(r"(?<![A-Za-z\\])[A-Za-z]{2}|[^\x00-\x7f]", content)
        if words and not re.search(r"[=<>^_+|\\]|[A-Za-z]\(", content):
            # NUL, removed below, keeps the command from being unwrapped again.
            return f"\\text\0{{{content if content != match[1].strip() else match[1]}}}"
        return f" {content} " if content else " "

    for _ in range(4):  # commands inside commands
        text = _UNIT_POWER.sub(r"\1^\2", text)
        replaced = _TEXT.sub(plain, text)
        if replaced == text:
            break
        text = replaced
    return text.replace("\0", "")


def _braced_arguments(text: str) -> str:
    r"""Write `\frac12` as `\frac{1}{2}` and `\sqrt2` as `\sqrt{2}`; from the right, so inner commands come first."""
    for command in reversed(list(_TAKES_ARGUMENTS.finditer(text))):
        name = (command[1] or f"\\{command[2] or command[3]}").rstrip()
        position = command.end()
        for _ in range(1 if command[1] else 2):
            argument, position = _argument(text, position)
            name += argument
        text = text[: command.start()] + name + text[position:]
    return text


def _argument(text: str, position: int) -> tuple[str, int]:
    """Return the argument that TeX would read at a position, in braces, and the position of its end."""
    while text[position : position + 1] == " ":
        position += 1
    token = _TOKEN.match(text, position)
    if token is None:
        return "", position
    if token[0] != "{":
        return f"{{{token[0]}}}", token.end()
    end = closing_bracket(text, position)
    return text[position:end], end


def closing_bracket(text: str, position: int) -> int:
    """Return the index after the brace that closes the one at `position`, or the text's length when none does."""
    depth = 0
    for brace in _BRACE.finditer(text, position):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.end()
    return len(text)


def _trimmed(text: str) -> str:
    """Return the text without punctuation at its ends, "answer:" before it and braces around all of it."""
    while True:
        before = text
        text = _LEADING_MARKS.sub("", text)
        if not text.endswith("..."):
            text = _TRAILING_MARKS.sub("", text)
        text = _QUOTED.sub(r"\1", _ANNOUNCEMENT.sub("", text))
        if text.startswith("{") and closing_bracket(text, 0) == len(text) and text.endswith("}"):
            text = text[1:-1]
        if text == before:
            return text
