"""Puts a report together: which files there are, what is in them, and whether those on disk agree.

Markdown and SVG are compared by `check`, and so are CSV, LaTeX and JSON where they are asked for; the page and the PNGs
are only written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import chain
from pathlib import Path

from prmbench.core import output_checks, reading
from prmbench.core.records import UserError
from prmbench.core.result_files import run_paths
from prmbench.core.writing import write_atomic
from prmbench.report import board_tables, latex_tables, stamp
from prmbench.report.board import Board, boards
from prmbench.report.figures import Drawn, figures
from prmbench.report.frame import slug
from prmbench.report.load import Loaded, load
from prmbench.report.markdown import escaped, markdown
from prmbench.report.page import page
from prmbench.report.sheets import Section, Sheet, sheets, split
from prmbench.report.viewer import Texts
from prmbench.tasks.parallel import usable_processors
from prmbench.tasks.published import Published, published, sources
from prmbench.tasks.table import Table

BEGIN = "<!-- generated: do not edit between these marks; run `prmbench report` -->"
END = "<!-- end of generated part -->"
PUBLISHED_FOR = "processbench"
FORMATS = ("csv", "tex", "json")
"""Of tables, beside Markdown: made on demand."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a report."""

    changed: tuple[str, ...]
    """Paths of the files that were written; of a check, a line on each tracked file that would be or is left over."""
    faults: tuple[str, ...] = ()
    """Files that were left out because they cannot be trusted; of a check, everything that is wrong with a run."""
    left_out: str = ""
    """How many runs no table lists, by reason; empty when all are listed."""


