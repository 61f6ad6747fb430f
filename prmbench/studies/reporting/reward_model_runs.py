"""Gathers the runs of the reward model study into one value per method, metric and seed.

reward_model_tables.py makes means and intervals from them, reward_model_claims.py paired tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from prmbench.core.records import MetricRow, RunManifest
from prmbench.core.result_files import Run
from prmbench.tasks import find_task
from prmbench.tasks.wording import RANDOM_FLOORS, rule_and_readout

BENCHMARK = "miniature"
"""The benchmark whose runs form the study: many seeds, one world each."""
PAPER_SUFFIX = "_paper"
"""Suffix of the names of methods that were trained with the paper's own constants."""
METHODS = (
    *("ipvrm", "ipvrm_early", "ipvrm_late", "ipvrm_m0"),
    *("implicit_prm", "implicit_prm_slow", "dpo_rm", "q_rm"),
)
SHIFTS = ("headers", "separators", "words", "merged", "verbose")
"""Subsets that hold the on-policy traces in another format."""
TUNING = "val"
PROCESS_READOUTS, PREFIX_READOUTS, PREFIX_MEAN_READOUTS = (
    ("step_sum", "step_diff", "as_is"),
    ("prefix_sum", "as_is"),
    ("prefix_mean", "as_is"),
)
"""Readouts of steps and of prefixes in order of preference: log-ratios, then value heads, then probabilities."""
RECIPE_FIELDS = ("loss", "beta", "margin", "learning_rate", "updates")
"""Options of a recipe that come first in its table."""
F1_RULES = ("calibrated", "oracle")
COLUMNS = ("task", "method", "seed", "run_id", "subset", "protocol", "rule", "readout", "metric", "value")

Key = tuple[str, str, str, str, str, str]
"""(task, method, readout, rule, metric, subset)."""
BySeed = dict[int, float]


@dataclass(frozen=True, slots=True)
class Study:
    """The runs of the study, and their values by method and seed."""

    runs: tuple[Run, ...]
    table: pd.DataFrame
    """The numbers that the study uses, one per row, with the columns COLUMNS; sorted."""
    recipes: dict[str, dict[str, str]]
    """Method -> option -> value; `varies` where its seeds differ."""
    values: dict[Key, BySeed]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in table order: tuned constants before the paper's, then as in METHODS."""
        return tuple(sorted(self.recipes, key=_method_rank))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all runs."""
        return tuple(sorted({seed_of(run.result.manifest) for run in self.runs}))

    def subsets(self, task: str) -> tuple[str, ...]:
        """Returns the subsets of a task in table order, without the tuning subset unless it is the only one."""
        names = {key[5] for key in self.values if key[0] == task}
        return tuple(sorted(names - {TUNING} or names, key=_subset_rank))

    def sizes(self) -> dict[str, str]:
        """Returns the number of labelled traces by subset, as a range over seeds: `300`, or `296-300`."""
        counts: dict[str, set[int]] = {}
        for run in self.runs:
            for row in run.result.rows if run.result.manifest.task == "steps" else ():
                if not row.subset.startswith("avg["):
                    counts.setdefault(row.subset, set()).add(row.n)
        ranges = {name: (min(counts[name]), max(counts[name])) for name in sorted(counts, key=_subset_rank)}
        return {name: str(lo) if lo == hi else f"{lo}-{hi}" for name, (lo, hi) in ranges.items()}

    def group_sizes(self) -> tuple[int, ...]:
        """Returns the N of best-of-N that all methods have."""
        sizes: dict[str, set[int]] = {}
        for task, method, _, _, metric, _ in self.values:
            if task == "best_of_n" and metric.startswith("best_of@"):
                sizes.setdefault(method, set()).add(int(metric.partition("@")[2]))
        return tuple(sorted(set.intersection(*sizes.values()))) if sizes else ()

    def reads(self, task: str, method: str) -> tuple[str, ...]:
        """Returns the readouts that the method has values for."""
        return tuple(sorted({key[2] for key in self.values if key[:2] == (task, method) and key[2]}))

    def first_readout(self, task: str, method: str, readouts: Sequence[str]) -> str:
        """Returns the first of the readouts that the method has; empty when it has none."""
        available = self.reads(task, method)
        return next((name for name in readouts if name in available), "")

    def by_seed(self, task: str, method: str, how: tuple[str, str, str], subsets: Sequence[str]) -> BySeed:
        """Returns, by seed, the mean over the subsets of one (readout, rule, metric).

        Seeds without a value for every subset are left out.
        """
        parts = [self.values.get((task, method, *how, subset), {}) for subset in subsets]
        if not parts:
            return {}
        seeds = set.intersection(*(set(part) for part in parts))
        return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds)}

    def f1(self, method: str, readouts: Sequence[str], subsets: Sequence[str], rule: str = "calibrated") -> BySeed:
        """Returns first-error F1 by seed under a threshold rule."""
        return self.by_seed("steps", method, (self.first_readout("steps", method, readouts), rule, "f1"), subsets)

    def change(self, method: str, readouts: Sequence[str], rule: str = "calibrated") -> BySeed:
        """Returns F1 on the shifted formats minus F1 on the traces as sampled, by seed; negative when shifts hurt."""
        shifted, plain = (self.f1(method, readouts, names, rule) for names in (SHIFTS, ("onpolicy",)))
        return {seed: shifted[seed] - plain[seed] for seed in shifted.keys() & plain.keys()}

    def best_of(self, method: str, metric: str = "best_of", sizes: Sequence[int] = ()) -> BySeed:
        """Returns best-of-N accuracy by the method's own score, by seed: the mean over `sizes` (default: all N)."""
        how = (self.first_readout("best_of_n", method, own_readouts(method)), "last")
        names = self.subsets("best_of_n")
        sizes = sizes or self.group_sizes()
        parts = [self.by_seed("best_of_n", method, (*how, f"{metric}@{n}"), names) for n in sizes]
        seeds = set.intersection(*(set(part) for part in parts)) if parts else set()
        return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds)}


