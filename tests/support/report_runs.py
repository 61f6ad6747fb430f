"""Small runs on disk for the report tests: a made-up benchmark of short traces, scored by drawn numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace, StepScores, Trace, join_scores
from prmbench.core.result_files import pack_scores, sha256, unpack_scores, write_run
from prmbench.report import Report
from prmbench.tasks import judge

SUBSETS = ("gsm8k", "math", "omnimath")
CLEAN = Report(())
"""What a check says when all is well."""


def traces(per_subset: int = 24, subsets: Sequence[str] = SUBSETS) -> list[Trace]:
    """Every third trace is right; the others err at step 0, 1 or 2 of four."""
    return [
        Trace(
            id=f"{subset}-{i}",
            prompt=f"{subset} problem {i // 2}",
            steps=tuple(f"step {k} of {subset}-{i}" for k in range(4)),
            first_error=-1 if i % 3 == 0 else i % 4 % 3,
            outcome=int(i % 3 == 0),
            subset=subset,
        )
        for subset in subsets
        for i in range(per_subset)
    ]


def scores_of(items: Sequence[Trace], kind: str = "prob", seed: int = 0, skill: float = 1.5) -> list[ScoredTrace]:
    """Draws scores that fall by `skill` at the first error; the last trace stays unscored."""
    rng = np.random.default_rng(seed)
    found = []
    for trace in items:
        draws = rng.normal(0, 1, len(trace.steps))
        if trace.first_error is not None and trace.first_error >= 0:
            draws[trace.first_error :] -= skill
        if kind == "verdict":
            votes = rng.choice([trace.first_error, -1, 1], size=3)
            scores = StepScores(trace.id, verdicts=(*(int(v) for v in votes), None))
        elif kind == "logratio":
            values = tuple(float(v) for v in draws)
            tokens = tuple(int(n) for n in rng.integers(2, 9, len(draws)))
            scores = StepScores(trace.id, values, tokens)
        else:
            scores = StepScores(trace.id, tuple(float(p) for p in 1 / (1 + np.exp(-draws))))
        found.append(join_scores(trace, StepScores(trace.id, unscored="too long") if trace is items[-1] else scores))
    return found


def manifest(scores: Sequence[ScoredTrace], packed: bytes, **facts: Any) -> RunManifest:
    """A complete manifest; `facts` replace what a test is about."""
    subsets = tuple(dict.fromkeys(t.subset for t in scores))
    defaults: dict[str, Any] = {
        "run_id": "0123456789ab",
        "model": "org/model",
        "backend": "token_cls",
        "kind": "prob",
        "input_format": "tagged",
        "boundary": "exact",
        "benchmark": "mini",
        "benchmark_hash": "0" * 64,
        "subsets": subsets,
        "n": len(scores),
        "config": {},
        "seed": 0,
        "scores_sha256": sha256(packed),
        "signal": "steps",
        "packages": {"python": "3.11"},
        "commit": "c" * 40,
        "dirty": False,
    }
    return RunManifest(**defaults | facts)


def write(
    root: Path, scores: Sequence[ScoredTrace], rows: Sequence[MetricRow] | None = None, folder: str = "", **facts: Any
) -> Path:
    """Writes a run and returns the path of its result; rows come from judge() unless given."""
    packed = pack_scores(scores)
    kept = unpack_scores(packed, root)
    about = manifest(kept, packed, **facts)
    made = judge(about, kept) if rows is None else tuple(rows)
    path = root / (folder or about.model.replace("/", "--")) / f"{about.run_id}.json"
    write_run(path, RunResult(about, made), packed)
    return path


def write_four(root: Path) -> list[Trace]:
    """Four runs: a tag-token model, an implicit one, a critic, a baseline, on the same traces; returns the traces."""
    items = traces()

    def add(letter: str, scores: Sequence[ScoredTrace], **facts: Any) -> None:
        write(root, scores, run_id=letter * 12, replicates=100, **facts)

    add("a", scores_of(items), native=0.5)
    implicit = {"kind": "logratio", "backend": "implicit", "input_format": "chat", "signal": "outcome"}
    add("b", scores_of(items, "logratio", 1), model="org/implicit", **implicit)
    critic = {"kind": "verdict", "backend": "critic", "input_format": "critique", "signal": "none"}
    add("c", scores_of(items, "verdict", 2), model="org/critic", **critic)
    add("d", scores_of(items, "prob", 3, 0.0), model="random", backend="baseline", signal="none")
    return items


# --- other tasks ------------------------------------------------------------------------------------------


def completions(group: int = 4, problems: int = 8, subsets: Sequence[str] = ("easy", "hard")) -> list[Trace]:
    """Completions of three steps; the first of every group is right and the second shares its answer's letter."""
    return [
        Trace(
            id=f"{subset}-{i}/{k}",
            prompt=f"{subset} problem {i}",
            steps=("a", "b", "c"),
            outcome=int(k % group == i % group or (subset == "easy" and k % 2 == 0)),
            answer="right" if k % group == i % group or (subset == "easy" and k % 2 == 0) else f"wrong{k % 2}",
            step_labels=(0.2, 0.5, float(k % group == i % group)),
            subset=subset,
            finish="stop" if k else "length",
        )
        for subset in subsets
        for i in range(problems)
        for k in range(group)
    ]


