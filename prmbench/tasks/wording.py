"""Display names for tables: threshold rules, floors of first-error F1, models, subsets and protocols."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prmbench.core.records import EvalProtocol, RunManifest
from prmbench.core.result_files import Run

RULES: dict[str, tuple[str, str]] = {
    "calibrated": (
        "Calibrated",
        "The threshold is tuned on one subset (named in the protocol) and applied to the others, which alone are "
        "averaged. The tuning subset's own cell is judged out of fold.",
    ),
    "cross_validated": (
        "Cross-validated",
        "Five folds by problem within each subset, tuned on four and judged on the fifth; the mean over ten splits.",
    ),
    "native": ("Native", "The model's own label: the verdict, or the label token it prefers. Nothing is tuned."),
    "fixed": ("Fixed", "A threshold given beforehand and named in the protocol. Nothing is tuned."),
    "calibrated_in_sample": (
        "Calibrated, in sample",
        "As calibrated, but the tuning subset is also judged by the threshold tuned on it: its cell is an upper "
        "bound. Shown because published tables do this.",
    ),
    "oracle": (
        "Oracle (upper bound)",
        "The threshold is tuned on the very traces that are scored. No model reaches this in use; never compare it "
        "with a number from another table.",
    ),
    "not stated": ("Threshold rule not stated", "The source does not say how the threshold was chosen."),
}
"""Threshold rules in table order, each with a title and an explanation."""
RANDOM_FLOORS = {
    "oracle": "floor/random",
    "calibrated_in_sample": "floor/random",
    "calibrated": "floor/random_calibrated",
    "cross_validated": "floor/random_cross_validated",
    "native": "floor/random_flags",
    "fixed": "floor/random_flags",
}
"""The floor of random scores under each threshold rule: they are tuned as a model's scores are."""
FLOORS: dict[str, str] = {
    "floor/random": "chance: random scores, best threshold",
    "floor/random_calibrated": "chance: random scores, tuned on another subset",
    "floor/random_cross_validated": "chance: random scores, cross-validated",
    "floor/random_flags": "chance: steps flagged at the best rate",
    "floor/position": "chance: commonest position only",
    "floor/outcome_oracle": "knows the final answer only",
}


def hidden_floors(protocols: Iterable[str], shown: Iterable[str]) -> set[str]:
    """Returns the floors of random scores that belong to no protocol that is shown.

    Args:
        protocols: All protocols of a run. Where none is a random floor of a certain rule, its floor is for all rules.
        shown: Protocols with a threshold rule.
    """
    random = set(RANDOM_FLOORS.values())
    if not (random - {RANDOM_FLOORS["oracle"]}) & set(protocols):
        return set()
    return random - {RANDOM_FLOORS.get(rule_and_readout(key)[0]) for key in shown if not key.startswith("floor/")}


def floors_under(rule: str) -> dict[str, str]:
    """Returns the floors that belong beside numbers under a threshold rule, with their descriptions."""
    others = set(RANDOM_FLOORS.values()) - {RANDOM_FLOORS.get(rule)}
    return {key: words for key, words in FLOORS.items() if key not in others}


SUBSET_ORDER = ("gsm8k", "math", "olympiadbench", "omnimath")


def rule_and_readout(key: str, has_threshold: bool = True) -> tuple[str, str]:
    """Splits a protocol key into its rule and its readout.

    `logprob.step_sum/calibrated:gsm8k` gives (`calibrated`, `logprob.step_sum`); floors have the rule `floor`. Keys of
    tasks without a threshold rule are split at the slash: `step_sum/last` gives (`last`, `step_sum`).
    """
    if key.startswith("floor/"):
        return "floor", ""
    if not has_threshold:
        readout, _, rule = key.partition("/")
        return rule, readout
    protocol = EvalProtocol.parse(key)
    return protocol.threshold, f"{protocol.series}." * bool(protocol.series) + protocol.readout


def subset_rank(name: str) -> tuple[int, str]:
    """Returns a sort key: ProcessBench's subsets in their published order, then others alphabetically."""
    return (SUBSET_ORDER.index(name), "") if name in SUBSET_ORDER else (len(SUBSET_ORDER), name)


def code_badge(manifest: RunManifest) -> str:
    """Returns why nobody else can run the code that scored a run; empty when it is a clean commit or a release."""
    if not manifest.commit:
        return "no commit recorded"
    if manifest.dirty is not False:
        return "uncommitted code" if manifest.dirty else "not known whether the code was committed"
    return ""


def badges(manifest: RunManifest) -> tuple[str, ...]:
    """Returns what makes a run a local one: its code (see `code_badge`), and data that no hub revision names."""
    data = "" if manifest.data_revision else f"local data: {manifest.data_source or 'of unknown source'}"
    return tuple(filter(None, (code_badge(manifest), data)))


def model_name(manifest: RunManifest) -> str:
    """Returns the run's own name, else `org/name@abc1234`, the model and its revision, shortened when it is a hash.

    A run of uncommitted code has its `code_badge` behind the name, in parentheses.
    """
    revision = manifest.revision
    if revision is not None and re.fullmatch("[0-9a-f]{7,}", revision):
        revision = revision[:7]
    name = manifest.model if revision is None else f"{manifest.model}@{revision}"
    name = manifest.name if manifest.name.strip() else name
    if badge := code_badge(manifest):
        name = f"{name} ({badge})"
    return " ".join(name.split()).replace("`", "'")  # a backtick would start Markdown code


def run_name(run: Run) -> str:
    """Returns what tables and figures call a run: its `model_name`, and what sets it apart from others of that name."""
    name = model_name(run.result.manifest)
    return f"{name} ({run.suffix})" if run.suffix else name


def usage(tokens: int, completion_tokens: int, answers: int, cost: float | None) -> str:
    """Returns what a critic's answers took: `24 answers, 1,234 prompt and 56 answer tokens, cost 0.0012`.

    Args:
        tokens: All tokens, prompts and answers.
        completion_tokens: Those of the answers.
        answers: Number of answers; 0 where it was not counted.
        cost: In the currency of the prices; None without prices.
    """
    parts = [f"{answers:,} answers"] if answers else []
    parts.append(f"{tokens - completion_tokens:,} prompt and {completion_tokens:,} answer tokens")
    parts.append("no price known" if cost is None else f"cost {cost:g}")
    return ", ".join(parts)


def members(column: str) -> tuple[str, ...]:
    """Returns the subsets that a column averages: (`a`, `b`) for `avg[a,b]`, and the subset itself otherwise."""
    return tuple(column[4:-1].split(",")) if column.startswith("avg[") else (column,)
