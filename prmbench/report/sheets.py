"""Sheets: the tables, figures and files of one benchmark and task.

Runs of step F1 have boards instead (board.py). A caller of `report` can show some runs in sections of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prmbench.core.records import RunManifest
from prmbench.core.result_files import Run, canonical_json
from prmbench.report import board_tables, format_shift_figures, task_figures, training_figures, validity_figures
from prmbench.report.figures import FigurePlan, RenderedFigure, render_figures
from prmbench.tasks import Task, find_task
from prmbench.tasks.plain_tables import tables_of
from prmbench.tasks.table import Headline, Table
from prmbench.tasks.wording import RULES, rule_and_readout, run_name, subset_rank

FIGURES: dict[str, Callable[[str, Sequence[Run]], list[FigurePlan]]] = {
    "best_of_n": task_figures.best_of_n,
    "calibration": task_figures.calibration,
    "format_shift": format_shift_figures.plans,
    "validity": validity_figures.plans,
    "distrl": training_figures.plans,
}
"""Functions that draw the figures of a task; other tasks have only tables."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything that the page, the files and the index show about one benchmark under one task, or about a study."""

    name: str
    description: str
    tables: tuple[Table, ...]
    figures: tuple[RenderedFigure, ...]
    runs: tuple[Run, ...]
    rules: str
    """Threshold rules, for the index."""
    sizes: dict[str, str]
    csv: str
    json: str
    column_descriptions: Mapping[str, str] = field(default_factory=dict)
    """What columns hold, by heading in lower case, for headings that are not in explain.py."""
    headline: Headline | None = None
    """The number on the overview's card; None: the best of the sheet's column, else of its first table."""
    training_runs: int = 0
    """How many training runs it shows, which are no evaluation runs."""

    @property
    def size(self) -> int:
        """Number of runs that it shows."""
        return len(self.runs) or self.training_runs


@dataclass(frozen=True, slots=True)
class Section:
    """Sheets that a caller of `report` adds to the usual ones.

    Sections are passed as an argument (the command line passes those of `prmbench.studies`).
    """

    owns_run: Callable[[RunManifest], bool]
    """Whether only this section shows a run, and no board or sheet of its task."""
    sheets: Callable[[Sequence[Run], bool], tuple[Sheet, ...]]
    """Builds the sheets from all listed runs, owned or not; the second argument is whether to render PNGs."""
    place: Callable[[RunManifest], str] = lambda _: ""
    """Describes the place in the section's tables that only one run can take; empty for runs that take none."""


def split(runs: Sequence[Run], sections: Sequence[Section] = ()) -> tuple[list[Run], dict[str, list[Run]]]:
    """Splits runs into those on a board and the others by sheet name; runs that a section owns are left out."""
    on_board: list[Run] = []
    others: dict[str, list[Run]] = {}
    for run in runs:
        manifest = run.result.manifest
        if any(section.owns_run(manifest) for section in sections):
            continue
        name = sheet_name(manifest)
        if name:
            others.setdefault(name, []).append(run)
        else:
            on_board.append(run)
    return on_board, others


def sheet_name(manifest: RunManifest) -> str:
    """Returns the task's name, or `<benchmark>-<task>` if the benchmark's name differs; empty for runs on a board."""
    if find_task(manifest.task).has_board:
        return ""
    return manifest.task if manifest.benchmark == manifest.task else f"{manifest.benchmark}-{manifest.task}"


def sheets(runs: Sequence[Run], png: bool = False, sections: Sequence[Section] = ()) -> tuple[Sheet, ...]:
    """Returns one sheet per benchmark and task, and those of the sections, sorted by name."""
    _, by_name = split(runs, sections)
    task_sheets = [_task_sheet(name, by_name[name], png) for name in by_name]
    task_sheets += [sheet for section in sections for sheet in section.sheets(runs, png)]
    return tuple(sorted(task_sheets, key=lambda sheet: sheet.name))


def _task_sheet(name: str, runs: Sequence[Run], png: bool) -> Sheet:
    ordered = tuple(sorted(runs, key=lambda r: (r.result.manifest.model, r.result.manifest.run_id)))
    task = find_task(ordered[0].result.manifest.task)
    plans = FIGURES.get(task.name)
    return Sheet(
        name=name,
        description=task.description,
        tables=tables_of(task, ordered),
        figures=render_figures(partial(plans, name, ordered), png) if plans else (),
        runs=ordered,
        rules=_rules(task, ordered),
        sizes=sizes_of_subsets(ordered),
        csv=board_tables.frame_csv([_averages_only(run) for run in ordered] if task.many_rows else ordered),
        json=canonical_json({"benchmark": name, "runs": [_numbers(run) for run in ordered]}),
    )


def _averages_only(run: Run) -> Run:
    """The run with only its average rows, if it has any."""
    rows = tuple(row for row in run.result.rows if row.subset.startswith("avg["))
    return replace(run, result=replace(run.result, rows=rows or run.result.rows))


def _rules(task: Task, runs: Sequence[Run]) -> str:
    """Names of the threshold rules in table order, or `none`."""
    keys = {row.protocol for run in runs for row in run.result.rows}
    rules = {rule_and_readout(key, task.has_threshold)[0] for key in keys}
    return ", ".join(rule for rule in RULES if rule in rules) or "none"


def sizes_of_subsets(runs: Sequence[Run]) -> dict[str, str]:
    """Returns the number of traces by subset, in the run that has most of them."""
    sizes: dict[str, int] = {}
    for row in (row for run in runs for row in run.result.rows if "[" not in row.subset):
        sizes[row.subset] = max(row.n, sizes.get(row.subset, 0))
    return {subset: str(sizes[subset]) for subset in sorted(sizes, key=subset_rank)}


def _numbers(run: Run) -> dict[str, object]:
    """The rows by `subset protocol metric`: value and interval, as fractions with six decimals."""
    values = {
        f"{row.subset} {row.protocol} {row.metric}": [
            None if v is None else round(v, 6) for v in (row.value, row.lo, row.hi)
        ]
        for row in run.result.rows
    }
    m = run.result.manifest
    return {
        "model": m.model,
        "name": run_name(run),
        "revision": m.revision,
        "run_id": m.run_id,
        "n": m.n,
        "values": values,
    }
