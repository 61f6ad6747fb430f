"""Tuning of reward models: equal trials, all of them in the table, resumption, and the recipes that follow from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from prmbench.config import TrainRMConfig, presets
from prmbench.core.records import NonFiniteError, UserError
from prmbench.studies.miniature import process_pool, reward_model_study, reward_model_tuning
from prmbench.studies.miniature.process_pool import Job
from prmbench.studies.miniature.random_search import Range, Search, Trial
from prmbench.studies.miniature.recipes import LOSSES, STUDY_METHODS, Recipe, chosen_recipes, study_methods
from prmbench.studies.miniature.world import World

COMMITTED = Path("leaderboards/results/miniature/tuning.json")
RATE = Range(1e-4, 1e-2)
SEARCH = Search({"ipvrm": {"learning_rate": RATE, "margin": Range(0, 2, "linear")}, "dpo_rm": {"learning_rate": RATE}})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces worlds and training: F1 is 100 times a trial's rate, a tenth less on the second world."""
    made: list[str] = []

    def run_jobs(jobs: Mapping[str, Job], _progress: object) -> None:
        for job in jobs.values():
            job(lambda *_: None)

    def f1(world: World, trial: Trial, _traces: object) -> float | None:
        made.append(f"{world.seed} {trial.key}")
        (world.folder / "trials" / trial.key).mkdir(parents=True)
        return None if trial.key == "dpo_rm-01" else (100 - 10 * (world.seed - 7)) * trial.values["learning_rate"]

    monkeypatch.setattr(process_pool, "run_jobs", run_jobs)
    monkeypatch.setattr(reward_model_tuning, "build_world", lambda *_: None)
    monkeypatch.setattr(reward_model_tuning, "load_traces", lambda *_: {"steps": []})
    monkeypatch.setattr(reward_model_tuning, "_trial_f1", f1)
    return made


def tune(root: Path, search: Search = SEARCH, **options: Any) -> dict[str, Any]:
    return reward_model_tuning.tune(root, (7, 8), search, **options)


def test_the_table_has_every_trial_of_every_loss_on_every_world(calls: list[str], tmp_path: Path) -> None:
    table = tune(tmp_path, earlier={"settings": [1, 2]})
    assert table == json.loads((tmp_path / "tuning.json").read_text())
    # The best rate is the highest: the range is extended until the limit, and both losses get all trials.
    assert Counter(line["loss"] for line in table["trials"]) == {"ipvrm": 48, "dpo_rm": 48}
    assert [r["trials_a_loss"] for r in table["rounds"]] == [16, 8, 8, 8, 8]
    assert table["rounds"][1]["extended"]["dpo_rm"] == {"learning_rate": "high"}
    assert table["rounds"][1]["ranges"]["dpo_rm"]["learning_rate"] == [1e-4, 0.1]
    assert table["stopped"] == "the limit of 48 trials"
    assert table["at_edge"]["ipvrm"]["learning_rate"] == "high"
    assert table["earlier"] == {"settings": [1, 2]}
    assert len(calls) == len(set(calls)) == 2 * 2 * 48
    for line in table["trials"]:
        rate, diverged = line["learning_rate"], (line["loss"], line["trial"]) == ("dpo_rm", 1)
        expected = {"7": None, "8": None} if diverged else {"7": 100 * rate, "8": 90 * rate}
        assert line["f1"] == expected
        assert line["mean_f1"] == pytest.approx(0 if diverged else 95 * rate, abs=1e-6)
    best = max((line for line in table["trials"] if line["loss"] == "ipvrm"), key=lambda line: line["mean_f1"])
    assert {name: best[name] for name in ("learning_rate", "margin", "trial")} == {
        name: table["chosen"]["ipvrm"][name] for name in ("learning_rate", "margin", "trial")
    }


