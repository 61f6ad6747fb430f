"""Task best_of_n: accuracy of the completion that a reward model picks among N, with chance, majority and ceiling.

Every number is an expectation over all N-subsets of a problem's verified completions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from prmbench.core.records import (
    READOUTS,
    EvalProtocol,
    MetricRow,
    RunManifest,
    RunResult,
    ScoredTrace,
    Trace,
    UserError,
)
from prmbench.core.result_files import Run
from prmbench.metrics import best_of_n, first_error
from prmbench.metrics.first_error import Floats, Ints
from prmbench.tasks.blocks import Block, average_or_only_subset, blocks, completion_identity, group_size, rows_of
from prmbench.tasks.metric_rows import Cell, Judged, absent, share, weighted_mean
from prmbench.tasks.problem_groups import (
    Group,
    SubsetCache,
    SubsetProblems,
    advice_without_outcomes,
    error_note,
    group_problems,
    group_size_faults,
    vote_accuracies,
)
from prmbench.tasks.table import (
    PERCENT,
    POINTS,
    Code,
    Row,
    Table,
    Unit,
    cell_of,
    notes_of,
    rank_value,
)
from prmbench.tasks.task import Floor, Leading, Task
from prmbench.tasks.ties import PairedTests, place_of
from prmbench.tasks.wording import rule_and_readout, run_name

AGGREGATION_NAMES = ("last", "min", "mean", "prod", "sum")
"""Ways to aggregate step scores into the score of a completion."""
NO_ANSWERS = "the completions name no answers"
RECOMMENDED = ("prefix_sum/last", "as_is/last", "vote/mean")
"""Protocols that stand for a run, by kind of score: the value of the whole completion."""
RANDOM = "random"
"""The baseline that is one draw of the floor: its gain over it is luck, whose interval over problems says nothing."""
MOST_SIZES = 3
"""Group sizes that fit beside a protocol's name on a terminal."""

AGGREGATIONS: dict[str, str] = {
    "last": "the score of the last step",
    "min": "the lowest score of any step",
    "mean": "the mean over the steps",
    "prod": "the product of the steps' probabilities (sigmoid of beta times the score)",
    "sum": "the sum over the steps",
}
FLOORS = {
    "accuracy": ("floor/random", "random: mean accuracy"),
    "majority": ("floor/majority", "majority vote, no model"),
    "pass": ("floor/pass", "ceiling: any of N is right"),
}


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the score of a completion is computed from step scores."""

    protocol: EvalProtocol
    """Gives the readout and the series; its threshold is not used."""
    aggregation: str
    beta: float
    probability: bool
    """Whether the step scores are probabilities."""

    @property
    def key(self) -> str:
        readout = self.protocol.key.partition("/")[0]
        return f"{readout}/{self.aggregation}{'@release' if self.protocol.boundary == 'release' else ''}"

    def log_weights(self, scores: Floats) -> Floats:
        weights = best_of_n.log_weights(scores, self.aggregation, self.beta, self.probability)
        return np.where(np.isneginf(scores), -np.inf, weights)


def _scores(traces: Sequence[ScoredTrace], rules: Sequence[_Rule]) -> Floats:
    """Completion scores under each rule, [rules, n]; -inf for completions without step scores."""
    scores = np.full((len(rules), len(traces)), -np.inf)
    for protocol, same_readout in groupby(enumerate(rules), lambda pair: pair[1].protocol):  # sorted by readout
        readout_rules = list(same_readout)
        for trace_indices, steps in _step_scores(traces, protocol):
            for rule_index, rule in readout_rules:
                if steps.shape[1]:  # a completion without steps has no score
                    scores[rule_index, trace_indices] = best_of_n.aggregate(
                        steps, rule.aggregation, rule.beta, rule.probability
                    )
    return scores


def _step_scores(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> Iterator[tuple[Ints, Floats]]:
    """Yields the indices [m] of completions with k step scores each, and the scores [m, k]; k is 1 for critics."""
    if protocol.readout != "vote":
        yield from first_error.readouts(traces, protocol)
        return
    shares = [_pass_share(trace) if trace.steps else None for trace in traces]
    indices = np.array([index for index, share in enumerate(shares) if share is not None], dtype=np.int64)
    yield indices, np.array([share for share in shares if share is not None], dtype=float).reshape(-1, 1)


def _pass_share(trace: ScoredTrace) -> float | None:
    """A critic's score: the share of its critiques that call every step right; unreadable ones do not."""
    return None if trace.unscored or not trace.verdicts else float(np.mean([v == -1 for v in trace.verdicts]))


