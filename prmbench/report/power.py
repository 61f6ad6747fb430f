"""What a pilot says of a study to come: from one or two runs, or one or two folders of runs over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from prmbench.config import PowerConfig
from prmbench.core.records import MetricRow, RunManifest, UserError
from prmbench.core.result_files import Run
from prmbench.metrics import intervals, sample_size
from prmbench.report.headlines import headline
from prmbench.report.load import find_results
from prmbench.tasks import find_task, read_verified
from prmbench.tasks.blocks import underlying_subsets
from prmbench.tasks.metric_rows import Cell, SubsetInfo, difference
from prmbench.tasks.ties import Entry, PairedTests


@dataclass(frozen=True, slots=True)
class Plan:
    """The size that a study needs. Numbers are fractions, not points."""

    unit: str
    """`problems` or `seeds`."""
    metric: str
    protocol: str
    subset: str
    pilot: int
    """Number of units in the pilot."""
    paired: bool
    """Whether the pilot holds both sides; if not, the other is taken to be independent and to vary as much."""
    estimate: float
    """The difference in the pilot, second minus first; of a single side, its number."""
    error: float
    """Standard error of the difference in the pilot."""
    detectable: float
    """The smallest true difference that a study of the pilot's size finds with this power."""
    difference: float
    level: float
    power: float
    needed: int | None
    """Number of units that the difference needs; None beyond 10^9."""
    needed_lo: int | None
    needed_hi: int | None
    """Ends of the 95% interval of that number, as the pilot may have varied less or more than usual."""


@dataclass(frozen=True, slots=True)
class _Pilot:
    """One or two sides, reduced to a standard deviation of a unit's difference."""

    unit: str
    row: MetricRow
    n: int
    paired: bool
    estimate: float
    deviation: float


def plan(config: PowerConfig, first: Path, second: Path | None) -> Plan:
    """Returns the size that a difference needs, from a pilot.

    Raises:
        UserError: A path is no result or folder of results, the two sides do not fit, or the pilot is too small.
    """
    is_folder = first.is_dir()
    if is_folder and second is not None and not second.exists():
        raise UserError(f"{second}: no such folder")
    if second is not None and second.is_dir() != is_folder:
        raise UserError("power: give two results, or two folders of runs over seeds, not one of each")
    pilot = (_seeds if is_folder else _problems)(config, first, second)
    if pilot.deviation <= 0:
        raise UserError(f"power: {pilot.row.metric} does not vary in this pilot, so it says nothing of a study's size")
    wanted = config.difference / 100
    lo, hi = sample_size.deviation_interval(pilot.deviation, pilot.n)
    sizes = [sample_size.needed(d, wanted, config.level, config.power) for d in (pilot.deviation, lo, hi)]
    return Plan(
        unit=pilot.unit,
        metric=pilot.row.metric,
        protocol=pilot.row.protocol,
        subset=pilot.row.subset,
        pilot=pilot.n,
        paired=pilot.paired,
        estimate=pilot.estimate,
        error=pilot.deviation / math.sqrt(pilot.n),
        detectable=sample_size.detectable(pilot.deviation, pilot.n, config.level, config.power),
        difference=wanted,
        level=config.level,
        power=config.power,
        needed=sizes[0],
        needed_lo=sizes[1],
        needed_hi=sizes[2],
    )


def lines(plan: Plan) -> list[str]:
    """Returns the plan as the terminal shows it."""
    points = f"{100 * plan.difference:g} point{'s' * (plan.difference != 0.01)}"  # noqa: PLR2004 - one point
    compared = "second minus first, paired" if plan.paired else "against an independent run that varies as much"
    number = f"{100 * plan.estimate:+.1f}" if plan.paired else f"{100 * plan.estimate:.1f}"
    needed, low, high = (_count(n) for n in (plan.needed, plan.needed_lo, plan.needed_hi))
    return [
        f"number: {plan.metric} under {plan.protocol}, {plan.subset}: {number}",
        f"difference: {compared}",
        f"pilot: {plan.pilot} {plan.unit}, standard error {100 * plan.error:.2f} points",
        f"detectable now: {100 * plan.detectable:.1f} points (power {plan.power:g}, level {plan.level:g})",
        f"needed for {points}: {needed} {plan.unit}, 95% interval [{low}, {high}]",
    ]


def _count(number: int | None) -> str:
    return f"more than {sample_size.MOST_UNITS:,}" if number is None else f"{number:,}"


# --- problems of one or two runs --------------------------------------------------------------------------------


def _problems(config: PowerConfig, first: Path, second: Path | None) -> _Pilot:
    runs = [read_verified(path) for path in (first, second) if path is not None]
    keys = (config.protocol, config.against or config.protocol)
    rows = [_row(config, run, key) for run, key in zip(runs, keys, strict=False)]
    if len(runs) > 1:
        _check_alike([run.result.manifest for run in runs])
        if (rows[0].subset, rows[0].metric) != (rows[1].subset, rows[1].metric):
            raise UserError("power: the two runs have different main numbers; name --metric, --subset and --protocol")
    part, cell = _pilot_cell([Entry(run, row) for run, row in zip(runs, rows, strict=True)])
    names = set(underlying_subsets(rows[0].subset))
    n = len({(t.subset, t.cluster) for t in runs[0].scores if t.subset in names})
    error = intervals.standard_error(cell.values[1:], part.problems) * (1.0 if len(runs) > 1 else math.sqrt(2))
    if n < 2 or math.isnan(error):  # noqa: PLR2004 - no spread
        raise UserError(f"{first}: a pilot needs two problems or more")
    return _Pilot("problems", rows[0], n, len(runs) > 1, float(cell.values[0]), error * math.sqrt(n))


