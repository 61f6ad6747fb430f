"""Measures of a checkpoint on disjoint problems: step F1 and calibration on some, best-of-N on others.

Two measures of the same completions agree because the completions are the same. Where the runs of a checkpoint share
problems, these are dealt out at random, one half to each measure, many times; problems that only one of the two has
stay with it. Worlds made since then have different problems for the two, and nothing is split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from prmbench.core.records import READOUTS, EvalProtocol, RunManifest, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.metrics import best_of_n, calibration, first_error
from prmbench.metrics.first_error import Floats, Sample
from prmbench.studies.reporting.checkpoint_rows import BEST_OF_N_GAIN, CALIBRATION_COLUMNS, F1_COLUMNS
from prmbench.studies.reporting.reward_model_runs import PROCESS_READOUTS, SHIFTS, TUNING, own_readouts

SPLITS = 20
"""Random halves; a correlation is the mean over them."""
_PROBLEM = re.compile(r"[a-z]+-\d+-\d+")
"""Split, seed and number of a problem of the miniature, which are in the ids of all its traces."""
UNDECIDED = 0.5
"""A prefix whose continuations succeed as often as they fail counts in no AUC."""
Names = NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure as a function of weights of its items (traces, prefixes or groups of completions)."""

    problems: Names
    """[n] the problem of each item."""
    values: Callable[[Floats], Floats]
    """Weights of the items [s, n] -> values [s]; with weights of 1 it is the number in the tables."""

    def on(self, weight_of_problem: Mapping[str, Floats], splits: int) -> Floats:
        """Returns the values [s], given the weights [s] of problems; other problems have weight 1."""
        ones = np.ones(splits)
        weights = np.stack([weight_of_problem.get(name, ones) for name in self.problems.tolist()], axis=1)
        return self.values(weights)


def measures(runs: Sequence[Run], method: str) -> dict[str, Measure]:
    """Returns the measures of one checkpoint of the miniature by column of the joined table.

    Args:
        runs: The checkpoint's runs.
        method: Its method, which decides how its own value is read.
    """
    by_column: dict[str, Measure] = {}
    for run in runs:
        m = run.result.manifest
        make = {"steps": _f1_measures, "best_of_n": _gain_measures, "calibration": _calibration_measures}.get(m.task)
        by_column |= make(m, run.scores, own_readouts(method)) if make else {}
    return by_column


def disjoint(x: Measure, y: Measure, splits: int = SPLITS) -> tuple[Floats, Floats] | None:
    """Returns the values of two measures, [s] each, on disjoint problems; None when they share none."""
    shared = tuple(sorted(set(x.problems.tolist()) & set(y.problems.tolist())))
    if not shared:
        return None
    to_x = _halves(shared, splits)
    x_weights = dict(zip(shared, to_x.T, strict=True))
    y_weights = dict(zip(shared, 1 - to_x.T, strict=True))
    return x.on(x_weights, splits), y.on(y_weights, splits)


