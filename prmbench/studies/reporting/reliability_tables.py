"""Tables of the sheet `joined` on what a policy gains: reliabilities of its correlations, and variance components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean

from prmbench.studies.reporting.checkpoint_correlation import REPLICATES, Within
from prmbench.studies.reporting.checkpoint_rows import F1_SETTINGS, RL_GAIN_COLUMNS, Checkpoint
from prmbench.studies.reporting.reliability import MIN_RELIABILITY, ONE_SEED, Measured, disattenuate
from prmbench.studies.reporting.variance_components import components, cube
from prmbench.tasks.table import DASH, POINTS, Row, Table, Value

WITHIN: dict[Within, str] = {"pooled": "all checkpoints", "world": "within worlds", "method": "within methods"}


def tables(rows: Sequence[Checkpoint]) -> tuple[Table, ...]:
    """Returns both tables, empty ones too, of the miniature's checkpoints that a policy was trained from."""
    gained = [row for row in rows if row.gains]
    return (_reliability(gained), *(_components(gained, column) for column in RL_GAIN_COLUMNS))


def _reliability(rows: Sequence[Checkpoint]) -> Table:
    groups = []
    for outcome in RL_GAIN_COLUMNS:
        lines = (_line(rows, outcome, predictor, within) for predictor, within in product(F1_SETTINGS, WITHIN))
        groups.append(tuple(line for line in lines if line))
    return Table(
        label="joined-reliability",
        title="How reliable are the two measures, and how would they correlate without noise?",
        caption=(
            "Pearson's correlation r across the miniature's checkpoints; reliability of the predictor, from its "
            "intervals over problems (errors of a world's checkpoints, which share problems, are taken as independent: "
            "a lower bound), and of the outcome, the intraclass correlation of its mean over RL seeds. Without noise: "
            "r / sqrt(reliability of predictor x reliability of outcome), with the 95% percentile interval of "
            f"{REPLICATES:,} resamples of whole seeds; not where a reliability is at most {MIN_RELIABILITY:g}. A low "
            "reliability means that r is small whatever the relation."
        ),
        header=(
            *("Predictor", "Outcome", "Within", "Checkpoints", "RL seeds"),
            *("r", "of predictor", "of outcome", "Without noise", "Remark"),
        ),
        groups=tuple(group for group in groups if group),
    )


def _line(rows: Sequence[Checkpoint], outcome: str, predictor: str, within: Within) -> Row:
    points = [
        Measured(
            row.numbers[predictor],
            row.errors.get(predictor),
            tuple(fmean(values.values()) for _, values in sorted(row.gains[outcome].items())),
            row.seed,
            row.world,
            row.model,
        )
        for row in rows
        if row.seed is not None and predictor in row.numbers and row.gains.get(outcome)
    ]
    result = disattenuate(points, within)
    if result is None:
        return ()
    return (
        *(predictor, outcome, WITHIN[within], Value(result.n, "count"), Value(result.seeds, "count")),
        Value(result.value, "correlation"),
        Value(result.x_reliability, "fraction"),
        Value(result.y_reliability, "fraction"),
        Value(result.corrected, "correlation", result.lo, result.hi),
        result.refusal or DASH,
    )


def _components(rows: Sequence[Checkpoint], outcome: str) -> Table:
    runs: dict[str, dict[tuple[int, int], dict[str, float]]] = {}
    for row in rows:
        if row.panel == "plain" and row.seed is not None:
            of_model = runs.setdefault(row.model, {})
            of_model |= {(row.seed, rl): dict(values) for rl, values in row.gains.get(outcome, {}).items()}
    values = cube({model: of_model for model, of_model in runs.items() if of_model})
    label = f"joined-components-{outcome.lower().replace(' ', '-')}"
    title = f"Where does the variation of {outcome} come from?"
    if values is None:
        return Table(label=label, title=title, caption="", header=("Component",), groups=())
    methods, worlds, seeds, problems = values.shape
    if 1 in values.shape:
        note = f"No components: {methods} methods, {worlds} worlds, {seeds} RL seeds, {problems} problems"
        why = f"{ONE_SEED[0].upper()}{ONE_SEED[1:]}." if seeds == 1 else "Each must be two at least."
        lines: tuple[Row, ...] = ((note, Value(None), Value(None), Value(None), why),)
    else:
        parts = components(values)
        total = sum(part.variance for part in parts) or 1.0
        lines = tuple(
            (
                part.name,
                Value(part.levels, "count"),
                Value(math.sqrt(part.variance), POINTS),
                Value(part.variance / total, "percent"),
                "negative estimate, shown as 0" if part.is_negative else DASH,
            )
            for part in parts
        )
    return Table(
        label=label,
        title=title,
        caption=(
            f"Variance components of {outcome} in the balanced analysis of variance (method of moments, all effects "
            f"random): {methods} reward models (methods) x {worlds} worlds x {seeds} RL seeds x {problems} problems, "
            "seeds and problems nested in worlds. SD: the component's square root, in percentage points of a single "
            "problem's value; the mean over a run's problems divides the variances with `problem` by their number."
        ),
        header=("Component", "Levels", "SD", "Share of variance", "Remark"),
        groups=(lines,),
    )
