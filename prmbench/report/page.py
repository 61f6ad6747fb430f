"""One self-contained HTML page: overview, tables, figures and a trace viewer. No external resource, no clock.

Python decides every number and verdict; the scripts in assets/ only show, sort and filter.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from prmbench.core.result_files import Run
from prmbench.report import explain, overview
from prmbench.report.board import LEGEND, Board, RuleTable, boards
from prmbench.report.figures import Drawn
from prmbench.report.sheets import Section, Sheet, sheets, split
from prmbench.report.verdicts import KINDS
from prmbench.report.viewer import Texts, view
from prmbench.tasks.published import Published, published
from prmbench.tasks.table import Cell, Code, Table, Value, is_floor
from prmbench.tasks.wording import RULES

MOST_TRACES = 1000
MOST_BYTES = 4_800_000
"""The page stays under 5 MB: traces are left out until it does, and the page says so."""
SCRIPTS = ("report_base.js", "report_tables.js", "report_traces.js", "report.js")
"""One module, in this order; report_theme.js runs before the page is drawn."""
Bulk = dict[str, Any]


def page(
    listed: Sequence[tuple[Board, Sequence[Drawn]]],
    others: Sequence[Sheet],
    refused: Sequence[tuple[Run, str]],
    data: Texts | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """The page for all benchmarks; runs that may not be listed stand apart, with the reasons."""
    unlisted = [run for run, _ in refused]
    concerned = [section for section in sections if any(section.owns(run.result.manifest) for run in unlisted)]
    shown = [(board, drawn, "") for board, drawn in listed]
    shown += [(board, (), _reasons(board.runs, refused)) for board in boards(split(unlisted, concerned)[0])]
    sheeted = [(sheet, "") for sheet in others]
    sheeted += [(sheet, _reasons(sheet.runs, refused)) for sheet in sheets(unlisted, sections=concerned)]
    parts = [(_section(board, reason), _images(drawn), board.runs) for board, drawn, reason in shown]
    parts += [(_sheet(sheet, reason), _images(sheet.figures), ()) for sheet, reason in sheeted]
    parts.sort(key=lambda part: (bool(part[0]["unlisted"]), not part[0]["card"]["runs"]))
    shown_sections = [section for section, _, _ in parts]
    words = {name: text for sheet, _ in sheeted for name, text in sheet.column_words.items()}
    most = MOST_TRACES
    while True:
        bulk = [{"figures": images, **view(runs, most, data)} for _, images, runs in parts]
        html = _render(_payload(shown_sections, bulk, words), bulk)
        size = len(html.encode())
        if size <= MOST_BYTES or most <= 1:
            return html
        most = min(most - 1, int(most * 0.95 * MOST_BYTES / size))


def _payload(sections: Sequence[dict[str, Any]], bulk: Sequence[Bulk], words: Mapping[str, str]) -> dict[str, Any]:
    """What is needed at once: the tables, and the words for what stands in them."""
    return {
        "benchmarks": sections,
        "rules": RULES,
        "legend": LEGEND,
        "kinds": KINDS,
        "protocols": explain.protocols(_keys(sections, bulk)),
        "columns": explain.columns([*explain.COLUMNS, *_headings(sections)], words),
    }


def _keys(sections: Sequence[dict[str, Any]], bulk: Sequence[Bulk]) -> Iterator[str]:
    """Every protocol, readout and floor that the page names."""
    for section in sections:
        yield from (line["protocol"] for table in section["tables"] for line in table["lines"])
        yield from (row["readout"] for book in section["published"] for row in book["rows"])
        rows = (row["cells"] for table in section["grids"] for group in table["groups"] for row in group)
        yield from (cell["code"] for row in rows for cell in row if isinstance(cell, dict) and "code" in cell)
    yield from (protocol["key"] for seen in bulk for run in seen["runs"] for protocol in run["protocols"])


def _headings(sections: Sequence[dict[str, Any]]) -> Iterator[str]:
    for section in sections:
        yield from (name for table in section["tables"] for name in table["columns"])
        yield from (name for grid in section["grids"] for name in grid["header"])


def _render(payload: Mapping[str, Any], bulk: Sequence[Bulk]) -> str:
    assets = files("prmbench") / "assets"
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    early = (assets / "report_theme.js").read_text(encoding="utf-8")
    environment = Environment(loader=PackageLoader("prmbench", "assets"), autoescape=True, keep_trailing_newline=True)
    return environment.get_template("report.html").render(
        style=Markup((assets / "report.css").read_text(encoding="utf-8")),
        early=Markup(early),
        script=Markup(script),
        hashes=Markup(" ".join(f"'{_hash(text)}'" for text in (early, script))),
        payload=Markup(embed(payload)),
        bulk=pack(bulk),
    )


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def pack(bulk: object) -> str:
    """JSON, gzipped, as text: scores, solutions and drawings shrink to a fifth. No clock enters."""
    text = json.dumps(bulk, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def embed(payload: object) -> str:
    """JSON that can stand inside a script element whatever the text in it says."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _section(board: Board, reason: str) -> dict[str, Any]:
    return {
        "name": board.name,
        "unlisted": reason,
        "card": _card(overview.of_board(board)),
        "sizes": board.sizes,
        "tables": [_table(table) for table in board.tables],
        "grids": [],
        "published": [] if reason else [_book(book) for book in published(board.benchmark)],
    }


