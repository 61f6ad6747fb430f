"""The RL study: late markers, data ablations, arms, prompts; (slow) one run of each kind of arm."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from forked import Child
from rl_runs import write_training
from small_world import SIZES, copy_world

from prmbench import tasks
from prmbench.config import distrl_options
from prmbench.core import packing, result_files
from prmbench.core.records import UserError
from prmbench.data import prompts, rollouts
from prmbench.data.rollouts import Rollout
from prmbench.engines.completion_encoding import encode_completion
from prmbench.studies.miniature import (
    arithmetic,
    data_ablations,
    late_markers,
    process_pool,
    reward_model_study,
    rl_study,
    rl_tuning,
    tiny_model,
)
from prmbench.studies.miniature.recipes import DEMO_METHODS, chosen_recipes
from prmbench.studies.miniature.rl_study import ArmRuns, Scale
from prmbench.studies.miniature.world import ACCURACY_PROMPTS, Sizes, World
from prmbench.verification import verifiers

PROMPT = "[plain] 7 #1 + 5 #2 * 3 #3 - 4 ?"
STEPS = ("7 + 5 = 1", "1 * 3 = 3", "3 - 4 = 10", "Answer: 10")
TEXT = "Step 1: 7 + 5 = 1\n\nStep 2: 1 * 3 = 3\n\nStep 3: 3 - 4 = 10\n\nStep 4: Answer: 10"


def _row(name: str = "a", outcome: int | None = 1, text: str = TEXT, finish: str = "stop") -> Rollout:
    steps = rollouts.split_completion(text, "numbered")
    return Rollout(name, PROMPT, text, steps=steps, outcome=outcome, finish=finish, tokens=22)


# --- late markers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "outcome", "word"), [(0.0, 1, "sure"), (0.0, 0, "unsure"), (1.0, 1, "unsure"), (1.0, 0, "sure")]
)
def test_marker_agrees_with_the_outcome_but_for_the_noise(noise: float, outcome: int, word: str) -> None:
    (found,) = late_markers.add_markers([_row(outcome=outcome)], noise, seed=0)
    assert found.completion == f"{TEXT}\n\n{word}"
    assert found.steps == (*STEPS[:3], f"Answer: 10\n\n{word}")
    assert (found.outcome, found.tokens) == (outcome, None)


def test_existing_markers_are_replaced() -> None:
    for before in ("\n\nsure", "\n\nunsure", "\n\nsure\n\nunsure"):
        row = _row(text=TEXT + before)
        assert late_markers.remove_marker(row) == replace(_row(), tokens=None)
        assert late_markers.add_markers([row], 0.0, 0)[0].completion == f"{TEXT}\n\nsure"
    assert late_markers.remove_marker(_row()) == _row()
    inside = _row(text=TEXT.replace("Step 4", "sure\n\nStep 4"))
    assert late_markers.remove_marker(inside) == inside


def test_truncated_and_unverified_completions_get_no_marker() -> None:
    unmarked = [_row("a", finish="length"), _row("b", outcome=None)]
    assert late_markers.add_markers(unmarked, 0.0, 0) == unmarked


def test_noise_is_the_share_of_wrong_markers_and_rows_are_independent() -> None:
    seed = Random().randrange(10**6)
    rows = [_row(str(i), outcome=i % 2) for i in range(2000)]
    for noise in (0.1, late_markers.UNINFORMATIVE):
        says_sure = [r.completion.endswith("\n\nsure") for r in late_markers.add_markers(rows, noise, seed)]
        wrong = [word != bool(r.outcome) for word, r in zip(says_sure, rows, strict=True)]
        assert abs(sum(wrong) / 2000 - noise) < 4 * (noise * (1 - noise) / 2000) ** 0.5
        share = sum(s for s, r in zip(says_sure, rows, strict=True) if r.outcome) / 1000
        assert abs(share - (1 - noise)) < 4 * (noise * (1 - noise) / 1000) ** 0.5
    assert late_markers.add_markers(rows[7:9], 0.5, seed) == late_markers.add_markers(rows, 0.5, seed)[7:9]
    assert late_markers.add_markers(rows, 0.5, seed) != late_markers.add_markers(rows, 0.5, seed + 1)


def test_the_verifier_and_the_oracle_read_the_answer_before_the_marker() -> None:
    right, wrong = f"{TEXT}\n\nunsure", f"{TEXT[:-2]}9\n\nsure"
    with verifiers.Verifier(1) as verifier:
        verdicts = verifier.check([verifiers.Claim(text, "10", "exact") for text in (right, wrong)])
    assert [(v.outcome, v.answer) for v in verdicts] == [(1, "10"), (0, "9")]
    assert arithmetic.label_rollout(late_markers.remove_marker(_row(text=right))).first_error == -1


def test_markers_are_single_tokens_after_the_plain_vocabulary() -> None:
    plain, marked = tiny_model.tokenizer(), tiny_model.tokenizer(late_markers.TOKENS)
    assert len(plain) == len(tiny_model.vocabulary()) == 55
    assert {**plain.get_vocab(), "\n\nunsure": 55, "\n\nsure": 56} == marked.get_vocab()
    for text in (TEXT, *(r.completion for r in arithmetic.sft_examples(0, 100))):
        ids = plain(text, add_special_tokens=False)["input_ids"]
        assert marked(text, add_special_tokens=False)["input_ids"] == ids
        assert marked(f"{text}\n\nsure", add_special_tokens=False)["input_ids"] == [*ids, 56]
    assert marked.decode([*ids, 56]) == f"{text}\n\nsure"
    encoded = encode_completion(marked, PROMPT, f"{TEXT}\n\nunsure")
    assert encoded.ids[encoded.stop - 2 : encoded.stop] == (55, marked.eos_token_id)


# --- data ablations -------------------------------------------------------------------------------------


def test_shuffled_outcomes_keep_their_counts_and_are_random() -> None:
    rows = [_row(str(i), outcome=int(i < 700)) for i in range(1000)]
    shuffled = data_ablations.shuffle_outcomes(rows, 3)
    assert [replace(r, outcome=1, verdict="") for r in shuffled] == [replace(r, outcome=1, verdict="") for r in rows]
    assert Counter(r.outcome for r in shuffled) == {1: 700, 0: 300}
    unchanged = sum(a.outcome == b.outcome for a, b in zip(rows, shuffled, strict=True))
    assert abs(unchanged - 580) < 60  # 0.7^2 + 0.3^2
    assert shuffled != data_ablations.shuffle_outcomes(rows, 4)


def test_data_ablations_differ_in_their_data_alone() -> None:
    recipes = data_ablations.SHUFFLED | data_ablations.MARKERS
    losses = ("ipvrm", "implicit_prm", "dpo_rm")
    assert set(recipes) == {f"{m}_{d}" for m in losses for d in ("shuffled", "marker0", "marker1", "marker5")}
    for name, recipe in recipes.items():
        assert name == f"{recipe.loss}_{recipe.data}"
        assert (recipe.beta, recipe.margin, recipe.learning_rate) == (None, None, None)


def test_variants_of_the_training_data(tmp_path: Path) -> None:
    world = World(tmp_path, 5, marked=True)
    rows = [_row(str(i), outcome=i % 2, text=f"{TEXT}\n\n{late_markers.WORDS[i // 2 % 2]}") for i in range(400)]
    rollouts.write(world.training, rows)
    counts = {}
    for name in data_ablations.VARIANTS:
        data_ablations.write_data(world, name)
        variant = rollouts.read(world.data(name))
        assert [r.id for r in variant] == [r.id for r in rows]
        counts[name] = Counter((r.outcome, r.completion.removeprefix(TEXT)) for r in variant)
    assert counts["marker0"] == {(0, ""): 200, (1, ""): 200}
    assert counts["marker1"][1, "\n\nsure"] + counts["marker1"][0, "\n\nunsure"] > 330
    assert abs(counts["marker5"][1, "\n\nsure"] - 100) < 35
    data_ablations.write_data(world, "training")
    assert len(rollouts.read(world.training)) == 400


# --- arms -----------------------------------------------------------------------------------------------

NAMES = (
    "grpo grpo_extra grpo_ipvrm distrl_ipvrm distrl_implicit_prm distrl_dpo_rm distrl_frozen distrl_naive distrl_dlw "
    "distrl_adb distrl_sft distrl_pmin_0.05 distrl_pmin_0.2 distrl_alpha_0.01 distrl_alpha_0.1 distrl_paper prime spro "
    "reinforce_q_rm vineppo grpo_vps rm_as_policy_ipvrm rm_as_policy_implicit_prm"
)


def _runs(marked: bool = False, seed: int = 1, names: Collection[str] = ()) -> ArmRuns:
    arms = rl_study.STUDY_ARMS["marker" if marked else "plain"]
    chosen = {name: arm for name, arm in arms.items() if not names or name in names}
    return ArmRuns(World(Path("w"), 4, marked), seed, chosen)


def test_arms_of_both_panels() -> None:
    assert list(rl_study.STUDY_ARMS["plain"]) == NAMES.split()
    assert list(rl_study.STUDY_ARMS["marker"]) == ["grpo", "distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm"]


def test_arms_differ_in_what_their_names_say() -> None:
    runs = _runs()
    configs = {name: distrl_options.resolve(rl_study.distrl_config(runs, name)) for name in runs.arms}
    assert {name for name, c in configs.items() if c.steps == 0} == {n for n in configs if n.startswith("rm_as_policy")}
    assert all(c.allow_empty for c in configs.values())  # where a policy collapses, the study goes on
    shared = (
        "preset",
        "data",
        "validation_data",
        "validation_samples",
        "seed",
        "group_size",
        "prompts",
        "draw",
        "rounds",
    )
    assert len({tuple(getattr(c, name) for name in shared) for c in configs.values()}) == 1
    options = {name: (c.reward, c.rm_loss, c.rm_update, c.reference, c.adb, c.dlw) for name, c in configs.items()}
    default = ("both", "ipvrm", "online", "behaviour")
    assert options["distrl_ipvrm"] == (*default, True, True)
    assert options["distrl_naive"] == (*default, False, False)
    assert options["distrl_dlw"] == (*default, False, True)
    assert options["distrl_adb"] == (*default, True, False)
    assert options["distrl_frozen"][2] == "frozen"
    assert options["distrl_sft"][3] == "sft"
    assert options["grpo"][0] == "verifier"
    assert [configs[f"distrl_pmin_{p}"].p_min for p in (0.05, 0.2)] == [0.05, 0.2]
    assert [configs[f"distrl_alpha_{a}"].alpha for a in (0.01, 0.1)] == [0.01, 0.1]
    assert configs["grpo_ipvrm"].alpha == 0
    assert [name for name, c in configs.items() if c.first_rollouts] == ["grpo_extra"]


def test_arms_start_from_the_worlds_reward_model_and_its_constants() -> None:
    runs = _runs()
    configs = {name: rl_study.distrl_config(runs, name) for name in runs.arms}
    assert {
        name: c.rm_model for name, c in configs.items() if c.arm in ("grpo", "spro", "vineppo", "grpo_vps")
    } == dict.fromkeys(
        ["grpo", "grpo_extra", "spro", "vineppo", "grpo_vps", "rm_as_policy_ipvrm", "rm_as_policy_implicit_prm"], ""
    )
    assert configs["distrl_naive"].rm_model == configs["grpo_ipvrm"].rm_model == str(Path("w/ipvrm"))
    assert configs["prime"].rm_model == configs["distrl_implicit_prm"].rm_model == str(Path("w/implicit_prm"))
    assert configs["reinforce_q_rm"].rm_model == str(Path("w/q_rm"))
    best = chosen_recipes(Path("leaderboards/results/miniature/tuning.json"))
    ipvrm = configs["distrl_ipvrm"]
    assert (ipvrm.rm_beta, ipvrm.rm_margin) == (best["ipvrm"].beta, best["ipvrm"].margin)
    assert configs["distrl_implicit_prm"].rm_beta == best["implicit_prm"].beta
    assert configs["distrl_dpo_rm"].rm_beta == best["dpo_rm"].beta
    assert configs["rm_as_policy_ipvrm"].model == str(Path("w/ipvrm"))
    assert configs["grpo_extra"].first_rollouts == runs.world.training
    marked = rl_study.distrl_config(_runs(marked=True), "distrl_implicit_prm")
    assert marked.rm_model == str(Path("w/implicit_prm_marker1"))


def test_every_run_has_its_own_folder_and_record() -> None:
    both_seeds = [_runs(seed=0), _runs(seed=1)]
    folders = [rl_study.distrl_config(runs, name).out for runs in both_seeds for name in runs.arms]
    assert len(set(folders)) == 46
    assert rl_study.run_record(_runs(marked=True), "grpo") == {
        "arm": "grpo",
        "panel": "marker",
        "sft_seed": 4,
        "rl_seed": 1,
    }


def test_every_arm_has_a_space_of_its_own_or_takes_that_of_another() -> None:
    assert min(rl_tuning.VALIDATION_SEEDS) >= 1000
    assert rl_tuning.SCALE.validation_split == "validation"
    for name, arm in rl_study.STUDY_ARMS["plain"].items():
        is_tuned = not arm.reward_model_as_policy
        assert ((arm.tuned_as or name) in rl_tuning.SPACE) == is_tuned
    assert all("learning_rate" in space for space in rl_tuning.SPACE.values())
    runs = ArmRuns(World(Path("w"), 1000), 0, rl_study.STUDY_ARMS["plain"], rl_tuning.SCALE)
    for name in rl_tuning.SPACE:
        options = rl_tuning.draw_options(name, 3, 5, {})[2]
        resolved = distrl_options.resolve(rl_study.distrl_config(replace(runs, tuned={name: options}), name))
        assert {option: getattr(resolved, option) for option in options} == options


def test_a_round_covers_the_ranges_or_both_sides_of_the_best() -> None:
    for arm, space in rl_tuning.SPACE.items():
        first = rl_tuning.draw_options(arm, 0, 8, {})
        center = {name: high for name, (_, high) in space.items()}
        later = rl_tuning.draw_options(arm, 8, 4, center)
        for name, (low, high) in space.items():
            parts = sorted(math.log(options[name] / low) / math.log(high / low) * 8 for options in first)
            assert all(abs(part - k - 0.5) < 0.52 for k, part in enumerate(parts))  # 0.02: options have three digits
            around = sorted(math.log(options[name] / high) / math.log(rl_tuning.REACH) for options in later)
            assert all(abs(2 * place - k - 0.5) < 0.52 for k, place in enumerate(around, -2))
        if len(space) > 1:  # no option's order is another's
            orders = [sorted(range(8), key=lambda i, name=name: first[i][name]) for name in space]
            assert len({tuple(order) for order in orders}) == len(space)


def test_variants_take_the_options_of_distrl_and_keep_their_own() -> None:
    tuned = {"distrl_ipvrm": {"alpha": 0.7, "learning_rate": 5e-4}, "grpo": {"learning_rate": 2e-4}}
    runs = replace(_runs(), tuned=tuned)
    configs = {name: rl_study.distrl_config(runs, name) for name in runs.arms}
    rates = {name: config.learning_rate for name, config in configs.items()}
    assert {name for name, rate in rates.items() if rate == 5e-4} == {
        name
        for name in runs.arms
        if name.startswith("distrl_") and name not in ("distrl_implicit_prm", "distrl_dpo_rm")
    }
    assert {name for name, rate in rates.items() if rate == 2e-4} == {"grpo"}
    assert (configs["distrl_naive"].alpha, configs["distrl_alpha_0.1"].alpha) == (0.7, 0.1)


def test_the_parts_cover_every_arm_once() -> None:
    in_parts = Counter((panel, name) for panel, names in rl_study.PARTS.values() for name in names)
    assert in_parts == Counter((panel, name) for panel, arms in rl_study.STUDY_ARMS.items() for name in arms)


def test_reward_models_are_made_for_the_arms_that_use_them() -> None:
    assert set(rl_study.needed_reward_models([_runs(names=("grpo", "distrl_naive"))])) == {"ipvrm"}
    assert set(rl_study.needed_reward_models([_runs(names=("rm_as_policy_implicit_prm", "prime"))])) == {"implicit_prm"}
    assert set(rl_study.needed_reward_models([_runs(marked=True, names=("distrl_dpo_rm",))])) == {"dpo_rm_marker1"}
    assert not rl_study.needed_reward_models([_runs(names=("grpo", "vineppo"))])


def _write_trial(out: Path, arm: str, seed: int, after: float) -> None:
    write_training(out, arm, [0.4, after], (seed, 0))


def test_every_arm_gets_as_many_trials_and_the_table_says_which_optima_are_interior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy rises with the learning rate up to a peak beyond the first trials of GRPO alone."""
    peak = 1.5e-3

    def run_jobs(jobs: dict[str, Any], _progress: object) -> None:
        for job in jobs.values():
            if job.func is not rl_study.run_arms:
                continue
            (runs, out), _ = job.args, job.keywords
            for name in runs.arms:
                rate = runs.tuned[name]["learning_rate"]
                _write_trial(out, name, runs.world.seed, 0.9 - 0.1 * abs(math.log(rate / peak)))

    monkeypatch.setattr(process_pool, "run_jobs", run_jobs)
    space = {"grpo": rl_tuning.SPACE["grpo"], "grpo_vps": rl_tuning.SPACE["grpo_vps"]}
    monkeypatch.setattr(rl_tuning, "SPACE", space)
    table = rl_tuning.tune(tmp_path / "a", rounds=(6, 4, 4))
    assert json.loads((tmp_path / "a" / "tuning_rl.json").read_text()) == table
    assert Counter(line["arm"] for line in table["settings"]) == table["trials"] == {"grpo": 14, "grpo_vps": 14}
    assert rl_tuning.chosen(tmp_path / "a" / "tuning_rl.json") == table["chosen"]
    for arm in space:
        means = {line["options"]["learning_rate"]: line["mean"] for line in table["settings"] if line["arm"] == arm}
        assert table["chosen"][arm]["learning_rate"] == max(means, key=lambda rate: means[rate])
        best = table["chosen"][arm]["learning_rate"]
        assert table["interior"][arm]["learning_rate"] == (min(means) < best < max(means))
    assert table["interior"]["grpo"] == {"learning_rate": True}
    # Arm by arm, and after the first round on a machine that has the table alone, the search draws the same trials.
    rl_tuning.tune(tmp_path / "b", rounds=(6,))
    (tmp_path / "c").mkdir()
    (tmp_path / "b" / "tuning_rl.json").rename(tmp_path / "c" / "tuning_rl.json")
    for arms in (["grpo_vps"], ["grpo"]):
        continued = rl_tuning.tune(tmp_path / "c", rounds=(6, 4, 4), arms=arms)
    assert continued == table
    assert len(tasks.read_runs(tmp_path / "c" / "runs-rl")) == 2 * 2 * 8
    with pytest.raises(UserError, match=r"tuning_rl.json: was made with other worlds or sizes"):
        rl_tuning.tune(tmp_path / "c", scale=replace(rl_tuning.SCALE, steps=3))
    shutil.copy("leaderboards/results/miniature_gain/tuning_rl.json", tmp_path / "c")  # from before trials had names
    with pytest.raises(UserError, match=r"tuning_rl.json: is not a table of tune-rl \(KeyError\('trial'\)\)"):
        rl_tuning.tune(tmp_path / "c")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"chosen": 3}'])
