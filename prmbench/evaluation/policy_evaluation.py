"""`eval --benchmark policy`: samples completions of prompts and verifies them; each becomes a scored trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prmbench import data, tasks
from prmbench.backends import Facts
from prmbench.backends.cards import ModelCard
from prmbench.backends.common import LM, chat_format, model_facts
from prmbench.config import EvalConfig, unused_options
from prmbench.core import processes, provenance, result_files, writing
from prmbench.core.records import RunManifest, UserError
from prmbench.data import field_names, rollouts
from prmbench.data import prompts as prompt_files
from prmbench.data.prompts import Prompt
from prmbench.engines.choice import with_engine
from prmbench.evaluation import stored_rollouts
from prmbench.evaluation.completion_traces import prompts_hash, scored_trace
from prmbench.evaluation.run_files import is_stored, judge_again, judge_and_write
from prmbench.evaluation.run_identity import check_calibration, run_id, run_manifest
from prmbench.sampling import completions as sampler
from prmbench.sampling.rollout import VERIFIER_PACKAGES, DryRun, summarise_plan


@dataclass(frozen=True, slots=True)
class _Plan:
    run_id: str
    engine: LM
    prompts: tuple[Prompt, ...]
    loaded: data.LoadedBenchmark
    """Subsets and source. It holds no traces: there are none before completions are sampled."""


def evaluate(config: EvalConfig, progress: sampler.Progress | None = None) -> result_files.Run | None:
    """Sample and verify completions and write the run; see `evaluation.evaluate`.

    The completions are written to `<run-id>.rollouts.jsonl`. Without a model, `--data` holds completions.

    Raises:
        UserError: An option, the data or the model cannot be used.
    """
    if not config.model:
        return stored_rollouts.evaluate(config)
    writing.check_writable(config.out)
    _warn_of_unused_options(config)
    config = with_engine(config, samples=True)
    plan = _make_plan(config)
    check_calibration(config, plan.loaded.subsets)
    path = config.out / f"{plan.run_id}.json"
    if is_stored(path, config):
        return judge_again(path, config, plan.loaded.benchmark) if processes.rank() == 0 else None
    tasks.resolve_protocols(_manifest(config, plan), config.protocol)  # before the sampling, not after it
    folder = config.out / f"{plan.run_id}.journal"
    sampled = sampler.sample_with_journal(plan.engine, plan.prompts, config, folder, progress, config.force)
    if sampled is None:
        return None
    completions = sampled.rollouts
    if all(r.verdict == sampler.REFUSED for r in completions):
        room = plan.engine.max_tokens
        raise UserError(f"{plan.loaded.source}: no prompt leaves room for a completion; the model takes {room}")
    tokens = sum(r.tokens or 0 for r in completions)
    manifest = _manifest(config, plan, tokens=tokens, n=len(completions), **sampled.facts)
    rollouts.warn_if_never_split(completions, config.split, f"{plan.run_id}.rollouts.jsonl")
    rollouts.warn_if_unverified(completions, plan.loaded.source)
    rollouts.write(config.out / f"{plan.run_id}.rollouts.jsonl", completions)
    run = judge_and_write(manifest, [scored_trace(r) for r in completions], config.protocol, path)
    sampled.journal.remove()
    return run


def _warn_of_unused_options(config: EvalConfig) -> None:
    """Give a Notice on options of reward models; the engine refuses those that it lacks itself."""
    names = ("rendering", "calibrate_on", *unused_options.STEP_SCORES)
    unused_options.warn_of_unused(config, names, "benchmark policy samples completions and scores no steps")
    if config.temperature == 0:
        unused_options.warn_of_unused(config, ("top_p", "top_k"), "--temperature 0 is greedy")


def dry_run(config: EvalConfig) -> DryRun:
    """Return the plan of a run without loading weights. Raises UserError."""
    config = with_engine(config, samples=True)
    plan = _make_plan(config)
    work = sampler.prepare(plan.engine, plan.prompts, config)
    return summarise_plan(plan.engine, work)


def _make_plan(config: EvalConfig) -> _Plan:
    if config.data is None:
        raise UserError("--data is missing: benchmark policy reads prompts with answers, or gym:NAME")
    prompts = tuple(prompt_files.load(config.data, config.subset, config.limit, field_names.parse(config.fields)))
    sampler.check_verifiers(prompts, config)
    subsets = tuple(dict.fromkeys(p.subset for p in prompts))
    loaded = data.without_traces(data.find_benchmark("policy"), subsets, config.data.name, config.data_name)
    engine = sampler.open_policy(config)
    identity = sampler.run_identity(engine, sampler.prepare(engine, prompts, config), config)
    return _Plan(run_id(config.model, identity, loaded), engine, prompts, loaded)


def _manifest(config: EvalConfig, plan: _Plan, **run_fields: Any) -> RunManifest:
    facts: Facts = model_facts(
        ModelCard(config.model, "policy"), config, plan.engine, kind="outcome", input_format=chat_format(config)
    )
    return run_manifest(
        config,
        facts,
        plan.loaded,
        {
            "run_id": plan.run_id,
            "benchmark_hash": prompts_hash((p.id, p.subset, p.text, p.gold) for p in plan.prompts),
            "packages": provenance.package_versions(*VERIFIER_PACKAGES),
            **run_fields,
        },
    )
