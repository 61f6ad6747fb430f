"""The joined table: correlations against scipy and by hand, seeds as clusters, which runs are joined, files."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import (
    CLEAN,
    completions,
    rows_taken_as_they_are,
    scores_of,
    task_scores,
    traces,
    write,
    write_study,
    write_task,
)
from rl_runs import problems
from scipy import stats
from table_texts import texts

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.metrics.first_error import bootstrap_weights
from prmbench.metrics.intervals import interval
from prmbench.report import report
from prmbench.studies.reporting.checkpoint_correlation import (
    MIN_SEEDS,
    REPLICATES,
    Coefficient,
    Point,
    Within,
    correlate,
)
from prmbench.studies.reporting.checkpoint_rows import Checkpoint, checkpoints
from prmbench.studies.reporting.checkpoint_tables import csv as joined_csv
from prmbench.studies.reporting.checkpoint_tables import grids, joined, outcomes
from prmbench.studies.reporting.sections import SECTIONS
from prmbench.tasks import read_runs

# --- correlations -------------------------------------------------------------------------------------------------


def _points(x: Sequence[float], y: Sequence[float], seeds: Sequence[int], methods: Sequence[str] = ()) -> list[Point]:
    names = methods or [""] * len(x)
    rows = zip(x, y, seeds, names, strict=True)
    return [Point(a, b, seed, f"world {seed}", method) for a, b, seed, method in rows]


def _value(points: Sequence[Point], how: Coefficient, within: Within = "pooled") -> float:
    correlation = correlate(points, how, within)
    assert correlation is not None
    return correlation.value


def test_coefficients_by_hand() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 x 2 / (4 x 15) = 0.8; the numbers: 45 / sqrt(50 x 41)."""
    points = _points([0, 1, 2, 7], [1, 3, 2, 7], [0, 1, 2, 3])
    assert _value(points, "spearman") == pytest.approx(0.8)
    x, y = np.array([0, 1, 2, 7]) - 2.5, np.array([1, 3, 2, 7]) - 3.25
    assert _value(points, "pearson") == pytest.approx(float(x @ y / np.sqrt((x @ x) * (y @ y))))
    turned = [replace(p, y=-p.y) for p in points]
    assert _value(turned, "spearman") == pytest.approx(-0.8)


def test_ties_against_scipy() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, 30), rng.integers(0, 5, 30)
    points = _points(x.tolist(), y.tolist(), list(range(30)))
    assert _value(points, "spearman") == pytest.approx(stats.spearmanr(x, y).statistic)
    assert _value(points, "pearson") == pytest.approx(stats.pearsonr(x, y).statistic)


def test_correlations_within_worlds_and_within_methods_can_have_opposite_signs() -> None:
    """In each of three worlds a falls as b rises; worlds that are better at one are better at the other."""
    x = [10 * world + i for world in range(3) for i in range(3)]
    y = [10 * world - i for world in range(3) for i in range(3)]
    seeds, methods = [w for w in range(3) for _ in range(3)], list("abc") * 3
    points = _points(x, y, seeds, methods)
    for how in ("spearman", "pearson"):
        assert _value(points, how) > 0.7
        assert _value(points, how, "world") == pytest.approx(-1)
        assert _value(points, how, "method") == pytest.approx(1)
    swapped = [replace(p, world=p.method, method=p.world) for p in points]
    assert _value(swapped, "pearson", "world") == pytest.approx(1)


def test_rank_correlation_within_worlds_is_the_mean_over_worlds() -> None:
    """1 in the first world, -0.5 in the second, both of three rows without ties: 0.25."""
    points = _points([1, 2, 3, 1, 2, 3], [1, 2, 3, 30, 10, 20], [0, 0, 0, 1, 1, 1])
    assert _value(points, "spearman", "world") == pytest.approx(0.25)
    pooled = correlate(points, "spearman")
    assert pooled is not None
    assert (pooled.n, pooled.clusters, pooled.positive, pooled.with_value) == (6, 2, 1, 2)


