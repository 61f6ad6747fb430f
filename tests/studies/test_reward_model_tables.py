"""The reward model study: statistics against scipy and by hand, claims of known sign, tables and files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import CLEAN, rows_taken_as_they_are, write_study
from scipy import stats
from table_texts import texts

from prmbench.metrics.equivalence import holm
from prmbench.report import report
from prmbench.report.load import load
from prmbench.report.markdown import cell_text
from prmbench.report.stats import mean, paired, t_quantile, t_two_sided_p
from prmbench.studies.reporting.reward_model_claims import Claim, claims, missing
from prmbench.studies.reporting.reward_model_runs import SHIFTS, Study, gather_study
from prmbench.studies.reporting.reward_model_tables import _tied, grids, mean_value
from prmbench.studies.reporting.sections import SECTIONS
from prmbench.tasks import read_runs

# --- statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "inside", "quantile"),
    [(1, 2 / np.pi * np.arctan(2.0), np.tan(0.475 * np.pi)), (2, 2 / np.sqrt(6), 0.95 * np.sqrt(2 / (1 - 0.95**2)))],
)
def test_student_by_hand(df: int, inside: float, quantile: float) -> None:
    """One degree is Cauchy's distribution; of two, P(|T| < t) = t / sqrt(2 + t^2)."""
    assert t_two_sided_p(2.0, df) == pytest.approx(1 - inside, abs=1e-14)
    assert t_quantile(0.975, df) == pytest.approx(quantile, rel=1e-12)


@pytest.mark.parametrize(("df", "quantile"), [(4, 2.776445105197794), (9, 2.262157162798206), (29, 2.045229642132704)])
def test_student_against_values_with_thirty_digits(df: int, quantile: float) -> None:
    """Solved from the incomplete beta function with thirty digits."""
    assert t_quantile(0.975, df) == pytest.approx(quantile, rel=1e-14)
    assert t_two_sided_p(quantile, df) == pytest.approx(0.05, abs=1e-14)
    assert (t_two_sided_p(0.0, df), t_two_sided_p(np.inf, df)) == (1.0, 0.0)


def test_paired_test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 10), rng.normal(0, 1, 10)
    test = paired(dict(enumerate(a)), dict(enumerate(b)) | {99: 5.0})  # an unpaired seed is left out
    expected = stats.ttest_rel(a, b)
    assert test is not None
    assert (test.n, test.positive) == (10, int((a > b).sum()))
    assert test.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert (test.lo, test.hi) == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-9)
    error = np.std(a - b, ddof=1) / np.sqrt(10)
    assert test.mdd == pytest.approx((stats.t.ppf(0.975, 9) + stats.t.ppf(0.8, 9)) * error)


def test_mean_by_hand() -> None:
    average = mean([1.0, 2.0, 3.0])
    assert average.value == 2.0
    assert average.hi == pytest.approx(2 + 4.302652729911 / np.sqrt(3))  # t of 2 degrees; standard deviation 1
    assert mean([0.5]).lo is None
    with pytest.raises(ValueError, match="no value"):
        mean([])


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.25, 0.0), (-0.25, 0.0)])
def test_differences_without_spread(gap: float, p: float) -> None:
    test = paired({0: 0.5 + gap, 1: 0.25 + gap}, {0: 0.5, 1: 0.25})
    assert test is not None
    assert (test.difference, test.p, test.positive) == (gap, p, 2 * (gap > 0))


def test_one_common_seed_has_no_interval_and_no_common_seed_no_test() -> None:
    test = paired({0: 1.0}, {0: 0.5, 1: 0.5})
    assert test is not None
    assert (test.difference, test.lo, test.p, test.mdd, test.n) == (0.5, None, None, None, 1)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_holm_by_hand() -> None:
    """Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.9; never smaller than the one before."""
    assert holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# --- claims ---------------------------------------------------------------------------------------------------