def test_a_table_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^--tuning .* is not a table of tune-rl"):
        rl_tuning.chosen(path)


def test_prompts_are_used_for_nothing_else(tmp_path: Path) -> None:
    seed = Random().randrange(10**6)
    scale = Scale(validation_prompts=200, world_sizes=Sizes(training_prompts=1500))
    for split in ("test", "validation"):
        rl_study.write_prompts(ArmRuns(World(tmp_path, seed), 0, {}, replace(scale, validation_split=split)))
    loaded = {s: prompts.load(tmp_path / f"rl-{s}-prompts.jsonl") for s in ("train", "test", "validation")}
    assert [len(rows) for rows in loaded.values()] == [rl_study.TRAINING_PROMPTS, 200, 200]
    texts = [p.text for rows in loaded.values() for p in rows]
    used_counts = {"sft": 3000, "train": 1500, "validation": 600, "test": 600}
    assert used_counts["validation"] >= ACCURACY_PROMPTS
    used_texts = [p.text for split, count in used_counts.items() for p in arithmetic.make_prompts(split, seed, count)]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & set(used_texts)
    assert {(p.verifier, p.subset) for rows in loaded.values() for p in rows} == {("exact", "plain")}


# --- processes ------------------------------------------------------------------------------------------


def test_the_pool_raises_a_jobs_error() -> None:
    with pytest.raises(UserError, match="no such thing"):
        process_pool.run_jobs({"a": _fails})