@lru_cache(maxsize=256)
def _halves(problems: tuple[str, ...], splits: int) -> Floats:
    """[s, c]: 1 where a problem is in the first half of a split. Checkpoints of one world are split alike."""
    halves = np.zeros((splits, len(problems)))
    for split in range(splits):
        digests = [sha256(f"{split}/{problem}".encode()).digest() for problem in problems]
        order = sorted(range(len(problems)), key=digests.__getitem__)
        halves[split, order[: len(problems) // 2]] = 1
    return halves


def _problem(trace: ScoredTrace) -> str:
    match = _PROBLEM.search(trace.id)
    return match[0] if match else trace.id


def _problems(traces: Sequence[ScoredTrace]) -> Names:
    return np.array([_problem(trace) for trace in traces], dtype=np.str_)


def _readout(manifest: RunManifest, readouts: Sequence[str]) -> EvalProtocol | None:
    """Returns the first of the readouts, in order of preference, that a run's kind of score has."""
    names = [name for wanted in readouts for name in READOUTS[manifest.kind] if name == wanted]
    return EvalProtocol(names[0], "oracle", boundary=manifest.boundary) if names else None


# --- F1 ---------------------------------------------------------------------------------------------------------


def _f1_measures(manifest: RunManifest, scores: Sequence[ScoredTrace], own: Sequence[str]) -> dict[str, Measure]:
    subsets: dict[str, list[ScoredTrace]] = {}
    for trace in scores:
        subsets.setdefault(trace.subset, []).append(trace)
    columns = {
        F1_COLUMNS[0]: (PROCESS_READOUTS, ("onpolicy",), False),
        F1_COLUMNS[1]: (PROCESS_READOUTS, ("injected",), False),
        F1_COLUMNS[2]: (PROCESS_READOUTS, SHIFTS, False),
        F1_COLUMNS[3]: (own, ("onpolicy",), False),
        F1_COLUMNS[4]: (PROCESS_READOUTS, ("onpolicy",), True),
        F1_COLUMNS[5]: (PROCESS_READOUTS, ("injected",), True),
    }
    by_column = {}
    for column, (readouts, names, is_oracle) in columns.items():
        protocol = _readout(manifest, readouts)
        if protocol is not None and all(name in subsets for name in (*names, TUNING)):
            samples = {name: first_error.sample(subsets[name], protocol) for name in (*names, TUNING)}
            tuned = first_error.best_threshold(samples[TUNING], np.ones((1, len(samples[TUNING]))))
            values = partial(_f1, [samples[name] for name in names], None if is_oracle else tuned)
            by_column[column] = Measure(np.concatenate([_problems(subsets[name]) for name in names]), values)
    return by_column


def _f1(subsets: Sequence[Sample], tuned: Floats | None, weights: Floats) -> Floats:
    """Returns the mean F1 over subsets under weights of their traces, [s].

    `tuned`: the threshold, [1]; None = the best one for the weights.
    """
    values, start = [], 0
    for data in subsets:
        of_subset = weights[:, start : start + len(data)]
        threshold = first_error.best_threshold(data, of_subset) if tuned is None else np.repeat(tuned, len(weights))
        values.append(first_error.harmonic(*first_error.accuracies(data, data.matches(threshold), of_subset)))
        start += len(data)
    return np.asarray(np.mean(values, axis=0))


# --- best of N --------------------------------------------------------------------------------------------------


def _gain_measures(manifest: RunManifest, scores: Sequence[ScoredTrace], own: Sequence[str]) -> dict[str, Measure]:
    """Gain of the completion picked by the value at its last step, over a random one."""
    protocol = _readout(manifest, own)
    if protocol is None:
        return {}
    verified = [trace for trace in scores if trace.outcome is not None]
    last = np.full(len(verified), -np.inf)
    for indices, steps in first_error.readouts(verified, protocol):
        last[indices] = steps[:, -1] if steps.shape[1] else -np.inf
    groups: dict[str, list[int]] = {}
    for i, trace in enumerate(verified):
        groups.setdefault(trace.cluster, []).append(i)
    sizes = best_of_n.group_sizes(max(map(len, groups.values()), default=0))
    complete = [group for group in groups.values() if sizes and len(group) >= sizes[-1]]
    if not complete:
        return {}
    outcomes = np.array([trace.outcome for trace in verified], dtype=float)
    gains = np.array(
        [best_of_n.expected_best_of(last[None, g], outcomes[g], sizes)[0] - outcomes[g].mean() for g in complete]
    )
    problems = _problems([verified[group[0]] for group in complete])
    return {
        f"{BEST_OF_N_GAIN} @{sizes[-1]}": Measure(problems, partial(_weighted_mean, gains[:, -1])),
        f"{BEST_OF_N_GAIN} mean": Measure(problems, partial(_weighted_mean, gains.mean(axis=1))),
    }


def _weighted_mean(values: Floats, weights: Floats) -> Floats:
    return np.asarray(weights @ values / weights.sum(axis=1))


# --- calibration ------------------------------------------------------------------------------------------------


def _calibration_measures(
    manifest: RunManifest, scores: Sequence[ScoredTrace], own: Sequence[str]
) -> dict[str, Measure]:
    """ECE and AUC of a prefix's value as a probability of success."""
    protocol = _readout(manifest, own)
    traces = [trace for trace in scores if not trace.unscored and trace.step_labels]
    if protocol is None or not traces or manifest.kind == "prob":
        return {}
    values = np.concatenate([first_error.readout(trace, protocol) for trace in traces])
    targets = np.concatenate([np.array(trace.step_labels, dtype=float) for trace in traces])
    problems = np.repeat(_problems(traces), [trace.steps for trace in traces])
    logits = (manifest.beta or 1.0) * values
    return {
        CALIBRATION_COLUMNS[0]: Measure(problems, partial(_ece, calibration.sigmoid(logits), targets)),
        CALIBRATION_COLUMNS[2]: Measure(problems, partial(_auc, logits, targets)),
    }


def _ece(probabilities: Floats, targets: Floats, weights: Floats) -> Floats:
    resampling = calibration.Resampled(np.arange(len(targets)), weights)
    return calibration.reliability(probabilities, targets, resampling).ece


def _auc(logits: Floats, targets: Floats, weights: Floats) -> Floats:
    decided = targets != UNDECIDED
    resampling = calibration.Resampled(np.arange(len(targets)), weights).select(decided)
    return calibration.auc(logits[decided], targets[decided] > UNDECIDED, resampling)
