"""The study of policies trained by RL in the miniature world: its arms, their prompts, and the runs of each arm.

An arm is a set of options of `train-distrl`; training itself is done by the function behind that command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prmbench import tasks
from prmbench.config import distrl_options
from prmbench.config.distrl_options import ARMS, SELF, Arm, DistRLConfig
from prmbench.core import writing
from prmbench.core.progress import JobProgress
from prmbench.core.records import UserError, text_hash
from prmbench.rl import distrl, metrics_log
from prmbench.rl.validation import Validation
from prmbench.studies.miniature import arithmetic, data_ablations, process_pool
from prmbench.studies.miniature.arithmetic import Split
from prmbench.studies.miniature.recipes import STUDY_METHODS, Recipe
from prmbench.studies.miniature.reward_model_study import run_seed, train_reward_model, training_config
from prmbench.studies.miniature.world import (
    ACCURACY_PROMPTS,
    MAX_COMPLETION_TOKENS,
    ActivityProgress,
    Sizes,
    World,
    build_world,
    seed_world,
)

BENCHMARK = "miniature_rl"
Panel = Literal["plain", "marker"]
"""`marker`: the policy writes late markers, and the reward models were trained on completions whose marker reveals the
outcome."""
STEPS, VALIDATION_SAMPLES = 20, 8
"""RL steps of a run, completions per validation prompt."""
TRAINING_PROMPTS, VALIDATION_PROMPTS = 1000, 250
START_BAND = (0.35, 0.65)
"""Bounds of the start policies' avg@8. Above, training ends near the ceiling; below, few outcomes are mixed."""
FIRST_UNUSED_PROBLEM = 10_000
"""Index in a split from which on no reward model, policy or threshold has used a problem."""


@dataclass(frozen=True, slots=True)
class StudyArm:
    """An arm of `train-distrl` and what the study changes in it."""

    arm: Arm
    options: Mapping[str, Any] = field(default_factory=dict)
    reward_model_data_first: bool = False
    """Whether the policy is first trained on the completions that reward models are trained on, which otherwise only
    arms with a reward model profit from."""
    reward_model_as_policy: str = ""
    """Reward model that is validated in the policy's place, without any training."""
    reward_model: str = ""
    """Method of the reward model study that the arm starts from; empty: the one named like the arm's loss."""
    tuned_as: str = ""
    """Arm whose tuned options it takes, for a variant of another arm; empty: its own."""


def _variant(options: Mapping[str, Any], arm: Arm = "distrl_ipvrm") -> StudyArm:
    """Returns DistRL with IPVRM, as tuned, but for `options`."""
    return StudyArm(arm, options, tuned_as="distrl_ipvrm")


_PLAIN_ARMS = {
    "grpo": StudyArm("grpo"),
    "grpo_extra": StudyArm("grpo", reward_model_data_first=True),
    "grpo_ipvrm": StudyArm("grpo_ipvrm"),
    "distrl_ipvrm": StudyArm("distrl_ipvrm"),
    "distrl_implicit_prm": StudyArm("distrl_implicit_prm"),
    "distrl_dpo_rm": StudyArm("distrl_dpo_rm"),
    "distrl_frozen": _variant({}, "distrl_ipvrm_frozen"),
    "distrl_naive": _variant({"adb": False, "dlw": False}),
    "distrl_dlw": _variant({"adb": False}),
    "distrl_adb": _variant({"dlw": False}),
    "distrl_sft": _variant({"reference": "sft"}),
    "distrl_pmin_0.05": _variant({"p_min": 0.05}),
    "distrl_pmin_0.2": _variant({"p_min": 0.2}),
    "distrl_alpha_0.01": _variant({"alpha": 0.01}),
    "distrl_alpha_0.1": _variant({"alpha": 0.1}),
    "distrl_paper": _variant({"alpha": 0.1, "gae_weight": 1.0}),
    "prime": StudyArm("prime"),
    "spro": StudyArm("spro"),
    "reinforce_q_rm": StudyArm("reinforce_q_rm"),
    "vineppo": StudyArm("vineppo"),
    "grpo_vps": StudyArm("grpo_vps"),
    "rm_as_policy_ipvrm": StudyArm("grpo", reward_model_as_policy="ipvrm"),
    "rm_as_policy_implicit_prm": StudyArm("grpo", reward_model_as_policy="implicit_prm"),
}
_MARKER_ARMS = ("grpo", "distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm")
STUDY_ARMS: dict[Panel, dict[str, StudyArm]] = {
    "plain": _PLAIN_ARMS,
    "marker": {name: _PLAIN_ARMS[name] for name in _MARKER_ARMS},
}
_METHOD_ARMS = (
    *("grpo", "grpo_extra", "grpo_ipvrm", "distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm", "prime"),
    *("vineppo", "grpo_vps", "rm_as_policy_ipvrm", "rm_as_policy_implicit_prm"),
)
Part = Literal["methods", "marker", "variants"]
PARTS: Mapping[Part, tuple[Panel, Sequence[str]]] = {
    "methods": ("plain", _METHOD_ARMS),
    "marker": ("marker", _MARKER_ARMS),
    "variants": ("plain", tuple(name for name in _PLAIN_ARMS if name not in _METHOD_ARMS)),
}
"""The study's parts, in the order in which they are run: panel and arms. `variants` are DistRL's ablations, SPRO and
REINFORCE with Q-RM."""
DEMO_ARMS = {name: _PLAIN_ARMS[name] for name in ("grpo", "distrl_ipvrm")}


