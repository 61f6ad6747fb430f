"""`eval` and `score`: loads the data and a backend, scores, computes metrics and writes the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from prmbench import config as options
from prmbench import data, tasks
from prmbench.backends import Backend, check_model, load_backend
from prmbench.backends.rendered import RenderedBackend
from prmbench.config import EvalConfig, ScoreConfig, unused_options
from prmbench.core import processes, result_files, writing
from prmbench.core.option_values import check_names
from prmbench.core.records import EvalProtocol, RunManifest, Trace, Usage, UserError
from prmbench.data import field_names
from prmbench.evaluation import policy_evaluation, run_identity, scoring, unlabelled
from prmbench.evaluation.run_files import is_stored, judge_again, judge_and_write, write_critiques
from prmbench.evaluation.unlabelled import score

__all__ = ["DryRun", "dry_run", "evaluate", "evaluate_traces", "score"]


def evaluate(config: EvalConfig, progress: scoring.Progress | None = None) -> result_files.Run | None:
    """Score a model on a benchmark and write `<out>/<run-id>.json` and its scores.

    The metrics of a finished run are computed again from its stored scores.

    Args:
        config: The options of `prmbench eval`.
        progress: Called after every batch.

    Returns:
        The run; None in all processes but the first under torchrun, where each scores its share.

    Raises:
        UserError: An option, the data or the model cannot be used.
    """
    config = options.validate(config)
    if config.benchmark == "policy":
        return policy_evaluation.evaluate(config, progress)
    check_model(config)  # before the data is loaded, since this is quick
    writing.check_writable(config.out)
    loaded = _load_traces(config)
    return _evaluate(config, loaded, _backend_for_task(load_backend(config), loaded.task), progress, {})


def evaluate_traces(
    config: EvalConfig,
    traces: Sequence[Trace],
    benchmark: str,
    task: str = "steps",
    backend: Backend | None = None,
    progress: scoring.Progress | None = None,
    manifest_fields: Mapping[str, Any] | None = None,
) -> result_files.Run | None:
    """Score a model on traces of the caller and write the run, as `evaluate` does.

    Args:
        config: The options of `prmbench eval`.
        traces: What to score.
        benchmark: Name of the benchmark in the results.
        task: Any task but policy.
        backend: A loaded backend (default: the one that the options name).
        progress: Called after every batch.
        manifest_fields: Fields of the manifest that replace the derived ones, such as model (the name in tables) and
            signal; those in `config` are added to the options.

    Returns:
        The run; None in all processes but the first.

    Raises:
        UserError: An option, a trace or the model cannot be used, or the manifest has no such field.
    """
    config = options.validate(config)
    subsets = tuple(dict.fromkeys(t.subset for t in traces))
    loaded = data.LoadedBenchmark(tuple(traces), subsets, benchmark, None, benchmark, 1, task)
    if tasks.find_task(task).has_threshold:
        run_identity.check_calibration(config, subsets)
    overrides = dict(manifest_fields or {})
    check_names(overrides, (f.name for f in fields(RunManifest)), "manifest_fields: unknown field")
    backend = _backend_for_task(backend or load_backend(config), task)
    overrides["config"] = {**run_identity.recorded_options(config, backend.facts), **overrides.get("config", {})}
    return _evaluate(config, loaded, backend, progress, overrides)


def _load_traces(config: EvalConfig) -> data.LoadedBenchmark:
    row = data.find_benchmark(config.benchmark)
    unused_options.warn_of_unused(config, unused_options.SAMPLING, f"benchmark {config.benchmark} samples nothing")
    if not row.task.has_threshold:
        unused_options.warn_of_unused(config, ("calibrate_on",), f"benchmark {config.benchmark} tunes no threshold")
    if config.rendering and row.render is None:
        raise UserError(f"--rendering: benchmark {config.benchmark} has none; drop it, or use format_shift")
    protocols = [EvalProtocol.parse(key) for key in config.protocol] if row.task.has_board else []
    loaded = data.load(
        config.benchmark,
        config.data,
        config.subset,
        config.limit,
        config.split,
        config.rendering,
        field_names.parse(config.fields),
        config.data_name,
    )
    run_identity.check_calibration(config, loaded.subsets)
    for protocol in protocols:
        if protocol.on not in (None, config.calibrate_on, *loaded.subsets):
            raise UserError(f"protocol {protocol.key}: the data has subsets {', '.join(loaded.subsets)}")
    return loaded


def _backend_for_task(backend: Backend, task: str) -> Backend:
    """Return the backend, wrapped where the task shows it the traces in other formats."""
    return RenderedBackend(backend) if task == "format_shift" else backend


def _make_plan(config: EvalConfig, backend: Backend, loaded: data.LoadedBenchmark, model: str) -> scoring.Plan:
    identity = run_identity.scoring_identity(config, backend, run_identity.content_hash(loaded))
    return scoring.make_plan(run_identity.run_id(model, identity, loaded), backend, loaded.traces, config.batch_tokens)


def _evaluate(
    config: EvalConfig,
    loaded: data.LoadedBenchmark,
    backend: Backend,
    progress: scoring.Progress | None,
    overrides: Mapping[str, Any],
) -> result_files.Run | None:
    """Score the traces and write the run; `overrides` replace derived fields of the manifest."""
    plan = _make_plan(config, backend, loaded, overrides.get("model", config.model))
    path = config.out / f"{plan.run_id}.json"
    if is_stored(path, config):
        return judge_again(path, config, loaded.benchmark) if processes.rank() == 0 else None
    content = run_identity.content_hash(loaded)
    run_fields = {"run_id": plan.run_id, "benchmark_hash": content, "tokens": plan.tokens, **overrides}
    draft = run_identity.run_manifest(config, backend.facts, loaded, run_fields)
    tasks.resolve_protocols(draft, config.protocol)  # before the scoring, not after it
    if not tasks.protocol_keys(draft):
        raise UserError(
            f"benchmark {loaded.benchmark}: needs a score for every step, and {draft.model} gives {draft.kind}s"
        )
    journal = scoring.score_all(plan, config.out, backend, loaded.traces, progress, config.max_cost, config.force)
    if processes.rank() != 0:
        return None
    scores, provenance = scoring.collect(plan, journal, loaded.traces)
    manifest = run_identity.run_manifest(config, backend.facts, loaded, {**run_fields, **provenance})
    write_critiques(path.with_suffix(".critiques.jsonl"), scoring.critiques(journal))
    run = judge_and_write(manifest, scores, config.protocol, path)
    journal.remove()
    return run


@dataclass(frozen=True, slots=True)
class DryRun:
    """The plan of a run, as `--dry-run` prints it."""

    run_id: str
    traces: int
    unscored: int
    tokens: int
    batches: int
    longest_batch: int
    """Tokens of the largest batch, padding included."""
    weights_gib: float
    """Memory of the weights in GiB, reference model included."""
    memory_gib: float
    """Rough estimate of the memory of weights and activations of the largest batch, in GiB."""
    most_prompt_tokens: int = 0
    """Upper bound of a critic's prompt tokens; like the next two, for answers of the greatest length."""
    most_completion_tokens: int = 0
    most_cost: float = 0.0