def _rules(manifest: RunManifest) -> list[_Rule]:
    probability = manifest.kind in ("prob", "verdict")
    aggregations = ("mean",) if manifest.kind == "verdict" else AGGREGATION_NAMES
    readouts = [
        EvalProtocol(readout, "oracle", series=series, boundary=manifest.boundary)
        for series in ("", *manifest.series)
        for readout in READOUTS[manifest.kind]
    ]
    return [
        _Rule(protocol, aggregation, manifest.beta or 1.0, probability)
        for protocol in readouts
        for aggregation in aggregations
    ]


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the protocol keys: `[series.]readout/aggregation`, with `@release` for runs scored at that boundary."""
    return tuple(rule.key for rule in _rules(manifest))


def completion_scores(manifest: RunManifest, traces: Sequence[ScoredTrace]) -> dict[str, Floats]:
    """Returns the score of each completion, [n], by protocol; -inf for completions without step scores."""
    rules = _rules(manifest)
    return dict(zip((rule.key for rule in rules), _scores(traces, rules), strict=True))


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Computes the floors, then best_of@N, weighted_vote@N and gain@N under each rule."""
    return _judge(manifest, scores, _rules(manifest))


def judge_one(manifest: RunManifest, scores: Sequence[ScoredTrace], key: str) -> Judged:
    """Computes the floors and the cells of one protocol."""
    return _judge(manifest, scores, [rule for rule in _rules(manifest) if rule.key == key])


def _judge(manifest: RunManifest, scores: Sequence[ScoredTrace], rules: Sequence[_Rule]) -> Judged:
    subsets = group_problems(manifest, scores)
    cache = SubsetCache(manifest.seed)
    cells = {subset.part.name: _cells(subset, rules, cache) for subset in subsets}
    names = ("floor/random", "floor/majority", "floor/pass", *(rule.key for rule in rules))
    return Judged(tuple(s.part for s in subsets), {key: {name: cells[name][key] for name in cells} for key in names})


def _cells(problems: SubsetProblems, rules: Sequence[_Rule], subsets: SubsetCache) -> dict[str, list[Cell]]:
    """Cells by protocol: the floors (random pick, majority, ceiling), then each rule."""
    scores = _scores([t for g in problems.groups for t in g.verified], rules)
    ends = np.cumsum([len(g.verified) for g in problems.groups])[:-1]
    scores_by_problem = np.split(scores, ends, axis=1)
    weights_by_problem = np.split(_log_weights(rules, scores), ends, axis=1)
    sizes, accuracy = best_of_n.group_sizes(problems.largest), problems.accuracy
    expected = np.stack(
        [_best_of_each(g, p, sizes) for g, p in zip(problems.groups, scores_by_problem, strict=True)], axis=-1
    )
    cells: dict[str, list[Cell]] = {key: [] for key in ("floor/majority", "floor/pass", *(r.key for r in rules))}
    for column, n in enumerate(sizes):
        values, error = vote_accuracies(problems, weights_by_problem, n, subsets)
        note = problems.note(n)
        cells["floor/majority"].append(_vote_cell(problems, f"majority@{n}", values[0], error[0], note))
        pass_rates = [best_of_n.pass_at(g.outcomes, n) if len(g.verified) >= n else np.nan for g in problems.groups]
        cells["floor/pass"].append(_cell(problems, f"pass@{n}", np.array(pass_rates), note))
        for index, rule in enumerate(rules):
            cells[rule.key] += [
                _cell(problems, f"best_of@{n}", expected[index, column], note),
                _vote_cell(problems, f"weighted_vote@{n}", values[1 + index], error[1 + index], note),
                _gain_cell(problems, f"gain@{n}", expected[index, column] - accuracy, note),
            ]
    note = "; ".join(problems.exclusions())
    return {"floor/random": [share("accuracy", weighted_mean(accuracy, problems.weights), note)], **cells}


def _log_weights(rules: Sequence[_Rule], scores: Floats) -> Floats:
    """Log voting weights, [1 + rules, m]: equal weights first (the majority floor), then those of each rule."""
    weighted = [rule.log_weights(row) for rule, row in zip(rules, scores, strict=True)]
    return np.stack([np.zeros(scores.shape[1]), *weighted])


