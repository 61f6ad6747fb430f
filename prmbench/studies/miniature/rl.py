"""The miniature study of policies in training: its arms, their problems, and one run of one of them.

Arms are rows of options of train-distrl. Nothing is trained here but by the functions behind the commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prmbench.config.distrl_options import ARMS, SELF, Arm, DistRLConfig
from prmbench.core import writing
from prmbench.core.progress import Tell
from prmbench.core.records import UserError, text_hash
from prmbench.rl import distrl
from prmbench.studies.miniature import arithmetic, experiments, pool, study, world
from prmbench.studies.miniature.arithmetic import Split
from prmbench.studies.miniature.recipes import METHODS, STUDIED, Recipe
from prmbench.studies.miniature.world import MAX_TOKENS, Sizes, World

BENCHMARK = "miniature_rl"
Panel = Literal["plain", "marker"]
"""marker: policy and reward models know a late marker, which told the outcome of the completions that the latter
learned from."""
STEPS, VALIDATE_EVERY, SAMPLES = 20, 10, 8
"""Of every run; completions a validation problem."""
TRAINING_PROMPTS, VALIDATION_PROMPTS = 1000, 250
LATER = 10_000
"""Index of the first problem of a split that no reward model, policy or threshold has seen."""


@dataclass(frozen=True, slots=True)
class StudyArm:
    """How an arm of the study differs from an arm of train-distrl."""

    arm: Arm
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: bool = False
    """Trained first on the completions that the reward models are made of, which only their arms have otherwise."""
    policy: str = ""
    """Reward model of the world that is judged as a policy, in the policy's place; no step is taken."""
    reward_model: str = ""
    """Method of the study of reward models that the arm starts from; empty: the one named like its loss."""


_PLAIN = {
    "grpo": StudyArm("grpo"),
    "grpo_extra": StudyArm("grpo", extra=True),
    "grpo_ipvrm": StudyArm("grpo_ipvrm"),
    "distrl_ipvrm": StudyArm("distrl_ipvrm"),
    "distrl_implicit_prm": StudyArm("distrl_implicit_prm"),
    "distrl_dpo_rm": StudyArm("distrl_dpo_rm"),
    "distrl_frozen": StudyArm("distrl_ipvrm_frozen"),
    "distrl_naive": StudyArm("distrl_ipvrm", {"adb": False, "dlw": False}),
    "distrl_dlw": StudyArm("distrl_ipvrm", {"adb": False}),
    "distrl_adb": StudyArm("distrl_ipvrm", {"dlw": False}),
    "distrl_sft": StudyArm("distrl_ipvrm", {"reference": "sft"}),
    "distrl_pmin_0.05": StudyArm("distrl_ipvrm", {"p_min": 0.05}),
    "distrl_pmin_0.2": StudyArm("distrl_ipvrm", {"p_min": 0.2}),
    "distrl_alpha_0.01": StudyArm("distrl_ipvrm", {"alpha": 0.01}),
    "distrl_alpha_0.1": StudyArm("distrl_ipvrm", {"alpha": 0.1}),
    "distrl_paper": StudyArm("distrl_ipvrm", {"alpha": 0.1, "gae_weight": 1.0}),
    "prime": StudyArm("prime"),
    "spro": StudyArm("spro"),
    "reinforce_q_rm": StudyArm("reinforce_q_rm"),
    "rm_as_policy_ipvrm": StudyArm("grpo", policy="ipvrm"),
    "rm_as_policy_implicit_prm": StudyArm("grpo", policy="implicit_prm"),
}
_MARKED = ("grpo", "distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm")
STUDY_ARMS: dict[Panel, dict[str, StudyArm]] = {"plain": _PLAIN, "marker": {name: _PLAIN[name] for name in _MARKED}}
DEMO_ARMS = {name: _PLAIN[name] for name in ("grpo", "distrl_ipvrm")}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is of a study."""

    steps: int = STEPS
    validate_every: int = VALIDATE_EVERY
    prompts: int = VALIDATION_PROMPTS
    split: Split = "test"
    """Of the validation problems."""
    sizes: Sizes = field(default_factory=Sizes)
    """Of the worlds."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one policy and one seed of its training, which share their problems."""

    world: World
    seed: int
    arms: Mapping[str, StudyArm]
    scale: Scale = field(default_factory=Scale)
    benchmark: str = BENCHMARK

    @property
    def panel(self) -> Panel:
        """Which world it is."""
        return "marker" if self.world.marked else "plain"

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.panel} seed {self.world.seed}.{self.seed}"


def study_runs(
    sft_seeds: Sequence[int],
    rl_seeds: Sequence[int],
    root: Path,
    out: Path,
    tell: Tell | None = None,
    scale: Scale | None = None,
) -> None:
    """The whole study: worlds and reward models, the experiments on these, then every arm, run records into `out`.

    Goes on where an earlier call was interrupted. Raises UserError when a process fails.
    """
    scale = scale or Scale()
    worlds = [place(root, seed, panel) for panel in STUDY_ARMS for seed in sft_seeds]
    pool.run({_of(made): partial(prepare, made, out, scale.sizes) for made in worlds}, tell)
    runs = [
        Runs(place(root, seed, panel), number, arms, scale)
        for panel, arms in STUDY_ARMS.items()
        for seed in sft_seeds
        for number in rl_seeds
    ]
    pool.run({given.name: partial(run, given, out) for given in runs}, tell)


