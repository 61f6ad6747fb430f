"""`eval` and `score`: data -> backend -> scores -> files. The steps live elsewhere; here they are put in order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench import data, distributed, judge, manifest, scoring, store
from prmbench.backends import Backend, find_card, load_backend, source_hash
from prmbench.config import EvalConfig, ModelConfig, ScoreConfig
from prmbench.data import files, solutions
from prmbench.schema import SCORING_VERSION, EvalProtocol, RunManifest, RunResult, ScoredTrace, Trace, UserError


def evaluate(config: EvalConfig, progress: scoring.Progress | None = None) -> store.Run | None:
    """Scores a model on a benchmark and writes `<out>/<run-id>.json` with its scores beside it.

    A finished run is judged again, not scored again. Under torchrun every process scores its share and process 0
    writes; the others return None. Raises UserError.
    """
    config = options.coerced(config)
    wanted = [EvalProtocol.parse(key) for key in config.protocol]
    find_card(config)  # mistakes that cost nothing to find come first
    _check_writable(config.out)
    loaded = data.load(config.benchmark, config.data, config.subset, config.limit)
    for protocol in wanted:
        if protocol.on not in (None, config.calibrate_on, *loaded.subsets):
            raise UserError(f"protocol {protocol.key}: the data has subsets {', '.join(loaded.subsets)}")
    backend = load_backend(config)
    plan = scoring.make_plan(_run_id(config, backend, loaded), backend, loaded.traces, config.batch_tokens)
    path = config.out / f"{plan.run_id}.json"
    if path.exists():
        return _judge_again(path, config, wanted) if distributed.rank() == 0 else None
    for protocol in wanted:  # before the scoring, not after it
        judge.resolve(_manifest(config, backend, loaded, plan, {}), protocol)
    journal = scoring.score_all(plan, config.out, backend, loaded.traces, progress)
    if distributed.rank() != 0:
        return None
    scores, provenance = scoring.collect(plan, journal, loaded.traces)
    run = _finish(_manifest(config, backend, loaded, plan, provenance), scores, wanted, path)
    journal.remove()
    return run


def _judge_again(path: Path, config: EvalConfig, wanted: Sequence[EvalProtocol]) -> store.Run:
    """The stored scores under today's judging options: they move rows, not scores."""
    run = store.read_run(path)
    if run.result.manifest.scoring_version != SCORING_VERSION:
        raise UserError(f"{path}: scored by another version of the code; choose another --out to score afresh")
    facts = replace(run.result.manifest, seed=config.seed, calibrate_on=config.calibrate_on)
    return _finish(facts, run.scores, wanted, path)


def _finish(facts: RunManifest, scores: Sequence[ScoredTrace], wanted: Sequence[EvalProtocol], path: Path) -> store.Run:
    """Judges scores and writes the run. Scores are judged as they are stored, so a recomputation agrees exactly."""
    known = {p.key for p in judge.protocols(facts)}
    for protocol in wanted:
        judge.resolve(facts, protocol)
    extra = {*facts.extra_protocols, *(p.key for p in wanted if p.key not in known)}
    packed = store.pack_scores(scores)
    facts = replace(facts, extra_protocols=tuple(sorted(extra)), scores_sha256=store.sha256(packed))
    kept = store.unpack_scores(packed, path)
    result = RunResult(facts, judge.judge(facts, kept))
    store.write_run(path, result, packed)
    return store.Run(result, kept, path)


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


def dry_run(config: EvalConfig | ScoreConfig) -> DryRun:
    """The plan of a run, without loading weights. `config.dry_run` must be set."""
    if isinstance(config, ScoreConfig):
        backend, _, plan = _solutions(config)
    else:
        loaded = data.load(config.benchmark, config.data, config.subset, config.limit)
        backend = load_backend(config)
        plan = scoring.make_plan(_run_id(config, backend, loaded), backend, loaded.traces, config.batch_tokens)
    padded = [len(batch) * max(plan.costs[i] for i in batch) for batch in plan.batches]
    unscored = 0 if backend.facts.engine == "none" else sum(cost == 0 for cost in plan.costs)
    weights = backend.facts.weight_bytes / 2**30
    memory = weights + max(padded) * backend.facts.token_bytes / 2**30
    return DryRun(
        plan.run_id,
        len(plan.costs),
        unscored,
        plan.tokens,
        len(plan.batches),
        max(padded),
        round(weights, 2),
        round(memory, 2),
    )


