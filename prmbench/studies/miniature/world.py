"""One seed of the miniature world on disk: a policy half right, its rollouts, and what reward models are judged on.

Made by the functions behind train-sft and rollout, into the files those commands read; a finished part is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from prmbench import data
from prmbench.config import RolloutConfig, TrainConfig
from prmbench.core.records import Trace, UserError
from prmbench.data import prompts, rollouts, training_data
from prmbench.data.rollouts import Rollout
from prmbench.engines.generation import Sampling
from prmbench.engines.hf import HFEngine
from prmbench.sampling import completions as policy
from prmbench.sampling import monte_carlo, rollout
from prmbench.studies.miniature import arithmetic, late_markers, tiny_model
from prmbench.studies.miniature.arithmetic import Split
from prmbench.training import train
from prmbench.verification import verifiers

Tell = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, out of how much)."""
MAX_TOKENS = 80
"""Longest completion; a right one in the plain format takes 46 tokens at most."""
JUDGED: tuple[str, ...] = ("steps", "best_of_n", "calibration")
"""What reward models are judged on."""
BATCH = 32
"""Of the policy's training: larger ones learn little in the same time."""
FIRST_LOOK, LOOK_EVERY, LOOK_PROMPTS = 200, 10, 200
"""Of the policy's accuracy while it learns: from which update on, how often, on how many validation problems."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything there is, the same for every method."""

    updates: int = 640
    """Most that the policy may take; it has failed when it is not good enough by then. Two thirds are usual."""
    accuracy: float = 0.45
    """Where supervised training ends. The policy learns fast at that point: it may end up at 0.45 to 0.65."""
    prompts: int = 2000
    """That reward models are trained on, before those without a mixed group fall away."""
    group: int = 5
    """Completions of each; one right and one wrong are kept (IPVRM paper, 4.1)."""
    judged: int = 300
    """Traces of each kind: half of them right."""
    shifted: int = 150
    """On-policy traces that are shown in each other format."""
    choices: int = 150
    """Prompts of best-of-N."""
    candidates: int = 8
    """Completions of each."""
    valued: int = 100
    """Traces whose prefixes get a Monte-Carlo success."""
    continuations: int = 10


@dataclass(frozen=True, slots=True)
class World:
    """Where the files of one seed are."""

    folder: Path
    seed: int
    marked: bool = False
    """Whether the policy learns to end in a late marker, which says nothing (late_markers.py); else the plain world."""

    @property
    def policy(self) -> Path:
        """Trained on right solutions in all formats; the start and the reference of every reward model."""
        return self.folder / "policy"

    @property
    def training(self) -> Path:
        """Right and wrong completions of mixed prompts, one of each: pairs, or points."""
        return self.data("training")

    def data(self, name: str) -> Path:
        """Completions to train reward models on, by name: `training`, or what experiments.py makes of it."""
        return self.folder / f"{name}.jsonl"

    @property
    def steps(self) -> Path:
        """Labelled traces in ProcessBench's schema: val, onpolicy, injected and the five shifts."""
        return self.folder / "steps.jsonl"

    @property
    def candidates(self) -> Path:
        """Groups of completions to pick from."""
        return self.folder / "candidates.jsonl"

    @property
    def prefixes(self) -> Path:
        """Traces with the Monte-Carlo success of every prefix."""
        return self.folder / "prefixes.jsonl"


def build(world: World, sizes: Sizes, tell: Tell, tasks: Collection[str] = JUDGED) -> None:
    """Makes what is not there yet: a policy, training data, and what `tasks` are judged on.

    Raises UserError when the policy does not learn.
    """
    world.folder.mkdir(parents=True, exist_ok=True)
    _train_policy(world, sizes, tell)
    _sample_training(world, sizes, tell)
    if tasks:
        _sample_judged(world, sizes, tell)
    if "calibration" in tasks:
        _value_prefixes(world, sizes, tell)


def loaded(world: World, tasks: Collection[str] = JUDGED) -> dict[str, Sequence[Trace]]:
    """Str -> the traces that models are judged on, read as `prmbench eval` reads them."""
    files = {"processbench": world.steps, "best_of_n": world.candidates, "calibration": world.prefixes}
    named = zip(JUDGED, files.items(), strict=True)
    return {task: data.load(name, path).traces for task, (name, path) in named if task in tasks}


# --- the policy -----------------------------------------------------------------------------------------


