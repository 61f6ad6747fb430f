r"""Is an answer the gold answer? Equality of answers by their form.

What is decoration (units, currency, percent and degree signs, final punctuation, fonts) and what is not (order in a
tuple, the ends of an interval, the letters of a word, the base of a number) is decided here; docs/protocols.md has the
table. One spelling for equal answers: spelling.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from prmbench.verification import expressions, extraction, solution_sets
from prmbench.verification.expressions import UnreadableError
from prmbench.verification.forms import Form, Items, Joined, Matrix, Relation, Scalar, parse
from prmbench.verification.latex import FUNCTIONS, plain_latex
from prmbench.verification.numbers import Number, read_number
from prmbench.verification.quantities import read_quantity

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_LETTER_ALONE = re.compile(r"(?:(?:option|choice)\s+)?\(?\s*([A-Ja-j])\s*\)?[.):]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:(?:option|choice)\s+)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):])\s+(\S.*)", re.DOTALL)
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::[0-5]\d)?(?:([ap])\.?m\.?)?", re.IGNORECASE)
_RATIO = re.compile(r"\d+(?:\.\d+)?(?::\d+(?:\.\d+)?)+")
_IN_BASE = re.compile(r"(\d[\dA-Za-z]*)_\{?(?:\\text\{)?(\w+)\}*")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
          "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip
_SYMBOL = r"(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|\w))?'*"
_NAME = re.compile(
    rf"{_SYMBOL}(?:\([^()]*\))?|(?:m?\\(?:angle|overline|triangle)\{{?)?[A-Z]{{2,4}}\}}?|\|[A-Z]{{2}}\||\[[A-Z]{{3,4}}\]"
    rf"|\({_SYMBOL}(?:,{_SYMBOL})+\)|{_SYMBOL}(?::{_SYMBOL})+"
)
"""What an equation may define: x, f(x), P(A), AB, |AB|, [ABC], (x, y), a:b."""
_FUNCTION_NAME = re.compile(rf"y|{_SYMBOL}\([^()]*\)")


PAIR = 2
MOST_CHARACTERS = 3_000
"""A longer answer or gold answer is not compared."""


def grade(region: str, gold: str) -> tuple[str, str]:
    """Return the verdict on a completion, a key of verify.OUTCOMES, and its answer in plain LaTeX.

    Args:
        region: The part of the completion that answers.answer_region returns.
        gold: The reference answer, or a solution that ends with it.
    """
    golds, answers = extraction.golds(gold), extraction.answers(region)
    if not answers:
        return ("no answer" if golds else "no gold"), ""
    if not golds:  # a sentence; the same sentence is right, and what else would be is not known
        same = squeezed(plain_latex(gold)) in map(squeezed, answers)
        return ("right" if same else "no gold"), answers[0]
    pairs = [(g, a) for g in golds for a in answers if max(len(g), len(a)) <= MOST_CHARACTERS]
    failed = False
    for gold_text, answer in pairs:
        try:
            if same_answer(gold_text, answer):
                return "right", answers[0]
        except UnreadableError:
            failed = True
    if not pairs:
        return "too long", ""
    return "crash" if failed else "wrong", answers[0]


def same_answer(gold: str, answer: str) -> bool:
    """Return whether an answer is the gold answer; both are plain LaTeX (latex.py).

    Raises:
        UnreadableError: They could not be compared, because a parser failed on one of them.
    """
    if not gold or not answer:
        return False
    if squeezed(gold) == squeezed(answer):
        return True
    choice = _same_choice(unwrapped(gold), unwrapped(answer))
    return _same(parse(gold), parse(answer)) if choice is None else choice


def squeezed(text: str) -> str:
    """Return the text without blanks, and without braces around single characters."""
    return re.sub(r"(?<!\\)\{(\w)\}", r"\1", re.sub(r"\s+", "", text))


def unwrapped(text: str) -> str:
    r"""Return the text with `\text{...}` replaced by what it holds."""
    return _TEXT.sub(r"\1", text).strip()


def choice_letter(text: str) -> str:
    r"""Return the letter of an answer that is one choice of a list, `(C)`, `C.` or `(C) 12`, else an empty text."""
    match = _LETTER_ALONE.fullmatch(text) or _LETTER_AND_TEXT.fullmatch(text)
    return "" if match is None else next(letter for letter in match.groups() if letter).upper()


def _same_choice(gold: str, answer: str) -> bool | None:
    """Whether both are the same choice; None where one of them is no choice."""
    gold_letter, letter = choice_letter(gold), choice_letter(answer)
    gold_text, text = (m[3] if (m := _LETTER_AND_TEXT.fullmatch(t)) else "" for t in (gold, answer))
    if gold_letter and letter and (gold_text or text or gold[:1].isupper() or gold[:1] == "("):
        return gold_letter == letter
    if gold_letter and gold_text:
        return same_answer(gold_text, answer)
    if letter and text:
        return same_answer(gold, text)
    return None


# --- forms ----------------------------------------------------------------------------------------------------


def _same(gold: Form, answer: Form) -> bool:
    """Whether two forms are equal. Raises UnreadableError where a parser failed and nothing else decides."""
    if _is_condition(gold) or _is_condition(answer):
        return _same_condition(gold, answer)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_equation(gold, answer)
    if isinstance(answer, Relation):
        return any(_same(gold, value) for value in _values_of_answer(answer))
    if isinstance(gold, Relation):
        value = defined_value(gold)
        return value is not None and _same(value, answer)
    if isinstance(gold, Items) or isinstance(answer, Items):
        return _same_items(gold, answer)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return [len(row) for row in gold.rows] == [len(row) for row in answer.rows] and _all(
            _same, zip(_entries(gold), _entries(answer), strict=True)
        )
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _same_matrix_value(gold, answer)
    return isinstance(gold, Scalar) and isinstance(answer, Scalar) and _same_scalar(gold.text, answer.text)


def _same_matrix_value(gold: Form, answer: Form) -> bool:
    """A matrix and an expression whose value is one."""
    texts = [form.text if isinstance(form, Scalar) and "matrix}" in form.text else "" for form in (gold, answer)]
    matrix = gold if isinstance(gold, Matrix) else answer
    if not any(texts) or not isinstance(matrix, Matrix):
        return False
    rows = [[expressions.latex(entry) for entry in row] for row in expressions.matrix_rows("".join(texts))]
    return _same(matrix, Matrix(tuple(tuple(map(Scalar, row)) for row in rows)))


def _entries(matrix: Matrix) -> list[Form]:
    return [entry for row in matrix.rows for entry in row]


def _all(same: Callable[[Form, Form], bool], pairs: Iterable[tuple[Form, Form]]) -> bool:
    """Whether all pairs are equal; one that cannot be read matters only where no other pair differs."""
    failure = None
    for gold, answer in pairs:
        try:
            if not same(gold, answer):
                return False
        except UnreadableError as error:
            failure = error
    if failure is not None:
        raise failure
    return True


def _same_in_any_order(golds: Sequence[Form], answers: Sequence[Form]) -> bool:
    """Whether each gold has an answer of its own."""
    if len(golds) != len(answers):
        return False
    rest, failure = list(answers), None
    for gold in golds:
        for answer in rest:
            try:
                if _same_member(gold, answer):
                    rest.remove(answer)
                    break
            except UnreadableError as error:
                failure = error
        else:
            if failure is not None:
                raise failure
            return False
    return True


def _same_member(gold: Form, answer: Form) -> bool:
    """Two members of a list: `x = 1` is not `y = 1`, and 1 is either."""
    return _same(gold, answer)


# --- equations ------------------------------------------------------------------------------------------------


def defined_name(relation: Form) -> str:
    """Return what an equation defines: `x` of `x = 3` and of `3 = x`; empty for other relations."""
    if not isinstance(relation, Relation) or not relation.is_equation:
        return ""
    sides = [squeezed(side) for side in (relation.sides[0], relation.sides[-1])]
    first, last = (
        bool(_NAME.fullmatch(side)) or is_words(text)
        for side, text in zip(sides, (relation.sides[0], relation.sides[-1]), strict=True)
    )
    return sides[0] if first else sides[1] if last else ""


def defined_value(relation: Relation) -> Form | None:
    """Return the value that an equation gives to a name, or None where it defines none."""
    name = defined_name(relation)
    if not name:
        return parse(relation.sides[-1]) if relation.is_equation and len(relation.sides) > 2 else None
    return parse(relation.sides[-1] if squeezed(relation.sides[0]) == name else relation.sides[0])


def _values_of_answer(relation: Relation) -> list[Form]:
    """What an answer's equation arrives at: `10/2 = 5` and `a + b = 5` say 5; `x^2 - 4 = 0` says no value."""
    if not relation.is_equation:
        return []
    value = defined_value(relation)
    if value is not None:
        return [value]
    if relation.signs == ("\\approx",):  # the exact value, or the rounded one
        return [parse(side) for side in relation.sides]
    return [] if squeezed(relation.sides[-1]) == "0" else [parse(relation.sides[-1])]