def score(config: ScoreConfig, progress: scoring.Progress | None = None) -> Path | None:
    """Scores a user's own solutions: one JSON line each (id, steps, values, tokens, verdicts, unscored)."""
    config = options.coerced(config)
    if config.model in ("gold", "outcome-oracle"):
        raise UserError(f"--model {config.model}: reads labels, and `score` has none; use it with `eval`")
    if config.out.is_dir():
        raise UserError(f"--out {config.out}: is a folder; name a file for the step scores")
    if config.data is not None and config.out.resolve() == config.data.resolve():
        raise UserError(f"--out {config.out}: is the file that --data reads; name another for the step scores")
    _check_writable(config.out.parent)
    backend, traces, plan = _solutions(config)
    journal = scoring.score_all(plan, config.out.parent, backend, traces, progress)
    if distributed.rank() != 0:
        return None
    rows = {row.id: row for row in scoring.collect(plan, journal, traces)[0]}
    lines = [json.dumps(_scored_line(rows[t.id]), sort_keys=True) for t in traces]
    store.write_atomic(config.out, "".join(f"{line}\n" for line in lines))
    journal.remove()
    return config.out


def _solutions(config: ScoreConfig) -> tuple[Backend, list[Trace], scoring.Plan]:
    """The backend, the user's solutions, and how they will be scored."""
    if config.data is None:
        raise UserError("--data is missing: give a json, jsonl or parquet file of problems and solutions")
    data.check_limit(config.limit)
    traces = solutions.from_files(config.data, config.split)[: config.limit]
    if not traces:
        raise UserError(f"{config.data}: holds no solution")
    files.unique_ids([t.id for t in traces], config.data.name)
    backend = load_backend(config)
    run_id = f"{_slug(config.model)}-{store.short_hash(_identity(config, backend, manifest.content_hash(traces)))}"
    return backend, traces, scoring.make_plan(run_id, backend, traces, config.batch_tokens)


def _scored_line(row: ScoredTrace) -> dict[str, Any]:
    return {k: v for k, v in row.to_json().items() if k not in ("label", "outcome", "cluster")}


def _check_writable(folder: Path) -> None:
    """Finds out before the scoring, not after it, that nothing can be written."""
    probe = folder / ".prmbench-write-test"
    store.write_atomic(probe, "")
    probe.unlink(missing_ok=True)  # of several processes another one may have been quicker


# --- identity and provenance ------------------------------------------------------------------------------


def _identity(config: ModelConfig, backend: Backend, content: str) -> dict[str, Any]:
    """All that moves a score, and nothing else: the run id is its hash."""
    told = ("kind", "input_format", "revision", "weights", "ref_model", "ref_revision", "ref_weights", "template")
    facts = asdict(backend.facts)
    return {
        **{name: facts[name] for name in (*told, "dtype", "engine", "device")},
        "model": options.public_name(config.model),
        "backend": backend.facts.backend or f"{config.backend} {source_hash(config.backend)}",
        "boundary": config.boundary,
        "batch_tokens": scoring.batch_budget(backend, config.batch_tokens),
        "content": content,
        **({"seed": config.seed} if backend.facts.engine != "hf" else {}),  # a forward pass has no chance in it
        **({"decay": config.decay} if backend.facts.backend == "endo" else {}),
    }


def _run_id(config: EvalConfig, backend: Backend, loaded: data.Loaded) -> str:
    facts = _identity(config, backend, manifest.content_hash(loaded.traces))
    facts |= {"benchmark": config.benchmark, "version": data.BENCHMARKS[config.benchmark].version}
    return f"{_slug(config.model)}-{store.short_hash(facts)}"


def _slug(model: str) -> str:
    """A model's name as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", options.public_name(model).removesuffix(".gguf").lower()).strip("-.")


def _manifest(
    config: EvalConfig, backend: Backend, loaded: data.Loaded, plan: scoring.Plan, provenance: Mapping[str, Any]
) -> RunManifest:
    facts = {k: v for k, v in asdict(backend.facts).items() if not k.endswith("_bytes")}
    facts["backend"] = facts["backend"] or config.backend
    return RunManifest(
        run_id=plan.run_id,
        model=options.public_name(config.model),
        boundary=config.boundary,
        benchmark=config.benchmark,
        benchmark_version=data.BENCHMARKS[config.benchmark].version,
        benchmark_hash=manifest.content_hash(loaded.traces),
        subsets=loaded.subsets,
        n=len(loaded.traces),
        config=options.to_json(config),
        seed=config.seed,
        scores_sha256="",
        calibrate_on=config.calibrate_on,
        data_source=loaded.source,
        data_revision=loaded.revision,
        packages=manifest.packages(),
        tokens=plan.tokens,
        **facts,
        **provenance,
    )
