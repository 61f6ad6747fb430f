"""RL studies: nested intervals against scipy and by hand, claims of known sign, tables, figures and bad files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import CLEAN, rows_taken_as_they_are, write_study
from rich.console import Console
from rl_runs import lines, monitors_of, problems, write_rl_study, write_training
from scipy import stats
from table_texts import texts

from prmbench.core.result_files import metrics_path, sha256
from prmbench.metrics import intervals
from prmbench.metrics.equivalence import MARGINS, holm
from prmbench.report import report, run_table
from prmbench.report.load import load
from prmbench.report.sheets import sheets
from prmbench.report.training_figures import over_runs
from prmbench.report.training_runs import TrainingRun
from prmbench.studies.reporting.nested_seeds import RunValues, difference, estimate, whole_run_values
from prmbench.studies.reporting.policy_claims import (
    Answer,
    Question,
    _answer,
    _final_accuracies,
    answer_questions,
    compare_with_grpo,
)
from prmbench.studies.reporting.policy_figures import families
from prmbench.studies.reporting.policy_runs import RLStudy, first_quarter_mean, gather_rl_study, last_quarter_mean
from prmbench.studies.reporting.policy_tables import alarms, grids, options_grid
from prmbench.studies.reporting.probe_models import probe_grid, questions
from prmbench.studies.reporting.reward_model_runs import gather_study
from prmbench.studies.reporting.sections import SECTIONS
from prmbench.tasks import read_run, read_runs

STUDIES = SECTIONS[:1]
"""Without the table of checkpoints."""

# --- nested intervals -------------------------------------------------------------------------------------------


def test_seeds_are_nested_by_hand() -> None:
    """SFT means 1, 2, 6: whatever the RL seeds, the mean is 3 and the error is that of three numbers."""
    result = estimate(whole_run_values({(0, 0): 0.0, (0, 1): 2.0, (1, 0): 2.0, (2, 0): 5.0, (2, 1): 6.0, (2, 2): 7.0}))
    expected = stats.ttest_1samp([1.0, 2.0, 6.0], 0.0)
    assert result is not None
    assert (result.value, result.sft_seeds, result.runs, result.positive) == (3.0, 3, 6, 5)
    assert (result.lo, result.hi) == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-9)
    assert result.p == pytest.approx(expected.pvalue, abs=1e-12)
    error = np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert result.mdd == pytest.approx((stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * error)


def test_more_rl_seeds_of_the_same_sft_seed_do_not_narrow_the_interval() -> None:
    few = estimate(whole_run_values({(s, 0): float(s) for s in range(3)}))
    many = estimate(whole_run_values({(s, r): float(s) for s in range(3) for r in range(10)}))
    assert few is not None
    assert many is not None
    assert (few.lo, few.hi) == (many.lo, many.hi)


def test_shared_problems_widen_the_interval() -> None:
    """Two SFT seeds, three problems of 0, 0.3, 0.6 plus the seed's 0 or 0.2: both variances add, Satterthwaite's df."""
    runs = {(s, 0): {f"p{i}": 0.3 * i + 0.2 * s for i in range(3)} for s in range(2)}
    result = estimate(runs)
    seeds, items = np.var([0.3, 0.5], ddof=1) / 2, np.var([0.1, 0.4, 0.7], ddof=1) / 3
    df = int((seeds + items) ** 2 / (seeds**2 / 1 + items**2 / 2))
    assert result is not None
    assert result.value == pytest.approx(0.4)
    assert result.hi == pytest.approx(0.4 + stats.t.ppf(0.975, df) * np.sqrt(seeds + items), abs=1e-9)


def test_unshared_problems_add_no_variance_to_that_of_the_seeds() -> None:
    shared: RunValues = {(s, 0): {f"p{i}": 0.3 * i + 0.2 * s for i in range(3)} for s in range(2)}
    unshared = {seeds: {f"{seeds}{name}": v for name, v in values.items()} for seeds, values in shared.items()}
    result, expected = estimate(unshared), estimate(whole_run_values({(0, 0): 0.3, (1, 0): 0.5}))
    assert result is not None
    assert expected is not None
    assert (result.lo, result.hi, result.p) == pytest.approx((expected.lo, expected.hi, expected.p))


def test_one_sft_seed_and_one_run() -> None:
    two = estimate(whole_run_values({(0, 0): 1.0, (0, 1): 2.0}))
    assert two is not None
    assert two.has_single_sft_seed
    assert two.hi == pytest.approx(1.5 + 12.7062047 * 0.5)  # t of one degree over the RL seeds
    one = estimate({(0, 0): {"a": 0.0, "b": 1.0}})
    assert one is not None
    assert one.hi == pytest.approx(0.5 + 12.7062047 * 0.5)  # over the problems
    assert (one.p, one.mdd) == (None, None)  # one run does not show how much training varies
    single_value = estimate(whole_run_values({(0, 0): 1.0}))
    assert single_value is not None
    assert (single_value.lo, single_value.hi, single_value.p) == (None, None, None)
    assert estimate({}) is None


def test_differences_pair_seeds_and_problems() -> None:
    first: RunValues = {(0, 0): {"a": 1.0, "b": 0.5}, (0, 1): {"a": 1.0}, (1, 0): {"z": 1.0}}
    second: RunValues = {(0, 0): {"a": 0.25, "c": 9.0}, (1, 0): {"a": 1.0}}
    assert difference(first, second) == {(0, 0): {"a": 0.75}}
    assert difference(whole_run_values({(0, 0): 3.0}), whole_run_values({(0, 0): 1.0, (5, 5): 1.0})) == {
        (0, 0): {"": 2.0}
    }


# --- claims -----------------------------------------------------------------------------------------------------

ARMS = {
    "grpo": 0.60,
    "grpo_ipvrm": 0.62,
    "distrl_ipvrm": 0.70,
    "distrl_implicit_prm": 0.76,
    "distrl_frozen": 0.60,
    "distrl_naive": 0.64,
    "distrl_pmin_0.05": 0.70,
    "rm_as_policy_ipvrm": 0.65,
}
PROBES = {"": 0.8, "_shuffled": 0.2, "_marker0": 0.8, "_marker1": 0.5, "_marker5": 0.79}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rl")
    write_rl_study(root, ARMS)
    write_rl_study(root, {"grpo": 0.6, "distrl_ipvrm": 0.5}, (2, 2), panel="marker")
    wobble = (0.0, 0.01, 0.03)
    levels = {
        f"{method}{probe}": [level + (0.28 if probe == "_marker1" and method == "ipvrm" else 0.0) + w for w in wobble]
        for method in ("ipvrm", "implicit_prm")
        for probe, level in PROBES.items()
    }
    write_study(root, levels, ("steps", "best_of_n"))
    return root


@pytest.fixture(scope="module")
def policies(results: Path) -> RLStudy:
    return gather_rl_study(run for run in read_runs(results) if run.result.manifest.task == "distrl")


MARGIN = MARGINS["policy accuracy"]


def find(all_answers: list[Answer], source: str, comparison: str, where: str = "", panel: str = "plain") -> Answer:
    key = (source, comparison, panel)
    (answer,) = [a for a in all_answers if (a.source, a.comparison, a.panel) == key and where in a.where]
    return answer


@pytest.mark.parametrize(
    ("source", "comparison", "where", "value", "verdict"),
    [
        ("T5", "distrl_ipvrm - grpo", "avg@8", 0.10, "yes"),
        ("T5", "distrl_ipvrm - grpo_ipvrm", "avg@8", 0.08, "yes"),
        ("T6", "distrl_ipvrm - distrl_implicit_prm", "avg@8", -0.06, "no"),
        ("T7", "distrl_ipvrm - grpo_ipvrm", "right rollouts", 0.02, "yes"),
        ("T7", "distrl_ipvrm - grpo_ipvrm", "score", 0.0, "unclear"),
        ("T8", "distrl_ipvrm - distrl_frozen", "avg@8", 0.10, "yes"),
        ("T11", "distrl_pmin_0.05 - distrl_ipvrm", "candidates", 0.21, "yes"),
        ("T11", "distrl_ipvrm", "P_min 0.1", 0.96, "yes"),
        ("T13", "distrl_ipvrm / grpo_ipvrm - 1", "time", 0.0, "yes"),
        ("T13", "distrl_ipvrm / grpo_ipvrm - 1", "memory", 0.01, "yes"),
        ("Fig. 6", "distrl_frozen: first quarter - last", "", 0.30, "yes"),
        ("Fig. 6", "distrl_ipvrm: last quarter - first", "", 0.0, "yes"),
        ("Fig. 6", "distrl_ipvrm - distrl_naive", "", 0.325, "yes"),
        ("control", "distrl_ipvrm - rm_as_policy_ipvrm", "avg@8", 0.05, "yes"),
    ],
)
def test_claims_of_known_sign(
    policies: RLStudy, source: str, comparison: str, where: str, value: float, verdict: str
) -> None:
    """Differences follow from ARMS; the noise around them is at most 0.014 per arm."""
    answer = find(answer_questions(policies), source, comparison, where)
    assert answer.estimate.value == pytest.approx(value, abs=0.03 if "avg" in where else 1e-9)
    assert answer.verdict == verdict
    assert (answer.estimate.sft_seeds, answer.estimate.runs) == (3, 9)


def test_panels_are_compared_separately(policies: RLStudy) -> None:
    answer = find(answer_questions(policies), "T5", "distrl_ipvrm - grpo", panel="marker")
    assert answer.estimate.value < 0
    assert answer.estimate.runs == 4


@pytest.mark.parametrize(
    ("low", "high", "values", "verdict"),
    [
        (-0.02, 0.02, (0.0, 0.001, -0.001), "yes"),
        (-0.02, 0.02, (0.1, 0.101, 0.099), "no"),
        (-0.02, 0.02, (-0.1, -0.101, -0.099), "no"),
        (-0.02, 0.02, (0.02, 0.021, 0.019), "unclear"),
        (-np.inf, 0.05, (-3.0, -3.1, -2.9), "yes"),
        (-np.inf, 0.05, (0.06, 0.061, 0.059), "no"),
        (0.0, np.inf, (0.1, 0.3, -0.1), "unclear"),
    ],
)
def test_verdicts_follow_from_interval_and_bounds(
    low: float, high: float, values: tuple[float, ...], verdict: str
) -> None:
    runs = whole_run_values({(s, 0): v for s, v in enumerate(values)})
    answer = _answer(Question("T5", "", "a - b", "here", runs, low=low, high=high))
    assert answer is not None
    assert answer.verdict == verdict
    assert answer.tested == ((low, high) == (0.0, np.inf))


@pytest.mark.parametrize(
    ("values", "alone", "after_holm"),
    [
        ((0.001, 0.0, -0.001, 0.002), "equivalent", "equivalent"),
        ((0.004, 0.005, 0.003, 0.004), "equivalent", "equivalent"),  # above 0, and too small to matter
        ((0.011, 0.014, 0.009, 0.012), "yes", "yes"),
        ((-0.05, -0.06, -0.07, -0.04), "no", "no"),
        ((0.002, 0.05, 0.04, 0.01), "unclear", "unclear"),
        ((0.03, 0.08, 0.03, 0.06), "yes", "unclear"),
    ],
)
def test_differences_within_the_margin_are_equivalent(values: tuple[float, ...], alone: str, after_holm: str) -> None:
    """The margin of a policy's accuracy is 1 point; the family has a second, unclear comparison."""
    asked = [
        Question("T5", "", f"{name} - b", "here", whole_run_values({(s, 0): v for s, v in enumerate(v)}), margin=MARGIN)
        for name, v in (("a", values), ("c", (0.3, -0.3, 0.2, -0.1)))
    ]
    answer, _ = answer_questions(RLStudy(()), asked)
    assert (answer.verdict, answer.adjusted_verdict) == (alone, after_holm)