def _random_points(rows: int = 4, seeds: int = 8) -> list[Point]:
    """Returns random points whose seed effects are larger than their own noise."""
    rng = np.random.default_rng(3)
    points = []
    for seed in range(seeds):
        shared = rng.normal(0, 1, 2)
        for i in range(rows):
            x, y = shared + 0.3 * rng.normal(0, 1, 2) + 0.2 * i
            points.append(Point(float(x), float(y), seed, f"world {seed}", f"m{i}"))
    return points


def _reference_correlation(
    points: Sequence[Point], how: Coefficient, within: Within, times_drawn: Sequence[int]
) -> float:
    """Returns the correlation over copies of the resampled seeds' rows; a world that is drawn twice is two worlds."""
    rows = [
        (p, f"{p.world}/{copy}") for seed, times in enumerate(times_drawn) for copy in range(times) for p in points
        if p.cluster == seed
    ]  # fmt: skip
    names = ["" if within == "pooled" else world if within == "world" else p.method for p, world in rows]
    columns = []
    for values in (np.array([p.x for p, _ in rows]), np.array([p.y for p, _ in rows])):
        centred = np.zeros(len(rows))
        for name in set(names):
            member = np.array([n == name for n in names])
            part = stats.rankdata(values[member]) / member.sum() if how == "spearman" else values[member]
            centred[member] = part - part.mean()
        columns.append(centred)
    return float(stats.pearsonr(*columns).statistic)


@pytest.mark.parametrize("how", ["spearman", "pearson"])
@pytest.mark.parametrize("within", ["pooled", "world", "method"])
def test_interval_equals_a_bootstrap_that_copies_rows(how: Coefficient, within: Within) -> None:
    points = [p for i, p in enumerate(_random_points(seeds=6)) if i != 5]  # worlds of different sizes
    cluster = np.array([p.cluster for p in points])
    weights = bootstrap_weights(cluster, REPLICATES, seed=0)[1:]
    draws = np.stack([weights[:, np.argmax(cluster == seed)] for seed in range(6)], axis=1).astype(int)
    expected = [_reference_correlation(points, how, within, draw) for draw in draws]
    correlation = correlate(points, how, within)
    assert correlation is not None
    ends = interval("percentile", correlation.value, np.array(expected), 6)
    assert (correlation.lo, correlation.hi) == pytest.approx(ends, abs=1e-9)


def test_more_rows_of_the_same_seeds_do_not_narrow_the_interval() -> None:
    few = _random_points()
    many = [replace(p, method=f"{p.method}{copy}") for p in few for copy in range(10)]
    unclustered = [replace(p, cluster=i) for i, p in enumerate(few)]
    once, ten, independent = (correlate(points, "pearson") for points in (few, many, unclustered))
    assert once is not None
    assert ten is not None
    assert independent is not None
    assert (once.lo, once.hi) == pytest.approx((ten.lo, ten.hi))
    assert once.lo is not None
    assert independent.lo is not None
    assert once.lo < independent.lo - 0.1


def test_too_few_seeds_have_no_interval_however_many_rows_there_are() -> None:
    points = _random_points(rows=30, seeds=MIN_SEEDS)
    enough = correlate(points, "spearman")
    short = correlate([p for p in points if p.cluster], "spearman")
    assert enough is not None
    assert short is not None
    assert enough.lo is not None
    assert (short.lo, short.hi, short.clusters) == (None, None, MIN_SEEDS - 1)


@pytest.mark.parametrize("x", [(), (1.0,), (1.0, 2.0), (3.0, 3.0, 3.0, 3.0), (0.1, 0.1, 0.1)])
def test_constant_values_have_no_correlation(x: tuple[float, ...]) -> None:
    for within in ("pooled", "world", "method"):
        assert correlate(_points(x, range(len(x)), range(len(x))), "spearman", within) is None


# --- rows of the miniature ----------------------------------------------------------------------------------------

TASKS = ("steps", "best_of_n", "calibration")


def _set_policy(root: Path, method: str, seed: int, policy: str, **facts: Any) -> None:
    """Writes the hash of the world's policy and other facts into a method's manifests, as scoring does."""
    for path in (root / method).glob(f"{method}-{seed}-*.json"):
        result = json.loads(path.read_text())
        result["manifest"] |= {"ref_weights": policy, "weights": f"{method}/{seed}", **facts}
        path.write_text(json.dumps(result))


