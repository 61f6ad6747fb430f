"""Checks the results that texts quote, and rewrites them: `python -m prmbench.report.cited_numbers --write`.

A number in Markdown is followed by a comment that says where it is from; readers do not see it:

    31.4 [28.4, 34.3]<!-- from processbench.md // Cross-validated // step_sum/cross_validated // avg of -->
    yes<!-- from miniature_rl.md // Arms against grpo // plain; distrl_ipvrm // Better -->
    p = 0.78<!-- from compare // RUN // RUN // PROTOCOL // PROTOCOL // SUBSET // p_value -->

The first two, a number and a verdict, name a generated page, the beginning of the title of its table, cells that
together choose one row (with `;` between them), and the beginning of a column's heading. The pages themselves are
checked against the stored scores by `prmbench report --check`. The third is a paired difference that no page has,
computed from the scores of two runs; `<!-- from run // RUN // seconds -->` is what a run recorded of itself.
Before a block of code, `<!-- block from RUN -->` says which run's result the lines that begin with a protocol show.
What looks like a result and is none has a comment in its paragraph that says what it is:
`<!-- numbers: example: what they are -->`, with one of KINDS.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from prmbench.core.records import EvalProtocol, MetricRow, UserError
from prmbench.core.result_files import Run
from prmbench.core.writing import write_atomic
from prmbench.metrics.equivalence import VERDICTS
from prmbench.report.markdown import cell_text
from prmbench.tasks import compare, read_run
from prmbench.tasks.table import PERCENT, POINTS, Value

KINDS = {
    "example": "made up, or the output of a command that anyone can run at once, to explain what numbers mean",
    "published": "measured by others, with their source",
    "definition": "part of a formula, a default or an option",
    "measured": "a time, size or output of one occasion, with its date or command, and the machine",
    "prediction": "computed from assumptions that the page states, by the script that the comment names",
}
"""What a number that is no committed result may be."""
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"
INTERVAL = rf" \[{NUMBER}, {NUMBER}\]"
SOURCED = re.compile(
    rf"(?P<number>(?<![\w.])(?:<\d\.\d+|{NUMBER}|{'|'.join(VERDICTS)})(?:{INTERVAL})?)(?P<unit>%?)"
    r"<!-- from (?P<source>[^>]*?) -->"
)
"""A number or a verdict with its source."""
RESULT = re.compile(
    rf"(?<![\w.\[/-]){NUMBER}{INTERVAL}"
    r"|(?<![\w./-])[+-]?\d+\.\d+(?![\w.]*\d|\w)"
    r"|(?<![\w./-])[+-]\d+(?![\w.])"
    r"|(?<![\w./-])\d+ ?(?:%|percent|points)"
    r"|(?<![\w./-])\d[\d,]*(?:\.\d+)?(?: a second|,? (?:seconds?|minutes?|ms|milliseconds|requests a second)\b)"
    r"|(?<=F1 )\d+(?![\w.])|(?<=F1 of )\d+(?![\w.])|(?<=difference of )\d+(?![\w.])"
)
"""What looks like a result: a number with an interval, a decimal, a signed number, percent or points, a time, an F1."""
ALLOWED = re.compile(
    r"(?:95|90|5)% (?:interval|bootstrap|t-interval|percentile|of the values)|(?:at|of) 5%|5% test|80% power"
    r"|power 0\.80|p below 0\.05|margin of \d points?"
    r"|(?:Python|TRL|vLLM|schema|Apache-|build) ?\d[\d.]*|arXiv \d{4}\.\d{5}|\d[\d.]* ?(?:M|B|GiB|MiB|GB)\b"
    r"|index of the first wrong step[^.]*?-1|\bor \*?\*?-1|-1 (?:is|when|where|for|=)"
)
"""Levels of tests and intervals, versions, papers, sizes, and the label -1: no results."""
FENCE = "```"


class Mismatch(NamedTuple):
    """A number that differs from its source, or that has none."""

    line: int
    text: str


@dataclass(frozen=True)
class Sources:
    """The generated pages and the results that numbers come from."""

    leaderboards: Path

    @cached_property
    def _results(self) -> Path:
        return self.leaderboards / "results"

    def value(self, source: str, shown: str) -> str:
        """Returns the number of a source as `shown` is written: with as many decimals, with a sign, with an interval.

        Raises:
            UserError: The source does not name exactly one number.
        """
        parts = [part.strip() for part in source.split(" // ")]
        text = _SPECIAL[parts[0]](self, parts[1:]) if parts[0] in _SPECIAL else self._cell(source, parts)
        return _in_the_form_of(shown, text)

    def _cell(self, source: str, parts: Sequence[str]) -> str:
        if len(parts) != 4:  # noqa: PLR2004 - page, table, row, column
            raise UserError(f"source {source}: needs a page, a table, cells of the row and a column, with // between")
        page, title, keys, column = parts
        header, rows = _table(self.leaderboards / page, title)
        wanted = {key.strip() for key in keys.split(";")}
        chosen = [row for row in rows if wanted <= set(row)]
        columns = [at for at, name in enumerate(header) if name == column] or [
            at for at, name in enumerate(header) if name.startswith(column)
        ]
        if len(chosen) != 1 or len(columns) != 1:
            raise UserError(f"source {source}: {len(chosen)} rows and {len(columns)} columns fit, not one of each")
        return chosen[0][columns[0]]

    def _compared(self, parts: Sequence[str]) -> str:
        first, second, protocol, against, subset, metric = parts
        rows = _rows(self._results / first, self._results / second, protocol, against)
        row = next(row for row in rows if (row.subset, row.metric) == (subset, metric))
        if metric == "p_value":
            return f"{row.value or 0:.3f}"
        return cell_text(Value(row.value, POINTS if metric.endswith("_difference") else PERCENT, row.lo, row.hi))

    def _recorded(self, parts: Sequence[str]) -> str:
        name, field = parts
        return str(getattr(_run(self._results / name).result.manifest, field))

    def block(self, source: str, line: str) -> str:
        """Returns a line of terminal output with the numbers of a run; unchanged if it begins with no protocol."""
        run = _run(self._results / source)
        rows = [r for r in run.result.rows if r.metric == "f1" and line.split()[:1] == [r.protocol]]
        averages = sorted((r for r in rows if "[" in r.subset), key=lambda r: -r.subset.count(","))
        rows = [r for r in rows if r not in averages[1:]]  # a terminal table has the widest average alone
        numbers = [
            number for row in rows for number in _numbers(row.value, None if row is not rows[-1] else (row.lo, row.hi))
        ]
        found = list(re.finditer(NUMBER, line))[-len(numbers) :] if numbers else []
        if len(found) != len(numbers):
            raise UserError(f"block from {source}: {line.strip()!r} should show {len(numbers)} numbers")
        for match, number in reversed(list(zip(found, numbers, strict=True))):
            start = match.start() - max(0, len(number) - len(match[0]))
            line = line[:start] + number.rjust(match.end() - start) + line[match.end() :]
        return line


_SPECIAL: dict[str, Callable[[Sources, Sequence[str]], str]] = {
    "compare": Sources._compared,
    "run": Sources._recorded,
}
"""Sources that are no page, by their first part."""


def _numbers(value: float | None, ends: tuple[float | None, float | None] | None) -> list[str]:
    shown = [value, *(ends or ())]
    return [f"{100 * number:.1f}" for number in shown if number is not None]


@cache
def _run(path: Path) -> Run:
    return read_run(path)


@cache
def _rows(first: Path, second: Path, protocol: str, against: str) -> tuple[MetricRow, ...]:
    pair = (EvalProtocol.parse(protocol), EvalProtocol.parse(against))
    a, b = _run(first), _run(second)
    return compare((a.result, a.scores), (b.result, b.scores), [pair])


@cache
def _table(page: Path, title: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the first table under the heading that begins with `title`."""
    text = page.read_text(encoding="utf-8")
    sections = re.split(r"(?m)^#+ ", text)[1:]
    section = next((s for s in sections if s.startswith(title)), None)
    if section is None:
        raise UserError(f"{page}: has no table {title}")
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return cells[0], cells[2:]