def _same_equation(gold: Relation, answer: Relation) -> bool:
    if not (gold.is_equation and answer.is_equation):
        return gold.signs == answer.signs and _all(
            _same, zip(map(parse, gold.sides), map(parse, answer.sides), strict=True)
        )
    names = defined_name(gold), defined_name(answer)
    values = defined_value(gold), defined_value(answer)
    if values[0] is not None and values[1] is not None:
        if names[0] == names[1] or all(_FUNCTION_NAME.fullmatch(name) for name in names):
            return _same(values[0], values[1])
        if not all(isinstance(value, Scalar) for value in values):
            return False
    return expressions.same_equation((gold.sides[0], gold.sides[-1]), (answer.sides[0], answer.sides[-1]))


# --- conditions and sets of numbers -----------------------------------------------------------------------------


def _is_condition(form: Form) -> bool:
    r"""Whether a form says which numbers are meant: an inequality, `\in`, a union."""
    return isinstance(form, Joined) or (isinstance(form, Relation) and not form.is_equation)


def _same_condition(gold: Form, answer: Form) -> bool:
    sets = solution_sets.solution_set(gold), solution_sets.solution_set(answer)
    if sets[0] is not None and sets[1] is not None:
        return sets[0].equals(sets[1])
    forms = [parse(f.sides[1]) if isinstance(f, Relation) and f.signs == ("\\in",) else f for f in (gold, answer)]
    if forms != [gold, answer]:
        return _same(forms[0], forms[1])
    if isinstance(gold, Joined) and isinstance(answer, Joined):
        return (gold.joint == "or") == (answer.joint == "or") and _same_in_any_order(gold.parts, answer.parts)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_inequality(gold, answer)
    return False