def _pilot_cell(sides: Sequence[Entry]) -> tuple[SubsetInfo, Cell]:
    """A number with its replicates and its subset, or the second of two minus the first, resampled alike."""
    tests = PairedTests(find_task(sides[0].run.result.manifest.task))
    first, second = tests.cell(sides[0], sides[0]), tests.cell(sides[0], sides[-1])
    if first is None or second is None:
        row = sides[0].row
        raise UserError(f"power: {row.metric} of {row.subset} has no bootstrap replicates to estimate from")
    return first if len(sides) == 1 else (first[0], difference(first[1].metric, first[1], second[1])[-1])


def _row(config: PowerConfig, run: Run, protocol: str | None) -> MetricRow:
    """The row that the options name; what they leave open is as in the run's main number."""
    manifest = run.result.manifest
    main = headline(run.result)
    metric = config.metric or (main.metric if main else None)
    protocol = protocol or (main.protocol if main else None)
    values = [r for r in run.result.rows if (r.protocol, r.metric) == (protocol, metric) and r.value is not None]
    named = config.subset or (main.subset if main else None)
    for row in values:
        if row.subset == named:
            return row
    averages = [row for row in values if row.subset.startswith("avg[")]
    if averages and config.subset in (None, "average"):  # another threshold rule than the main number's is averaged so
        return max(averages, key=lambda row: len(row.subset))
    subsets = ", ".join(row.subset for row in values)
    choice = f"--subset {subsets}" if subsets else "--metric, --protocol and --subset from its rows"
    raise UserError(
        f"{manifest.run_id}: has no number {metric or '?'} under {protocol or '?'} on {named or '?'}; choose {choice}"
    )


def _check_alike(manifests: Sequence[RunManifest]) -> None:
    for name in ("benchmark", "task"):
        values = {str(getattr(m, name)) for m in manifests}
        if len(values) > 1:
            raise UserError(f"power: the runs differ in {name} ({', '.join(sorted(values))}); give runs of one kind")
    if len({m.benchmark_hash for m in manifests}) > 1:
        raise UserError("power: the runs are on other traces; a pair needs the same ones")


# --- seeds of one or two methods --------------------------------------------------------------------------------


def _seeds(config: PowerConfig, first: Path, second: Path | None) -> _Pilot:
    row, values = _by_seed(config, first, config.protocol)
    if second is None:
        return _pilot_of(first, row, list(values.values()), paired=False)
    other_row, others = _by_seed(config, second, config.against or config.protocol)
    if row.metric != other_row.metric or row.subset != other_row.subset:
        raise UserError("power: the two folders have different main numbers; name --metric, --subset and --protocol")
    common = sorted(values.keys() & others.keys())
    if not common:
        raise UserError(f"power: {first} and {second} have no seed in common, so nothing can be paired")
    return _pilot_of(first, row, [others[seed] - values[seed] for seed in common], paired=True)


def _pilot_of(folder: Path, row: MetricRow, values: Sequence[float], *, paired: bool) -> _Pilot:
    if len(values) < 2:  # noqa: PLR2004 - no spread
        raise UserError(f"{folder}: a pilot needs two seeds or more, and has {len(values)}")
    deviation = stdev(values) * (1.0 if paired else math.sqrt(2))
    return _Pilot("seeds", row, len(values), paired, fmean(values), deviation)


def _by_seed(config: PowerConfig, folder: Path, protocol: str | None) -> tuple[MetricRow, Mapping[str, float]]:
    """The number of each run of a folder, by the seed or seeds that the run was trained with."""
    paths, _ = find_results(folder)
    runs = [read_verified(path) for path in paths]
    if not runs:
        raise UserError(f"{folder}: holds no result; name a folder with the runs of one method over seeds")
    tasks = {(run.result.manifest.benchmark, run.result.manifest.task) for run in runs}
    if len(tasks) > 1:
        raise UserError(f"{folder}: holds runs of several tasks; give a folder for each task and method")
    first = _row(config, runs[0], protocol)
    alike = replace(config, metric=first.metric, subset=first.subset)
    values: dict[str, float] = {}
    for run in runs:
        seed = _seed(run.result.manifest)
        if seed in values:
            raise UserError(f"{folder}: holds several runs of seed {seed}; give a folder for each method")
        values[seed] = _row(alike, run, first.protocol).value or 0.0
    return first, values


def _seed(manifest: RunManifest) -> str:
    """The seeds that a run records: of its world, of training, of fine-tuning before reinforcement learning."""
    recorded = [manifest.config.get(name) for name in ("seed", "sft_seed", "rl_seed")]
    return "/".join(str(seed) for seed in recorded if isinstance(seed, int)) or str(manifest.seed)
