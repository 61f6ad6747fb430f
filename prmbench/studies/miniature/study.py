"""Reward models on seeds of the miniature world: recipes with equal budgets, trained and judged on one seed.

All methods get the same completions, updates and judged traces. No statistics here: the report makes them of the runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prmbench import evaluation
from prmbench.backends import load_backend
from prmbench.config import EvalConfig, TrainRMConfig, presets
from prmbench.core import result_files, writing
from prmbench.core.records import Threshold, Trace
from prmbench.studies.miniature import experiments, world
from prmbench.studies.miniature.recipes import TRAINING, Recipe
from prmbench.studies.miniature.world import Sizes, World
from prmbench.training import train

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


def seed_runs(
    made: World,
    methods: Mapping[str, Recipe],
    out: Path,
    sizes: Sizes,
    tell: world.Tell,
    tuning: bool = False,
    tasks: Collection[str] = world.JUDGED,
) -> None:
    """Builds the world, trains every method on it and judges it on `tasks`; what is finished is not done again.

    `tuning`: judges on the subset `val` alone, which is all that a choice between recipes may see.
    """
    left = {name: recipe for name, recipe in methods.items() if not _finished(made, name, recipe, out)}
    if not left:
        return
    world.build(made, sizes, tell, tasks)
    traces, rules = world.loaded(made, tasks), RULES
    if tuning:
        traces, rules = {"steps": [t for t in traces["steps"] if t.subset == TUNING]}, TUNING_RULES
    for name, recipe in left.items():
        trained(made, name, recipe, tell)
        _judge(made, name, recipe, traces, rules, out)


def options_of(made: World, name: str, recipe: Recipe) -> TrainRMConfig:
    """The options of `prmbench train-rm`, resolved: 64 completions an update, as points or as pairs."""
    pairwise = recipe.loss in ("dpo_rm", "q_rm")
    config = TrainRMConfig(
        model=str(made.policy),
        data=made.data(recipe.data),
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
    told |= {"updates": config.steps, "completions": COMPLETIONS}
    data = config.data.stem if config.data else TRAINING
    return told if data == TRAINING else {**told, "data": data}


def trained(made: World, name: str, recipe: Recipe, tell: world.Tell) -> None:
    """Trains a method on a world that is built; nothing when it is trained."""
    experiments.write_data(made, recipe.data)
    train.train(options_of(made, name, recipe), lambda done, most, _: tell(name, done, most))


def _judge(
    made: World,
    name: str,
    recipe: Recipe,
    traces: Mapping[str, Sequence[Trace]],
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
        run = evaluation.evaluate_traces(reading, rows, "miniature", task, backend, manifest_fields=told)
        names += [run.path.name] if run else []
    writing.write_atomic(config.out / FINISHED, result_files.canonical_json({"recipe": facts(config), "runs": names}))


def _finished(made: World, name: str, recipe: Recipe, out: Path) -> bool:
    path = made.folder / name / FINISHED
    if not path.exists():
        return False
    told = json.loads(path.read_text(encoding="utf-8"))
    same = told["recipe"] == facts(options_of(made, name, recipe))
    return same and all((out / run).exists() for run in told["runs"])
