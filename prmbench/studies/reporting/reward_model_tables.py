"""Tables of the reward model study: claims, F1 under two rules, best-of-N, calibration, recipes; also CSV and JSON.

Every cell is a mean over seeds with its 95% t-interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from prmbench.metrics.equivalence import ALPHA, VERDICT_TEXT, VERDICTS
from prmbench.report.stats import Mean, mean, paired
from prmbench.studies.reporting.reward_model_claims import CLAIMS, Claim, missing
from prmbench.studies.reporting.reward_model_runs import (
    PREFIX_MEAN_READOUTS,
    PREFIX_READOUTS,
    PROCESS_READOUTS,
    RECIPE_FIELDS,
    SHIFTS,
    BySeed,
    Study,
    chance,
    own_readouts,
)
from prmbench.tasks.calibration import COLUMNS as CALIBRATION
from prmbench.tasks.calibration import LOWER_IS_BETTER, UNRANKED
from prmbench.tasks.table import DASH, FRACTION, NOTED, PERCENT, POINTS, Code, Row, Table, Unit, Value, has_mark

READINGS = {"process level": PROCESS_READOUTS, "prefix mean": PREFIX_MEAN_READOUTS, "prefix": PREFIX_READOUTS}
"""The first is that of the paper's main table; claims are tested on it."""
RULE_WORDS = {
    "calibrated": "threshold tuned on val and applied to the other subsets",
    "oracle": "threshold tuned on the very traces that are scored: an upper bound",
}
TIED_TEXT = (
    "Bold: the best method of a reading, and those that a paired t-test over the seeds does not tell apart from it at "
    "5% (unadjusted)."
)
SHIFT_COLUMNS = "mean of shifts", "change under shifts"


def grids(study: Study, claims: Sequence[Claim], withdrawn: str = "") -> tuple[Table, ...]:
    """Returns all tables of a study that have values, the claims first.

    Args:
        study: The runs.
        claims: The comparisons.
        withdrawn: A sentence on claims that are withdrawn, beneath the tables of claims.
    """
    candidates = [
        _answers(study, claims, withdrawn),
        *(_f1(study, rule) for rule in RULE_WORDS),
        _best_of_n(study),
        _calibration(study),
        _comparisons(claims, withdrawn),
        _recipes(study),
    ]
    return tuple(grid for grid in candidates if any(grid.groups))


# --- answers ------------------------------------------------------------------------------------------------


def _answers(study: Study, claims: Sequence[Claim], withdrawn: str) -> Table:
    groups: list[tuple[Row, ...]] = []
    for constants in ("tuned", "paper"):
        rows = []
        for source, words in CLAIMS.items():
            family = [c for c in claims if (c.source, c.constants) == (source, constants)]
            if family:
                counts = [Value(sum(c.verdict == answer for c in family), "count") for answer in VERDICTS]
                confirmed = sum(c.adjusted_verdict == c.verdict != "unclear" for c in family)
                rows.append((source, words, constants, *counts, Value(len(family), "count"), Value(confirmed, "count")))
        groups += [tuple(rows)] * bool(rows)
    notes = [withdrawn] if withdrawn and groups else []
    notes += [f"{source}, {CLAIMS[source]}: not asked, {why}." for source, why in missing(study).items()]
    return Table(
        label="study-answers",
        title="Do the paper's claims hold here?",
        caption=f"{len(study.seeds)} seeds, each a separate world; methods are compared within worlds, by paired "
        f"t-tests. Verdicts: {VERDICT_TEXT}. After Holm: verdicts that stay when the p-values of all comparisons of "
        "the row are adjusted, those against 0 and those of equivalence each among themselves.",
        header=("Table", "Claim", "Constants", *(v.capitalize() for v in VERDICTS), "Comparisons", "After Holm"),
        groups=tuple(groups),
        notes=tuple(notes),
        text_columns=3,
    )