def test_an_interrupted_search_repeats_one_trial(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(SEARCH.spaces, first=10, further=2, limit=12)
    uninterrupted = tune(tmp_path / "a", search)
    calls.clear()
    work = reward_model_tuning._trial_f1

    def killed(*arguments: Any) -> float | None:
        if len(calls) == 43:
            raise KeyboardInterrupt
        return work(*arguments)

    monkeypatch.setattr(reward_model_tuning, "_trial_f1", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", search)
    monkeypatch.setattr(reward_model_tuning, "_trial_f1", work)
    assert json.loads((tmp_path / "b" / "tuning.json").read_text())["stopped"] == ""
    with pytest.raises(UserError, match=r"tuning.json: has no recipe of every loss"):
        chosen_recipes(tmp_path / "b" / "tuning.json")
    assert tune(tmp_path / "b", search) == uninterrupted
    assert len(calls) == len(set(calls)) == 2 * 2 * 12
    assert not list((tmp_path / "b").glob("seed-*/trials/*"))


def test_results_of_another_search_are_refused(calls: list[str], tmp_path: Path) -> None:
    tune(tmp_path, Search(SEARCH.spaces, first=2, limit=2))
    with pytest.raises(UserError, match=r"ipvrm-00.json: is of a search with other ranges or numbers of trials"):
        tune(tmp_path, Search(SEARCH.spaces, first=2, limit=2, seed=1))
    assert len(calls) == 2 * 2 * 2


@pytest.mark.parametrize(("diverges", "f1"), [(True, None), (False, 0.75)])
def test_a_trial_trains_and_scores_and_keeps_the_reference(
    diverges: bool, f1: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, 7)
    folder = tmp_path / "trials" / "dpo_rm-03"

    def train(_world: World, _name: str, _recipe: Recipe, _progress: object) -> None:
        folder.mkdir(parents=True)
        (folder / "reference-1.0.safetensors").write_text("numbers")
        if diverges:
            raise NonFiniteError("update 3")

    def row(protocol: str, value: float) -> Any:
        return type("Row", (), {"subset": "val", "protocol": protocol, "metric": "f1", "value": value})

    rows = [row("prefix_sum/calibrated_in_sample:val", 0.5), row("step_sum/calibrated_in_sample:val", 0.75)]
    run = type("Run", (), {"result": type("Result", (), {"rows": rows})})
    monkeypatch.setattr(reward_model_tuning, "train_reward_model", train)
    monkeypatch.setattr(reward_model_tuning, "evaluate_reward_model", lambda *_: [run])
    trial = Trial("dpo_rm", 3, 0, {"learning_rate": 0.001, "beta": 1.0})
    assert reward_model_tuning._trial_f1(world, trial, {}) == f1
    assert (tmp_path / "trials" / "reference" / "reference-1.0.safetensors").exists()


def test_tuning_uses_validation_data_alone() -> None:
    assert min(reward_model_tuning.VALIDATION_SEEDS) >= 1000
    assert reward_model_study.TUNING_SUBSET == "val"
    assert reward_model_tuning.PROTOCOL.endswith(":val")
    assert set(reward_model_tuning.SPACES) == set(LOSSES)


# --- recipes --------------------------------------------------------------------------------------------


def _table(tmp_path: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Path:
    chosen = {
        loss: {"loss": loss, "beta": i + 1.0, "margin": None, "learning_rate": 0.03 + i, "trial": 3, "mean_f1": 0.9}
        for i, loss in enumerate(LOSSES)
    }
    table = {"stopped": "every best trial lies inside its ranges", "trials": [], "chosen": chosen}
    change(table)
    path = tmp_path / "tuning.json"
    path.write_text(json.dumps(table))
    return path


def test_the_study_takes_the_chosen_recipes(tmp_path: Path) -> None:
    methods = study_methods(chosen_recipes(_table(tmp_path)))
    assert list(methods) == list(STUDY_METHODS)
    assert methods["ipvrm_early"] == Recipe("ipvrm_early", 2.0, None, 1.03)
    assert methods["ipvrm_m0"] == Recipe("ipvrm", 1.0, 0.0, 0.03)
    assert methods["implicit_prm_slow"] == Recipe("implicit_prm", 4.0, None, 0.03)
    assert methods["dpo_rm_paper"] == Recipe("dpo_rm", 0.05, None, 4.03)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(stopped=""),
        lambda table: table["chosen"].pop("q_rm"),
        lambda table: table["chosen"]["q_rm"].pop("beta"),
        lambda table: table.update(chosen=[]),
        lambda table: table.clear(),
    ],
)
def test_a_table_without_a_recipe_of_every_loss_is_an_error(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"tuning.json: has no recipe of every loss .*make it with"):
        chosen_recipes(_table(tmp_path, change))


def test_the_preset_has_the_recipes_that_the_committed_table_chose() -> None:
    for loss, recipe in chosen_recipes(COMMITTED).items():
        preset = presets.resolve(TrainRMConfig(model="m", data=Path("d"), loss=loss, preset="miniature"))
        assert (preset.beta, preset.margin, preset.learning_rate) == (recipe.beta, recipe.margin, recipe.learning_rate)
    assert study_methods(chosen_recipes(COMMITTED)) == STUDY_METHODS
