"""Tables as a terminal shows them."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

WIDTH = 80


def printed(table: Table) -> list[str]:
    """Each line as it is printed on a wide terminal: the table itself must keep to its width."""
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def cut(lines: list[str]) -> list[str]:
    """Lines that lack something; titles and heads may be cut, numbers and names may not."""
    heads = next(i for i, line in enumerate(lines) if line.strip().startswith("─"))
    return [line for line in lines[heads:] if "…" in line]