def _same_inequality(gold: Relation, answer: Relation) -> bool:
    """Two inequalities in several variables: one is a positive multiple of the other."""
    if len(gold.signs) != 1 or len(answer.signs) != 1:
        return gold.signs == answer.signs and _all(
            _same, zip(map(parse, gold.sides), map(parse, answer.sides), strict=True)
        )
    turned = {">": "<", "\\ge": "\\le"}
    sides = [r.sides[::-1] if r.signs[0] in turned else r.sides for r in (gold, answer)]
    signs = [turned.get(r.signs[0], r.signs[0]) for r in (gold, answer)]
    if signs[0] != signs[1] or signs[0] not in ("<", "\\le", "\\ne"):
        return False
    return expressions.same_equation(
        (sides[0][0], sides[0][1]), (sides[1][0], sides[1][1]), positive=signs[0] != "\\ne"
    )


# --- lists, tuples, sets ------------------------------------------------------------------------------------------


def _same_items(gold: Form, answer: Form) -> bool:
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _same_vector(gold, answer)
    if not isinstance(gold, Items) or not isinstance(answer, Items):
        return _same_as_one_item(gold, answer)
    gold, answer = _in_groups(gold), _in_groups(answer)
    golds, answers = assignments(gold), assignments(answer)
    if golds and answers:
        return golds.keys() == answers.keys() and _all(_same, ((golds[name], answers[name]) for name in golds))
    gold, answer = values_of_one_name(gold), values_of_one_name(answer)
    if golds or answers:  # `x = 1, y = 2` for (1, 2)
        return _same_in_order(list(golds.values()) or gold.items, list(answers.values()) or answer.items)
    if gold.ordered and answer.ordered:
        same_ends = (gold.opening, gold.closing) == (answer.opening, answer.closing)
        return same_ends and _same_in_order(gold.items, answer.items)
    if gold.ordered or answer.ordered:
        return "\\{" not in (gold.opening, answer.opening) and _same_in_order(gold.items, answer.items)
    return _same_in_any_order(_distinct(gold), _distinct(answer))