def _comparisons(claims: Sequence[Claim], withdrawn: str) -> Table:
    keys = dict.fromkeys((c.source, c.constants) for c in claims)
    return Table(
        label="study-comparisons",
        title="Every comparison",
        caption="Difference of the means over common seeds in percentage points with its 95% t-interval; above zero "
        "agrees with the paper. p: two-sided paired t-test; Holm: adjusted for the table's comparisons with the same "
        "constants. Margin: a difference within it counts as none; p equivalent: of the two one-sided tests that it "
        "is, then adjusted. Detectable: the smallest true difference that a test finds with power 0.80, given this "
        "spread. F1 is process level, threshold calibrated; best of N by each method's own prefix value at the end.",
        header=(
            "Table",
            "Constants",
            "Comparison",
            "Where",
            "Answer",
            "After Holm",
            "Difference",
            "Seeds above 0",
            "p",
            "Holm",
            "Margin",
            "p equivalent",
            "Holm equivalent",
            "Detectable",
        ),
        groups=tuple(tuple(_comparison(c) for c in claims if (c.source, c.constants) == key) for key in keys),
        notes=(*([withdrawn] if withdrawn else []), f"{len(claims)} comparisons in all.") if claims else (),
        text_columns=6,
    )


def _comparison(claim: Claim) -> Row:
    return (
        *(claim.source, claim.constants, claim.comparison, claim.where, claim.verdict, claim.adjusted_verdict),
        mean_value(Mean(claim.difference, claim.lo, claim.hi, claim.n), POINTS),
        Value(claim.positive, "count", suffix=f" of {claim.n}"),
        Value(claim.p, "p"),
        Value(claim.holm, "p"),
        Value(claim.margin.value),
        Value(claim.equivalence_p, "p"),
        Value(claim.equivalence_holm, "p"),
        Value(claim.mdd),
    )


# --- means ----------------------------------------------------------------------------------------------------


def mean_value(mean: Mean | None, unit: Unit, seeds: int = 0, is_best: bool = False) -> Value:
    """Returns a mean over seeds as a table value, marked if it is of fewer seeds than the study has."""
    if mean is None:
        return Value(None, unit)
    return Value(mean.value, unit, mean.lo, mean.hi, is_best, NOTED * (mean.n < seeds))


def over_seeds(values: BySeed) -> Mean | None:
    """Returns the mean over seeds with its interval; None without values."""
    return mean(list(values.values())) if values else None


def f1_columns(study: Study, method: str, readouts: Sequence[str], rule: str) -> dict[str, Mean | None]:
    """Returns F1 by subset, and with it the mean over the shifted formats and the change from the sampled format."""
    return {name: over_seeds(values) for name, values in _f1_by_seed(study, method, readouts, rule).items()}


def _f1_by_seed(study: Study, method: str, readouts: Sequence[str], rule: str) -> dict[str, BySeed]:
    by_subset = {name: study.f1(method, readouts, (name,), rule) for name in study.subsets("steps")}
    shifts, change = study.f1(method, readouts, SHIFTS, rule), study.change(method, readouts, rule)
    return by_subset | dict(zip(SHIFT_COLUMNS, (shifts, change), strict=True))


def _table(study: Study, lines: Sequence[tuple[Row, dict[str, BySeed]]], units: dict[str, Unit]) -> tuple[Row, ...]:
    """Returns rows of means over seeds, with the best of each column and what is tied with it in bold."""
    tied: dict[str, set[int]] = {name: set() for name in UNRANKED}
    for name in units:
        if name not in UNRANKED:
            tied[name] = _tied([cells.get(name) or {} for _, cells in lines], name in LOWER_IS_BETTER)
    seeds = len(study.seeds)
    return tuple(
        (
            *names,
            *(
                mean_value(over_seeds(cells.get(name) or {}), unit, seeds, at in tied[name])
                for name, unit in units.items()
            ),
        )
        for at, (names, cells) in enumerate(lines)
    )


