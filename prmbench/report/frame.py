"""Runs -> one long pandas frame: a line per number, with the facts of its run beside it.

Every table and figure starts here; nothing is rounded or left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import get_args

import pandas as pd

from prmbench.core.records import EvalProtocol, RunManifest, ScoredTrace, Task
from prmbench.core.result_files import Run, sha256

RULES: dict[str, tuple[str, str]] = {
    "calibrated": (
        "Calibrated",
        "The threshold is tuned on one subset (named in the protocol) and applied to the others. "
        "The tuning subset's own cell is judged out of fold.",
    ),
    "cross_validated": (
        "Cross-validated",
        "Five folds by problem within each subset: tuned on four, judged on the fifth.",
    ),
    "native": ("Native", "The model's own label: the verdict, or the label token it prefers. Nothing is tuned."),
    "fixed": ("Fixed", "A threshold given beforehand and named in the protocol. Nothing is tuned."),
    "calibrated_in_sample": (
        "Calibrated, in sample",
        "As calibrated, but the tuning subset is also judged by the threshold tuned on it: its cell is an upper "
        "bound. Shown because published tables do this.",
    ),
    "oracle": (
        "Oracle (upper bound)",
        "The threshold is tuned on the very traces that are scored. No model reaches this in use; never compare it "
        "with a number from another table.",
    ),
    "not stated": ("Threshold rule not stated", "The source does not say how the threshold was chosen."),
}
"""Threshold rules in table order: title and one explanation."""
FLOORS: dict[str, str] = {
    "floor/random": "chance: random scores, best threshold",
    "floor/position": "chance: commonest position only",
    "floor/outcome_oracle": "knows the final answer only",
}
COLUMNS = (
    *("benchmark", "model", "revision", "run_id", "backend", "kind", "input_format", "boundary"),
    *("signal", "trained_on", "commit"),
    *("subset", "protocol", "rule", "readout"),
    *("metric", "value", "lo", "hi", "n", "unscored", "note"),
)
OTHER_TASKS = tuple(task for task in get_args(Task) if task != "steps")
JOINED = "joined"
"""The sheet with a row per checkpoint."""
PLAIN_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}(?<![.-])")
HASHED = re.compile(r"(^|-)[0-9a-f]{8}$")
RESERVED = ("readme", "report")
"""Files that lie beside the tables."""
NAME_LENGTH = 80
SUBSET_ORDER = ("gsm8k", "math", "olympiadbench", "omnimath")


def frame(runs: Iterable[Run]) -> pd.DataFrame:
    """One line per MetricRow, sorted, so that the order of the runs does not matter."""
    lines = [
        (
            *(m.benchmark, m.model, m.revision or "", m.run_id, m.backend, m.kind, m.input_format, m.boundary),
            *(m.signal, " ".join(m.trained_on), m.commit or ""),
            *(row.subset, row.protocol, *rule_and_readout(row.protocol, m.task)),
            *(row.metric, row.value, row.lo, row.hi, row.n, row.unscored, row.note),
        )
        for run in runs
        for m in [run.result.manifest]
        for row in run.result.rows
    ]
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    for name in ("value", "lo", "hi"):
        table[name] = table[name].astype(float)
    keys = ["benchmark", "model", "run_id", "protocol", "subset", "metric"]
    return table.sort_values(keys, kind="stable", ignore_index=True)


def rule_and_readout(key: str, task: str = "steps") -> tuple[str, str]:
    """`logprob.step_sum/calibrated:gsm8k` -> (`calibrated`, `logprob.step_sum`); floors have the rule `floor`.

    Other tasks have no threshold: `step_sum/last` -> (`last`, `step_sum`).
    """
    if key.startswith("floor/"):
        return "floor", ""
    if task not in ("steps", "format_shift", "validity"):
        readout, _, rule = key.partition("/")
        return rule, readout
    protocol = EvalProtocol.parse(key)
    return protocol.threshold, f"{protocol.series}." * bool(protocol.series) + protocol.readout


def columns(table: pd.DataFrame) -> tuple[str, ...]:
    """Subsets in the field's order, then averages, the one over most subsets first."""
    names = set(table["subset"])
    subsets = sorted((n for n in names if not n.startswith("avg[")), key=subset_rank)
    averages = sorted((n for n in names if n.startswith("avg[")), key=lambda n: (-n.count(","), n))
    return (*subsets, *averages)


def subset_rank(name: str) -> tuple[int, str]:
    """The field's order for subsets it knows, then alphabetical."""
    return (SUBSET_ORDER.index(name), "") if name in SUBSET_ORDER else (len(SUBSET_ORDER), name)


def model_name(manifest: RunManifest) -> str:
    """`org/name@abc1234`, in one line: the revision, shortened when it is a hash."""
    revision = manifest.revision
    if revision is not None and re.fullmatch("[0-9a-f]{7,}", revision):
        revision = revision[:7]
    name = manifest.model if revision is None else f"{manifest.model}@{revision}"
    return " ".join(name.split()).replace("`", "'")  # a cell that begins with a backtick would be a protocol


def slug(name: str) -> str:
    """A benchmark's name as a file name: no two names have the same one, also where the case of letters is ignored.

    A name that is no plain file name, or that looks like one made here, ends with a part of its hash.
    """
    if PLAIN_NAME.fullmatch(name) and not HASHED.search(name) and name not in RESERVED:
        return name
    short = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:NAME_LENGTH]
    return f"{short}-{sha256(name.encode())[:8]}".lstrip("-")


def is_sheet_name(benchmark: str) -> bool:
    """Whether a sheet of another task than step F1 may have this name: `policy`, `gym-policy`, `joined`."""
    return benchmark in (*OTHER_TASKS, JOINED) or benchmark.endswith(tuple(f"-{task}" for task in OTHER_TASKS))


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


def members(column: str) -> tuple[str, ...]:
    """`avg[a,b]` -> its subsets; a subset -> itself."""
    return tuple(column[4:-1].split(",")) if column.startswith("avg[") else (column,)
