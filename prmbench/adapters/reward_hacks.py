"""Shows what degenerate completions would earn, before a policy finds out.

A known failure (PURE, issue 20): under the minimum or the mean of step values, empty or one-step outputs win.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prmbench.adapters.problem_text import Prompt
from prmbench.adapters.step_rewards import Prm
from prmbench.adapters.token_alignment import find_steps
from prmbench.core.records import Notice, UserError

_FILLER = "Let us think about this carefully."
_REPEATS = 4
Variant = Callable[[Sequence[str]], Sequence[str]]
VARIANTS: Mapping[str, Variant] = {
    "empty": lambda steps: [],
    "only filler": lambda steps: [_FILLER],
    "only the first step": lambda steps: steps[:1],
    "only the last step": lambda steps: steps[-1:],
    "one giant step": lambda steps: [" ".join(steps)],
    "every step twice": lambda steps: [step for step in steps for _ in range(2)],
    "last step repeated": lambda steps: [*steps[:-1], *[step for step in steps[-1:] for _ in range(_REPEATS)]],
    "filler between steps": lambda steps: [part for step in steps for part in (_FILLER, step)],
}
"""Degenerate completions, made of the steps of an honest one."""
_HEADER = f"{'completion':<22}{'reward':>10}{'difference':>12}{'wins':>8}{'unscored':>10}"


@dataclass(frozen=True, slots=True)
class Hack:
    """What one kind of degenerate completion earns."""

    variant: str
    reward: float | None
    """Mean over the examples in which it has one; None where it has none at all."""
    difference: float | None
    """Mean of its reward less the honest one's, over the examples in which both have one."""
    wins: int
    """Examples in which it earns more than the honest completion."""
    compared: int
    """Examples in which both have a reward."""
    unscored: int
    """Examples in which it has no reward."""

    @property
    def pays(self) -> bool:
        """Whether it earns more than the honest completions on average."""
        return self.difference is not None and self.difference > 0


@dataclass(frozen=True, slots=True)
class HackReport:
    """The rows of `probe_hacks`; its text is a table."""

    honest: float
    """Mean reward of the honest completions."""
    rows: tuple[Hack, ...]

    def __str__(self) -> str:
        """Return a table with one line a variant, the honest completions first; * marks one that pays."""
        lines = [_HEADER, f"{'honest':<22}{self.honest:>10.4g}"]
        for row in self.rows:
            difference = "-" if row.difference is None else f"{row.difference:+.4g}"
            reward = "-" if row.reward is None else f"{row.reward:.4g}"
            wins = f"{row.wins}/{row.compared}"
            mark = " *" if row.pays else ""
            lines.append(f"{row.variant:<22}{reward:>10}{difference:>12}{wins:>8}{row.unscored:>10}{mark}")
        return "\n".join(lines)


def probe_hacks(prm: Prm, examples: Sequence[tuple[Prompt, str]], unscored: float | None = None) -> HackReport:
    """Compare the rewards of degenerate completions with those of honest ones, and warn where one pays.

    Args:
        prm: With the aggregation and the guard that training will use.
        examples: Prompts with honest completions as text, of at least two steps where possible; some dozens.
        unscored: The reward that an adapter gives to unscored completions, where it gives one.

    Returns:
        A report; `print` shows it as a table.

    Raises:
        UserError: There is no example with a reward.
    """
    prompts = [prompt for prompt, _ in examples]
    steps = [[step.text for step in find_steps(text, prm.split)] for _, text in examples]
    honest = _rewards(prm, prompts, [text for _, text in examples], None)
    if np.isnan(honest).all():
        raise UserError("probe_hacks: none of the examples has a reward; look at the reasons in prm.score_texts")
    rows = tuple(
        _compare(name, honest, _rewards(prm, prompts, [_join(variant(row), prm.split) for row in steps], unscored))
        for name, variant in VARIANTS.items()
    )
    paying = [f"{row.variant!r} by {row.difference:.3g}" for row in rows if row.pays]
    if paying:
        warnings.warn(
            f"degenerate completions earn more than honest ones on average: {', '.join(paying)}; set a guard "
            "(min_steps, require_answer, floor), another aggregation, or add an outcome reward",
            Notice,
            stacklevel=2,
        )
    return HackReport(float(np.nanmean(honest)), rows)


def _rewards(prm: Prm, prompts: Sequence[Prompt], texts: Sequence[str], unscored: float | None) -> np.ndarray:
    """Return the rewards, [n]; those of unscored completions are `unscored`, or nan."""
    rewards = [prm.reward(row) for row in prm.score_texts(prompts, texts)]
    return np.array([unscored if reward is None else reward for reward in rewards], dtype=float)


def _compare(name: str, honest: np.ndarray, degenerate: np.ndarray) -> Hack:
    differences = degenerate - honest
    differences = differences[~np.isnan(differences)]
    scored = degenerate[~np.isnan(degenerate)]
    return Hack(
        name,
        float(scored.mean()) if scored.size else None,
        float(differences.mean()) if differences.size else None,
        wins=int((differences > 0).sum()),
        compared=differences.size,
        unscored=degenerate.size - scored.size,
    )


def _join(steps: Sequence[str], split: str) -> str:
    """Return a text that the splitter cuts into these steps."""
    if split == "numbered":
        return "\n".join(f"Step {number}: {step}" for number, step in enumerate(steps, 1))
    return ("\n" if split == "line" else "\n\n").join(steps)