def _tied(column: Sequence[BySeed], lower_is_better: bool) -> set[int]:
    """Returns the positions of the best mean and of those that a paired t-test over seeds does not tell apart from it.

    With one seed nothing can be tested, and only the best is returned; of fewer than two methods none.
    """
    means = {at: values.value for at, seeds in enumerate(column) if (values := over_seeds(seeds)) is not None}
    if len(means) < 2:  # noqa: PLR2004 - nothing to be better than
        return set()
    best = (min if lower_is_better else max)(means, key=lambda at: means[at])
    tests = {at: paired(column[best], column[at]) for at in means}
    p_values = {at: test.p for at, test in tests.items() if test is not None and test.p is not None}
    return {best, *(at for at, p in p_values.items() if p >= ALPHA), *(at for at in means if means[at] == means[best])}


def _fewer(study: Study, groups: Sequence[Sequence[Row]]) -> tuple[str, ...]:
    return (f"{NOTED} from fewer than {len(study.seeds)} seeds.",) * has_mark(groups, NOTED)


def _f1(study: Study, rule: str) -> Table:
    subsets = study.subsets("steps")
    units = dict.fromkeys(subsets, PERCENT) | {SHIFT_COLUMNS[0]: PERCENT, SHIFT_COLUMNS[1]: POINTS}
    groups = []
    for name, readouts in READINGS.items():
        lines = []
        for method in study.methods:
            readout = study.first_readout("steps", method, readouts)
            if readout:
                lines.append(((method, name, Code(readout)), _f1_by_seed(study, method, readouts, rule)))
        groups.append(_table(study, lines, units))
    floor = _floor(study, subsets, units, rule)
    groups = [group for group in (*groups, floor) if group]
    return Table(
        label=f"study-f1-{rule}",
        title=f"First-error F1, {rule}",
        caption=f"Mean over {len(study.seeds)} seeds with its 95% t-interval, percent; {RULE_WORDS[rule]}. "
        f"Shifts: {', '.join(SHIFTS)}: the on-policy traces in other formats. Change: mean of shifts minus onpolicy. "
        f"{TIED_TEXT}",
        header=("Method", "Reading", "Readout", *(_heading(study, name) for name in units)),
        groups=tuple(groups),
        notes=_fewer(study, groups),
        text_columns=3,
    )


def _heading(study: Study, subset: str) -> str:
    size = study.sizes().get(subset)
    return f"{subset} (n={size})" if size else subset


def _floor(study: Study, subsets: Sequence[str], units: dict[str, Unit], rule: str) -> tuple[Row, ...]:
    """Returns the row of random scores under the same rule, which depend on the traces alone, not on a method."""
    cells: dict[str, BySeed] = {}
    for subset in subsets:
        by_seed: BySeed = {}
        for method in study.methods:
            by_seed |= study.by_seed("steps", method, chance(rule), (subset,))
        cells[subset] = by_seed
    if not any(cells.values()):
        return ()
    return _table(study, [(("random scores", "", Code(chance(rule)[0])), cells)], units)


def _best_of_n(study: Study) -> Table:
    sizes = study.group_sizes()
    units: dict[str, Unit] = {
        f"{m}@{n}": POINTS if m == "gain" else PERCENT for m in ("best_of", "weighted_vote", "gain") for n in sizes
    }
    groups = []
    for words, read in (
        ("own value", own_readouts),
        ("prefix sum", lambda _: PREFIX_READOUTS),
        ("prefix mean", lambda _: PREFIX_MEAN_READOUTS),
    ):
        lines = []
        for method in study.methods:
            readout = study.first_readout("best_of_n", method, read(method))
            if readout:
                cells = {name: _by_seed(study, "best_of_n", method, (readout, "last", name)) for name in units}
                lines.append(((method, words, Code(f"{readout}/last")), cells))
        groups.append(_table(study, lines, units))
    groups = [group for group in (*groups, _bon_floors(study, units)) if group]
    return Table(
        label="study-best-of-n",
        title="Best of N",
        caption="Accuracy of the completion picked among N by its score at the last step, percent; mean over seeds "
        "with its 95% t-interval. Own value: the prefix mean for IPVRM and Q-RM, which are trained on means, "
        f"else the prefix sum. Gain: over a random completion. {TIED_TEXT}",
        header=("Method", "Reading", "Readout", *units),
        groups=tuple(groups),
        notes=_fewer(study, groups),
        text_columns=3,
    )


