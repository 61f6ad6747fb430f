"""Boards -> Markdown, LaTeX, CSV and JSON text. Fixed digits, no clock: equal boards give equal bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from prmbench.core.records import EvalProtocol
from prmbench.core.result_files import Run, canonical_json
from prmbench.report.board import LEGEND, Board, Cell, Line, RuleTable
from prmbench.report.frame import RULES, frame, members
from prmbench.report.published import Published
from prmbench.report.verdicts import HEADLINE

DASH = "–"
RECOMMENDED = ("calibrated", "cross_validated", "native", "fixed")
"""Threshold rules that are honest, the one to quote first."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text: what Markdown and LaTeX have in common."""

    label: str
    title: str
    caption: str
    header: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    """Rows of strings, in groups set apart by a rule. `**x**` is bold, `[lo, hi]` is set small."""
    notes: tuple[str, ...] = ()
    text_columns: int = 2


def percent(value: float | None) -> str:
    """0.5678 -> `56.8`."""
    return DASH if value is None else f"{100 * value:.1f}"


def cell_text(cell: Cell | None, best: float | None = None) -> str:
    """`**56.8** [55.1, 58.2]†`; bold when it is the best of its column."""
    if cell is None or cell.f1 is None:
        return DASH + (cell.marks if cell else "")
    number = percent(cell.f1)
    number = f"**{number}**" if best is not None and percent(best) == number else number
    interval = "" if cell.lo is None else f" [{percent(cell.lo)}, {percent(cell.hi)}]"
    return f"{number}{interval}{cell.marks}"


def front_grid(board: Board) -> Grid | None:
    """The table that a page opens with: a row per model under one recommended protocol, named in the title.

    The protocol's threshold rule is the first of RECOMMENDED that a model has, its readout the headline one of the
    model's kind of score. None when no model has such a protocol.
    """
    for rule in RECOMMENDED:
        for table in board.tables:
            rows = _first_by_model(table) if table.rule == rule else {}
            if any(line.group == "model" for line in rows.values()):
                return _front_grid(board, replace(table, lines=(*rows.values(), *_floors(table))))
    return None


def _front_grid(board: Board, table: RuleTable) -> Grid:
    grid = rule_grid(board, table)
    names = dict.fromkeys(line.protocol for line in table.lines if line.group == "model")
    return replace(
        grid,
        label=f"{board.benchmark}-front",
        title=f"First-error F1 under {' or '.join(f'`{name}`' for name in names)}",
        caption="One row a model under the recommended protocol; which of those named it is depends on what the model "
        f"gives: sums over a step's tokens, or one score a step. {RULES[table.rule][1]} Percent with 95% intervals; "
        "the floors beneath need no model. Of several runs of a model the one that ranks first is shown.",
        header=grid.header[:-1],
        groups=tuple(tuple(row[:-1] for row in group) for group in grid.groups),
    )


def _first_by_model(table: RuleTable) -> dict[str, Line]:
    """Model -> its best ranked line whose readout is the headline of a kind of score."""
    lines: dict[str, Line] = {}
    for line in table.lines:
        if line.group != "floor":
            protocol = EvalProtocol.parse(line.protocol)
            if protocol.readout in HEADLINE.values() and not protocol.series:
                lines.setdefault(line.model, line)
    return lines


def _floors(table: RuleTable) -> list[Line]:
    return [line for line in table.lines if line.group == "floor"]


def rule_grid(board: Board, table: RuleTable) -> Grid:
    """The table of one threshold rule: F1 with intervals, floors beneath."""
    title, words = RULES[table.rule]
    header = ("Model", "Protocol", "Input", "Trained from", *(_heading(c, board.sizes) for c in table.columns))
    best = {c: table.best(c) for c in table.columns}
    groups = []
    for group in ("model", "baseline", "floor"):
        rows = tuple(_row(line, table, best) for line in table.lines if line.group == group)
        groups.append(rows)
    return Grid(
        label=f"{board.benchmark}-{table.rule}",
        title=title,
        caption=f"{words} First-error F1 in percent with its 95% interval.",
        header=(*header, "Min. difference", "Unscored", "Run"),
        groups=tuple(g for g in groups if g),
        notes=_notes(table),
        text_columns=4,
    )