def _best_of_each(group: Group, scores: Floats, sizes: Sequence[int]) -> Floats:
    """Expected outcome of each rule's pick among N, [rules, sizes]; nan where there are fewer than N completions."""
    expected = np.full((len(scores), len(sizes)), np.nan)
    reachable = [n for n in sizes if len(group.verified) >= n]
    if reachable:
        expected[:, : len(reachable)] = best_of_n.expected_best_of(scores, group.outcomes, reachable)
    return expected


def _cell(problems: SubsetProblems, metric: str, values: Floats, note: str) -> Cell:
    return share(metric, weighted_mean(values, problems.weights), note)


def _gain_cell(problems: SubsetProblems, metric: str, values: Floats, note: str) -> Cell:
    return Cell(metric, weighted_mean(values, problems.weights), note, kind="share_difference")


def _vote_cell(problems: SubsetProblems, metric: str, values: Floats, error: float, note: str) -> Cell:
    if not problems.answered:
        return absent([metric], NO_ANSWERS)[0]
    return _cell(problems, metric, values, "; ".join(filter(None, (note, error_note(error)))))


# --- tables -------------------------------------------------------------------------------------------------


def sizes_of(runs: Sequence[Run]) -> list[int]:
    """Returns every N for which the runs have best-of-N rows."""
    metrics = {row.metric for run in runs for row in run.result.rows if row.metric.startswith("best_of@")}
    return sorted(n for n in map(group_size, metrics) if n is not None)


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns a table per aggregation: models by readout and the floors, for each set of completions."""
    keys = {row.protocol for run in runs for row in run.result.rows}
    rules = {rule_and_readout(key, has_threshold=False)[0] for key in keys} - {"floor"}
    order = sorted(rules, key=_aggregation_rank)
    trace_blocks = blocks(runs, completion_identity)
    tests = PairedTests(TASK)
    return tuple(_aggregation_table(rule, trace_blocks, sizes_of(runs), tests) for rule in order)


def _aggregation_rank(rule: str) -> tuple[int, str]:
    order = list(AGGREGATIONS)
    return order.index(_aggregation(rule)) if _aggregation(rule) in order else len(order), rule


def _aggregation(rule: str) -> str:
    return rule.partition("@")[0]


def _aggregation_table(rule: str, trace_blocks: Sequence[Block], sizes: Sequence[int], tests: PairedTests) -> Table:
    metrics = [f"{name}@{n}" for name in ("best_of", "weighted_vote", "gain") for n in sizes]
    text = AGGREGATIONS.get(_aggregation(rule), rule)
    groups = tuple(_group(rule, block, metrics, sizes, tests) for block in trace_blocks)
    return Table(
        label=f"best_of_n-{rule}",
        title=f"Aggregation: {rule}",
        caption=f"A completion's score is {text}. Expected accuracy over all choices of N completions, percent, with "
        "its 95% interval over problems; gain: best_of@N minus the accuracy of a random completion, paired. "
        f"{tests.text}",
        header=("Completions", "Model", "Readout", *metrics),
        groups=groups,
        notes=notes_of(
            row
            for block in trace_blocks
            for run in block.runs
            for (protocol, _), row in rows_of(run.result, block.subset).items()
            if protocol.startswith("floor/") or rule_and_readout(protocol, has_threshold=False)[0] == rule
        ),
        text_columns=3,
        lead=f"best_of@{sizes[-1]}",
    )


def _group(
    rule: str, block: Block, metrics: Sequence[str], sizes: Sequence[int], tests: PairedTests
) -> tuple[Row, ...]:
    model_rows = []  # a baseline is never marked as the best
    for run in block.runs:
        is_model = run.result.manifest.backend != "baseline"
        rows = rows_of(run.result, block.subset)
        for protocol in dict.fromkeys(protocol for protocol, _ in rows):
            if rule_and_readout(protocol, has_threshold=False)[0] == rule:
                measured = [m for m in metrics if run.result.manifest.model != RANDOM or not m.startswith("gain")]
                cells = {m: rows.get((protocol, m)) if m in measured else None for m in metrics}
                model_rows.append((run, protocol, cells, is_model))
    ranking_metric = f"best_of@{sizes[-1]}"
    model_rows.sort(key=lambda row: (-rank_value(row[2][ranking_metric]), run_name(row[0]), row[1]))
    models = [(run, cells) for run, _, cells, is_model in model_rows if is_model]
    tied = {m: tests.tied_in_column((run, cells[m]) for run, cells in models) for m in metrics}
    table_rows = [
        (
            *(block.name, run_name(run), Code(rule_and_readout(protocol, has_threshold=False)[1])),
            *(cell_of(row, _unit(m), place_of(run, protocol) in tied[m]) for m, row in cells.items()),
        )
        for run, protocol, cells, _ in model_rows
    ]
    return (*table_rows, *_floor_rows(block, metrics))


def _unit(metric: str) -> Unit:
    return POINTS if metric.startswith("gain") else PERCENT


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns best_of@N of the largest N under the recommended protocol, against a random pick and the majority."""
    protocol = recommended(row.protocol for row in result.rows)
    metrics = {row.metric for row in result.rows if row.protocol == protocol}
    sizes = [n for metric in metrics if metric.startswith("best_of@") and (n := group_size(metric))]
    if not sizes:
        return ()
    metric, n = f"best_of@{max(sizes)}", max(sizes)
    rule = f"N = {n}, by the last step; critics by the mean of their votes"  # both were named before any result
    floors = (
        Floor("floor/random", "accuracy", "a random completion"),
        Floor("floor/majority", f"majority@{n}", "the majority vote"),
    )
    return (Leading(protocol, metric, metric, rule, floors=floors),)


