"""The reward model study: equal budgets, data that tuning may see; (slow) one new seed from world to results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_world import SIZES, copy_world

from prmbench import tasks
from prmbench.core.records import UserError
from prmbench.data import rollouts
from prmbench.report.load import load
from prmbench.studies.miniature import arithmetic, data_ablations, recipes, reward_model_study
from prmbench.studies.miniature.world import Sizes, World

# --- budgets --------------------------------------------------------------------------------------------


def test_every_method_gets_the_same_updates_of_the_same_completions() -> None:
    world = World(Path("w"), 3)
    configs = [reward_model_study.training_config(world, name, r) for name, r in recipes.STUDY_METHODS.items()]
    shared = {(c.steps, c.data, c.model, c.seed, c.schedule, c.warmup) for c in configs}
    assert shared == {(reward_model_study.UPDATES, world.training, str(world.policy), 3, "cosine", 0.0)}
    completions = {c.loss: (c.batch_size or 0) * (2 if c.loss in ("dpo_rm", "q_rm") else 1) for c in configs}
    assert set(completions.values()) == {reward_model_study.COMPLETIONS_PER_UPDATE}


def test_paper_constants() -> None:
    constants = {name: (r.beta, r.margin) for name, r in recipes.STUDY_METHODS.items() if name.endswith("_paper")}
    assert constants == {
        "ipvrm_paper": (10.0, 5.0),
        "implicit_prm_paper": (0.05, None),
        "dpo_rm_paper": (0.05, None),
        "q_rm_paper": (0.2, 2.0),
    }


# --- from end to end ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studied(trained_world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """The world of a random seed and the results of IPVRM on it."""
    root = tmp_path_factory.mktemp("study")
    world = copy_world(trained_world, root)
    methods = {"ipvrm": recipes.DEMO_METHODS["ipvrm"]}
    reward_model_study.run_study([world.seed], methods, root, root / "results", sizes=SIZES)
    return world, root / "results"


@pytest.mark.slow
def test_labels_are_the_oracles_and_rows_follow_from_the_scores(studied: tuple[World, Path]) -> None:
    world, results = studied
    loaded = load(results, recompute=True)
    assert not loaded.broken
    assert not loaded.differing
    run = next(r for r in (tasks.read_run(p) for p in results.glob("*.json")) if r.result.manifest.task == "steps")
    rows = {row["id"]: row for row in map(json.loads, world.steps.read_text().splitlines())}
    assert len(run.scores) == len(rows) == 3 * 80 + 5 * 20
    for trace in run.scores:
        row = rows[trace.id]
        assert trace.label == arithmetic.first_error(row["problem"], row["steps"])
        gold = str(arithmetic.parse_prompt(row["problem"]).values()[-1])
        assert trace.outcome == int(arithmetic.final_answer(row["steps"]) == gold)


@pytest.mark.slow
def test_problems_of_training_validation_and_test_are_disjoint(studied: tuple[World, Path]) -> None:
    world, _ = studied
    training = {arithmetic.parse_prompt(r.prompt).text() for r in rollouts.read(world.training)}
    sft = {arithmetic.parse_prompt(r.prompt).text() for r in rollouts.read(world.folder / "examples.jsonl")}
    validation: set[str] = set()
    test: set[str] = set()
    for row in map(json.loads, world.steps.read_text().splitlines()):
        judged = validation if row["subset"] == "val" else test
        judged.add(arithmetic.parse_prompt(row["problem"]).text())
    candidates = {arithmetic.parse_prompt(r.prompt).text() for r in rollouts.read(world.candidates)}
    assert len(candidates) == SIZES.best_of_n_prompts
    splits = [training, sft, validation, test, candidates]
    assert sum(map(len, splits)) == len(set.union(*splits))


@pytest.mark.slow
def test_ipvrm_learns_and_does_not_learn_from_shuffled_outcomes(studied: tuple[World, Path]) -> None:
    world, results = studied
    name = "ipvrm_shuffled"
    ablation = {name: data_ablations.SHUFFLED[name]}
    subsets = ("val", "onpolicy")
    reward_model_study.run_seed(world, ablation, results, SIZES, lambda *_: None, tasks=("steps",), subsets=subsets)
    f1, data = {}, {}
    for path in results.glob("*.json"):
        result = tasks.read_run(path).result
        if result.manifest.model == name:
            assert sorted(result.manifest.subsets) == ["onpolicy", "val"]
        data[result.manifest.model] = result.manifest.config["recipe"].get("data")
        for row in result.rows:
            if (row.subset, row.protocol, row.metric) == ("onpolicy", "step_sum/calibrated:val", "f1"):
                f1[result.manifest.model] = row.value or 0.0
    assert data == {"ipvrm": None, name: "shuffled"}
    assert f1["ipvrm"] > 0.6, f"seed {world.seed}"
    assert f1[name] < f1["ipvrm"] - 0.2, f"seed {world.seed}"


@pytest.mark.slow
def test_a_finished_seed_is_not_done_again(studied: tuple[World, Path]) -> None:
    world, results = studied
    before = {path: path.stat().st_mtime_ns for path in [*results.iterdir(), *world.folder.rglob("*")]}
    methods = {"ipvrm": recipes.DEMO_METHODS["ipvrm"]}
    reward_model_study.run_seed(world, methods, results, SIZES, lambda *_: None)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_policy_that_does_not_learn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the policy of seed 5 is not at accuracy 0.45 after 2 updates"):
        reward_model_study.run_study(
            [5], recipes.DEMO_METHODS, tmp_path, tmp_path / "results", sizes=Sizes(max_updates=2)
        )