def _write_rl_run(root: Path, arm: str, levels: Sequence[float], seeds: tuple[int, int], **facts: Any) -> None:
    config = {"validated_at": [0, 5, 10], "samples": 8, "arm": arm, "sft_seed": seeds[0], "rl_seed": seeds[1]}
    config |= {"panel": facts.pop("panel", "plain"), "rm_model": facts.pop("rm_model", arm.removeprefix("distrl_"))}
    manifest = {"backend": "policy", "kind": "outcome", "task": "distrl", "benchmark": "miniature_rl"}
    manifest |= {"series": ("truncated",), "replicates": 50, "model": arm, "run_id": f"{arm}-{seeds[0]}-{seeds[1]}"}
    manifest |= facts
    write(root, problems(levels, 0.1), folder=f"{manifest['benchmark']}-{arm}", config=config, **manifest)


def _rows(root: Path) -> dict[tuple[str, int | None], Checkpoint]:
    return {(row.model, row.seed): row for row in checkpoints(list(read_runs(root)))}


def test_a_row_by_hand(tmp_path: Path) -> None:
    """Levels of 0.6 at seed 0 and 0.7 at seed 1; report_runs.study_rows turns a level into rows."""
    write_study(tmp_path, {"ipvrm": (0.6, 0.7), "q_rm": (0.2, 0.2)}, TASKS)
    rows = _rows(tmp_path)
    row = rows["ipvrm", 1]
    assert row.kinds == ("steps", "best_of_n", "calibration")
    numbers = {column: value for column, value in row.numbers.items() if column.startswith(("F1", "o", "b", "E", "A"))}
    assert numbers == pytest.approx(
        {
            **{"F1 onpolicy": 0.72, "F1 injected": 0.72, "F1 shifts": 0.62},  # process level is 0.02 above
            **{"own F1 onpolicy": 0.7, "oracle F1 onpolicy": 0.77, "oracle F1 injected": 0.77},
            **{"best of 4": 0.74, "best-of-N gain @4": 0.74, "best-of-N gain mean": 0.73},
            **{"ECE": 0.35, "ECE Platt": 0.35, "AUC": 0.35},
        }
    )
    assert rows["ipvrm", 0].numbers["F1 onpolicy"] == pytest.approx(0.62)
    assert rows["q_rm", 1].numbers["own F1 onpolicy"] == pytest.approx(0.2)


