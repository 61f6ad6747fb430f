r"""Decides whether an answer equals the gold answer, according to the structure of both.

Ignored are units, currency, percent and degree signs, final punctuation and fonts; significant are the order in a
tuple, the ends of an interval, the letters of a word and the base of a number. docs/protocols.md has the table.
canonical.py computes one canonical form for equal answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from prmbench.verification import expressions, extraction, solution_sets
from prmbench.verification.definitions import (
    FUNCTION_NAME,
    are_indexed,
    assignments,
    common_name,
    defined_name,
    defined_value,
    in_groups,
    stated_values,
    values_of_one_name,
    with_argument_of,
)
from prmbench.verification.expressions import UnreadableError
from prmbench.verification.forms import Form, Items, Joined, Matrix, Relation, Scalar, parse
from prmbench.verification.latex import plain_latex
from prmbench.verification.scalars import same_scalar, without_spaces, without_text_commands

_LETTER_ALONE = re.compile(r"(?:(?:option|choice)\s+)?\(?\s*([A-Ja-j])\s*\)?[.):]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice)\s+)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):])(?:\s+|(?<=[):])(?=[-\d\\]))(?!(?:and|or)\b)(\S.*)",
    re.DOTALL,
)
_ANSWER_LABEL = re.compile(r"A\s*:\s*(.+)", re.DOTALL)
_COMMAND_WITHOUT_VALUE = re.compile(
    r"\\(?:d?frac|sqrt|text|binom|cdot|times|div|pm|mp|left|right|overline|bar|hat|vec|circ|le|ge|ne|in|cup|cap|to|%|[{}])"
    r"(?![A-Za-z])"
)
_OPEN_END = re.compile(r"(?:[-+*/^_=<>(\[{,]|\\(?:frac|sqrt|cdot|times|div|pm|mp|le|ge|cup|cap)|\{\s*\})\s*$")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_MODULUS = re.compile(r"\s*\(?\s*(?:\\(?:pmod|pod)\s*\{?\s*(\w+)\s*\}?|(?<=\()\s*\\mod\s*(\w+)\s*)\s*\)?$")
MAX_CHARACTERS = 3_000
"""Longer answers and gold answers are not compared."""


def grade(region: str, gold: str) -> tuple[str, str]:
    """Return the verdict on a completion, a key of verifiers.OUTCOMES, and its answer in plain LaTeX.

    Args:
        region: The answer region of the completion, from `answer_region`.
        gold: The reference answer, or a solution that ends with it.
    """
    golds = extraction.extract_gold_answers(gold)
    is_choice = any(map(_is_choice, golds))
    answers = _without_labels(extraction.extract_answers(region, is_choice), is_choice) if golds else []
    answers = answers or extraction.extract_answers(region)
    if not answers:
        return ("no answer" if golds else "no gold"), ""
    if not golds:  # a sentence: an equal answer is right, any other cannot be judged
        same = without_spaces(plain_latex(gold)) in map(without_spaces, answers)
        return ("right" if same else "no gold"), answers[0]
    pairs = [(g, a) for g in golds for a in answers if max(len(g), len(a)) <= MAX_CHARACTERS]
    failed = False
    for gold_text, answer in pairs:
        try:
            if same_answer(gold_text, answer):
                return "right", answers[0]
        except UnreadableError:
            failed = failed or not _is_incomplete(answer)
    if not pairs:
        return "too long", ""
    return "crash" if failed else "wrong", answers[0]


def _is_choice(gold: str) -> bool:
    """Return whether a gold answer is an option: `(a)`, `C` or `C. 12`, but not `a`, a variable."""
    return bool(choice_letter(without_text_commands(gold))) and (gold[:1].isupper() or gold[:1] in "(\\")


def _without_labels(answers: Sequence[str], is_choice: bool) -> list[str]:
    """Return the readings without labels such as `A:`, which stands for "answer" or for an option; the gold tells.

    Args:
        answers: Readings in plain LaTeX.
        is_choice: Whether an option is asked for: then `A: 7` is the option A, else it is 7.
    """
    readings = [text_without_label(answer, is_choice) for answer in answers]
    if is_choice and readings != list(answers):  # `A: B`, whose first letter has been read for itself, too
        return readings[:1]
    if not is_choice:  # the letter of `A) 7` has been read for itself, too
        readings = [r for r in readings if not _LETTER_ALONE.fullmatch(r)] or readings
    return list(dict.fromkeys(readings))


def text_without_label(answer: str, is_choice: bool) -> str:
    """Return `A: 7` and `(B) 7` as 7 where no option is asked for, and `A: B` as B where one is."""
    bare = without_text_commands(answer)
    if is_choice:
        match = _ANSWER_LABEL.fullmatch(bare)
        return match[1] if match and choice_letter(match[1]) else answer
    labelled = _LETTER_AND_TEXT.fullmatch(bare)
    return answer if labelled is None else plain_latex(labelled[3])


def _is_incomplete(answer: str) -> bool:
    r"""Return whether an answer that no parser reads holds no value, or breaks off: `-`, `\frac{}{}`, `5+`."""
    return not re.search(r"[^\W_]", _COMMAND_WITHOUT_VALUE.sub("", answer)) or bool(_OPEN_END.search(answer))


def same_answer(gold: str, answer: str) -> bool:
    """Return whether an answer equals the gold answer; both are plain LaTeX (latex.py).

    Raises:
        UnreadableError: They could not be compared, because a parser failed on one of them.
    """
    if not gold or not answer:
        return False
    if without_spaces(gold) == without_spaces(answer):
        return True
    bare = without_modulus(gold), without_modulus(answer)
    if sum(bool(modulus) for _, modulus in bare) == 1:  # only one of them states the modulus
        (gold, _), (answer, _) = bare
    choice = _same_choice(without_text_commands(gold), without_text_commands(answer))
    if choice is not None:
        return choice
    form, answer_form = parse(gold), parse(answer)
    if isinstance(form, Scalar) and _DECIMAL_COMMA.fullmatch(answer):  # a gold answer `3,14` is a list
        return same_scalar(gold, answer.replace(",", "."))
    return _same(form, answer_form)


def without_modulus(text: str) -> tuple[str, str]:
    r"""Return `3 \pmod{5}` as 3 and its modulus, which is empty where none is written."""
    match = _MODULUS.search(text)
    return (text, "") if match is None else (text[: match.start()].strip(), match[1] or match[2])


def choice_letter(text: str) -> str:
    r"""Return the letter of an answer that is one choice of a list, `(C)`, `C.` or `(C) 12`, else an empty text."""
    match = _LETTER_ALONE.fullmatch(text) or _LETTER_AND_TEXT.fullmatch(text)
    return "" if match is None else next(letter for letter in match.groups() if letter).upper()


def _same_choice(gold: str, answer: str) -> bool | None:
    """Whether both are the same choice; None where one of them is not a choice."""
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
        return any(_same(gold, value) for value in stated_values(answer))
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
    if not isinstance(gold, Scalar) or not isinstance(answer, Scalar):
        return False
    sets = solution_sets.solution_set(gold), solution_sets.solution_set(answer)
    return sets[0] == sets[1] if sets[0] and sets[1] else same_scalar(gold.text, answer.text)


def _same_matrix_value(gold: Form, answer: Form) -> bool:
    """Whether a matrix equals an expression whose value is a matrix."""
    texts = [form.text if isinstance(form, Scalar) and "matrix}" in form.text else "" for form in (gold, answer)]
    matrix = gold if isinstance(gold, Matrix) else answer
    if not any(texts) or not isinstance(matrix, Matrix):
        return False
    rows = [[expressions.latex(entry) for entry in row] for row in expressions.matrix_rows("".join(texts))]
    return _same(matrix, Matrix(tuple(tuple(map(Scalar, row)) for row in rows)))


def _entries(matrix: Matrix) -> list[Form]:
    return [entry for row in matrix.rows for entry in row]


def _all(same: Callable[[Form, Form], bool], pairs: Iterable[tuple[Form, Form]]) -> bool:
    """Whether all pairs are equal.

    Raises:
        UnreadableError: A pair cannot be compared, and no other pair differs.
    """
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
    """Whether the answers can be matched one to one with the gold answers."""
    if len(golds) != len(answers):
        return False
    rest, failure = list(answers), None
    for gold in golds:
        for answer in rest:
            try:
                if _same(gold, answer):
                    rest.remove(answer)
                    break
            except UnreadableError as error:
                failure = error
        else:
            if failure is not None:
                raise failure
            return False
    return True


# --- equations ------------------------------------------------------------------------------------------------


def _same_equation(gold: Relation, answer: Relation) -> bool:
    if not (gold.is_equation and answer.is_equation):
        return gold.signs == answer.signs and _all(
            _same, zip(map(parse, gold.sides), map(parse, answer.sides), strict=True)
        )
    names = defined_name(gold), defined_name(answer)
    values = defined_value(gold), defined_value(answer)
    if values[0] is not None and values[1] is not None:
        if _may_be_the_same(*names):
            return _same(values[0], with_argument_of(names[0], names[1], values[1]))
        if not all(isinstance(value, Scalar) for value in values):
            return False
    return expressions.same_equation((gold.sides[0], gold.sides[-1]), (answer.sides[0], answer.sides[-1]))


def _may_be_the_same(name: str, other: str) -> bool:
    """Whether two equations may define the same thing: functions have names of the writer's choice."""
    return name == other or bool(FUNCTION_NAME.fullmatch(name) and FUNCTION_NAME.fullmatch(other))