def task_scores(items: Sequence[Trace], seed: int = 0, skill: float = 1.0) -> list[ScoredTrace]:
    """Log-ratios that rise by `skill` with a right answer."""
    rng = np.random.default_rng(seed)
    found = []
    for trace in items:
        draws = rng.normal(skill * (trace.outcome or 0), 1, len(trace.steps))
        found.append(join_scores(trace, StepScores(trace.id, tuple(map(float, draws)), (3,) * len(trace.steps))))
    return found


def write_task(root: Path, task: str, scores: Sequence[ScoredTrace], **facts: Any) -> Path:
    """A run of another task than step F1, its rows by judge()."""
    defaults = {"benchmark": task, "task": task, "kind": "logratio", "backend": "implicit", "beta": 1.0}
    if task == "policy":
        sampling = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "group_size": 4}
        defaults |= {"kind": "outcome", "backend": "policy", "config": sampling}
    return write(root, scores, folder=task, **defaults | facts)


STUDY_SUBSETS = ("val", "onpolicy", "injected", "headers", "separators", "words", "merged", "verbose")
READ = {"logratio": ("prefix_sum", "step_sum", "prefix_mean"), "value": ("as_is", "step_diff")}


def study_rows(task: str, kind: str, level: float) -> list[MetricRow]:
    """Rows of one run of a study, all of whose numbers are `level` and what a test can tell them apart by."""

    def row(subset: str, protocol: str, metric: str, value: float) -> MetricRow:
        return MetricRow(subset, protocol, metric, value, value - 0.01, value + 0.01, 2, 0)

    if task == "steps":
        found = [row(s, "floor/random_calibrated", "f1", 0.2) for s in STUDY_SUBSETS]
        for at, readout in enumerate(READ[kind]):
            bonus = 0.02 * (at == 1)  # process level stands above the others
            for subset in STUDY_SUBSETS:
                value = level + bonus - 0.1 * (subset in STUDY_SUBSETS[3:])
                found.append(row(subset, f"{readout}/calibrated:val", "f1", value))
                found.append(row(subset, f"{readout}/oracle", "f1", value + 0.05))
        return found
    if task == "best_of_n":
        found = [row("onpolicy", "floor/random", "accuracy", 0.4)]
        for n in (2, 4):
            found += [row("onpolicy", f"floor/{f}", f"{f}@{n}", v) for f, v in (("majority", 0.45), ("pass", 0.9))]
            for readout in READ[kind]:
                for metric in ("best_of", "weighted_vote", "gain"):
                    found.append(row("onpolicy", f"{readout}/last", f"{metric}@{n}", level + 0.01 * n))
        return found
    names = ("ece", "brier", "auc", "auc_q1", "auc_q2", "auc_q3", "auc_q4", "td_outcome_correlation")
    reads = ("prefix_sum", "prefix_mean") if kind == "logratio" else ("as_is",)
    return [
        row("prefixes", f"{r}/{rule}", name, level / 2)
        for r in reads
        for rule in ("sigmoid", "platt")
        for name in names
    ]


@contextmanager
def rows_taken_as_they_are() -> Iterator[None]:
    """The report believes rows that do not follow from their scores, such as those of `write_study`."""
    with mock.patch("prmbench.tasks.judging.underivable_rows", return_value=[]):
        yield


def write_study(root: Path, levels: dict[str, Sequence[float]], tasks: Sequence[str] = ("steps",)) -> None:
    """Method -> its level at each seed 0, 1, ...: one run per method, seed and task."""
    subsets = {"steps": STUDY_SUBSETS, "best_of_n": ("onpolicy",), "calibration": ("prefixes",)}
    for method, values in levels.items():
        kind = "value" if method.startswith("q_rm") else "logratio"
        margin = 0.0 if method.endswith("_m0") else 5.0
        for seed, level in enumerate(values):
            for task in tasks:
                items = traces(2, subsets[task])
                scores = scores_of([*items, replace(items[0])], kind if kind == "logratio" else "prob")[:-1]
                config = {"seed": seed, "recipe": {"loss": "o", "beta": 10.0, "margin": margin, "updates": 100}}
                name = f"{method}-{seed}-{task}"
                facts = {"run_id": name, "model": method, "kind": kind, "benchmark": "miniature", "task": task}
                write(root, scores, study_rows(task, kind, level), method, config=config, **facts)