def test_a_claim_of_equality_needs_the_90_percent_interval_alone() -> None:
    """Mean 0.005, standard error 0.002, 10 values: the 90% interval ends at 0.0087, the 95% one at 0.0095."""
    spread = 0.002 * np.sqrt(10) * np.array([1, -1] * 5) / np.sqrt(10 / 9)
    runs = whole_run_values({(s, 0): 0.005 + v for s, v in enumerate(spread)})
    for bound, verdict in ((0.0087, "yes"), (0.0086, "unclear")):
        answer = _answer(Question("T11", "", "a - b", "here", runs, low=-bound, high=bound))
        assert answer is not None
        assert answer.estimate.hi == pytest.approx(0.005 + 2.262157 * 0.002)
        assert answer.verdict == verdict


def test_a_single_run_has_no_verdict() -> None:
    answer = _answer(Question("T5", "", "a - b", "here", {(0, 0): {"p": 0.5, "q": 0.5, "r": 0.6}}))
    assert answer is not None
    assert answer.estimate.lo is not None
    assert answer.estimate.lo > 0
    assert answer.verdict == "unclear"


def test_holm_is_over_the_tested_comparisons_of_a_source_and_panel(policies: RLStudy) -> None:
    family = [a for a in answer_questions(policies) if (a.source, a.panel) == ("T11", "plain")]
    assert [a.holm for a in family if not a.tested] == [None] * sum(not a.tested for a in family)
    tested = [a for a in family if a.tested]
    assert [a.holm for a in tested] == pytest.approx(holm([a.estimate.p for a in tested if a.estimate.p is not None]))


