"""One self-contained HTML page: overview, tables, figures and a trace viewer. No external resource, no clock.

Python computes every number and verdict; the scripts in assets/ only show, sort and filter.
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
from prmbench.report import explain, formulas, overview, score_figures
from prmbench.report.board import LEGEND, Board, RuleTable, boards
from prmbench.report.figures import RenderedFigure, render_figures
from prmbench.report.picks import picks_view
from prmbench.report.ranking_table import ranking_table
from prmbench.report.sheets import Section, Sheet, sheet_name, sheets, split
from prmbench.report.standings import Column, with_readings
from prmbench.report.verdicts import PICK_KINDS
from prmbench.report.viewer import TraceTexts, trace_view
from prmbench.tasks import best_of_n
from prmbench.tasks.published import Published, published
from prmbench.tasks.table import Code, Table, TableCell, Value, is_floor
from prmbench.tasks.wording import RULES

MAX_TRACES = 1000
MAX_BYTES = 4_800_000
"""The page stays below 5 MB: traces are left out until it does, which the page states."""
SCRIPTS = ("report_base.js", "report_tables.js", "report_traces.js", "report_picks.js", "report.js")
"""Concatenated into one module in this order; report_theme.js runs before the page is drawn."""
BoardDetails = dict[str, Any]


def page(
    listed: Sequence[tuple[Board, Sequence[RenderedFigure]]],
    others: Sequence[Sheet],
    refused: Sequence[tuple[Run, str]],
    data: TraceTexts | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """Returns the page for all benchmarks; refused runs are shown separately, with the reasons.

    Args:
        listed: Boards with their figures.
        others: Sheets of tasks without a board.
        refused: Runs that may not be listed, each with the reason.
        data: Texts of traces by id.
        sections: The caller's sections, which own some of the runs.
    """
    unlisted = [run for run, _ in refused]
    affected = [section for section in sections if any(section.owns_run(run.result.manifest) for run in unlisted)]
    board_parts = [(board, board_figures, "") for board, board_figures in listed]
    board_parts += [(board, (), _reasons(board.runs, refused)) for board in boards(split(unlisted, affected)[0])]
    sheet_parts = [(sheet, "") for sheet in others]
    sheet_parts += [(sheet, _reasons(sheet.runs, refused)) for sheet in sheets(unlisted, sections=affected)]
    columns = with_readings(
        [
            *(overview.board_column(board) for board, _, _ in board_parts),
            *(overview.sheet_column(sheet) for sheet, _ in sheet_parts),
        ]
    )
    parts = [
        (_section(board, column, reason), _images([*board_figures, *_score_figures(board)]), board.runs, column)
        for (board, board_figures, reason), column in zip(board_parts, columns, strict=False)
    ]
    parts += [
        (_sheet(sheet, column, reason), _images(sheet.figures), _viewed_runs(sheet), column)
        for (sheet, reason), column in zip(sheet_parts, columns[len(board_parts) :], strict=True)
    ]
    parts.sort(key=lambda part: (bool(part[0]["unlisted"]), not part[0]["card"]["runs"]))
    section_data = [section for section, _, _, _ in parts]
    models = overview.model_order([column for _, _, _, column in parts if column is not None])
    column_descriptions = {name: text for sheet, _ in sheet_parts for name, text in sheet.column_descriptions.items()}
    max_traces = MAX_TRACES
    while True:
        bulk = [{"figures": images, **_view(runs, max_traces, data)} for _, images, runs, _ in parts]
        html = _render(_payload(section_data, models, bulk, column_descriptions), bulk)
        size = len(html.encode())
        if size <= MAX_BYTES or max_traces <= 1:
            return html
        max_traces = min(max_traces - 1, int(max_traces * 0.95 * MAX_BYTES / size))


def _viewed_runs(sheet: Sheet) -> tuple[Run, ...]:
    """The runs whose completions the viewer shows: those of a best-of-N sheet, not of a study that has some."""
    is_shown = all(
        m.task == best_of_n.TASK.name and sheet_name(m) == sheet.name for m in (r.result.manifest for r in sheet.runs)
    )
    return sheet.runs if is_shown else ()


def _view(runs: Sequence[Run], max_traces: int, data: TraceTexts | None) -> BoardDetails:
    """The viewer's part of a benchmark, with the formulas in its texts."""
    is_picks = bool(runs) and runs[0].result.manifest.task == best_of_n.TASK.name
    view = (picks_view if is_picks else trace_view)(runs, max_traces, data)
    return {**view, "formulas": formulas.formulas(_shown_texts(view))}


def _shown_texts(view: Mapping[str, Any]) -> Iterator[str]:
    for text in view["texts"].values():
        yield text["problem"]
        yield from text["steps"]
    for run in view["runs"]:
        for critiques in run.get("critiques", {}).values():
            yield from critiques


def _score_figures(board: Board) -> tuple[RenderedFigure, ...]:
    """The figures that only the page has, so that a folder of leaderboards stays small."""
    return render_figures(lambda: score_figures.plans(board))


def _payload(
    sections: Sequence[dict[str, Any]],
    models: Sequence[str],
    bulk: Sequence[BoardDetails],
    column_descriptions: Mapping[str, str],
) -> dict[str, Any]:
    """The data that the page needs at once: tables and explanations."""
    return {
        "benchmarks": sections,
        "models": models,
        "rules": RULES,
        "legend": LEGEND,
        "kinds": PICK_KINDS,
        "formula": formulas.PATTERN,
        "protocols": explain.protocols(_protocol_keys(sections, bulk)),
        "columns": explain.columns([*explain.COLUMNS, *_headings(sections)], column_descriptions),
    }


