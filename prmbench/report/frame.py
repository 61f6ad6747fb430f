"""Runs -> one long pandas frame: a line per number, with the facts of its run beside it.

Every table and figure starts here; nothing is rounded or left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from prmbench.core.records import RunManifest, ScoredTrace
from prmbench.core.result_files import Run, sha256
from prmbench.tasks import find_task, known_tasks
from prmbench.tasks.wording import rule_and_readout, subset_rank

COLUMNS = (
    *("benchmark", "model", "revision", "run_id", "backend", "kind", "input_format", "boundary"),
    *("signal", "trained_on", "commit"),
    *("subset", "protocol", "rule", "readout"),
    *("metric", "value", "lo", "hi", "n", "unscored", "note"),
)
JOINED = "joined"
"""The sheet with a row per checkpoint."""
PLAIN_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}(?<![.-])")
HASHED = re.compile(r"(^|-)[0-9a-f]{8}$")
RESERVED = ("readme", "report")
"""Files that lie beside the tables."""
NAME_LENGTH = 80


def frame(runs: Iterable[Run]) -> pd.DataFrame:
    """One line per MetricRow, sorted, so that the order of the runs does not matter."""
    lines = [
        (
            *(m.benchmark, m.model, m.revision or "", m.run_id, m.backend, m.kind, m.input_format, m.boundary),
            *(m.signal, " ".join(m.trained_on), m.commit or ""),
            *(row.subset, row.protocol, *rule_and_readout(row.protocol, has_threshold)),
            *(row.metric, row.value, row.lo, row.hi, row.n, row.unscored, row.note),
        )
        for run in runs
        for m in [run.result.manifest]
        for has_threshold in [find_task(m.task).has_threshold]
        for row in run.result.rows
    ]
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    for name in ("value", "lo", "hi"):
        table[name] = table[name].astype(float)
    keys = ["benchmark", "model", "run_id", "protocol", "subset", "metric"]
    return table.sort_values(keys, kind="stable", ignore_index=True)


def columns(table: pd.DataFrame) -> tuple[str, ...]:
    """Subsets in the field's order, then averages, the one over most subsets first."""
    names = set(table["subset"])
    subsets = sorted((n for n in names if not n.startswith("avg[")), key=subset_rank)
    averages = sorted((n for n in names if n.startswith("avg[")), key=lambda n: (-n.count(","), n))
    return (*subsets, *averages)


def slug(name: str) -> str:
    """A benchmark's name as a file name: no two names have the same one, also where the case of letters is ignored.

    A name that is no plain file name, or that looks like one made here, ends with a part of its hash.
    """
    if PLAIN_NAME.fullmatch(name) and not HASHED.search(name) and name not in RESERVED:
        return name
    short = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:NAME_LENGTH]
    return f"{short}-{sha256(name.encode())[:8]}".lstrip("-")


def is_sheet_name(benchmark: str) -> bool:
    """Whether a page of a task without a board may have this name: `policy`, `gym-policy`, `joined`."""
    names = [task.name for task in known_tasks() if not task.has_board]
    return benchmark in (*names, JOINED) or benchmark.endswith(tuple(f"-{name}" for name in names))


def overlaps(manifest: RunManifest) -> bool:
    """True when the model says it was trained on the benchmark or on one of its subsets."""
    known = {manifest.benchmark.lower(), *(s.lower() for s in manifest.subsets)}
    return any(name.lower() in known for name in manifest.trained_on)


def odd_subsets(runs: Sequence[Run]) -> dict[str, set[str]]:
    """Run id -> subsets in which that run scored other traces than the column's largest common set.

    Such cells are marked and never ranked: a run with `--limit` is not the benchmark.
    """
    prints = {
        (run.result.manifest.run_id, subset): fingerprint([t for t in run.scores if t.subset == subset])
        for run in runs
        for subset in run.result.manifest.subsets
    }
    odd: dict[str, set[str]] = {run.result.manifest.run_id: set() for run in runs}
    for subset in {where for _, where in prints}:
        found = [value for (_, where), value in prints.items() if where == subset]
        reference = max(found, key=lambda f: (f[0], found.count(f), repr(f)))
        for (run_id, where), value in prints.items():
            if where == subset and value != reference:
                odd[run_id].add(subset)
    return odd


def fingerprint(traces: Sequence[ScoredTrace]) -> tuple[int, tuple[tuple[str, int | None, int], ...]]:
    """Which traces a subset holds, with labels: two runs are comparable where it is equal."""
    return len(traces), tuple(sorted((t.id, t.label, t.steps) for t in traces))