def test_arms_against_grpo_and_a_reward_model_as_policy(policies: RLStudy) -> None:
    against_grpo = compare_with_grpo(policies, "plain")
    assert set(against_grpo) == set(ARMS) - {"grpo"}
    assert against_grpo["distrl_ipvrm"][0].value == pytest.approx(0.10, abs=0.03)
    p_values = {arm: e.p for arm, (e, *_) in against_grpo.items()}
    assert [adjusted for _, adjusted, _ in against_grpo.values()] == pytest.approx(
        holm([p for p in p_values.values() if p is not None])
    )
    one_each = RLStudy(tuple(t for t in policies.trained if not t.arm.startswith("rm_as") or t.seeds[1] == 0))
    assert compare_with_grpo(one_each, "plain")["rm_as_policy_ipvrm"][0].runs == 9  # paired with every RL seed


def test_an_untrained_arm_counts_all_of_its_validations(tmp_path: Path) -> None:
    """The reward model as a policy, validated under three RL seeds: 0.5, 0.6 and 0.9, a mean of 2/3 for each."""
    for rl, (base, level) in enumerate(zip((0.5, 0.5, 0.5), (0.5, 0.6, 0.9), strict=True)):
        write_training(tmp_path, "grpo", [0.4, 0.45, base], (0, rl))
        write_training(tmp_path, "rm_as_policy_ipvrm", [level], (0, rl))
    write_training(tmp_path, "rm_as_policy_ipvrm", [0.1], (5, 0))  # of an SFT seed that nothing is compared with
    policies = gather_rl_study(read_runs(tmp_path))
    base = policies.accuracy("plain", "grpo", -1)
    means = {
        seeds: np.mean(list(values.values()))
        for seeds, values in _final_accuracies(policies, "plain", "rm_as_policy_ipvrm", base).items()
    }
    assert means == {(0, rl): pytest.approx(2 / 3) for rl in range(3)}
    assert compare_with_grpo(policies, "plain")["rm_as_policy_ipvrm"][0].value == pytest.approx(2 / 3 - 0.5)