def _protocol_keys(sections: Sequence[dict[str, Any]], bulk: Sequence[BoardDetails]) -> Iterator[str]:
    """Every protocol, readout and floor that the page mentions."""
    for section in sections:
        yield from section["standing"]["protocols"] if section["standing"] else ()
        yield from (row["protocol"] for table in section["rule_tables"] for row in table["rows"])
        yield from (row["readout"] for publication in section["published"] for row in publication["rows"])
        rows = (row["cells"] for table in section["tables"] for group in table["groups"] for row in group)
        yield from (cell["code"] for row in rows for cell in row if isinstance(cell, dict) and "code" in cell)
    yield from (protocol["key"] for details in bulk for run in details["runs"] for protocol in run["protocols"])


def _headings(sections: Sequence[dict[str, Any]]) -> Iterator[str]:
    for section in sections:
        yield from (name for table in section["rule_tables"] for name in table["columns"])
        yield from (name for table in section["tables"] for name in table["header"])


def _render(payload: Mapping[str, Any], bulk: Sequence[BoardDetails]) -> str:
    assets = files("prmbench") / "assets"
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    theme_script = (assets / "report_theme.js").read_text(encoding="utf-8")
    environment = Environment(loader=PackageLoader("prmbench", "assets"), autoescape=True, keep_trailing_newline=True)
    return environment.get_template("report.html").render(
        style=Markup((assets / "report.css").read_text(encoding="utf-8")),
        early=Markup(theme_script),
        script=Markup(script),
        hashes=Markup(" ".join(f"'{_hash(text)}'" for text in (theme_script, script))),
        payload=Markup(embed(payload)),
        bulk=pack(bulk),
    )


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def pack(bulk: object) -> str:
    """Returns JSON as base64 of gzip, a fifth of its size; no time stamp, so equal data give equal text."""
    text = json.dumps(bulk, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def embed(payload: object) -> str:
    """Returns JSON that is safe inside a script element, whatever text it contains."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _section(board: Board, standing: Column | None, reason: str) -> dict[str, Any]:
    return {
        "name": board.name,
        "unlisted": reason,
        "card": _card(overview.board_card(board, standing)),
        "standing": overview.column_data(standing),
        "sizes": board.sizes,
        "rule_tables": [_rule_table(table) for table in board.tables],
        "tables": [_typed_table(table) for table in filter(None, [ranking_table(board)])],
        "published": [] if reason else [_publication(publication) for publication in published(board.benchmark)],
    }


def _reasons(runs: Sequence[Run], refused: Sequence[tuple[Run, str]]) -> str:
    names = {run.path for run in runs}
    return "; ".join(sorted({reason for run, reason in refused if run.path in names}))


def _sheet(sheet: Sheet, standing: Column | None, reason: str) -> dict[str, Any]:
    """Page data of a sheet: a benchmark without a board and without a trace viewer."""
    return {
        "name": sheet.name,
        "unlisted": reason,
        "card": _card(overview.sheet_card(sheet, standing)),
        "standing": overview.column_data(standing),
        "description": sheet.description,
        "sizes": sheet.sizes,
        "rule_tables": [],
        "tables": [_typed_table(table) for table in sheet.tables],
        "published": [],
    }


def _card(card: overview.Card) -> dict[str, Any]:
    facts = [(heading, _cell(cell)) for heading, cell in card.facts]
    return {"description": card.description, "runs": card.runs, "number": _cell(card.number), "facts": facts}


def _typed_table(table: Table) -> dict[str, Any]:
    """Page data of a table of typed cells."""
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


def _cell(cell: TableCell) -> Any:
    """Page data of a cell: plain text, an identifier as `code`, or a number with its sort key (`value`) and text."""
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


def _images(rendered: Sequence[RenderedFigure]) -> list[dict[str, str]]:
    return [{"title": f.title, "caption": f.caption, "svg": f.svg.decode()} for f in rendered]


# --- tables ----------------------------------------------------------------------------------------------


def _rule_table(table: RuleTable) -> dict[str, Any]:
    rows = [
        {
            "group": row.group,
            "model": row.model + row.marks,
            "protocol": row.protocol,
            "input": row.input_format,
            "signal": row.signal,
            "run": row.run_id,
            "n": row.n,
            "unscored": row.unscored,
            "mdd": _round(table.mdd(row)),
            "cells": {
                name: [_round(v) for v in (c.f1, c.lo, c.hi, c.error, c.correct)]
                + [c.marks, c.note, table.is_tied(row, name)]
                for name, c in row.cells.items()
            },
        }
        for row in table.rows
    ]
    return {"rule": table.rule, "columns": table.columns, "bold": table.bold_text, "rows": rows}


def _publication(publication: Published) -> dict[str, Any]:
    rows = [
        {
            "model": r.name,
            "note": "; ".join(filter(None, [r.note, f"compare with {r.reading.words}" if r.reading else ""])),
            "rule": r.rule,
            "readout": r.readout,
            "threshold": r.threshold,
            "avg": r.average,
            "cells": r.cells,
        }
        for r in publication.rows
    ]
    return {
        "title": publication.title,
        "source": publication.source,
        "note": publication.note,
        "subsets": publication.subsets,
        "rows": rows,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
