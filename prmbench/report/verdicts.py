"""Predicted first errors of a run under a protocol, and how they compare with the labels.

The thresholds are those of the metric rows, so counting exact hits gives the tables' accuracies; where folds have their
own, a trace has the median over the splits into folds, and the counts come close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prmbench.core.records import DEFAULT_READOUTS, EvalProtocol, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.metrics import first_error

KINDS = ("exact", "early", "late", "missed", "passed", "false alarm", "unscored")
"""exact, early, late and missed are for traces with an error; passed and false alarm for those without."""


PICK_KINDS = (*KINDS, "right pick", "wrong pick", "tie")
"""Kinds in the trace viewer: those of traces, then of what best-of-N picks; a tie holds right and wrong completions."""


def thresholds(run: Run, protocol: EvalProtocol) -> dict[str, float]:
    """Returns the threshold of each trace by id; nan for `vote` and where the run has no threshold."""
    threshold_by_id: dict[str, float] = {}
    for subset in run.result.manifest.subsets:
        traces = sorted((t for t in run.scores if t.subset == subset), key=lambda t: t.id)
        if protocol.threshold == "cross_validated" or (protocol.threshold == "calibrated" and protocol.on == subset):
            threshold_by_id |= _fold_thresholds(traces, protocol)
        else:
            threshold = _row_value(run, subset, protocol.key, "threshold")
            threshold_by_id |= {t.id: math.nan if threshold is None else threshold for t in traces}
    return threshold_by_id


def _fold_thresholds(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> dict[str, float]:
    fold = first_error.fold_splits([t.cluster for t in traces])
    if not fold.any():  # one problem: the rows have no number here either
        return {t.id: math.nan for t in traces}
    _, tuned = first_error.out_of_fold_rates(first_error.sample(traces, protocol), fold)
    by_split = np.take_along_axis(tuned.reshape(len(fold), -1), fold, axis=1)
    return {t.id: float(at) for t, at in zip(traces, np.median(by_split, axis=0), strict=True)}


def _row_value(run: Run, subset: str, protocol: str, metric: str) -> float | None:
    for row in run.result.rows:
        if (row.subset, row.protocol, row.metric) == (subset, protocol, metric):
            return row.value
    return None


def predict(trace: ScoredTrace, protocol: EvalProtocol, threshold: float) -> int | None:
    """Returns the predicted first error, -1 for none; None if the trace is unscored or no critique could be parsed."""
    if protocol.readout == "vote":
        return None if trace.unscored else first_error.majority(trace.verdicts)
    scores = first_error.readout(trace, protocol)
    if scores is None or math.isnan(threshold):
        return None
    return first_error.first_below(first_error.break_ties(scores, protocol.tie), threshold)


def verdict_kind(predicted: int | None, label: int) -> str:
    """Compares a predicted first error with the label; returns one of KINDS."""
    if predicted is None:
        return "unscored"
    if label < 0:
        return "passed" if predicted < 0 else "false alarm"
    if predicted == label:
        return "exact"
    if predicted < 0:
        return "missed"
    return "early" if predicted < label else "late"


def headline_protocol(run: Run) -> EvalProtocol | None:
    """Returns the protocol that figures show: headline readout; calibrated, else native, fixed, oracle."""
    readout = DEFAULT_READOUTS[run.result.manifest.kind]
    keys = {row.protocol for row in run.result.rows if row.metric == "f1" and row.value is not None}
    parsed = sorted((EvalProtocol.parse(k) for k in keys if not k.startswith("floor/")), key=lambda p: p.key)
    for rule in ("calibrated", "native", "fixed", "oracle"):
        for protocol in parsed:
            if (protocol.readout, protocol.threshold, protocol.series) == (readout, rule, ""):
                return replace(protocol, tie=run.result.manifest.tie)
    return None