def _by_seed(study: Study, task: str, method: str, how: tuple[str, str, str]) -> BySeed:
    return study.by_seed(task, method, how, study.subsets(task))


def _bon_floors(study: Study, units: dict[str, Unit]) -> tuple[Row, ...]:
    lines: list[Row] = []
    for words, name in (("random completion", "random"), ("majority vote", "majority"), ("any of N right", "pass")):
        cells: dict[str, BySeed] = {}
        for column in units:
            n = column.partition("@")[2]
            metric = "accuracy" if name == "random" else f"{name}@{n}"
            if column.startswith("best_of@"):
                by_seed: BySeed = {}
                for method in study.methods:
                    how = f"floor/{name}", "floor", metric
                    by_seed |= study.by_seed("best_of_n", method, how, study.subsets("best_of_n"))
                cells[column] = by_seed
        if any(cells.values()):
            lines += _table(study, [((words, "", Code(f"floor/{name}")), cells)], units)
    return tuple(lines)


def _calibration(study: Study) -> Table:
    groups = []
    for rules, words in ((("sigmoid", "identity"), "as read"), (("platt",), "Platt-scaled")):
        lines = []
        for method in study.methods:
            readout = study.first_readout("calibration", method, own_readouts(method))
            for rule in rules:
                cells = {name: _by_seed(study, "calibration", method, (readout, rule, name)) for name in CALIBRATION}
                if readout and any(cells.values()):
                    lines.append(((method, words, Code(f"{readout}/{rule}")), cells))
        groups.append(_table(study, lines, dict.fromkeys(CALIBRATION, FRACTION)))
    groups = [group for group in groups if group]
    return Table(
        label="study-calibration",
        title="Prefix values as probabilities",
        caption="Each method's own prefix value against the success of sampled continuations from the same prefix; "
        "mean over seeds with its 95% t-interval. Platt: fitted on one half of the problems, judged on the other. "
        f"{TIED_TEXT}",
        header=("Method", "Probability", "Protocol", *CALIBRATION.values()),
        groups=tuple(groups),
        notes=_fewer(study, groups),
        text_columns=3,
    )


def _recipes(study: Study) -> Table:
    names = {name for recipe in study.recipes.values() for name in recipe}
    fields = [name for name in RECIPE_FIELDS if name in names] + sorted(names - set(RECIPE_FIELDS))
    rows = tuple((m, *(study.recipes[m].get(name, DASH) for name in fields)) for m in study.methods)
    return Table(
        label="study-recipes",
        title="Recipes",
        caption="How each method was trained; all methods of a seed have the same data and number of steps.",
        header=("Method", *fields),
        groups=(rows,) if fields else (),
        text_columns=1,
    )


# --- files ----------------------------------------------------------------------------------------------------


def csv(study: Study) -> str:
    """Returns every number of the study as CSV: one row per method, seed, subset, protocol and metric; six decimals."""
    table = study.table.drop(columns=["rule", "readout"])
    table["value"] = [f"{v:.6f}" if v == v else "" for v in table["value"].astype(float)]  # noqa: PLR0124 - nan
    return str(table.to_csv(index=False, lineterminator="\n"))


def numbers(study: Study, claims: Sequence[Claim]) -> dict[str, object]:
    """Returns means over seeds and the claims, as fractions, for JSON."""
    means: dict[str, dict[str, list[object]]] = {}
    for (task, method, readout, rule, metric, subset), values in sorted(study.values.items()):
        average = mean(list(values.values()))
        rounded = [None if v is None else round(v, 6) for v in (average.value, average.lo, average.hi)]
        name = readout if rule == "floor" else f"{readout}/{rule}"
        means.setdefault(f"{task} {method}", {})[f"{subset} {name} {metric}"] = [*rounded, average.n]
    claim_records = [_claim_record(claim) for claim in claims]
    return {"seeds": list(study.seeds), "recipes": study.recipes, "means": means, "claims": claim_records}


def _claim_record(claim: Claim) -> dict[str, object]:
    fields = {**asdict(claim), "margin": claim.margin.value}
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}
    return {**rounded, "verdict": claim.verdict, "adjusted_verdict": claim.adjusted_verdict}