# --- probes of the miniature ----------------------------------------------------------------------------------


def test_shuffled_and_marked_reward_models(results: Path) -> None:
    models = gather_study([run for run in read_runs(results) if run.result.manifest.task != "distrl"])
    probe_answers = answer_questions(RLStudy(()), questions(models))

    def verdict(source: str, comparison: str) -> tuple[float, str]:
        answer = find(probe_answers, source, comparison, "onpolicy", "")
        return round(answer.estimate.value, 6), answer.verdict

    # Process-level F1 is the level plus 0.02 plus a mean wobble of 0.04 / 3; chance is 0.2.
    assert verdict("shuffled", "ipvrm_shuffled - random scores") == (0.033333, "unclear")
    assert verdict("shuffled", "implicit_prm - implicit_prm_shuffled") == (0.6, "yes")
    assert verdict("marker", "implicit_prm_marker0 - implicit_prm_marker5") == (0.01, "yes")
    assert verdict("marker", "implicit_prm_marker0 - implicit_prm_marker1") == (0.3, "yes")
    assert verdict("marker", "ipvrm_marker0 - ipvrm_marker1") == (0.02, "yes")
    assert verdict("marker", "drop of implicit_prm - drop of ipvrm") == (0.28, "yes")
    assert verdict("marker", "ipvrm_marker1 - implicit_prm_marker1") == (0.28, "yes")
    grid = probe_grid(models)
    assert [row[0] for row in texts(grid)[0]] == [f"ipvrm{probe}" for probe in PROBES]
    assert texts(grid)[-1][0][-1].startswith("20.0")


