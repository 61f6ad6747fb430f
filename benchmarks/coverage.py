"""Coverage of the intervals and type-I error of the tests, measured on data whose truth is known.

    python benchmarks/coverage.py --out coverage.jsonl      # continues where it was stopped, and prints the tables

A model's step scores are normal, lower on the first wrong step, with a shift of their own for every trace. Samples of
such traces go through the same functions as every run (`tasks.judge`, `tasks.compare`); the truth comes from 60,000
further traces. Two models under the null hypothesis have the same distribution and share half of their noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prmbench import tasks
from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace
from prmbench.metrics import first_error
from prmbench.metrics.first_error import Sample

Floats = NDArray[np.float64]
SUBSETS = ("tune", "a", "b")
"""Thresholds of `calibrated` come from the first."""
RULES = ("fixed", "calibrated", "cross_validated", "oracle")
SIZES = (30, 90, 400, 1000)
"""Traces in each subset."""
SEPARATIONS = (0.0, 1.5, 3.0)
"""Distance of wrong steps in standard deviations: F1 of about 19, 50 and 79 under the best threshold."""
TESTED_SIZES = (30, 90, 1000)
GAIN = 0.5
"""The second model's further separation where there is a difference to find."""
POPULATION = 60_000
POLICIES = (("avg@8", 15, 8), ("pass@8", 15, 8), ("avg@32", 30, 32), ("avg@8", 90, 8))
"""Metric, problems and completions; success rates of problems are drawn from a Beta(0.6, 0.9) distribution."""


# --- data ---------------------------------------------------------------------------------------------------