def _plain(cell: str) -> str:
    return re.sub(r"[*`†‡§]", "", cell).replace("&lt;", "<").replace("\\", "").strip()


def _in_the_form_of(shown: str, source: str) -> str:
    if shown in VERDICTS:
        if source not in VERDICTS:
            raise UserError(f"source of {shown}: holds no verdict but {source!r}")
        return source
    numbers = re.findall(rf"<?{NUMBER}", source)
    if not numbers:
        raise UserError(f"source of {shown}: holds no number but {source!r}")
    has_interval = "[" in shown
    if has_interval and len(numbers) < 3:  # noqa: PLR2004 - value and two ends
        raise UserError(f"source of {shown}: has no interval ({source})")
    first = re.match(rf"<?{NUMBER}", shown)
    decimals = len(first[0].partition(".")[2]) if first else 0
    wanted = numbers[:3] if has_interval else numbers[:1]
    texts = [number if number.startswith("<") else _rounded(number, decimals) for number in wanted]
    if "," in shown.partition(" [")[0]:
        texts[0] = f"{float(texts[0]):,.{decimals}f}"
    if shown[0] not in "+-" and not has_interval and texts[0][0] == "+":
        texts[0] = texts[0][1:]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if has_interval else texts[0]


def _rounded(number: str, decimals: int) -> str:
    if len(number.partition(".")[2]) <= decimals:
        return number
    sign = "+" if number[0] == "+" else ""
    return f"{float(number.replace(',', '')):{sign}.{decimals}f}"