def test_probes_do_not_enter_the_miniatures_own_tables(results: Path) -> None:
    by_name = {sheet.name: sheet for sheet in sheets(read_runs(results), sections=STUDIES)}
    assert set(by_name) == {"miniature", "miniature_rl"}
    assert {run.result.manifest.model for run in by_name["miniature"].runs} == {"ipvrm", "implicit_prm"}
    assert "_marker1" not in by_name["miniature"].csv


# --- monitors and curves ----------------------------------------------------------------------------------------


def test_quarters() -> None:
    values = [float(v) for v in range(8)]
    assert (first_quarter_mean(values), last_quarter_mean(values)) == (0.5, 6.5)
    assert (first_quarter_mean([3.0]), last_quarter_mean([1.0, 5.0])) == (3.0, 5.0)


def test_monitors_by_step(policies: RLStudy) -> None:
    run = policies.of("plain", "distrl_frozen")[0]
    assert run.monitor("rm_accuracy") == pytest.approx({i + 1: 0.9 - 0.05 * i for i in range(8)})
    assert run.monitor("kl_sft") == {0: 0.0}
    assert policies.of("plain", "grpo")[0].monitor("rm_accuracy") == {}
    assert alarms(policies.of("plain", "grpo")) == "entropy 9"
    silent = replace(run, lines=({"step": 1, "entropy": None, "loss": float("nan")},))
    assert silent.monitor("entropy") == silent.monitor("loss") == {}


def test_curves_are_means_over_runs(policies: RLStudy) -> None:
    runs = policies.of("plain", "grpo")
    curve = over_runs(runs, TrainingRun.validations)
    assert list(curve) == [0, 5, 10]
    ends = [np.mean([t.values[2] for t in run.run.scores]) for run in runs]
    assert curve[10].value == pytest.approx(np.mean(ends))
    assert curve[10].n == 9
    assert curve[0].value == pytest.approx(0.42)


def test_families_show_every_trained_arm(policies: RLStudy) -> None:
    shown = families(policies, "plain")
    assert {arm for arms in shown.values() for arm in arms} == set(ARMS) - {"rm_as_policy_ipvrm"}
    assert families(policies, "marker") == {"arms": ["grpo", "distrl_ipvrm"]}


# --- tables and files -------------------------------------------------------------------------------------------


def test_tables(policies: RLStudy) -> None:
    shown = {grid.label: grid for grid in (*grids(policies, answer_questions(policies)), options_grid(policies))}
    policies = {row[1]: row for row in texts(shown["rl-policies"])[0]}
    assert policies["grpo"][2:4] == ("3", "9")
    assert policies["grpo"][4].startswith("42.0 [")
    assert policies["grpo"][7:] == ("6.2", "6.2")  # 3 of 12 problems, a quarter of their completions
    assert policies["rm_as_policy_ipvrm"][5:7] == ("–", "–")
    assert shown["rl-policies"].notes == ("Validated once, without training: rm_as_policy_ipvrm.",)
    monitors = shown["rl-monitors"]
    frozen = dict(zip(monitors.header, next(r for r in texts(monitors)[0] if r[1] == "distrl_frozen"), strict=True))
    assert (frozen["RM accuracy, early"], frozen["RM accuracy, late"], frozen["mass"]) == ("87.5", "57.5", "96.0")
    assert ("plain marker", "grpo", "0") in texts(shown["rl-options"])[0]
    assert all(len(row) == len(g.header) for g in shown.values() for group in texts(g) for row in group)


