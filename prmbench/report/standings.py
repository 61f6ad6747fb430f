"""Models against benchmarks: one recommended number a benchmark, and its distance from the best without a model.

The numbers are those of the result files. Only their differences to a baseline are computed here, from stored scores:
both sides are resampled with the same problems, so a difference has an interval of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.metrics.intervals import Ends
from prmbench.report.frame import incomparable_subsets
from prmbench.report.run_names import reading
from prmbench.tasks import Task, find_task
from prmbench.tasks.blocks import rows_of, underlying_subsets
from prmbench.tasks.metric_rows import difference
from prmbench.tasks.table import Unit
from prmbench.tasks.task import Floor, Leading
from prmbench.tasks.wording import RULES, model_name

NO_BOUNDS = ("gold", "random")
"""Baselines that are no bound: one reads the labels, and one is a single draw of what a floor is in expectation."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A number that needs no model."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Standing:
    """One model on one benchmark."""

    protocol: str
    row: MetricRow | None
    """The number; None where the model has none that may stand in the column."""
    reason: str = ""
    """Why there is none."""
    difference: float | None = None
    """The number minus the bound, as a fraction; where the lowest value is best, the bound minus the number."""
    lo: float | None = None
    hi: float | None = None
    """Ends of the paired 95% interval of the difference; None where the two are not paired."""
    runs: tuple[Run, ...] = ()
    """Comparable runs of the model, best first; the first has the number."""
    reading: str = ""
    """What sets this run apart from the model's other runs, in any column: see `with_readings`."""


@dataclass(frozen=True, slots=True)
class Column:
    """One benchmark: the recommended number of each model, by the model's name, and the bound."""

    benchmark: str
    heading: str
    """The metric: `F1`."""
    subset: str
    rule: str
    """The threshold rule, or what takes its place in the task."""
    rule_text: str
    protocols: tuple[str, ...]
    unit: Unit
    n: int
    problems: int | None
    """Number of problems, where a number is a mean over these and `n` counts their completions."""
    bounds: tuple[Bound, ...]
    """What needs no model, best first: floors, and baselines' runs under the same rule on the same traces."""
    standings: Mapping[str, Standing]

    @property
    def bound(self) -> Bound | None:
        """The best that needs no model."""
        return self.bounds[0] if self.bounds else None


class _Candidate(NamedTuple):
    """A run with a number that could stand for it."""

    run: Run
    leading: Leading
    rows: Mapping[str, MetricRow]
    """The number by subset."""


def column(benchmark: str, runs: Sequence[Run]) -> Column | None:
    """Returns the overview's column of a benchmark; None where no model has a number that may stand by itself.

    The rule is the first of the task's recommended ones under which a model has a number (of several that are
    recommended alike, the one under which most models have), and the set of traces the one
    on which most models have it: the average over most subsets, if several qualify.

    Args:
        benchmark: Name of the board or sheet.
        runs: Its runs, all of one task.
    """
    task = find_task(runs[0].result.manifest.task) if runs else None
    models = [run for run in runs if run.result.manifest.backend != "baseline"]
    candidates = [c for run in models for c in _candidates(run, task)] if task else []
    if task is None or not candidates:
        return None
    order = {rule: i for i, rule in reversed(list(enumerate(c.leading.rule for c in candidates)))}
    rank = {rule: i for i, rule in enumerate(RULES)}
    names = {rule: {model_name(c.run.result.manifest) for c in candidates if c.leading.rule == rule} for rule in order}
    rule = min(order, key=lambda name: (rank.get(name, -1), -len(names[name]), order[name]))
    incomparable = incomparable_subsets(runs)
    chosen = [c for c in candidates if c.leading.rule == rule]
    subset = _common_subset(chosen, incomparable)
    comparable = [c for c in chosen if subset in c.rows and _is_comparable(c.run, subset, incomparable)]
    if not comparable:
        return None
    leading = comparable[0].leading
    bases = _bases(task, runs, comparable, subset, rule, incomparable)
    standings = dict(_standings(task, comparable, subset, bases[0] if bases else None))
    for run in models:
        standings.setdefault(model_name(run.result.manifest), Standing("", None, _why_absent(run, candidates, rule)))
    return Column(
        benchmark=benchmark,
        heading=leading.heading,
        subset=subset,
        rule=RULES[rule][0] if rule in RULES else rule,
        rule_text=RULES[rule][1] if rule in RULES else "",
        protocols=tuple(dict.fromkeys(c.leading.protocol for c in comparable)),
        unit=leading.unit,
        n=comparable[0].rows[subset].n,
        problems=_problems(comparable[0].run, subset) if task.is_per_problem else None,
        bounds=tuple(base.bound for base in bases),
        standings=standings,
    )


def _problems(run: Run, subset: str) -> int:
    names = underlying_subsets(subset)
    return len({(trace.subset, trace.cluster) for trace in run.scores if trace.subset in names})


def with_readings(columns: Sequence[Column | None]) -> list[Column | None]:
    """Returns the columns with the reading of each number whose model has runs that were read otherwise.

    All columns are looked at, so that a row never mixes numbers of different readings without saying so.
    """
    runs: dict[str, list[Run]] = {}
    for name, standing in (pair for column in columns if column for pair in column.standings.items()):
        runs.setdefault(name, []).extend(standing.runs)

    def read_as(name: str, standing: Standing) -> Standing:
        return replace(standing, reading=reading(standing.runs[0], runs[name])) if standing.runs else standing

    return [
        column and replace(column, standings={name: read_as(name, s) for name, s in column.standings.items()})
        for column in columns
    ]


