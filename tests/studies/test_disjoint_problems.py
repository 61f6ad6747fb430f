"""Measures on disjoint problems: equal to the tables' numbers on all problems, and no problem in both halves."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from prmbench.core.result_files import Run, read_stored, result_paths
from prmbench.data.rollouts import Rollout
from prmbench.metrics.first_error import Floats
from prmbench.studies.miniature import world
from prmbench.studies.reporting.checkpoint_correlation import Point, correlate_splits
from prmbench.studies.reporting.checkpoint_rows import checkpoints
from prmbench.studies.reporting.disjoint_problems import SPLITS, Measure, disjoint, measures

COMMITTED = Path("leaderboards/results/miniature")


def _runs(names: str) -> list[Run]:
    """Returns the committed runs of the methods on the world of seed 0."""
    archives = [COMMITTED / f"miniature-{task}.tar.xz" for task in ("steps", "best_of_n", "calibration")]
    paths = [
        path
        for archive in archives
        for path in result_paths(archive)
        if re.match(rf"({names})-[0-9a-f]{{12}}", path.name)
    ]
    return [run for run in map(read_stored, paths) if run.result.manifest.config["seed"] == 0]


@pytest.mark.slow
def test_measures_on_all_problems_are_the_numbers_of_the_tables() -> None:
    rows = checkpoints(_runs("ipvrm|implicit-prm|q-rm"))
    assert {row.model for row in rows} == {"ipvrm", "implicit_prm", "q_rm"}
    for row in rows:
        by_column = measures(row.runs, row.model)
        assert len(by_column) == 10
        for column, measure in by_column.items():
            (value,) = measure.values(np.ones((1, len(measure.problems))))
            assert value == pytest.approx(row.numbers[column], abs=1e-12), (row.model, column)


# --- halves ---------------------------------------------------------------------------------------------


def _counted(problems: list[str], seen: list[Floats]) -> Measure:
    def values(weights: Floats) -> Floats:
        seen.append(weights)
        return np.asarray(weights.sum(axis=1))

    return Measure(np.array(problems), values)


def test_no_shared_problem_is_in_both_halves() -> None:
    first, second = [f"test-0-{i}" for i in range(9)], [f"test-0-{i}" for i in range(4, 16)]
    seen: list[Floats] = []
    values = disjoint(_counted([*first, first[5]], seen), _counted(second, seen))
    assert values is not None
    x, y = seen
    assert x.shape == (SPLITS, 10)
    assert y.shape == (SPLITS, 12)
    np.testing.assert_array_equal(x[:, :4], 1)  # problems that only the first has
    np.testing.assert_array_equal(y[:, 5:], 1)  # problems that only the second has
    np.testing.assert_array_equal(x[:, 4:9] + y[:, :5], 1)
    np.testing.assert_array_equal(x[:, 9], x[:, 5])  # both items of a problem
    np.testing.assert_array_equal(x[:, 4:9].sum(axis=1), 2)  # half of five
    assert len({tuple(row) for row in x.tolist()}) > SPLITS // 3
    again: list[Floats] = []
    disjoint(_counted([*first, first[5]], again), _counted(second, again))
    np.testing.assert_array_equal(again[0], x)


def test_measures_without_a_shared_problem_are_not_split() -> None:
    assert disjoint(_counted(["test-0-1"], []), _counted(["test-1-1", "test-0-2"], [])) is None


def test_luck_with_shared_problems_makes_no_correlation_on_disjoint_ones() -> None:
    """Both measures are the mean of the same noise, so all problems give 1, and disjoint halves give about 0."""
    problems = np.array([f"test-0-{i}" for i in range(40)])
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        noise = rng.normal(size=40)
        measure = Measure(problems, lambda w, noise=noise: np.asarray(w @ noise / w.sum(axis=1)))  # type: ignore[misc]
        values = disjoint(measure, measure)
        assert values is not None
        rows.append([Point(float(a), float(b), i, f"world {i}", "m") for a, b in zip(*values, strict=True)])
    correlation = correlate_splits([[row[s] for row in rows] for s in range(SPLITS)], "pearson")
    assert correlation is not None
    assert abs(correlation.value) < 0.2
    assert correlation.lo is not None
    assert correlation.hi is not None
    assert correlation.lo < 0 < correlation.hi


def test_the_correlation_over_splits_is_the_mean_of_those_of_each() -> None:
    """1 in the first split and -1 in the second of three: the mean of 1, -1 and 1 is 1/3."""
    x, ys = [1.0, 2.0, 3.0], ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 4.0, 8.0])
    splits = [[Point(a, b, i, f"world {i}", "m") for i, (a, b) in enumerate(zip(x, y, strict=True))] for y in ys]
    correlation = correlate_splits(splits, "spearman")
    assert correlation is not None
    assert correlation.value == pytest.approx(1 / 3)


# --- worlds ---------------------------------------------------------------------------------------------


def test_best_of_n_leaves_out_problems_of_the_step_task_and_repeated_ones() -> None:
    prompts = ["used", "a", "b", "a", "c"]
    sampled = [Rollout(f"{i}/{k}", p, "text", group=f"g{i}") for i, p in enumerate(prompts) for k in range(2)]
    groups = world._groups_of_other_problems(sampled, {"used"})
    assert [[r.id for r in group] for group in groups] == [["1/0", "1/1"], ["2/0", "2/1"], ["4/0", "4/1"]]


# --- docs -----------------------------------------------------------------------------------------------


def test_the_docs_have_the_correlation_of_the_committed_table() -> None:
    table = Path("leaderboards/joined.md").read_text()
    if "within recipes" not in table:
        pytest.skip("leaderboards/joined.md is from before problems were split")
    line = next(line for line in table.splitlines() if line.startswith("| F1 onpolicy | best-of-N gain @8 |"))
    cells = [cell.strip() for cell in line.split("|")]
    text = " ".join(re.sub("<!--.*?-->", "", Path("docs/studies.md").read_text(), flags=re.DOTALL).split())
    assert f"Across the {cells[3]} checkpoints" in text
    assert f"the gain of best-of-8 is {cells[5]}, and {cells[7]} within recipes" in text
