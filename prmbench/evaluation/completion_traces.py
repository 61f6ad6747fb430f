"""Converts completions of a policy into scored traces, and hashes its prompts."""

from __future__ import annotations

from collections.abc import Iterable

from prmbench.core import result_files
from prmbench.core.records import ScoredTrace, text_hash
from prmbench.data.rollouts import Rollout


def prompts_hash(prompts: Iterable[tuple[str, str, str, str]]) -> str:
    """Return the SHA-256 over prompts as (id, subset, text, gold), whatever their order."""
    return result_files.sha256(repr(sorted(set(prompts))).encode())


def scored_trace(rollout: Rollout) -> ScoredTrace:
    """Return a completion with its outcome; one that could not be verified is unscored, with the verdict as reason."""
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
