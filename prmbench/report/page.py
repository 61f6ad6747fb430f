"""One self-contained HTML page: tables, figures and a trace viewer. No external resource, no clock.

Python decides every number and verdict; the script in assets/report.js only shows, sorts and filters.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from prmbench import metrics
from prmbench.report.board import LEGEND, Board, RuleTable, boards
from prmbench.report.figures import Drawn
from prmbench.report.frame import RULES, model_name, subset_rank
from prmbench.report.published import Published, published
from prmbench.report.sheets import Sheet, sheets, split
from prmbench.report.verdicts import KINDS, headline, kind, predict, thresholds
from prmbench.schema import READOUTS, EvalProtocol, ScoredTrace, Trace, text_hash
from prmbench.store import Run

MOST_TRACES = 1000
MOST_BYTES = 4_800_000
"""The page stays under 5 MB: traces are left out until it does, and the page says so."""
Texts = Mapping[str, Trace] | Callable[[str], Trace | None]
"""Where the page finds the text of a trace, by id."""


def page(
    listed: Sequence[tuple[Board, Sequence[Drawn]]],
    others: Sequence[Sheet],
    refused: Sequence[tuple[Run, str]],
    data: Texts | None = None,
) -> str:
    """The page for all benchmarks; runs that may not be listed stand apart, with the reasons."""
    shown = [(board, drawn, "") for board, drawn in listed]
    sheeted = [_sheet(sheet, "") for sheet in others]
    unlisted = [run for run, _ in refused]
    for board in boards(split(unlisted)[0]):
        shown.append((board, (), _reasons(board.runs, refused)))
    sheeted += [_sheet(sheet, _reasons(sheet.runs, refused)) for sheet in sheets(unlisted)]
    most = MOST_TRACES
    while True:
        full, empty = (
            [_section(board, images, reason, most) for board, images, reason in shown if bool(board.runs) is wanted]
            for wanted in (True, False)
        )
        sections = [*full, *sheeted, *empty]
        texts: dict[str, dict[str, Any]] = {s["name"]: {} for s in sections}
        for section in sections:
            texts[section["name"]] |= _texts(data, section["traces"])
        facts = {"rules": RULES, "legend": LEGEND, "kinds": KINDS}
        html = _render({"benchmarks": sections, "texts": texts, **facts})
        size = len(html.encode())
        if size <= MOST_BYTES or most <= 1:
            return html
        most = min(most - 1, int(most * 0.95 * MOST_BYTES / size))


def _render(payload: Mapping[str, Any]) -> str:
    assets = files("prmbench") / "assets"
    script = (assets / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(loader=PackageLoader("prmbench", "assets"), autoescape=True, keep_trailing_newline=True)
    return environment.get_template("report.html").render(
        style=Markup((assets / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        payload=Markup(embed(payload)),
    )


def embed(payload: object) -> str:
    """JSON that can stand inside a script element whatever the text in it says."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _section(board: Board, images: Sequence[Drawn], reason: str, most: int) -> dict[str, Any]:
    facts = _facts(board.runs)
    chosen = choose(facts, most)
    return {
        "name": board.benchmark,
        "unlisted": reason,
        "sizes": board.sizes,
        "tables": [_table(table) for table in board.tables],
        "figures": _images(images),
        "traces": [_trace(t) for t in chosen],
        "total": len(facts),
        "runs": [_run(run, chosen) for run in board.runs],
        "published": [] if reason else [_book(book) for book in published(board.benchmark)],
    }


def _reasons(runs: Sequence[Run], refused: Sequence[tuple[Run, str]]) -> str:
    names = {run.path for run in runs}
    return "; ".join(sorted({reason for run, reason in refused if run.path in names}))


def _sheet(sheet: Sheet, reason: str) -> dict[str, Any]:
    """A benchmark whose tables are text, and whose traces are not shown."""
    keys = ("label", "title", "caption", "header", "groups", "notes", "text_columns")
    return {
        "name": sheet.name,
        "unlisted": reason,
        "words": sheet.words,
        "grids": [{key: getattr(grid, key) for key in keys} for grid in sheet.grids],
        "figures": _images(sheet.figures),
        "sizes": {},
        **{key: [] for key in ("tables", "traces", "runs", "published")},
        "total": 0,
    }


def _images(drawn: Sequence[Drawn]) -> list[dict[str, str]]:
    return [{"title": f.title, "caption": f.caption, "src": _data_url(f.svg)} for f in drawn]