def report(  # noqa: PLR0913 - the options of the command
    results: Path,
    out: Path,
    *,
    data: Texts | None = None,
    check: bool = False,
    recompute: bool = False,
    reads: Sequence[Path] = (),
    sections: Sequence[Section] = (),
    formats: Sequence[str] = (),
    quick: bool = False,
) -> Report:
    """Writes every table, figure and the page under `out`. A file that cannot be trusted is named and left out.

    Args:
        results: Folder with the runs, searched through.
        out: Folder for tables, figures and the page.
        data: Where the page finds the text of a trace.
        check: Whether to write nothing and only say what would change.
        recompute: Whether rows come from the scores, not from the result files.
        reads: Files that `data` comes from, which like the runs are not written over.
        sections: What to show otherwise than by benchmark and task, such as the studies of this project.
        formats: Some of FORMATS: what tables are written as, beside Markdown.
        quick: Whether runs are judged in parallel processes, see `judge.many`, and a report that was made before from
            the same files is recognised, see `stamp`: never with `recompute`.

    Raises:
        UserError: `results` does not exist, a file under `out` may not be written, or there is no such format.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--formats {name}: choose from {', '.join(FORMATS)}")
    made_of = stamp.inputs(results, out, formats, sections) if quick and not recompute and data is None else ""
    if stamp.is_known(stamp.state(made_of, out, check=check)):
        return Report(())
    loaded = load(results, recompute, sections, usable_processors() if quick else 1)
    done = _report(loaded, out, data, check, reads, sections, formats)
    if not (done.faults or done.left_out or (check and done.changed)):
        for checked in {check, True}:  # what was written needs no check
            stamp.remember(stamp.state(made_of, out, check=checked))
    return done


def _report(
    loaded: Loaded,
    out: Path,
    data: Texts | None,
    check: bool,
    reads: Sequence[Path],
    sections: Sequence[Section],
    formats: Sequence[str],
) -> Report:
    built, shown, others = build(loaded, out, png=not check, sections=sections, formats=formats)
    if check:
        changed = [f"{out / name}: would change" for name in sorted(_changed(out, built))]
        return Report((*changed, *_left_over(out, built)), loaded.problems, _left_out(loaded))
    changed = _changed(out, built)
    drawings = (drawn for _, drawn in shown), (sheet.figures for sheet in others)
    output = {f"figures/{f.name}.png": f.png for drawn in chain(*drawings) for f in drawn}
    output["report.html"] = page(shown, others, loaded.refused, data, sections).encode()
    changed += _changed(out, output)
    runs = [*loaded.listed, *(run for run, _ in loaded.refused)]
    sources = [*reads, *(file for run in runs for file in run_paths(run.path))]
    output_checks.check_outputs([out / name for name in changed], reads=sources, force=True)
    for name in changed:
        write_atomic(out / name, (built | output)[name])
    written = tuple(str(out / name) for name in sorted(changed))
    return Report(written, (*loaded.broken, *loaded.differing), _left_out(loaded))


def _left_out(loaded: Loaded) -> str:
    """`2 of 5 runs are not listed: 1 scored from a dirty tree, 1 cannot be trusted`."""
    reasons = loaded.left_out
    total = sum(reasons.values()) + len(loaded.listed)
    if not total:
        return "there is no result to report"
    told = ", ".join(f"{times} {reason}" for reason, times in reasons.items())
    whole = (
        "none of the runs is listed" if not loaded.listed else f"{sum(reasons.values())} of {total} runs are not listed"
    )
    return f"{whole}: {told}" if reasons else ""


Shown = list[tuple[Board, Sequence[Drawn]]]


def build(
    loaded: Loaded,
    out: Path,
    png: bool = False,
    sections: Sequence[Section] = (),
    formats: Sequence[str] = (),
) -> tuple[dict[str, bytes], Shown, tuple[Sheet, ...]]:
    """Tracked files by name under `out`; each board with its figures, boards with runs first; and the sheets."""
    found = {board.benchmark: board for board in boards(split(loaded.listed, sections)[0])}
    every = [*found.values(), *([] if PUBLISHED_FOR in found else [Board(PUBLISHED_FOR, {}, (), ())])]
    others = sheets(loaded.listed, png, sections)
    built: dict[str, str | bytes] = {"README.md": _readme(loaded, every, others, out)}
    shown: Shown = []
    for board in every:
        name = slug(board.name)
        books = published(board.benchmark)
        drawn = figures(board, png)
        built[f"{name}.md"] = _board_page(board, drawn, books)
        built |= {f"{name}.{kind}": _in_format(kind, board, books) for kind in formats}
        built |= {f"figures/{figure.name}.svg": figure.svg for figure in drawn}
        shown.append((board, drawn))
    for sheet in others:
        built |= _sheet_files(sheet, formats)
    built |= {f"published/{name}": raw for name, raw in sources().items()}
    return {name: text.encode() if isinstance(text, str) else text for name, text in built.items()}, shown, others


def _in_format(kind: str, board: Board, books: Sequence[Published]) -> str:
    """A board's tables as one of FORMATS."""
    if kind == "csv":
        return board_tables.csv(board)
    if kind == "json":
        return board_tables.board_json(board, books)
    shown = [board_tables.rule_table(board, t) for t in board.tables]
    return latex_tables.latex_document([*shown, *board_tables.published_tables(books)])


def _sheet_files(sheet: Sheet, formats: Sequence[str]) -> dict[str, str | bytes]:
    name = slug(sheet.name)
    parts = [
        f"# {escaped(sheet.name)}\n",
        f"{sheet.words} Generated by `prmbench report`; how to read it is in [README.md](README.md).\n",
    ]
    for i, table in enumerate(sheet.tables):
        parts.append(markdown(table))
        if not i:  # the figures stand under the first table, which says most
            parts += [f"{_image(figure)}\n{figure.caption}\n" for figure in sheet.figures]
    files: dict[str, str | bytes] = {f"{name}.md": "\n".join(parts)}
    for kind in formats:
        files[f"{name}.{kind}"] = {"csv": sheet.csv, "json": sheet.json}.get(kind) or latex_tables.latex_document(
            sheet.tables
        )
    return files | {f"figures/{figure.name}.svg": figure.svg for figure in sheet.figures}


