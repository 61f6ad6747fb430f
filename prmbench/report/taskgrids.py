"""Rows of best-of-N, policy and calibration runs -> tables as text. Ranks and lays out; computes no metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.report.blocks import (
    PERCENT,
    PLAIN,
    SIGNED,
    Block,
    blocks,
    candidate,
    group_size,
    prefixes,
    problem,
    remarks,
    rows_of,
    text,
    top_value,
)
from prmbench.report.frame import model_name, rule_and_readout
from prmbench.report.tables import Grid

AGGREGATIONS: dict[str, str] = {
    "last": "the score of the last step",
    "min": "the lowest score of any step",
    "mean": "the mean over the steps",
    "prod": "the product of the steps' probabilities (sigmoid of beta times the score)",
    "sum": "the sum over the steps",
}
BON_FLOORS = {
    "accuracy": ("floor/random", "random: mean accuracy"),
    "majority": ("floor/majority", "majority vote, no model"),
    "pass": ("floor/pass", "ceiling: any of N is right"),
}


def sizes_of(runs: Sequence[Run]) -> list[int]:
    """Every N of best-of-N."""
    metrics = {row.metric for run in runs for row in run.result.rows if row.metric.startswith("best_of@")}
    return sorted(n for n in map(group_size, metrics) if n is not None)


# --- best of N ------------------------------------------------------------------------------------------------


def best_of_n(runs: Sequence[Run]) -> tuple[Grid, ...]:
    """A table per aggregation: models by readout, then the floors, for each set of completions."""
    rules = {rule_and_readout(row.protocol, "best_of_n")[0] for run in runs for row in run.result.rows} - {"floor"}
    order = sorted(rules, key=_aggregation_rank)
    found = blocks(runs, candidate)
    return tuple(_aggregation(rule, found, sizes_of(runs)) for rule in order)


def _aggregation_rank(rule: str) -> tuple[int, str]:
    known = list(AGGREGATIONS)
    return known.index(_plain(rule)) if _plain(rule) in known else len(known), rule


def _plain(rule: str) -> str:
    return rule.partition("@")[0]


def _aggregation(rule: str, found: Sequence[Block], sizes: Sequence[int]) -> Grid:
    metrics = [f"{name}@{n}" for name in ("best_of", "weighted_vote", "gain") for n in sizes]
    words = AGGREGATIONS.get(_plain(rule), rule)
    return Grid(
        label=f"best_of_n-{rule}",
        title=f"Aggregation: {rule}",
        caption=f"A completion's score is {words}. Expected accuracy over all choices of N completions, percent, with "
        "its 95% interval over problems; gain: best_of@N minus the accuracy of a random completion, paired.",
        header=("Completions", "Model", "Readout", *metrics),
        groups=tuple(_bon_group(rule, block, metrics, sizes) for block in found),
        notes=remarks(
            row
            for block in found
            for run in block.runs
            for (protocol, _), row in rows_of(run.result, block.subset).items()
            if protocol.startswith("floor/") or rule_and_readout(protocol, "best_of_n")[0] == rule
        ),
        text_columns=3,
    )


def _bon_group(rule: str, block: Block, metrics: Sequence[str], sizes: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    lines = []
    for run in block.runs:
        rows = rows_of(run.result, block.subset)
        for protocol in dict.fromkeys(protocol for protocol, _ in rows):
            found, readout = rule_and_readout(protocol, "best_of_n")
            if found == rule:
                lines.append((model_name(run.result.manifest), readout, {m: rows.get((protocol, m)) for m in metrics}))
    top = f"best_of@{sizes[-1]}"
    lines.sort(key=lambda line: (-_value(line[2][top]), line[0], line[1]))
    best = {m: top_value([cells[m] for _, _, cells in lines]) for m in metrics}
    shown = [
        (
            *(block.name, model, f"`{readout}`"),
            *(text(row, SIGNED if m.startswith("gain") else PERCENT, _is(row, best[m])) for m, row in cells.items()),
        )
        for model, readout, cells in lines
    ]
    return (*shown, *_bon_floors(block, metrics))


@dataclass(frozen=True, slots=True)
class BestPick:
    """One line of a best-of-N table: a model under a protocol, and what its completions reach without a model."""

    completions: str
    """Name of the block: which completions, and how many."""
    model: str
    readout: str
    aggregation: str
    row: MetricRow
    """best_of@N for the largest N."""
    floors: tuple[tuple[str, MetricRow], ...]
    """(`floor/majority`, its row) for the same completions and the same N."""


def best_pick(runs: Sequence[Run]) -> BestPick | None:
    """The model that picks best, each under the one aggregation that its own kind of score is meant for.

    That is the last step's score, and of critics the mean of their votes: the first of `AGGREGATIONS` that a model has.
    On the average over all completions where there is one; baselines only where there is nothing else.
    """
    ordered = sorted(blocks(runs, candidate), key=lambda block: not block.subset.startswith("avg["))
    for is_baseline in (False, True):
        for block in ordered:
            kept = [run for run in block.runs if (run.result.manifest.backend == "baseline") == is_baseline]
            picks = [pick for run in kept for pick in _picks(run, block)]
            if picks:
                return min(picks, key=lambda pick: (-_value(pick.row), pick.model, pick.readout))
    return None


def _picks(run: Run, block: Block) -> Iterator[BestPick]:
    rows = rows_of(run.result, block.subset)
    sizes = [n for _, metric in rows if metric.startswith("best_of@") and (n := group_size(metric))]
    protocols = {protocol: rule_and_readout(protocol, "best_of_n") for protocol, _ in rows}
    rules = {rule for rule, _ in protocols.values()} - {"floor"}
    aggregation = min(rules, key=_aggregation_rank, default="")
    for protocol, (rule, readout) in protocols.items():
        row = rows.get((protocol, f"best_of@{max(sizes, default=0)}"))
        if rule == aggregation and row is not None and row.value is not None:
            n = group_size(row.metric)
            keys = [
                (key, metric if metric == "accuracy" else f"{metric}@{n}") for metric, (key, _) in BON_FLOORS.items()
            ]
            floors = tuple((key, rows[key, metric]) for key, metric in keys if (key, metric) in rows)
            yield BestPick(block.name, model_name(run.result.manifest), readout, rule, row, floors)


def _bon_floors(block: Block, metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """Beneath best_of@N: what N completions reach without a model, and at most."""
    rows = rows_of(block.runs[0].result, block.subset)
    shown = []
    for metric, (protocol, words) in BON_FLOORS.items():
        names = {m: metric if metric == "accuracy" else f"{metric}@{group_size(m)}" for m in metrics}
        cells = [text(rows.get((protocol, names[m]))) if m.startswith("best_of") else "" for m in metrics]
        if any(cells):
            shown.append((block.name, words, f"`{protocol}`", *cells))
    return shown


def _is(row: MetricRow | None, top: float | None) -> bool:
    return row is not None and top is not None and row.value == top


def _value(row: MetricRow | None) -> float:
    return -1.0 if row is None or row.value is None else row.value


# --- policy ---------------------------------------------------------------------------------------------------


def policy(runs: Sequence[Run]) -> tuple[Grid, ...]:
    """A table per way of sampling: metrics by model, a column per set of problems."""
    protocols = sorted(
        {row.protocol for run in runs for row in run.result.rows if not row.protocol.startswith("floor")}
    )
    return tuple(_sampling(protocol, runs) for protocol in sorted(protocols))


def _sampling(protocol: str, runs: Sequence[Run]) -> Grid:
    chosen = [run for run in runs if any(row.protocol == protocol for row in run.result.rows)]
    found = blocks(chosen, problem)
    metrics = {row.metric for run in chosen for row in run.result.rows if row.protocol == protocol}
    groups = []
    for metric in sorted(metrics, key=metric_rank):
        lines = [
            (model_name(run.result.manifest), [_in(run, block).get((protocol, metric)) for block in found])
            for run in chosen
        ]
        share = "@" not in metric
        tops = [None if share else top_value(column) for column in zip(*(cells for _, cells in lines), strict=True)]
        groups.append(
            tuple(
                (
                    metric,
                    model,
                    *(text(c, best=_is(c, top)) for c, top in zip(cells, tops, strict=True)),
                )
                for model, cells in sorted(lines, key=lambda line: line[0])
            )
        )
    rows = [row for run in chosen for row in run.result.rows if row.protocol == protocol]
    return Grid(
        label=f"policy-{protocol}",
        title=f"Policies, {protocol}",
        caption="avg@k: mean accuracy of k completions; pass@k: at least one of k is right, unbiased; majority@k: the "
        "commonest answer is right. Truncated: cut at the length limit. Unverified: the verifier gave no verdict. "
        "Percent, 95% interval over problems; an average weighs sets alike, a pooled number weighs problems alike.",
        header=("Metric", "Model", *(block.name for block in found)),
        groups=tuple(groups),
        notes=remarks(rows),
    )


def _in(run: Run, block: Block) -> dict[tuple[str, str], MetricRow]:
    return rows_of(run.result, block.subset) if run in block.runs else {}


def metric_rank(metric: str) -> tuple[int, int]:
    """Averages, pass rates by k, votes, then shares."""
    order = ("avg", "pass", "majority", "truncated", "unverified")
    name = metric.partition("@")[0]
    return order.index(name) if name in order else len(order), group_size(metric) or 0


# --- calibration ----------------------------------------------------------------------------------------------

CALIBRATION = {
    "ece": "ECE",
    "brier": "Brier",
    "auc": "AUC",
    **{f"auc_q{i}": f"AUC, quarter {i}" for i in (1, 2, 3, 4)},
    "td_outcome_correlation": "TD against outcome",
}
LOWER_IS_BETTER = ("ece", "brier")
CALIBRATION_RULES = {
    "sigmoid": ("As read", "Probabilities are the sigmoid of beta times the value, or the model's own (identity)."),
    "platt": ("Platt-scaled", "Slope and offset are fitted on one half of the problems and judged on the other."),
}


def calibration(runs: Sequence[Run]) -> tuple[Grid, ...]:
    """A table for probabilities as read, one after Platt scaling; the constant prediction beneath."""
    found = blocks(runs, prefixes)
    grids = []
    for rule, (title, words) in CALIBRATION_RULES.items():
        groups = tuple(group for block in found if (group := _calibration_group(rule, block)))
        if groups:
            grids.append(
                Grid(
                    label=f"calibration-{rule}",
                    title=title,
                    caption=f"{words} Against the success of continuations from each prefix, or the final outcome. "
                    "95% interval over problems. Quarter: relative position of the prefix.",
                    header=("Prefixes of", "Model", "Protocol", *CALIBRATION.values()),
                    groups=groups,
                    notes=remarks(row for run in runs for row in run.result.rows if row.metric in CALIBRATION),
                    text_columns=3,
                )
            )
    return tuple(grids)


def _calibration_group(rule: str, block: Block) -> tuple[tuple[str, ...], ...]:
    lines = []
    for run in block.runs:
        rows = rows_of(run.result, block.subset)
        for protocol in dict.fromkeys(protocol for protocol, _ in rows if not protocol.startswith("floor/")):
            found = _plain(rule_and_readout(protocol, "calibration")[0])
            if found == rule or (rule == "sigmoid" and found == "identity"):
                cells = {name: rows.get((protocol, name)) for name in CALIBRATION}
                lines.append((model_name(run.result.manifest), f"`{protocol}`", cells))
    if not lines:
        return ()
    best = {name: top_value([cells[name] for *_, cells in lines], name in LOWER_IS_BETTER) for name in CALIBRATION}
    lines.sort(key=lambda line: (-_value(line[2]["auc"]), line[0], line[1]))
    shown = [(block.name, model, protocol, *_calibration_cells(cells, best)) for model, protocol, cells in lines]
    rows = rows_of(block.runs[0].result, block.subset)
    floor = {name: rows.get(("floor/constant", name)) for name in CALIBRATION}
    if any(floor.values()):
        shown.append((block.name, "the mean, whatever the prefix", "`floor/constant`", *_calibration_cells(floor, {})))
    return tuple(shown)


def _calibration_cells(cells: dict[str, MetricRow | None], best: dict[str, float | None]) -> list[str]:
    return [text(row, PLAIN, _is(row, best.get(name)), "_q" not in name) for name, row in cells.items()]
