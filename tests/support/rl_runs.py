"""Small training runs on disk for the tests of judging and reporting RL: arms whose accuracies are given by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report_runs import write

from prmbench.core.records import ScoredTrace
from prmbench.core.result_files import metrics_path, sha256

STEPS = (0, 5, 10)
PROBLEMS = 12


def problems(levels: Sequence[float], wobble: float = 0.0, count: int = PROBLEMS, world: str = "") -> list[ScoredTrace]:
    """Validation problems whose mean accuracy at each validation is the level; `wobble` tells problems apart."""
    shifts = wobble * np.linspace(-1, 1, count)
    return [
        ScoredTrace(
            id=f"problem-{i:02d}",
            subset="validation",
            label=None,
            outcome=None,
            cluster=f"{world}{i:02d}",
            steps=len(levels),
            values=tuple(float(v + shift) for v in levels),
            also={"truncated": tuple(0.25 * (i < 3) for _ in levels)},
        )
        for i, shift in enumerate(shifts)
    ]


def lines(steps: int, **monitors: Sequence[float] | float) -> list[dict[str, Any]]:
    """One line a step; a number stands for all steps."""
    found: list[dict[str, Any]] = [{"step": 0, "validation": {"kl_sft": 0.0}}]
    for i in range(steps):
        told = {name: v[i] if isinstance(v, Sequence) else v for name, v in monitors.items()}
        found.append({"step": i + 1, **told, "alarms": ["entropy"] if i == 2 else []})
    return found


def write_training(
    root: Path,
    arm: str,
    levels: Sequence[float],
    seeds: tuple[int, int] = (0, 0),
    monitors: Sequence[Mapping[str, Any]] | None = None,
    **facts: Any,
) -> Path:
    """One run of an arm; `facts` may name its panel, its problems (`scores`) and anything of the manifest.

    `monitors` are the lines of its metrics; without them it has no such file.
    """
    panel = facts.pop("panel", "plain")
    scores = facts.pop("scores", None) or problems(levels, 0.1)
    raw = gzip.compress("".join(json.dumps(line) + "\n" for line in monitors or ()).encode(), mtime=0)
    config = {
        "validated_at": list(STEPS[: len(levels)]),
        "samples": 8,
        "arm": arm,
        "panel": panel,
        "sft_seed": seeds[0],
        "rl_seed": seeds[1],
        "alpha": 0.1 * arm.startswith("distrl"),
        **({"metrics_sha256": sha256(raw)} if monitors is not None else {}),
    }
    defaults = {
        "run_id": f"{panel}-{arm}-{seeds[0]}-{seeds[1]}",
        "model": arm,
        "backend": "policy",
        "kind": "outcome",
        "task": "distrl",
        "benchmark": "miniature_rl",
        "series": ("truncated",),
        "replicates": 100,
    }
    path = write(root, scores, folder=f"{panel}-{arm}", config=config, **defaults | facts)
    if monitors is not None:
        metrics_path(path).write_bytes(raw)
    return path


def write_rl_study(
    root: Path, arms: Mapping[str, float], seeds: tuple[int, int] = (3, 3), panel: str = "plain"
) -> None:
    """Every arm from 0.4 to its own level, which differs a little by SFT seed and less by RL seed."""
    for arm, level in arms.items():
        for sft in range(seeds[0]):
            for rl in range(seeds[1]):
                # An arm's own noise has no pattern that pairs could cancel.
                noise = 0.01 * np.sin(7.0 * sft + len(arm)) + 0.004 * np.cos(5.0 * rl + len(arm) + sft)
                end = float(level + 0.02 * sft + noise)
                values = [0.4 + 0.02 * sft, (0.4 + end) / 2, end]
                single = arm.startswith("rm_as_policy")
                watched = [] if single else lines(8, **monitors_of(arm))
                write_training(root, arm, values[-1:] if single else values, (sft, rl), watched, panel=panel)


def monitors_of(arm: str) -> dict[str, Any]:
    """Made up: a frozen reward model falls from 0.9 to 0.55, others hold; DistRL has candidates."""
    falls = arm in ("distrl_frozen", "distrl_naive")
    found: dict[str, Any] = {
        "reward": [0.4 + 0.01 * i for i in range(8)],
        "accuracy": 0.5 + 0.02 * arm.startswith("distrl"),
        "entropy": [0.5 - 0.02 * i for i in range(8)],
        "length": 40.0,
        "seconds": 2.0,
        "memory_gib": 1.0 + 0.01 * arm.startswith("distrl"),
    }
    if arm != "grpo":
        found |= {"rm_accuracy": [0.9 - 0.05 * i * falls for i in range(8)], "rm_score": -0.1, "gae_outcome_ratio": 0.5}
    if arm.startswith("distrl"):
        p_min = {"distrl_pmin_0.05": 1.54, "distrl_pmin_0.2": 1.16}.get(arm, 1.33)
        found |= {"candidates": p_min, "candidate_mass": 0.96}
    return found
