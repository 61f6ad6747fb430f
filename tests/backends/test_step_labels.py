"""Which class of a step classifier means right, by its names."""

from __future__ import annotations

import pytest

from prmbench.backends.step_labels import find_class, is_generic, right_class
from prmbench.core.records import UserError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("wrong", "right"), 1),
        (("Correct", "Incorrect"), 0),
        (("not_correct", "correct"), 1),
        (("NEGATIVE", "POSITIVE"), 1),
        (("+", "-"), 0),
        (("0", "1"), 1),
        (("1", "0"), 0),
        (("True", "False"), 0),
        (("no_error", "error"), 0),
        (("StepIncorrect", "StepCorrect"), 1),
        (("step_1_bad", "step_1_good"), 1),
        (("bad", "other"), 1),
        (("other", "good"), 1),
        (("-1", "0", "1"), 2),
        (("positive", "neutral", "negative"), 0),
        (("LABEL_0", "LABEL_1"), None),
        (("A", "B"), None),
        (("isn't correct", "is fine"), None),
        (("never right", "x"), None),
        (("in-correct", "x"), None),
        (("partially correct", "other"), None),
        (("nothing wrong", "other"), None),
        (("good", "right"), None),
        (("good", "A", "bad"), None),
        (("good", "great", "right"), None),
        ((), None),
    ],
)
def test_the_right_class_by_its_name(names: tuple[str, ...], expected: int | None) -> None:
    assert right_class(dict(enumerate(names))) == expected


def test_only_names_in_their_own_order_are_generic() -> None:
    assert is_generic({0: "LABEL_0", 1: "LABEL_1"})
    assert not is_generic({0: "LABEL_1", 1: "LABEL_0"})


def test_a_class_is_found_by_index_or_name() -> None:
    labels = {0: "Right", 1: "wrong"}
    assert [find_class(value, labels, 2, "m") for value in ("0", "1", "right", "WRONG")] == [0, 1, 0, 1]
    assert find_class("1", {0: "1", 1: "0"}, 2, "m") == 0  # a name before an index
    assert find_class(1, {0: "1", 1: "0"}, 2, "m") == 1  # a number is an index
    with pytest.raises(UserError, match="choose from 0 to 1"):
        find_class(2, {}, 2, "m")
    for value in ("2", "-1", "rong", ""):
        with pytest.raises(UserError, match=r"m: positive class .*choose from 0, 1, Right, wrong"):
            find_class(value, labels, 2, "m")
