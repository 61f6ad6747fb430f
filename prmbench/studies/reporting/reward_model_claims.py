"""The paper's claims, tested on a study of reward models: paired differences over seeds with a verdict each.

A verdict is about one comparison in this study; it does not say whether the paper is right about other models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from prmbench.metrics.equivalence import MARGINS, Margin, Verdict, holm_where_tested, verdict
from prmbench.report.stats import paired
from prmbench.studies.reporting.reward_model_runs import (
    PAPER_SUFFIX,
    PREFIX_READOUTS,
    PROCESS_READOUTS,
    SHIFTS,
    BySeed,
    Study,
)

RIVALS = ("implicit_prm", "dpo_rm", "q_rm")
SUBSET_GROUPS: dict[str, tuple[str, ...]] = {
    "onpolicy": ("onpolicy",),
    "injected": ("injected",),
    "mean of shifts": SHIFTS,
}
CLAIMS: dict[str, str] = {
    "T1": "IPVRM picks better among N completions",
    "T2": "IPVRM finds the first error better, and loses less in other formats",
    "T3": "late weights pick better than standard ones, and these better than early ones",
    "T4": "early weights find the first error better than standard ones, and these better than late ones",
    "T10": "a margin above 0 is better than none",
    "T14": "process-level reading beats prefix reading",
    "rate": "not the paper's: IPVRM leads Implicit PRM as in T2 when both are trained at IPVRM's learning rate",
}
"""The paper's tables and the claim that each is read as, and a control."""
BEST_OF = "best of "
"""How the places of best-of-N comparisons begin; all others are about F1."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One comparison. Differences are fractions; above zero agrees with the paper."""

    name: str
    source: str
    """The paper's table: T1, T2, ..."""
    constants: str
    """`tuned`, or `paper`: the paper's own."""
    comparison: str
    where: str
    difference: float
    lo: float | None
    hi: float | None
    p: float | None
    n: int
    positive: int
    """Seeds whose difference is above zero."""
    mdd: float | None
    margin: Margin
    """The margin of equivalence, declared in prmbench.metrics.equivalence."""
    equivalence_p: float | None
    """p of the two one-sided tests that the difference is within the margin; None for a single seed."""
    holm: float | None = None
    """p, adjusted for all comparisons of the same table and constants."""
    equivalence_holm: float | None = None
    """The p-value of equivalence, adjusted for those of the same comparisons."""

    @property
    def verdict(self) -> Verdict:
        """The verdict of this comparison by itself."""
        return verdict(self.difference, self.p, self.equivalence_p)

    @property
    def adjusted_verdict(self) -> Verdict:
        """The verdict after Holm's adjustment for all comparisons of the same table and constants."""
        return verdict(self.difference, self.holm, self.equivalence_holm)


Comparison = tuple[str, str, str, BySeed, BySeed]
"""(table, comparison, where, values of the side that the paper claims is better, values of the other side)."""


def claims(study: Study) -> list[Claim]:
    """Returns every comparison that the runs allow, by table; those without a common seed are left out."""
    adjusted: list[Claim] = []
    for constants, suffix in (("tuned", ""), ("paper", PAPER_SUFFIX)):
        tested = [_test_claim(constants, comparison) for comparison in _comparisons(study, suffix)]
        for source in CLAIMS:
            adjusted += _adjust_p([claim for claim in tested if claim is not None and claim.source == source])
    return sorted(adjusted, key=lambda claim: list(CLAIMS).index(claim.source))


def missing(study: Study) -> dict[str, str]:
    """Returns the tables that the runs cannot test, each with the reason."""
    tested = {claim.source for claim in claims(study)}
    needs = {
        "T1": "ipvrm, another method and best-of-N runs",
        "T2": "ipvrm and another method",
        "T3": "ipvrm_early or ipvrm_late, and best-of-N runs",
        "T4": "ipvrm_early or ipvrm_late",
        "T10": "two ipvrm recipes that differ in nothing but the margin, one of them 0",
        "T14": "a log-ratio method's step scores",
        "rate": "ipvrm and implicit_prm_slow",
    }
    return {source: f"needs {runs}" for source, runs in needs.items() if source not in tested}


def _test_claim(constants: str, comparison: Comparison) -> Claim | None:
    source, sides, where, first, second = comparison
    test = paired(first, second)
    if test is None:
        return None
    margin = MARGINS["best-of-N accuracy" if where.startswith(BEST_OF) else "F1"]
    return Claim(
        name=CLAIMS[source],
        source=source,
        constants=constants,
        comparison=sides,
        where=where,
        difference=test.difference,
        lo=test.lo,
        hi=test.hi,
        p=test.p,
        n=test.n,
        positive=test.positive,
        mdd=test.mdd,
        margin=margin,
        equivalence_p=test.equivalence_p(margin.value),
    )