def _row(line: Line, table: RuleTable, best: dict[str, float | None]) -> tuple[str, ...]:
    model_cells = (cell_text(line.cells.get(c), best[c] if line.group == "model" else None) for c in table.columns)
    if line.group == "floor":
        return (line.model, f"`{line.protocol}`", "", "", *model_cells, "", "", "")
    mdd = percent(table.mdd(line))
    name = line.model + line.marks
    return (
        name,
        f"`{line.protocol}`",
        line.input_format,
        line.signal,
        *model_cells,
        mdd,
        str(line.unscored),
        line.run_id,
    )


def _notes(table: RuleTable) -> tuple[str, ...]:
    used = "".join(c.marks for line in table.lines for c in line.cells.values()) + "".join(x.marks for x in table.lines)
    notes = [f"{mark} {words}." for mark, words in LEGEND.items() if mark in used]
    empty = {(c.note, name) for line in table.lines for name, c in line.cells.items() if c.f1 is None and c.note}
    notes += [f"{DASH} in {name}: {note}." for note, name in sorted(empty)]
    return tuple(notes)


def _heading(column: str, sizes: dict[str, int]) -> str:
    name = f"avg of {', '.join(members(column))}" if column.startswith("avg[") else column
    return f"{name} (n={sizes[column]})" if column in sizes else name


def accuracy_grid(board: Board, table: RuleTable) -> Grid:
    """The two accuracies behind each F1 of a rule's table."""
    rows = tuple(
        (line.model + line.marks, f"`{line.protocol}`", *(_accuracies(line.cells.get(c)) for c in table.columns))
        for line in table.lines
        if line.group != "floor"
    )
    return Grid(
        label=f"{board.benchmark}-{table.rule}-accuracies",
        title=f"{RULES[table.rule][0]}: accuracies",
        caption="Exact-index accuracy on traces with an error / accuracy on traces without one, percent.",
        header=("Model", "Protocol", *(_heading(c, board.sizes) for c in table.columns)),
        groups=(rows,),
    )


def _accuracies(cell: Cell | None) -> str:
    return DASH if cell is None else f"{percent(cell.error)} / {percent(cell.correct)}{cell.marks}"


def published_grids(published: Sequence[Published]) -> tuple[Grid, ...]:
    """One table per threshold rule; a row names its source by number, the sources follow."""
    grids = []
    for rule, (title, _) in RULES.items():
        rows: list[tuple[str, ...]] = []
        sources: list[str] = []
        remarks: list[str] = []
        for book in published:
            chosen = [row for row in book.rows if row.rule == rule]
            if chosen:
                sources.append(f"{len(sources) + 1}: {book.source}. {book.note}")
            rows += [row.texts(book.subsets, len(sources)) for row in chosen]
            remarks += [f"{row.name}: {row.note}." for row in chosen if row.note]
        if rows:
            subsets = next(b.subsets for b in published if any(r.rule == rule for r in b.rows))
            grids.append(
                Grid(
                    label=f"published-{rule.replace(' ', '-')}",
                    title=f"Published: {title[0].lower()}{title[1:]}",
                    caption="F1 (accuracy with an error / without), percent. No interval: none was published.",
                    header=("Model", "Readout", "Threshold", *subsets, "avg of the four", "Source"),
                    groups=(tuple(rows),),
                    notes=(*sources, *remarks),
                    text_columns=3,
                )
            )
    return tuple(grids)


# --- Markdown -----------------------------------------------------------------------------------------


def markdown(grid: Grid, level: int = 2, heading: bool = True) -> str:
    """A heading, the caption, the table, its notes."""
    width = len(grid.header)
    align = ["---"] * grid.text_columns + ["---:"] * (width - grid.text_columns)
    lines = [_md_row(grid.header), _md_row(align)]
    for i, group in enumerate(grid.groups):
        lines += [_md_row([""] * width)] * bool(i) + [_md_row([md_text(t) for t in row]) for row in group]
    head = [f"{'#' * level} {grid.title}", ""] if heading else []
    notes = [line for note in grid.notes for line in ("", md_text(note))]
    return "\n".join([*head, grid.caption, "", *lines, *notes]) + "\n"


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def md_text(text: str) -> str:
    """Keeps a name from becoming markup: pipes, angle brackets, backslashes, links."""
    flat = " ".join(text.replace("\\", "\\\\").split())
    return flat.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("](", "]\\(")


