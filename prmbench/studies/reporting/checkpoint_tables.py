"""Rows of checkpoints -> the sheet `joined`: correlations first, then the table, a figure, CSV and JSON.

What a row holds is decided in checkpoint_rows.py, what a correlation is in checkpoint_correlation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product

import pandas as pd

from prmbench.core.result_files import Run, canonical_json
from prmbench.report.blocks import PERCENT, PLAIN, SIGNED, number
from prmbench.report.figures import draw
from prmbench.report.frame import JOINED
from prmbench.report.sheets import Sheet
from prmbench.report.tables import DASH, Grid
from prmbench.studies.reporting.checkpoint_correlation import (
    FEWEST,
    REPLICATES,
    Coefficient,
    Correlation,
    Point,
    Within,
    correlate,
)
from prmbench.studies.reporting.checkpoint_figures import plans
from prmbench.studies.reporting.checkpoint_rows import CALIBRATION, COST, F1, GAINS, RL_GAINS, Checkpoint, checkpoints
from prmbench.studies.reporting.column_words import COLUMN_WORDS

NAME = JOINED
WORDS = (
    "All that the runs here say of a checkpoint in one row: step F1, best-of-N gain, calibration, RL gain, cost; and "
    "whether the first predicts the others."
)
PREDICTORS = (F1[0], F1[1], F1[2], F1[3], CALIBRATION[0], CALIBRATION[2])
UPPER_BOUNDS = (F1[4], F1[5])
"""Threshold tuned on the judged traces: apart, since nobody who picks a checkpoint has it."""
UNTRAINED = ("q_rm", "q_rm_paper")
"""At chance in every setting that was tried in the miniature."""
WITHIN: dict[Within, str] = {"pooled": "pooled", "world": "within worlds", "method": "within methods"}
COEFFICIENTS: dict[Coefficient, str] = {"spearman": "Spearman", "pearson": "Pearson"}
EXPLAINED = (
    "Pooled: all checkpoints alike. Within worlds: relative to the other methods of the same world, so that what is "
    "left is between methods. Within methods: relative to the same method in other worlds, so that what is left is "
    "between worlds; a pooled correlation can come from either alone. 95% percentile interval of a bootstrap of "
    f"{REPLICATES:,} replicates that resamples whole seeds, since checkpoints of a seed share policy and problems. "
    "Answer: yes where the interval lies above zero, no where below (for ECE, lower is better), else unclear, for the "
    "three in turn. Seeds above 0: seeds whose own checkpoints correlate positively, of those with enough of them."
)
TOO_FEW = "too few seeds"
FEW = f"with fewer than {FEWEST} there is no interval and no answer; even all of one sign could be chance."
REASONS = {
    RL_GAINS[0]: "no DistRL run here starts from that checkpoint (known to be so by the hash of its policy or weights)",
    COST[4]: "the runs are from before memory was recorded",
}
"""Why a number may be missing, other than that nobody asked for it."""
Found = Mapping[Within, Correlation | None]
Row = tuple[str, ...]


def joined(runs: Sequence[Run], png: bool = False) -> tuple[Sheet, ...]:
    """The sheet, or none when no checkpoint has runs of two kinds."""
    rows = checkpoints(runs)
    if not rows:
        return ()
    used = {run.path: run for row in rows for run in row.runs}
    return (
        Sheet(
            name=NAME,
            words=WORDS,
            grids=grids(rows),
            figures=draw(partial(plans, rows, outcomes(rows)), png),
            runs=tuple(used[path] for path in sorted(used)),
            rules="all",
            sizes={},
            csv=csv(rows),
            json=canonical_json({"benchmark": NAME, **numbers(rows)}),
            column_words=COLUMN_WORDS,
        ),
    )


def grids(rows: Sequence[Checkpoint]) -> tuple[Grid, ...]:
    """Correlations, then rows; those without a number are left out."""
    trained = [row for row in rows if row.model not in UNTRAINED]
    found = [_correlations(rows, how, "") for how in COEFFICIENTS]
    if len(trained) < len(rows):
        found.append(_correlations(trained, "spearman", f"without {', '.join(UNTRAINED)}, which did not train"))
    groups = {
        "Checkpoints of the miniature": [r for r in rows if r.seed is not None and r.tuned],
        "Checkpoints of the miniature, the paper's constants": [r for r in rows if r.seed is not None and r.paper],
        "Checkpoints of the miniature, other training data": [r for r in rows if r.seed is not None and r.probe],
        "Other checkpoints": [r for r in rows if r.seed is None],
    }
    found += [_rows(title, some) for title, some in groups.items()]
    return tuple(grid for grid in found if any(grid.groups))


# --- correlations -----------------------------------------------------------------------------------------------


def outcomes(rows: Sequence[Checkpoint]) -> tuple[str, ...]:
    """What F1 might predict: the gains that some row has."""
    have = _columns([row for row in rows if row.seed is not None])
    return (*(c for c in have if c.startswith(GAINS)), *(c for c in RL_GAINS if c in have))


def correlation(rows: Sequence[Checkpoint], x: str, y: str, how: Coefficient) -> Found:
    """Over the miniature's rows that have both numbers."""
    points = [
        Point(row.numbers[x], row.numbers[y], row.seed, row.world, row.model)
        for row in rows
        if row.seed is not None and x in row.numbers and y in row.numbers
    ]
    return {within: correlate(points, how, within) for within in WITHIN}


