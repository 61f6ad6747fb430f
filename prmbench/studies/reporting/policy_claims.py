"""The paper's claims about RL, tested on a study of policies: estimates of differences with a verdict each.

A question names the values to compare and the bounds between which their difference lies if the claim holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from prmbench.metrics.equivalence import ALPHA, MARGINS, Margin, Verdict, holm_where_tested, verdict
from prmbench.studies.reporting.nested_seeds import WHOLE, Estimate, RunValues, difference, estimate, whole_run_values
from prmbench.studies.reporting.policy_runs import BASE_ARM, RLStudy, first_quarter_mean, last_quarter_mean
from prmbench.tasks.table import FRACTION, PERCENT, POINTS, Unit

IPVRM, NAIVE, FROZEN = "distrl_ipvrm", "distrl_naive", "distrl_frozen"
METHODS = ("ipvrm", "implicit_prm", "dpo_rm")
POLICY_MARGIN = MARGINS["policy accuracy"]
REWARD_MODEL_MARGIN = MARGINS["reward model accuracy"]
MAX_TIME_OVERHEAD, MAX_MEMORY_OVERHEAD = 0.05, 0.03
"""Relative overheads up to which the costs count as equal."""
NEARLY_ALL_MASS = 0.9
"""Share of the old policy's probability from which on candidates count as covering nearly all of it."""
CLAIMS: dict[str, str] = {
    "T5": "DistRL with IPVRM trains a better policy than GRPO, with or without IPVRM, PRIME, SPRO and Q-RM",
    "T6": "the candidate branch helps (tested with IPVRM), and IPVRM helps more than other reward models",
    "T7": "DistRL reaches a higher reward-model score and more right rollouts in training than GRPO",
    "T8": "updating the reward model online with ADB and DLW beats leaving one, both or the update out",
    "T9": "the behaviour policy is a better reference than the SFT model",
    "T11": "few candidates cover nearly all the probability, and the policy does not depend on P_min",
    "T13": f"DistRL costs GRPO's time (within {MAX_TIME_OVERHEAD:.0%}) and memory (within {MAX_MEMORY_OVERHEAD:.0%})",
    "Fig. 6": "the reward model's accuracy on fresh rollouts falls when frozen or updated plainly, and holds otherwise",
    "control": "not the paper's: DistRL beats GRPO with the reward model's rollouts, and the reward model as a policy",
    "shuffled": "not the paper's: trained on shuffled outcomes, step F1 falls, down to the level of random scores",
    "marker": "not the paper's: a late marker lowers step F1 only where it tells the outcome, and IPVRM's least",
}
"""The paper's tables, and controls of our own, with the claim that each is read as."""


