"""Runs of several methods and seeds on the same worlds -> one value per method, question and seed.

Means and intervals are made of these in reward_model_tables.py, paired claims in reward_model_claims.py; nothing is
tested here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from prmbench.core.records import MetricRow, RunManifest
from prmbench.core.result_files import Run
from prmbench.tasks import find_task
from prmbench.tasks.wording import rule_and_readout

STUDY = "miniature"
"""The benchmark whose runs form a study: many seeds, one world each."""
PAPER = "_paper"
"""Ends the name of a method that was trained with the paper's own constants."""
METHODS = ("ipvrm", "ipvrm_early", "ipvrm_late", "ipvrm_m0", "implicit_prm", "dpo_rm", "q_rm")
SHIFTS = ("headers", "separators", "words", "merged", "verbose")
"""Subsets that hold the on-policy traces in another format."""
TUNING = "val"
PROCESS, PREFIX, PREFIX_MEAN = ("step_sum", "step_diff", "as_is"), ("prefix_sum", "as_is"), ("prefix_mean", "as_is")
"""What a method is read by: the first of these that it has; log-ratios first, then value heads, then probabilities."""
RECIPE = ("loss", "beta", "margin", "learning_rate", "updates")
"""What every recipe is shown by, where it has it."""
RULES_KEPT = ("calibrated", "oracle")
COLUMNS = ("task", "method", "seed", "run_id", "subset", "protocol", "rule", "readout", "metric", "value")

Key = tuple[str, str, str, str, str, str]
"""Task, method, readout, rule, metric, subset."""
BySeed = dict[int, float]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that tables and claims are made of."""

    runs: tuple[Run, ...]
    table: pd.DataFrame
    """COLUMNS: the numbers the study uses, one line each; sorted."""
    recipes: dict[str, dict[str, str]]
    """Method -> how it was trained; `varies` where its seeds differ."""
    values: dict[Key, BySeed]

    @property
    def methods(self) -> tuple[str, ...]:
        """In a fixed order: tuned before the paper's constants, known before others."""
        return tuple(sorted(self.recipes, key=_method_rank))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of any run."""
        return tuple(sorted({seed_of(run.result.manifest) for run in self.runs}))

    def subsets(self, task: str) -> tuple[str, ...]:
        """What a task is reported on: all its subsets but the one that thresholds are tuned on, if there are others."""
        found = {key[5] for key in self.values if key[0] == task}
        return tuple(sorted(found - {TUNING} or found, key=_subset_rank))

    def sizes(self) -> dict[str, str]:
        """Subset -> its number of labelled traces, over the seeds: `300`, or `296-300`."""
        found: dict[str, set[int]] = {}
        for run in self.runs:
            for row in run.result.rows if run.result.manifest.task == "steps" else ():
                if not row.subset.startswith("avg["):
                    found.setdefault(row.subset, set()).add(row.n)
        spans = {name: (min(found[name]), max(found[name])) for name in sorted(found, key=_subset_rank)}
        return {name: str(lo) if lo == hi else f"{lo}-{hi}" for name, (lo, hi) in spans.items()}

    def group_sizes(self) -> tuple[int, ...]:
        """The N of best-of-N that every method's runs have."""
        found: dict[str, set[int]] = {}
        for task, method, _, _, metric, _ in self.values:
            if task == "best_of_n" and metric.startswith("best_of@"):
                found.setdefault(method, set()).add(int(metric.partition("@")[2]))
        return tuple(sorted(set.intersection(*found.values()))) if found else ()

    def reads(self, task: str, method: str) -> tuple[str, ...]:
        """Readouts that the method has numbers for."""
        return tuple(sorted({key[2] for key in self.values if key[:2] == (task, method) and key[2]}))

    def chosen(self, task: str, method: str, wanted: Sequence[str]) -> str:
        """The first of the wanted readouts that the method has; empty when it has none."""
        have = self.reads(task, method)
        return next((name for name in wanted if name in have), "")

    def by_seed(self, task: str, method: str, how: tuple[str, str, str], subsets: Sequence[str]) -> BySeed:
        """Seed -> mean over the subsets of (readout, rule, metric); seeds that lack one of them are left out."""
        parts = [self.values.get((task, method, *how, subset), {}) for subset in subsets]
        if not parts:
            return {}
        seeds = set.intersection(*(set(part) for part in parts))
        return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds)}

    def f1(self, method: str, wanted: Sequence[str], subsets: Sequence[str], rule: str = "calibrated") -> BySeed:
        """First-error F1 under a threshold rule."""
        return self.by_seed("steps", method, (self.chosen("steps", method, wanted), rule, "f1"), subsets)

    def change(self, method: str, wanted: Sequence[str], rule: str = "calibrated") -> BySeed:
        """F1 on the shifted formats minus F1 on the same traces as sampled; below zero when shifts hurt."""
        shifted, plain = (self.f1(method, wanted, names, rule) for names in (SHIFTS, ("onpolicy",)))
        return {seed: shifted[seed] - plain[seed] for seed in shifted.keys() & plain.keys()}

    def best_of(self, method: str, metric: str = "best_of", sizes: Sequence[int] = ()) -> BySeed:
        """Accuracy of picking by the method's own sequence score, the mean over the N asked for (default: all)."""
        how = (self.chosen("best_of_n", method, own(method)), "last")
        names = self.subsets("best_of_n")
        wanted = sizes or self.group_sizes()
        parts = [self.by_seed("best_of_n", method, (*how, f"{metric}@{n}"), names) for n in wanted]
        seeds = set.intersection(*(set(part) for part in parts)) if parts else set()
        return {seed: fmean(part[seed] for part in parts) for seed in sorted(seeds)}


