"""The paper's claims, asked of a study: paired differences over seeds, and yes, no or unclear.

A claim says which of its comparisons hold; it never says that the paper is right or wrong about other models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from prmbench.report.stats import holm, paired
from prmbench.studies.reporting.reward_model_runs import PAPER, PREFIX, PROCESS, SHIFTS, BySeed, Study

RIVALS = ("implicit_prm", "dpo_rm", "q_rm")
SCENES: dict[str, tuple[str, ...]] = {"onpolicy": ("onpolicy",), "injected": ("injected",), "mean of shifts": SHIFTS}
WORDS: dict[str, str] = {
    "T1": "IPVRM picks better among N completions",
    "T2": "IPVRM finds the first error better, and loses less in other formats",
    "T3": "late weights pick better than standard ones, and these better than early ones",
    "T4": "early weights find the first error better than standard ones, and these better than late ones",
    "T10": "a margin above 0 is better than none",
    "T14": "process-level reading beats prefix reading",
}
"""The paper's tables and what each is taken to claim."""
ALPHA = 0.05


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
    verdict: str
    """yes: the interval lies above zero; no: below; unclear: neither."""
    holm: float | None = None
    """p, adjusted for all comparisons of the same table and constants."""


Asked = tuple[str, str, str, BySeed, BySeed]
"""Table, comparison, where, the side that the paper holds better, the other side."""


def claims(study: Study) -> list[Claim]:
    """Every comparison that the runs allow, by table; those without a common seed are left out."""
    found: list[Claim] = []
    for constants, suffix in (("tuned", ""), ("paper", PAPER)):
        made = [_claim(constants, asked) for asked in _questions(study, suffix)]
        for source in WORDS:
            found += _adjusted([claim for claim in made if claim is not None and claim.source == source])
    return sorted(found, key=lambda claim: list(WORDS).index(claim.source))


def missing(study: Study) -> dict[str, str]:
    """Tables about which the runs say nothing -> why."""
    told = {claim.source for claim in claims(study)}
    needs = {
        "T1": "ipvrm, another method and best-of-N runs",
        "T2": "ipvrm and another method",
        "T3": "ipvrm_early or ipvrm_late, and best-of-N runs",
        "T4": "ipvrm_early or ipvrm_late",
        "T10": "two ipvrm recipes that differ in nothing but the margin, one of them 0",
        "T14": "a log-ratio method's step scores",
    }
    return {source: f"needs {words}" for source, words in needs.items() if source not in told}


def _claim(constants: str, asked: Asked) -> Claim | None:
    source, comparison, where, first, second = asked
    found = paired(first, second)
    if found is None:
        return None
    verdict = "unclear"
    if found.lo is not None and found.hi is not None:
        verdict = "yes" if found.lo > 0 else "no" if found.hi < 0 else "unclear"
    return Claim(
        name=WORDS[source],
        source=source,
        constants=constants,
        comparison=comparison,
        where=where,
        difference=found.difference,
        lo=found.lo,
        hi=found.hi,
        p=found.p,
        n=found.n,
        positive=found.positive,
        mdd=found.mdd,
        verdict=verdict,
    )


def _adjusted(family: list[Claim]) -> list[Claim]:
    known = [claim for claim in family if claim.p is not None]
    adjusted = iter(holm([claim.p or 0.0 for claim in known]))
    return [claim if claim.p is None else replace(claim, holm=next(adjusted)) for claim in family]


# --- what the paper's tables say ------------------------------------------------------------------------------


def _questions(study: Study, suffix: str) -> Iterator[Asked]:
    ipvrm = f"ipvrm{suffix}"
    for rival in RIVALS:
        yield from _generalises(study, ipvrm, f"{rival}{suffix}")
        yield from _picks(study, "T1", ipvrm, f"{rival}{suffix}", each=True)
    early, late = f"ipvrm_early{suffix}", f"ipvrm_late{suffix}"
    for first, second in ((late, ipvrm), (ipvrm, early), (late, early)):
        yield from _picks(study, "T3", first, second)
        yield from _finds(study, "T4", second, first)
    for first, second in _margins(study):  # the recipes themselves say which margins there are
        if first.endswith(PAPER) == bool(suffix):
            yield from _picks(study, "T10", first, second)
            yield from _finds(study, "T10", first, second)
    for method in (ipvrm, *(f"{rival}{suffix}" for rival in RIVALS)):
        if study.chosen("steps", method, ("prefix_sum",)):
            for where, subsets in SCENES.items():
                steps, prefixes = (study.f1(method, wanted, subsets) for wanted in (PROCESS, PREFIX))
                yield "T14", f"{method}: step_sum - prefix_sum", where, steps, prefixes


def _finds(study: Study, source: str, first: str, second: str) -> Iterator[Asked]:
    """Process-level F1 in the three scenes."""
    for where, subsets in SCENES.items():
        sides = study.f1(first, PROCESS, subsets), study.f1(second, PROCESS, subsets)
        yield source, f"{first} - {second}", where, *sides


def _generalises(study: Study, first: str, second: str) -> Iterator[Asked]:
    """The scenes, each format by itself, and the change from the sampled format to the others."""
    yield from _finds(study, "T2", first, second)
    for shift in SHIFTS:
        yield (
            "T2",
            f"{first} - {second}",
            shift,
            study.f1(first, PROCESS, (shift,)),
            study.f1(second, PROCESS, (shift,)),
        )
    changes = study.change(first, PROCESS), study.change(second, PROCESS)
    yield "T2", f"{first} - {second}", "change under shifts", *changes


def _picks(study: Study, source: str, first: str, second: str, each: bool = False) -> Iterator[Asked]:
    """Best-of-N by each method's own sequence score: the mean over N, and every N by itself when asked."""
    sizes = study.group_sizes()
    if sizes:
        yield source, f"{first} - {second}", "best of N, mean", study.best_of(first), study.best_of(second)
    for n in sizes if each and len(sizes) > 1 else ():
        sides = study.best_of(first, sizes=(n,)), study.best_of(second, sizes=(n,))
        yield source, f"{first} - {second}", f"best of {n}", *sides


def _margins(study: Study) -> Iterator[tuple[str, str]]:
    """(with a margin, without): standard IPVRM recipes that differ in nothing else."""
    recipes = {
        name: recipe
        for name, recipe in study.recipes.items()
        if name.startswith("ipvrm") and not name.startswith(("ipvrm_early", "ipvrm_late")) and "margin" in recipe
    }
    for first, recipe in recipes.items():
        for second, other in recipes.items():
            alike = {k: v for k, v in recipe.items() if k != "margin"} == {
                k: v for k, v in other.items() if k != "margin"
            }
            if alike and _margin(other) == 0 and _margin(recipe) > 0:
                yield first, second


def _margin(recipe: dict[str, str]) -> float:
    try:
        return float(recipe["margin"])
    except ValueError:
        return -1.0  # `varies`: comparable with nothing
