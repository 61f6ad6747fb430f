"""Task policy: how right a policy's own completions are: avg@k, unbiased pass@k, majority, and what was cut or unclear.

A completion that the verifier could not judge is neither right nor wrong: it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prmbench.core.records import MetricRow, RunManifest, ScoredTrace
from prmbench.metrics import best_of_n
from prmbench.metrics.first_error import Floats
from prmbench.tasks.metric_rows import Cell, Judged, Part, absent, cell_rows, weighted_mean
from prmbench.tasks.problem_groups import Problems, Subsets, problems, votes

NO_ANSWERS = "the completions name no answers"


def keys(manifest: RunManifest) -> tuple[str, ...]:
    """How the completions were drawn: `sampled/t0.6,p0.95,n8` (with `,k20` where top-k was on) or `greedy`."""
    told = manifest.config
    if not told["temperature"]:
        return ("greedy",)
    top_k = f",k{told['top_k']}" if told["top_k"] else ""
    return (f"sampled/t{told['temperature']:g},p{told['top_p']:g},n{told['group_size']}{top_k}",)


def judged(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """One protocol, and in it the metrics of every subset."""
    sides = problems(manifest, scores)
    cells = {s.part.name: _cells([s], found) for s, found in zip(sides, _all_numbers(sides, manifest), strict=True)}
    return Judged(tuple(s.part for s in sides), dict.fromkeys(keys(manifest), cells))


def micro_rows(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> list[MetricRow]:
    """`micro[a,b]`: every problem counts alike, whichever subset it is of. None where there is but one subset."""
    sides = problems(manifest, scores)
    if len(sides) < 2:  # noqa: PLR2004
        return []
    found = _all_numbers(sides, manifest)
    together = {metric: np.concatenate([f[metric] for f in found]) for metric in found[0]}
    name = f"micro[{','.join(s.part.name for s in sides)}]"
    whole = Part(name, sum(s.part.n for s in sides), sum(s.part.unscored for s in sides), sides[0].part.missing)
    return [row for cell in _cells(sides, together) for row in cell_rows(whole, keys(manifest)[0], cell)]


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
