"""Task best_of_n: how right the completion is that a reward model picks among N, beside chance, majority and ceiling.

Every number is an expectation over all N-subsets of a problem's verified completions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
from prmbench.tasks.metric_rows import Cell, Judged, absent, weighted_mean
from prmbench.tasks.problem_groups import Group, Problems, Subsets, error_note, group_size_faults, problems, votes
from prmbench.tasks.table import (
    PERCENT,
    POINTS,
    Code,
    Fact,
    Headline,
    Row,
    Table,
    Unit,
    best_value,
    cell_of,
    is_best,
    notes_of,
    number,
    rank_value,
    without_marks,
)
from prmbench.tasks.task import Task
from prmbench.tasks.wording import model_name, rule_and_readout

HOW = ("last", "min", "mean", "prod", "sum")
"""Step scores -> the completion's."""
NO_ANSWERS = "the completions name no answers"
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
    """How a completion gets its score."""

    protocol: EvalProtocol
    """Names the readout and the series; its threshold plays no part."""
    how: str
    beta: float
    probability: bool
    """The step scores are probabilities already."""

    @property
    def key(self) -> str:
        readout = self.protocol.key.partition("/")[0]
        return f"{readout}/{self.how}{'@release' if self.protocol.boundary == 'release' else ''}"

    def log_weight(self, scores: Floats) -> Floats:
        weights = best_of_n.log_weight(scores, self.how, self.beta, self.probability)
        return np.where(np.isneginf(scores), -np.inf, weights)


def _scores(traces: Sequence[ScoredTrace], rules: Sequence[_Rule]) -> Floats:
    """What each completion is ranked by under each rule, [rules, n]; -inf without step scores."""
    found = np.full((len(rules), len(traces)), -np.inf)
    for protocol, alike in groupby(enumerate(rules), lambda pair: pair[1].protocol):  # those of a readout are together
        numbered = list(alike)
        for places, steps in _step_scores(traces, protocol):
            for place, rule in numbered:
                if steps.shape[1]:  # what says nothing has no step
                    found[place, places] = best_of_n.aggregate(steps, rule.how, rule.beta, rule.probability)
    return found


