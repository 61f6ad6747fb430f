"""`prmbench rollout`: prompts -> verified completions -> one grouped traces file, with its counts and provenance.

The completions themselves are policy.py's; here is what surrounds them: checks, the file, its summary.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench.backends.common import LM, template_source
from prmbench.config import RolloutConfig
from prmbench.core import output_checks, processes, provenance, reading, result_files, writing
from prmbench.core.records import Notice, UserError, text_hash
from prmbench.data import prompts as prompt_files
from prmbench.data import rollouts as rollout_files
from prmbench.data.rollouts import Rollout
from prmbench.sampling.completions import (
    REFUSED,
    Progress,
    Work,
    check_verifiers,
    identity,
    open_policy,
    prepare,
    sample_all,
)
from prmbench.verification import verifiers

LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy", "reasoning_gym")
"""Their rules change between releases, and verdicts with them."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do."""

    prompts: int
    refused: int
    """Prompts that fill the model's context."""
    completions: int
    prompt_tokens: int
    most_new_tokens: int
    """If no completion ended before its limit."""
    batches: int
    weights_gib: float


def rollout(config: RolloutConfig, progress: Progress | None = None) -> Path | None:
    """Draws and verifies completions; writes `--out`, and `<out>.json` with counts and provenance.

    Goes on with a run that was interrupted, and does nothing when the same run is finished. Under torchrun every
    process takes its share of the batches and process 0 writes; the others return None. Raises UserError.
    """
    config = options.coerced(config)
    _check(config)
    found = prompt_files.load(_given(config), config.subset, config.limit)
    check_verifiers(found, config)
    engine = open_policy(config)
    facts = identity(engine, prepare(engine, found, config), config)
    if config.out.exists() or beside(config.out).exists():
        _same(config.out, facts)
    if config.out.exists():
        if processes.rank() != 0:
            return None
        message = f"{config.out}: holds this very run, and nothing is drawn; delete it to draw anew"
        warnings.warn(message, Notice, stacklevel=2)
        return config.out
    sampled = sample_all(engine, found, config, config.out.with_name(config.out.name + ".journal"), progress)
    if sampled is None:
        return None
    kept = [r for r in sampled.rollouts if r.verdict != REFUSED]
    if not kept:
        raise UserError(
            f"{_given(config)}: no prompt leaves room for a completion; the model takes {engine.max_tokens}"
        )
    told = {
        "identity": facts,
        "content": rollout_files.content_hash(kept),
        "counts": summarise(sampled.rollouts),
        **_provenance(engine, config),
        **sampled.facts,
    }
    rollout_files.warn_if_never_cut(kept, config.split, config.out.name)
    rollout_files.warn_if_unverified(kept, config.out.name)
    writing.write_atomic(beside(config.out), result_files.canonical_json(told))  # first: a file on disk always has it
    rollout_files.write(config.out, kept)
    sampled.journal.remove()
    return config.out


def dry_run(config: RolloutConfig) -> DryRun:
    """The plan of a run, without loading weights. `config.dry_run` must be set."""
    config = options.coerced(config)
    _check(config)
    found = prompt_files.load(_given(config), config.subset, config.limit)
    check_verifiers(found, config)
    engine = open_policy(config)
    return outline(engine, prepare(engine, found, config))


def outline(engine: LM, work: Work) -> DryRun:
    """What drawing this work would take."""
    return DryRun(
        prompts=len(work.prompts),
        refused=sum(room < 1 for room in work.rooms),
        completions=work.n * sum(room > 0 for room in work.rooms),
        prompt_tokens=sum(map(len, work.ids)),
        most_new_tokens=work.n * sum(work.rooms),
        batches=len(work.batches),
        weights_gib=round(engine.weight_bytes / 2**30, 2),
    )


def beside(out: Path) -> Path:
    """Where the counts and the provenance of a rollouts file are."""
    return out.with_name(out.name + ".json")


def counts(out: Path) -> dict[str, Any]:
    """Counts of a finished rollouts file, as `summarise` made them; empty for a file from elsewhere."""
    found: dict[str, Any] = summary(out).get("counts", {})
    return found


# --- what a file is told by -------------------------------------------------------------------------------


def summarise(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Counts of a file: verdicts, cut completions, accuracy over the verified, and prompts by mixture of outcomes."""
    drawn = [r for r in rollouts if r.verdict != REFUSED]
    verified = [r.outcome for r in drawn if r.outcome is not None]
    groups = [{r.outcome for r in rows} - {None} for _, rows in groupby(rollouts, key=lambda r: r.group)]
    return {
        "prompts": len(groups),
        "completions": len(drawn),
        "refused": len(rollouts) - len(drawn),
        "tokens": sum(r.tokens or 0 for r in drawn),
        "verdicts": dict(sorted(Counter(r.verdict for r in drawn).items())),
        "unverified": len(drawn) - len(verified),
        "truncated": sum(r.finish == "length" for r in drawn),
        "empty": sum(not r.completion.strip() for r in drawn),
        "unannounced": sum(bool(r.answer) and not verifiers.answer_or_line(r.completion) for r in drawn),
        "accuracy": round(sum(verified) / len(verified), 6) if verified else None,
        "mixed_prompts": sum(outcomes == {0, 1} for outcomes in groups),
        "all_right_prompts": sum(outcomes == {1} for outcomes in groups),
        "all_wrong_prompts": sum(outcomes == {0} for outcomes in groups),
    }


def _provenance(engine: LM, config: RolloutConfig) -> dict[str, Any]:
    source = template_source(config) or engine.tokenizer.chat_template or ""
    return {
        "config": options.to_json(config),
        "template": text_hash(source if isinstance(source, str) else repr(source)),
        "packages": provenance.packages(*LIBRARIES),
        "hardware": provenance.hardware(),
    }


# --- bad input ----------------------------------------------------------------------------------------------


def _given(config: RolloutConfig) -> Path:
    if config.data is None:
        raise UserError("--data is missing: give a json, jsonl or parquet file of prompts, or gym:NAME")
    return config.data


def _check(config: RolloutConfig) -> None:
    """Mistakes that cost nothing to find."""
    rollout_files.check_suffix(config.out)
    _given(config)
    output_checks.check([config.out, beside(config.out)], config, force=True)  # what is there already, `_same` looks at
    writing.check_writable(config.out.parent)


def _same(out: Path, facts: Mapping[str, Any]) -> None:
    """Raises UserError unless `out`, or at least the summary beside it, is what this very run wrote."""
    begun = summary(out).get("identity")
    path = out if out.exists() else beside(out)
    if not isinstance(begun, dict):
        raise UserError(f"--out {path}: exists, and this command did not write it; name another file")
    changed = sorted(name for name in facts if begun.get(name) != facts[name])
    if changed:
        raise UserError(f"--out {path}: exists, from a run that differs in {', '.join(changed[:4])}; name another file")


def summary(out: Path) -> dict[str, Any]:
    """What was written beside a rollouts file; empty for a file from elsewhere."""
    try:
        told = reading.read_json(beside(out))
    except UserError:
        return {}
    return told if isinstance(told, dict) else {}