def place(root: Path, seed: int, panel: Panel = "plain") -> World:
    """Where a world of the study is; the plain ones are those of the study of reward models."""
    marked = panel == "marker"
    return World(root / f"{'marker-' if marked else ''}seed-{seed}", seed, marked)


def _of(made: World) -> str:
    return f"{'marker' if made.marked else 'plain'} seed {made.seed}"


def prepare(made: World, out: Path, sizes: Sizes, tell: world.Tell) -> None:
    """A world, the reward models that its arms start from, and the experiments on reward models."""
    methods = experiments.MARKERS if made.marked else experiments.SHUFFLED
    only: tuple[str, ...] = ("steps",)
    study.seed_runs(made, methods, out, sizes, tell, tasks=only)
    if not made.marked:
        reward_models(made, METHODS, sizes, tell)


def reward_models(made: World, methods: Mapping[str, Recipe], sizes: Sizes, tell: world.Tell) -> None:
    """A world and its reward models, not judged."""
    world.build(made, sizes, tell, ())
    for name, recipe in methods.items():
        study.trained(made, name, recipe, tell)


# --- one run --------------------------------------------------------------------------------------------


def run(given: Runs, out: Path, tell: world.Tell) -> None:
    """Every arm once, on a world whose reward models are there; what is finished is not done again."""
    write_problems(given)
    for name in given.arms:
        config = options_of(given, name)
        if not _copied(config.out, out):
            told = {"model": name, "benchmark": given.benchmark, "config": facts(given, name)}
            distrl.train_distrl(config, partial(_tell, tell, name), told=told)
            _copy(config.out, out)


def _tell(tell: world.Tell, name: str, done: int, most: int, _: Mapping[str, Any]) -> None:
    tell(name, done, most)


def options_of(given: Runs, name: str) -> DistRLConfig:
    """The options of `prmbench train-distrl`."""
    arm, made, scale = given.arms[name], given.world, given.scale
    config = DistRLConfig(
        model=str(made.folder / arm.policy if arm.policy else made.policy),
        arm=arm.arm,
        preset="miniature",
        device="cpu",
        data=_problems(given, "train"),
        validation_data=_problems(given, scale.split),
        validate_every=scale.validate_every,
        validation_samples=SAMPLES,
        first_rollouts=made.training if arm.extra else None,
        max_new_tokens=MAX_TOKENS,
        split="numbered",
        steps=0 if arm.policy else scale.steps,
        save_every=0,
        seed=given.seed,
        out=made.folder / f"{given.benchmark.removeprefix('miniature_')}-{given.seed}" / name,
    )
    return replace(config, **_reward(made, arm), **arm.options)


def _reward(made: World, arm: StudyArm) -> dict[str, Any]:
    """The world's reward model for an arm that has one, and the constants that it was trained with."""
    values = ARMS[arm.arm]
    if "rm_loss" not in values or values.get("rm_model") == SELF:
        return {}
    loss = values["rm_loss"]
    method = arm.reward_model or (f"{loss}_{experiments.MARKED}" if made.marked else loss)
    trained = study.options_of(made, method, STUDIED.get(method, Recipe(loss)))
    known = {"rm_beta": trained.beta, "rm_margin": trained.margin}
    return {"rm_model": str(made.folder / method), **{name: v for name, v in known.items() if v is not None}}


def facts(given: Runs, name: str) -> dict[str, Any]:
    """What tells runs apart, for manifests."""
    return {"arm": name, "panel": given.panel, "sft_seed": given.world.seed, "rl_seed": given.seed}


# --- their problems -------------------------------------------------------------------------------------


def write_problems(given: Runs) -> None:
    """Prompts to train on and to validate on: of no policy's, reward model's or threshold's data.

    The splits are disjoint; within a split, what was drawn earlier is left out.
    """
    wanted: dict[Split, int] = {"train": TRAINING_PROMPTS, given.scale.split: given.scale.prompts}
    for split, count in wanted.items():
        path = _problems(given, split)
        if path.exists():
            continue
        used = {text_hash(p.text) for p in arithmetic.prompts(split, given.world.seed, _used(split, given.scale.sizes))}
        drawn = arithmetic.prompts(split, given.world.seed, 2 * count, LATER)
        fresh = {p.text: p for p in drawn if text_hash(p.text) not in used}
        arithmetic.write_prompts(path, list(fresh.values())[:count])


def _used(split: Split, sizes: Sizes) -> int:
    """Most problems of a split that a world takes."""
    return sizes.prompts if split == "train" else max(world.LOOK_PROMPTS, sizes.choices, 2 * sizes.judged)


def _problems(given: Runs, split: Split) -> Path:
    return given.world.folder / f"rl-{split}-prompts.jsonl"


# --- their records --------------------------------------------------------------------------------------


def _record(run: Path) -> list[Path]:
    """The files of a finished run's record, its result last: what lies in a folder of results is whole."""
    return sorted((run / "result").glob("*"), key=lambda path: (path.suffix == ".json", path.name))


def _copied(run: Path, out: Path) -> bool:
    found = _record(run)
    return bool(found) and all((out / path.name).exists() for path in found)


def _copy(run: Path, out: Path) -> None:
    found = _record(run)
    if not found:
        raise UserError(f"{run}: the run is finished without a result; remove the folder and run again")
    for path in found:
        writing.write_atomic(out / path.name, path.read_bytes())
