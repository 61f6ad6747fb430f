"""Tables as text, which tests compare with what a reader sees."""

from __future__ import annotations

from prmbench.report.markdown import cell_text
from prmbench.tasks.table import Table


def texts(table: Table) -> list[list[tuple[str, ...]]]:
    """The groups of a table, each cell as Markdown."""
    return [[tuple(map(cell_text, row)) for row in group] for group in table.groups]
