"""Every result that README and docs quote is the one of the leaderboards; and the mechanism that checks it."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

from prmbench.core.records import UserError
from prmbench.report.cited_numbers import Sources, check, main, pages, rewrite

PAGE = """\
# Board

## Cross-validated

Text.

| Model | Protocol | gsm8k (n=2) | avg of both | Better |
| --- | --- | ---: | ---: | ---: |
| a | `step_sum/oracle` | **36.6** [27.9, 42.1]† | 31.4 [28.4, 34.3] | yes |
| b | `step_sum/oracle` | 10.0 | -0.5 [-1.2, +0.3] | – |
| b | `as_is/oracle` | – | &lt;0.001 | – |
"""
CELL = "<!-- from board.md // Cross-validated // {} // {} -->"
GSM8K = CELL.format("a; step_sum/oracle", "gsm8k")
AVERAGE = CELL.format("a", "avg of")


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    (tmp_path / "board.md").write_text(PAGE)
    return Sources(tmp_path)


def test_every_result_in_readme_and_docs_is_that_of_the_leaderboards(capsys: pytest.CaptureFixture[str]) -> None:
    """After a change of results: `python -m prmbench.report.cited_numbers --write`, and read the sentences again."""
    assert main(["--root", str(ROOT)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"F1 36.6{GSM8K}", f"F1 36.6{GSM8K}"),
        (f"F1 36.0 [1.0, 2.0]{GSM8K}", f"F1 36.6 [27.9, 42.1]{GSM8K}"),
        (f"about 30{AVERAGE}%", f"about 31{AVERAGE}%"),
        (f"+9.9{CELL.format('b; step_sum/oracle', 'avg of')}", f"-0.5{CELL.format('b; step_sum/oracle', 'avg of')}"),
        (f"p 0.5{CELL.format('as_is/oracle', 'avg of')}", f"p <0.001{CELL.format('as_is/oracle', 'avg of')}"),
        (f"1.0{GSM8K} and 2.0{AVERAGE}", f"36.6{GSM8K} and 31.4{AVERAGE}"),
        (f"| unclear{CELL.format('a', 'Better')} |", f"| yes{CELL.format('a', 'Better')} |"),
        ("no number", "no number"),
    ],
)
def test_numbers_are_rewritten_in_the_form_they_have(sources: Sources, text: str, expected: str) -> None:
    assert rewrite(text, sources) == expected
    assert [m.line for m in check(f"\n{text}", sources)] == [2] * (text != expected)
    assert list(check(expected, sources)) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CELL.format("step_sum/oracle", "gsm8k"), "2 rows"),
        (CELL.format("c", "gsm8k"), "0 rows"),
        (CELL.format("a", "math"), "0 columns"),
        (CELL.format("as_is/oracle", "gsm8k"), "no number"),
        ("<!-- from board.md // Native // a // gsm8k -->", "has no table Native"),
        ("<!-- from board.md // gsm8k -->", "needs a page"),
    ],
)
def test_a_source_that_names_no_single_number_is_refused(sources: Sources, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewrite(f"1.0{source}", sources)


@pytest.mark.parametrize(
    "text",
    [
        *("an F1 of 31.4", "+0.2 [-0.9, +1.2]", "gains of -3 points", "reaches F1 34", "a difference of 18", "12%"),
        *(
            "two percent, or 2 percent",
            "took 40 seconds",
            "89 requests a second",
            "p = 0.78",
            "| a | 31.4 |",
            "* 31.4",
            "31.4 <!-- numbers: guess: of mine -->",
        ),
    ],
)
def test_a_result_without_a_source_is_a_fault(sources: Sources, text: str) -> None:
    assert list(check(text, sources))


@pytest.mark.parametrize(
    "text",
    [
        *("a 95% interval, at 5%, with 80% power", "Python 3.11, TRL 1.16", "arXiv 2501.03124", "0.1 M parameters"),
        *("`31.4`", "[text](https://example.org/1.5/x)", "step 3 of 10, seeds 0 and 1", "```text\n31.4\n```"),
        "31.4, as made up <!-- numbers: example: made up -->",
    ],
)
def test_what_is_no_result_needs_no_source(sources: Sources, text: str) -> None:
    assert list(check(text, sources)) == []


def test_blocks_of_terminal_output_follow_the_run() -> None:
    studies = (ROOT / "docs" / "studies.md").read_text()
    sources = Sources(ROOT / "leaderboards")
    line = next(line for line in studies.splitlines() if line.startswith(" step_sum/cross_validated "))
    altered = line.replace(line.split()[1], "99.9")
    assert altered != line
    assert rewrite(studies.replace(line, altered), sources) == studies


def test_readme_and_all_guides_are_checked() -> None:
    names = {str(path.relative_to(ROOT)) for path in pages(ROOT)}
    assert {"README.md", "docs/studies.md", "docs/concepts/floors.md", "docs/how-to/best-of-n.md"} <= names
    assert not any("reference" in name for name in names)
