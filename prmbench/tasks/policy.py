"""Task policy: how right a policy's own completions are: avg@k, unbiased pass@k, majority, and what was cut or unclear.

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
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, absent, weighted_mean
from prmbench.tasks.problem_groups import Problems, Subsets, group_size_faults, problems, votes
from prmbench.tasks.table import Row, Table, best_value, cell_of, is_best, notes_of
from prmbench.tasks.task import Task
from prmbench.tasks.wording import model_name

NO_ANSWERS = "the completions name no answers"
MOST_SUBSETS = 2
"""Subsets that fit beside a metric's name on a terminal."""
SAMPLING = ("temperature", "top_p", "top_k", "group_size")
"""The options that name a protocol."""


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """How the completions were drawn: `sampled/t0.6,p0.95,n8` (with `,k20` where top-k was on) or `greedy`."""
    told = manifest.config
    if not told["temperature"]:
        return ("greedy",)
    top_k = f",k{told['top_k']}" if told["top_k"] else ""
    return (f"sampled/t{told['temperature']:g},p{told['top_p']:g},n{told['group_size']}{top_k}",)


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """One protocol, and in it the metrics of every subset."""
    sides = problems(manifest, scores)
    numbers = _all_numbers(sides, manifest)
    cells = {side.part.name: _cells([side], found) for side, found in zip(sides, numbers, strict=True)}
    pooled = (_pooled(sides, numbers, protocols(manifest)[0]),) if len(sides) > 1 else ()
    return Judged(tuple(s.part for s in sides), dict.fromkeys(protocols(manifest), cells), pooled=pooled)


def _pooled(
    sides: Sequence[Problems], numbers: Sequence[Mapping[str, Floats]], protocol: str
) -> tuple[SubsetInfo, str, tuple[Cell, ...]]:
    """`micro[a,b]`: every problem counts alike, whichever subset it is of."""
    together = {metric: np.concatenate([found[metric] for found in numbers]) for metric in numbers[0]}
    name = f"micro[{','.join(s.part.name for s in sides)}]"
    whole = SubsetInfo(name, sum(s.part.n for s in sides), sum(s.part.unscored for s in sides), sides[0].part.missing)
    return whole, protocol, tuple(_cells(sides, together))


def _all_numbers(sides: Sequence[Problems], manifest: RunManifest) -> list[dict[str, Floats]]:
    k = max((len(g.everyone) for s in sides for g in s.groups), default=0)
    return [_numbers(side, k, manifest.seed) for side in sides]


def _numbers(side: Problems, k: int, seed: int) -> dict[str, Floats]:
    """Every metric of every problem, [c]; nan where a problem has too few verified completions for it."""
    even = [np.zeros((1, len(g.verified))) for g in side.groups]

    def share(what: Callable[[ScoredTrace], bool]) -> Floats:
        return np.array([np.mean([what(t) for t in g.everyone]) for g in side.groups])

    passed = {
        f"pass@{n}": np.array(
            [best_of_n.pass_at(g.outcomes, n) if len(g.verified) >= n else np.nan for g in side.groups]
        )
        for n in (1, *best_of_n.sizes(k))
    }
    return {
        f"avg@{k}": side.accuracy,
        **passed,
        f"majority@{k}": votes(side, even, k, Subsets(seed))[0][0],
        "truncated": share(lambda t: t.finish == "length"),
        "unverified": share(lambda t: t.outcome is None),
    }


def _cells(sides: Sequence[Problems], numbers: Mapping[str, Floats]) -> list[Cell]:
    """`numbers`: of the problems of all sides, one after the other."""
    weights = np.concatenate([s.weights for s in sides], axis=1)
    found = []
    for metric, values in numbers.items():
        name, _, size = metric.partition("@")
        if name == "majority" and not any(s.answered for s in sides):
            found += absent([metric], NO_ANSWERS)
        else:
            found.append(Cell(metric, weighted_mean(values, weights), _note(sides, name, size)))
    return found


def _note(sides: Sequence[Problems], name: str, size: str) -> str:
    if not size:
        return ""  # shares of all completions
    notes = [(s, "; ".join(s.left_out()) if name == "avg" else s.note(int(size))) for s in sides]
    told = [note if len(sides) == 1 else f"{s.part.name}: {note}" for s, note in notes if note]
    return "; ".join(told)


# --- tables -------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """A table per way of sampling: metrics by model, a column per set of problems."""
    protocols = sorted(
        {row.protocol for run in runs for row in run.result.rows if not row.protocol.startswith("floor")}
    )
    return tuple(_sampling(protocol, runs) for protocol in sorted(protocols))


