"""Tables of an RL study: claims, accuracy before and after, arms against GRPO, monitors, options; also CSV and JSON.

Every cell is an estimate of nested_seeds.py. The table of the reward models before RL is in probe_models.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean, median

import pandas as pd

from prmbench.metrics.equivalence import VERDICT_TEXT, VERDICTS
from prmbench.studies.reporting.nested_seeds import INTERVALS_NOTE, Estimate, difference, estimate
from prmbench.studies.reporting.policy_claims import CLAIMS, IPVRM, POLICY_MARGIN, Answer, compare_with_grpo
from prmbench.studies.reporting.policy_runs import (
    BASE_ARM,
    ArmRun,
    RLStudy,
    first_quarter_mean,
    last_quarter_mean,
    truncated_shares,
)
from prmbench.studies.reporting.reward_model_runs import Study
from prmbench.studies.reporting.variance_components import design
from prmbench.tasks.table import DASH, FRACTION, NOTED, PERCENT, POINTS, Row, Table, TableCell, Unit, Value, has_mark

GOAL = 0.007
"""The difference of accuracy that the main comparison ought to detect."""
MANY_SEEDS = 10**6
"""RL seeds that leave nothing of their own variance."""
OPTION_COLUMNS = (
    *("reward", "rm_loss", "rm_beta", "rm_margin", "rm_update", "reference", "adb", "dlw"),
    *("alpha", "gae_weight", "step_weight", "p_min", "credit", "group_size", "prompts"),
    *("learning_rate", "rm_learning_rate", "steps"),
)
"""Options that distinguish arms."""
MONITOR_COLUMNS: dict[str, tuple[str, Callable[[Sequence[float]], float], Unit]] = {
    "right rollouts": ("accuracy", fmean, PERCENT),
    "RM accuracy, early": ("rm_accuracy", first_quarter_mean, PERCENT),
    "RM accuracy, late": ("rm_accuracy", last_quarter_mean, PERCENT),
    "RM score": ("rm_score", fmean, FRACTION),
    "RM gap, late": ("rm_gap", last_quarter_mean, FRACTION),
    "entropy, late": ("entropy", last_quarter_mean, FRACTION),
    "KL to SFT, last": ("kl_sft", lambda v: v[-1], FRACTION),
    "tokens, late": ("length", last_quarter_mean, "number"),
    "steps, late": ("step_count", last_quarter_mean, FRACTION),
    "GAE / outcome": ("gae_outcome_ratio", fmean, FRACTION),
    "candidates": ("candidates", fmean, FRACTION),
    "mass": ("candidate_mass", fmean, PERCENT),
    "seconds": ("seconds", median, FRACTION),
    "GiB": ("memory_gib", max, FRACTION),
}
"""Column -> (monitor, function of its values over steps, number format)."""
SINGLE = (
    f"{NOTED} one SFT seed: the interval is over its RL seeds and problems, "
    "and does not cover variation between SFT seeds."
)


def grids(study: RLStudy, answered: Sequence[Answer]) -> tuple[Table, ...]:
    """Returns all tables, the claims first; some may be empty."""
    return (
        *(answers_grid(answered), before_after(study), arms_grid(study), power(study)),
        *(comparisons(answered), monitors(study)),
    )


# --- answers ------------------------------------------------------------------------------------------------


def answers_grid(answered: Sequence[Answer]) -> Table:
    """Returns the table of claims with their numbers of verdicts of each kind."""
    groups: list[tuple[Row, ...]] = []
    for panel in dict.fromkeys(a.panel for a in answered):
        rows: list[Row] = []
        for source, words in CLAIMS.items():
            family = [a for a in answered if (a.source, a.panel) == (source, panel)]
            if family:
                counts = [_count(sum(a.verdict == word for a in family)) for word in VERDICTS]
                tested = [a for a in family if a.adjusted_verdict is not None]
                confirmed = sum(a.adjusted_verdict == a.verdict != "unclear" for a in tested)
                left = Value(confirmed, "count", suffix=f" of {len(tested)}") if tested else Value(None)
                rows.append((source, words, panel or DASH, *counts, _count(len(family)), left))
        groups.append(tuple(rows))
    tested_sources = {a.source for a in answered}
    return Table(
        label="rl-answers",
        title="Do the paper's claims hold here?",
        caption=f"Verdicts on differences that a claim puts above 0: {VERDICT_TEXT}. On those for which the comparison "
        "names other bounds: yes, within them (between two bounds by the 90% interval, past one by the 95% interval); "
        "no: the 95% interval lies outside; else unclear. After Holm: verdicts that stay when the p-values of all "
        "comparisons of the row are adjusted, those against 0 and those of equivalence each among themselves.",
        header=("Source", "Claim", "Panel", *(v.capitalize() for v in VERDICTS), "Comparisons", "After Holm"),
        groups=tuple(group for group in groups if group),
        notes=tuple(
            f"{source}, {words}: not tested, there are no runs for it." for source, words in _untested(tested_sources)
        ),
        text_columns=3,
    )


def _untested(tested_sources: set[str]) -> list[tuple[str, str]]:
    return [(source, words) for source, words in CLAIMS.items() if source not in tested_sources]


def comparisons(answered: Sequence[Answer]) -> Table:
    """Returns the table of every comparison."""
    keys = dict.fromkeys((a.source, a.panel) for a in answered)
    groups = tuple(tuple(_comparison(a) for a in answered if (a.source, a.panel) == key) for key in keys)
    return Table(
        label="rl-comparisons",
        title="Every comparison",
        caption="Paired by SFT seed, RL seed and, for accuracies, problem; in percentage points, or in the quantity's "
        "own unit where it is not a share. Intervals as in the tables of arms. p is two-sided against 0 and given "
        "where the bound is 0. Margin: a difference within it counts as none; p equivalent: of the one-sided tests "
        "that it is, or that it lies between two bounds that the claim names.",
        header=(
            *("Source", "Panel", "Comparison", "Where", "Answer", "After Holm", "Bounds"),
            *("Estimate", "Runs above 0", "p", "Holm", "Margin", "p equivalent", "Holm equivalent", "Detectable"),
        ),
        groups=groups,
        notes=((f"{len(answered)} comparisons in all.",) if answered else ()) + _single(groups),
        text_columns=7,
    )


def _count(number: int) -> Value:
    return Value(number, "count")


def _comparison(a: Answer) -> Row:
    estimate = a.estimate
    return (
        *(a.source, a.panel or DASH, a.comparison, a.where, a.verdict, a.adjusted_verdict or DASH, a.bounds),
        estimate_value(estimate, a.unit),
        Value(estimate.positive, "count", suffix=f" of {estimate.runs}"),
        Value(estimate.p if a.tested else None, "p"),
        Value(a.holm, "p"),
        Value(a.margin.value if a.margin is not None and a.tested else None),
        Value(a.equivalence_p, "p"),
        Value(a.equivalence_holm, "p"),
        Value(estimate.mdd, FRACTION if a.unit == FRACTION else PERCENT),
    )


# --- what the main comparison can detect ----------------------------------------------------------------------


def power(study: RLStudy) -> Table:
    """Returns the table of what DistRL with IPVRM against GRPO can detect, and why."""
    rows = tuple(row for panel in study.panels if (row := _power_row(study, panel)))
    return Table(
        label="rl-power",
        title="What the main comparison can detect",
        caption=(
            f"{IPVRM} minus {BASE_ARM} in {study.metric} after training, percentage points. SD: square roots of the "
            "variance components of the paired difference by world, RL seed in a world, problem in a world, and the "
            "rest (RL seed x problem), method of moments. Detectable: the smallest true difference that a t-test over "
            "worlds finds at 5% with power 0.80, with these components; limit: with these worlds and any "
            "number of RL seeds. Worlds for: how many such worlds the goal needs with as many seeds as here."
        ),
        header=(
            *("Panel", "Worlds", "RL seeds", "Problems", "SD world", "SD RL seed", "SD problem", "SD rest"),
            *("Detectable", "Limit in RL seeds", f"Worlds for {100 * GOAL:g}", "Goal"),
        ),
        groups=(rows,) if rows else (),
    )


def _power_row(study: RLStudy, panel: str) -> Row:
    runs = difference(study.accuracy(panel, IPVRM, -1), study.accuracy(panel, BASE_ARM, -1))
    spread = design(runs)
    if spread is None:
        return ()
    variances = (spread.world_variance, spread.seed_variance, spread.problem_variance, spread.rest_variance)
    detectable = spread.detectable(spread.worlds, spread.seeds)
    reached = "reached" if detectable <= GOAL else "not reached: worlds differ, or are too few"
    return (
        *(panel or DASH, _count(spread.worlds), _count(spread.seeds), _count(spread.problems)),
        *(Value(math.sqrt(variance), PERCENT) for variance in variances),
        *(Value(detectable, PERCENT), Value(spread.detectable(spread.worlds, MANY_SEEDS), PERCENT)),
        *(Value(spread.worlds_for(GOAL, spread.seeds), "count"), reached),
    )


# --- arms -----------------------------------------------------------------------------------------------------


def before_after(study: RLStudy) -> Table:
    """Returns the table of each arm's accuracy before and after training, as in the paper's Table 5."""
    groups = tuple(tuple(_policy(study, panel, arm) for arm in study.arms(panel)) for panel in study.panels)
    return Table(
        label="rl-policies",
        title="Policies before and after training",
        caption=f"{study.metric} on the validation problems, percent; gain in percentage points. {INTERVALS_NOTE}",
        header=("Panel", "Arm", "SFT seeds", "Runs", "Before", "After", "Gain", "Cut before", "Cut after"),
        groups=groups,
        notes=(*_single(groups), *_alone(study)),
        text_columns=2,
    )


def _policy(study: RLStudy, panel: str, arm: str) -> Row:
    before = estimate(study.accuracy(panel, arm, 0))
    trained = any(len(t.steps) > 1 for t in study.of(panel, arm))
    last = estimate(study.accuracy(panel, arm, -1)) if trained else None
    cut = [estimate(truncated_shares(study, panel, arm, at)) for at in (0, -1)]
    return (
        panel or DASH,
        arm,
        *((_count(before.sft_seeds), _count(before.runs)) if before else (_count(0), _count(0))),
        estimate_value(before, PERCENT),
        estimate_value(last, PERCENT),
        estimate_value(estimate(study.gain(panel, arm)), POINTS),
        Value(cut[0].value if cut[0] else None),
        Value(cut[1].value if cut[1] and trained else None),
    )


def _alone(study: RLStudy) -> tuple[str, ...]:
    """Returns a note that names the arms without training."""
    names = sorted({t.arm for t in study.trained if len(t.steps) == 1})
    return (f"Validated once, without training: {', '.join(names)}.",) if names else ()


def arms_grid(study: RLStudy) -> Table:
    """Returns the table of each arm's last accuracy minus GRPO's."""
    groups = []
    for panel in study.panels:
        rows = [
            (
                panel or DASH,
                arm,
                _count(estimate.sft_seeds),
                _count(estimate.runs),
                estimate_value(estimate, POINTS),
                Value(estimate.positive, "count", suffix=f" of {estimate.runs}"),
                Value(estimate.p, "p"),
                Value(adjusted, "p"),
                answer,
                Value(estimate.mdd),
            )
            for arm, (estimate, adjusted, answer) in compare_with_grpo(study, panel).items()
        ]
        groups.append(tuple(rows))
    nonempty_groups = tuple(group for group in groups if group)
    return Table(
        label="rl-arms",
        title=f"Arms against {BASE_ARM}",
        caption=f"{study.metric} after training minus that of {BASE_ARM}, paired by SFT seed, RL seed and problem; "
        f"percentage points. {INTERVALS_NOTE} Holm: p adjusted for all arms of the panel. Better, after "
        f"Holm, with a margin of {POLICY_MARGIN.text}: {VERDICT_TEXT}. Detectable: the smallest "
        "true difference that a test finds with power 0.80, given this spread.",
        header=(
            *("Panel", "Arm", "SFT seeds", "Runs", f"Minus {BASE_ARM}", "Runs above 0"),
            *("p", "Holm", "Better", "Detectable"),
        ),
        groups=nonempty_groups,
        notes=_single(nonempty_groups),
        text_columns=2,
    )


def estimate_value(estimate: Estimate | None, unit: Unit) -> Value:
    """Returns `91.2 [88.0, 94.1]`, with a dagger when of one SFT seed only."""
    if estimate is None:
        return Value(None, unit)
    return Value(estimate.value, unit, estimate.lo, estimate.hi, marks=NOTED * estimate.has_single_sft_seed)


def _single(groups: Sequence[Sequence[Row]]) -> tuple[str, ...]:
    return (SINGLE,) * has_mark(groups, NOTED)


# --- monitors ---------------------------------------------------------------------------------------------------


def monitors(study: RLStudy) -> Table:
    """Returns the table of monitored values, means over runs; monitors that no run recorded are left out."""
    cells_by_arm = {
        (panel, arm): {
            name: estimate(study.monitor_summaries(panel, arm, *how[:2])) for name, how in MONITOR_COLUMNS.items()
        }
        for panel in study.panels
        for arm in study.arms(panel)
    }
    columns = [name for name in MONITOR_COLUMNS if any(cells[name] for cells in cells_by_arm.values())]
    groups: list[tuple[Row, ...]] = []
    for panel in study.panels:
        rows: list[Row] = []
        for arm in study.arms(panel):
            cells = cells_by_arm[panel, arm]
            if any(cells.values()):
                values = [Value(e.value if (e := cells[n]) else None, MONITOR_COLUMNS[n][2]) for n in columns]
                rows.append((panel or DASH, arm, *values, alarms(study.of(panel, arm))))
        groups.append(tuple(rows))
    return Table(
        label="rl-monitors",
        title="Monitors of training",
        caption="Means over SFT seeds of means over RL seeds; over all steps of a run, or its first (early) or last "
        "(late) quarter. Right rollouts, RM accuracy and mass in percent; entropy and KL in nats per token. RM gap: "
        "the reward model's mean probability of being right minus the share that is. Seconds: median time of a step, "
        "which depends on the machine. Alarms: number of runs that raised each.",
        header=("Panel", "Arm", *columns, "alarms"),
        groups=tuple(group for group in groups if group),
        text_columns=2,
    )


def alarms(runs: Sequence[ArmRun]) -> str:
    """Returns the numbers of runs that raised each alarm at least once: `entropy 3, length 1`."""
    raised = Counter(name for t in runs for name in sorted({a for line in t.lines for a in line.get("alarms") or ()}))
    return ", ".join(f"{name} {raised[name]}" for name in sorted(raised)) or DASH


def options_grid(study: RLStudy) -> Table:
    """Returns the table of each arm's options; options that no run recorded are left out."""
    arms = list(dict.fromkeys((t.panel, t.arm) for t in study.trained))
    values = {key: {option: _option_text(study.of(*key), option) for option in OPTION_COLUMNS} for key in arms}
    columns = [option for option in OPTION_COLUMNS if any(cells[option] != DASH for cells in values.values())]
    rows: dict[tuple[TableCell, ...], list[str]] = {}
    for panel, arm in arms:
        rows.setdefault((arm, *(values[panel, arm][option] for option in columns)), []).append(panel or DASH)
    lines = tuple((" ".join(panels), *row) for row, panels in rows.items())
    return Table(
        label="rl-options",
        title="Options of the arms",
        caption="How each arm was trained, as its runs recorded it.",
        header=("Panel", "Arm", *columns),
        groups=(lines,) if columns and lines else (),
        text_columns=2,
    )