def test_files(results: Path, tmp_path: Path) -> None:
    with rows_taken_as_they_are():
        report(results, tmp_path, sections=SECTIONS, formats=("csv", "tex", "json"))
        assert report(results, tmp_path, sections=SECTIONS, check=True, recompute=False) == CLEAN
    table = list(csv.DictReader(io.StringIO((tmp_path / "miniature_rl.csv").read_text())))
    ends = {
        (int(x["sft_seed"]), int(x["rl_seed"])): float(x["value"])
        for x in table
        if (x["panel"], x["arm"], x["protocol"], x["metric"]) == ("plain", "grpo", "policy/step:10", "avg@8")
    }
    assert len(ends) == 9
    written = json.loads((tmp_path / "miniature_rl.json").read_text())
    by_sft = [np.mean([v for seeds, v in ends.items() if seeds[0] == s]) for s in range(3)]
    assert written["arms"]["plain grpo"]["after"]["value"] == pytest.approx(np.mean(by_sft), abs=1e-6)
    assert "| [miniature_rl](miniature_rl.md) | " in (tmp_path / "README.md").read_text()
    assert "Every comparison" in (tmp_path / "report.html").read_text()
    names = {path.name for path in (tmp_path / "figures").glob("miniature_rl*.svg")}
    assert names == {
        f"miniature_rl-{name}.svg" for name in ("accuracy", "monitors-plain", "monitors-marker", "rm-accuracy", "arms")
    }


def test_order_of_runs_does_not_matter(results: Path) -> None:
    runs = read_runs(results)
    (_, one), (_, two) = sheets(runs, sections=STUDIES), sheets(runs[::-1], sections=STUDIES)
    assert (one.tables, one.csv, one.json) == (two.tables, two.csv, two.json)
    assert [f.svg for f in one.figures] == [f.svg for f in two.figures]


def test_a_study_with_two_runs_has_a_sheet(tmp_path: Path) -> None:
    for arm, level in (("grpo", 0.3), ("distrl_ipvrm", 0.35)):
        watched = lines(4, **{k: v for k, v in monitors_of(arm).items() if not isinstance(v, list)})
        write_training(tmp_path, arm, [0.1, 0.2, level], (0, 0), watched, benchmark="miniature_gain", panel="")
    (sheet,) = sheets(read_runs(tmp_path), sections=SECTIONS)
    assert sheet.name == "miniature_gain-distrl"
    arms = next(grid for grid in sheet.tables if grid.label == "rl-arms")
    assert texts(arms) == [[("–", "distrl_ipvrm", "1", "1", "+5.0 [+5.0, +5.0]†", "1 of 1", "–", "–", "unclear", "–")]]
    assert arms.notes
    drawn = [f"miniature_gain-distrl-{name}" for name in ("accuracy", "monitors", "arms")]
    assert [figure.name for figure in sheet.figures] == drawn


def test_study_runs_without_metrics_or_seeds_still_have_tables(tmp_path: Path) -> None:
    path = write_training(tmp_path, "", [0.1, 0.2], model="org/policy", benchmark="miniature_gain", panel="")
    _remove_options(path, "arm", "sft_seed", "rl_seed", "panel")
    (sheet,) = sheets(read_runs(tmp_path), sections=SECTIONS)
    policies = next(grid for grid in sheet.tables if grid.label == "rl-policies")
    assert texts(policies)[0][0][:4] == ("–", "org/policy", "1", "1")


def _remove_options(path: Path, *names: str) -> None:
    """Removes options from a result, as in a run that belongs to no study."""
    result = json.loads(path.read_text())
    for name in names:
        del result["manifest"]["config"][name]
    path.write_text(json.dumps(result))


