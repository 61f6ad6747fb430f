"""Accuracy of the policy on validation prompts, by the paper's protocol: k samples each at temperature 0.6, top-p 0.95.

Every validation samples with the same seeds, so differences are paired; the prompts are split over the processes.
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
    """The result of a validation: one entry for each prompt, in their order."""

    accuracy: tuple[float | None, ...]
    """Mean over the verified samples; None where none is verified."""
    truncated: tuple[float, ...]
    """Share of the samples that were cut at the longest length."""

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the prompts that have one; None where none has."""
        accuracies = [a for a in self.accuracy if a is not None]
        return sum(accuracies) / len(accuracies) if accuracies else None


def validate(job: Job, sampler: Sampler, verifier: Verifier) -> Validation:
    """Samples and verifies completions of the validation prompts. All processes call it and get the same result."""
    share = range(processes.rank(), len(job.validation), processes.world_size())
    work = completions.prepare(sampler, [job.validation[i] for i in share], job.judging)
    rollouts = [rollout for rollout, _ in completions.sample_plan(sampler, work, job.judging, verifier)]
    results = {i: _numbers(rollouts[k * work.n : (k + 1) * work.n]) for k, i in enumerate(share)}
    all_results = {i: pair for process in processes.all_gather(results) for i, pair in process.items()}
    ordered = [all_results[i] for i in range(len(job.validation))]
    return Validation(tuple(a for a, _ in ordered), tuple(t for _, t in ordered))


def _numbers(rows: list[Rollout]) -> tuple[float | None, float]:
    """Returns (accuracy, share of truncated samples) of one prompt."""
    outcomes = [r.outcome for r in rows if r.outcome is not None]
    return sum(outcomes) / len(outcomes) if outcomes else None, sum(r.finish == "length" for r in rows) / len(rows)