def _same_in_order(golds: Sequence[Form], answers: Sequence[Form]) -> bool:
    return len(golds) == len(answers) and _all(_same, zip(golds, answers, strict=True))


def _same_as_one_item(gold: Form, answer: Form) -> bool:
    r"""`\{1\}` and `[1]` for 1; a set of numbers for its name."""
    sets = solution_sets.solution_set(gold), solution_sets.solution_set(answer)
    if sets[0] is not None and sets[1] is not None:
        return sets[0].equals(sets[1])
    one, other = (_only_item(f) if isinstance(f, Items) else f for f in (gold, answer))
    if isinstance(gold, Scalar) and isinstance(answer, Items):
        other = _with_decimal_comma(answer) or other
    return (one, other) != (gold, answer) and _same(one, other)


def _only_item(form: Items) -> Form:
    return form.items[0] if len(form.items) == 1 else form


def _with_decimal_comma(form: Items) -> Form | None:
    """An answer `3,14` as 3.14; None where it is another list."""
    texts = [item.text if isinstance(item, Scalar) else "" for item in form.items]
    decimal = ".".join(texts)
    return Scalar(decimal) if not form.opening and re.fullmatch(r"-?\d+\.\d+", decimal) else None


def _same_vector(gold: Form, answer: Form) -> bool:
    """A column for a tuple."""
    entries = [
        _entries(f) if isinstance(f, Matrix) and all(len(row) == 1 for row in f.rows)
        else f.items if isinstance(f, Items) and f.opening == "(" else ()
        for f in (gold, answer)
    ]  # fmt: skip
    return bool(entries[0]) and _same_in_order(entries[0], entries[1])


def assignments(form: Items) -> dict[str, Form]:
    """Return name -> value of a list such as `x = 1, y = 2`; empty where it is another list."""
    names = [defined_name(item) for item in form.items]
    if not all(names) or len(set(names)) < len(names) or len(names) < 2:
        return {}
    values = [defined_value(item) for item in form.items if isinstance(item, Relation)]
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def values_of_one_name(form: Items) -> Items:
    """Return `x = 1 or x = 2` and `x = 1, 2` as the list `1, 2`; other lists as they are."""
    names = {defined_name(item) for item in form.items if isinstance(item, Relation)}
    if len(names) != 1 or "" in names:
        return form
    values = [defined_value(item) if isinstance(item, Relation) else item for item in form.items]
    return Items(tuple(v for v in values if v is not None), form.opening, form.closing)