@pytest.mark.parametrize("benchmark", ["real", "grade_school"])
def test_a_users_training_shows_before_after_gain_and_curves_and_no_claim(tmp_path: Path, benchmark: str) -> None:
    """Whatever its arm; the grade-school study is recognised by the hash of its problems, not by its name."""
    for arm, last in (("distrl_ipvrm", 0.3), ("grpo", 0.2)):
        watched = lines(4, **{k: v for k, v in monitors_of(arm).items() if not isinstance(v, list)})
        path = write_training(
            tmp_path / "runs", arm, [0.1, 0.2, last], (0, 0), watched, benchmark=benchmark, panel="", model="org/policy"
        )
        _remove_options(path, "sft_seed", "rl_seed", "panel")
    report(tmp_path / "runs", tmp_path / "out", sections=SECTIONS)
    page = (tmp_path / "out" / f"{benchmark}-distrl.md").read_text()
    assert "| Before | After | Gain | Cut before | Cut after |" in page
    (row,) = [line for line in page.splitlines() if "-distrl_ipvrm-" in line]
    assert [cell.split()[0] for cell in row.split(" | ")[4:7]] == ["10.0", "30.0", "+20.0"]
    figures = {path.name for path in (tmp_path / "out" / "figures").glob("*.svg")}
    assert figures == {f"{benchmark}-distrl-{name}.svg" for name in ("accuracy", "monitors")}
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and "published" not in p.parts]
    for path in written:
        if path.suffix in (".md", ".html", ".json", ".csv", ".tex"):
            words = re.findall(r"claim\w*|miniature|unclear", path.read_text())
            assert not words, (path.name, words)


def test_two_trainings_of_a_user_that_differ_in_an_option_are_both_listed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_training(tmp_path, "grpo", [0.1, 0.2], (1, 2), run_id=name, benchmark="real")
    assert load(tmp_path, sections=SECTIONS).problems == ()
    (sheet,) = sheets(read_runs(tmp_path), sections=SECTIONS)
    assert [row[2] for row in texts(sheet.tables[0])[0]] == ["a", "b"]


def test_the_library_alone_reports_a_studys_run_as_any_other(tmp_path: Path) -> None:
    write_training(tmp_path, "grpo", [0.1, 0.2], (1, 2))
    (sheet,) = sheets(read_runs(tmp_path))
    assert (sheet.name, [grid.label for grid in sheet.tables]) == ("miniature_rl-distrl", ["distrl-policies"])


@pytest.mark.parametrize("fault", ["altered", "missing", "nonsense"])
def test_metrics_are_checked(tmp_path: Path, fault: str) -> None:
    path = write_training(tmp_path, "grpo", [0.1, 0.2], monitors=lines(2, entropy=0.5))
    assert load(tmp_path, recompute=True, sections=SECTIONS).problems == ()
    metrics = metrics_path(path)
    if fault == "missing":
        metrics.unlink()
    elif fault == "altered":
        metrics.write_bytes(metrics.read_bytes() + b"x")
    else:
        shutil.copy(path, metrics)
        result = path.read_text().replace(
            read_run(path).result.manifest.config["metrics_sha256"], sha256(metrics.read_bytes())
        )
        path.write_text(result)
    (problem,) = load(tmp_path, sections=SECTIONS).problems
    assert metrics.name in problem
    assert {"missing": "cannot be read", "altered": "SHA-256", "nonsense": "not a record"}[fault] in problem


def test_two_runs_of_an_arm_and_seeds_are_a_problem(tmp_path: Path) -> None:
    write_training(tmp_path, "grpo", [0.1, 0.2], (1, 2), run_id="a")
    write_training(tmp_path, "grpo", [0.1, 0.3], (1, 2), run_id="b")
    (problem,) = load(tmp_path, sections=SECTIONS).problems
    assert "miniature_rl: arm grpo of panel plain, SFT seed 1, RL seed 2 has 2 runs, another in " in problem


def test_terminal_table_of_one_run(tmp_path: Path) -> None:
    path = write_training(tmp_path, "grpo", [0.1, 0.2, 0.4], scores=problems([0.1, 0.2, 0.4]))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(run_table(read_run(path).result))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("step", "after"))]
    # All twelve problems agree: Wilson's interval of twelve, and a gain with the standard error of twelve alike.
    low, high = intervals.share_interval(0.1, 0.0, 12)
    assert rows[0] == ["step", "0", "10.0", f"[{100 * low:.1f},", f"{100 * high:.1f}]", "6.2"]
    half = 30 / math.sqrt(12) * intervals.t_quantile(0.975, 12)
    assert rows[-1] == ["after", "minus", "before", "+30.0", f"[{30 - half:+.1f},", f"{30 + half:+.1f}]"]
