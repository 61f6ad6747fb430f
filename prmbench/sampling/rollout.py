"""`prmbench rollout`: samples and verifies completions, and writes a rollout file with its counts and provenance.

completions.py samples; this module checks the options and writes the file and its summary.
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
from prmbench.core.result_files import journal_identity
from prmbench.data import field_names
from prmbench.data import prompts as prompt_files
from prmbench.data import rollouts as rollout_files
from prmbench.data.rollouts import Rollout
from prmbench.engines.choice import with_engine
from prmbench.sampling.completions import (
    REFUSED,
    Progress,
    SamplingPlan,
    check_verifiers,
    open_policy,
    prepare,
    run_identity,
    sample_with_journal,
)
from prmbench.verification import verifiers

VERIFIER_PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy", "reasoning_gym")
"""Packages that affect verdicts, whose versions are recorded since their rules change between releases."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """Size of a run, computed without running it."""

    prompts: int
    refused: int
    """Number of prompts that fill the model's context."""
    completions: int
    prompt_tokens: int
    most_new_tokens: int
    """Number of new tokens if no completion ended before its limit."""
    batches: int
    weights_gib: float


def run_rollout(config: RolloutConfig, progress: Progress | None = None) -> Path | None:
    """Sample and verify completions, and write `config.out` and `<out>.json` with counts and provenance.

    Resumes an interrupted run, and does nothing when the same run is finished. Under torchrun each process takes some
    of the batches, and process 0 writes.

    Args:
        config: The run.
        progress: Called after each batch.

    Returns:
        The rollout file in process 0, None in the others.

    Raises:
        UserError: An option or an input is invalid, or `config.out` is from another run.
    """
    config = _with_engine(options.validate(config))
    _check(config)
    prompts = _load_prompts(config)
    check_verifiers(prompts, config)
    engine = open_policy(config)
    expected_identity = run_identity(engine, prepare(engine, prompts, config), config)
    if not config.force and (config.out.exists() or sidecar_path(config.out).exists()):
        _check_same_run(config.out, expected_identity)
    if config.out.exists() and not config.force:
        if processes.rank() != 0:
            return None
        message = f"{config.out}: holds this very run, and nothing is drawn; --force draws anew"
        warnings.warn(message, Notice, stacklevel=2)
        return config.out
    sampled = sample_with_journal(engine, prompts, config, _journal_path(config.out), progress, config.force)
    if sampled is None:
        return None
    completed = [r for r in sampled.rollouts if r.verdict != REFUSED]
    if not completed:
        raise UserError(
            f"{_prompt_source(config)}: no prompt leaves room for a completion; the model takes {engine.max_tokens}"
        )
    sidecar = {
        "identity": expected_identity,
        "content": rollout_files.content_hash(completed),
        "counts": summarise(sampled.rollouts),
        **_provenance(engine, config),
        **sampled.facts,
    }
    rollout_files.warn_if_never_split(completed, config.split, config.out.name)
    rollout_files.warn_if_unverified(completed, config.out.name)
    # The sidecar is written first, so that a rollout file on disk always has one.
    writing.write_atomic(sidecar_path(config.out), result_files.canonical_json(sidecar))
    rollout_files.write(config.out, completed)
    sampled.journal.remove()
    return config.out


def dry_run(config: RolloutConfig) -> DryRun:
    """Return the size of a run, without loading weights; `config.dry_run` must be set.

    Raises:
        UserError: An option or an input is invalid.
    """
    config = _with_engine(options.validate(config))
    _check(config)
    prompts = _load_prompts(config)
    check_verifiers(prompts, config)
    engine = open_policy(config)
    return summarise_plan(engine, prepare(engine, prompts, config))


def summarise_plan(engine: LM, plan: SamplingPlan) -> DryRun:
    """Return the size of a sampling plan."""
    return DryRun(
        prompts=len(plan.prompts),
        refused=sum(limit < 1 for limit in plan.token_limits),
        completions=plan.n * sum(limit > 0 for limit in plan.token_limits),
        prompt_tokens=sum(map(len, plan.prompt_ids)),
        most_new_tokens=plan.n * sum(plan.token_limits),
        batches=len(plan.batches),
        weights_gib=round(engine.weight_bytes / 2**30, 2),
    )


