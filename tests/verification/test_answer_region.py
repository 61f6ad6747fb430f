"""Where the final answer of a completion is."""

from __future__ import annotations

import pytest

from prmbench.verification.answer_region import answer_region, boxes, last_box


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("x = 3", "x = 3"),
        ("<think>a</think>b", "b"),
        ("the prompt opened it</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<thinking>a</thinking>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("<seed:think>a</seed:think>b", "b"),
        ("\u25c1think\u25b7a\u25c1/think\u25b7b", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("<seed:think>a", None),
        ("\u25c1think\u25b7a", None),
        ("<|begin_of_thought|>a", None),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("<|channel|>analysis<|message|>a", None),
        ("<|channel|>commentary to=functions<|message|>a", None),
        ("<think>a</think> <answer>3</answer> or so", "3"),
        ("<Answer> 3 </ANSWER>", " 3 "),
        ("<answer>3</answer><answer>4</answer>", "4"),
        ("<think><answer>14</answer></think> It is 15.", " It is 15."),
        ("<think><answer>14</answer></think>\n", "14"),
        ("<answer></answer>", ""),
        ("</answer> 3", "</answer> 3"),
        ("<think>a", None),
        ("<think>a</think>b<think>c", None),
        ("<think>maybe <answer>14</answer>", None),
        ("<answer>1", None),
        ("<answer>4</answer> no: <answer>5", None),
        ("<think><answer>1</think>2", "2"),
    ],
)
def test_answer_region(text: str, region: str | None) -> None:
    assert answer_region(text) == region


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("no box", []),
        (r"\boxed{1}", ["1"]),
        (r"\boxed {1} \fbox{2}", ["1", "2"]),
        (r"\boxed 42.", ["42"]),
        (r"\boxed{}", [""]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{\boxed{2}}", ["2"]),
        (r"\boxed{x = \boxed{2} + \fbox{\boxed{3}}} \boxed{4}", ["x = 2 + 3", "4"]),
        (r"\boxed{1} \boxed{2", ["1", None]),
        (r"\boxed{a}{b}} \boxed {c}", ["a", "c"]),
        (r"\framebox{1} \boxedx{2}", []),
    ],
)
def test_boxes(text: str, contents: list[str | None]) -> None:
    assert [box.content for box in boxes(text)] == contents
    assert last_box(text) == (contents[-1] if contents else None)


def test_a_box_knows_where_it_is() -> None:
    text = r"so \boxed{1} and \boxed 2"
    assert [text[box.start : box.end] for box in boxes(text)] == [r"\boxed{1}", r"\boxed 2"]
