"""Task policy: accuracy of a policy's own completions: avg@k, unbiased pass@k, majority, truncation and unverified.

A completion that the verifier could not judge is neither right nor wrong: it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.core.validation import LARGEST_SCORE, Fault, is_number, short
from prmbench.metrics import best_of_n
from prmbench.metrics.first_error import Floats
from prmbench.tasks.blocks import Block, blocks, group_size, problem_identity, rows_of
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, absent, share, weighted_mean
from prmbench.tasks.problem_groups import (
    SubsetCache,
    SubsetProblems,
    group_problems,
    group_size_faults,
    vote_accuracies,
)
from prmbench.tasks.table import Row, Table, cell_of, notes_of
from prmbench.tasks.task import Leading, Task
from prmbench.tasks.ties import PairedTests, place_of
from prmbench.tasks.wording import run_name

NO_ANSWERS = "the completions name no answers"
MOST_SUBSETS = 2
"""Subsets that fit beside a metric's name on a terminal."""
SAMPLING = ("temperature", "top_p", "top_k", "group_size")
"""Sampling options that make up a protocol's name."""


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the way of sampling: `sampled/t0.6,p0.95,n8` (with `,k20` if top-k was used) or `greedy`."""
    options = manifest.config
    if not options["temperature"]:
        return ("greedy",)
    top_k = f",k{options['top_k']}" if options["top_k"] else ""
    return (f"sampled/t{options['temperature']:g},p{options['top_p']:g},n{options['group_size']}{top_k}",)


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Computes the metrics of every subset under the run's only protocol."""
    subsets = group_problems(manifest, scores)
    values = _all_problem_values(subsets, manifest)
    cells = {
        subset.part.name: _cells([subset], subset_values) for subset, subset_values in zip(subsets, values, strict=True)
    }
    pooled = (_pooled(subsets, values, protocols(manifest)[0]),) if len(subsets) > 1 else ()
    return Judged(tuple(s.part for s in subsets), dict.fromkeys(protocols(manifest), cells), pooled=pooled)


def _pooled(
    subsets: Sequence[SubsetProblems], values: Sequence[Mapping[str, Floats]], protocol: str
) -> tuple[SubsetInfo, str, tuple[Cell, ...]]:
    """Cells of `micro[a,b]`, in which every problem has the same weight, whatever its subset."""
    pooled = {metric: np.concatenate([subset_values[metric] for subset_values in values]) for metric in values[0]}
    name = f"micro[{','.join(subset.part.name for subset in subsets)}]"
    info = SubsetInfo(
        name,
        sum(subset.part.n for subset in subsets),
        sum(subset.part.unscored for subset in subsets),
        subsets[0].part.missing,
        sum(subset.part.problems for subset in subsets),
    )
    return info, protocol, tuple(_cells(subsets, pooled))


def _all_problem_values(subsets: Sequence[SubsetProblems], manifest: RunManifest) -> list[dict[str, Floats]]:
    k = max((len(g.completions) for s in subsets for g in s.groups), default=0)
    return [_problem_values(subset, k, manifest.seed) for subset in subsets]


def _problem_values(problems: SubsetProblems, k: int, seed: int) -> dict[str, Floats]:
    """Every metric of every problem, [c]; nan for problems with too few verified completions."""
    equal_weights = [np.zeros((1, len(g.verified))) for g in problems.groups]

    def share_of(condition: Callable[[ScoredTrace], bool]) -> Floats:
        return np.array([np.mean([condition(t) for t in g.completions]) for g in problems.groups])

    pass_rates = {
        f"pass@{n}": np.array(
            [best_of_n.pass_at(g.outcomes, n) if len(g.verified) >= n else np.nan for g in problems.groups]
        )
        for n in (1, *best_of_n.group_sizes(k))
    }
    return {
        f"avg@{k}": problems.accuracy,
        **pass_rates,
        f"majority@{k}": vote_accuracies(problems, equal_weights, k, SubsetCache(seed))[0][0],
        "truncated": share_of(lambda t: t.finish == "length"),
        "unverified": share_of(lambda t: t.outcome is None),
    }


def _cells(subsets: Sequence[SubsetProblems], numbers: Mapping[str, Floats]) -> list[Cell]:
    """Cells from the values of the problems of all subsets, concatenated in order."""
    replicates = max(len(s.weights) for s in subsets)  # a subset of one problem has a single row of weights, all 1
    weights = np.concatenate([np.broadcast_to(s.weights, (replicates, s.weights.shape[1])) for s in subsets], axis=1)
    cells = []
    for metric, values in numbers.items():
        name, _, size = metric.partition("@")
        if name == "majority" and not any(s.answered for s in subsets):
            cells += absent([metric], NO_ANSWERS)
        else:
            cells.append(share(metric, weighted_mean(values, weights), _note(subsets, name, size)))
    return cells


def _note(subsets: Sequence[SubsetProblems], name: str, size: str) -> str:
    if not size:
        return ""  # shares of all completions
    notes = [(s, "; ".join(s.exclusions()) if name == "avg" else s.note(int(size))) for s in subsets]
    named_notes = [note if len(subsets) == 1 else f"{s.part.name}: {note}" for s, note in notes if note]
    return "; ".join(named_notes)