@dataclass(frozen=True, slots=True)
class Scale:
    """Length of the runs and sizes of their data."""

    steps: int = STEPS
    validate_every: int = 0
    """Steps between validations; 0 = before the first step and after the last."""
    validation_prompts: int = VALIDATION_PROMPTS
    validation_split: Split = "test"
    world_sizes: Sizes = field(default_factory=lambda: Sizes(start_band=START_BAND))


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """The runs of one world and one RL seed: every arm once, on the same prompts."""

    world: World
    rl_seed: int
    arms: Mapping[str, StudyArm]
    scale: Scale = field(default_factory=Scale)
    benchmark: str = BENCHMARK
    tuned: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Options by arm, as rl_tuning.py has chosen them; an arm that is not there takes the preset's."""

    @property
    def panel(self) -> Panel:
        """The panel of the world."""
        return _panel(self.world)

    @property
    def name(self) -> str:
        """Name for progress and error messages."""
        return f"{_world_name(self.world)}.{self.rl_seed}"


def run_study(
    sft_seeds: Sequence[int],
    rl_seeds: Sequence[int],
    root: Path,
    out: Path,
    progress: JobProgress | None = None,
    scale: Scale | None = None,
    tuned: Mapping[str, Mapping[str, float]] | None = None,
    parts: Sequence[Part] = tuple(PARTS),
) -> None:
    """Runs the study part by part: worlds, reward models, then every arm on every pair of seeds.

    Continues where an earlier call was interrupted, which loses the runs in progress. Runs that `out` has already,
    packed ones included, are not made again, so a study can go on from committed results.

    Args:
        sft_seeds: seeds of worlds.
        rl_seeds: seeds of RL training in each world.
        root: folder of the worlds; not that of the reward model study, whose policies are trained further.
        out: folder of the runs.
        progress: receives the progress of every job.
        scale: length of the runs and sizes of their data.
        tuned: chosen options by arm.
        parts: of the study.

    Raises:
        UserError: a process failed, or a start policy is outside the band.
    """
    scale = scale or Scale()
    for part in parts:
        panel, names = PARTS[part]
        arms = {name: STUDY_ARMS[panel][name] for name in names}
        worlds = [seed_world(root, seed, panel == "marker") for seed in sft_seeds]
        # Seed by seed, so that a study that is stopped has complete pairs.
        pairs = [(world, rl_seed) for rl_seed in rl_seeds for world in worlds]
        run_missing([ArmRuns(*pair, arms, scale, tuned=tuned or {}) for pair in pairs], out, progress)


def run_missing(all_runs: Sequence[ArmRuns], out: Path, progress: JobProgress | None = None) -> None:
    """Makes the worlds and reward models of the runs that have no result in `out`, then these runs, in their order.

    Raises:
        UserError: a process failed, or a start policy is outside the band.
    """
    missing = without_known(all_runs, out)
    methods = needed_reward_models(missing)
    worlds = {_world_name(runs.world): (runs.world, methods, runs.scale.world_sizes) for runs in missing}
    process_pool.run_jobs({name: partial(train_reward_models, *made) for name, made in worlds.items()}, progress)
    process_pool.run_jobs({runs.name: partial(run_arms, runs, out) for runs in missing}, progress)