def _with_engine(config: RolloutConfig) -> RolloutConfig:
    """Return the config with the engine of the run that `out` holds or is to hold, where that is left to `auto`."""
    sidecar_identity = read_sidecar(config.out).get("identity")
    known = sidecar_identity if isinstance(sidecar_identity, dict) else journal_identity(_journal_path(config.out))
    return with_engine(config, samples=True, recorded=None if config.force else known.get("engine"))


def _journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".journal")


def sidecar_path(out: Path) -> Path:
    """Return the path of a rollout file's sidecar, which holds its counts and provenance."""
    return out.with_name(out.name + ".json")


def read_counts(out: Path) -> dict[str, Any]:
    """Return the counts in a rollout file's sidecar, as `summarise` made them; empty where there is no sidecar."""
    sidecar_counts: dict[str, Any] = read_sidecar(out).get("counts", {})
    return sidecar_counts


# --- counts and provenance -------------------------------------------------------------------------------


def summarise(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return counts of rollouts: verdicts, truncated completions, accuracy of the verified, and prompts by outcomes."""
    sampled = [r for r in rollouts if r.verdict != REFUSED]
    verified = [r.outcome for r in sampled if r.outcome is not None]
    groups = [{r.outcome for r in rows} - {None} for _, rows in groupby(rollouts, key=lambda r: r.group)]
    return {
        "prompts": len(groups),
        "completions": len(sampled),
        "refused": len(rollouts) - len(sampled),
        "tokens": sum(r.tokens or 0 for r in sampled),
        "verdicts": dict(sorted(Counter(r.verdict for r in sampled).items())),
        "unverified": len(sampled) - len(verified),
        "truncated": sum(r.finish == "length" for r in sampled),
        "empty": sum(not r.completion.strip() for r in sampled),
        "unannounced": sum(bool(r.answer) and not verifiers.answer_or_line(r.completion) for r in sampled),
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
        "packages": provenance.package_versions(*VERIFIER_PACKAGES),
        "hardware": provenance.hardware(),
    }


# --- bad input ----------------------------------------------------------------------------------------------


def _load_prompts(config: RolloutConfig) -> list[prompt_files.Prompt]:
    names = field_names.parse(config.fields)
    return prompt_files.load(_prompt_source(config), config.subset, config.limit, names)


def _prompt_source(config: RolloutConfig) -> Path:
    if config.data is None:
        raise UserError("--data is missing: give a json, jsonl or parquet file of prompts, or gym:NAME")
    return config.data


def _check(config: RolloutConfig) -> None:
    """Raise UserError on invalid options, before anything slow begins."""
    rollout_files.check_suffix(config.out)
    _prompt_source(config)
    # `force`, because `_check_same_run` looks at existing files.
    output_checks.check_outputs([config.out, sidecar_path(config.out)], config, force=True)
    writing.check_writable(config.out.parent)


def _check_same_run(out: Path, expected_identity: Mapping[str, Any]) -> None:
    """Raise UserError unless `out`, or at least its sidecar, was written by the same run."""
    recorded = read_sidecar(out).get("identity")
    path = out if out.exists() else sidecar_path(out)
    if not isinstance(recorded, dict):
        raise UserError(f"--out {path}: exists, and this command did not write it; name another file, or pass --force")
    changed = sorted(name for name in expected_identity if recorded.get(name) != expected_identity[name])
    if changed:
        differences = ", ".join(changed[:4])
        raise UserError(f"--out {path}: exists, from a run that differs in {differences}; name another file or --force")


def read_sidecar(out: Path) -> dict[str, Any]:
    """Return the sidecar of a rollout file; empty where there is none that can be read."""
    try:
        sidecar = reading.read_json(sidecar_path(out))
    except UserError:
        return {}
    return sidecar if isinstance(sidecar, dict) else {}
