"""The study of reward models in the miniature world: every recipe trained and judged on every seed.

All methods get the same completions, updates and judged traces. The report makes the statistics from the runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prmbench import evaluation
from prmbench.backends import load_backend
from prmbench.config import EvalConfig, TrainRMConfig, presets
from prmbench.core import result_files, writing
from prmbench.core.progress import JobProgress
from prmbench.core.records import Threshold, Trace
from prmbench.core.result_files import Run
from prmbench.studies.miniature import data_ablations, process_pool
from prmbench.studies.miniature.recipes import TRAINING, Recipe
from prmbench.studies.miniature.world import (
    JUDGED_TASKS,
    ActivityProgress,
    Sizes,
    World,
    build_world,
    load_traces,
    seed_world,
)
from prmbench.training import train

UPDATES, COMPLETIONS_PER_UPDATE = 100, 64
"""Training of every reward model: two passes over the pairs that 2,000 prompts give."""
TUNING_SUBSET = "val"
"""The subset that thresholds and recipes are chosen on; its problems are in no other subset."""
THRESHOLD_RULES: tuple[Threshold, ...] = ("calibrated", "oracle")
TUNING_THRESHOLD_RULES: tuple[Threshold, ...] = ("calibrated_in_sample",)
BOOTSTRAP_REPLICATES = 200
"""For the intervals of single runs; the study's own intervals are over seeds."""
SCORING_BATCH_TOKENS = 4096
"""The default of `eval` suits models that are a thousand times larger."""
FINISHED_FILE = "runs.json"
"""File in the folder of a model that has been judged: its recipe and the names of its runs."""


def run_study(
    seeds: Sequence[int],
    methods: Mapping[str, Recipe],
    root: Path,
    out: Path,
    progress: JobProgress | None = None,
    sizes: Sizes | None = None,
) -> None:
    """Trains and judges the methods on every seed; continues where an earlier call was interrupted.

    Args:
        seeds: one world each.
        methods: recipes by method name.
        root: folder of the worlds.
        out: folder of the runs.
        progress: receives the progress of every seed.
        sizes: of the worlds.

    Raises:
        UserError: a process failed; the others are terminated and keep what they have finished.
    """
    options = (dict(methods), out, sizes or Sizes())
    jobs = {f"seed {seed}": partial(run_seed, seed_world(root, seed), *options) for seed in seeds}
    process_pool.run_jobs(jobs, progress)


def run_seed(
    world: World,
    methods: Mapping[str, Recipe],
    out: Path,
    sizes: Sizes,
    progress: ActivityProgress,
    tasks: Collection[str] = JUDGED_TASKS,
    subsets: Collection[str] = (),
) -> None:
    """Builds a world, trains every method on it and judges it on `tasks`; skips methods that are finished.

    With `subsets`, only these are judged.
    """
    unfinished = {name: recipe for name, recipe in methods.items() if not _is_finished(world, name, recipe, out)}
    if not unfinished:
        return
    build_world(world, sizes, progress, tasks)
    loaded = load_traces(world, tasks)
    traces = {task: [t for t in of_task if not subsets or t.subset in subsets] for task, of_task in loaded.items()}
    for name, recipe in unfinished.items():
        train_reward_model(world, name, recipe, progress)
        runs = evaluate_reward_model(world, name, recipe, traces, THRESHOLD_RULES, out)
        config = training_config(world, name, recipe)
        finished = {"recipe": recipe_record(config), "runs": [run.path.name for run in runs]}
        writing.write_atomic(config.out / FINISHED_FILE, result_files.canonical_json(finished))


def training_config(world: World, name: str, recipe: Recipe) -> TrainRMConfig:
    """Returns the resolved options of `prmbench train-rm`: 64 completions per update, single or in pairs."""
    is_pairwise = recipe.loss in ("dpo_rm", "q_rm")
    config = TrainRMConfig(
        model=str(world.policy),
        data=world.data(recipe.data),
        device="cpu",
        preset="miniature",
        loss=recipe.loss,
        beta=recipe.beta,
        margin=recipe.margin,
        learning_rate=recipe.learning_rate,
        batch_size=COMPLETIONS_PER_UPDATE // 2 if is_pairwise else COMPLETIONS_PER_UPDATE,
        steps=UPDATES,
        seed=world.seed,
        out=world.folder / name,
    )
    return presets.resolve(config)


def recipe_record(config: TrainRMConfig) -> dict[str, Any]:
    """Returns the options that distinguish recipes, for manifests; `config` must be resolved."""
    record = {name: getattr(config, name) for name in ("loss", "beta", "margin", "learning_rate", "schedule")}
    record |= {"updates": config.steps, "completions": COMPLETIONS_PER_UPDATE}
    data = config.data.stem if config.data else TRAINING
    return record if data == TRAINING else {**record, "data": data}


def train_reward_model(world: World, name: str, recipe: Recipe, progress: ActivityProgress) -> None:
    """Trains a method on a world that is built; does nothing when it is trained."""
    data_ablations.write_data(world, recipe.data)
    train.train(training_config(world, name, recipe), lambda done, total, _: progress(name, done, total))


def evaluate_reward_model(
    world: World,
    name: str,
    recipe: Recipe,
    traces: Mapping[str, Sequence[Trace]],
    rules: tuple[Threshold, ...],
    out: Path,
) -> list[Run]:
    """Evaluates a trained model on the traces of every task; writes one run per task into `out`, and returns them."""
    config = training_config(world, name, recipe)
    eval_config = EvalConfig(
        model=str(config.out),
        device="cpu",
        batch_tokens=SCORING_BATCH_TOKENS,
        ref_cache=None if recipe.loss == "q_rm" else world.folder / "reference",  # which reads no reference
        calibrate_on=TUNING_SUBSET,
        seed=world.seed,
        out=out,
    )
    manifest_facts = {
        "model": name,
        "config": {"seed": world.seed, "recipe": recipe_record(config)},
        "rules": rules,
        "replicates": BOOTSTRAP_REPLICATES,
    }
    backend = load_backend(eval_config)
    runs = [
        evaluation.evaluate_traces(eval_config, of_task, "miniature", task, backend, manifest_fields=manifest_facts)
        for task, of_task in traces.items()
    ]
    return [run for run in runs if run is not None]


def _is_finished(world: World, name: str, recipe: Recipe, out: Path) -> bool:
    """Whether the method was judged with this very recipe and its runs are still in `out`."""
    path = world.folder / name / FINISHED_FILE
    if not path.exists():
        return False
    finished = json.loads(path.read_text(encoding="utf-8"))
    same_recipe = finished["recipe"] == recipe_record(training_config(world, name, recipe))
    return same_recipe and all((out / run_name).exists() for run_name in finished["runs"])
