"""Builds and writes a report: Markdown, figures, the HTML page, and other formats on demand.

`check` compares Markdown, SVG and the requested formats with the files on disk; the page and PNGs are only written.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import chain
from pathlib import Path

from jinja2 import Environment, PackageLoader

from prmbench.core import output_checks, reading
from prmbench.core.progress import Progress
from prmbench.core.records import UserError
from prmbench.core.result_files import run_paths
from prmbench.core.writing import write_atomic
from prmbench.report import board_tables, latex_tables, stamp, training_logs
from prmbench.report.board import Board, boards
from prmbench.report.figures import RenderedFigure, figures
from prmbench.report.frame import slug
from prmbench.report.load import Loaded, check_folder, find_results, load
from prmbench.report.markdown import escaped, markdown
from prmbench.report.page import page
from prmbench.report.ranking_table import ranking_table
from prmbench.report.sheets import Section, Sheet, sheets, split
from prmbench.report.viewer import TraceTexts
from prmbench.tasks import find_task
from prmbench.tasks.parallel import usable_processors
from prmbench.tasks.published import Published, published, sources
from prmbench.tasks.table import Table
from prmbench.tasks.wording import badges

BEGIN = "<!-- generated: do not edit between these marks; run `prmbench report` -->"
END = "<!-- end of generated part -->"
PUBLISHED_FOR = "processbench"
FORMATS = ("csv", "tex", "json")
"""Formats of tables, other than Markdown, that are written on demand."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of writing or checking a report."""

    changed: tuple[str, ...]
    """Paths of the files that were written; for a check, a message for each file that would change or is orphaned."""
    faults: tuple[str, ...] = ()
    """Files that were left out because they cannot be trusted; for a check, every error of a run."""
    left_out: str = ""
    """How many runs no table lists, by reason; empty when all are listed."""
    runs: int = field(default=0, compare=False)
    """How many results were read."""
    judged_again: int = 0
    """How many of them have rows by an earlier version's estimators, which were computed again."""