WOBBLE = np.array([0.0, 0.01, -0.01, 0.02])
LEVELS = {
    "ipvrm": 0.60 + WOBBLE,
    "ipvrm_m0": 0.55 + WOBBLE[::-1],
    "ipvrm_early": 0.70 + WOBBLE / 2,
    "ipvrm_late": 0.50 + WOBBLE * 2,
    "implicit_prm": 0.80 + WOBBLE * 3,
    "dpo_rm": 0.60 + np.array([0.0, 0.3, -0.3, 0.1]),
    "q_rm": 0.30 + WOBBLE[::-1],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    write_study(root, {m: list(v) for m, v in LEVELS.items()}, ("steps", "best_of_n", "calibration"))
    return root


@pytest.fixture(scope="module")
def reward_models(results: Path) -> Study:
    return gather_study(read_runs(results))


def find(all_claims: list[Claim], source: str, comparison: str, where: str) -> Claim:
    (claim,) = [c for c in all_claims if (c.source, c.comparison, c.where) == (source, comparison, where)]
    return claim


@pytest.mark.parametrize(
    ("source", "comparison", "where", "difference", "verdict"),
    [
        ("T2", "ipvrm - q_rm", "onpolicy", 0.30, "yes"),
        ("T2", "ipvrm - implicit_prm", "onpolicy", -0.21, "no"),
        ("T2", "ipvrm - dpo_rm", "words", -0.02, "unclear"),
        ("T2", "ipvrm - dpo_rm", "change under shifts", 0.0, "equivalent"),
        ("T1", "ipvrm - implicit_prm", "best of N, mean", -0.21, "no"),
        ("T3", "ipvrm_late - ipvrm", "best of N, mean", -0.095, "no"),
        ("T3", "ipvrm - ipvrm_early", "best of N, mean", -0.0975, "no"),
        ("T4", "ipvrm - ipvrm_late", "injected", 0.095, "yes"),
        ("T4", "ipvrm_early - ipvrm", "mean of shifts", 0.0975, "yes"),
        ("T10", "ipvrm - ipvrm_m0", "onpolicy", 0.05, "yes"),
        ("T14", "dpo_rm: step_sum - prefix_sum", "injected", 0.02, "yes"),
    ],
)
def test_claims_of_known_sign(
    reward_models: Study, source: str, comparison: str, where: str, difference: float, verdict: str
) -> None:
    """Differences follow from LEVELS; a value head is read by step_diff, which has the same bonus as step_sum."""
    claim = find(claims(reward_models), source, comparison, where)
    assert claim.difference == pytest.approx(difference, abs=1e-12)
    assert claim.verdict == verdict
    assert claim.n == 4


def test_holm_counts_the_comparisons_of_a_table_and_its_constants(reward_models: Study) -> None:
    all_claims = claims(reward_models)
    for source in ("T1", "T2", "T4"):
        family = [c for c in all_claims if c.source == source]
        assert [c.holm for c in family] == pytest.approx(holm([c.p for c in family if c.p is not None]))
    assert (
        len([c for c in all_claims if c.source == "T2"]) == 27
    )  # three other methods; two subsets, five formats, their mean, the change
    assert len([c for c in all_claims if c.source == "T1"]) == 9  # three other methods; mean, N = 2, N = 4


def test_pairs_are_by_seed_and_not_by_order(tmp_path: Path) -> None:
    """dpo_rm lacks seed 0: its level at seed 1 must meet ipvrm's level at seed 1."""
    write_study(tmp_path, {"ipvrm": [0.1, 0.5, 0.7], "dpo_rm": [0.9, 0.4, 0.5]})
    runs = [
        r for r in read_runs(tmp_path) if (r.result.manifest.model, r.result.manifest.config["seed"]) != ("dpo_rm", 0)
    ]
    claim = find(claims(gather_study(runs[::-1])), "T2", "ipvrm - dpo_rm", "onpolicy")
    assert (claim.n, claim.positive) == (2, 2)
    assert claim.difference == pytest.approx(0.15)


def test_the_papers_constants_are_compared_among_themselves(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": [0.5, 0.6], "q_rm_paper": [0.1, 0.2], "ipvrm_paper": [0.4, 0.4]})
    all_claims = claims(gather_study(read_runs(tmp_path)))
    assert {(c.constants, c.comparison) for c in all_claims if c.source == "T2"} == {
        ("paper", "ipvrm_paper - q_rm_paper")
    }
    assert set(missing(gather_study(read_runs(tmp_path)))) == {"T1", "T3", "T4", "T10", "rate"}


def test_the_control_compares_ipvrm_with_implicit_prm_at_its_rate(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": [0.5, 0.6], "implicit_prm": [0.1, 0.2], "implicit_prm_slow": [0.4, 0.55]})
    tested = [c for c in claims(gather_study(read_runs(tmp_path))) if c.source == "rate"]
    assert {(c.constants, c.comparison, c.where) for c in tested} >= {
        ("tuned", "ipvrm - implicit_prm_slow", "onpolicy")
    }
    assert next(c.difference for c in tested if c.where == "onpolicy") == pytest.approx(0.075)


def test_the_mean_of_shifts_needs_every_format(reward_models: Study) -> None:
    part = Study(
        reward_models.runs,
        reward_models.table,
        reward_models.recipes,
        {k: v for k, v in reward_models.values.items() if k[5] != "merged"},
    )
    assert part.f1("ipvrm", ("step_sum",), SHIFTS) == {}
    assert part.change("ipvrm", ("step_sum",)) == {}
    assert part.f1("ipvrm", ("step_sum",), ("words",)) == pytest.approx(
        {seed: 0.52 + w for seed, w in enumerate(WOBBLE)}
    )


# --- tables and files -------------------------------------------------------------------------------------------


def test_cells_show_mean_interval_best_and_fewer_seeds() -> None:
    found = mean([0.5, 0.6, 0.7])
    assert cell_text(mean_value(found, "percent", 3, is_best=True)) == "**60.0** [35.2, 84.8]"
    assert cell_text(mean_value(found, "percent", 4)) == "60.0 [35.2, 84.8]†"
    assert cell_text(mean_value(mean([-0.0001]), "points")) == "+0.0"
    assert cell_text(mean_value(None, "percent")) == "–"


@pytest.mark.parametrize(
    ("column", "lower_is_better", "expected"),
    [
        ([{0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.51, 1: 0.58, 2: 0.7}, {0: 0.1, 1: 0.2, 2: 0.3}], False, {0, 1}),
        ([{0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5, 2: 0.6}], False, {0}),  # paired: always 0.1 below
        ([{0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5, 2: 0.6}], True, {1}),
        ([{0: 0.5}, {0: 0.4}], False, {0}),  # a single seed tests nothing
        ([{0: 0.5}, {0: 0.5}], False, {0, 1}),
        ([{0: 0.5, 1: 0.6}, {}], False, set()),
    ],
)
def test_bold_marks_the_best_and_what_is_tied_with_it(
    column: list[dict[int, float]], lower_is_better: bool, expected: set[int]
) -> None:
    assert _tied(column, lower_is_better) == expected


def test_tables_of_a_study(reward_models: Study) -> None:
    shown = {grid.label: grid for grid in grids(reward_models, claims(reward_models))}
    assert set(shown) == {
        *("study-answers", "study-f1-calibrated", "study-f1-oracle", "study-best-of-n", "study-calibration"),
        *("study-comparisons", "study-recipes"),
    }
    calibrated, oracle = shown["study-f1-calibrated"], shown["study-f1-oracle"]
    assert [row[0] for row in texts(calibrated)[0]] == [
        "ipvrm",
        "ipvrm_early",
        "ipvrm_late",
        "ipvrm_m0",
        *list(LEVELS)[4:],
    ]
    q_rm = texts(calibrated)[0][-1]
    assert q_rm[2] == "`step_diff`"
    assert q_rm[3].startswith("32.5 [")  # 0.30 + 0.02 and the mean wobble of 0.005
    assert texts(oracle)[0][-1][3].startswith("37.5 [")
    assert q_rm[-1] == "**-10.0** [-10.0, -10.0]"
    own = {row[0]: row[2] for row in texts(shown["study-best-of-n"])[0]}
    assert (own["ipvrm"], own["dpo_rm"], own["q_rm"]) == ("`prefix_mean/last`", "`prefix_sum/last`", "`as_is/last`")
    answers = {row[0]: row[3:] for row in texts(shown["study-answers"])[0]}
    assert answers["T3"] == ("0", "3", "0", "0", "3", "3")
    assert shown["study-recipes"].header == ("Method", "loss", "beta", "margin", "updates")


def test_files_of_a_study(results: Path, tmp_path: Path) -> None:
    with rows_taken_as_they_are():
        report(results, tmp_path, sections=SECTIONS, formats=("csv", "tex", "json"))
        assert report(results, tmp_path, sections=SECTIONS, check=True) == CLEAN
    lines = list(csv.DictReader(io.StringIO((tmp_path / "miniature.csv").read_text())))
    per_seed = {
        int(x["seed"]): float(x["value"])
        for x in lines
        if (x["method"], x["subset"], x["protocol"]) == ("dpo_rm", "words", "step_sum/calibrated:val")
    }
    assert per_seed == pytest.approx({0: 0.52, 1: 0.82, 2: 0.22, 3: 0.62})
    written = json.loads((tmp_path / "miniature.json").read_text())
    assert written["seeds"] == [0, 1, 2, 3]
    assert {c["verdict"] for c in written["claims"]} == {"yes", "no", "equivalent", "unclear"}
    assert "| [miniature](miniature.md) | 84 | calibrated, oracle | val 2" in (tmp_path / "README.md").read_text()
    names = {path.name for path in (tmp_path / "figures").glob("*.svg")}
    assert names == {"miniature-f1.svg", "miniature-best-of-n.svg", "miniature-claims.svg", "joined-f1-gain.svg"}


def test_order_of_runs_does_not_matter(results: Path) -> None:
    runs = read_runs(results)
    one, two = gather_study(runs), gather_study(runs[::-1])
    assert one.table.equals(two.table)
    assert claims(one) == claims(two)
    assert grids(one, claims(one)) == grids(two, claims(two))


def test_two_runs_of_a_method_and_seed_are_a_problem(tmp_path: Path) -> None:
    write_study(tmp_path / "a", {"ipvrm": [0.5]})
    write_study(tmp_path / "b", {"ipvrm": [0.5]})
    second = next((tmp_path / "b").rglob("*.json"))
    text = second.read_text().replace('"run_id": "ipvrm-0-steps"', '"run_id": "ipvrm-0-again"')
    second.write_text(text)
    with rows_taken_as_they_are():
        (problem,) = load(tmp_path, sections=SECTIONS).problems
    assert f"{second}; keep one" in problem or f"{second}: " in problem
    assert "miniature: method ipvrm, seed 0, task steps has 2 runs, another in " in problem