def own(method: str) -> tuple[str, ...]:
    """The readouts that are a method's own prefix value: the mean for IPVRM and Q-RM, as trained, else the sum."""
    return PREFIX_MEAN if method.startswith(("ipvrm", "q_rm")) else PREFIX


def study(runs: Sequence[Run]) -> Study:
    """Gathers the runs of a study; the order of the runs does not matter."""
    lines = [
        (m.task, m.model, seed_of(m), m.run_id, row.subset, row.protocol, *how, row.metric, row.value)
        for run in runs
        for m in [run.result.manifest]
        for row in run.result.rows
        for how in [rule_and_readout(row.protocol, find_task(m.task).has_threshold)]
        if _kept(m.task, row, how[0])
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
    """The world's seed, which pairs the methods."""
    given = manifest.config.get("seed")
    return given if isinstance(given, int) else manifest.seed


def _run_order(manifest: RunManifest) -> tuple[object, ...]:
    return _method_rank(manifest.model), seed_of(manifest), manifest.task, manifest.run_id


def _kept(task: str, row: MetricRow, rule: str) -> bool:
    """Readouts of `values` only; of best-of-N the last step's score, of F1 two threshold rules."""
    if row.subset.startswith(("avg[", "micro[")) or "." in row.protocol.split("/")[0]:
        return False
    if task == "steps":
        return row.metric == "f1" and (rule in RULES_KEPT or row.protocol == "floor/random")
    if task == "best_of_n":
        return rule in ("last", "floor")
    return task == "calibration" and not row.metric.startswith("reliability_")


def _recipes(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        m = run.result.manifest
        recipe = m.config.get("recipe")
        facts = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in _mapping(recipe).items()}
        known = found.setdefault(m.model, facts)
        for name in sorted({*known, *facts}):
            if known.get(name) != facts.get(name):
                known[name] = "varies"
    return found


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _method_rank(name: str) -> tuple[bool, int, str]:
    base = name.removesuffix(PAPER)
    return name.endswith(PAPER), METHODS.index(base) if base in METHODS else len(METHODS), name


def _subset_rank(name: str) -> tuple[int, str]:
    order = (TUNING, "onpolicy", "injected", *SHIFTS)
    return (order.index(name), "") if name in order else (len(order), name)