def dry_run(config: EvalConfig | ScoreConfig) -> DryRun | policy_evaluation.DryRun:
    """Return the plan of a run without loading weights. `config.dry_run` must be set. Raises UserError."""
    config = options.validate(config)
    if isinstance(config, ScoreConfig):
        backend, solutions, plan = unlabelled.make_plan(config)
        traces = tuple(solutions)
    elif config.benchmark == "policy":
        return policy_evaluation.dry_run(config)
    else:
        loaded = _load_traces(config)
        backend, traces = _backend_for_task(load_backend(config), loaded.task), loaded.traces
        plan = _make_plan(config, backend, loaded, config.model)
    padded_tokens = [len(batch) * max(plan.costs[i] for i in batch) for batch in plan.batches]
    unscored = 0 if backend.facts.engine == "none" else sum(cost == 0 for cost in plan.costs)
    weights = backend.facts.weight_bytes / 2**30
    memory = weights + max(padded_tokens) * backend.facts.token_bytes / 2**30
    max_usage = getattr(backend, "at_most", None)
    usages: list[Usage] = [max_usage(trace) for trace in traces] if max_usage else []
    return DryRun(
        plan.run_id,
        len(plan.costs),
        unscored,
        plan.tokens,
        len(plan.batches),
        max(padded_tokens),
        round(weights, 2),
        round(memory, 2),
        sum(u.prompt_tokens for u in usages),
        sum(u.completion_tokens for u in usages),
        round(sum(u.cost for u in usages), 6),
    )