def _correlations(rows: Sequence[Checkpoint], how: Coefficient, population: str) -> Grid:
    groups = []
    for outcome, names in product(outcomes(rows), (PREDICTORS, UPPER_BOUNDS)):
        lines = [_line(name, outcome, correlation(rows, name, outcome, how)) for name in names]
        groups.append(tuple(line for line in lines if line))
    few = any(TOO_FEW in line for group in groups for line in group)
    title = f"Does F1 predict downstream gain? {COEFFICIENTS[how]}{', ' * bool(population)}{population}"
    return Grid(
        label=f"joined-{how}{'-trained' * bool(population)}",
        title=title,
        caption=f"{COEFFICIENTS[how]} correlation across the miniature's checkpoints. {EXPLAINED}",
        header=("Predictor", "Outcome", "Checkpoints", "Seeds", *WITHIN.values(), "Answer", "Seeds above 0"),
        groups=tuple(group for group in groups if group),
        notes=(f"{TOO_FEW[0].upper()}{TOO_FEW[1:]}: {FEW}",) if few else (),
    )


def _line(predictor: str, outcome: str, found: Found) -> Row:
    pooled = found["pooled"]
    if pooled is None:
        return ()
    answers = ", ".join(_answer(found[within], predictor) for within in WITHIN)
    answers = TOO_FEW if pooled.clusters < FEWEST else answers
    return (
        *(predictor, outcome, str(pooled.n), str(pooled.clusters)),
        *(_coefficient(found[within]) for within in WITHIN),
        *(answers, f"{pooled.positive} of {pooled.told}"),
    )


def _coefficient(found: Correlation | None) -> str:
    if found is None:
        return DASH
    span = "" if found.lo is None else f" [{_signed(found.lo)}, {_signed(found.hi)}]"
    return _signed(found.value) + span


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{round(value, 2) + 0.0:+.2f}"


def _answer(found: Correlation | None, predictor: str) -> str:
    """Whether a better predictor goes with a better outcome."""
    if found is None or found.lo is None or found.hi is None:
        return DASH
    worse_above = predictor.startswith("ECE")
    above, below = found.lo > 0, found.hi < 0
    return "yes" if (below if worse_above else above) else "no" if (above if worse_above else below) else "unclear"


# --- rows -------------------------------------------------------------------------------------------------------