def _sampling(protocol: str, runs: Sequence[Run]) -> Table:
    chosen = [run for run in runs if any(row.protocol == protocol for row in run.result.rows)]
    found = blocks(chosen, problem_identity)
    metrics = {row.metric for run in chosen for row in run.result.rows if row.protocol == protocol}
    groups = []
    for metric in sorted(metrics, key=_metric_rank):
        lines = [
            (model_name(run.result.manifest), [_rows_in(run, block).get((protocol, metric)) for block in found])
            for run in chosen
        ]
        share = "@" not in metric
        tops = [None if share else best_value(column) for column in zip(*(cells for _, cells in lines), strict=True)]
        groups.append(
            tuple(
                (
                    metric,
                    model,
                    *(cell_of(c, best=is_best(c, top)) for c, top in zip(cells, tops, strict=True)),
                )
                for model, cells in sorted(lines, key=lambda line: line[0])
            )
        )
    rows = [row for run in chosen for row in run.result.rows if row.protocol == protocol]
    return Table(
        label=f"policy-{protocol}",
        title=f"Policies, {protocol}",
        caption="avg@k: mean accuracy of k completions; pass@k: at least one of k is right, unbiased; majority@k: the "
        "commonest answer is right. Truncated: cut at the length limit. Unverified: the verifier gave no verdict. "
        "Percent, 95% interval over problems; an average weighs sets alike, a pooled number weighs problems alike.",
        header=("Metric", "Model", *(block.name for block in found)),
        groups=tuple(groups),
        notes=notes_of(rows),
        lead=_lead([block.name for block in found]),
    )


def _rows_in(run: Run, block: Block) -> dict[tuple[str, str], MetricRow]:
    return rows_of(run.result, block.subset) if run in block.runs else {}


def _metric_rank(metric: str) -> tuple[int, int]:
    """Averages, pass rates by k, votes, then shares."""
    order = ("avg", "pass", "majority", "truncated", "unverified")
    name = metric.partition("@")[0]
    return order.index(name) if name in order else len(order), group_size(metric) or 0


def _lead(names: Sequence[str]) -> str:
    """The pooled column where there is one, else the average, else the last set of problems."""
    return next((name for name in reversed(names) if name.startswith(("pooled", "average"))), names[-1])


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """A line per metric; the pooled numbers stand last."""
    subsets = list(dict.fromkeys(row.subset for row in result.rows))
    single = [s for s in subsets if "[" not in s]
    columns = (single if len(single) <= MOST_SUBSETS else []) + [s for s in subsets if "[" in s]
    heads = [{"a": "average", "m": "pooled"}[s[0]] if "[" in s else s for s in columns]
    lines: list[Row] = []
    shown: list[MetricRow | None] = []
    for key in keys:
        metrics = {row.metric for row in result.rows if row.protocol == key}
        for metric in sorted(metrics, key=_metric_rank):
            rows = [rows_of(result, subset).get((key, metric)) for subset in columns]
            shown += rows
            lines.append((metric, *(cell_of(row, interval=row is rows[-1]) for row in rows)))
    return Table(
        label="policy",
        title="",
        caption="",
        header=(f"{', '.join(keys) or 'policy'}, percent", *heads),
        groups=(tuple(lines),),
        notes=notes_of(row for row in shown if row is not None),
        text_columns=1,
    )


# --- checks -------------------------------------------------------------------------------------------------


def check_manifest(manifest: RunManifest) -> Iterator[Fault]:
    """Yields sampling options that could not name a protocol."""
    for name in SAMPLING:
        value = manifest.config.get(name)
        if not is_number(value) or not 0 <= value <= LARGEST_SCORE:
            yield f"config.{name}", f"is {short.repr(value)}, not a number of at least 0"


def check_trace(_: RunManifest, trace: ScoredTrace) -> Iterator[Fault]:
    """Yields what a completion must have, or cannot have."""
    if not trace.unscored:
        if trace.outcome is None:
            yield "outcome", "is missing, and no reason is given in unscored"
        if trace.values:
            yield "values", "are there, and a policy's completion has none"


TASK = Task(
    name="policy",
    title="answering",
    description="How right a model's own completions are. Every way of sampling has its own table.",
    unscored="not verified, neither right nor wrong",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    reads_outcomes=True,
    check_manifest=check_manifest,
    check_trace=check_trace,
    check_scores=group_size_faults,
)
