"""How good the policy is on validation prompts, by the paper's protocol: k samples each at temperature 0.6, top-p 0.95.

Every validation draws with the same seeds, so differences are paired; problems are shared out over the processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from prmbench.core import processes
from prmbench.data.rollouts import Rollout
from prmbench.engines.generation import Sampler
from prmbench.rl.setup import Job
from prmbench.sampling import completions
from prmbench.verification.verifiers import Verifier


@dataclass(frozen=True, slots=True)
class Validation:
    """One entry a problem, in the order of the prompts."""

    accuracy: tuple[float | None, ...]
    """Mean over the verified samples; None where there is none."""
    truncated: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Over the problems that have one."""
        known = [a for a in self.accuracy if a is not None]
        return sum(known) / len(known) if known else None


def validate(job: Job, sampler: Sampler, verifier: Verifier) -> Validation:
    """Draws, verifies and averages. All processes call it and get the same."""
    mine = range(processes.rank(), len(job.validation), processes.world_size())
    work = completions.prepare(sampler, [job.validation[i] for i in mine], job.judging)
    found: dict[int, Rollout] = {}
    for batch in work.batches:
        found |= dict(zip(batch, completions.draw(sampler, work, batch, job.judging, verifier), strict=True))
    numbers = {i: _numbers([found[k * work.n + s] for s in range(work.n)]) for k, i in enumerate(mine)}
    every = {i: pair for process in processes.gathered(numbers) for i, pair in process.items()}
    ordered = [every[i] for i in range(len(job.validation))]
    return Validation(tuple(a for a, _ in ordered), tuple(t for _, t in ordered))


def _numbers(rows: list[Rollout]) -> tuple[float | None, float]:
    known = [r.outcome for r in rows if r.outcome is not None]
    return sum(known) / len(known) if known else None, sum(r.finish == "length" for r in rows) / len(rows)