def _step_scores(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> Iterator[tuple[Ints, Floats]]:
    """Places [m] of completions with equally many step scores, and these, [m, k]; a critic gives one score in all."""
    if protocol.readout != "vote":
        yield from first_error.readouts(traces, protocol)
        return
    passes = [_share_of_passes(trace) if trace.steps else None for trace in traces]
    places = np.array([place for place, share in enumerate(passes) if share is not None], dtype=np.int64)
    yield places, np.array([share for share in passes if share is not None], dtype=float).reshape(-1, 1)


def _share_of_passes(trace: ScoredTrace) -> float | None:
    """A critic's score: in how many of its critiques no step is wrong; one that cannot be read finds fault."""
    return None if trace.unscored or not trace.verdicts else float(np.mean([v == -1 for v in trace.verdicts]))


def _rules(manifest: RunManifest) -> list[_Rule]:
    probability = manifest.kind in ("prob", "verdict")
    hows = ("mean",) if manifest.kind == "verdict" else HOW
    reads = [
        EvalProtocol(readout, "oracle", series=series, boundary=manifest.boundary)
        for series in ("", *manifest.series)
        for readout in READOUTS[manifest.kind]
    ]
    return [_Rule(protocol, how, manifest.beta or 1.0, probability) for protocol in reads for how in hows]


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """`[series.]readout/aggregation`, with `@release` where the run was scored so."""
    return tuple(rule.key for rule in _rules(manifest))


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Floors, then best_of@N, weighted_vote@N and gain@N under each rule."""
    sides = problems(manifest, scores)
    rules = _rules(manifest)
    subsets = Subsets(manifest.seed)
    found = {side.part.name: _cells(side, rules, subsets) for side in sides}
    names = ("floor/random", "floor/majority", "floor/pass", *(rule.key for rule in rules))
    return Judged(tuple(s.part for s in sides), {key: {name: found[name][key] for name in found} for key in names})


def _cells(side: Problems, rules: Sequence[_Rule], subsets: Subsets) -> dict[str, list[Cell]]:
    """By protocol: a random completion, the commonest answer, the ceiling of any choice, and each rule's picks."""
    everyone = _scores([t for g in side.groups for t in g.verified], rules)
    ends = np.cumsum([len(g.verified) for g in side.groups])[:-1]
    picks = np.split(everyone, ends, axis=1)
    heard = np.split(_log_weights(rules, everyone), ends, axis=1)
    sizes, accuracy = best_of_n.sizes(side.largest), side.accuracy
    best = np.stack([_best_of_each(g, p, sizes) for g, p in zip(side.groups, picks, strict=True)], axis=-1)
    found: dict[str, list[Cell]] = {key: [] for key in ("floor/majority", "floor/pass", *(r.key for r in rules))}
    for at, n in enumerate(sizes):
        values, error = votes(side, heard, n, subsets)
        note = side.note(n)
        found["floor/majority"].append(_vote_cell(side, f"majority@{n}", values[0], error[0], note))
        reached = [best_of_n.pass_at(g.outcomes, n) if len(g.verified) >= n else np.nan for g in side.groups]
        found["floor/pass"].append(_cell(side, f"pass@{n}", np.array(reached), note))
        for k, rule in enumerate(rules):
            found[rule.key] += [
                _cell(side, f"best_of@{n}", best[k, at], note),
                _vote_cell(side, f"weighted_vote@{n}", values[1 + k], error[1 + k], note),
                _cell(side, f"gain@{n}", best[k, at] - accuracy, note),
            ]
    note = "; ".join(side.left_out())
    return {"floor/random": [Cell("accuracy", weighted_mean(accuracy, side.weights), note)], **found}


def _log_weights(rules: Sequence[_Rule], scores: Floats) -> Floats:
    """[1 + rules, m]: first everybody's vote alike, then by each rule's [rules, m] scores."""
    weighted = [rule.log_weight(row) for rule, row in zip(rules, scores, strict=True)]
    return np.stack([np.zeros(scores.shape[1]), *weighted])


def _best_of_each(group: Group, scores: Floats, sizes: Sequence[int]) -> Floats:
    """Expected outcome of each rule's pick among N, [rules, sizes]; nan where the problem has too few completions."""
    found = np.full((len(scores), len(sizes)), np.nan)
    enough = [n for n in sizes if len(group.verified) >= n]
    if enough:
        found[:, : len(enough)] = best_of_n.best_of_each(scores, group.outcomes, enough)
    return found


def _cell(side: Problems, metric: str, values: Floats, note: str) -> Cell:
    return Cell(metric, weighted_mean(values, side.weights), note)


def _vote_cell(side: Problems, metric: str, values: Floats, error: float, note: str) -> Cell:
    if not side.answered:
        return absent([metric], NO_ANSWERS)[0]
    return Cell(metric, weighted_mean(values, side.weights), "; ".join(filter(None, (note, error_note(error)))))


# --- tables -------------------------------------------------------------------------------------------------


def sizes_of(runs: Sequence[Run]) -> list[int]:
    """Every N of best-of-N."""
    metrics = {row.metric for run in runs for row in run.result.rows if row.metric.startswith("best_of@")}
    return sorted(n for n in map(group_size, metrics) if n is not None)


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """A table per aggregation: models by readout, then the floors, for each set of completions."""
    keys = {row.protocol for run in runs for row in run.result.rows}
    rules = {rule_and_readout(key, has_threshold=False)[0] for key in keys} - {"floor"}
    order = sorted(rules, key=_aggregation_rank)
    found = blocks(runs, completion_identity)
    return tuple(_aggregation_table(rule, found, sizes_of(runs)) for rule in order)


def _aggregation_rank(rule: str) -> tuple[int, str]:
    known = list(AGGREGATIONS)
    return known.index(_aggregation(rule)) if _aggregation(rule) in known else len(known), rule


def _aggregation(rule: str) -> str:
    return rule.partition("@")[0]


def _aggregation_table(rule: str, found: Sequence[Block], sizes: Sequence[int]) -> Table:
    metrics = [f"{name}@{n}" for name in ("best_of", "weighted_vote", "gain") for n in sizes]
    words = AGGREGATIONS.get(_aggregation(rule), rule)
    return Table(
        label=f"best_of_n-{rule}",
        title=f"Aggregation: {rule}",
        caption=f"A completion's score is {words}. Expected accuracy over all choices of N completions, percent, with "
        "its 95% interval over problems; gain: best_of@N minus the accuracy of a random completion, paired.",
        header=("Completions", "Model", "Readout", *metrics),
        groups=tuple(_group(rule, block, metrics, sizes) for block in found),
        notes=notes_of(
            row
            for block in found
            for run in block.runs
            for (protocol, _), row in rows_of(run.result, block.subset).items()
            if protocol.startswith("floor/") or rule_and_readout(protocol, has_threshold=False)[0] == rule
        ),
        text_columns=3,
        lead=f"best_of@{sizes[-1]}",
    )


def _group(rule: str, block: Block, metrics: Sequence[str], sizes: Sequence[int]) -> tuple[Row, ...]:
    lines = []
    for run in block.runs:
        rows = rows_of(run.result, block.subset)
        for protocol in dict.fromkeys(protocol for protocol, _ in rows):
            found, readout = rule_and_readout(protocol, has_threshold=False)
            if found == rule:
                lines.append((model_name(run.result.manifest), readout, {m: rows.get((protocol, m)) for m in metrics}))
    top = f"best_of@{sizes[-1]}"
    lines.sort(key=lambda line: (-rank_value(line[2][top]), line[0], line[1]))
    best = {m: best_value([cells[m] for _, _, cells in lines]) for m in metrics}
    shown = [
        (
            *(block.name, model, Code(readout)),
            *(cell_of(row, _unit(m), is_best(row, best[m])) for m, row in cells.items()),
        )
        for model, readout, cells in lines
    ]
    return (*shown, *_floor_rows(block, metrics))


def _unit(metric: str) -> Unit:
    return POINTS if metric.startswith("gain") else PERCENT


def headline(runs: Sequence[Run]) -> Headline | None:
    """Returns best_of@N of the model that picks best, under the aggregation that its kind of score is meant for.

    That is the last step's score, and of critics the mean of their votes: the first of `AGGREGATIONS` that a model has.
    On the average over all completions where there is one; baselines only where there is nothing else. Beside it stand
    the floors of the same completions and the same N.
    """
    ordered = sorted(blocks(runs, completion_identity), key=lambda block: not block.subset.startswith("avg["))
    for is_baseline in (False, True):
        for block in ordered:
            picks = [
                pick
                for run in block.runs
                if (run.result.manifest.backend == "baseline") == is_baseline
                for pick in _picks(run, block)
            ]
            if picks:
                return min(picks, key=lambda pick: pick[0])[1]
    return None


def _picks(run: Run, block: Block) -> Iterator[tuple[tuple[float, str, str], Headline]]:
    """Headlines of one model, each with what it is ranked by: its number, then names."""
    rows = rows_of(run.result, block.subset)
    n = max((n for _, metric in rows if metric.startswith("best_of@") and (n := group_size(metric))), default=0)
    protocols = {protocol: rule_and_readout(protocol, has_threshold=False) for protocol, _ in rows}
    rules = {rule for rule, _ in protocols.values()} - {"floor"}
    aggregation = min(rules, key=_aggregation_rank, default="")
    name = model_name(run.result.manifest)
    meaning = AGGREGATIONS.get(_aggregation(aggregation), "")
    for protocol, (rule, readout) in protocols.items():
        row = rows.get((protocol, f"best_of@{n}"))
        if rule == aggregation and row is not None and row.value is not None:
            facts: list[Fact] = [
                ("Number", row.metric),
                ("Completions", block.name),
                ("Model", name),
                ("Readout", Code(readout)),
                ("Aggregation", f"{rule}: {meaning}" if meaning else rule),
            ]
            for metric, (key, _) in FLOORS.items():
                floor = rows.get((key, metric if metric == "accuracy" else f"{metric}@{n}"))
                if floor is not None:
                    shown = number(floor.value, PERCENT)
                    facts.append((f"Floor: {key.removeprefix('floor/')}", f"{shown} ({floor.metric})"))
            yield (-row.value, name, readout), Headline(without_marks(cell_of(row)), tuple(facts))


def _floor_rows(block: Block, metrics: Sequence[str]) -> list[Row]:
    """Beneath best_of@N: what N completions reach without a model, and at most."""
    rows = rows_of(block.runs[0].result, block.subset)
    shown = []
    for metric, (protocol, words) in FLOORS.items():
        names = {m: metric if metric == "accuracy" else f"{metric}@{group_size(m)}" for m in metrics}
        cells = [cell_of(rows.get((protocol, names[m]))) if m.startswith("best_of") else "" for m in metrics]
        if any(cells):
            shown.append((block.name, words, Code(protocol), *cells))
    return shown


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Accuracy of the pick for the largest group sizes; the vote and the gain for the very largest."""
    rows = rows_of(result, average_or_only_subset(result))
    sizes = sorted({n for _, metric in rows if metric.startswith("best_of@") and (n := group_size(metric))})
    sizes, top = sizes[-MOST_SIZES:], sizes[-1] if sizes else 0
    shown: list[MetricRow | None] = []
    lines: list[Row] = []
    columns = [(f"best_of@{n}", PERCENT) for n in sizes]
    columns += [(f"weighted_vote@{top}", PERCENT), (f"gain@{top}", POINTS)]
    for key in keys:
        found = [rows.get((key, metric)) for metric, _ in columns]
        cells = (cell_of(row, unit, interval=unit == POINTS) for row, (_, unit) in zip(found, columns, strict=True))
        shown += found
        lines.append((Code(key), *cells))
    floors: list[Row] = []
    for metric, (key, _) in FLOORS.items():
        floor = [rows.get((key, metric if metric == "accuracy" else f"{metric}@{n}")) for n in sizes]
        shown += floor
        floors.append((Code(key), *(cell_of(row, interval=False) for row in floor), "", ""))
    return Table(
        label="best_of_n",
        title="",
        caption="",
        header=("picked right, percent", *(f"of {n}" for n in sizes), f"vote@{top}", f"gain@{top}"),
        groups=(tuple(lines), tuple(floors)),
        notes=notes_of(row for row in shown if row is not None),
        text_columns=1,
        ends_with_floors=True,
    )


# --- checks -------------------------------------------------------------------------------------------------


def check_data(traces: Sequence[Trace], source: str) -> None:
    """Raises UserError unless some prompt has two completions with an outcome."""
    verified = Counter((t.subset, t.group) for t in traces if t.outcome is not None)
    if not verified:
        raise UserError(f"{source}: no completion has an outcome; `prmbench rollout` draws and verifies them")
    if max(verified.values()) == 1:
        raise UserError(f"{source}: one verified completion a prompt; best-of-N needs a choice, at least two")


TASK = Task(
    name="best_of_n",
    title="picking among completions",
    description="How right the completion is that a model picks among N, beside what needs no model at all.",
    unscored="unscored, ranked last",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    headline=headline,
    check_scores=group_size_faults,
    check_data=check_data,
)
