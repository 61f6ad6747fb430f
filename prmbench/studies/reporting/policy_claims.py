"""The paper's claims about RL, asked of a study's runs: estimates, and yes, no or unclear.

A question says between which bounds a difference must lie; which numbers are compared is all that differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from prmbench.report.stats import holm
from prmbench.studies.reporting.nested_seeds import WHOLE, Estimate, Runs, difference, estimate, whole
from prmbench.studies.reporting.policy_runs import BASE, RLStudy, early, late
from prmbench.tasks.table import FRACTION, PERCENT, POINTS, Unit

IPVRM, NAIVE, FROZEN = "distrl_ipvrm", "distrl_naive", "distrl_frozen"
METHODS = ("ipvrm", "implicit_prm", "dpo_rm")
ALIKE = 0.02
"""A change of accuracy smaller than this counts as none."""
MOST_TIME, MOST_MEMORY = 0.05, 0.03
"""Overhead that counts as none."""
MOST_MASS = 0.9
"""Of the old policy's probability, that candidates are taken to cover."""
WORDS: dict[str, str] = {
    "T5": "DistRL with IPVRM trains a better policy than GRPO, with or without IPVRM, PRIME, SPRO and Q-RM",
    "T6": "the candidate branch helps with every reward model, and IPVRM helps more than other reward models",
    "T7": "DistRL reaches a higher reward-model score and more right rollouts in training than GRPO",
    "T8": "updating the reward model online with ADB and DLW beats leaving one, both or the update out",
    "T9": "the behaviour policy is a better reference than the SFT model",
    "T11": "few candidates cover nearly all the probability, and the policy does not depend on P_min",
    "T13": f"DistRL costs GRPO's time (within {MOST_TIME:.0%}) and memory (within {MOST_MEMORY:.0%})",
    "Fig. 6": "the reward model's accuracy on fresh rollouts falls when frozen or updated plainly, and holds otherwise",
    "control": "not the paper's: DistRL beats GRPO with the reward model's rollouts, and the reward model as a policy",
    "shuffled": "not the paper's: trained on shuffled outcomes, step F1 falls to the level of random scores",
    "marker": "not the paper's: a late marker lowers step F1 only where it tells the outcome, and IPVRM's least",
}
"""The paper's tables and what each is taken to claim."""


@dataclass(frozen=True, slots=True)
class Question:
    """A difference, and between which bounds it lies if the claim holds."""

    source: str
    panel: str
    comparison: str
    where: str
    runs: Runs
    low: float = 0.0
    high: float = math.inf
    unit: Unit = POINTS
    """Of its numbers: POINTS for a difference of shares, PERCENT for a share, FRACTION for what is none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answered question; `found` is in the unit of the question."""

    source: str
    panel: str
    comparison: str
    where: str
    unit: Unit
    bounds: str
    found: Estimate
    verdict: str
    """yes: the interval lies within the bounds; no: outside; unclear: neither, or there is but one run."""
    tested: bool
    """Whether p, which is against 0, is about the bounds."""
    holm: float | None = None
    """p, adjusted for the tested comparisons of the same source and panel."""


def answers(study: RLStudy, more: Sequence[Question] = ()) -> list[Answer]:
    """Every comparison that the runs allow, by source; those without a common run are left out."""
    asked = [q for panel in study.panels for q in _questions(study, panel)] + list(more)
    made = [answer for q in asked if (answer := _answer(q)) is not None]
    found: list[Answer] = []
    for source in WORDS:
        for panel in dict.fromkeys(a.panel for a in made):
            found += _adjusted([a for a in made if (a.source, a.panel) == (source, panel)])
    return found


