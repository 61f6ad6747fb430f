"""Explains protocol keys and column headings in short sentences, which the page shows as tooltips.

docs/protocols.md has the long form. Unknown keys and headings have no explanation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from prmbench.tasks.blocks import underlying_subsets
from prmbench.tasks.wording import FLOORS

READOUTS = {
    "step_sum": "A step's score is the log-ratio summed over its own tokens.",
    "step_mean": "A step's score is the mean log-ratio of its own tokens.",
    "prefix_sum": "A step's score is the log-ratio summed over all tokens up to its end.",
    "prefix_mean": "A step's score is the mean log-ratio of all tokens up to its end.",
    "as_is": "A step's score is the value or probability that the model gives at the step.",
    "step_diff": "A step's score is the model's value there minus its value at the step before.",
    "vote": "A critic names the first wrong step; of several critiques the commonest answer counts.",
}
SERIES = {
    "decay": "Series decay: EndoRM's reward, with the value after each token discounted.",
    "logprob": "Series logprob: the plain log-probability from the same forward pass.",
    "full": "Series full: the good label's probability over the whole vocabulary.",
    "greedy": "Series greedy: 1 where the good label is the model's likeliest token, else 0.",
}
RULES = {
    "native": "The model's own label decides; nothing is tuned.",
    "fixed": "The threshold is {0}, given beforehand; nothing is tuned.",
    "calibrated": "The threshold is tuned on {0} and applied to the others; {0} itself is judged out of fold.",
    "calibrated_in_sample": "The threshold is tuned on {0} and applied to all, also to {0}: an upper bound there.",
    "cross_validated": "Five folds by problem: the threshold is tuned on four and judged on the fifth.",
    "ranking": "No threshold: how well the scores separate first errors from right steps.",
    "oracle": "The threshold is tuned on the very traces that are scored: an upper bound, reached by no one in use.",
    "last": "A completion's score is that of its last step.",
    "min": "A completion's score is the lowest of its steps.",
    "mean": "A completion's score is the mean of its steps.",
    "prod": "A completion's score is the product of its steps' probabilities.",
    "sum": "A completion's score is the sum of its steps.",
    "sigmoid": "The probability is the sigmoid of beta times the value.",
    "identity": "The model's own probability is taken as it is.",
    "platt": "The probability is Platt-scaled: fitted on one half of the problems, judged on the other.",
}
"""The part after the slash: a threshold rule, an aggregation of steps, or a way to get probabilities."""
BOUNDARIES = {
    "": "Read at exact token ends: no score depends on a later step.",
    "release": "Read where the published script reads, one or two tokens into the next step's heading.",
}
FLOOR_WORDS = {
    **{key: f"{words[0].upper()}{words[1:]}." for key, words in FLOORS.items()},
    "floor/random": "Chance: what random scores reach under the best threshold, or a random pick.",
    "floor/all_valid": "Every step is called valid.",
    "floor/majority": "The commonest answer wins; no model is asked.",
    "floor/pass": "The ceiling: right when any completion is.",
    "floor/constant": "Predicts the mean, whatever the prefix.",
    "floor/ranking": "Chance: every step has the same score.",
}
SCORED_BY_BOUNDARY = ("step_sum", "step_mean", "prefix_sum", "prefix_mean")
_SAMPLING_KEY = re.compile(r"sampled/t([^,]+),p([^,]+),n(\d+)(?:,k(\d+))?")
_TRAINING_KEY = re.compile(r"policy/(?:step:(\d+)|gain)")

COLUMNS = {
    "model": "The model, and its revision where one is known; under it the protocol of its scores.",
    "protocol": "How scores become verdicts: readout/rule.",
    "readout": "How what the model says becomes one number per step.",
    "input": "The text that the model reads, and where its scores are read.",
    "trained from": "What the model learned from: labels of steps, final answers only, or nothing.",
    "threshold": "The number that a step's score must fall below to count as wrong.",
    "min. difference": "The smallest gap to an equally noisy run that a test finds with power 0.80. Percent.",
    "unscored": "Traces without a usable score. They count as wrong.",
    "average": "Mean F1 over the subsets, each with the same weight.",
    "source": "Where the number was published.",
    "ece": "Expected calibration error: how far probabilities lie from what happens. Lower is better.",
    "ece if calibrated": "The ECE that a perfectly calibrated model with the same predictions would show.",
    "debiased rms": "Root-mean-square calibration error less what sampling noise adds; negative where noise prevails.",
    "brier": "Mean squared error of the probabilities. Lower is better.",
    "auc": "How often a prefix that ends well has a higher probability than one that does not.",
    "td against outcome": "Correlation of a step's change in value with what the solution comes to.",
    "before": "Accuracy of the start policy.",
    "after": "Accuracy of the trained policy.",
    "gain": "After minus before, paired over problems.",
    "cut before": "Share of completions that reached the length limit before training.",
    "cut after": "Share of completions that reached the length limit after training.",
    "overall": "PRMScore over the steps of all categories together: the mean of F1 on valid and F1 on invalid steps.",
    "f1, plain": "F1 on the traces as they are.",
    "all formats": "The mean over all formats but the plain one.",
}
_COLUMNS = (
    (r"best_of@(\d+)", "Accuracy of the completion that scores highest among {0}."),
    (r"weighted_vote@(\d+)", "Accuracy of the answer with the largest sum of scores among {0} completions."),
    (r"gain@(\d+)", "best_of@{0} minus the accuracy of a random completion."),
    (r"auc, quarter (\d)", "AUC over prefixes that end in quarter {0} of their solution."),
    (r"(.+) \(n=(\d+)\)", "{1} traces of {0}."),
)


def protocol(key: str) -> str:
    """Returns one sentence per line on readout, series, rule and boundary; empty for an unknown key."""
    if key in FLOOR_WORDS:
        return FLOOR_WORDS[key]
    sampled = _SAMPLING_KEY.fullmatch(key)
    if sampled:
        top_k = f", top-k {sampled[4]}" if sampled[4] else ""
        return f"{sampled[3]} completions a problem, drawn at temperature {sampled[1]}, top-p {sampled[2]}{top_k}."
    if key == "greedy":
        return "One completion a problem, the likeliest token each time."
    trained = _TRAINING_KEY.fullmatch(key)
    if trained:
        return f"The policy after {trained[1]} updates." if trained[1] else "Last validation minus first, paired."
    return _scored(key)


def _scored(key: str) -> str:
    body, _, boundary = key.partition("@")
    left, slash, right = body.partition("/")
    series, _, readout = left.rpartition(".")
    rule, _, argument = right.partition(":")
    if readout not in READOUTS or (slash and rule not in RULES) or boundary not in BOUNDARIES:
        return ""
    sentences = [READOUTS[readout]]
    if series:
        sentences.append(SERIES.get(series, f"Series {series}: another reading of the same forward pass."))
    if slash:
        sentences.append(RULES[rule].format(argument))
    if boundary or (slash and readout in SCORED_BY_BOUNDARY):
        sentences.append(BOUNDARIES[boundary])
    return "\n".join(sentences)


def column(heading: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns what a column holds, from COLUMNS or `more`; empty for headings that need no explanation."""
    lowered = heading.lower()
    if lowered in COLUMNS or lowered in more:
        return more.get(lowered) or COLUMNS[lowered]
    if "[" in lowered:
        return f"Mean over {', '.join(underlying_subsets(heading))}, each with the same weight."
    for pattern, text in _COLUMNS:
        match = re.fullmatch(pattern, lowered)
        if match:
            return text.format(*match.groups())
    return ""


def protocols(keys: Iterable[str]) -> dict[str, str]:
    """Returns the explanations of the keys that have one."""
    return {key: text for key in sorted(set(keys)) if (text := protocol(key))}


def columns(headings: Iterable[str], more: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Returns the explanations of the headings that have one."""
    return {heading: text for heading in sorted(set(headings)) if (text := column(heading, more))}
