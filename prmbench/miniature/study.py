"""Reward models on seeds of the miniature world: recipes with equal budgets, trained and judged on one seed.

All methods get the same completions, updates and judged traces. No statistics here: the report makes them of the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prmbench import evaluation, presets, store, train
from prmbench.backends import load_backend
from prmbench.config import EvalConfig, Loss, TrainRMConfig
from prmbench.miniature import world
from prmbench.miniature.world import Sizes, World
from prmbench.schema import Task, Threshold, Trace

UPDATES, COMPLETIONS = 100, 64
"""Of every reward model, and in each of them: two passes over the pairs that 2,000 prompts give."""
TUNING = "val"
"""The subset that thresholds and recipes are chosen on; its problems are in no other subset."""
RULES: tuple[Threshold, ...] = ("calibrated", "oracle")
TUNING_RULES: tuple[Threshold, ...] = ("calibrated_in_sample",)
REPLICATES = 200
"""Of a run's own intervals; the study's are over seeds."""
SCORING_TOKENS = 4096
"""Of a batch: the default suits models that are a thousand times larger."""
FINISHED = "runs.json"
"""Beside a model that has been judged: its recipe and the names of its runs."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What sets a method apart; None = the value of the preset `miniature`."""

    loss: Loss
    beta: float | None = None
    margin: float | None = None
    learning_rate: float | None = None


METHODS: dict[str, Recipe] = {
    "ipvrm": Recipe("ipvrm"),
    "implicit_prm": Recipe("implicit_prm"),
    "dpo_rm": Recipe("dpo_rm"),
    "q_rm": Recipe("q_rm"),
}
"""What the demo trains."""
STUDIED: dict[str, Recipe] = {
    **METHODS,
    "ipvrm_early": Recipe("ipvrm_early"),
    "ipvrm_late": Recipe("ipvrm_late"),
    "ipvrm_m0": Recipe("ipvrm", margin=0.0),
    "ipvrm_paper": Recipe("ipvrm", beta=10.0, margin=5.0),
    "implicit_prm_paper": Recipe("implicit_prm", beta=0.05),
    "dpo_rm_paper": Recipe("dpo_rm", beta=0.05),
    "q_rm_paper": Recipe("q_rm", beta=0.2, margin=2.0),
}
"""And what the study adds; `_paper`: the paper's beta and margin (METHOD: appendix C), at the tuned learning rate."""


def seed_runs(
    made: World, methods: Mapping[str, Recipe], out: Path, sizes: Sizes, tell: world.Tell, tuning: bool = False
) -> None:
    """Builds the world, trains every method on it and judges it; what is finished is not done again.

    `tuning`: judges on the subset `val` alone, which is all that a choice between recipes may see.
    """
    left = {name: recipe for name, recipe in methods.items() if not _finished(made, name, recipe, out)}
    if not left:
        return
    world.build(made, sizes, tell)
    traces, rules = world.loaded(made), RULES
    if tuning:
        traces, rules = {"steps": [t for t in traces["steps"] if t.subset == TUNING]}, TUNING_RULES
    for name, recipe in left.items():
        _train(made, name, recipe, tell)
        _judge(made, name, recipe, traces, rules, out)


def options_of(made: World, name: str, recipe: Recipe) -> TrainRMConfig:
    """The options of `prmbench train-rm`, resolved: 64 completions an update, as points or as pairs."""
    pairwise = recipe.loss in ("dpo_rm", "q_rm")
    config = TrainRMConfig(
        model=str(made.policy),
        data=made.training,
        device="cpu",
        preset="miniature",
        loss=recipe.loss,
        beta=recipe.beta,
        margin=recipe.margin,
        learning_rate=recipe.learning_rate,
        batch_size=COMPLETIONS // 2 if pairwise else COMPLETIONS,
        steps=UPDATES,
        seed=made.seed,
        out=made.folder / name,
    )
    return presets.resolve(config)


def facts(config: TrainRMConfig) -> dict[str, Any]:
    """What tells recipes apart, for manifests; `config` must be resolved."""
    told = {name: getattr(config, name) for name in ("loss", "beta", "margin", "learning_rate", "schedule")}
    return {**told, "updates": config.steps, "completions": COMPLETIONS}


def _train(made: World, name: str, recipe: Recipe, tell: world.Tell) -> None:
    train.train(options_of(made, name, recipe), lambda done, most, _: tell(name, done, most))


def _judge(
    made: World,
    name: str,
    recipe: Recipe,
    traces: Mapping[Task, Sequence[Trace]],
    rules: tuple[Threshold, ...],
    out: Path,
) -> None:
    """Evaluates a trained model on every task; writes one run a task into `out`."""
    config = options_of(made, name, recipe)
    reading = EvalConfig(
        model=str(config.out),
        device="cpu",
        batch_tokens=SCORING_TOKENS,
        ref_cache=made.folder / "reference",
        calibrate_on=TUNING,
        seed=made.seed,
        out=out,
    )
    told = {
        "model": name,
        "config": {"seed": made.seed, "recipe": facts(config)},
        "rules": rules,
        "replicates": REPLICATES,
    }
    backend = load_backend(reading)
    names = []
    for task, rows in traces.items():
        run = evaluation.evaluate_traces(reading, rows, "miniature", task, backend, told=told)
        names += [run.path.name] if run else []
    store.write_atomic(config.out / FINISHED, store.canonical_json({"recipe": facts(config), "runs": names}))


def _finished(made: World, name: str, recipe: Recipe, out: Path) -> bool:
    path = made.folder / name / FINISHED
    if not path.exists():
        return False
    told = json.loads(path.read_text(encoding="utf-8"))
    same = told["recipe"] == facts(options_of(made, name, recipe))
    return same and all((out / run).exists() for run in told["runs"])