def report(  # noqa: PLR0913 - the options of the command
    results: Path,
    out: Path,
    *,
    data: TraceTexts | None = None,
    check: bool = False,
    recompute: bool = False,
    reads: Sequence[Path] = (),
    sections: Sequence[Section] = (),
    formats: Sequence[str] = (),
    quick: bool = False,
    official: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Writes all tables, figures and the page under `out`. Runs that cannot be trusted are named and left out.

    Args:
        results: Folder that is searched for runs.
        out: Folder for tables, figures and the page.
        data: Texts of traces by id, for the page.
        check: Whether to write nothing and only report what would change.
        recompute: Whether to recompute rows from the scores instead of using those in the result files.
        reads: Files that `data` was read from; like the runs they are never overwritten.
        sections: Parts of the report that are not organised by benchmark and task, such as studies.
        formats: Those of FORMATS that tables are written in, besides Markdown.
        quick: Whether to judge runs in parallel processes, and to do nothing if a report of the same files was made
            before (see `stamp`); the latter never with `recompute`.
        official: Whether runs without a clean commit are refused; if not, they are listed with a badge.
        progress: Called after every run that is read with (runs read, runs, 0).

    Raises:
        UserError: `results` does not exist or holds nothing to report, a file under `out` may not be written, or a
            format is unknown.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--formats {name}: choose from {', '.join(FORMATS)}")
    check_folder(results)
    input_hash = ""
    if quick and not recompute and data is None:
        input_hash = stamp.inputs(results, out, formats, sections, official=official)
    if stamp.is_known(stamp.state(input_hash, out, check=check)):
        return Report((), runs=len(find_results(results, out)[0]))
    processes = usable_processors() if quick else 1
    loaded = load(results, recompute, sections, processes, official=official, out=out, progress=progress)
    if not (official or loaded.runs or loaded.training):
        raise UserError(f"{results}: holds no result; name the folder that `prmbench eval --out` wrote to")
    logging.getLogger(__name__).info("drawing the tables and figures of %d runs", len(loaded.listed))
    done = _report(loaded, out, data, check, reads, sections, formats)
    if not (done.faults or done.left_out or (check and done.changed)):
        for checked in {check, True}:  # files just written would pass a check
            stamp.remember(stamp.state(input_hash, out, check=checked))
    return done


def _report(
    loaded: Loaded,
    out: Path,
    data: TraceTexts | None,
    check: bool,
    reads: Sequence[Path],
    sections: Sequence[Section],
    formats: Sequence[str],
) -> Report:
    built, boards_with_figures, others = build(loaded, out, png=not check, sections=sections, formats=formats)
    if check:
        changed = [f"{out / name}: would change" for name in sorted(_changed_files(out, built))]
        changes = (*changed, *_orphaned_figures(out, built))
        return Report(changes, loaded.problems, _left_out_note(loaded), loaded.runs, loaded.judged_again)
    changed = _changed_files(out, built)
    figure_groups = (board_figures for _, board_figures in boards_with_figures), (sheet.figures for sheet in others)
    output = {f"figures/{f.name}.png": f.png for board_figures in chain(*figure_groups) for f in board_figures}
    output["report.html"] = page(boards_with_figures, others, loaded.refused, data, sections).encode()
    changed += _changed_files(out, output)
    runs = [*loaded.listed, *(run for run, _ in loaded.refused)]
    sources = [*reads, *(file for run in runs for file in run_paths(run.path))]
    output_checks.check_outputs([out / name for name in changed], reads=sources, force=True)
    for name in changed:
        write_atomic(out / name, (built | output)[name])
    written = tuple(str(out / name) for name in sorted(changed))
    return Report(
        written, (*loaded.broken, *loaded.differing), _left_out_note(loaded), loaded.runs, loaded.judged_again
    )


def _left_out_note(loaded: Loaded) -> str:
    """`2 of 5 runs are not listed: 1 scored from a dirty tree, 1 cannot be trusted`."""
    reasons = loaded.left_out
    total = sum(reasons.values()) + len(loaded.listed)
    if not total:
        return "there is no result to report"
    listing = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    summary = (
        "none of the runs is listed" if not loaded.listed else f"{sum(reasons.values())} of {total} runs are not listed"
    )
    return f"{summary}: {listing}" if reasons else ""


BoardsWithFigures = list[tuple[Board, Sequence[RenderedFigure]]]


def build(
    loaded: Loaded,
    out: Path,
    png: bool = False,
    sections: Sequence[Section] = (),
    formats: Sequence[str] = (),
) -> tuple[dict[str, bytes], BoardsWithFigures, tuple[Sheet, ...]]:
    """Returns the tracked files by name under `out`, the boards with their figures, and the sheets."""
    by_name = {board.benchmark: board for board in boards(split(loaded.listed, sections)[0])}
    is_missing = loaded.is_official and PUBLISHED_FOR not in by_name
    all_boards = [*by_name.values(), *([Board(PUBLISHED_FOR, {}, (), ())] if is_missing else [])]
    others = (*sheets(loaded.listed, png, sections), *training_logs.sheets(loaded.training, png))
    built: dict[str, str | bytes] = {"README.md": _readme(loaded, all_boards, others, out)}
    boards_with_figures: BoardsWithFigures = []
    for board in all_boards:
        name = slug(board.name)
        publications = published(board.benchmark)
        board_figures = figures(board, png)
        built[f"{name}.md"] = _board_page(board, board_figures, publications, loaded.is_official)
        built |= {f"{name}.{kind}": _board_as(kind, board, publications) for kind in formats}
        built |= {f"figures/{figure.name}.svg": figure.svg for figure in board_figures}
        boards_with_figures.append((board, board_figures))
    for sheet in others:
        built |= _sheet_files(sheet, formats)
    benchmarks = None if loaded.is_official else _benchmarks(loaded)
    built |= {f"published/{name}": raw for name, raw in sources(benchmarks).items()}
    return (
        {name: text.encode() if isinstance(text, str) else text for name, text in built.items()},
        boards_with_figures,
        others,
    )


def _board_as(kind: str, board: Board, publications: Sequence[Published]) -> str:
    """A board's tables as one of FORMATS."""
    if kind == "csv":
        return board_tables.csv(board)
    if kind == "json":
        return board_tables.board_json(board, publications)
    tables = [*(board_tables.rule_table(board, t) for t in board.tables), *filter(None, [ranking_table(board)])]
    return latex_tables.latex_document([*tables, *board_tables.published_tables(publications)])


def _sheet_files(sheet: Sheet, formats: Sequence[str]) -> dict[str, str | bytes]:
    name = slug(sheet.name)
    parts = [
        f"# {escaped(sheet.name)}\n",
        f"{sheet.description} Generated by `prmbench report`; how to read it is in [README.md](README.md).\n",
    ]
    for i, table in enumerate(sheet.tables):
        parts.append(markdown(table))
        if not i:  # the figures follow the first table
            parts += [f"{_image(figure)}\n{figure.caption}\n" for figure in sheet.figures]
    files: dict[str, str | bytes] = {f"{name}.md": "\n".join(parts)}
    for kind in formats:
        files[f"{name}.{kind}"] = {"csv": sheet.csv, "json": sheet.json}.get(kind) or latex_tables.latex_document(
            sheet.tables
        )
    return files | {f"figures/{figure.name}.svg": figure.svg for figure in sheet.figures}


def _changed_files(out: Path, built: Mapping[str, bytes]) -> list[str]:
    return [name for name, new in built.items() if not (out / name).is_file() or (out / name).read_bytes() != new]


def _orphaned_figures(out: Path, built: Mapping[str, bytes]) -> list[str]:
    """A message for each figure on disk that no run needs any more."""
    orphans = [p for p in sorted((out / "figures").glob("*.svg")) if f"figures/{p.name}" not in built]
    return [f"{path}: no run asks for it any more; delete it" for path in orphans]


def _benchmarks(loaded: Loaded) -> set[str]:
    return {run.result.manifest.benchmark for run in loaded.listed}


def _board_page(
    board: Board, board_figures: Sequence[RenderedFigure], publications: Sequence[Published], official: bool
) -> str:
    """The Markdown page of a benchmark: the recommended table first, then every threshold rule with its protocols."""
    parts = [
        f"# {escaped(board.name)}\n",
        "Generated by `prmbench report`; how to read it is in [README.md](README.md).\n",
    ]
    if not board.tables:
        parts.append("No run is listed yet.\n")
    front = board_tables.front_table(board)
    if front is not None:
        parts += [markdown(front), "All other protocols are below, folded, a part for each threshold rule.\n"]
    for rule, image in zip(board.tables, board_figures, strict=False):  # the figures begin with one per table
        table = board_tables.rule_table(board, rule)
        parts += [f"## {table.title}\n\n{table.caption}\n", _image(image)]
        parts += _details_block("Every protocol", replace(table, caption=""))
        parts += _details_block("Accuracies behind these F1", board_tables.accuracy_table(board, rule))
    ranking = ranking_table(board)
    if ranking is not None:
        parts.append(f"## {ranking.title}\n\n{ranking.caption}\n")
        parts += _details_block("Every readout", replace(ranking, caption=""))
    parts += [f"## {f.title}\n\n{_image(f)}\n{f.caption}\n" for f in board_figures[len(board.tables) :]]
    if publications:
        heading = "Published numbers" if official else "Published numbers, for comparison: none is a run of yours"
        parts.append(f"## {heading}\n\nMeasured by others and copied from their tables; not recomputed here.\n")
        parts += [markdown(table, level=3) for table in board_tables.published_tables(publications)]
    return "\n".join(parts)


def _details_block(summary: str, table: Table) -> list[str]:
    return [f"<details><summary>{summary}</summary>\n\n{markdown(table, heading=False).lstrip()}\n</details>\n"]


def _image(figure: RenderedFigure) -> str:
    return f"![{figure.title}](figures/{figure.name}.svg)\n"


# --- the index -------------------------------------------------------------------------------------------------


def _readme(loaded: Loaded, all_boards: Sequence[Board], others: Sequence[Sheet], out: Path) -> str:
    """The README under `out` (or the one shipped with the package) with a fresh generated part."""
    path = out / "README.md"
    asset = "leaderboards.md" if loaded.is_official else "own_report.md"
    default_text = (files("prmbench") / "assets" / asset).read_text(encoding="utf-8")
    text = reading.read_text(path) if path.is_file() else default_text
    before, begin, after_begin = text.partition(BEGIN)
    _, end, after = after_begin.partition(END)
    if not (begin and end):
        raise UserError(f"{path}: the marks of its generated part are gone; put back the line {BEGIN} and {END}")
    guide = "" if loaded.is_official else _guide(loaded)
    return f"{before}{BEGIN}\n{_index(loaded, all_boards, others)}{guide}{END}{after}"


def _guide(loaded: Loaded) -> str:
    """How to read the tables of one's own runs: of the tasks that are among them."""
    names = sorted({run.result.manifest.task for run in loaded.listed})
    environment = Environment(
        loader=PackageLoader("prmbench", "assets"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    text = environment.get_template("own_report_guide.md").render(
        tasks={name: find_task(name) for name in names},
        has_published=any(published(name) for name in _benchmarks(loaded)),
    )
    return f"{text}\n"


def _index(loaded: Loaded, all_boards: Sequence[Board], others: Sequence[Sheet]) -> str:
    header = ("Benchmark", "Runs", "Threshold rules", "Traces by subset")
    lines = ["", f"| {' | '.join(header)} |", "| --- | ---: | --- | --- |"]
    entries = [(sheet.name, sheet.size, sheet.rules, sheet.sizes) for sheet in others]
    for board in all_boards:
        rules = ", ".join(t.rule for t in board.tables) or "published numbers only"
        subset_sizes = {column: str(n) for column, n in board.sizes.items() if not column.startswith("avg[")}
        entries.append((board.name, len(board.runs), rules, subset_sizes))
    for name, runs, rules, sizes_by_column in sorted(entries):
        sizes = ", ".join(f"{column} {n}" for column, n in sizes_by_column.items()) or "–"
        lines.append(f"| [{escaped(name)}]({slug(name)}.md) | {runs} | {rules} | {sizes} |")
    refused = [
        "* " + escaped(f"{m.model} ({m.benchmark}, run {m.run_id}): {reason}")
        for run, reason in loaded.refused
        for m in [run.result.manifest]
    ]
    if refused:
        lines += ["", "Not listed:", "", *refused]
    local = Counter(badge for run in loaded.listed for badge in badges(run.result.manifest))
    if local and not loaded.is_official:
        lines += ["", "Local runs, which others cannot repeat without your files or your code:", ""]
        lines += ["* " + escaped(f"{badge} ({count} run{'s' * (count > 1)})") for badge, count in sorted(local.items())]
    return "\n".join([*lines, "", ""])