# --- LaTeX --------------------------------------------------------------------------------------------

LATEX_HEAD = r"""% Compiles by itself, and can be \input into a document that loads booktabs.
\makeatletter
\ifx\@nodocument\relax
  \let\prmbenchend\relax
\else
  \documentclass{article}
  \usepackage{booktabs}
  \usepackage[margin=1cm,paperwidth=50cm,paperheight=42cm]{geometry}
  \def\prmbenchend{\end{document}}
  \begin{document}
\fi
\makeatother
"""
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"[": "{[}", "]": "{]}"},  # a row that begins with a bracket would be read as an option of the row before
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"$^\S$", "–": "--", "Δ": r"$\Delta$"},
}


def latex_document(grids: Sequence[Grid]) -> str:
    """All tables, in a file that both compiles alone and can be included in another."""
    return LATEX_HEAD + "\n" + "\n".join(latex(grid) for grid in grids) + "\\prmbenchend\n"


def latex(grid: Grid) -> str:
    """A booktabs table."""
    lines = [f"{' & '.join(latex_text(h) for h in grid.header)} \\\\", "\\midrule"]
    for i, group in enumerate(grid.groups):
        lines += ["\\midrule"] * bool(i) + [f"{' & '.join(_tex_cell(t) for t in row)} \\\\" for row in group]
    columns = "l" * grid.text_columns + "r" * (len(grid.header) - grid.text_columns)
    caption = latex_text(" ".join([f"{grid.title}.", grid.caption, *grid.notes]))
    return "\n".join(
        [
            "\\begin{table}[p]\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
            f"\\caption{{{caption}}}\\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', grid.label)}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}\\end{table}\n",
        ]
    )


def latex_text(text: str) -> str:
    """Escaped; a character that pdfLaTeX's Latin fonts lack is spelled as its code point."""
    return "".join(_LATEX.get(c) or (c if c.isascii() and c.isprintable() else _code_point(c)) for c in text)


def _code_point(character: str) -> str:
    return " " if character.isspace() else f"\\texttt{{U+{ord(character):04X}}}"


def _tex_cell(text: str) -> str:
    if text.startswith("`"):
        return f"\\texttt{{{latex_text(text.strip('`'))}}}"
    found = re.fullmatch(r"(\*\*)?([+-]?[\d.]+)(?:\*\*)?( \[[\d., +-]+\])?([†‡]*)", text)
    if not found:
        return latex_text(text)
    bold, number, interval, marks = found.groups()
    number = f"\\textbf{{{number}}}" if bold else number
    return number + (f" {{\\tiny {interval.strip()}}}" if interval else "") + latex_text(marks)


# --- CSV and JSON -------------------------------------------------------------------------------------


def csv(board: Board) -> str:
    """Every number of the board in long format: fractions with six decimals, thresholds with nine digits."""
    return frame_csv(board.runs)


def frame_csv(runs: Sequence[Run]) -> str:
    """As `csv`, for runs that make no board."""
    table = frame(runs)
    for name in ("value", "lo", "hi"):
        table[name] = [
            "" if math.isnan(number) else f"{number:.9g}" if metric == "threshold" else f"{number:.6f}"
            for number, metric in zip(table[name], table["metric"], strict=True)
        ]
    return str(table.to_csv(index=False, lineterminator="\n"))


def board_json(board: Board, published: Sequence[Published]) -> str:
    """The tables as numbers (fractions, six decimals), for programs."""
    tables = {
        table.rule: {
            "columns": list(table.columns),
            "lines": [{**asdict(line), "cells": _rounded(line)} for line in table.lines],
        }
        for table in board.tables
    }
    books = [asdict(book) for book in published]
    return canonical_json({"benchmark": board.benchmark, "sizes": board.sizes, "tables": tables, "published": books})


def _rounded(line: Line) -> dict[str, dict[str, object]]:
    return {
        column: {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(cell).items()}
        for column, cell in line.cells.items()
    }
