"""The files of one seed of the miniature world: a policy, its rollouts, and the traces reward models are judged on.

The functions behind `train-sft` and `rollout` make them, in the formats that those commands read. Parts that exist are
not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from prmbench import data
from prmbench.config import RolloutConfig, TrainConfig
from prmbench.core import result_files, writing
from prmbench.core.records import Trace, UserError
from prmbench.data import rollouts, training_data
from prmbench.data.prompts import Prompt
from prmbench.data.rollouts import Rollout
from prmbench.engines.generation import Sampling
from prmbench.engines.hf import HFEngine
from prmbench.sampling import completions, monte_carlo, rollout
from prmbench.studies.miniature import arithmetic, late_markers, tiny_model
from prmbench.studies.miniature.arithmetic import Split
from prmbench.training import train
from prmbench.verification import verifiers

ActivityProgress = Callable[[str, int, int], None]
"""Progress of one job: (activity, units done, units in total)."""
MAX_COMPLETION_TOKENS = 80
"""A correct completion in the plain format takes at most 46 tokens."""
JUDGED_TASKS: tuple[str, ...] = ("steps", "best_of_n", "calibration")
"""Tasks that reward models are judged on."""
POLICY_BATCH_SIZE = 32
"""Examples per update of the policy; larger batches learn little in the same time."""
BAND_PROMPTS, BAND_SAMPLES, BAND_CHECK_EVERY = 250, 8, 2
"""How a start policy's accuracy is measured against `Sizes.start_band`: problems and samples of the last measurement;
updates between the checks in training once the policy nears the band, which take half of the problems."""
START_FILE = "start.json"
"""File of a world whose start policy is in `Sizes.start_band`: the accuracies measured."""
FIRST_ACCURACY_CHECK, ACCURACY_CHECK_EVERY, ACCURACY_PROMPTS = 200, 10, 200
"""The policy's accuracy in training: first update it is measured at, updates between checks, validation problems."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Amounts of training and data of a world, the same for every method."""

    max_updates: int = 640
    """Updates after which a policy that is below `target_accuracy` has failed; about two thirds usually suffice."""
    target_accuracy: float = 0.45
    """Accuracy that ends supervised training. The policy learns fast at that point and ends at 0.45 to 0.65."""
    start_band: tuple[float, float] | None = None
    """Bounds of the policy's accuracy before RL, avg@8 on validation problems as RL is validated; None = any.

    Training then ends in the band and not at `target_accuracy`, and a policy outside is refused.
    """
    training_prompts: int = 2000
    """Prompts that reward models are trained on, before those whose completions are all right or all wrong drop out."""
    group_size: int = 5
    """Completions per training prompt; one right and one wrong are kept (IPVRM paper, 4.1)."""
    judged_traces: int = 300
    """Traces of each kind in the step task, half of them right."""
    shifted_traces: int = 150
    """On-policy traces in each shifted format."""
    best_of_n_prompts: int = 150
    candidates: int = 8
    """Completions per best-of-N prompt."""
    monte_carlo_traces: int = 100
    """Traces whose prefixes get a Monte-Carlo value."""
    continuations: int = 10
    """Sampled continuations per prefix."""


@dataclass(frozen=True, slots=True)
class World:
    """Paths of the files of one seed."""

    folder: Path
    seed: int
    marked: bool = False
    """Whether the policy learns to end in an uninformative late marker (late_markers.py); False: the plain world."""

    @property
    def policy(self) -> Path:
        """The policy, trained on right solutions in all formats; every reward model starts from it."""
        return self.folder / "policy"

    @property
    def training(self) -> Path:
        """One right and one wrong completion of each prompt that has both."""
        return self.data("training")

    def data(self, name: str) -> Path:
        """Completions that reward models are trained on: `training`, or a variant made by data_ablations.py."""
        return self.folder / f"{name}.jsonl"

    @property
    def steps(self) -> Path:
        """Labelled traces in ProcessBench's schema: val, onpolicy, injected and the five shifted formats."""
        return self.folder / "steps.jsonl"

    @property
    def candidates(self) -> Path:
        """Groups of completions for best-of-N, of problems that no trace of the step task has."""
        return self.folder / "candidates.jsonl"

    @property
    def prefixes(self) -> Path:
        """Traces with the Monte-Carlo value of every prefix."""
        return self.folder / "prefixes.jsonl"


def seed_world(root: Path, seed: int, marked: bool = False) -> World:
    """Returns the world of a seed beneath `root`. All studies share the plain worlds."""
    return World(root / f"{'marker-' if marked else ''}seed-{seed}", seed, marked)


def build_world(world: World, sizes: Sizes, progress: ActivityProgress, tasks: Collection[str] = JUDGED_TASKS) -> None:
    """Makes the missing files of a world: the policy, training data, and the traces of `tasks`.

    Raises:
        UserError: the policy has not reached the target accuracy, or too few traces of a kind were sampled.
    """
    world.folder.mkdir(parents=True, exist_ok=True)
    _train_policy(world, sizes, progress)
    _sample_training_data(world, sizes, progress)
    if tasks:
        _sample_judged_traces(world, sizes, progress)
    if "calibration" in tasks:
        _estimate_prefix_values(world, sizes, progress)


