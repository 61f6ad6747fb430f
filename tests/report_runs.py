"""Small runs on disk for the report tests: a made-up benchmark of short traces, scored by drawn numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prmbench.judge import judge
from prmbench.schema import MetricRow, RunManifest, RunResult, ScoredTrace, StepScores, Trace, scored
from prmbench.store import pack_scores, sha256, unpack_scores, write_run

SUBSETS = ("gsm8k", "math", "omnimath")


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
        found.append(scored(trace, StepScores(trace.id, unscored="too long") if trace is items[-1] else scores))
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
    write(root, scores_of(items), run_id="a" * 12, native=0.5)
    facts = {"kind": "logratio", "backend": "implicit", "input_format": "chat", "signal": "outcome"}
    write(root, scores_of(items, "logratio", 1), run_id="b" * 12, model="org/implicit", **facts)
    critic = {"kind": "verdict", "backend": "critic", "input_format": "critique", "signal": "none"}
    write(root, scores_of(items, "verdict", 2), run_id="c" * 12, model="org/critic", **critic)
    write(root, scores_of(items, "prob", 3, 0.0), run_id="d" * 12, model="random", backend="baseline", signal="none")
    return items
