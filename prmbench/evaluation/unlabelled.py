"""`score`: step scores of a user's own solutions, no label needed, as one file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench.backends import Backend, load_backend
from prmbench.config import ScoreConfig
from prmbench.core import output_checks, processes, provenance, result_files, writing
from prmbench.core.records import ScoredTrace, Trace, UserError
from prmbench.data import files, solutions
from prmbench.evaluation import scoring
from prmbench.evaluation.run_files import keep_texts
from prmbench.evaluation.run_identity import identity, slug


def score(config: ScoreConfig, progress: scoring.Progress | None = None) -> Path | None:
    """Scores a user's own solutions: one JSON line each (id, steps, values, tokens, verdicts, unscored)."""
    config = options.coerced(config)
    if config.model in ("gold", "outcome-oracle"):
        raise UserError(f"--model {config.model}: reads labels, and `score` has none; use it with `eval`")
    output_checks.check([config.out], config, force=config.force)
    writing.check_writable(config.out.parent)
    backend, traces, plan = planned(config)
    texts = config.out.with_suffix(".critiques.jsonl")
    output_checks.check([texts], config, force=config.force or not _may_say(backend))
    journal = scoring.score_all(plan, config.out.parent, backend, traces, progress, config.max_cost, config.force)
    if processes.rank() != 0:
        return None
    rows = {row.id: row for row in scoring.collect(plan, journal, traces)[0]}
    lines = [json.dumps(_line(rows[t.id]), sort_keys=True) for t in traces]
    writing.write_atomic(config.out, "".join(f"{line}\n" for line in lines))
    keep_texts(texts, scoring.said(journal))
    journal.remove()
    return config.out


def planned(config: ScoreConfig) -> tuple[Backend, list[Trace], scoring.Plan]:
    """The backend, the user's solutions, and how they will be scored."""
    if config.data is None:
        raise UserError("--data is missing: give a json, jsonl or parquet file of problems and solutions")
    traces = solutions.from_files(config.data, config.split)[: config.limit]
    if not traces:
        raise UserError(f"{config.data}: holds no solution")
    files.unique_ids([t.id for t in traces], config.data.name)
    backend = load_backend(config)
    name = f"{slug(config.model)}-{result_files.short_hash(identity(config, backend, provenance.content_hash(traces)))}"
    return backend, traces, scoring.make_plan(name, backend, traces, config.batch_tokens)


def _may_say(backend: Backend) -> bool:
    """Whether texts may come with the scores: from critics, and from a class of the user's own."""
    return backend.facts.backend in ("critic", "")


def _line(row: ScoredTrace) -> dict[str, Any]:
    return {k: v for k, v in row.to_json().items() if k not in ("label", "outcome", "cluster")}
