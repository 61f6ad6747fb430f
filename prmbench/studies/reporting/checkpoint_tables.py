"""The sheet `joined`: correlations across checkpoints, a row per checkpoint, a figure, CSV and JSON.

checkpoint_rows.py makes the rows, checkpoint_correlation.py the correlations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean
from typing import Literal

import pandas as pd

from prmbench.core.result_files import Run, canonical_json
from prmbench.report.figures import render_figures
from prmbench.report.frame import CHECKPOINT_SHEET
from prmbench.report.sheets import Sheet
from prmbench.studies.reporting import disjoint_problems, reliability_tables
from prmbench.studies.reporting.checkpoint_correlation import (
    MIN_SEEDS,
    REPLICATES,
    SPLIT_REPLICATES,
    Coefficient,
    Correlation,
    Point,
    Within,
    correlate_splits,
)
from prmbench.studies.reporting.checkpoint_figures import plans
from prmbench.studies.reporting.checkpoint_rows import (
    BEST_OF_N_GAIN,
    CALIBRATION_COLUMNS,
    COST_COLUMNS,
    F1_COLUMNS,
    RL_GAIN_COLUMNS,
    Checkpoint,
    checkpoints,
)
from prmbench.studies.reporting.column_words import COLUMN_WORDS
from prmbench.studies.reporting.disjoint_problems import SPLITS, Measure
from prmbench.tasks.table import DASH, FRACTION, PERCENT, POINTS, Table, TableCell, Unit, Value
from prmbench.tasks.table import Row as TableRow

NAME = CHECKPOINT_SHEET
WORDS = (
    "One row per checkpoint with the numbers of all its runs: step F1, best-of-N gain, calibration, RL gain, cost; and "
    "whether step F1 predicts the others."
)
PREDICTORS = (
    F1_COLUMNS[0],
    F1_COLUMNS[1],
    F1_COLUMNS[2],
    F1_COLUMNS[3],
    CALIBRATION_COLUMNS[0],
    CALIBRATION_COLUMNS[2],
)
UPPER_BOUNDS = (F1_COLUMNS[4], F1_COLUMNS[5])
"""F1 with a threshold tuned on the judged traces. In rows apart: nobody who picks a checkpoint has such a threshold."""
UNTRAINED_LEVEL = 2.0
"""A recipe whose mean F1 on on-policy traces is at most so many times that of random scores has not learned."""
Population = Literal["learned", "all"]
KINDS_OF_CORRELATION: tuple[tuple[Population, Coefficient], ...] = (
    ("learned", "spearman"),
    ("learned", "pearson"),
    ("all", "spearman"),
)
"""The tables: recipes at chance are kept apart, since a few of them make a correlation out of nothing else."""
WITHIN: dict[Within, str] = {"pooled": "pooled", "world": "within worlds", "method": "within recipes"}
COEFFICIENTS: dict[Coefficient, str] = {"spearman": "Spearman", "pearson": "Pearson"}
EXPLAINED = (
    "Pooled: all checkpoints. Within worlds: relative to the other recipes of the same world, so that what is "
    "left is between recipes. Within recipes: relative to the same recipe in other worlds, so that what is left is "
    "between worlds; a pooled correlation can come from either alone. The two numbers of a checkpoint are of different "
    f"problems: where its runs share problems, the mean over {SPLITS} random splits of these, one half for each "
    f"number. 95% percentile interval of a bootstrap ({REPLICATES:,} replicates, {SPLIT_REPLICATES} of each split) "
    "that resamples whole seeds, since checkpoints of a seed share policy and problems. "
    "Answer: yes where the interval lies above zero, no where below (for ECE, lower is better), else unclear; for the "
    "three in turn. Seeds above 0: seeds whose own checkpoints correlate positively, of those with enough checkpoints."
)
TOO_FEW = "too few seeds"
FEW = f"with fewer than {MIN_SEEDS} there is no interval and no answer; even all of one sign could be chance."
REASONS = {
    RL_GAIN_COLUMNS[0]: "no DistRL run here starts from that checkpoint, by the hash of its policy or weights",
    COST_COLUMNS[4]: "the runs are from before memory was recorded",
}
"""Column -> why it may have no value, other than that it was not evaluated."""
Correlations = Mapping[Within, Correlation | None]


def joined(runs: Sequence[Run], png: bool = False) -> tuple[Sheet, ...]:
    """Returns the sheet, or none when no checkpoint has runs of two tasks."""
    rows = checkpoints(runs)
    if not rows:
        return ()
    correlated = correlations(rows)
    used = {run.path: run for row in rows for run in row.runs}
    return (
        Sheet(
            name=NAME,
            description=WORDS,
            tables=grids(rows, correlated),
            figures=render_figures(partial(plans, rows, outcomes(rows)), png),
            runs=tuple(used[path] for path in sorted(used)),
            rules="all",
            sizes={},
            csv=csv(rows),
            json=canonical_json({"benchmark": NAME, **numbers(rows, correlated)}),
            column_descriptions=COLUMN_WORDS,
        ),
    )


def grids(rows: Sequence[Checkpoint], correlated: Sequence[CorrelationTable] | None = None) -> tuple[Table, ...]:
    """Returns the tables of correlations, then those of checkpoints, without empty ones."""
    tables = [_correlations(table) for table in (correlations(rows) if correlated is None else correlated)]
    apart = untrained([row for row in rows if row.seed is not None])
    tables += reliability_tables.tables([row for row in rows if row.model not in apart])
    groups = {
        "Checkpoints of the miniature": [r for r in rows if r.seed is not None and r.tuned],
        "Checkpoints of the miniature, the paper's constants": [r for r in rows if r.seed is not None and r.paper],
        "Checkpoints of the miniature, other training data": [r for r in rows if r.seed is not None and r.probe],
        "Other checkpoints": [r for r in rows if r.seed is None],
    }
    tables += [_rows(title, group) for title, group in groups.items()]
    return tuple(table for table in tables if any(table.groups))


# --- correlations -----------------------------------------------------------------------------------------------


def outcomes(rows: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Returns the gains that some row has, which F1 may predict."""
    columns = _columns([row for row in rows if row.seed is not None])
    return (*(c for c in columns if c.startswith(BEST_OF_N_GAIN)), *(c for c in RL_GAIN_COLUMNS if c in columns))