def check(text: str, sources: Sources) -> Iterator[Mismatch]:
    """Yields the numbers of a Markdown text that differ from their source, and what looks like a result without one."""
    for number, (old, new) in enumerate(zip(text.splitlines(), rewrite(text, sources).splitlines(), strict=True), 1):
        if old != new:
            yield Mismatch(number, f"{_visible(old).strip()!r} should be {_visible(new).strip()!r}")
    yield from _unsourced(text)


def rewrite(text: str, sources: Sources) -> str:
    """Returns a Markdown text with every number that names its source as the source has it."""

    def replaced(match: re.Match[str]) -> str:
        return f"{sources.value(match['source'], match['number'])}{match['unit']}<!-- from {match['source']} -->"

    lines, run, in_block = [], "", False
    for line in text.split("\n"):
        if line.startswith(FENCE):
            in_block, run = not in_block, "" if in_block else run
        elif block := re.fullmatch(r"<!-- block from (.*) -->", line):
            run = block[1]
        elif in_block:
            line = sources.block(run, line) if run else line  # noqa: PLW2901
        else:
            line = SOURCED.sub(replaced, line)  # noqa: PLW2901
        lines.append(line)
    return "\n".join(lines)


def _unsourced(text: str) -> Iterator[Mismatch]:
    start = 1
    for paragraph in _paragraphs(text):
        kinds = re.findall(r"<!-- numbers: (\w+): [^>]+ -->", paragraph)
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            yield Mismatch(start, f"numbers: {unknown[0]} is not one of {', '.join(KINDS)}")
        if not kinds:
            plain = SOURCED.sub(" ", paragraph)
            plain = re.sub(r"`[^`\n]*`|\]\([^)]*\)|<!--.*?-->|<[^>]+>", " ", plain)
            plain = re.sub(ALLOWED, " ", plain)
            for match in RESULT.finditer(plain):
                yield Mismatch(
                    start, f"{match[0]!r} looks like a result and names no source: {_visible(paragraph)[:90]!r}"
                )
        start += paragraph.count("\n") + 1


def _paragraphs(text: str) -> Iterator[str]:
    """The text's paragraphs, items of lists and lines of tables; blocks of code are empty, with as many lines."""
    in_block, held = False, ""
    for line in text.split("\n"):
        is_fence = line.startswith(FENCE)
        if held and (is_fence or in_block or not line.strip() or re.match(r"(?:[*-]|\d+\.|\|) ", line.lstrip())):
            yield held[:-1]
            held = ""
        in_block ^= is_fence
        if is_fence or in_block or not line.strip():
            yield ""
        else:
            held += f"{line}\n"
    if held:
        yield held[:-1]


def _visible(text: str) -> str:
    return re.sub(r"<!--.*?-->", "", text)


def pages(root: Path) -> list[Path]:
    """Returns the texts that are checked: README and docs, without the reference, which is made from docstrings."""
    docs = sorted(path for path in (root / "docs").rglob("*.md") if "reference" not in path.parts)
    return [root / "README.md", *docs]


def main(arguments: Sequence[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Checks or rewrites the texts of a checkout; returns 1 if a number has no source or differs from it."""
    parser = argparse.ArgumentParser(prog="python -m prmbench.report.cited_numbers", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="rewrite the numbers that differ")
    parser.add_argument("--root", type=Path, default=Path(), help="a checkout of the repository")
    options = parser.parse_args(arguments)
    sources, faults = Sources(options.root / "leaderboards"), 0
    for page in pages(options.root):
        text = page.read_text(encoding="utf-8")
        try:
            if options.write and (new := rewrite(text, sources)) != text:
                write_atomic(page, new.encode())
                say(f"{page}: rewritten")
                text = new
            mismatches = list(check(text, sources))
        except UserError as error:
            faults += 1
            say(f"{page}: {error}")
            continue
        for mismatch in mismatches:
            faults += 1
            say(f"{page}:{mismatch.line}: {mismatch.text}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