def _in_groups(form: Items) -> Items:
    """`p = 5, q = 2, p = 7, q = 2` as two groups of assignments; other lists as they are."""
    names = [defined_name(item) for item in form.items]
    size = names.index(names[0], 1) if names.count(names[0]) > 1 else 0
    if form.opening or size < 2 or not all(names) or names != names[:size] * (len(names) // size):
        return form
    return Items(tuple(Items(form.items[k : k + size]) for k in range(0, len(names), size)))


def _distinct(form: Items) -> tuple[Form, ...]:
    return tuple(dict.fromkeys(form.items))


# --- scalars ----------------------------------------------------------------------------------------------------


def _same_scalar(gold: str, answer: str) -> bool:
    if squeezed(gold) == squeezed(answer):
        return True
    as_text = _same_as_text(gold, answer)
    if as_text is not None:
        return as_text
    one, other = read_quantity(gold), read_quantity(answer)
    if one.noun and other.noun and _singular(one.noun) != _singular(other.noun):
        return False
    if one.number is not None and other.number is not None:
        return _same_number(one.number, one.percent, other.number, other.percent)
    words = is_words(one.core), is_words(other.core)
    if all(words):
        return plain_words(gold) == plain_words(answer)
    if any(words) and not all(
        re.fullmatch("[a-z]{2,3}", core) or not is_word
        for core, is_word in zip((one.core, other.core), words, strict=True)
    ):
        return False
    if one.number is not None:
        return _equals_number(other.core, one.number)
    if other.number is not None:
        return _equals_number(one.core, other.number)
    return expressions.same_expression(one.core, other.core)


def _equals_number(text: str, number: Number) -> bool:
    """Whether an expression is a number. One with a variable that cannot be parsed is not."""
    try:
        return expressions.equals_number(text, number)
    except UnreadableError:
        letters = re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", text)
        if set(letters) <= {"e", "i"}:
            raise
        return False


def _same_as_text(gold: str, answer: str) -> bool | None:
    """Clock times, ratios and numbers in a base are compared as texts; None where neither is one."""
    texts = squeezed(unwrapped(gold)), squeezed(unwrapped(answer))
    clocks = [_CLOCK.fullmatch(text) for text in texts]
    if clocks[0] and clocks[1]:
        halves = {half.lower() for half in (clocks[0][3], clocks[1][3]) if half}
        return clocks[0][2] == clocks[1][2] and int(clocks[0][1]) == int(clocks[1][1]) and len(halves) < 2
    if any(clocks):
        return False
    ratios = [_RATIO.fullmatch(text) for text in texts]
    if any(ratios):
        ratio, other = (texts[0], answer) if ratios[0] else (texts[1], gold)
        number = read_quantity(other).number
        quotient = read_number(ratio.replace(":", "/", 1))
        return not all(ratios) and number is not None and quotient is not None and number.equals(quotient)
    bases = [_IN_BASE.fullmatch(text) for text in texts]
    if bases[0] and bases[1]:
        return bases[0][1].upper() == bases[1][1].upper() and _base(bases[0][2]) == _base(bases[1][2])
    return False if any(bases) else None


def _base(name: str) -> str:
    return _BASES.get(name.lower(), name)


def _same_number(gold: Number, gold_percent: bool, answer: Number, answer_percent: bool) -> bool:
    """Equal numbers; 50 and the decimal 0.5 are both what 50% may be written as, the fraction 1/2 is not."""
    if gold.equals(answer):
        return True
    if gold_percent == answer_percent:
        return False
    percentage, share = (gold, answer) if gold_percent else (answer, gold)
    return share.last_digit is not None and share.value == percentage.value / 100


def _singular(noun: str) -> str:
    return " ".join(word.removesuffix("s") for word in noun.split())


def is_words(text: str) -> bool:
    r"""Whether a text is made of words and not of variables: `\text{east}`, `ABC`, `June 20`; not `2xy`."""
    if any(re.search(r"[^\W\d_]{2}", content) for content in _TEXT.findall(text)):
        return True
    bare = re.sub(r"_\s*(?:\{[^{}]*\}|\S)|\\[A-Za-z]+", " ", text)
    for run in re.finditer(r"[^\W\d_]{2,}", bare):
        if run[0] in FUNCTIONS or run[0] == "pi":
            continue
        before, after = bare[: run.start()], bare[run.end() :]
        in_product = re.search(r"[\d+*/^()|}-]$", before) or re.match(r"[+*/^()|{-]", after)
        if len(run[0]) > 3 or not in_product or not run[0].isascii():
            return True
    return bool(re.search(r"[^\W\d_]", bare)) and not bare.isascii()


def plain_words(text: str) -> str:
    """Return words in lower case, without articles, punctuation and commands."""
    text = re.sub(r"[^\w\s+./:-]|_", " ", unwrapped(text).casefold().replace("\\", " "))
    text = re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", " ", text)
    return " ".join(word for word in (w.strip(".:") for w in text.split()) if word not in ("", "a", "an", "the"))