def _rows(title: str, rows: Sequence[Checkpoint]) -> Grid:
    """A line each, the seeds of a method together."""
    shown = _columns(rows)
    inside = any(row.seed is not None for row in rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        where = (row.panel, str(row.seed)) if inside else ()
        cells = (_cell(column, row.numbers.get(column)) for column in shown)
        groups.setdefault(row.model if inside else "", []).append((row.model, *where, *cells))
    return Grid(
        label=f"joined-{title.lower().replace(' ', '-')}",
        title=title,
        caption=_caption(inside),
        header=("Model", *(("Panel", "Seed") if inside else ()), *shown),
        groups=tuple(tuple(lines) for lines in groups.values()),
        notes=_why(rows, shown),
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
    """Those that some row has: F1 first, then gains, calibration, RL, cost."""
    have = {column for row in rows for column in row.numbers}
    return sorted(have, key=_column_rank)


def _column_rank(column: str) -> tuple[int, int, str]:
    for place, names in enumerate((F1, CALIBRATION, RL_GAINS, COST)):
        if column in names:
            return (0, 4, 5, 6)[place], names.index(column), ""
    place = 3 if column.startswith(GAINS) else 2 if column.startswith("best of") else 1
    return place, "oracle" in column or "in_sample" in column, column


def _cell(column: str, value: float | None) -> str:
    return DASH if value is None else _style(column)(value)


def _style(column: str) -> Callable[[float], str]:
    if column in CALIBRATION:
        return partial(number, style=PLAIN)
    if column in COST:
        return (lambda v: f"{v:,.0f}") if column in COST[:1] else (lambda v: f"{v:.2f}")
    signed = column in RL_GAINS or column.startswith(GAINS) or "lost" in column
    return partial(number, style=SIGNED if signed else PERCENT)


def _why(rows: Sequence[Checkpoint], shown: Sequence[str]) -> tuple[str, ...]:
    """What a dash stands for, and why a column is not there."""
    lacking = {c for c in (*shown, *REASONS) if any(c not in row.numbers for row in rows)}
    notes = [
        f"{DASH} in {c}: {why}." if c in shown else f"No {c}: {why}." for c, why in REASONS.items() if c in lacking
    ]
    explained = {*REASONS, RL_GAINS[1]}
    return (*notes, *([f"{DASH} elsewhere: not evaluated."] if lacking - explained else []))


# --- files ------------------------------------------------------------------------------------------------------


def csv(rows: Sequence[Checkpoint]) -> str:
    """A line per checkpoint with all its numbers as fractions, six decimals."""
    shown = _columns(rows)
    lines = [
        {
            **{"model": row.model, "panel": row.panel, "seed": "" if row.seed is None else row.seed},
            **{"weights": row.weights, "runs": " ".join(run.result.manifest.run_id for run in row.runs)},
            **{c: f"{row.numbers[c]:.6f}" if c in row.numbers else "" for c in shown},
        }
        for row in rows
    ]
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def numbers(rows: Sequence[Checkpoint]) -> dict[str, object]:
    """Checkpoints and correlations for programs; fractions, six decimals."""
    known = [
        {
            **{"model": row.model, "panel": row.panel, "seed": row.seed, "weights": row.weights},
            "values": {c: round(v, 6) for c, v in row.numbers.items()},
        }
        for row in rows
    ]
    return {"checkpoints": known, "correlations": list(_told(rows))}


def _told(rows: Sequence[Checkpoint]) -> Iterator[dict[str, object]]:
    for y, x, how in product(outcomes(rows), (*PREDICTORS, *UPPER_BOUNDS), COEFFICIENTS):
        for within, found in correlation(rows, x, y, how).items():
            if found is not None:
                ends = [None if v is None else round(v, 6) for v in (found.value, found.lo, found.hi)]
                told = {"predictor": x, "outcome": y, "coefficient": how, "within": within}
                yield {**told, "value": ends, "n": found.n, "seeds": found.clusters, "above_zero": found.positive}