def load_traces(world: World, tasks: Collection[str] = JUDGED_TASKS) -> dict[str, Sequence[Trace]]:
    """Returns the traces that models are judged on by task, read as `prmbench eval` reads them."""
    paths = {"processbench": world.steps, "best_of_n": world.candidates, "calibration": world.prefixes}
    sources = zip(JUDGED_TASKS, paths.items(), strict=True)
    return {task: data.load(benchmark, path).traces for task, (benchmark, path) in sources if task in tasks}


# --- the policy -----------------------------------------------------------------------------------------


def _train_policy(world: World, sizes: Sizes, progress: ActivityProgress) -> None:
    """Trains the policy by SFT until its accuracy on validation problems reaches the target."""
    initial_model, examples_path = world.folder / "start", world.folder / "examples.jsonl"
    if not (initial_model / "model.safetensors").exists():
        tiny_model.build(initial_model, world.seed, late_markers.TOKENS if world.marked else ())
    config = TrainConfig(
        model=str(initial_model),
        data=examples_path,
        device="cpu",
        preset="miniature",
        batch_size=POLICY_BATCH_SIZE,
        steps=sizes.max_updates,
        seed=world.seed,
        out=world.policy,
    )
    if not examples_path.exists():
        examples = arithmetic.sft_examples(world.seed, sizes.max_updates * POLICY_BATCH_SIZE)
        if world.marked:
            examples = late_markers.add_markers(examples, late_markers.UNINFORMATIVE, world.seed)
        rollouts.write(examples_path, examples)
    accuracies: dict[int, float] = {}
    reached_target = partial(_reached_target, world, sizes, accuracies)
    trained = train.train(config, lambda done, total, _: progress("policy", done, total), reached_target)
    if sizes.start_band is not None:
        _check_start(world, sizes.start_band)
        return
    if trained is None or trained.updates < sizes.max_updates:
        return
    if accuracies.get(sizes.max_updates, 0.0) < sizes.target_accuracy:
        raise UserError(
            f"miniature: the policy of seed {world.seed} is not at accuracy {sizes.target_accuracy} after "
            f"{sizes.max_updates} updates; take another seed (--first-seed)"
        )