# --- conditions and sets of numbers -----------------------------------------------------------------------------


def _is_condition(form: Form) -> bool:
    r"""Whether a form describes a set of numbers: an inequality, `\in`, a union."""
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
    """Whether one inequality in several variables is a positive multiple of the other."""
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
    gold, answer = in_groups(gold), in_groups(answer)
    golds, answers = assignments(gold), assignments(answer)
    if golds and answers:
        return golds.keys() == answers.keys() and _all(_same, ((golds[name], answers[name]) for name in golds))
    names = common_name(gold), common_name(answer)
    if golds or answers:
        return not any(names) and _same_without_names(gold, golds, answer, answers)
    if all(names) and not _may_be_the_same(*names):
        return False
    return _same_lists(values_of_one_name(gold), values_of_one_name(answer))


def _same_without_names(gold: Items, golds: Mapping[str, Form], answer: Items, answers: Mapping[str, Form]) -> bool:
    """Compare a list with names and one without: `x = 1, y = 2` is (1, 2), and `x_1 = 1, x_2 = 2` is 2, 1."""
    pair = list(golds.values()) or gold.items, list(answers.values()) or answer.items
    if are_indexed(golds or answers) and not (gold.ordered or answer.ordered):
        return _same_in_any_order(*pair)
    return _same_in_order(*pair)


