"""The demo and its study: equal budgets, what a choice may see, and (slow) one fresh seed from end to end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from report_runs import write_study
from rich.console import Console
from rl_runs import write_training

from prmbench import tasks
from prmbench.config import DemoConfig
from prmbench.core.records import UserError
from prmbench.data import rollouts
from prmbench.report.load import load
from prmbench.studies import demo
from prmbench.studies.miniature import arithmetic, experiments, recipes, seeds, study, tuning
from prmbench.studies.miniature.world import Sizes, World
from prmbench.studies.reporting.reward_model_runs import study as gather

# --- budgets --------------------------------------------------------------------------------------------


def test_every_method_gets_the_same_updates_of_the_same_completions() -> None:
    made = World(Path("w"), 3)
    found = [study.options_of(made, name, recipe) for name, recipe in (recipes.STUDIED | tuning.settings()).items()]
    same = {(c.steps, c.data, c.model, c.seed, c.schedule, c.warmup) for c in found}
    assert same == {(study.UPDATES, made.training, str(made.policy), 3, "cosine", 0.0)}
    completions = {c.loss: (c.batch_size or 0) * (2 if c.loss in ("dpo_rm", "q_rm") else 1) for c in found}
    assert set(completions.values()) == {study.COMPLETIONS}


def test_every_method_is_tuned_on_as_many_settings() -> None:
    named = tuning.settings()
    assert set(Counter(recipe.loss for recipe in named.values()).values()) == {4}
    tuned = {recipe.loss for recipe in named.values()} | {"ipvrm_early", "ipvrm_late"}  # which take ipvrm's
    assert {recipe.loss for recipe in recipes.STUDIED.values()} == tuned
    assert len(set(named.values())) == len(named)


def test_a_choice_sees_validation_alone() -> None:
    assert min(tuning.SEEDS) >= 1000
    assert study.TUNING == "val"
    assert tuning.PROTOCOL.endswith(":val")


def test_paper_constants() -> None:
    told = {name: (r.beta, r.margin) for name, r in recipes.STUDIED.items() if name.endswith("_paper")}
    assert told == {
        "ipvrm_paper": (10.0, 5.0),
        "implicit_prm_paper": (0.05, None),
        "dpo_rm_paper": (0.05, None),
        "q_rm_paper": (0.2, 2.0),
    }


# --- the command ----------------------------------------------------------------------------------------


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seeds is 0; expected at least 1"):
        demo.demo(DemoConfig(seeds=0, out=tmp_path))
    with pytest.raises(UserError, match="--world smollm2"):
        demo.demo(DemoConfig(limit=3, out=tmp_path))


def test_policies_are_told_before_and_after(tmp_path: Path) -> None:
    for seed, (start, end) in enumerate(((0.25, 0.5), (0.5, 0.75))):
        for arm, more in (("grpo", 0.0), ("distrl_ipvrm", 0.125)):
            write_training(tmp_path, arm, (start, 0.2, end - more), (seed, 0))
    console = Console(width=80, record=True)
    console.print(demo.policies(tasks.read_runs(tmp_path)))
    lines = {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines() if line.strip()}
    assert lines["grpo"] == ["37.5", "62.5", "+25.0"]
    assert lines["distrl_ipvrm"] == ["37.5", "50.0", "+12.5"]


def test_table_has_a_line_a_method_and_the_floor(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": (0.5, 0.7), "dpo_rm": (0.3, 0.5)}, ("steps", "best_of_n", "calibration"))
    found = gather([tasks.read_run(path) for path in sorted(tmp_path.rglob("*.json"))])
    console = Console(width=80, record=True)
    console.print(demo.table(found))
    text = console.export_text()
    assert "mean over seeds 0, 1" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert float(lines["ipvrm"][1]) > float(lines["dpo_rm"][1])
    assert len(lines["ipvrm"]) == 6
    assert "chance" in lines


# --- from end to end ------------------------------------------------------------------------------------

SMALL = Sizes(prompts=500, judged=80, shifted=20, choices=30, valued=10, continuations=4)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """One seed that nobody has seen before: IPVRM, and IPVRM on outcomes that were dealt out anew."""
    root = tmp_path_factory.mktemp("study")
    seed = Random().randrange(10_000, 10**6)
    made = World(root / f"seed-{seed}", seed)
    seeds.run([seed], {"ipvrm": recipes.METHODS["ipvrm"]}, root, root / "results", sizes=SMALL)
    return made, root / "results"


@pytest.mark.slow
def test_labels_are_the_oracles_and_rows_follow_from_the_scores(told: tuple[World, Path]) -> None:
    made, results = told
    loaded = load(results, recompute=True)
    assert not loaded.broken
    assert not loaded.differing
    run = next(r for r in (tasks.read_run(p) for p in results.glob("*.json")) if r.result.manifest.task == "steps")
    rows = {row["id"]: row for row in map(json.loads, made.steps.read_text().splitlines())}
    assert len(run.scores) == len(rows) == 3 * 80 + 5 * 20
    for trace in run.scores:
        row = rows[trace.id]
        assert trace.label == arithmetic.first_error(row["problem"], row["steps"])
        gold = str(arithmetic.parse_prompt(row["problem"]).values()[-1])
        assert trace.outcome == int(arithmetic.answer(row["steps"]) == gold)


@pytest.mark.slow
def test_problems_of_training_validation_and_test_are_disjoint(told: tuple[World, Path]) -> None:
    made, _ = told
    trained = {arithmetic.parse_prompt(r.prompt).text() for r in rollouts.read(made.training)}
    shown = {arithmetic.parse_prompt(r.prompt).text() for r in rollouts.read(made.folder / "examples.jsonl")}
    judged: dict[bool, set[str]] = {True: set(), False: set()}
    for row in map(json.loads, made.steps.read_text().splitlines()):
        judged[row["subset"] == "val"].add(arithmetic.parse_prompt(row["problem"]).text())
    groups = [trained, shown, judged[True], judged[False]]
    assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.slow
def test_it_learns_and_shuffled_outcomes_teach_nothing(told: tuple[World, Path]) -> None:
    made, results = told
    name = "ipvrm_shuffled"
    study.seed_runs(made, {name: experiments.SHUFFLED[name]}, results, SMALL, lambda *_: None, tasks=("steps",))
    f1, data = {}, {}
    for path in results.glob("*.json"):
        result = tasks.read_run(path).result
        data[result.manifest.model] = result.manifest.config["recipe"].get("data")
        for row in result.rows:
            if (row.subset, row.protocol, row.metric) == ("onpolicy", "step_sum/calibrated:val", "f1"):
                f1[result.manifest.model] = row.value or 0.0
    assert data == {"ipvrm": None, name: "shuffled"}
    assert f1["ipvrm"] > 0.6, f"seed {made.seed}"
    assert f1[name] < f1["ipvrm"] - 0.2, f"seed {made.seed}"


@pytest.mark.slow
def test_a_finished_seed_is_not_done_again(told: tuple[World, Path]) -> None:
    made, results = told
    before = {path: path.stat().st_mtime_ns for path in [*results.iterdir(), *made.folder.rglob("*")]}
    study.seed_runs(made, {"ipvrm": recipes.METHODS["ipvrm"]}, results, SMALL, lambda *_: None)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_policy_that_does_not_learn_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the policy of seed 5 is not at accuracy 0.45 after 2 updates"):
        seeds.run([5], recipes.METHODS, tmp_path, tmp_path / "results", sizes=Sizes(updates=2))