def needed_reward_models(all_runs: Sequence[ArmRuns]) -> dict[str, Recipe]:
    """Returns the reward models that the runs start from or train as policies."""
    configs = [distrl_config(runs, name) for runs in all_runs for name in runs.arms]
    used = {Path(path).name for config in configs for path in (config.model, config.rm_model or "")}
    known = {**STUDY_METHODS, **data_ablations.INFORMATIVE}
    return {name: recipe for name, recipe in known.items() if name in used}


def run_ablations(
    sft_seeds: Sequence[int], root: Path, out: Path, progress: JobProgress | None = None, sizes: Sizes | None = None
) -> None:
    """Trains and judges the data ablations of reward models, in the worlds of the reward model study and marked ones.

    Args:
        sft_seeds: seeds of worlds.
        root: folder of the worlds, that of the reward model study, whose runs these are compared with.
        out: folder of the runs.
        progress: receives the progress of every job.
        sizes: of the worlds.

    Raises:
        UserError: a process failed.
    """
    worlds = [seed_world(root, seed, marked) for marked in (False, True) for seed in sft_seeds]
    process_pool.run_jobs(
        {_world_name(world): partial(_judge_ablations, world, out, sizes or Sizes()) for world in worlds}, progress
    )


def _panel(world: World) -> Panel:
    return "marker" if world.marked else "plain"


def _world_name(world: World) -> str:
    return f"{_panel(world)} seed {world.seed}"


def _judge_ablations(world: World, out: Path, sizes: Sizes, progress: ActivityProgress) -> None:
    ablations = data_ablations.MARKERS if world.marked else data_ablations.SHUFFLED
    run_seed(world, ablations, out, sizes, progress, tasks=("steps",), subsets=("val", "onpolicy", "injected"))


def train_reward_models(world: World, methods: Mapping[str, Recipe], sizes: Sizes, progress: ActivityProgress) -> None:
    """Makes a world and trains reward models on it, without judging them."""
    build_world(world, sizes, progress, ())
    for name, recipe in methods.items():
        train_reward_model(world, name, recipe, progress)


# --- one run --------------------------------------------------------------------------------------------


def run_arms(runs: ArmRuns, out: Path, progress: ActivityProgress) -> None:
    """Runs every arm once and writes the results to `out`; skips arms that are finished.

    The world and the reward models that the arms start from must exist. Arms that start from one policy share its
    validation.
    """
    write_prompts(runs)
    starts: dict[str, Validation | None] = {}
    for name in runs.arms:
        config = distrl_config(runs, name)
        if not _is_copied(config.out, out):
            facts = {"model": name, "benchmark": runs.benchmark, "config": run_record(runs, name)}
            distrl.train_distrl(config, partial(_report_step, progress, name), facts, starts.get(config.model))
            _copy_result(config.out, out)
        starts[config.model] = metrics_log.start_validation(config.out)


def _report_step(progress: ActivityProgress, name: str, done: int, total: int, _metrics: Mapping[str, Any]) -> None:
    progress(name, done, total)


def distrl_config(runs: ArmRuns, name: str) -> DistRLConfig:
    """Returns the options of `prmbench train-distrl` for an arm."""
    arm, world, scale = runs.arms[name], runs.world, runs.scale
    is_trained = not arm.reward_model_as_policy
    config = DistRLConfig(
        model=str(world.policy if is_trained else world.folder / arm.reward_model_as_policy),
        arm=arm.arm,
        preset="miniature",
        device="cpu",
        data=_prompts_path(runs, "train"),
        validation_data=_prompts_path(runs, scale.validation_split),
        validate_every=scale.validate_every,
        validation_samples=VALIDATION_SAMPLES,
        first_rollouts=world.training if arm.reward_model_data_first else None,
        max_new_tokens=MAX_COMPLETION_TOKENS,
        split="numbered",
        steps=scale.steps if is_trained else 0,
        save_every=0,
        allow_empty=True,  # a policy that has collapsed is an outcome, too
        seed=runs.rl_seed,
        out=world.folder / f"{runs.benchmark.removeprefix('miniature_')}-{runs.rl_seed}" / name,
    )
    tuned = runs.tuned.get(arm.tuned_as or name, {})
    return replace(config, **{**_reward_model_options(world, arm), **tuned, **arm.options})


