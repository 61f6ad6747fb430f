"""Threshold-free numbers of task steps: AUROC and AUPRC of wrong steps against right ones, up to the first error.

They stand beside F1 under the protocols `readout/ranking`, with chance under `floor/ranking`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prmbench.core.records import READOUTS, EvalProtocol, MetricRow, RunManifest, RunResult, ScoredTrace, Threshold
from prmbench.metrics import first_error, ranking
from prmbench.metrics.first_error import Floats
from prmbench.tasks.metric_rows import Cell, absent, share
from prmbench.tasks.table import Row, TableCell, Value

RULE: Threshold = "ranking"
FLOOR = "floor/ranking"
METRICS = ("auroc", "auprc")


def protocols(manifest: RunManifest) -> tuple[EvalProtocol, ...]:
    """Returns a protocol for each series and readout of a run; none for verdicts, which give no step a score."""
    if manifest.kind == "verdict" or (manifest.rules and RULE not in manifest.rules):
        return ()
    return tuple(
        EvalProtocol(readout, RULE, series=series, boundary=manifest.boundary)
        for series in ("", *manifest.series)
        for readout in READOUTS[manifest.kind]
    )


def cells(
    traces: Sequence[ScoredTrace], weights: Floats, protocol: EvalProtocol, is_constant: bool = False
) -> list[Cell]:
    """Computes both areas of a subset; traces without a score are left out, and their number is in the note.

    Args:
        traces: The labelled traces of the subset.
        weights: How often each is drawn in each replicate, [b, n].
        protocol: The readout.
        is_constant: Whether to rank by a constant score instead, which gives the floor.
    """
    scores, wrong, trace = first_error.steps_to_first_error(traces, protocol)
    if not wrong.any() or wrong.all():
        return absent(METRICS, f"no scored step that is {'right' if wrong.any() else 'wrong'}")
    curves = ranking.rank_low_scores(scores * 0 if is_constant else scores, wrong, trace, weights)
    unscored = sum(bool(t.unscored) for t in traces)
    note = f"unscored traces left out: {unscored}" if unscored else ""
    auroc = curves.auroc[:1] if is_constant else curves.auroc  # one half in every replicate
    return [share("auroc", auroc, note), share("auprc", curves.auprc, note)]


def summary_rows(result: RunResult, keys: Sequence[str], columns: Sequence[str]) -> tuple[Row, ...]:
    """Returns the rows of the terminal table: AUROC of each readout in these subsets, in percent."""
    rows = {(row.protocol, row.subset): row for row in result.rows if row.metric == "auroc"}
    return tuple(
        (f"AUROC {_readout(key)}", *(_cell(rows.get((key, c)), is_last=c == columns[-1]) for c in columns))
        for key in keys
    )


def _readout(key: str) -> str:
    """`logprob.step_sum` for `logprob.step_sum/ranking`; a boundary stays."""
    return key.replace(f"/{RULE}", "")


def _cell(row: MetricRow | None, is_last: bool) -> TableCell:
    if row is None:
        return ""
    return Value(row.value, lo=row.lo if is_last else None, hi=row.hi if is_last else None)


def summary_notes(keys: Sequence[str]) -> list[str]:
    """Returns the note under these rows."""
    return ["AUROC: of wrong steps against right ones up to the first error; chance 50"] if keys else []


def areas(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> tuple[float, float]:
    """Returns AUROC and AUPRC of labelled traces, as `cells` has them for the whole sample; nan where undefined."""
    scores, wrong, trace = first_error.steps_to_first_error(traces, protocol)
    in_sample = ranking.rank_low_scores(scores, wrong, trace, np.ones((1, len(traces))))
    return float(in_sample.auroc[0]), float(in_sample.auprc[0])