def against_base(study: RLStudy, panel: str) -> dict[str, tuple[Estimate, float | None]]:
    """Arm -> last accuracy minus GRPO's, and its p after Holm over all arms of the panel."""
    base = study.accuracy(panel, BASE, -1)
    others = [arm for arm in study.arms(panel) if arm != BASE]
    found = {arm: estimate(difference(after(study, panel, arm, base), base)) for arm in others}
    known = {arm: e for arm, e in found.items() if e is not None}
    tested = {arm: e.p for arm, e in known.items() if e.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {arm: (e, adjusted.get(arm)) for arm, e in known.items()}


def after(study: RLStudy, panel: str, arm: str, base: Runs) -> Runs:
    """Last accuracies; an arm without training (one validation) stands for every RL seed of its SFT seed.

    Where such an arm was validated under several RL seeds, which draw other completions, a problem's number is their
    mean.
    """
    runs = study.of(panel, arm)
    last = study.accuracy(panel, arm, -1)
    if any(len(t.steps) > 1 for t in runs):
        return last
    by_sft: dict[int, dict[str, list[float]]] = {}
    for (sft, _), values in last.items():
        for problem, value in values.items():
            by_sft.setdefault(sft, {}).setdefault(problem, []).append(value)
    means = {sft: {problem: fmean(values) for problem, values in found.items()} for sft, found in by_sft.items()}
    return {seeds: means[seeds[0]] for seeds in base if seeds[0] in means}


def _answer(question: Question) -> Answer | None:
    found = estimate(question.runs)
    if found is None:
        return None
    verdict, (low, high) = "unclear", (question.low, question.high)
    if found.lo is not None and found.hi is not None and found.runs > 1:
        inside, outside = low < found.lo and found.hi < high, found.hi < low or found.lo > high
        verdict = "yes" if inside else "no" if outside else "unclear"
    bounds = _bounds(low, high, question.unit)
    tested = (low, high) == (0.0, math.inf)
    return Answer(
        source=question.source,
        panel=question.panel,
        comparison=question.comparison,
        where=question.where,
        unit=question.unit,
        bounds=bounds,
        found=found,
        verdict=verdict,
        tested=tested,
    )


def _bounds(low: float, high: float, unit: Unit) -> str:
    """`above 0`, `below 5`, `-2 to 2`; in percent where the difference is."""
    low, high = (v if math.isinf(v) or unit == FRACTION else 100 * v for v in (low, high))
    if math.isinf(high):
        return f"above {low:g}"
    return f"below {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def _adjusted(family: list[Answer]) -> list[Answer]:
    known = [a for a in family if a.tested and a.found.p is not None]
    adjusted = iter(holm([a.found.p or 0.0 for a in known]))
    return [replace(a, holm=next(adjusted)) if a.tested and a.found.p is not None else a for a in family]


# --- what the paper's tables say ------------------------------------------------------------------------------


def _questions(study: RLStudy, panel: str) -> Iterator[Question]:
    for rival in ("grpo", "grpo_ipvrm", "prime", "spro", "reinforce_q_rm"):
        yield _better(study, panel, "T5", IPVRM, rival)
    for method in METHODS:
        yield _better(study, panel, "T6", f"distrl_{method}", f"grpo_{method}")
    for kind in ("distrl", "grpo"):
        for rival in METHODS[1:]:
            yield _better(study, panel, "T6", f"{kind}_{METHODS[0]}", f"{kind}_{rival}")
    yield _monitor(study, panel, "T7", (IPVRM, "grpo_ipvrm"), "rm_score", "score per step, mean over training")
    yield _monitor(study, panel, "T7", (IPVRM, "grpo_ipvrm"), "accuracy", "right rollouts, mean over training")
    yield _monitor(study, panel, "T7", (IPVRM, BASE), "accuracy", "right rollouts, mean over training")
    for rival in (NAIVE, FROZEN, "distrl_dlw", "distrl_adb"):
        yield _better(study, panel, "T8", IPVRM, rival)
    yield _better(study, panel, "T9", IPVRM, "distrl_sft")
    yield from _candidates(study, panel)
    yield from _costs(study, panel)
    yield from _collapse(study, panel)
    for rival in ("grpo_extra", "rm_as_policy_ipvrm"):
        yield _better(study, panel, "control", IPVRM, rival)
    yield _better(study, panel, "control", "distrl_implicit_prm", "rm_as_policy_implicit_prm")


def _better(study: RLStudy, panel: str, source: str, first: str, second: str) -> Question:
    base = study.accuracy(panel, first, -1)
    runs = difference(base, after(study, panel, second, base))
    return Question(source, panel, f"{first} - {second}", f"{study.metric} after training", runs)


def _monitor(
    study: RLStudy, panel: str, source: str, arms: tuple[str, str], name: str, where: str, bound: float = 0.0
) -> Question:
    first, second = (study.monitored(panel, arm, name, fmean) for arm in arms)
    unit = FRACTION if name in ("rm_score", "candidates") else POINTS
    return Question(source, panel, " - ".join(arms), where, difference(first, second), low=bound, unit=unit)


def _candidates(study: RLStudy, panel: str) -> Iterator[Question]:
    sweep = {"0.05": "distrl_pmin_0.05", "0.1": IPVRM, "0.2": "distrl_pmin_0.2"}
    for smaller, larger in (("0.05", "0.1"), ("0.1", "0.2")):
        yield _monitor(study, panel, "T11", (sweep[smaller], sweep[larger]), "candidates", "candidates per token")
    for p_min, arm in sweep.items():
        mass = study.monitored(panel, arm, "candidate_mass", fmean)
        where = f"probability covered at P_min {p_min}"
        yield Question("T11", panel, arm, where, mass, low=MOST_MASS, unit=PERCENT)
    for arm in (sweep["0.05"], sweep["0.2"]):
        yield replace(_better(study, panel, "T11", arm, IPVRM), low=-ALIKE, high=ALIKE)


def _costs(study: RLStudy, panel: str) -> Iterator[Question]:
    """GRPO with the same reward model: what the candidate branch alone costs."""
    for name, of, words, most in (
        ("seconds", median, "time of a step, median; relative", MOST_TIME),
        ("memory_gib", max, "peak memory; relative", MOST_MEMORY),
    ):
        first, second = (study.monitored(panel, arm, name, of) for arm in (IPVRM, "grpo_ipvrm"))
        runs = whole({s: first[s][WHOLE] / second[s][WHOLE] - 1 for s in first if second.get(s, {}).get(WHOLE)})
        yield Question("T13", panel, f"{IPVRM} / grpo_ipvrm - 1", words, runs, low=-math.inf, high=most)


def _collapse(study: RLStudy, panel: str) -> Iterator[Question]:
    name = "rm_accuracy"
    ends = {arm: [study.monitored(panel, arm, name, of) for of in (early, late)] for arm in (FROZEN, NAIVE, IPVRM)}
    for arm in (FROZEN, NAIVE):
        words = f"{arm}: first quarter - last", "accuracy on fresh rollouts"
        yield Question("Fig. 6", panel, *words, difference(*ends[arm]))
    held = difference(ends[IPVRM][1], ends[IPVRM][0])
    words = f"{IPVRM}: last quarter - first", "accuracy on fresh rollouts"
    yield Question("Fig. 6", panel, *words, held, low=-ALIKE)
    for arm in (FROZEN, NAIVE):
        words = f"{IPVRM} - {arm}", "accuracy on fresh rollouts, last quarter"
        yield Question("Fig. 6", panel, *words, difference(ends[IPVRM][1], ends[arm][1]))


def by_world(values: Mapping[int, float]) -> Runs:
    """Numbers by seed, each a world of its own, as runs."""
    return whole({(seed, 0): value for seed, value in values.items()})
