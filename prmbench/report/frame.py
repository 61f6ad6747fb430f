"""Turns runs into one long pandas frame, with a row per number and the facts of its run; nothing is rounded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from prmbench.core.records import RunManifest, ScoredTrace
from prmbench.core.result_files import Run, sha256
from prmbench.tasks import find_task, known_tasks
from prmbench.tasks.wording import rule_and_readout, run_name, subset_rank

COLUMNS = (
    *("benchmark", "model", "name", "revision", "run_id", "backend", "kind", "input_format", "boundary"),
    *("signal", "trained_on", "commit"),
    *("subset", "protocol", "rule", "readout"),
    *("metric", "value", "lo", "hi", "n", "unscored", "note"),
)
CHECKPOINT_SHEET = "joined"
"""Name of the sheet with a row per checkpoint."""
TRAINING_SHEET = "training-runs"
"""Name of the sheet of `train-rm` and `train-sft`."""
PLAIN_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}(?<![.-])")
HASHED = re.compile(r"(^|-)[0-9a-f]{8}$")
RESERVED = ("readme", "report")
"""Names of other files in the same folder."""
NAME_LENGTH = 80


def frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Returns one row per MetricRow, sorted, so that the order of the runs does not matter."""
    records = [
        (
            *(
                m.benchmark,
                m.model,
                run_name(run),
                m.revision or "",
                m.run_id,
                m.backend,
                m.kind,
                m.input_format,
                m.boundary,
            ),
            *(m.signal, " ".join(m.trained_on), m.commit or ""),
            *(row.subset, row.protocol, *rule_and_readout(row.protocol, has_threshold)),
            *(row.metric, row.value, row.lo, row.hi, row.n, row.unscored, row.note),
        )
        for run in runs
        for m in [run.result.manifest]
        for has_threshold in [find_task(m.task).has_threshold]
        for row in run.result.rows
    ]
    table = pd.DataFrame(records, columns=list(COLUMNS))
    for name in ("value", "lo", "hi"):
        table[name] = table[name].astype(float)
    keys = ["benchmark", "model", "run_id", "protocol", "subset", "metric"]
    return table.sort_values(keys, kind="stable", ignore_index=True)


def columns(table: pd.DataFrame) -> tuple[str, ...]:
    """Returns subsets in table order, then averages, the one over most subsets first."""
    names = set(table["subset"])
    subsets = sorted((n for n in names if not n.startswith("avg[")), key=subset_rank)
    averages = sorted((n for n in names if n.startswith("avg[")), key=lambda n: (-n.count(","), n))
    return (*subsets, *averages)


def slug(name: str) -> str:
    """Returns a file name for a benchmark, unique even where file names ignore case.

    A part of the name's hash is appended unless the name is a plain file name that does not end like a hash.
    """
    if PLAIN_NAME.fullmatch(name) and not HASHED.search(name) and name not in RESERVED:
        return name
    short = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:NAME_LENGTH]
    return f"{short}-{sha256(name.encode())[:8]}".lstrip("-")


def is_sheet_name(benchmark: str) -> bool:
    """Whether a page of a task without a board may have this name: `policy`, `gym-policy`, `joined`."""
    names = [task.name for task in known_tasks() if not task.has_board]
    return benchmark in (*names, CHECKPOINT_SHEET, TRAINING_SHEET) or benchmark.endswith(
        tuple(f"-{name}" for name in names)
    )


def is_trained_on_benchmark(manifest: RunManifest) -> bool:
    """Whether the model declares that it was trained on the benchmark or on one of its subsets."""
    names = {manifest.benchmark.lower(), *(s.lower() for s in manifest.subsets)}
    return any(name.lower() in names for name in manifest.trained_on)


def incomparable_subsets(runs: Sequence[Run]) -> dict[str, set[str]]:
    """Returns, by run id, the subsets in which the run scored other traces than most runs of the column.

    Such cells are marked and never ranked: for example, a run with `--limit` covers only a part of the benchmark.
    """
    fingerprints = {
        (run.result.manifest.run_id, subset): fingerprint([t for t in run.scores if t.subset == subset])
        for run in runs
        for subset in run.result.manifest.subsets
    }
    incomparable: dict[str, set[str]] = {run.result.manifest.run_id: set() for run in runs}
    for subset in {other_subset for _, other_subset in fingerprints}:
        values = [value for (_, other_subset), value in fingerprints.items() if other_subset == subset]
        reference = max(values, key=lambda f: (f[0], values.count(f), repr(f)))
        for (run_id, other_subset), value in fingerprints.items():
            if other_subset == subset and value != reference:
                incomparable[run_id].add(subset)
    return incomparable


def fingerprint(traces: Sequence[ScoredTrace]) -> tuple[int, tuple[tuple[str, int | None, int], ...]]:
    """Identifies the traces of a subset and their labels; two runs are comparable where it is equal."""
    return len(traces), tuple(sorted((t.id, t.label, t.steps) for t in traces))
