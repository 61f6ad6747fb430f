"""`eval --benchmark policy`: prompts -> the policy's own completions -> verdicts -> one scored trace a completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prmbench import data, tasks
from prmbench.backends import Facts
from prmbench.backends.cards import ModelCard
from prmbench.backends.common import LM, chat_format, model_facts
from prmbench.config import EvalConfig
from prmbench.core import processes, provenance, result_files, writing
from prmbench.core.records import RunManifest, UserError
from prmbench.data import prompts as prompt_files
from prmbench.data import rollouts
from prmbench.data.prompts import Prompt
from prmbench.evaluation import stored_rollouts
from prmbench.evaluation.completion_traces import prompts_hash, scored
from prmbench.evaluation.run_files import finish, is_stored, judge_again
from prmbench.evaluation.run_identity import check_calibration, run_id, run_manifest
from prmbench.sampling import completions as sampler
from prmbench.sampling.rollout import LIBRARIES, DryRun, outline


@dataclass(frozen=True, slots=True)
class _Planned:
    run_id: str
    engine: LM
    prompts: tuple[Prompt, ...]
    about: data.Loaded
    """Subsets and source. It holds no trace: there is none before the policy has spoken."""


def evaluate(config: EvalConfig, progress: sampler.Progress | None = None) -> result_files.Run | None:
    """Draws and verifies completions and writes the run; see `evaluation.evaluate`.

    The texts stay beside it, as `<run-id>.rollouts.jsonl`. Without a model, `--data` holds completions. Raises
    UserError.
    """
    if not config.model:
        return stored_rollouts.evaluate(config)
    writing.check_writable(config.out)
    plan = _planned(config)
    check_calibration(config, plan.about.subsets)
    path = config.out / f"{plan.run_id}.json"
    if is_stored(path, config):
        return judge_again(path, config) if processes.rank() == 0 else None
    tasks.checked(_manifest(config, plan), config.protocol)  # before the sampling, not after it
    folder = config.out / f"{plan.run_id}.journal"
    sampled = sampler.sample_all(plan.engine, plan.prompts, config, folder, progress, config.force)
    if sampled is None:
        return None
    found = sampled.rollouts
    if all(r.verdict == sampler.REFUSED for r in found):
        room = plan.engine.max_tokens
        raise UserError(f"{plan.about.source}: no prompt leaves room for a completion; the model takes {room}")
    made = {"tokens": sum(r.tokens or 0 for r in found), "n": len(found), **sampled.facts}
    rollouts.warn_if_never_cut(found, config.split, f"{plan.run_id}.rollouts.jsonl")
    rollouts.warn_if_unverified(found, plan.about.source)
    rollouts.write(config.out / f"{plan.run_id}.rollouts.jsonl", found)
    run = finish(_manifest(config, plan, **made), [scored(r) for r in found], config.protocol, path)
    sampled.journal.remove()
    return run


def dry_run(config: EvalConfig) -> DryRun:
    """The plan of a run, without loading weights."""
    plan = _planned(config)
    work = sampler.prepare(plan.engine, plan.prompts, config)
    return outline(plan.engine, work)


def _planned(config: EvalConfig) -> _Planned:
    sampler.how_drawn(config)  # mistakes that cost nothing to find come first
    if config.data is None:
        raise UserError("--data is missing: benchmark policy reads prompts with answers, or gym:NAME")
    prompts = tuple(prompt_files.load(config.data, config.subset, config.limit))
    sampler.check_verifiers(prompts, config)
    row = data.BENCHMARKS["policy"]
    subsets = tuple(dict.fromkeys(p.subset for p in prompts))
    about = data.Loaded((), subsets, config.data.name, None, row.name, row.version, row.task)
    engine = sampler.open_policy(config)
    identity = sampler.identity(engine, sampler.prepare(engine, prompts, config), config)
    return _Planned(run_id(config.model, identity, about), engine, prompts, about)


def _manifest(config: EvalConfig, plan: _Planned, **known: Any) -> RunManifest:
    facts: Facts = model_facts(
        ModelCard(config.model, "policy"), config, plan.engine, kind="outcome", input_format=chat_format(config)
    )
    return run_manifest(
        config,
        facts,
        plan.about,
        {
            "run_id": plan.run_id,
            "benchmark_hash": prompts_hash((p.id, p.subset, p.text, p.gold) for p in plan.prompts),
            "packages": provenance.packages(*LIBRARIES),
            **known,
        },
    )