def labels(n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws numbers of steps and first errors, [n] each, roughly as in ProcessBench's math: 59% wrong, early errors."""
    steps = np.clip(2 + rng.poisson(4.5, n), 2, 30)
    error = np.minimum(rng.geometric(0.3, n) - 1, steps - 1)
    return steps, np.where(rng.random(n) < 0.59, error, -1)


def scores(
    steps: NDArray[np.int64], label: NDArray[np.int64], separation: float, noise: Floats, rng: np.random.Generator
) -> Floats:
    """Returns step scores, [n, k], +inf behind the last step; `noise` is the standard normal noise of the steps."""
    values = noise + 0.5 * rng.standard_normal((len(steps), 1))
    position = np.arange(noise.shape[1])
    values = values - separation * (position == label[:, None])
    return np.where(position < steps[:, None], values, np.inf)


@lru_cache
def population(separation: float, seed: int = 0) -> tuple[Floats, Floats, float]:
    """Returns thresholds [p], the F1 of all traces under each, and the best threshold."""
    rng = np.random.default_rng(seed)
    steps, label = labels(POPULATION, rng)
    values = scores(steps, label, separation, rng.standard_normal((POPULATION, steps.max())), rng)
    data = Sample(*first_error.match_intervals(values, label), label >= 0, np.arange(POPULATION))
    best = float(first_error.best_threshold(data, np.ones((1, POPULATION)))[0])
    grid = np.concatenate([np.linspace(-9.0, 3.0, 800), [best]])
    grid.sort()
    judged = [data.matches(np.array([t]))[0].astype(float) for t in grid]
    f1 = [float(first_error.f1_at_rates(data, right, np.ones((1, POPULATION)))[0][0]) for right in judged]
    return grid, np.array(f1), best


@lru_cache
def expected_f1(separation: float, n: int) -> float:
    """Returns the mean F1 on all traces of thresholds that are tuned on n traces."""
    grid, f1, _ = population(separation)
    tuned = []
    for seed in range(300):
        rng = np.random.default_rng([1, seed])
        steps, label = labels(n, rng)
        values = scores(steps, label, separation, rng.standard_normal((n, steps.max())), rng)
        data = Sample(*first_error.match_intervals(values, label), label >= 0, np.arange(n))
        tuned.append(first_error.best_threshold(data, np.ones((1, n)))[0])
    return float(np.interp(tuned, grid, f1).mean())


def truth(rule: str, separation: float, n: int) -> float:
    """Returns what the interval of a rule's F1 is meant to contain."""
    grid, f1, best = population(separation)
    if rule in ("fixed", "oracle"):
        return float(np.interp(best, grid, f1))
    return expected_f1(separation, n if rule == "calibrated" else int(0.8 * n))


def manifest(separation: float, seed: int, replicates: int) -> RunManifest:
    """Returns the manifest of a run on three subsets of equal distribution."""
    return RunManifest(
        run_id="r", model="m", backend="b", kind="prob", input_format="none", boundary="exact", benchmark="coverage",
        benchmark_hash="h", subsets=SUBSETS, n=0, config={}, seed=seed, scores_sha256="", calibrate_on=SUBSETS[0],
        fixed=population(separation)[2], replicates=replicates, rules=RULES,
    )  # fmt: skip


def drawn_traces(n: int, separations: Sequence[float], rng: np.random.Generator) -> list[list[ScoredTrace]]:
    """Draws the traces of three subsets, scored by one model for each separation."""
    runs: list[list[ScoredTrace]] = [[] for _ in separations]
    for subset in SUBSETS:
        steps, label = labels(n, rng)
        while min((label < 0).sum(), (label >= 0).sum()) < 2:
            steps, label = labels(n, rng)
        shared = rng.standard_normal((n, steps.max()))
        for run, separation in zip(runs, separations, strict=True):
            noise = np.sqrt(0.5) * (shared + rng.standard_normal(shared.shape))
            values = scores(steps, label, separation, noise, rng)
            run += [
                ScoredTrace(f"{subset}{i:05}", subset, int(e), int(e < 0), f"{subset}{i:05}", int(k), tuple(v[:k]), ())
                for i, (k, e, v) in enumerate(zip(steps, label, values.tolist(), strict=True))
            ]
    return runs


# --- one data set -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the table."""

    kind: str
    """`interval`, `test` or `policy`."""
    n: int
    separation: float
    gain: float = 0.0
    metric: str = ""
    completions: int = 0

    @property
    def name(self) -> str:
        """Identifies the condition in the file of results."""
        return f"{self.kind}/{self.metric or f'{self.separation:g}+{self.gain:g}'}/{self.n}"


def conditions() -> list[Condition]:
    """Returns every condition, the quickest first."""
    policies = [Condition("policy", problems, 0.0, metric=m, completions=k) for m, problems, k in POLICIES]
    intervals = [Condition("interval", n, s) for n in SIZES for s in SEPARATIONS]
    tests = [Condition("test", n, SEPARATIONS[1], gain) for n in TESTED_SIZES for gain in (0.0, GAIN)]
    return [*policies, *intervals, *tests]


def observe(condition: Condition, number: int, replicates: int) -> dict[str, list[float]]:
    """Draws one data set and returns, for each number, its truth, value and interval (for a test also p)."""
    rng = np.random.default_rng([number, condition.n, int(10 * condition.separation), len(condition.kind)])
    if condition.kind == "policy":
        return _policy(condition, number, replicates, rng)
    if condition.kind == "interval":
        (run,) = drawn_traces(condition.n, [condition.separation], rng)
        rows = tasks.judge(manifest(condition.separation, number, replicates), run)
        return {
            f"{rule} {name}": [truth(rule, condition.separation, condition.n), *_numbers(row)]
            for rule in RULES
            for name, row in _f1_rows(rows, rule, "f1")
        }
    separations = condition.separation, condition.separation + condition.gain
    first, second = drawn_traces(condition.n, separations, rng)
    # `fixed` has each model's best threshold, which the native label of a model can be; both are swapped with it.
    pair = [
        (RunResult(replace(manifest(s, number, replicates), native=population(s)[2]), ()), run)
        for s, run in zip(separations, (first, second), strict=True)
    ]
    keys = ["as_is/native", *(f"as_is/{rule}{':tune' * (rule == 'calibrated')}" for rule in RULES[1:])]
    compared = tasks.compare(*pair, tasks.pairs(pair[0][0].manifest, pair[1][0].manifest, keys))
    observed = {}
    for rule in RULES:
        difference = truth(rule, separations[1], condition.n) - truth(rule, separations[0], condition.n)
        named = rule if rule != "fixed" else "native"
        ps = dict(_f1_rows(compared, named, "p_value"))
        for name, row in _f1_rows(compared, named, "f1_difference"):
            observed[f"{rule} {name}"] = [difference, *_numbers(row), ps[name].value or 0.0]
    return observed


def _f1_rows(rows: Sequence[MetricRow], rule: str, metric: str) -> Iterator[tuple[str, MetricRow]]:
    """The row of one subset that nothing is tuned on, and that of the average."""
    for row in rows:
        if row.metric == metric and row.protocol.startswith(f"as_is/{rule}") and "floor" not in row.protocol:
            if row.subset == SUBSETS[1]:
                yield "subset", row
            elif row.subset.startswith("avg["):
                yield "average", row


def _numbers(row: MetricRow) -> list[float]:
    return [np.nan if x is None else x for x in (row.value, row.lo, row.hi)]


def _policy(condition: Condition, number: int, replicates: int, rng: np.random.Generator) -> dict[str, list[float]]:
    k = condition.completions
    rates = rng.beta(0.6, 0.9, condition.n)
    outcomes = rng.random((condition.n, k)) < rates[:, None]
    traces = [
        ScoredTrace(f"{p:03}-{i:03}", "s", None, int(right), f"{p:03}", 0, (), ())
        for p, row in enumerate(outcomes)
        for i, right in enumerate(row)
    ]
    facts = replace(
        manifest(0.0, number, replicates), kind="outcome", task="policy", subsets=("s",), rules=(), fixed=None,
        config={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "group_size": k},
    )  # fmt: skip
    (row,) = [r for r in tasks.judge(facts, traces) if r.metric == condition.metric]
    many = np.random.default_rng(0).beta(0.6, 0.9, 10**6)
    right = many if condition.metric.startswith("avg") else 1 - (1 - many) ** k
    return {condition.metric: [float(right.mean()), *_numbers(row)]}


# --- the study ----------------------------------------------------------------------------------------------


def run(out: Path, data_sets: int, replicates: int, only: str = "") -> None:
    """Appends the observations of every condition to a file; those that are in it already are not made again."""
    done = {(line["condition"], line["number"]) for line in read(out)}
    if out.exists() and not out.read_bytes().endswith(b"\n"):
        with out.open("a", encoding="utf-8") as file:
            file.write("\n")  # ends a line that a kill has cut
    for condition in conditions():
        if only not in condition.name:
            continue
        for number in range(data_sets):
            if (condition.name, number) in done:
                continue
            line = {"condition": condition.name, "number": number, "numbers": observe(condition, number, replicates)}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        sys.stderr.write(f"{condition.name}: {data_sets} data sets\n")


def read(out: Path) -> list[dict[str, object]]:
    """Returns the observations in a file; a line that was cut by a kill is left out."""
    observations = []
    for line in out.read_text(encoding="utf-8").splitlines() if out.exists() else ():
        try:
            observations.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return observations


def summary(out: Path) -> list[dict[str, object]]:
    """Returns one line for each condition and number: how often the interval missed, and how often a test rejected."""
    by_number: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for line in read(out):
        for name, numbers in line["numbers"].items():  # type: ignore[attr-defined]
            by_number[str(line["condition"]), name].append(numbers)
    lines = []
    for (condition, name), rows in by_number.items():
        table = np.array([row for row in rows if np.isfinite(row).all()])
        if not len(table):
            continue
        true, value, lo, hi = table[:, :4].T
        line: dict[str, object] = {"condition": condition, "number": name, "data_sets": len(table)}
        shares = {"covered": (lo <= true) & (true <= hi), "too_high": lo > true, "too_low": hi < true}
        means = {"truth": true, "mean": value, "width": hi - lo, **shares}
        line |= {key: float(values.mean()) for key, values in means.items()}
        if table.shape[1] > 4:
            p, excludes = table[:, 4], (lo > 0) | (hi < 0)
            line |= {"rejected": float((p < 0.05).mean()), "contradictions": int((excludes != (p < 0.05)).sum())}
        lines.append(line)
    return lines


def markdown(out: Path) -> str:
    """Returns the tables for docs/coverage.md, in percent."""
    intervals = [["data", "number", "truth", "mean", "width", "covered", "too high", "too low", "data sets"]]
    tests = [["data", "number", "true difference", "rejected at 5%", "covered", "p against interval", "data sets"]]
    for line in summary(out):
        shown = {key: f"{100 * v:.1f}" if isinstance(v, float) else str(v) for key, v in line.items()}
        kind, what, n = shown["condition"].split("/")
        shown["data"] = f"{n} problems" if kind == "policy" else f"{n} traces, {what}"
        keys, table = ("data", "number", "truth", "mean", "width", "covered", "too_high", "too_low"), intervals
        if "rejected" in line:
            keys, table = ("data", "number", "truth", "rejected", "covered", "contradictions"), tests
        table.append([*(shown[key] for key in keys), shown["data_sets"]])
    return "\n".join(map(_table, (intervals, tests)))


def _table(rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", "---", *["---:"] * (len(rows[0]) - 2)]
    lines = [f"| {' | '.join(row)} |\n" for row in (rows[0], ruler)]
    # The comment tells the check of quoted numbers where they are from.
    lines += [f"| {' | '.join(row)} <!-- numbers: measured: benchmarks/coverage.py --> |\n" for row in rows[1:]]
    return "".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, or a part of it, and prints or writes its tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"), help="file of observations")
    parser.add_argument("--data-sets", type=int, default=1000, help="data sets of each condition")
    parser.add_argument("--replicates", type=int, default=400, help="bootstrap replicates and swaps of a run")
    parser.add_argument("--only", default="", help="conditions whose name contains this")
    options = parser.parse_args(arguments)
    run(options.out, options.data_sets, options.replicates, options.only)
    sys.stdout.write(markdown(options.out))


if __name__ == "__main__":
    main()