def _adjust_p(family: list[Claim]) -> list[Claim]:
    """Sets Holm's adjusted p-values, of the tests against 0 and of equivalence, each among themselves."""
    adjusted = holm_where_tested([claim.p for claim in family])
    equivalence = holm_where_tested([claim.equivalence_p for claim in family])
    return [
        replace(claim, holm=p, equivalence_holm=q) for claim, p, q in zip(family, adjusted, equivalence, strict=True)
    ]


# --- comparisons of the paper's tables-------------------------------------------------------------------------


def _comparisons(study: Study, suffix: str) -> Iterator[Comparison]:
    ipvrm = f"ipvrm{suffix}"
    for rival in RIVALS:
        yield from _compare_generalization(study, ipvrm, f"{rival}{suffix}")
        yield from _compare_best_of_n(study, "T1", ipvrm, f"{rival}{suffix}", each=True)
    if not suffix:
        yield from _compare_f1(study, "rate", ipvrm, "implicit_prm_slow")
    early, late = f"ipvrm_early{suffix}", f"ipvrm_late{suffix}"
    for first, second in ((late, ipvrm), (ipvrm, early), (late, early)):
        yield from _compare_best_of_n(study, "T3", first, second)
        yield from _compare_f1(study, "T4", second, first)
    for first, second in _margin_pairs(study):
        if first.endswith(PAPER_SUFFIX) == bool(suffix):
            yield from _compare_best_of_n(study, "T10", first, second)
            yield from _compare_f1(study, "T10", first, second)
    for method in (ipvrm, *(f"{rival}{suffix}" for rival in RIVALS)):
        if study.first_readout("steps", method, ("prefix_sum",)):
            for where, subsets in SUBSET_GROUPS.items():
                steps, prefixes = (
                    study.f1(method, readouts, subsets) for readouts in (PROCESS_READOUTS, PREFIX_READOUTS)
                )
                yield "T14", f"{method}: step_sum - prefix_sum", where, steps, prefixes


def _compare_f1(study: Study, source: str, first: str, second: str) -> Iterator[Comparison]:
    """Yields comparisons of process-level F1 in the three groups of subsets."""
    for where, subsets in SUBSET_GROUPS.items():
        sides = study.f1(first, PROCESS_READOUTS, subsets), study.f1(second, PROCESS_READOUTS, subsets)
        yield source, f"{first} - {second}", where, *sides


def _compare_generalization(study: Study, first: str, second: str) -> Iterator[Comparison]:
    """Yields comparisons of F1 in the groups of subsets and in each format, and of the change between formats."""
    yield from _compare_f1(study, "T2", first, second)
    for shift in SHIFTS:
        yield (
            "T2",
            f"{first} - {second}",
            shift,
            study.f1(first, PROCESS_READOUTS, (shift,)),
            study.f1(second, PROCESS_READOUTS, (shift,)),
        )
    changes = study.change(first, PROCESS_READOUTS), study.change(second, PROCESS_READOUTS)
    yield "T2", f"{first} - {second}", "change under shifts", *changes


def _compare_best_of_n(study: Study, source: str, first: str, second: str, each: bool = False) -> Iterator[Comparison]:
    """Yields comparisons of best-of-N by each method's own score: the mean over N, with `each` also every N."""
    sizes = study.group_sizes()
    if sizes:
        yield source, f"{first} - {second}", f"{BEST_OF}N, mean", study.best_of(first), study.best_of(second)
    for n in sizes if each and len(sizes) > 1 else ():
        sides = study.best_of(first, sizes=(n,)), study.best_of(second, sizes=(n,))
        yield source, f"{first} - {second}", f"{BEST_OF}{n}", *sides


def _margin_pairs(study: Study) -> Iterator[tuple[str, str]]:
    """Yields (method with a margin, method without one): standard IPVRM recipes that differ in nothing else."""
    recipes = {
        name: recipe
        for name, recipe in study.recipes.items()
        if name.startswith("ipvrm") and not name.startswith(("ipvrm_early", "ipvrm_late")) and "margin" in recipe
    }
    for first, recipe in recipes.items():
        for second, other in recipes.items():
            if _without_margin(recipe) == _without_margin(other) and _margin(other) == 0 and _margin(recipe) > 0:
                yield first, second


def _without_margin(recipe: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in recipe.items() if name != "margin"}


def _margin(recipe: dict[str, str]) -> float:
    try:
        return float(recipe["margin"])
    except ValueError:
        # `varies`: the margin differs between seeds, so the recipe is not compared.
        return -1.0