@dataclass(frozen=True, slots=True)
class Question:
    """A difference, and the bounds between which it lies if the claim holds."""

    source: str
    panel: str
    comparison: str
    where: str
    runs: RunValues
    low: float = 0.0
    high: float = math.inf
    unit: Unit = POINTS
    """Number format: POINTS for a difference of shares, PERCENT for a share, FRACTION for other numbers."""
    margin: Margin | None = None
    """Within which a difference counts as none; None where no margin was declared for what is measured."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question with its estimate in the unit of the question, and its verdict."""

    source: str
    panel: str
    comparison: str
    where: str
    unit: Unit
    bounds: str
    estimate: Estimate
    low: float
    high: float
    margin: Margin | None
    holm: float | None = None
    """p, adjusted for the tested comparisons of the same source and panel."""
    equivalence_holm: float | None = None
    """The p-value of equivalence, adjusted for those of the same comparisons."""

    @property
    def tested(self) -> bool:
        """Whether the bound is 0, so that p, which is against 0, tests the claim."""
        return (self.low, self.high) == (0.0, math.inf)

    @property
    def equivalence_p(self) -> float | None:
        """The p-value of the one-sided tests that the difference is within the margin, or two bounds of the claim."""
        if self._claims_equivalence:
            return self.estimate.p_within(self.low, self.high)
        if self.margin is None or not self.tested:
            return None
        return self.estimate.p_within(-self.margin.value, self.margin.value)

    @property
    def verdict(self) -> Verdict:
        """The verdict of this comparison by itself: see `_verdict`."""
        return self._verdict(self.estimate.p, self.equivalence_p)

    @property
    def adjusted_verdict(self) -> Verdict | None:
        """The verdict after Holm's adjustment; None for a claim with one bound that is not 0, which has no p-value."""
        if not (self.tested or self._claims_equivalence):
            return None
        return self._verdict(self.holm, self.equivalence_holm)

    @property
    def _claims_equivalence(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def _verdict(self, p: float | None, p_equivalent: float | None) -> Verdict:
        """Against 0: that of `equivalence.verdict`. Else: yes within the bounds, no outside them, else unclear.

        Between two bounds, which claim equivalence, `yes` is by two one-sided tests; past a single bound, by the 95%
        interval. A single run has no verdict, since it does not show how much training varies.
        """
        if self.tested:
            return verdict(self.estimate.value, p, p_equivalent)
        lo, hi = self.estimate.lo, self.estimate.hi
        if lo is None or hi is None or self.estimate.error is None:
            return "unclear"
        if self._claims_equivalence:
            is_within = p_equivalent is not None and p_equivalent < ALPHA
        else:
            is_within = self.low < lo and hi < self.high
        return "yes" if is_within else "no" if hi < self.low or lo > self.high else "unclear"


def answer_questions(study: RLStudy, more: Sequence[Question] = ()) -> list[Answer]:
    """Answers the questions of the paper's tables and `more`, by source; those without a common run are left out."""
    questions = [q for panel in study.panels for q in _questions(study, panel)] + list(more)
    answered = [answer for q in questions if (answer := _answer(q)) is not None]
    adjusted: list[Answer] = []
    for source in CLAIMS:
        for panel in dict.fromkeys(a.panel for a in answered):
            adjusted += _adjust_p([a for a in answered if (a.source, a.panel) == (source, panel)])
    return adjusted


def compare_with_grpo(study: RLStudy, panel: str) -> dict[str, tuple[Estimate, float | None, Verdict]]:
    """Returns, by arm, the last accuracy minus GRPO's, and its p and verdict after Holm over all arms of the panel."""
    base = study.accuracy(panel, BASE_ARM, -1)
    others = [arm for arm in study.arms(panel) if arm != BASE_ARM]
    estimates: dict[str, Estimate] = {}
    for arm in others:
        if (against := estimate(difference(_final_accuracies(study, panel, arm, base), base))) is not None:
            estimates[arm] = against
    adjusted = holm_where_tested([e.p for e in estimates.values()])
    margin = POLICY_MARGIN.value
    equivalence = holm_where_tested([e.p_within(-margin, margin) for e in estimates.values()])
    return {
        arm: (e, p, verdict(e.value, p, q))
        for (arm, e), p, q in zip(estimates.items(), adjusted, equivalence, strict=True)
    }


def _final_accuracies(study: RLStudy, panel: str, arm: str, base: RunValues) -> RunValues:
    """Returns an arm's accuracies at the last validation, to be paired with the runs of `base`.

    An untrained arm, which was validated once, is paired with every run of its SFT seed; where it was validated under
    several RL seeds, which sample different completions, each problem's accuracy is their mean.
    """
    runs = study.of(panel, arm)
    last = study.accuracy(panel, arm, -1)
    is_trained = any(len(t.steps) > 1 for t in runs)
    if is_trained:
        return last
    by_sft: dict[int, dict[str, list[float]]] = {}
    for (sft, _), values in last.items():
        for problem, value in values.items():
            by_sft.setdefault(sft, {}).setdefault(problem, []).append(value)
    means = {sft: {problem: fmean(v) for problem, v in by_problem.items()} for sft, by_problem in by_sft.items()}
    return {seeds: means[seeds[0]] for seeds in base if seeds[0] in means}


def _answer(question: Question) -> Answer | None:
    difference_estimate = estimate(question.runs)
    if difference_estimate is None:
        return None
    return Answer(
        source=question.source,
        panel=question.panel,
        comparison=question.comparison,
        where=question.where,
        unit=question.unit,
        bounds=_bounds_text(question.low, question.high, question.unit),
        estimate=difference_estimate,
        low=question.low,
        high=question.high,
        margin=question.margin,
    )


def _bounds_text(low: float, high: float, unit: Unit) -> str:
    """Returns `above 0`, `below 5` or `-2 to 2`, in percent where the difference is."""
    low, high = (v if math.isinf(v) or unit == FRACTION else 100 * v for v in (low, high))
    if math.isinf(high):
        return f"above {low:g}"
    return f"below {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def _adjust_p(family: list[Answer]) -> list[Answer]:
    """Sets Holm's adjusted p-values, of the tests against 0 and of equivalence, each among themselves."""
    adjusted = holm_where_tested([a.estimate.p if a.tested else None for a in family])
    equivalence = holm_where_tested([a.equivalence_p for a in family])
    return [replace(a, holm=p, equivalence_holm=q) for a, p, q in zip(family, adjusted, equivalence, strict=True)]


# --- questions of the paper's tables --------------------------------------------------------------------------


def _questions(study: RLStudy, panel: str) -> Iterator[Question]:
    for rival in ("grpo", "grpo_ipvrm", "prime", "spro", "reinforce_q_rm"):
        yield _accuracy_question(study, panel, "T5", IPVRM, rival)
    for method in METHODS:
        yield _accuracy_question(study, panel, "T6", f"distrl_{method}", f"grpo_{method}")
    for kind in ("distrl", "grpo"):
        for rival in METHODS[1:]:
            yield _accuracy_question(study, panel, "T6", f"{kind}_{METHODS[0]}", f"{kind}_{rival}")
    yield _monitor_question(study, panel, "T7", (IPVRM, "grpo_ipvrm"), "rm_score", "score per step, mean over training")
    yield _monitor_question(study, panel, "T7", (IPVRM, "grpo_ipvrm"), "accuracy", "right rollouts, mean over training")
    yield _monitor_question(study, panel, "T7", (IPVRM, BASE_ARM), "accuracy", "right rollouts, mean over training")
    for rival in (NAIVE, FROZEN, "distrl_dlw", "distrl_adb"):
        yield _accuracy_question(study, panel, "T8", IPVRM, rival)
    yield _accuracy_question(study, panel, "T9", IPVRM, "distrl_sft")
    yield from _candidate_questions(study, panel)
    yield from _cost_questions(study, panel)
    yield from _collapse_questions(study, panel)
    for rival in ("grpo_extra", "rm_as_policy_ipvrm"):
        yield _accuracy_question(study, panel, "control", IPVRM, rival)
    yield _accuracy_question(study, panel, "control", "distrl_implicit_prm", "rm_as_policy_implicit_prm")


def _accuracy_question(study: RLStudy, panel: str, source: str, first: str, second: str) -> Question:
    base = study.accuracy(panel, first, -1)
    runs = difference(base, _final_accuracies(study, panel, second, base))
    return Question(source, panel, f"{first} - {second}", f"{study.metric} after training", runs, margin=POLICY_MARGIN)


def _monitor_question(
    study: RLStudy, panel: str, source: str, arms: tuple[str, str], name: str, where: str, bound: float = 0.0
) -> Question:
    first, second = (study.monitor_summaries(panel, arm, name, fmean) for arm in arms)
    unit = FRACTION if name in ("rm_score", "candidates") else POINTS
    margin = POLICY_MARGIN if name == "accuracy" else None
    runs = difference(first, second)
    return Question(source, panel, " - ".join(arms), where, runs, low=bound, unit=unit, margin=margin)


def _candidate_questions(study: RLStudy, panel: str) -> Iterator[Question]:
    sweep = {"0.05": "distrl_pmin_0.05", "0.1": IPVRM, "0.2": "distrl_pmin_0.2"}
    for smaller, larger in (("0.05", "0.1"), ("0.1", "0.2")):
        yield _monitor_question(
            study, panel, "T11", (sweep[smaller], sweep[larger]), "candidates", "candidates per token"
        )
    for p_min, arm in sweep.items():
        mass = study.monitor_summaries(panel, arm, "candidate_mass", fmean)
        where = f"probability covered at P_min {p_min}"
        yield Question("T11", panel, arm, where, mass, low=NEARLY_ALL_MASS, unit=PERCENT)
    for arm in (sweep["0.05"], sweep["0.2"]):
        yield replace(
            _accuracy_question(study, panel, "T11", arm, IPVRM), low=-POLICY_MARGIN.value, high=POLICY_MARGIN.value
        )


def _cost_questions(study: RLStudy, panel: str) -> Iterator[Question]:
    """Yields the relative cost against GRPO with the same reward model: that of the candidate branch alone."""
    for name, summarize, where, maximum in (
        ("seconds", median, "time of a step, median; relative", MAX_TIME_OVERHEAD),
        ("memory_gib", max, "peak memory; relative", MAX_MEMORY_OVERHEAD),
    ):
        first, second = (study.monitor_summaries(panel, arm, name, summarize) for arm in (IPVRM, "grpo_ipvrm"))
        runs = whole_run_values(
            {s: first[s][WHOLE] / second[s][WHOLE] - 1 for s in first if second.get(s, {}).get(WHOLE)}
        )
        yield Question("T13", panel, f"{IPVRM} / grpo_ipvrm - 1", where, runs, low=-math.inf, high=maximum)


def _collapse_questions(study: RLStudy, panel: str) -> Iterator[Question]:
    name = "rm_accuracy"
    arms = (FROZEN, NAIVE, IPVRM)
    first, last = (
        {arm: study.monitor_summaries(panel, arm, name, quarter) for arm in arms}
        for quarter in (first_quarter_mean, last_quarter_mean)
    )
    for arm in (FROZEN, NAIVE):
        drop = difference(first[arm], last[arm])
        yield Question(
            "Fig. 6",
            panel,
            f"{arm}: first quarter - last",
            "accuracy on fresh rollouts",
            drop,
            margin=REWARD_MODEL_MARGIN,
        )
    change, sides = difference(last[IPVRM], first[IPVRM]), f"{IPVRM}: last quarter - first"
    yield Question("Fig. 6", panel, sides, "accuracy on fresh rollouts", change, low=-REWARD_MODEL_MARGIN.value)
    for arm in (FROZEN, NAIVE):
        lead, where = difference(last[IPVRM], last[arm]), "accuracy on fresh rollouts, last quarter"
        yield Question("Fig. 6", panel, f"{IPVRM} - {arm}", where, lead, margin=REWARD_MODEL_MARGIN)


def by_world(values: Mapping[int, float]) -> RunValues:
    """Returns values by seed, each a separate world, in the form of `RunValues`."""
    return whole_run_values({(seed, 0): value for seed, value in values.items()})