def _option_text(runs: Sequence[ArmRun], name: str) -> str:
    texts = {_text(t.run.result.manifest.config.get(name)) for t in runs}
    return texts.pop() if len(texts) == 1 else "varies"


def _text(value: object) -> str:
    if value is None or value == "":
        return DASH
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- files ----------------------------------------------------------------------------------------------------


def csv(study: RLStudy, probes: Study) -> str:
    """Returns every row of every RL run and of the probes as CSV; six decimals."""
    lines: list[tuple[object, ...]] = [
        (m.model, t.panel, t.arm, *t.seeds, m.run_id, row.subset, row.protocol, row.metric, row.value)
        for t in study.trained
        for m in [t.run.result.manifest]
        for row in t.run.result.rows
    ]
    lines += [
        (x.method, "", "", x.seed, "", x.run_id, x.subset, x.protocol, x.metric, x.value)
        for x in probes.table.itertuples()
    ]
    names = ("model", "panel", "arm", "sft_seed", "rl_seed", "run_id", "subset", "protocol", "metric", "value")
    table = pd.DataFrame(lines, columns=list(names))
    table["value"] = [f"{v:.6f}" if v == v else "" for v in table["value"].astype(float)]  # noqa: PLR0124 - nan
    return str(table.to_csv(index=False, lineterminator="\n"))


