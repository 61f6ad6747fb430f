"""`eval` and `score`: data -> backend -> scores -> files. The steps live elsewhere; here they are put in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prmbench import config as options
from prmbench import data, tasks
from prmbench.backends import Backend, find_card, load_backend
from prmbench.backends.rendered import RenderedBackend
from prmbench.config import EvalConfig, ScoreConfig
from prmbench.core import processes, result_files, writing
from prmbench.core.records import EvalProtocol, Task, Trace, UserError
from prmbench.core.validation import OF_FIRST_ERRORS
from prmbench.evaluation import policy_evaluation, run_identity, scoring, unlabelled
from prmbench.evaluation.run_files import finish, is_stored, judge_again, keep_texts
from prmbench.evaluation.unlabelled import score

__all__ = ["DryRun", "dry_run", "evaluate", "evaluate_traces", "score"]


def evaluate(config: EvalConfig, progress: scoring.Progress | None = None) -> result_files.Run | None:
    """Scores a model on a benchmark and writes `<out>/<run-id>.json` with its scores beside it.

    A finished run is judged again, not scored again. Under torchrun every process scores its share and process 0
    writes; the others return None. Raises UserError.
    """
    config = options.coerced(config)
    if config.benchmark == "policy":
        return policy_evaluation.evaluate(config, progress)
    find_card(config)  # mistakes that cost nothing to find come first
    writing.check_writable(config.out)
    loaded = _loaded(config)
    return _evaluate(config, loaded, _shown_to(load_backend(config), loaded.task), progress, {})


def evaluate_traces(
    config: EvalConfig,
    traces: Sequence[Trace],
    benchmark: str,
    task: Task = "steps",
    backend: Backend | None = None,
    progress: scoring.Progress | None = None,
    told: Mapping[str, Any] | None = None,
) -> result_files.Run | None:
    """The same on traces at hand, under a benchmark name of the caller's; not for task policy.

    `backend`: one that is loaded already (default: what the options say). `told`: manifest fields that the caller
    knows better, such as model (the name in tables) and signal; what it says of `config` is added to the options.
    """
    config = options.coerced(config)
    subsets = tuple(dict.fromkeys(t.subset for t in traces))
    loaded = data.Loaded(tuple(traces), subsets, benchmark, None, benchmark, 1, task)
    if task in OF_FIRST_ERRORS:  # the others tune no threshold
        run_identity.check_calibration(config, subsets)
    known = dict(told or {})
    known["config"] = {**options.to_json(config), **known.get("config", {})}
    return _evaluate(config, loaded, _shown_to(backend or load_backend(config), task), progress, known)


def _loaded(config: EvalConfig) -> data.Loaded:
    if config.rendering and config.benchmark != "format_shift":
        raise UserError(f"--rendering: benchmark {config.benchmark} has none; drop it, or use format_shift")
    steps = data.BENCHMARKS[config.benchmark].task == "steps"
    wanted = [EvalProtocol.parse(key) for key in config.protocol] if steps else []
    loaded = data.load(config.benchmark, config.data, config.subset, config.limit, config.split, config.rendering)
    run_identity.check_calibration(config, loaded.subsets)
    for protocol in wanted:
        if protocol.on not in (None, config.calibrate_on, *loaded.subsets):
            raise UserError(f"protocol {protocol.key}: the data has subsets {', '.join(loaded.subsets)}")
    return loaded


def _shown_to(backend: Backend, task: Task) -> Backend:
    """The backend, which reads traces as the task has them read."""
    return RenderedBackend(backend) if task == "format_shift" else backend


def _planned(config: EvalConfig, backend: Backend, loaded: data.Loaded, model: str) -> scoring.Plan:
    name = run_identity.run_id(model, run_identity.identity(config, backend, run_identity.content(loaded)), loaded)
    return scoring.make_plan(name, backend, loaded.traces, config.batch_tokens)


def _evaluate(
    config: EvalConfig,
    loaded: data.Loaded,
    backend: Backend,
    progress: scoring.Progress | None,
    told: Mapping[str, Any],
) -> result_files.Run | None:
    plan = _planned(config, backend, loaded, told.get("model", config.model))
    path = config.out / f"{plan.run_id}.json"
    if is_stored(path, config):
        return judge_again(path, config) if processes.rank() == 0 else None
    known = {"run_id": plan.run_id, "benchmark_hash": run_identity.content(loaded), "tokens": plan.tokens, **told}
    draft = run_identity.run_manifest(config, backend.facts, loaded, known)
    tasks.checked(draft, config.protocol)  # before the scoring, not after it
    if not tasks.keys(draft):
        raise UserError(
            f"benchmark {loaded.benchmark}: needs a score for every step, and {draft.model} gives {draft.kind}s"
        )
    journal = scoring.score_all(plan, config.out, backend, loaded.traces, progress, config.max_cost, config.force)
    if processes.rank() != 0:
        return None
    scores, provenance = scoring.collect(plan, journal, loaded.traces)
    made = run_identity.run_manifest(config, backend.facts, loaded, {**known, **provenance})
    keep_texts(path.with_suffix(".critiques.jsonl"), scoring.said(journal))
    run = finish(made, scores, config.protocol, path)
    journal.remove()
    return run


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do."""

    run_id: str
    traces: int
    unscored: int
    tokens: int
    batches: int
    longest_batch: int
    """Padded tokens of the largest batch."""
    weights_gib: float
    """Memory of the weights, reference model included."""
    memory_gib: float
    """The same with the activations of the largest batch: a guess."""
    most_prompt_tokens: int = 0
    """Of a critic, if every answer is as long as it may be; like the next two."""
    most_completion_tokens: int = 0
    most_cost: float = 0.0


def dry_run(config: EvalConfig | ScoreConfig) -> DryRun | policy_evaluation.DryRun:
    """The plan of a run, without loading weights. `config.dry_run` must be set."""
    if isinstance(config, ScoreConfig):
        backend, found, plan = unlabelled.planned(config)
        traces = tuple(found)
    elif config.benchmark == "policy":
        return policy_evaluation.dry_run(config)
    else:
        loaded = _loaded(config)
        backend, traces = _shown_to(load_backend(config), loaded.task), loaded.traces
        plan = _planned(config, backend, loaded, config.model)
    padded = [len(batch) * max(plan.costs[i] for i in batch) for batch in plan.batches]
    unscored = 0 if backend.facts.engine == "none" else sum(cost == 0 for cost in plan.costs)
    weights = backend.facts.weight_bytes / 2**30
    memory = weights + max(padded) * backend.facts.token_bytes / 2**30
    most = [at_most(trace) for trace in traces] if (at_most := getattr(backend, "at_most", None)) else []
    return DryRun(
        plan.run_id,
        len(plan.costs),
        unscored,
        plan.tokens,
        len(plan.batches),
        max(padded),
        round(weights, 2),
        round(memory, 2),
        sum(u.prompt_tokens for u in most),
        sum(u.completion_tokens for u in most),
        round(sum(u.cost for u in most), 6),
    )
