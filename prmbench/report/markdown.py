"""Renders tables as Markdown; equal tables give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence

from prmbench.tasks.table import Code, Table, TableCell, Value


def markdown(table: Table, level: int = 2, heading: bool = True) -> str:
    """Returns a heading, the caption, the table and its notes."""
    width = len(table.header)
    align = ["---"] * table.text_columns + ["---:"] * (width - table.text_columns)
    lines = [_line(table.header), _line(align)]
    for i, group in enumerate(table.groups):
        lines += [_line([""] * width)] * bool(i) + [_line([cell_text(cell) for cell in row]) for row in group]
    head = [f"{'#' * level} {table.title}", ""] if heading else []
    notes = [line for note in table.notes for line in ("", escaped(note))]
    return "\n".join([*head, table.caption, "", *lines, *notes]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell_text(cell: TableCell) -> str:
    """Returns a cell as Markdown: `**56.8** [55.1, 58.2]†` for a number."""
    if isinstance(cell, tuple):
        return " / ".join(cell_text(value) for value in cell)
    if isinstance(cell, Code):
        return escaped(f"`{cell.key}`")
    if isinstance(cell, Value):
        number = f"**{cell.number}**" if cell.best else cell.number
        return escaped(f"{number} {cell.interval}".rstrip() + cell.marks)
    return escaped(cell)


def escaped(text: str) -> str:
    """Returns text whose pipes, angle brackets, backslashes and links cannot become markup."""
    flat = " ".join(text.replace("\\", "\\\\").split())
    return flat.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("](", "]\\(")