def _train_policy(world: World, sizes: Sizes, tell: Tell) -> None:
    start, examples = world.folder / "start", world.folder / "examples.jsonl"
    if not (start / "model.safetensors").exists():
        tiny_model.build(start, world.seed, late_markers.TOKENS if world.marked else ())
    config = TrainConfig(
        model=str(start),
        data=examples,
        device="cpu",
        preset="miniature",
        batch_size=BATCH,
        steps=sizes.updates,
        seed=world.seed,
        out=world.policy,
    )
    if not examples.exists():
        shown = arithmetic.examples(world.seed, sizes.updates * BATCH)
        shown = late_markers.marked(shown, late_markers.UNINFORMATIVE, world.seed) if world.marked else shown
        rollouts.write(examples, shown)
    asked = arithmetic.prompts("validation", world.seed, LOOK_PROMPTS)
    found: dict[int, float] = {}

    def good_enough(update: int, engine: HFEngine) -> bool:
        if update >= FIRST_LOOK and update % LOOK_EVERY == 0:
            found[update] = accuracy(engine, asked, world.seed)
        return found.get(update, 0.0) >= sizes.accuracy

    trained = train.train(config, lambda done, most, _: tell("policy", done, most), good_enough)
    if trained is not None and trained.updates >= sizes.updates and found.get(sizes.updates, 0.0) < sizes.accuracy:
        raise UserError(
            f"miniature: the policy of seed {world.seed} is not at accuracy {sizes.accuracy} after {sizes.updates} "
            f"updates; take another seed (--first-seed)"
        )


def accuracy(engine: HFEngine, asked: Sequence[prompts.Prompt], seed: int) -> float:
    """Share of right answers, one sample a prompt at temperature 1."""
    config = _sampling(seed, group_size=1)
    with verifiers.Verifier(1) as verifier:
        return sum(r.outcome or 0 for r in policy.sample(engine, asked, config, verifier)) / len(asked)


# --- its rollouts ---------------------------------------------------------------------------------------


def _sample_training(world: World, sizes: Sizes, tell: Tell) -> None:
    if world.training.exists():
        return
    sampled = _sampled(world, "train", sizes.prompts, sizes.group, tell)
    found, _ = training_data.pairs(sampled, "one")
    rollouts.write(world.training, training_data.halves(found))


def _sample_judged(world: World, sizes: Sizes, tell: Tell) -> None:
    """Traces come from twice as many prompts as are needed, so that all kinds are found among them; without markers."""
    test = _sampled_bare(world, "test", max(sizes.choices, 2 * sizes.judged), sizes.candidates, tell)
    val = _sampled_bare(world, "validation", 2 * sizes.judged, 2, tell)
    traces = arithmetic.on_policy(test, "onpolicy", sizes.judged)
    shifted = arithmetic.shifted(arithmetic.on_policy(test, "onpolicy", sizes.shifted))
    injected = arithmetic.injected("test", world.seed, sizes.judged)
    arithmetic.write_traces(
        world.steps, [*arithmetic.on_policy(val, "val", sizes.judged), *traces, *injected, *shifted]
    )
    groups = [list(rows) for _, rows in groupby(test, key=lambda r: r.group)][: sizes.choices]
    rollouts.write(world.candidates, [replace(r, subset="test") for rows in groups for r in rows])


def _value_prefixes(world: World, sizes: Sizes, tell: Tell) -> None:
    if world.prefixes.exists():
        return
    test = rollouts.read(_drawn(world, "test"))
    traces = arithmetic.on_policy(map(late_markers.unmarked, test), "onpolicy", sizes.valued)
    engine = policy.open_policy(_sampling(world.seed, model=str(world.policy)))
    how = Sampling(max_new_tokens=MAX_TOKENS)
    valued = []
    for trace in monte_carlo.prefix_success(engine, traces, arithmetic.solves, sizes.continuations, how, world.seed):
        valued.append(trace)
        tell("prefix success", len(valued), len(traces))
    arithmetic.write_traces(world.prefixes, valued)


def _sampled_bare(world: World, split: Split, count: int, group: int, tell: Tell) -> list[Rollout]:
    return [late_markers.unmarked(r) for r in _sampled(world, split, count, group, tell)]


def _sampled(world: World, split: Split, count: int, group: int, tell: Tell) -> list[Rollout]:
    """What `prmbench rollout` draws for the split's prompts."""
    asked, out = world.folder / f"{split}-prompts.jsonl", _drawn(world, split)
    if not asked.exists():
        arithmetic.write_prompts(asked, arithmetic.prompts(split, world.seed, count))
    config = _sampling(world.seed, model=str(world.policy), data=asked, group_size=group, out=out)
    rollout.rollout(config, lambda done, most, _: tell(f"{split} rollouts", done, most))
    return rollouts.read(out)


def _drawn(world: World, split: Split) -> Path:
    return world.folder / f"{split}-rollouts.jsonl"


def _sampling(seed: int, **given: Any) -> RolloutConfig:
    """Temperature 1 and nothing cut off: completions as the policy means them."""
    return RolloutConfig(**{"split": "numbered", "max_new_tokens": MAX_TOKENS, "device": "cpu", "seed": seed, **given})