def _reasons(runs: Sequence[Run], refused: Sequence[tuple[Run, str]]) -> str:
    names = {run.path for run in runs}
    return "; ".join(sorted({reason for run, reason in refused if run.path in names}))


def _sheet(sheet: Sheet, reason: str) -> dict[str, Any]:
    """A benchmark without a board, whose traces are not shown."""
    return {
        "name": sheet.name,
        "unlisted": reason,
        "card": _card(overview.of_sheet(sheet)),
        "words": sheet.words,
        "sizes": sheet.sizes,
        "tables": [],
        "grids": [_typed_table(table) for table in sheet.tables],
        "published": [],
    }


def _card(card: overview.Card) -> dict[str, Any]:
    facts = [(heading, _cell(cell)) for heading, cell in card.facts]
    return {"words": card.words, "runs": card.runs, "number": _cell(card.number), "facts": facts}


def _typed_table(table: Table) -> dict[str, Any]:
    """A table with its cells as the page's script reads them."""
    return {
        "label": table.label,
        "title": table.title,
        "caption": table.caption,
        "header": table.header,
        "text_columns": table.text_columns,
        "notes": table.notes,
        "groups": [
            [{"floor": is_floor(row), "cells": [_cell(cell) for cell in row]} for row in group]
            for group in table.groups
        ],
    }


def _cell(cell: Cell) -> Any:
    """Text as it is; a name as `code`; a number by what it is sorted by (`value`), and as it is printed."""
    if isinstance(cell, Code):
        return {"code": cell.key}
    if isinstance(cell, tuple):
        values = [_cell(value) for value in cell]
        return {**values[0], "number": " / ".join(v["number"] for v in values), "marks": values[-1]["marks"]}
    if isinstance(cell, Value):
        return {
            "value": _round(cell.value),
            "number": cell.number,
            "interval": cell.interval,
            "marks": cell.marks,
            "best": cell.best,
        }
    return cell


def _images(drawn: Sequence[Drawn]) -> list[dict[str, str]]:
    return [{"title": f.title, "caption": f.caption, "svg": f.svg.decode()} for f in drawn]


# --- tables ----------------------------------------------------------------------------------------------


def _table(table: RuleTable) -> dict[str, Any]:
    lines = [
        {
            "group": line.group,
            "model": line.model + line.marks,
            "protocol": line.protocol,
            "input": line.input_format,
            "signal": line.signal,
            "run": line.run_id,
            "n": line.n,
            "unscored": line.unscored,
            "mdd": _round(table.mdd(line)),
            "cells": {
                name: [_round(v) for v in (c.f1, c.lo, c.hi, c.error, c.correct)] + [c.marks, c.note]
                for name, c in line.cells.items()
            },
        }
        for line in table.lines
    ]
    best = {name: _round(table.best(name)) for name in table.columns}
    return {"rule": table.rule, "columns": table.columns, "best": best, "lines": lines}


def _book(book: Published) -> dict[str, Any]:
    rows = [
        {
            "model": r.name,
            "note": r.note,
            "rule": r.rule,
            "readout": r.readout,
            "threshold": r.threshold,
            "avg": r.average,
            "cells": r.cells,
        }
        for r in book.rows
    ]
    return {"title": book.title, "source": book.source, "note": book.note, "subsets": book.subsets, "rows": rows}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