def recommended(protocols: Iterable[str]) -> str:
    """Returns the protocol that stands for a run, at either boundary; empty where it has none of RECOMMENDED."""
    by_name = {key.partition("@")[0]: key for key in protocols}
    return next((by_name[name] for name in RECOMMENDED if name in by_name), "")


def _floor_rows(block: Block, metrics: Sequence[str]) -> list[Row]:
    """Rows of the model-free baselines and of the ceiling; only the best_of@N columns have numbers."""
    rows = rows_of(block.runs[0].result, block.subset)
    table_rows = []
    for metric, (protocol, name) in FLOORS.items():
        names = {m: metric if metric == "accuracy" else f"{metric}@{group_size(m)}" for m in metrics}
        cells = [cell_of(rows.get((protocol, names[m]))) if m.startswith("best_of") else "" for m in metrics]
        if any(cells):
            table_rows.append((block.name, name, Code(protocol), *cells))
    return table_rows


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: best_of@N for the largest N; vote and gain for the very largest only."""
    rows = rows_of(result, average_or_only_subset(result))
    sizes = sorted({n for _, metric in rows if metric.startswith("best_of@") and (n := group_size(metric))})
    sizes, largest = sizes[-MOST_SIZES:], sizes[-1] if sizes else 0
    shown_rows: list[MetricRow | None] = []
    protocol_rows: list[Row] = []
    columns = [(f"best_of@{n}", PERCENT) for n in sizes]
    columns += [(f"weighted_vote@{largest}", PERCENT), (f"gain@{largest}", POINTS)]
    for key in keys:
        metric_rows = [rows.get((key, metric)) for metric, _ in columns]
        cells = (
            cell_of(row, unit, interval=unit == POINTS) for row, (_, unit) in zip(metric_rows, columns, strict=True)
        )
        shown_rows += metric_rows
        protocol_rows.append((Code(key), *cells))
    floors: list[Row] = []
    for metric, (key, _) in FLOORS.items():
        floor = [rows.get((key, metric if metric == "accuracy" else f"{metric}@{n}")) for n in sizes]
        shown_rows += floor
        floors.append((Code(key), *(cell_of(row, interval=False) for row in floor), "", ""))
    return Table(
        label="best_of_n",
        title="",
        caption="",
        header=("picked right, percent", *(f"of {n}" for n in sizes), f"vote@{largest}", f"gain@{largest}"),
        groups=(tuple(protocol_rows), tuple(floors)),
        notes=notes_of(row for row in shown_rows if row is not None),
        text_columns=1,
        ends_with_floors=True,
    )


# --- checks -------------------------------------------------------------------------------------------------


def check_data(traces: Sequence[Trace], source: str) -> None:
    """Raises UserError unless some prompt has two completions with an outcome."""
    verified = Counter((t.subset, t.group) for t in traces if t.outcome is not None)
    if not verified:
        raise UserError(f"{source}: no completion has an outcome; {advice_without_outcomes(traces, source)}")
    if max(verified.values()) == 1:
        raise UserError(f"{source}: one verified completion a prompt; best-of-N needs a choice, at least two")


TASK = Task(
    name="best_of_n",
    title="picking among completions",
    description="How often the completion that a model picks among N is right, compared with model-free baselines.",
    unscored="unscored, ranked last",
    protocols=protocols,
    judge=judge,
    judge_one=judge_one,
    leading=leading,
    tables=tables,
    summary=summary,
    check_scores=group_size_faults,
    check_data=check_data,
    is_per_problem=True,
)
