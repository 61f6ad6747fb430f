"""One sheet per benchmark and task: its tables, figures and files.

Runs of step F1 have boards instead (board.py). Whoever calls for a report may show some runs in another way: a Section.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prmbench.core.records import RunManifest
from prmbench.core.result_files import Run, canonical_json
from prmbench.report import board_tables, format_shift_figures, task_figures, training_figures, validity_figures
from prmbench.report.figures import Drawn, Plan, draw
from prmbench.tasks import Task, find_task
from prmbench.tasks.plain_tables import tables_of
from prmbench.tasks.table import Headline, Table
from prmbench.tasks.wording import RULES, rule_and_readout, subset_rank

FIGURES: dict[str, Callable[[str, Sequence[Run]], list[Plan]]] = {
    "best_of_n": task_figures.best_of_n,
    "calibration": task_figures.calibration,
    "format_shift": format_shift_figures.plans,
    "validity": validity_figures.plans,
    "distrl": training_figures.plans,
}
"""Drawings by task; a task without one has tables alone."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything a page, a file or the index says about one benchmark under one task, or about a study."""

    name: str
    words: str
    tables: tuple[Table, ...]
    figures: tuple[Drawn, ...]
    runs: tuple[Run, ...]
    rules: str
    """Of thresholds, for the index."""
    sizes: dict[str, str]
    csv: str
    json: str
    column_words: Mapping[str, str] = field(default_factory=dict)
    """Heading in lower case -> what such a column holds, for headings that explain.py does not know."""
    headline: Headline | None = None
    """What the page's first view says of it; None: the best of its first table."""


@dataclass(frozen=True, slots=True)
class Section:
    """Sheets of the caller's own beside those that every report has.

    A report is given its sections as an argument (the command line passes those of `prmbench.studies`); nothing
    registers one.
    """

    owns: Callable[[RunManifest], bool]
    """Whether a run stands in this section alone: no board and no sheet of its task lists it."""
    sheets: Callable[[Sequence[Run], bool], tuple[Sheet, ...]]
    """Makes the sheets from all listed runs, owned or not; the second argument says whether figures get a PNG."""
    place: Callable[[RunManifest], str] = lambda _: ""
    """The place in the section's tables that only one run can take, in words; empty for a run that takes none."""


def split(runs: Sequence[Run], sections: Sequence[Section] = ()) -> tuple[list[Run], dict[str, list[Run]]]:
    """Runs that stand on a board, and the others by the name of their sheet; without those that a section owns."""
    on_board: list[Run] = []
    others: dict[str, list[Run]] = {}
    for run in runs:
        manifest = run.result.manifest
        if any(section.owns(manifest) for section in sections):
            continue
        name = sheet_name(manifest)
        if name:
            others.setdefault(name, []).append(run)
        else:
            on_board.append(run)
    return on_board, others


def sheet_name(manifest: RunManifest) -> str:
    """`best_of_n`, `<benchmark>-best_of_n` where the benchmark has a name of its own; empty for a board's runs."""
    if find_task(manifest.task).has_board:
        return ""
    return manifest.task if manifest.benchmark == manifest.task else f"{manifest.benchmark}-{manifest.task}"


def sheets(runs: Sequence[Run], png: bool = False, sections: Sequence[Section] = ()) -> tuple[Sheet, ...]:
    """One sheet per benchmark and task, and those of the sections; by name. The order of the runs does not matter."""
    _, by_name = split(runs, sections)
    found = [_task(name, by_name[name], png) for name in by_name]
    found += [sheet for section in sections for sheet in section.sheets(runs, png)]
    return tuple(sorted(found, key=lambda sheet: sheet.name))


def _task(name: str, runs: Sequence[Run], png: bool) -> Sheet:
    ordered = tuple(sorted(runs, key=lambda r: (r.result.manifest.model, r.result.manifest.run_id)))
    task = find_task(ordered[0].result.manifest.task)
    plans = FIGURES.get(task.name)
    return Sheet(
        name=name,
        words=task.description,
        tables=tables_of(task, ordered),
        figures=draw(partial(plans, name, ordered), png) if plans else (),
        runs=ordered,
        rules=_rules(task, ordered),
        sizes=sizes_of_subsets(ordered),
        csv=board_tables.frame_csv([_averages(run) for run in ordered] if task.many_rows else ordered),
        json=canonical_json({"benchmark": name, "runs": [_numbers(run) for run in ordered]}),
        headline=task.headline(ordered) if task.headline else None,
    )


def _averages(run: Run) -> Run:
    """The run with its averages alone, where it has some; the tables and the json show each part."""
    rows = tuple(row for row in run.result.rows if row.subset.startswith("avg["))
    return replace(run, result=replace(run.result, rows=rows or run.result.rows))


def _rules(task: Task, runs: Sequence[Run]) -> str:
    """Threshold rules in table order, where the task has any."""
    keys = {row.protocol for run in runs for row in run.result.rows}
    found = {rule_and_readout(key, task.has_threshold)[0] for key in keys}
    return ", ".join(rule for rule in RULES if rule in found) or "none"


def sizes_of_subsets(runs: Sequence[Run]) -> dict[str, str]:
    """Subset -> its traces, in the run that has most of them."""
    sizes: dict[str, int] = {}
    for row in (row for run in runs for row in run.result.rows if "[" not in row.subset):
        sizes[row.subset] = max(row.n, sizes.get(row.subset, 0))
    return {subset: str(sizes[subset]) for subset in sorted(sizes, key=subset_rank)}


def _numbers(run: Run) -> dict[str, object]:
    """The rows as `subset protocol metric` -> value and ends, fractions with six decimals."""
    values = {
        f"{row.subset} {row.protocol} {row.metric}": [
            None if v is None else round(v, 6) for v in (row.value, row.lo, row.hi)
        ]
        for row in run.result.rows
    }
    m = run.result.manifest
    return {"model": m.model, "revision": m.revision, "run_id": m.run_id, "n": m.n, "values": values}