def _reached_target(world: World, sizes: Sizes, accuracies: dict[int, float], update: int, engine: HFEngine) -> bool:
    """Returns whether supervised training ends at this update; adds the accuracy to `accuracies` where it measures."""
    band, every, target = sizes.start_band, ACCURACY_CHECK_EVERY, sizes.target_accuracy
    if band is not None:
        is_near = max(accuracies.values(), default=0.0) > band[0] / 2
        every, target = BAND_CHECK_EVERY if is_near else every, _band_target(band)
    if update < FIRST_ACCURACY_CHECK or update % every:
        return False
    if band is not None:
        accuracies[update] = start_accuracy(engine, world.seed, BAND_PROMPTS // 2)
    else:
        prompts = arithmetic.make_prompts("validation", world.seed, ACCURACY_PROMPTS)
        accuracies[update] = accuracy(engine, prompts, world.seed)
    return accuracies[update] >= target


def _band_target(band: tuple[float, float]) -> float:
    """Returns the accuracy that ends training: a quarter into the band, since the policy learns fast at that point."""
    low, high = band
    return low + (high - low) / 4


def _check_start(world: World, band: tuple[float, float]) -> None:
    """Measures the start policy on all validation problems, once, and records it.

    Raises:
        UserError: it is outside the band.
    """
    path, (low, high) = world.folder / START_FILE, band
    if not path.exists():
        engine = completions.open_policy(_rollout_config(world.seed, model=str(world.policy)))
        measured = start_accuracy(engine, world.seed, BAND_PROMPTS)
        facts = {"metric": f"avg@{BAND_SAMPLES}", "problems": BAND_PROMPTS, "accuracy": round(measured, 4)}
        writing.write_atomic(path, result_files.canonical_json(facts))
    value = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
    if not low <= value <= high:
        raise UserError(
            f"{world.folder}: the start policy has avg@{BAND_SAMPLES} {value} on validation problems, outside "
            f"{low} to {high}, so its world has no room for reinforcement learning; take another seed (--first-seed), "
            f"or another folder (--worlds) if this one is of another study"
        )


def start_accuracy(engine: Any, seed: int, prompts: int) -> float:
    """Returns avg@8 on validation problems, at the temperature and top-p at which RL is validated."""
    config = replace(_rollout_config(seed, group_size=BAND_SAMPLES), temperature=0.6, top_p=0.95)
    problems = arithmetic.make_prompts("validation", seed, prompts)
    with verifiers.Verifier(1) as verifier:
        outcomes = [r.outcome or 0 for r in completions.sample_completions(engine, problems, config, verifier)]
    return sum(outcomes) / len(outcomes)


def accuracy(engine: HFEngine, prompts: Sequence[Prompt], seed: int) -> float:
    """Returns the share of right answers, one sample per prompt at temperature 1."""
    config = _rollout_config(seed, group_size=1)
    with verifiers.Verifier(1) as verifier:
        return sum(r.outcome or 0 for r in completions.sample_completions(engine, prompts, config, verifier)) / len(
            prompts
        )


# --- its rollouts ---------------------------------------------------------------------------------------


def _sample_training_data(world: World, sizes: Sizes, progress: ActivityProgress) -> None:
    """Writes one right and one wrong completion of each prompt that has both."""
    if world.training.exists():
        return
    sampled = _sample_rollouts(world, "train", sizes.training_prompts, sizes.group_size, progress)
    pairs, _ = training_data.preference_pairs(sampled, "one")
    rollouts.write(world.training, training_data.completions_of_pairs(pairs))


def _sample_judged_traces(world: World, sizes: Sizes, progress: ActivityProgress) -> None:
    """Writes the traces of the step task and the groups of best-of-N, all without markers.

    No problem is in both, so that a correlation of the two measures is not one of the same completions' luck. Twice as
    many prompts are sampled as traces are needed, so that there are enough right and wrong ones, and prompts left over.
    """
    test_prompts = max(sizes.best_of_n_prompts, 2 * sizes.judged_traces)
    test = _sample_unmarked(world, "test", test_prompts, sizes.candidates, progress)
    val = _sample_unmarked(world, "validation", 2 * sizes.judged_traces, 2, progress)
    onpolicy = arithmetic.on_policy_traces(test, "onpolicy", sizes.judged_traces)
    shifted = arithmetic.shifted_traces(arithmetic.on_policy_traces(test, "onpolicy", sizes.shifted_traces))
    injected = arithmetic.injected_traces("test", world.seed, sizes.judged_traces)
    arithmetic.write_traces(
        world.steps, [*arithmetic.on_policy_traces(val, "val", sizes.judged_traces), *onpolicy, *injected, *shifted]
    )
    groups = _groups_of_other_problems(test, {trace.prompt for trace in (*onpolicy, *injected)})
    if len(groups) < sizes.best_of_n_prompts:
        raise UserError(
            f"miniature: {len(groups)} problems for best-of-N of {sizes.best_of_n_prompts} are in no trace of the "
            "step task; sample more prompts"
        )
    chosen = groups[: sizes.best_of_n_prompts]
    rollouts.write(world.candidates, [replace(r, subset="test") for group in chosen for r in group])


def _groups_of_other_problems(sampled: Iterable[Rollout], used_prompts: Collection[str]) -> list[list[Rollout]]:
    """Returns the groups of completions whose prompt is not in use, one group a problem."""
    groups: dict[str, list[Rollout]] = {}
    for _, rows in groupby(sampled, key=lambda r: r.group):
        group = list(rows)
        # Two indices of a split can give the same problem.
        if group[0].prompt not in used_prompts:
            groups.setdefault(group[0].prompt, group)
    return list(groups.values())


def _estimate_prefix_values(world: World, sizes: Sizes, progress: ActivityProgress) -> None:
    """Writes on-policy traces with the Monte-Carlo value of every prefix."""
    if world.prefixes.exists():
        return
    test = rollouts.read(_rollouts_path(world, "test"))
    traces = arithmetic.on_policy_traces(map(late_markers.remove_marker, test), "onpolicy", sizes.monte_carlo_traces)
    engine = completions.open_policy(_rollout_config(world.seed, model=str(world.policy)))
    sampling = Sampling(max_new_tokens=MAX_COMPLETION_TOKENS)
    valued = []
    for trace in monte_carlo.prefix_success(
        engine, traces, arithmetic.is_solved, sizes.continuations, sampling, world.seed
    ):
        valued.append(trace)
        progress("prefix success", len(valued), len(traces))
    arithmetic.write_traces(world.prefixes, valued)


def _sample_unmarked(
    world: World, split: Split, count: int, group_size: int, progress: ActivityProgress
) -> list[Rollout]:
    return [late_markers.remove_marker(r) for r in _sample_rollouts(world, split, count, group_size, progress)]


def _sample_rollouts(
    world: World, split: Split, count: int, group_size: int, progress: ActivityProgress
) -> list[Rollout]:
    """Runs `prmbench rollout` on the first `count` prompts of a split."""
    prompts_path, out = world.folder / f"{split}-prompts.jsonl", _rollouts_path(world, split)
    if not prompts_path.exists():
        arithmetic.write_prompts(prompts_path, arithmetic.make_prompts(split, world.seed, count))
    config = _rollout_config(world.seed, model=str(world.policy), data=prompts_path, group_size=group_size, out=out)
    rollout.run_rollout(config, lambda done, total, _: progress(f"{split} rollouts", done, total))
    return rollouts.read(out)


def _rollouts_path(world: World, split: Split) -> Path:
    return world.folder / f"{split}-rollouts.jsonl"


def _rollout_config(seed: int, **options: Any) -> RolloutConfig:
    """Plain sampling at temperature 1, without top-p or top-k: completions follow the policy's own distribution."""
    fixed: dict[str, Any] = {"split": "numbered", "max_new_tokens": MAX_COMPLETION_TOKENS, "device": "cpu"}
    return RolloutConfig(**fixed, seed=seed, **options)