@dataclass(frozen=True, slots=True)
class CorrelationTable:
    """Correlations of every predictor and outcome over one population."""

    population: Population
    how: Coefficient
    left_out: tuple[str, ...]
    """Recipes that are left out, or that are all in although they have not learned."""
    lines: tuple[tuple[str, str, Correlations], ...]
    """(outcome, predictor, correlations)."""


def untrained(rows: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Returns the recipes of the miniature whose F1 is about that of random scores."""
    by_method: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.seed is not None and row.chance is not None and F1_COLUMNS[0] in row.numbers:
            by_method.setdefault(row.model, []).append((row.numbers[F1_COLUMNS[0]], row.chance))
    return tuple(
        method
        for method, values in by_method.items()
        if fmean(f1 for f1, _ in values) <= UNTRAINED_LEVEL * fmean(chance for _, chance in values)
    )


def correlations(rows: Sequence[Checkpoint]) -> tuple[CorrelationTable, ...]:
    """Returns the correlations of all tables; of the recipes that have learned, and with those that have not."""
    inside = [row for row in rows if row.seed is not None]
    apart, pairs = untrained(inside), list(product(outcomes(rows), (*PREDICTORS, *UPPER_BOUNDS)))
    problem_sets = {id(row): disjoint_problems.measures(row.runs, row.model) for row in inside}
    points = {
        (y, x): [(row, _split_points(row, problem_sets[id(row)], x, y)) for row in inside if _has(row, x, y)]
        for y, x in pairs
    }
    tables = []
    for population, how in KINDS_OF_CORRELATION:
        if population == "all" and not apart:
            continue
        lines = []
        for y, x in pairs:
            chosen = [of_row for row, of_row in points[y, x] if population == "all" or row.model not in apart]
            lines.append((y, x, _of_points(chosen, how)))
        tables.append(CorrelationTable(population, how, apart, tuple(lines)))
    return tuple(tables)


def _has(row: Checkpoint, x: str, y: str) -> bool:
    return x in row.numbers and y in row.numbers


def _split_points(row: Checkpoint, measures: Mapping[str, Measure], x: str, y: str) -> list[Point]:
    """Returns a checkpoint's point in every split of its problems; one point where the numbers share none."""
    assert row.seed is not None
    values = disjoint_problems.disjoint(measures[x], measures[y]) if x in measures and y in measures else None
    pairs = (
        [(row.numbers[x], row.numbers[y])] if values is None else list(zip(*(v.tolist() for v in values), strict=True))
    )
    return [Point(a, b, row.seed, row.world, row.model) for a, b in pairs]


def _of_points(points: Sequence[Sequence[Point]], how: Coefficient) -> Correlations:
    """Returns the correlations of checkpoints, each with a point in every split."""
    count = max(map(len, points), default=1)
    splits = [[of_row[i % len(of_row)] for of_row in points] for i in range(count)]
    return {within: correlate_splits(splits, how, within) for within in WITHIN}


def _correlations(table: CorrelationTable) -> Table:
    groups = []
    for outcome, names in product(dict.fromkeys(y for y, _, _ in table.lines), (PREDICTORS, UPPER_BOUNDS)):
        lines = [_line(x, y, correlated) for y, x, correlated in table.lines if y == outcome and x in names]
        groups.append(tuple(line for line in lines if line))
    few = any(TOO_FEW in line for group in groups for line in group)
    names, title = ", ".join(table.left_out), f"Does F1 predict downstream gain? {COEFFICIENTS[table.how]}"
    with_all = table.population == "all"
    apart = f" {'With' if with_all else 'Without'} {names}, which did not learn." if names else ""
    return Table(
        label=f"joined-{table.how}{'-all' * with_all}",
        title=f"{title}, with recipes that did not learn" if with_all else title,
        caption=f"{COEFFICIENTS[table.how]} correlation across the miniature's checkpoints.{apart} {EXPLAINED}",
        header=("Predictor", "Outcome", "Checkpoints", "Seeds", *WITHIN.values(), "Answer", "Seeds above 0"),
        lead="within worlds",
        groups=tuple(group for group in groups if group),
        notes=(f"{TOO_FEW[0].upper()}{TOO_FEW[1:]}: {FEW}",) if few else (),
    )


def _line(predictor: str, outcome: str, correlations: Correlations) -> TableRow:
    pooled = correlations["pooled"]
    if pooled is None:
        return ()
    answers = ", ".join(_answer(correlations[within], predictor) for within in WITHIN)
    answers = TOO_FEW if pooled.clusters < MIN_SEEDS else answers
    return (
        *(predictor, outcome, Value(pooled.n, "count"), Value(pooled.clusters, "count")),
        *(_coefficient(correlations[within]) for within in WITHIN),
        *(answers, Value(pooled.positive, "count", suffix=f" of {pooled.with_value}")),
    )


def _coefficient(estimate: Correlation | None) -> Value:
    return Value(None) if estimate is None else Value(estimate.value, "correlation", estimate.lo, estimate.hi)


def _answer(estimate: Correlation | None, predictor: str) -> str:
    """Returns the verdict on whether a better predictor goes with a better outcome."""
    if estimate is None or estimate.lo is None or estimate.hi is None:
        return DASH
    worse_above = predictor.startswith("ECE")
    above, below = estimate.lo > 0, estimate.hi < 0
    return "yes" if (below if worse_above else above) else "no" if (above if worse_above else below) else "unclear"


# --- rows -------------------------------------------------------------------------------------------------------


def _rows(title: str, rows: Sequence[Checkpoint]) -> Table:
    """Returns a table with a row per checkpoint, grouped by method."""
    columns = _columns(rows)
    inside = any(row.seed is not None for row in rows)
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        where: TableRow = (row.panel, Value(row.seed, "count")) if inside else ()
        cells = (_cell(column, row.numbers.get(column)) for column in columns)
        groups.setdefault(row.model if inside else "", []).append((row.model, *where, *cells))
    return Table(
        label=f"joined-{title.lower().replace(' ', '-')}",
        title=title,
        caption=_caption(inside),
        header=("Model", *(("Panel", "Seed") if inside else ()), *columns),
        groups=tuple(tuple(lines) for lines in groups.values()),
        notes=_why(rows, columns),
        text_columns=1 + inside,
    )


def _caption(inside: bool) -> str:
    f1 = (
        "F1 (percent): process level, threshold tuned on val; shifts: the on-policy traces in other formats; own: read "
        "by the value that picks among N; oracle: threshold tuned on the judged traces, an upper bound. "
        if inside
        else "F1 in percent under each threshold rule, headline readout; oracle and in sample: upper bounds. "
    )
    return (
        f"{f1}Best of N by the model's own value, gain over a random completion in percentage points, for the largest "
        "N and the mean over N. ECE and AUC of that value as a probability of success. RL gain: accuracy of the policy "
        "that DistRL trains from the checkpoint, after minus before training; over GRPO: after training, minus GRPO's "
        "from the same start. Cost: over all evaluations of the checkpoint, a reference model's cached pass left out."
    )


def _columns(rows: Sequence[Checkpoint]) -> list[str]:
    """Returns the columns that some row has: F1 first, then gains, calibration, RL, cost."""
    columns = {column for row in rows for column in row.numbers}
    return sorted(columns, key=_column_rank)


def _column_rank(column: str) -> tuple[int, int, str]:
    for place, names in enumerate((F1_COLUMNS, CALIBRATION_COLUMNS, RL_GAIN_COLUMNS, COST_COLUMNS)):
        if column in names:
            return (0, 4, 5, 6)[place], names.index(column), ""
    place = 3 if column.startswith(BEST_OF_N_GAIN) else 2 if column.startswith("best of") else 1
    return place, "oracle" in column or "in_sample" in column, column


def _cell(column: str, value: float | None) -> TableCell:
    return Value(value, _unit(column))


def _unit(column: str) -> Unit:
    if column in CALIBRATION_COLUMNS:
        return FRACTION
    if column in COST_COLUMNS:
        return "count" if column in COST_COLUMNS[:1] else "hundredths"
    signed = column in RL_GAIN_COLUMNS or column.startswith(BEST_OF_N_GAIN) or "lost" in column
    return POINTS if signed else PERCENT


def _why(rows: Sequence[Checkpoint], columns: Sequence[str]) -> tuple[str, ...]:
    """Returns notes on what a dash stands for, and on why columns are absent."""
    incomplete = {c for c in (*columns, *REASONS) if any(c not in row.numbers for row in rows)}
    notes = [
        f"{DASH} in {c}: {why}." if c in columns else f"No {c}: {why}." for c, why in REASONS.items() if c in incomplete
    ]
    explained = {*REASONS, RL_GAIN_COLUMNS[1]}
    return (*notes, *([f"{DASH} elsewhere: not evaluated."] if incomplete - explained else []))


# --- files ------------------------------------------------------------------------------------------------------


def csv(rows: Sequence[Checkpoint]) -> str:
    """Returns a CSV row per checkpoint with all its numbers as fractions, six decimals."""
    columns = _columns(rows)
    lines = [
        {
            **{"model": row.model, "panel": row.panel, "seed": "" if row.seed is None else row.seed},
            **{"weights": row.weights, "runs": " ".join(run.result.manifest.run_id for run in row.runs)},
            **{c: f"{row.numbers[c]:.6f}" if c in row.numbers else "" for c in columns},
        }
        for row in rows
    ]
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def numbers(rows: Sequence[Checkpoint], correlated: Sequence[CorrelationTable]) -> dict[str, object]:
    """Returns checkpoints and correlations for JSON; fractions, six decimals."""
    records = [
        {
            **{"model": row.model, "panel": row.panel, "seed": row.seed, "weights": row.weights},
            "values": {c: round(v, 6) for c, v in row.numbers.items()},
        }
        for row in rows
    ]
    return {"checkpoints": records, "correlations": list(_correlation_records(correlated))}


def _correlation_records(correlated: Sequence[CorrelationTable]) -> Iterator[dict[str, object]]:
    for table in correlated:
        for y, x, by_population in table.lines:
            for within, estimate in by_population.items():
                if estimate is not None:
                    rounded = [None if v is None else round(v, 6) for v in (estimate.value, estimate.lo, estimate.hi)]
                    key = {"predictor": x, "outcome": y, "coefficient": table.how, "within": within}
                    yield {
                        **{"recipes": table.population, **key, "value": rounded},
                        **{"n": estimate.n, "seeds": estimate.clusters, "above_zero": estimate.positive},
                    }