def _changed(out: Path, built: Mapping[str, bytes]) -> list[str]:
    return [name for name, new in built.items() if not (out / name).is_file() or (out / name).read_bytes() != new]


def _left_over(out: Path, built: Mapping[str, bytes]) -> list[str]:
    """Figures of runs that are gone."""
    extra = [p for p in sorted((out / "figures").glob("*.svg")) if f"figures/{p.name}" not in built]
    return [f"{path}: no run asks for it any more; delete it" for path in extra]


def _board_page(board: Board, drawn: Sequence[Drawn], books: Sequence[Published]) -> str:
    """The Markdown page of a benchmark: one table that answers first, then every threshold rule with its protocols."""
    parts = [
        f"# {escaped(board.name)}\n",
        "Generated by `prmbench report`; how to read it is in [README.md](README.md).\n",
    ]
    if not board.tables:
        parts.append("No run is listed yet.\n")
    front = board_tables.front_table(board)
    if front is not None:
        parts += [markdown(front), "All other protocols are below, folded, a part for each threshold rule.\n"]
    for rule, image in zip(board.tables, drawn, strict=False):  # the figures begin with one per table
        table = board_tables.rule_table(board, rule)
        parts += [f"## {table.title}\n\n{table.caption}\n", _image(image)]
        parts += _folded("Every protocol", replace(table, caption=""))
        parts += _folded("Accuracies behind these F1", board_tables.accuracy_table(board, rule))
    parts += [f"## {f.title}\n\n{_image(f)}\n{f.caption}\n" for f in drawn[len(board.tables) :]]
    if books:
        parts.append("## Published numbers\n\nMeasured by others and copied from their tables; not recomputed here.\n")
        parts += [markdown(table, level=3) for table in board_tables.published_tables(books)]
    return "\n".join(parts)


def _folded(summary: str, table: Table) -> list[str]:
    return [f"<details><summary>{summary}</summary>\n\n{markdown(table, heading=False).lstrip()}\n</details>\n"]


def _image(figure: Drawn) -> str:
    return f"![{figure.title}](figures/{figure.name}.svg)\n"


# --- the index -------------------------------------------------------------------------------------------------


def _readme(loaded: Loaded, every: Sequence[Board], others: Sequence[Sheet], out: Path) -> str:
    """The README under `out` (or the one shipped with the package) with a fresh generated part."""
    path = out / "README.md"
    shipped = (files("prmbench") / "assets" / "leaderboards.md").read_text(encoding="utf-8")
    text = reading.read_text(path) if path.is_file() else shipped
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path}: the marks of its generated part are gone; put back the line {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{_index(loaded, every, others)}{END}{tail}"


def _index(loaded: Loaded, every: Sequence[Board], others: Sequence[Sheet]) -> str:
    header = ("Benchmark", "Runs", "Threshold rules", "Traces by subset")
    lines = ["", f"| {' | '.join(header)} |", "| --- | ---: | --- | --- |"]
    entries = [(sheet.name, len(sheet.runs), sheet.rules, sheet.sizes) for sheet in others]
    for board in every:
        rules = ", ".join(t.rule for t in board.tables) or "published numbers only"
        plain = {column: str(n) for column, n in board.sizes.items() if not column.startswith("avg[")}
        entries.append((board.name, len(board.runs), rules, plain))
    for name, runs, rules, found in sorted(entries):
        sizes = ", ".join(f"{column} {n}" for column, n in found.items()) or "–"
        lines.append(f"| [{escaped(name)}]({slug(name)}.md) | {runs} | {rules} | {sizes} |")
    refused = [
        "* " + escaped(f"{m.model} ({m.benchmark}, run {m.run_id}): {reason}")
        for run, reason in loaded.refused
        for m in [run.result.manifest]
    ]
    if refused:
        lines += ["", "Not listed:", "", *refused]
    return "\n".join([*lines, "", ""])