def own_readouts(method: str) -> tuple[str, ...]:
    """Returns the readouts of a method's own prefix value: the mean for IPVRM and Q-RM, as trained, else the sum."""
    return PREFIX_MEAN_READOUTS if method.startswith(("ipvrm", "q_rm")) else PREFIX_READOUTS


def gather_study(runs: Sequence[Run]) -> Study:
    """Gathers the runs of a study, in any order."""
    lines = [
        (m.task, m.model, seed_of(m), m.run_id, row.subset, row.protocol, *how, row.metric, row.value)
        for run in runs
        for m in [run.result.manifest]
        for row in run.result.rows
        for how in [rule_and_readout(row.protocol, find_task(m.task).has_threshold)]
        if _is_used(m.task, row, how[0])
    ]
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    order = ["task", "method", "seed", "protocol", "subset", "metric"]
    table = table.sort_values(order, kind="stable", ignore_index=True)
    values: dict[Key, BySeed] = {}
    for task, method, seed, _, subset, protocol, rule, readout, metric, value in lines:
        if value is not None:
            name = protocol if rule == "floor" else readout
            values.setdefault((task, method, name, rule, metric, subset), {})[seed] = value
    ordered = sorted(runs, key=lambda run: _run_order(run.result.manifest))
    return Study(tuple(ordered), table, _recipes(ordered), values)


def seed_of(manifest: RunManifest) -> int:
    """Returns the seed of the run's world; methods are paired by it."""
    world_seed = manifest.config.get("seed")
    return world_seed if isinstance(world_seed, int) else manifest.seed


def _run_order(manifest: RunManifest) -> tuple[object, ...]:
    return _method_rank(manifest.model), seed_of(manifest), manifest.task, manifest.run_id


def chance(rule: str = "calibrated") -> tuple[str, str, str]:
    """Returns the key, as `Study.by_seed` takes it, of the F1 of random scores under a threshold rule."""
    return RANDOM_FLOORS[rule], "floor", "f1"


def _is_used(task: str, row: MetricRow, rule: str) -> bool:
    """Whether the study uses a row: one subset, the main series, and of each task the rules that its tables show."""
    if row.subset.startswith(("avg[", "micro[")) or "." in row.protocol.split("/")[0]:
        return False
    if task == "steps":
        return row.metric == "f1" and (rule in F1_RULES or row.protocol in RANDOM_FLOORS.values())
    if task == "best_of_n":
        return rule in ("last", "floor")
    return task == "calibration" and not row.metric.startswith("reliability_")


def _recipes(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Returns the options of every method as text; `varies` where runs differ."""
    recipes: dict[str, dict[str, str]] = {}
    for run in runs:
        m = run.result.manifest
        recipe = m.config.get("recipe")
        options = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in _mapping(recipe).items()}
        common = recipes.setdefault(m.model, options)
        for name in sorted({*common, *options}):
            if common.get(name) != options.get(name):
                common[name] = "varies"
    return recipes


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _method_rank(name: str) -> tuple[bool, int, str]:
    base = name.removesuffix(PAPER_SUFFIX)
    return name.endswith(PAPER_SUFFIX), METHODS.index(base) if base in METHODS else len(METHODS), name


def _subset_rank(name: str) -> tuple[int, str]:
    order = (TUNING, "onpolicy", "injected", *SHIFTS)
    return (order.index(name), "") if name in order else (len(order), name)