def test_cost_is_over_all_runs_and_scored_steps(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": (0.6,)}, ("steps", "best_of_n"))
    assert not {"tokens", "GiB"} & set(_rows(tmp_path)["ipvrm", 0].numbers)  # not recorded: absent, not zero
    _set_policy(tmp_path, "ipvrm", 0, "p", tokens=640, seconds=3.0, memory_gib=0.5)
    runs = list(read_runs(tmp_path))
    steps = sum(t.steps for run in runs for t in run.scores if not t.unscored)
    numbers = _rows(tmp_path)["ipvrm", 0].numbers
    assert (numbers["tokens"], numbers["s / 1,000 steps"], numbers["GiB"]) == (1280, pytest.approx(6000 / steps), 0.5)
    assert numbers["tokens a step"] == pytest.approx(1280 / steps)
    bad = [replace(run, scores=[replace(t, unscored="too long") for t in run.scores[:1]] + list(run.scores[1:])) for run in runs]  # fmt: skip # noqa: E501
    (row,) = checkpoints(bad)
    assert row.numbers["tokens a step"] == pytest.approx(1280 / (steps - sum(run.scores[0].steps for run in runs)))


def test_rl_gains_belong_to_the_reward_model_that_rl_started_from(tmp_path: Path) -> None:
    """0.5 to 0.7 and to 0.8: a gain of 0.25; GRPO ends at 0.6 under the same seeds: 0.15 over it."""
    write_study(tmp_path, {"ipvrm": (0.6, 0.7), "ipvrm_early": (0.6, 0.7), "dpo_rm": (0.5, 0.5)}, ("steps",))
    for method, seed in (("ipvrm", 0), ("ipvrm", 1), ("ipvrm_early", 0), ("dpo_rm", 0)):
        _set_policy(tmp_path, method, seed, f"policy {seed}")
    for rl, last in ((0, 0.7), (1, 0.8)):
        _write_rl_run(tmp_path, "distrl_ipvrm", (0.5, 0.1, last), (0, rl), weights="policy 0")
        _write_rl_run(tmp_path, "grpo", (0.5, 0.9, 0.6), (0, rl), weights="policy 0", rm_model="")
    _write_rl_run(
        tmp_path, "distrl_adb", (0.5, 0.5, 0.9), (0, 0), weights="policy 0", rm_model="ipvrm"
    )  # no default arm
    _write_rl_run(tmp_path, "distrl_ipvrm", (0.5, 0.5, 0.9), (1, 0), weights="another policy of seed 1")
    _write_rl_run(tmp_path, "distrl_dpo_rm", (0.5, 0.5, 0.4), (0, 0), weights="policy 0", rm_model="dpo_rm_paper")
    rows = _rows(tmp_path)
    assert rows["ipvrm", 0].numbers["RL gain"] == pytest.approx(0.25)
    assert rows["ipvrm", 0].numbers["over GRPO"] == pytest.approx(0.15)
    assert rows["ipvrm", 0].kinds == ("steps", "distrl")
    for key in (("ipvrm", 1), ("ipvrm_early", 0), ("dpo_rm", 0)):
        assert "RL gain" not in rows[key].numbers


def test_marked_worlds_have_their_own_reward_models(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": (0.6,), "ipvrm_marker1": (0.5,), "ipvrm_marker0": (0.5,)}, ("steps",))
    for method, policy in (("ipvrm", "p"), ("ipvrm_marker1", "m"), ("ipvrm_marker0", "m")):
        _set_policy(tmp_path, method, 0, policy)
    _write_rl_run(
        tmp_path, "distrl_ipvrm", (0.5, 0.5, 0.8), (0, 0), weights="m", rm_model="ipvrm_marker1", panel="marker"
    )
    rows = _rows(tmp_path)
    gains = {model: row.numbers.get("RL gain") for (model, _), row in rows.items()}
    assert gains == {"ipvrm": None, "ipvrm_marker1": pytest.approx(0.3), "ipvrm_marker0": None}
    assert {model: row.world for (model, _), row in rows.items()} == {
        **dict.fromkeys(["ipvrm_marker1", "ipvrm_marker0"], "marker seed 0"),
        "ipvrm": "plain seed 0",
    }


def test_a_run_in_two_benchmarks_counts_once(tmp_path: Path) -> None:
    """RL seed 0 stands in both, RL seed 1 in one: the mean is of two runs, not of three."""
    write_study(tmp_path, {"ipvrm": (0.6,)}, ("steps",))
    _set_policy(tmp_path, "ipvrm", 0, "p")
    for benchmark, rl, last in (("miniature_rl", 0, 0.7), ("miniature_gain", 0, 0.7), ("miniature_gain", 1, 0.9)):
        _write_rl_run(tmp_path, "distrl_ipvrm", (0.5, 0.5, last), (0, rl), weights="p", benchmark=benchmark)
    assert _rows(tmp_path)["ipvrm", 0].numbers["RL gain"] == pytest.approx(0.3)


def test_runs_of_other_weights_are_another_row(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": (0.6,)}, TASKS)
    path = tmp_path / "ipvrm" / "ipvrm-0-calibration.json"
    result = json.loads(path.read_text())
    result["manifest"]["weights"] = "trained again"
    path.write_text(json.dumps(result))
    rows = checkpoints(list(read_runs(tmp_path)))
    assert sorted(row.kinds for row in rows) == [("calibration",), ("steps", "best_of_n")]


# --- rows of other models -----------------------------------------------------------------------------------------


def _write_other_model(root: Path, **facts: Any) -> None:
    items = traces()
    facts = {"kind": "logratio", "backend": "implicit", "model": "org/prm", "revision": "a" * 40, **facts}
    write(root, scores_of(items, "logratio"), run_id="a" * 12, benchmark="processbench", **facts)
    write_task(root, "best_of_n", task_scores(completions()), run_id="b" * 12, **facts)


def test_other_models_are_joined_by_revision_backend_and_reference(tmp_path: Path) -> None:
    _write_other_model(tmp_path)
    write(tmp_path, scores_of(traces(), "prob", 5), run_id="c" * 12, model="org/prm", revision="b" * 40)
    write(tmp_path, scores_of(traces()), run_id="d" * 12, model="org/prm", revision="a" * 40, backend="endo")
    write(tmp_path, scores_of(traces()), run_id="e" * 12, model="random", backend="baseline")
    runs = {run.result.manifest.run_id: run for run in read_runs(tmp_path)}
    rows = checkpoints(list(runs.values()))
    joined_row = next(row for row in rows if len(row.runs) == 2)
    assert [row.model for row in rows] == [f"org/prm@{'a' * 7}"] * 2 + [f"org/prm@{'b' * 7}"]
    assert joined_row.kinds == ("steps", "best_of_n")
    f1_rows = {(r.subset, r.protocol, r.metric): r.value for r in runs["a" * 12].result.rows}
    for rule, key, average in (
        ("oracle", "step_sum/oracle", "avg[gsm8k,math,omnimath]"),
        ("calibrated", "step_sum/calibrated:gsm8k", "avg[math,omnimath]"),
    ):
        assert joined_row.numbers[f"processbench F1, {rule}"] == f1_rows[average, key, "f1"]
    best_of_n_rows = {(r.subset, r.protocol, r.metric): r.value for r in runs["b" * 12].result.rows}
    sizes = sorted({int(m.partition("@")[2]) for *_, m in best_of_n_rows if m.startswith("gain@")})
    gains = {n: np.mean([best_of_n_rows[s, "prefix_mean/last", f"gain@{n}"] for s in ("easy", "hard")]) for n in sizes}
    assert joined_row.numbers[f"best-of-N gain @{sizes[-1]}"] == pytest.approx(gains[sizes[-1]])
    assert joined_row.numbers["best-of-N gain mean"] == pytest.approx(np.mean(list(gains.values())))


def test_verdicts_and_scores_of_one_critic_are_two_rows(tmp_path: Path) -> None:
    facts = {"backend": "critic", "model": "org/chat", "revision": "a" * 40}
    write(tmp_path, scores_of(traces()), run_id="a" * 12, benchmark="processbench", **facts)
    verdict_scores = [replace(t, values=(), verdicts=() if t.unscored else (t.label,)) for t in scores_of(traces())]
    write(tmp_path, verdict_scores, run_id="b" * 12, benchmark="processbench", kind="verdict", **facts)
    probabilities = [
        replace(t, values=tuple(1 / (1 + np.exp(-v)) for v in t.values)) for t in task_scores(completions())
    ]
    write_task(tmp_path, "best_of_n", probabilities, run_id="c" * 12, **facts | {"kind": "prob"})
    rows = checkpoints(list(read_runs(tmp_path)))
    assert sorted(tuple(sorted(run.result.manifest.run_id[0] for run in row.runs)) for row in rows) == [
        ("a", "c"),
        ("b",),
    ]


def test_of_two_runs_of_a_benchmark_the_larger_counts(tmp_path: Path) -> None:
    _write_other_model(tmp_path)
    small = scores_of(traces(8), "logratio", 9)
    facts = {"kind": "logratio", "backend": "implicit", "model": "org/prm", "revision": "a" * 40}
    write(tmp_path, small, run_id="0" * 12, benchmark="processbench", **facts)
    (row,) = checkpoints(list(read_runs(tmp_path)))
    assert sorted(run.result.manifest.run_id for run in row.runs) == ["a" * 12, "b" * 12]


def test_headlines_of_other_tasks_are_the_widest_and_honest(tmp_path: Path) -> None:
    _write_other_model(tmp_path)
    facts = {"kind": "logratio", "backend": "implicit", "model": "org/prm", "revision": "a" * 40}

    def row(subset: str, protocol: str, metric: str, value: float | None) -> MetricRow:
        return MetricRow(subset, protocol, metric, value, None, None, 1, 0)

    subsets = {
        ("validity", "prmscore"): ("micro[a,b]", "a"),
        ("format_shift", "f1_drop"): ("avg[math+headers,math+split]", "math+headers"),
    }
    for i, ((task, metric), (wide, narrow)) in enumerate(subsets.items()):
        rows = [
            *(row(wide, f"{read}/{rule}", metric, v) for read, rule, v in READINGS),
            row(narrow, "step_sum/calibrated:gsm8k", metric, 0.9),
        ]
        scores = [replace(t, step_labels=(1.0,) * t.steps) for t in scores_of(traces(4), "logratio")]
        write(tmp_path, scores, rows, task, task=task, run_id=str(i), benchmark=task, **facts)
    (checkpoint,) = checkpoints(list(read_runs(tmp_path)))
    assert checkpoint.numbers["PRMScore"] == checkpoint.numbers["F1 lost in other formats"] == 0.3
    assert checkpoint.kinds == ("steps", "validity", "format_shift", "best_of_n")
    path = tmp_path / "validity" / "0.json"
    oracle_only = json.loads(path.read_text())
    oracle_only["rows"] = [row for row in oracle_only["rows"] if "oracle" in row["protocol"]]
    path.write_text(json.dumps(oracle_only))
    (checkpoint,) = checkpoints(list(read_runs(tmp_path)))
    assert "PRMScore" not in checkpoint.numbers  # an upper bound does not represent a run


READINGS = (
    ("step_sum", "oracle", 0.8),
    ("prefix_sum", "calibrated:gsm8k", 0.7),
    ("step_sum", "calibrated:gsm8k", 0.3),
    ("step_sum", "fixed:0", 0.2),
)


@pytest.mark.parametrize("subsets", [("math", "math+split"), ("avg[a,b]", "avg[a+split,b+split]")])
def test_the_original_format_does_not_count_as_another_format(tmp_path: Path, subsets: tuple[str, str]) -> None:
    """In a run of one rendering, the plain traces, whose drop is 0, are as wide a subset as the rendered ones."""
    _write_other_model(tmp_path)
    facts = {"kind": "logratio", "backend": "implicit", "model": "org/prm", "revision": "a" * 40}
    facts |= {"task": "format_shift", "benchmark": "format_shift"}
    drops = zip(subsets, (0.0, 0.2), strict=True)
    rows = [MetricRow(s, "step_sum/fixed:0", "f1_drop", v, None, None, 1, 0) for s, v in drops]
    write(tmp_path, scores_of(traces(4), "logratio"), rows, "shift", run_id="f", **facts)
    (checkpoint,) = checkpoints(list(read_runs(tmp_path)))
    assert checkpoint.numbers["F1 lost in other formats"] == 0.2


def test_rl_of_other_models_is_joined_by_the_hash_of_the_reward_model(tmp_path: Path) -> None:
    _write_other_model(tmp_path, weights="w" * 64)
    config = {"validated_at": [0, 5, 10], "samples": 8, "arm": "distrl_ipvrm", "rm_weights": "w" * 64}
    manifest = {"backend": "policy", "kind": "outcome", "task": "distrl", "benchmark": "school"}
    manifest |= {"series": ("truncated",)}
    write(tmp_path, problems((0.5, 0.5, 0.6)), run_id="r" * 12, folder="rl", config=config, **manifest)
    (row,) = checkpoints(list(read_runs(tmp_path)))
    assert row.numbers["RL gain"] == pytest.approx(0.1)


# --- the sheet ----------------------------------------------------------------------------------------------------

LEVELS = {
    "ipvrm": (0.9, 0.8, 0.85, 0.7, 0.75, 0.8, 0.9),
    "ipvrm_paper": (0.7, 0.6, 0.6, 0.5, 0.6, 0.55, 0.6),
    "q_rm": (0.2, 0.3, 0.25, 0.2, 0.3, 0.2, 0.25),
    "dpo_rm_shuffled": (0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
}


def _study(root: Path) -> list[Run]:
    write_study(root, LEVELS, TASKS)
    for method in LEVELS:
        for seed in range(7):
            _set_policy(root, method, seed, f"p{seed}")
    for seed in range(3):
        for arm, last in (("distrl_ipvrm", 0.8), ("distrl_ipvrm_paper", 0.7 - 0.1 * seed), ("grpo", 0.6)):
            rm = arm.removeprefix("distrl_") if arm != "grpo" else ""
            _write_rl_run(root, arm, (0.5, 0.5, last), (seed, 0), weights=f"p{seed}", rm_model=rm)
    return list(read_runs(root))


def test_correlations_name_their_checkpoints_seeds_and_answers(tmp_path: Path) -> None:
    """All numbers of the made-up runs rise with the level, so every rank correlation is 1, ECE's too: it is worse."""
    rows = checkpoints(_study(tmp_path))
    assert outcomes(rows) == ("best-of-N gain @4", "best-of-N gain mean", "RL gain", "over GRPO")
    first, pearson, everything = grids(rows)[:3]
    lines = {line[:2]: line[2:] for group in texts(first) for line in group}
    with_all = {line[:2]: line[2:] for group in texts(everything) for line in group}
    one = "+1.00 [+1.00, +1.00]"
    assert lines["F1 onpolicy", "best-of-N gain @4"][:2] == ("14", "7")
    assert lines["AUC", "best-of-N gain @4"][3:] == (one, one, "yes, yes, yes", "0 of 0")
    assert with_all["ECE", "best-of-N gain @4"][3:] == (one, one, "no, no, no", "7 of 7")
    assert with_all["AUC", "best-of-N gain @4"][3:] == (one, one, "yes, yes, yes", "7 of 7")
    assert lines["F1 onpolicy", "RL gain"][:2] == ("6", "3")
    assert lines["F1 onpolicy", "RL gain"][-2] == "too few seeds"
    assert "[" not in "".join(lines["F1 onpolicy", "RL gain"])
    assert first.notes
    assert "with fewer than 6" in first.notes[0]
    assert {line[2] for group in texts(everything) for line in group} == {"28", "6"}
    assert everything.title.endswith("with recipes that did not learn")
    assert "Without q_rm, dpo_rm_shuffled, which did not learn" in first.caption
    assert "Pearson" in pearson.title
    oracle = [group for group in texts(first) if any("oracle" in line[0] for line in group)]
    assert all("oracle" in line[0] for group in oracle for line in group)


def test_rows_are_shown_apart_by_constants_and_data(tmp_path: Path) -> None:
    shown = {grid.title: grid for grid in grids(checkpoints(_study(tmp_path))) if "heckpoints" in grid.title}
    models = {title: {line[0] for group in texts(grid) for line in group} for title, grid in shown.items()}
    assert list(models.values()) == [{"ipvrm", "q_rm"}, {"ipvrm_paper"}, {"dpo_rm_shuffled"}]
    grid = shown["Checkpoints of the miniature"]
    line = dict(zip(grid.header, texts(grid)[0][1], strict=True))
    assert (line["Model"], line["Panel"], line["Seed"]) == ("ipvrm", "plain", "1")
    assert (line["F1 onpolicy"], line["RL gain"], line["over GRPO"]) == ("82.0", "+30.0", "+20.0")
    assert [note.partition(":")[0] for note in grid.notes] == ["– in RL gain", "No GiB"]
    assert shown["Checkpoints of the miniature, other training data"].notes[0].startswith("No RL gain: ")
    assert all(len(row) == len(g.header) for g in shown.values() for group in texts(g) for row in group)


@pytest.mark.slow
def test_files_do_not_depend_on_the_order_of_runs(tmp_path: Path) -> None:
    runs = _study(tmp_path)
    (once,), (again,) = joined(runs), joined(runs[::-1])
    assert (once.csv, once.json, once.tables) == (again.csv, again.json, again.tables)
    assert [f.svg for f in once.figures] == [f.svg for f in again.figures]
    lines = list(csv.DictReader(io.StringIO(once.csv)))
    assert len(lines) == 28
    assert lines[0]["runs"].split() == ["ipvrm-0-best_of_n", "ipvrm-0-calibration", "ipvrm-0-steps"]
    correlations = json.loads(once.json)["correlations"]
    rl_gain = [t for t in correlations if (t["predictor"], t["outcome"]) == ("F1 onpolicy", "RL gain")]
    assert {(t["coefficient"], t["within"], t["seeds"], t["value"][1]) for t in rl_gain} == {
        (how, within, 3, None) for how in ("spearman", "pearson") for within in ("pooled", "world", "method")
    }


@pytest.mark.slow
def test_report_writes_and_checks_the_joined_table(tmp_path: Path) -> None:
    _study(tmp_path / "results")
    out = tmp_path / "out"
    with rows_taken_as_they_are():
        report(tmp_path / "results", out, sections=SECTIONS, formats=("csv", "tex", "json"))
    names = {"joined.md", "joined.csv", "joined.json", "joined.tex", "figures/joined-f1-gain.svg"}
    assert names <= {str(p.relative_to(out)) for p in out.rglob("*")}
    assert "| [joined](joined.md) |" in (out / "README.md").read_text()
    assert "Does F1 predict downstream gain?" in (out / "report.html").read_text()
    with rows_taken_as_they_are():
        assert report(tmp_path / "results", out, sections=SECTIONS, check=True) == CLEAN
        shutil.rmtree(tmp_path / "results" / "miniature_rl-distrl_ipvrm")
        changed = report(tmp_path / "results", out, sections=SECTIONS, check=True).changed
    assert {f"{out / name}: would change" for name in ("joined.md", "figures/joined-f1-gain.svg")} <= set(changed)


def test_no_sheet_without_two_kinds_of_runs(tmp_path: Path) -> None:
    write_study(tmp_path, {"ipvrm": (0.6,), "dpo_rm": (0.5,)}, ("steps",))
    assert joined(list(read_runs(tmp_path))) == ()
    assert joined([]) == ()


def test_an_empty_cell_is_empty_in_csv(tmp_path: Path) -> None:
    rows = checkpoints(_study(tmp_path))
    lines = {(r["model"], r["seed"]): r for r in csv.DictReader(io.StringIO(joined_csv(rows)))}
    assert lines["q_rm", "0"]["RL gain"] == ""
    assert lines["ipvrm", "0"]["RL gain"] == "0.300000"


# --- reliability and components ---------------------------------------------------------------------------------------


def test_the_joined_sheet_says_how_reliable_gains_are_and_where_they_vary(tmp_path: Path) -> None:
    """Two methods, three worlds, three RL seeds; with the first RL seed alone nothing is known."""
    write_study(tmp_path, {"ipvrm": (0.6, 0.7, 0.65), "dpo_rm": (0.5, 0.5, 0.4)}, ("steps",))
    for world in range(3):
        for i, method in enumerate(("ipvrm", "dpo_rm")):
            _set_policy(tmp_path, method, world, f"p{world}")
            for rl in range(3):
                level = 0.6 + 0.05 * i + 0.02 * world + 0.004 * ((rl + i + world) % 3)
                _write_rl_run(tmp_path, f"distrl_{method}", [0.5, 0.5, level], (world, rl), weights=f"p{world}")
    runs = list(read_runs(tmp_path))
    rows = checkpoints(runs)
    assert {tuple(row.gains) for row in rows} == {("RL gain",)}
    assert all(sorted(row.gains["RL gain"]) == [0, 1, 2] for row in rows)
    shown = {grid.label: grid for grid in grids(rows)}
    components = {line[0]: line for line in texts(shown["joined-components-rl-gain"])[0]}
    assert components["method"][1] == "2"
    assert "2 reward models (methods) x 3 worlds x 3 RL seeds" in shown["joined-components-rl-gain"].caption
    single = [run for run in runs if run.result.manifest.config.get("rl_seed", 0) == 0]
    alone = {grid.label: grid for grid in grids(checkpoints(single))}["joined-components-rl-gain"]
    (line,) = texts(alone)[0]
    assert line[0].startswith("No components: 2 methods, 3 worlds, 1 RL seeds")
    assert line[-1].startswith("One RL seed: reliability unknown")
