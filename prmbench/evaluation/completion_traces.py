"""What both ways to a policy's run share: prompts, a completion as a scored trace, how the completions were made."""

from __future__ import annotations

from collections.abc import Iterable

from prmbench.core import result_files
from prmbench.core.records import ScoredTrace, text_hash
from prmbench.data.rollouts import Rollout


def prompts_hash(asked: Iterable[tuple[str, str, str, str]]) -> str:
    """SHA-256 over the prompts as (id, subset, text, gold), in any order: what a policy's numbers are about."""
    return result_files.sha256(repr(sorted(set(asked))).encode())


def scored(rollout: Rollout) -> ScoredTrace:
    """A completion with its outcome; what could not be verified is unscored with the verdict as its reason."""
    return ScoredTrace(
        id=rollout.id,
        subset=rollout.subset,
        label=None,
        outcome=rollout.outcome,
        cluster=rollout.group,
        steps=len(rollout.steps),
        tokens=(rollout.tokens or 0,),
        unscored="" if rollout.outcome is not None else rollout.verdict or "not verified",
        answer=text_hash(rollout.answer) if rollout.answer else "",
        finish=rollout.finish,
    )