def _data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


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
    return {"rule": table.rule, "columns": table.columns, "lines": lines}


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


# --- traces ----------------------------------------------------------------------------------------------


def _facts(runs: Sequence[Run]) -> list[ScoredTrace]:
    """Every labelled trace that some run scored, by subset and id."""
    found: dict[str, ScoredTrace] = {}
    for run in runs:
        for trace in run.scores:
            if trace.label is not None:
                found.setdefault(trace.id, trace)
    return sorted(found.values(), key=_natural)


def _natural(trace: ScoredTrace) -> tuple[tuple[int, str], list[tuple[int, str]], str]:
    """math-2 before math-10."""
    parts = [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d{1,15})", trace.id) if p]
    return subset_rank(trace.subset), parts, trace.id


def choose(facts: Sequence[ScoredTrace], most: int) -> list[ScoredTrace]:
    """At most `most` traces, the same share of every subset, picked by the hash of their ids."""
    if len(facts) <= most:
        return list(facts)
    queues: dict[str, list[ScoredTrace]] = {}
    for trace in sorted(facts, key=lambda t: text_hash(t.id)):
        queues.setdefault(trace.subset, []).append(trace)
    place = {t.id: (i + 0.5) / len(queue) for queue in queues.values() for i, t in enumerate(queue)}
    kept = {t.id for t in sorted(facts, key=lambda t: (place[t.id], t.id))[:most]}
    return [t for t in facts if t.id in kept]


def _texts(data: Texts | None, traces: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Id -> problem and steps, for the traces that `data` knows and whose number of steps agrees."""
    if data is None:
        return {}
    found = ((t, data(t["id"]) if callable(data) else data.get(t["id"])) for t in traces)
    return {t["id"]: {"problem": x.prompt, "steps": x.steps} for t, x in found if x and len(x.steps) == t["k"]}


def _trace(facts: ScoredTrace) -> dict[str, Any]:
    return {"id": facts.id, "subset": facts.subset, "label": facts.label, "outcome": facts.outcome, "k": facts.steps}


def _run(run: Run, chosen: Sequence[ScoredTrace]) -> dict[str, Any]:
    """Scores per readout and verdicts per protocol, in the order of the traces shown."""
    manifest = run.result.manifest
    have = {t.id: t for t in run.scores}
    traces = [have.get(t.id) for t in chosen]
    keys = dict.fromkeys(r.protocol for r in run.result.rows if r.metric == "f1" and r.value is not None)
    protocols = [EvalProtocol.parse(key) for key in keys if not key.startswith("floor/")]
    names = {series: f"{series}." * bool(series) for series in ("", *manifest.series)}
    default = headline(run)
    return {
        "id": manifest.run_id,
        "model": model_name(manifest),
        "default": default.key if default else "",
        "readouts": {
            f"{prefix}{readout}": [_scores(t, EvalProtocol(readout, "oracle", series=series)) for t in traces]
            for series, prefix in names.items()
            for readout in READOUTS[manifest.kind]
            if readout != "vote"
        },
        "votes": [list(t.verdicts) if t else [] for t in traces] if manifest.kind == "verdict" else None,
        "unscored": {str(i): t.unscored for i, t in enumerate(traces) if t and t.unscored},
        "protocols": [_verdicts(run, p, traces) for p in sorted(protocols, key=lambda p: p.key)],
    }


def _scores(trace: ScoredTrace | None, protocol: EvalProtocol) -> list[float] | None:
    scores = None if trace is None else metrics.readout(trace, protocol)
    return None if scores is None else [float(f"{s:.5g}") for s in scores]


def _verdicts(run: Run, protocol: EvalProtocol, traces: Sequence[ScoredTrace | None]) -> dict[str, Any]:
    limits = thresholds(run, protocol)
    distinct = sorted({v for v in limits.values() if not math.isnan(v)})
    place = {v: i for i, v in enumerate(distinct)}
    predicted = [None if t is None else predict(t, protocol, limits[t.id]) for t in traces]
    kinds = [
        -1 if t is None or t.label is None else KINDS.index(kind(p, t.label))
        for t, p in zip(traces, predicted, strict=True)
    ]
    prefix = f"{protocol.series}." if protocol.series else ""
    return {
        "key": protocol.key,
        "rule": protocol.threshold,
        "readout": prefix + protocol.readout,
        "limits": [_round(v) for v in distinct],
        "limit": [-1 if t is None else place.get(limits[t.id], -1) for t in traces],
        "predicted": predicted,
        "kind": kinds,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
