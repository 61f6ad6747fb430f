"""`prmbench power` through the command line: one run, a pair, folders of runs over seeds, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_calls import fine, refused
from paths import ROOT
from report_runs import rows_taken_as_they_are, write_study

from prmbench.metrics.sample_size import detectable, deviation_interval, needed
from prmbench.tasks import compare, read_run
from prmbench.tasks.judging import pairs

PILOTS = ROOT / "leaderboards/results/processbench/processbench-steps.tar.xz"
MODEL = PILOTS / "smollm2-135m-instruct.q4-1-454f889a8acf.json"
LENGTH = PILOTS / "step-length-c98b421f0cc2.json"
LEVELS = {"ipvrm": [0.50, 0.52, 0.47, 0.55], "dpo_rm": [0.40, 0.45, 0.39, 0.43]}


def planned(*arguments: object) -> dict[str, Any]:
    result = json.loads(fine("power", "--json", "--quiet", *arguments))
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pilots")
    for method, levels in LEVELS.items():
        write_study(root / method, {method: levels})
    write_study(root / "both", LEVELS)
    write_study(root / "one", {"ipvrm": [0.5]})
    return root


KEY = ("--metric", "f1", "--subset", "onpolicy", "--protocol", "step_sum/oracle")


def test_a_run_says_what_another_as_noisy_needs() -> None:
    """The row mdd is the same formula with normal quantiles: equal for many problems."""
    plan = planned(MODEL, "--protocol", "step_sum/cross_validated", "--subset", "math", "--difference", 3)
    (mdd,) = [
        row.value
        for row in read_run(MODEL).result.rows
        if (row.subset, row.protocol, row.metric) == ("math", "step_sum/cross_validated", "mdd")
    ]
    assert plan["detectable"] == pytest.approx(mdd, rel=0.01)
    assert (plan["unit"], plan["paired"], plan["metric"]) == ("problems", False, "f1")
    deviation = plan["error"] * math.sqrt(plan["pilot"])
    assert plan["needed"] == needed(deviation, 0.03)
    lo, hi = deviation_interval(deviation, plan["pilot"])
    assert (plan["needed_lo"], plan["needed_hi"]) == (needed(lo, 0.03), needed(hi, 0.03))
    assert plan["needed_lo"] < plan["needed"] < plan["needed_hi"]


def test_without_a_subset_a_protocol_is_planned_on_its_own_average() -> None:
    """The main number's average leaves out the subset that its threshold was tuned on."""
    key = ("--protocol", "step_sum/cross_validated", "--difference", 3)
    assert planned(MODEL, *key)["subset"] == "avg[gsm8k,math,olympiadbench]"
    assert planned(MODEL, *key) == planned(MODEL, *key, "--subset", "average")
    assert "choose --subset gsm8k, math, olympiadbench, avg[" in refused("power", MODEL, *key, "--subset", "other")


def test_a_pair_shares_its_problems() -> None:
    key = ("--protocol", "as_is/cross_validated", "--against", "step_sum/cross_validated", "--subset", "math")
    plan = planned(LENGTH, MODEL, *key)
    a, b = read_run(LENGTH), read_run(MODEL)
    asked = pairs(a.result.manifest, b.result.manifest, [key[1]], key[3])
    rows = {r.metric: r for r in compare((a.result, a.scores), (b.result, b.scores), asked) if r.subset == "math"}
    assert plan["paired"]
    assert plan["estimate"] == pytest.approx(rows["f1_difference"].value)
    # From the spread of the pair alone; the test of `compare`, which tunes again, detects about as much.
    assert plan["detectable"] == pytest.approx(rows["mdd"].value, rel=0.15)


def test_folders_are_paired_by_seed(studies: Path) -> None:
    with rows_taken_as_they_are():
        plan = planned(studies / "dpo_rm", studies / "ipvrm", *KEY, "--difference", 5)
    differences = np.array(LEVELS["ipvrm"]) - np.array(LEVELS["dpo_rm"])
    assert (plan["unit"], plan["pilot"], plan["paired"]) == ("seeds", 4, True)
    assert plan["estimate"] == pytest.approx(differences.mean())
    assert plan["error"] == pytest.approx(differences.std(ddof=1) / 2)
    assert plan["detectable"] == pytest.approx(detectable(differences.std(ddof=1), 4))
    assert plan["needed"] == needed(differences.std(ddof=1), 0.05)


def test_one_folder_stands_for_two_independent_methods(studies: Path) -> None:
    with rows_taken_as_they_are():
        plan = planned(studies / "ipvrm", *KEY)
        text = fine("power", studies / "ipvrm", *KEY, "--quiet")
    deviation = np.array(LEVELS["ipvrm"]).std(ddof=1) * math.sqrt(2)
    assert plan["needed"] == needed(deviation, 0.02)
    assert f"needed for 2 points: {plan['needed']} seeds, 95% interval [" in text


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("both", None, "several runs of seed 0"),
        ("one", None, "needs two seeds or more, and has 1"),
        ("ipvrm", "missing", "no such"),
        ("empty", None, "holds no result"),
    ],
)
def test_pilots_that_say_nothing_are_refused(studies: Path, first: str, second: str | None, message: str) -> None:
    (studies / "empty").mkdir(exist_ok=True)
    with rows_taken_as_they_are():
        text = refused("power", studies / first, *([studies / second] if second else []), *KEY)
    assert message in text.lower()


def test_runs_of_other_kinds_and_unknown_numbers_are_refused(studies: Path) -> None:
    assert "two folders" in refused("power", MODEL, studies / "ipvrm")
    assert "has no number recall" in refused("power", MODEL, "--metric", "recall")
    assert "other traces" in refused(
        "power", MODEL, PILOTS / "smollm2-135m-ipvrm-401cd66403e9.json", "--subset", "math"
    )
    assert "--difference" in refused("power", MODEL, "--difference", 0)