def _leadings(run: Run, task: Task) -> Sequence[Leading]:
    if task.leading is not None:
        return task.leading(run.result)
    protocols = dict.fromkeys(row.protocol for row in run.result.rows)
    floors = [protocol for protocol in protocols if protocol.startswith("floor/")]
    names = [protocol.removeprefix("floor/").replace("_", " ") for protocol in floors]
    return [
        Leading(
            p, c.metric, c.heading, "", c.unit, c.lower_is_better, tuple(map(Floor, floors, repeat(c.metric), names))
        )
        for c in task.columns[:1]
        for p in protocols
        if p not in floors
    ]


def _candidates(run: Run, task: Task) -> Iterator[_Candidate]:
    """Yields the run's first number of each rule."""
    rules = set()
    for leading in _leadings(run, task):
        rows = {
            row.subset: row
            for row in run.result.rows
            if (row.protocol, row.metric) == (leading.protocol, leading.metric) and row.value is not None
        }
        if rows and leading.rule not in rules:
            rules.add(leading.rule)
            yield _Candidate(run, leading, rows)


def _is_comparable(run: Run, subset: str, incomparable: Mapping[str, set[str]]) -> bool:
    return not incomparable[run.result.manifest.run_id] & set(underlying_subsets(subset))


def _common_subset(candidates: Sequence[_Candidate], incomparable: Mapping[str, set[str]]) -> str:
    """The subset or average on which most models have a comparable number; of several, the widest."""
    models: dict[str, set[str]] = {}
    for c in candidates:
        for subset in c.rows:
            if _is_comparable(c.run, subset, incomparable):
                models.setdefault(subset, set()).add(model_name(c.run.result.manifest))
    wide = Counter({subset: len(underlying_subsets(subset)) for subset in models})
    return max(models, key=lambda name: (len(models[name]), wide[name], name.startswith("avg["), name), default="")


def _why_absent(run: Run, candidates: Sequence[_Candidate], rule: str) -> str:
    own = [c for c in candidates if c.run is run]
    if not own:
        return "no number that may stand by itself; see the tables"
    if all(c.leading.rule != rule for c in own):
        return f"only under {own[0].leading.protocol}; see the tables"
    return "scored on other traces; see the tables"


# --- differences to the best that needs no model -----------------------------------------------------------------


class _Base(NamedTuple):
    """The bound with what its replicates are computed from: a floor of the run itself, or a baseline's run."""

    bound: Bound
    row: MetricRow
    run: Run | None
    """None: a floor, which every run has on the same labels."""


def _bases(
    task: Task,
    runs: Sequence[Run],
    comparable: Sequence[_Candidate],
    subset: str,
    rule: str,
    incomparable: Mapping[str, set[str]],
) -> list[_Base]:
    """Floors, and baselines' runs under the same rule, on the same traces; best first."""
    first = comparable[0]
    rows = rows_of(first.run.result, subset)
    bases = [
        _Base(Bound(floor.name, row.value), row, None)
        for floor in first.leading.floors
        if (row := rows.get((floor.protocol, floor.metric))) and row.value is not None
    ]
    for run in runs if first.leading.has_baselines else ():
        manifest = run.result.manifest
        if manifest.backend != "baseline" or manifest.model in NO_BOUNDS:
            continue
        for c in _candidates(run, task):
            row = c.rows.get(subset)
            if c.leading.rule == rule and row and row.value is not None and _is_comparable(run, subset, incomparable):
                name = f"{manifest.model}, a baseline"
                bases.append(_Base(Bound(name, row.value), row, run))
    sign = -1 if first.leading.lower_is_better else 1
    return sorted(bases, key=lambda base: -sign * base.bound.value)


def _standings(
    task: Task, comparable: Sequence[_Candidate], subset: str, base: _Base | None
) -> Iterator[tuple[str, Standing]]:
    """Yields each model's best run, best first."""
    sign = -1 if comparable[0].leading.lower_is_better else 1
    by_model: dict[str, list[_Candidate]] = {}
    for c in sorted(comparable, key=lambda c: -sign * (c.rows[subset].value or 0.0)):
        by_model.setdefault(model_name(c.run.result.manifest), []).append(c)
    for name, (c, *others) in by_model.items():
        row = c.rows[subset]
        standing = Standing(c.leading.protocol, row, runs=(c.run, *(other.run for other in others)))
        if base is not None and row.value is not None:
            lo, hi = _paired_interval(task, c, subset, base, sign)
            bound = base.bound.value
            if base.run is None and (own := rows_of(c.run.result, subset).get((base.row.protocol, base.row.metric))):
                bound = bound if own.value is None else own.value  # of distrl every run has its own: the start policy
            standing = replace(standing, difference=sign * (row.value - bound), lo=lo, hi=hi)
        yield name, standing


def _paired_interval(task: Task, candidate: _Candidate, subset: str, base: _Base, sign: int) -> Ends:
    """The 95% interval of the difference, paired by bootstrap replicate; (None, None) where the task cannot pair them.

    The floor of random scores is an expectation, which varies with no replicate.
    """
    if task.judge_one is None:
        return None, None
    manifest = candidate.run.result.manifest
    ours = theirs = task.judge_one(manifest, candidate.run.scores, candidate.leading.protocol)
    if base.run is not None:
        alike = replace(base.run.result.manifest, seed=manifest.seed, replicates=manifest.replicates)
        theirs = task.judge_one(alike, base.run.scores, base.row.protocol)
    number, bound = ours.find(candidate.rows[subset]), theirs.find(base.row)
    if number is None or bound is None:
        return None, None
    (part, cell), (_, other) = number, bound
    if other.kind == "range":
        other = replace(other, values=other.values[:1], kind=cell.kind)
    worse, better = (other, cell) if sign > 0 else (cell, other)
    return difference(cell.metric, worse, better)[-1].ends(part.problems)