def _reward_model_options(world: World, arm: StudyArm) -> dict[str, Any]:
    """Returns the arm's reward model and the constants it was trained with; nothing for arms without one."""
    values = ARMS[arm.arm]
    if "rm_loss" not in values or values.get("rm_model") == SELF:
        return {}
    loss = values["rm_loss"]
    method = arm.reward_model or (f"{loss}_{data_ablations.INFORMATIVE_MARKER}" if world.marked else loss)
    trained = training_config(world, method, STUDY_METHODS.get(method, Recipe(loss)))
    constants = {"rm_beta": trained.beta, "rm_margin": trained.margin}
    set_constants = {name: value for name, value in constants.items() if value is not None}
    return {"rm_model": str(world.folder / method), **set_constants}


_RECORD = ("arm", "panel", "sft_seed", "rl_seed")
_COMPARED = (
    *("steps", "prompts", "group_size", "validate_every", "validation_samples", "learning_rate", "rm_learning_rate"),
    *("alpha", "gae_weight", "p_min", "rm_loss", "rm_beta", "rm_margin", "adb", "dlw", "reference", "step_weight"),
)
"""Options in which a stored run must agree with the study to count as one of its runs."""


def run_record(runs: ArmRuns, name: str) -> dict[str, Any]:
    """Returns what distinguishes the run from others of the study, for its manifest."""
    return {"arm": name, "panel": runs.panel, "sft_seed": runs.world.seed, "rl_seed": runs.rl_seed}


# --- prompts --------------------------------------------------------------------------------------------


def write_prompts(runs: ArmRuns) -> None:
    """Writes training and validation prompts that no policy, reward model or threshold was made with.

    The splits share no problem; within a split, problems that the world already uses are left out.
    """
    scale = runs.scale
    counts: dict[Split, int] = {"train": TRAINING_PROMPTS, scale.validation_split: scale.validation_prompts}
    for split, count in counts.items():
        path = _prompts_path(runs, split)
        if path.exists():
            continue
        used_prompts = arithmetic.make_prompts(split, runs.world.seed, _used_count(split, scale.world_sizes))
        used = {text_hash(p.text) for p in used_prompts}
        candidates = arithmetic.make_prompts(split, runs.world.seed, 2 * count, FIRST_UNUSED_PROBLEM)
        # Keyed by text: two indices can give the same problem.
        unused = {p.text: p for p in candidates if text_hash(p.text) not in used}
        arithmetic.write_prompts(path, list(unused.values())[:count])


def _used_count(split: Split, sizes: Sizes) -> int:
    """Returns an upper bound on the problems of a split that a world uses."""
    if split == "train":
        return sizes.training_prompts
    return max(ACCURACY_PROMPTS, sizes.best_of_n_prompts, 2 * sizes.judged_traces)


def _prompts_path(runs: ArmRuns, split: Split) -> Path:
    return runs.world.folder / f"rl-{split}-prompts.jsonl"


# --- results --------------------------------------------------------------------------------------------


def without_known(all_runs: Sequence[ArmRuns], out: Path) -> list[ArmRuns]:
    """Returns the runs without the arms that have a result in `out`, of the same seeds and options; those with any."""
    known = [run.result.manifest.config for run in tasks.read_runs(out)] if out.exists() else []
    by_record = {tuple(config.get(name) for name in _RECORD): config for config in known}

    def is_known(runs: ArmRuns, name: str) -> bool:
        found = by_record.get(tuple(run_record(runs, name)[field] for field in _RECORD))
        if found is None:
            return False
        config = distrl_options.resolve(distrl_config(runs, name))
        return all(found.get(option) == getattr(config, option) for option in _COMPARED)

    cut = [replace(runs, arms={n: arm for n, arm in runs.arms.items() if not is_known(runs, n)}) for runs in all_runs]
    return [runs for runs in cut if runs.arms]


def _result_files(run: Path) -> list[Path]:
    """Returns a finished run's files, the JSON last: where it has been copied to, the others are there too."""
    return sorted((run / "result").glob("*"), key=lambda path: (path.suffix == ".json", path.name))


def _is_copied(run: Path, out: Path) -> bool:
    paths = _result_files(run)
    return bool(paths) and all((out / path.name).exists() for path in paths)


def _copy_result(run: Path, out: Path) -> None:
    paths = _result_files(run)
    if not paths:
        raise UserError(f"{run}: the run is finished without a result; remove the folder and run again")
    for path in paths:
        writing.write_atomic(out / path.name, path.read_bytes())
