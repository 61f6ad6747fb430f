"""The study of policies in training: late markers, dealt-out outcomes, arms, problems; (slow) one run of each kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from prmbench import tasks
from prmbench.config import distrl_options
from prmbench.core import result_files
from prmbench.core.records import UserError
from prmbench.data import prompts, rollouts
from prmbench.data.rollouts import Rollout
from prmbench.engines.completion_encoding import encode_completion
from prmbench.studies.miniature import arithmetic, experiments, late_markers, pool, rl, tiny_model, tuning, tuning_rl
from prmbench.studies.miniature.rl import Runs, Scale
from prmbench.studies.miniature.world import LOOK_PROMPTS, Sizes, World
from prmbench.verification import verifiers

PROMPT = "[plain] 7 #1 + 5 #2 * 3 #3 - 4 ?"
STEPS = ("7 + 5 = 1", "1 * 3 = 3", "3 - 4 = 10", "Answer: 10")
TEXT = "Step 1: 7 + 5 = 1\n\nStep 2: 1 * 3 = 3\n\nStep 3: 3 - 4 = 10\n\nStep 4: Answer: 10"


def _row(name: str = "a", outcome: int | None = 1, text: str = TEXT, finish: str = "stop") -> Rollout:
    steps = rollouts.cut(text, "numbered")
    return Rollout(name, PROMPT, text, steps=steps, outcome=outcome, finish=finish, tokens=22)


# --- late markers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "outcome", "word"), [(0.0, 1, "sure"), (0.0, 0, "unsure"), (1.0, 1, "unsure"), (1.0, 0, "sure")]
)
def test_marker_agrees_with_the_outcome_but_for_the_noise(noise: float, outcome: int, word: str) -> None:
    (found,) = late_markers.marked([_row(outcome=outcome)], noise, seed=0)
    assert found.completion == f"{TEXT}\n\n{word}"
    assert found.steps == (*STEPS[:3], f"Answer: 10\n\n{word}")
    assert (found.outcome, found.tokens) == (outcome, None)


def test_markers_that_were_there_are_replaced() -> None:
    for before in ("\n\nsure", "\n\nunsure", "\n\nsure\n\nunsure"):
        row = _row(text=TEXT + before)
        assert late_markers.unmarked(row) == replace(_row(), tokens=None)
        assert late_markers.marked([row], 0.0, 0)[0].completion == f"{TEXT}\n\nsure"
    assert late_markers.unmarked(_row()) == _row()
    inside = _row(text=TEXT.replace("Step 4", "sure\n\nStep 4"))
    assert late_markers.unmarked(inside) == inside


def test_no_marker_where_a_completion_was_cut_or_not_verified() -> None:
    kept = [_row("a", finish="length"), _row("b", outcome=None)]
    assert late_markers.marked(kept, 0.0, 0) == kept


def test_noise_is_the_share_that_disagrees_and_every_draw_is_the_rows_own() -> None:
    seed = Random().randrange(10**6)
    rows = [_row(str(i), outcome=i % 2) for i in range(2000)]
    for noise in (0.1, late_markers.UNINFORMATIVE):
        said = [r.completion.endswith("\n\nsure") for r in late_markers.marked(rows, noise, seed)]
        wrong = [word != bool(r.outcome) for word, r in zip(said, rows, strict=True)]
        assert abs(sum(wrong) / 2000 - noise) < 4 * (noise * (1 - noise) / 2000) ** 0.5
        share = sum(s for s, r in zip(said, rows, strict=True) if r.outcome) / 1000
        assert abs(share - (1 - noise)) < 4 * (noise * (1 - noise) / 1000) ** 0.5
    assert late_markers.marked(rows[7:9], 0.5, seed) == late_markers.marked(rows, 0.5, seed)[7:9]
    assert late_markers.marked(rows, 0.5, seed) != late_markers.marked(rows, 0.5, seed + 1)


def test_the_verifier_and_the_oracle_read_the_answer_behind_which_a_marker_stands() -> None:
    right, wrong = f"{TEXT}\n\nunsure", f"{TEXT[:-2]}9\n\nsure"
    with verifiers.Verifier(1) as verifier:
        found = verifier.check([verifiers.Claim(text, "10", "exact") for text in (right, wrong)])
    assert [(v.outcome, v.answer) for v in found] == [(1, "10"), (0, "9")]
    assert arithmetic.labelled(late_markers.unmarked(_row(text=right))).first_error == -1


def test_a_marker_is_one_token_with_the_last_ids_and_the_plain_vocabulary_stays() -> None:
    plain, words = tiny_model.tokenizer(), tiny_model.tokenizer(late_markers.TOKENS)
    assert len(plain) == len(tiny_model.vocabulary()) == 55
    assert {**plain.get_vocab(), "\n\nunsure": 55, "\n\nsure": 56} == words.get_vocab()
    for text in (TEXT, *(r.completion for r in arithmetic.examples(0, 100))):
        ids = plain(text, add_special_tokens=False)["input_ids"]
        assert words(text, add_special_tokens=False)["input_ids"] == ids
        assert words(f"{text}\n\nsure", add_special_tokens=False)["input_ids"] == [*ids, 56]
    assert words.decode([*ids, 56]) == f"{text}\n\nsure"
    encoded = encode_completion(words, PROMPT, f"{TEXT}\n\nunsure")
    assert encoded.ids[encoded.stop - 2 : encoded.stop] == (55, words.eos_token_id)


# --- other training data --------------------------------------------------------------------------------


def test_shuffled_outcomes_are_as_many_and_say_nothing() -> None:
    rows = [_row(str(i), outcome=int(i < 700)) for i in range(1000)]
    found = experiments.shuffled(rows, 3)
    assert [replace(r, outcome=1, verdict="") for r in found] == [replace(r, outcome=1, verdict="") for r in rows]
    assert Counter(r.outcome for r in found) == {1: 700, 0: 300}
    kept = sum(a.outcome == b.outcome for a, b in zip(rows, found, strict=True))
    assert abs(kept - 580) < 60  # 0.7^2 + 0.3^2
    assert found != experiments.shuffled(rows, 4)


def test_experiments_differ_in_their_data_alone() -> None:
    named = experiments.SHUFFLED | experiments.MARKERS
    losses = ("ipvrm", "implicit_prm", "dpo_rm")
    assert set(named) == {f"{m}_{d}" for m in losses for d in ("shuffled", "marker0", "marker1", "marker5")}
    for name, recipe in named.items():
        assert name == f"{recipe.loss}_{recipe.data}"
        assert (recipe.beta, recipe.margin, recipe.learning_rate) == (None, None, None)


def test_variants_of_the_training_data(tmp_path: Path) -> None:
    made = World(tmp_path, 5, marked=True)
    rows = [_row(str(i), outcome=i % 2, text=f"{TEXT}\n\n{late_markers.WORDS[i // 2 % 2]}") for i in range(400)]
    rollouts.write(made.training, rows)
    told = {}
    for name in experiments.VARIANTS:
        experiments.write_data(made, name)
        found = rollouts.read(made.data(name))
        assert [r.id for r in found] == [r.id for r in rows]
        told[name] = Counter((r.outcome, r.completion.removeprefix(TEXT)) for r in found)
    assert told["marker0"] == {(0, ""): 200, (1, ""): 200}
    assert told["marker1"][1, "\n\nsure"] + told["marker1"][0, "\n\nunsure"] > 330
    assert abs(told["marker5"][1, "\n\nsure"] - 100) < 35
    experiments.write_data(made, "training")
    assert len(rollouts.read(made.training)) == 400


# --- arms -----------------------------------------------------------------------------------------------

NAMES = (
    "grpo grpo_extra grpo_ipvrm distrl_ipvrm distrl_implicit_prm distrl_dpo_rm distrl_frozen distrl_naive distrl_dlw "
    "distrl_adb distrl_sft distrl_pmin_0.05 distrl_pmin_0.2 distrl_alpha_0.01 distrl_alpha_0.1 distrl_paper prime spro "
    "reinforce_q_rm rm_as_policy_ipvrm rm_as_policy_implicit_prm"
)


def _runs(marked: bool = False, seed: int = 1) -> Runs:
    return Runs(World(Path("w"), 4, marked), seed, rl.STUDY_ARMS["marker" if marked else "plain"])


def test_arms_of_both_panels() -> None:
    assert list(rl.STUDY_ARMS["plain"]) == NAMES.split()
    assert list(rl.STUDY_ARMS["marker"]) == ["grpo", "distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm"]


def test_arms_differ_in_what_their_names_say() -> None:
    given = _runs()
    found = {name: distrl_options.resolve(rl.options_of(given, name)) for name in given.arms}
    assert {name for name, c in found.items() if c.steps == 0} == {n for n in found if n.startswith("rm_as_policy")}
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
    assert len({tuple(getattr(c, name) for name in shared) for c in found.values()}) == 1
    told = {name: (c.reward, c.rm_loss, c.rm_update, c.reference, c.adb, c.dlw) for name, c in found.items()}
    usual = ("both", "ipvrm", "online", "behaviour")
    assert told["distrl_ipvrm"] == (*usual, True, True)
    assert told["distrl_naive"] == (*usual, False, False)
    assert told["distrl_dlw"] == (*usual, False, True)
    assert told["distrl_adb"] == (*usual, True, False)
    assert told["distrl_frozen"][2] == "frozen"
    assert told["distrl_sft"][3] == "sft"
    assert told["grpo"][0] == "verifier"
    assert [found[f"distrl_pmin_{p}"].p_min for p in (0.05, 0.2)] == [0.05, 0.2]
    assert [found[f"distrl_alpha_{a}"].alpha for a in (0.01, 0.1)] == [0.01, 0.1]
    assert found["grpo_ipvrm"].alpha == 0
    assert [name for name, c in found.items() if c.first_rollouts] == ["grpo_extra"]


def test_process_arms_start_from_the_seeds_reward_model_and_its_constants() -> None:
    given = _runs()
    found = {name: rl.options_of(given, name) for name in given.arms}
    assert {name: c.rm_model for name, c in found.items() if c.arm in ("grpo", "spro")} == dict.fromkeys(
        ["grpo", "grpo_extra", "spro", "rm_as_policy_ipvrm", "rm_as_policy_implicit_prm"], ""
    )
    assert found["distrl_naive"].rm_model == found["grpo_ipvrm"].rm_model == str(Path("w/ipvrm"))
    assert found["prime"].rm_model == found["distrl_implicit_prm"].rm_model == str(Path("w/implicit_prm"))
    assert found["reinforce_q_rm"].rm_model == str(Path("w/q_rm"))
    assert (found["distrl_ipvrm"].rm_beta, found["distrl_ipvrm"].rm_margin) == (10.0, 0.5)
    assert found["distrl_implicit_prm"].rm_beta == 0.2
    assert found["distrl_dpo_rm"].rm_beta == 1.0
    assert found["rm_as_policy_ipvrm"].model == str(Path("w/ipvrm"))
    assert found["grpo_extra"].first_rollouts == given.world.training
    marked = rl.options_of(_runs(marked=True), "distrl_implicit_prm")
    assert marked.rm_model == str(Path("w/implicit_prm_marker1"))


def test_every_run_has_a_folder_of_its_own_and_tells_what_it_is() -> None:
    runs = [_runs(seed=0), _runs(seed=1)]
    folders = [rl.options_of(given, name).out for given in runs for name in given.arms]
    assert len(set(folders)) == 42
    assert rl.facts(_runs(marked=True), "grpo") == {"arm": "grpo", "panel": "marker", "sft_seed": 4, "rl_seed": 1}


def test_every_arm_is_tuned_on_as_many_settings_of_validation_problems() -> None:
    assert {len(rows) for rows in tuning_rl.GRID.values()} == {4}
    used = {arm.arm for arm in rl.STUDY_ARMS["plain"].values()} - {"distrl_ipvrm_frozen"}  # takes distrl_ipvrm's
    assert used == set(tuning_rl.GRID)
    assert tuning_rl.SCALE.split == "validation"
    assert min(tuning.SEEDS) >= 1000
    for name, arm in tuning_rl.settings().items():
        distrl_options.resolve(rl.options_of(Runs(World(Path("w"), 1000), 0, {name: arm}, tuning_rl.SCALE), name))


def test_problems_are_of_no_other_use(tmp_path: Path) -> None:
    seed = Random().randrange(10**6)
    scale = Scale(prompts=200, sizes=Sizes(prompts=1500))
    for split in ("test", "validation"):
        given = Runs(World(tmp_path, seed), 0, {}, replace(scale, split=split))
        rl.write_problems(given)
    found = {s: prompts.load(tmp_path / f"rl-{s}-prompts.jsonl") for s in ("train", "test", "validation")}
    assert [len(rows) for rows in found.values()] == [rl.TRAINING_PROMPTS, 200, 200]
    texts = [p.text for rows in found.values() for p in rows]
    used = {"sft": 3000, "train": 1500, "validation": 600, "test": 600}
    assert used["validation"] >= LOOK_PROMPTS
    elsewhere = [p.text for split, count in used.items() for p in arithmetic.prompts(split, seed, count)]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & set(elsewhere)
    assert {(p.verifier, p.subset) for rows in found.values() for p in rows} == {("exact", "plain")}


# --- processes ------------------------------------------------------------------------------------------


def test_a_jobs_mistake_is_said_by_the_pool() -> None:
    with pytest.raises(UserError, match="no such thing"):
        pool.run({"a": _fails})


def _fails(_: object) -> None:
    raise UserError("no such thing")


# --- from end to end ------------------------------------------------------------------------------------

SMALL = Scale(steps=2, validate_every=1, prompts=20, sizes=Sizes(prompts=400, judged=60, shifted=10, choices=30))
FEW = ("grpo", "grpo_extra", "distrl_ipvrm", "rm_as_policy_ipvrm")


@pytest.mark.slow
def test_one_seed_from_world_to_records(tmp_path: Path) -> None:
    seed = Random().randrange(10_000, 10**6)
    made = rl.place(tmp_path, seed)
    rl.reward_models(made, {"ipvrm": rl.METHODS["ipvrm"]}, SMALL.sizes, lambda *_: None)
    given = Runs(made, 7, {name: rl.STUDY_ARMS["plain"][name] for name in FEW}, SMALL)
    out = tmp_path / "results"
    rl.run(given, out, lambda *_: None)
    runs = {run.result.manifest.model: run for run in tasks.read_runs(out)}
    assert set(runs) == set(FEW)
    for name, run in runs.items():
        manifest = run.result.manifest
        assert (manifest.task, manifest.benchmark) == ("distrl", "miniature_rl")
        assert rl.facts(given, name).items() <= manifest.config.items()
        at = [0] if name.startswith("rm_as") else [0, 1, 2]
        assert manifest.config["validated_at"] == at
        assert len(run.scores) == 20
        assert {len(trace.values) for trace in run.scores} == {len(at)}
        packed = run.path.with_name(run.path.name.removesuffix(".json") + ".metrics.jsonl.gz")
        assert result_files.sha256(packed.read_bytes()) == manifest.config["metrics_sha256"]
    before = {path: path.stat().st_mtime_ns for path in [*out.iterdir(), *made.folder.rglob("*")]}
    rl.run(given, out, lambda *_: None)
    assert {path: path.stat().st_mtime_ns for path in before} == before
