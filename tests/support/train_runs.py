"""Small training runs for tests: eight traces of four prompts, and short cuts to train on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from prmbench.config import ModelConfig, TrainConfig, TrainRMConfig
from prmbench.data.rollouts import Rollout, write
from prmbench.training.train import Trained, train

RM_LOSSES = ("ipvrm", "ipvrm_early", "ipvrm_late", "implicit_prm", "dpo_rm", "q_rm", "step_bce", "value_bce")


def traces(swap: bool = False, prompts: int = 4) -> list[Rollout]:
    """One right and one wrong trace a prompt; they differ in the last step. `swap` turns every label around."""
    rows = []
    for n in range(prompts):
        for right in (True, False):
            labelled = right != swap
            rows.append(
                Rollout(
                    f"p{n}/{1 - right}",
                    f"What is {n} plus {n}?",
                    steps=(f"We add {n} and {n}.", f"So it is {2 * n} indeed." if right else f"Thus we get {2 * n}."),
                    outcome=int(labelled),
                    first_error=-1 if labelled else 1,
                    group=f"p{n}",
                )
            )
    return rows


def data(folder: Path, rows: list[Rollout] | None = None, name: str = "rollouts.jsonl") -> Path:
    """The rows as a file."""
    write(folder / name, traces() if rows is None else rows)
    return folder / name


def options(model: Path, file: Path, out: Path, **more: Any) -> TrainRMConfig:
    """A run of a few updates on all eight traces at once."""
    usual = {"preset": "miniature", "steps": 5, "device": "cpu"}
    return TrainRMConfig(model=str(model), data=file, out=out, **{**usual, **more})


def sft_options(model: Path, file: Path, out: Path, **more: Any) -> TrainConfig:
    """The same for a policy."""
    return TrainConfig(
        model=str(model), data=file, out=out, **{"preset": "miniature", "steps": 5, "device": "cpu", **more}
    )


def run(config: TrainConfig, **more: Any) -> Trained:
    """Trains; there is one process, so there is a result."""
    done = train(config, **more)
    assert done is not None
    return done


def weights(out: Path) -> dict[str, Tensor]:
    """Of a trained model."""
    return load_file(out / "model.safetensors")


def distance(a: Path, b: Path) -> float:
    """The largest difference between the weights of two models."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def metrics(out: Path, name: str = "loss") -> list[float]:
    """A column of metrics.jsonl."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def gaps(out: Path, swap: bool = False) -> list[float]:
    """By how much the trained model, read without a flag, puts each right trace above its wrong twin."""
    from prmbench.backends import load_backend
    from prmbench.data.rollouts import to_trace

    backend = load_backend(ModelConfig(model=str(out), device="cpu"))
    found = [to_trace(replace(row, outcome=None)) for row in traces(swap)]
    scores = [sum(s.values) if backend.facts.kind == "logratio" else s.values[-1] for s in backend.score(found)]
    return [right - wrong for right, wrong in zip(scores[0::2], scores[1::2], strict=True)]
