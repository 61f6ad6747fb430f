"""Which class of a step classifier means that the step is right, by the names in its id2label."""

from __future__ import annotations

import re
from collections.abc import Mapping

from prmbench.core.option_values import check_choice
from prmbench.core.records import UserError

RIGHT = 1
"""The class of a right step where no name says otherwise: that of TRL, of Qwen2.5-Math-PRM and of the other rows."""
RIGHT_WORDS = frozenset(
    [
        "right",
        "correct",
        "good",
        "positive",
        "pos",
        "true",
        "yes",
        "valid",
        "ok",
        "okay",
        "pass",
        "passed",
        "accept",
        "accepted",
        "sound",
        "plus",
        "success",
        "1",
        "+",
        "+1",
    ]
)
WRONG_WORDS = frozenset(
    [
        "wrong",
        "incorrect",
        "bad",
        "negative",
        "neg",
        "false",
        "no",
        "invalid",
        "error",
        "errors",
        "mistake",
        "fail",
        "failed",
        "reject",
        "rejected",
        "unsound",
        "flawed",
        "minus",
        "failure",
        "0",
        "-",
        "-1",
    ]
)
NEUTRAL_WORDS = frozenset(["neutral", "unsure", "unknown", "ambiguous", "skip"])
QUALIFIED = re.compile(r"n't|never|cannot|nothing|hardly|partial|almost|mostly|\b(?:in|un)-")
"""Matches words that turn or weaken what a name says; such names tell no class."""
NEGATIONS = frozenset(["not", "no", "non", "without"])


def right_class(labels: Mapping[int, str]) -> int | None:
    """Return the class whose name says that the step is right; None where the names do not tell one.

    Of two classes, one clear name is enough; of more, every other name must say wrong or neutral.

    Args:
        labels: Class -> name.
    """
    words = {index: _polarity(str(name)) for index, name in labels.items()}
    if "-1" in map(str, labels.values()):
        words |= {index: "neutral" for index, name in labels.items() if str(name) == "0"}
    is_binary = len(labels) == 2  # noqa: PLR2004 - right and wrong
    right = [index for index, polarity in words.items() if polarity == "right"]
    wrong = [index for index, polarity in words.items() if polarity == "wrong"]
    if len(right) == 1 and (is_binary or "unknown" not in words.values()):
        return right[0]
    if is_binary and not right and len(wrong) == 1:
        return next(index for index in labels if index not in wrong)
    return None


def means_wrong(name: str) -> bool:
    """Return whether the name of a model's only class says that its value rises with errors: `error`, `incorrect`."""
    return name.isascii() and any(map(str.isalpha, name)) and _polarity(name) == "wrong"


def _polarity(name: str) -> str:
    """Return right, wrong, neutral or unknown."""
    if QUALIFIED.search(name.lower()):
        return "unknown"
    parts = re.findall(r"[a-z]+|[+-]?\d+|[+-]", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    is_negated = len(parts) > 1 and bool(NEGATIONS & set(parts))
    parts = [part for part in parts if not (is_negated and part in NEGATIONS)]
    if len(parts) > 1:  # `step_1_correct`: numbers only count on their own
        parts = [part for part in parts if part.isalpha()]
    says = {
        polarity
        for polarity, known in (("right", RIGHT_WORDS), ("wrong", WRONG_WORDS), ("neutral", NEUTRAL_WORDS))
        if known & set(parts)
    }
    if len(says) != 1:
        return "unknown"
    (polarity,) = says
    return {"right": "wrong", "wrong": "right"}.get(polarity, polarity) if is_negated else polarity


def numbered_labels(names: object, classes: int | None) -> dict[int, str]:
    """Return the names of the classes by their index from an id2label; empty where it does not number them all.

    Args:
        names: The value in a config.json: an object with the keys 0, 1, ..., or a list.
        classes: Number of classes of the model's head; None where it is not known.
    """
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or (classes is not None and len(names) != classes):
        return {}
    labels = {int(index): str(name) for index, name in names.items() if re.fullmatch(r"[0-9]{1,9}", str(index))}
    return labels if sorted(labels) == list(range(len(names))) else {}


def is_generic(labels: Mapping[int, str]) -> bool:
    """Return whether nobody named the classes: transformers calls them LABEL_0, LABEL_1 ..."""
    return all(str(name) == f"LABEL_{index}" for index, name in labels.items())


def find_class(value: int | str, labels: Mapping[int, str], classes: int | None, source: str) -> int:
    """Return the class that --positive-class or a prm.json names by its index or its name.

    Args:
        value: Index, or a text: a name or an index; a text that is both, such as `1` for class 0, is a name.
        labels: Class -> name; may be empty.
        classes: Number of classes; None where it is not known.
        source: Beginning of the error message.

    Raises:
        UserError: There is no such class.
    """
    count = classes if classes is not None else max(len(labels), RIGHT + 1)
    if isinstance(value, int):
        if not 0 <= value < count:
            raise UserError(f"{source}: positive class {value}: choose from 0 to {count - 1}")
        return value
    named = [index for index, name in labels.items() if str(name).lower() == value.lower()]
    if len(named) > 1:
        same = " and ".join(map(str, named))
        raise UserError(f"{source}: positive class {value!r}: the classes {same} have this name; give the index")
    if named:
        return named[0]
    indices = [str(index) for index in range(count)]
    check_choice(value, [*indices, *map(str, labels.values())], f"{source}: positive class {value!r}")
    return int(value)