# --- tables -------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns a table per way of sampling, with rows by metric and model and a column per set of problems."""
    protocols = sorted(
        {row.protocol for run in runs for row in run.result.rows if not row.protocol.startswith("floor")}
    )
    tests = PairedTests(TASK)
    return tuple(_sampling(protocol, runs, tests) for protocol in sorted(protocols))


def _sampling(protocol: str, runs: Sequence[Run], tests: PairedTests) -> Table:
    chosen = [run for run in runs if any(row.protocol == protocol for row in run.result.rows)]
    problem_blocks = blocks(chosen, problem_identity)
    metrics = {row.metric for run in chosen for row in run.result.rows if row.protocol == protocol}
    groups = []
    for metric in sorted(metrics, key=_metric_rank):
        model_cells = [
            (run, [_rows_in(run, block).get((protocol, metric)) for block in problem_blocks]) for run in chosen
        ]
        is_share = "@" not in metric  # of truncated completions, say, which none is the best in
        tied = [
            frozenset() if is_share else tests.tied_in_column((run, cells[at]) for run, cells in model_cells)
            for at in range(len(problem_blocks))
        ]
        groups.append(
            tuple(
                (
                    *(metric, run_name(run)),
                    *(cell_of(c, best=place_of(run, protocol) in t) for c, t in zip(cells, tied, strict=True)),
                )
                for run, cells in sorted(model_cells, key=lambda row: run_name(row[0]))
            )
        )
    rows = [row for run in chosen for row in run.result.rows if row.protocol == protocol]
    return Table(
        label=f"policy-{protocol}",
        title=f"Policies, {protocol}",
        caption="avg@k: mean accuracy of k completions; pass@k: at least one of k is right, unbiased; majority@k: the "
        "commonest answer is right. Truncated: cut at the length limit. Unverified: the verifier gave no verdict. "
        "Percent, 95% interval over problems; an average weighs sets alike, a pooled number weighs problems alike. "
        f"{tests.text}",
        header=("Metric", "Model", *(block.name for block in problem_blocks)),
        groups=tuple(groups),
        notes=notes_of(rows),
        lead=_lead([block.name for block in problem_blocks]),
    )


def _rows_in(run: Run, block: Block) -> dict[tuple[str, str], MetricRow]:
    return rows_of(run.result, block.subset) if run in block.runs else {}


def _metric_rank(metric: str) -> tuple[int, int]:
    """Sort key: averages, pass rates by k, votes, then shares."""
    order = ("avg", "pass", "majority", "truncated", "unverified")
    name = metric.partition("@")[0]
    return order.index(name) if name in order else len(order), group_size(metric) or 0


def _lead(names: Sequence[str]) -> str:
    """The pooled column if there is one, else the average, else the last set of problems."""
    return next((name for name in reversed(names) if name.startswith(("pooled", "average"))), names[-1])


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns the mean accuracy; only policies that were sampled alike are compared."""
    pairs = dict.fromkeys((row.protocol, row.metric) for row in result.rows if row.metric.startswith("avg@"))
    return tuple(Leading(protocol, metric, metric, protocol) for protocol, metric in pairs)


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: a row per metric, with the pooled numbers in the last column."""
    subsets = list(dict.fromkeys(row.subset for row in result.rows))
    single = [s for s in subsets if "[" not in s]
    columns = (single if len(single) <= MOST_SUBSETS else []) + [s for s in subsets if "[" in s]
    headings = [{"a": "average", "m": "pooled"}[s[0]] if "[" in s else s for s in columns]
    metric_rows: list[Row] = []
    shown_rows: list[MetricRow | None] = []
    for key in keys:
        metrics = {row.metric for row in result.rows if row.protocol == key}
        for metric in sorted(metrics, key=_metric_rank):
            rows = [rows_of(result, subset).get((key, metric)) for subset in columns]
            shown_rows += rows
            metric_rows.append((metric, *(cell_of(row, interval=row is rows[-1]) for row in rows)))
    return Table(
        label="policy",
        title="",
        caption="",
        header=(f"{', '.join(keys) or 'policy'}, percent", *headings),
        groups=(tuple(metric_rows),),
        notes=notes_of(row for row in shown_rows if row is not None),
        text_columns=1,
    )


# --- checks -------------------------------------------------------------------------------------------------


def check_manifest(manifest: RunManifest) -> Iterator[Fault]:
    """Yields an error for each sampling option that is missing or not a valid number."""
    for name in SAMPLING:
        value = manifest.config.get(name)
        if not is_number(value) or not 0 <= value <= LARGEST_SCORE:
            yield f"config.{name}", f"is {short.repr(value)}, not a number of at least 0"


def check_trace(_: RunManifest, trace: ScoredTrace) -> Iterator[Fault]:
    """Yields an error if the outcome is missing without a reason, or if there are step scores."""
    if not trace.unscored:
        if trace.outcome is None:
            yield "outcome", "is missing, and no reason is given in unscored"
        if trace.values:
            yield "values", "are there, and a policy's completion has none"


TASK = Task(
    name="policy",
    title="answering",
    description="How often a model's own completions are right. Every way of sampling has its own table.",
    unscored="not verified, neither right nor wrong",
    protocols=protocols,
    judge=judge,
    leading=leading,
    is_per_problem=True,
    tables=tables,
    summary=summary,
    lower_is_better=("truncated", "unverified"),
    reads_outcomes=True,
    check_manifest=check_manifest,
    check_trace=check_trace,
    check_scores=group_size_faults,
)