def numbers(study: RLStudy, answered: Sequence[Answer]) -> dict[str, object]:
    """Returns arms and answers as fractions with six decimals, for JSON."""
    arms = {}
    for panel in study.panels:
        against_grpo = compare_with_grpo(study, panel)
        for arm in study.arms(panel):
            estimates = {
                "before": estimate(study.accuracy(panel, arm, 0)),
                "after": estimate(study.accuracy(panel, arm, -1)),
                "gain": estimate(study.gain(panel, arm)),
                f"minus_{BASE_ARM}": against_grpo[arm][0] if arm in against_grpo else None,
            }
            arms[f"{panel} {arm}".strip()] = {k: _rounded(asdict(e)) for k, e in estimates.items() if e is not None}
    answer_records = [_answer_record(answer) for answer in answered]
    return {"metric": study.metric, "arms": arms, "answers": answer_records}


def _answer_record(answer: Answer) -> dict[str, object]:
    """The answer for JSON, whose bounds are a text because infinity is no number there."""
    fields = {k: v for k, v in asdict(answer).items() if k not in ("low", "high")}
    return {
        **_rounded(fields),
        "estimate": _rounded(asdict(answer.estimate)),
        "margin": None if answer.margin is None else answer.margin.value,
        "verdict": answer.verdict,
        "adjusted_verdict": answer.adjusted_verdict,
    }


def _rounded(values: dict[str, object]) -> dict[str, object]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
