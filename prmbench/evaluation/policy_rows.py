"""What both ways to a policy's run share: a completion as a scored trace, and how the completions were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prmbench import manifest
from prmbench.data.rollouts import Rollout
from prmbench.schema import ScoredTrace, text_hash


def provenance(told: Mapping[str, Any]) -> dict[str, Any]:
    """Commit, seconds and the like of a journal or a summary, by RunManifest's names."""
    commit, dirty = manifest.code_state()
    sittings = list(told["commits"])
    return {
        "commit": None if "unknown" in sittings else commit,
        "commits": tuple(sittings) if sittings != [commit] else (),
        "dirty": dirty or told["dirty"],
        "seconds": told["seconds"],
    }


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
