"""Runs of tasks without a threshold rule, and studies -> one sheet each: its tables, figures and files.

Runs of step F1 have boards instead (board.py); the miniature's runs, whatever their task, form one study, and runs
of RL training another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prmbench.report import (
    curves,
    rlclaims,
    rlprobes,
    rltables,
    shift,
    studytables,
    tables,
    taskfigures,
    taskgrids,
    validity,
)
from prmbench.report.claims import claims
from prmbench.report.figures import Drawn, Plan, draw
from prmbench.report.frame import RULES, rule_and_readout, subset_rank
from prmbench.report.rlstudy import RL_STUDY, rl_study
from prmbench.report.study import STUDY, study
from prmbench.schema import RunManifest
from prmbench.store import Run, canonical_json

WORDS = {
    "best_of_n": "How right the completion is that a model picks among N, beside what needs no model at all.",
    "policy": "How right a model's own completions are. Every way of sampling has its own table.",
    "calibration": "Whether the value of a prefix is the probability that its continuation ends right.",
    "format_shift": "The same solutions in other formats: how much first-error F1 a format takes from a model.",
    "validity": validity.WORDS,
}
STUDY_WORDS = (
    "Reward models trained with equal budgets in a small world with an exact oracle, over several seeds. "
    "What holds here is said of this world only."
)
RL_WORDS = (
    "Policies trained by reinforcement learning: every arm from the same start, on the same prompts, with the same "
    "number of steps; only what an arm is named by differs."
)
RL_STUDY_WORDS = f"{RL_WORDS} In a small world with an exact oracle; what holds here is said of this world only."
GRIDS: dict[str, Callable[[Sequence[Run]], tuple[tables.Grid, ...]]] = {
    "best_of_n": taskgrids.best_of_n,
    "policy": taskgrids.policy,
    "calibration": taskgrids.calibration,
    "format_shift": shift.grids,
    "validity": validity.grids,
}
MANY_ROWS = ("format_shift",)
"""Tasks whose subsets times formats times protocols are too many rows for the csv."""
FIGURES: dict[str, Callable[[str, Sequence[Run]], list[Plan]]] = {
    "best_of_n": taskfigures.best_of_n,
    "calibration": taskfigures.calibration,
    "format_shift": shift.figures,
    "validity": validity.figures,
}


@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything a page, a file or the index says about one benchmark under one task, or about a study."""

    name: str
    words: str
    grids: tuple[tables.Grid, ...]
    figures: tuple[Drawn, ...]
    runs: tuple[Run, ...]
    rules: str
    """Of thresholds, for the index."""
    sizes: dict[str, str]
    csv: str
    json: str


def split(runs: Sequence[Run]) -> tuple[list[Run], dict[str, list[Run]]]:
    """Runs that stand on a board, and the others by the name of their sheet."""
    on_board: list[Run] = []
    others: dict[str, list[Run]] = {}
    for run in runs:
        name = sheet_name(run.result.manifest)
        if name:
            others.setdefault(name, []).append(run)
        else:
            on_board.append(run)
    return on_board, others


def sheet_name(manifest: RunManifest) -> str:
    """`best_of_n`, `<benchmark>-best_of_n` where the benchmark has a name of its own; empty for a board's runs."""
    if manifest.benchmark == STUDY:
        return RL_STUDY if rlprobes.is_probe(manifest) else STUDY
    if manifest.benchmark == RL_STUDY:
        return RL_STUDY
    if manifest.task == "steps":
        return ""
    return manifest.task if manifest.benchmark == manifest.task else f"{manifest.benchmark}-{manifest.task}"


def sheets(runs: Sequence[Run], png: bool = False) -> tuple[Sheet, ...]:
    """One sheet per name; the order of the runs does not matter."""
    _, found = split(runs)
    return tuple(_sheet(name, found, png) for name in sorted(found))


def _sheet(name: str, found: Mapping[str, Sequence[Run]], png: bool) -> Sheet:
    if name == STUDY:
        return _study(found[name], png)
    if name == RL_STUDY:
        return _training(name, found[name], found.get(STUDY, ()), png)
    if found[name][0].result.manifest.task == "distrl":
        return _training(name, found[name], (), png)
    return _task(name, found[name], png)


def _task(name: str, runs: Sequence[Run], png: bool) -> Sheet:
    ordered = tuple(sorted(runs, key=lambda r: (r.result.manifest.model, r.result.manifest.run_id)))
    task = ordered[0].result.manifest.task
    plans = FIGURES.get(task)
    return Sheet(
        name=name,
        words=WORDS[task],
        grids=GRIDS[task](ordered),
        figures=draw(partial(plans, name, ordered), png) if plans else (),
        runs=ordered,
        rules=_rules(ordered),
        sizes=_sizes(ordered),
        csv=tables.frame_csv([_averages(run) for run in ordered] if task in MANY_ROWS else ordered),
        json=canonical_json({"benchmark": name, "runs": [_numbers(run) for run in ordered]}),
    )


def _averages(run: Run) -> Run:
    """The run with its averages alone, where it has some; the tables and the json show each part."""
    rows = tuple(row for row in run.result.rows if row.subset.startswith("avg["))
    return replace(run, result=replace(run.result, rows=rows or run.result.rows))


def _rules(runs: Sequence[Run]) -> str:
    """Threshold rules in table order, where the task has any."""
    found = {rule_and_readout(r.protocol, run.result.manifest.task)[0] for run in runs for r in run.result.rows}
    return ", ".join(rule for rule in RULES if rule in found) or "none"


def _sizes(runs: Sequence[Run]) -> dict[str, str]:
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


def _study(runs: Sequence[Run], png: bool) -> Sheet:
    found = study(runs)
    told = claims(found)
    return Sheet(
        name=STUDY,
        words=STUDY_WORDS,
        grids=studytables.grids(found, told),
        figures=draw(lambda: taskfigures.study(found, told), png),
        runs=found.runs,
        rules=", ".join(studytables.RULE_WORDS),
        sizes=found.sizes(),
        csv=studytables.csv(found),
        json=canonical_json({"benchmark": STUDY, **studytables.numbers(found, told)}),
    )


def _training(name: str, runs: Sequence[Run], miniature: Sequence[Run], png: bool) -> Sheet:
    """Runs of RL training; `miniature`: runs of the reward models that they and the probes are compared with."""
    ordered = tuple(sorted(runs, key=lambda r: (r.result.manifest.model, r.result.manifest.run_id)))
    trained = [run for run in ordered if run.result.manifest.task == "distrl"]
    found = rl_study(trained)
    probes = [run for run in ordered if run.result.manifest.task != "distrl"]
    models = study([*miniature, *probes])
    told = rlclaims.answers(found, rlprobes.questions(models))
    head = rltables.grids(found, told)
    tail = rlprobes.probe_grid(models), rltables.options_grid(found)
    return Sheet(
        name=name,
        words=RL_STUDY_WORDS if name == RL_STUDY else RL_WORDS,
        grids=tuple(grid for grid in (*head, *tail) if any(grid.groups)),
        figures=draw(lambda: curves.plans(name, found), png),
        runs=ordered,
        rules="none",
        sizes=_sizes(trained),
        csv=rltables.csv(found, study(probes)),
        json=canonical_json({"benchmark": name, **rltables.numbers(found, told)}),
    )
