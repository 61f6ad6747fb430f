"""Renders tables as LaTeX with booktabs; equal tables give equal bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prmbench.tasks.table import Code, Table, TableCell, Value

LATEX_PREAMBLE = r"""% Compiles by itself, and can be \input into a document that loads booktabs.
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
    **{"[": "{[}", "]": "{]}"},  # a bracket at the start of a row would be an option of the previous row
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"$^\S$", "–": "--", "Δ": r"$\Delta$"},
}


def latex_document(tables: Sequence[Table]) -> str:
    """Returns all tables as a file that compiles on its own and can also be included in another."""
    return LATEX_PREAMBLE + "\n" + "\n".join(latex(table) for table in tables) + "\\prmbenchend\n"


def latex(table: Table) -> str:
    """Returns a booktabs table."""
    lines = [f"{' & '.join(escaped(h) for h in table.header)} \\\\", "\\midrule"]
    for i, group in enumerate(table.groups):
        lines += ["\\midrule"] * bool(i) + [f"{' & '.join(_cell(cell) for cell in row)} \\\\" for row in group]
    columns = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    caption = escaped(" ".join([f"{table.title}.", table.caption, *table.notes]))
    return "\n".join(
        [
            "\\begin{table}[p]\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
            f"\\caption{{{caption}}}\\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', table.label)}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}\\end{table}\n",
        ]
    )


def escaped(text: str) -> str:
    """Returns escaped text; characters that pdfLaTeX's Latin fonts lack become their code points."""
    return "".join(_LATEX.get(c) or (c if c.isascii() and c.isprintable() else _code_point(c)) for c in text)


def _code_point(character: str) -> str:
    return " " if character.isspace() else f"\\texttt{{U+{ord(character):04X}}}"


def _cell(cell: TableCell) -> str:
    if isinstance(cell, tuple):
        return " / ".join(_cell(value) for value in cell)
    if isinstance(cell, Code):
        return f"\\texttt{{{escaped(cell.key)}}}"
    if isinstance(cell, Value):
        number = f"\\textbf{{{escaped(cell.number)}}}" if cell.best else escaped(cell.number)
        interval = f" {{\\tiny {cell.interval}}}" if cell.interval else ""
        return number + interval + escaped(cell.marks)
    return escaped(cell)