def _same_lists(gold: Items, answer: Items) -> bool:
    if gold.ordered and answer.ordered:
        same_ends = (gold.opening, gold.closing) == (answer.opening, answer.closing)
        return same_ends and _same_in_order(gold.items, answer.items)
    if gold.ordered or answer.ordered:
        brackets = gold.opening + answer.opening, gold.closing + answer.closing
        return brackets == ("(", ")") and _same_in_order(gold.items, answer.items)
    if not gold.opening and len(_distinct(gold)) < len(gold.items):  # the gold answer repeats a value on purpose
        return _same_in_any_order(gold.items, answer.items)
    return _same_in_any_order(_distinct(gold), _distinct(answer))


def _same_in_order(golds: Sequence[Form], answers: Sequence[Form]) -> bool:
    return len(golds) == len(answers) and _all(_same, zip(golds, answers, strict=True))


def _same_as_one_item(gold: Form, answer: Form) -> bool:
    r"""Compare a list with another form: `\{1\}` and `[1]` are 1, a set of numbers is its name."""
    sets = solution_sets.solution_set(gold), solution_sets.solution_set(answer)
    if sets[0] is not None and sets[1] is not None:
        return sets[0].equals(sets[1])
    one, other = (_only_item(f, f is answer) if isinstance(f, Items) else f for f in (gold, answer))
    return (one, other) != (gold, answer) and _same(one, other)


def _only_item(form: Items, repeated: bool) -> Form:
    """Return the only item of a list; with `repeated`, also one that an answer repeats, as in several boxes."""
    items = _distinct(form) if repeated and not form.opening else form.items
    return items[0] if len(items) == 1 else form


def _same_vector(gold: Form, answer: Form) -> bool:
    """Compare a column vector with a tuple."""
    entries = [
        _entries(f) if isinstance(f, Matrix) and all(len(row) == 1 for row in f.rows)
        else f.items if isinstance(f, Items) and f.opening == "(" else ()
        for f in (gold, answer)
    ]  # fmt: skip
    return bool(entries[0]) and _same_in_order(entries[0], entries[1])


def _distinct(form: Items) -> tuple[Form, ...]:
    return tuple(dict.fromkeys(form.items))