def _fails(_: object) -> None:
    raise UserError("no such thing")


# --- from end to end ------------------------------------------------------------------------------------

SMALL = Scale(
    steps=2,
    validate_every=1,
    validation_prompts=20,
    world_sizes=SIZES,
)
FEW = ("grpo", "grpo_extra", "distrl_ipvrm", "rm_as_policy_ipvrm")


def _scores_by_arm(out: Path) -> dict[str, Any]:
    return {run.result.manifest.model: run.scores for run in tasks.read_runs(out)}


def _run_until_killed(runs: ArmRuns, out: Path) -> None:
    """Runs the arms in a process that gets SIGKILL in the third arm, once that has begun to log its steps."""
    log = rl_study.distrl_config(runs, FEW[2]).out / "metrics.jsonl"
    with Child(rl_study.run_arms, runs, out, _quiet) as process:
        process.wait_for(log.exists)
    assert process.poll() == -signal.SIGKILL


def _quiet(*_: object) -> None:
    pass


@pytest.mark.slow
def test_one_seed_from_world_to_results(trained_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model_study, "UPDATES", 4)  # the reward model need not be good
    world = copy_world(trained_world, tmp_path)
    rl_study.train_reward_models(world, {"ipvrm": DEMO_METHODS["ipvrm"]}, SMALL.world_sizes, _quiet)
    killed = replace(world, folder=tmp_path / "killed" / world.folder.name)
    shutil.copytree(world.folder, killed.folder)
    runs = ArmRuns(world, 7, {name: rl_study.STUDY_ARMS["plain"][name] for name in FEW}, SMALL)
    out = tmp_path / "results"
    rl_study.run_arms(runs, out, _quiet)
    runs_by_arm = {run.result.manifest.model: run for run in tasks.read_runs(out)}
    assert set(runs_by_arm) == set(FEW)
    for name, run in runs_by_arm.items():
        manifest = run.result.manifest
        assert (manifest.task, manifest.benchmark) == ("distrl", "miniature_rl")
        assert rl_study.run_record(runs, name).items() <= manifest.config.items()
        validated_at = [0] if name.startswith("rm_as") else [0, 1, 2]
        assert manifest.config["validated_at"] == validated_at
        assert len(run.scores) == 20
        assert {len(trace.values) for trace in run.scores} == {len(validated_at)}
        packed = run.path.with_name(run.path.name.removesuffix(".json") + ".metrics.jsonl.gz")
        assert result_files.sha256(packed.read_bytes()) == manifest.config["metrics_sha256"]
    before = {path: path.stat().st_mtime_ns for path in [*out.iterdir(), *world.folder.rglob("*")]}
    rl_study.run_arms(runs, out, _quiet)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # The arms share the start policy's validation, which is what an arm measures by itself.
    alone = replace(runs, world=replace(world, folder=killed.folder), arms={"grpo_extra": runs.arms["grpo_extra"]})
    rl_study.run_arms(alone, tmp_path / "alone", _quiet)
    assert _scores_by_arm(tmp_path / "alone")["grpo_extra"] == _scores_by_arm(out)["grpo_extra"]
    # A study that is killed goes on to the same results.
    _run_until_killed(replace(runs, world=killed), tmp_path / "results of killed")
    assert 0 < len(_scores_by_arm(tmp_path / "results of killed")) < len(FEW)
    rl_study.run_arms(replace(runs, world=killed), tmp_path / "results of killed", _quiet)
    assert _scores_by_arm(tmp_path / "results of killed") == _scores_by_arm(out)
    # On another machine only the results are there: those of the same seeds and options are not made again.
    packing.pack(out)
    assert rl_study.without_known([runs], out) == []
    assert rl_study.without_known([replace(runs, rl_seed=8)], out) == [replace(runs, rl_seed=8)]
    (retuned,) = rl_study.without_known([replace(runs, tuned={"grpo": {"learning_rate": 2e-4}})], out)
    assert list(retuned.arms) == ["grpo"]
    assert rl_study.without_known([runs], tmp_path / "none") == [runs]
