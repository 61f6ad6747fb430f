"""`score`: writes the step scores of unlabelled solutions as JSON lines."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench.backends import Backend, load_backend
from prmbench.config import ScoreConfig
from prmbench.core import output_checks, processes, provenance, result_files, writing
from prmbench.core.records import Notice, ScoredTrace, Trace, UserError
from prmbench.data import field_names, files, solutions
from prmbench.evaluation import scoring
from prmbench.evaluation.run_files import write_critiques
from prmbench.evaluation.run_identity import scoring_identity, slug
from prmbench.tasks import wording


def score(config: ScoreConfig, progress: scoring.Progress | None = None) -> Path | None:
    """Score solutions without labels and write one JSON line each: id, steps, values, tokens, verdicts, unscored.

    With `name` every line also has it, as `model`.

    Args:
        config: The options of `prmbench score`.
        progress: Called after every batch.

    Returns:
        The file; None in all processes but the first under torchrun, where each scores its share.

    Raises:
        UserError: An option, the data or the model cannot be used.
    """
    config = options.validate(config)
    if config.model in ("gold", "outcome-oracle"):
        raise UserError(f"--model {config.model}: reads labels, and `score` has none; use it with `eval`")
    output_checks.check_outputs([config.out], config, force=config.force)
    writing.check_writable(config.out.parent)
    backend, traces, plan = make_plan(config)
    critiques_path = config.out.with_suffix(".critiques.jsonl")
    output_checks.check_outputs([critiques_path], config, force=config.force or not _may_write_critiques(backend))
    journal = scoring.score_all(plan, config.out.parent, backend, traces, progress, config.max_cost, config.force)
    if processes.rank() != 0:
        return None
    scores, facts = scoring.collect(plan, journal, traces)
    rows = {row.id: row for row in scores}
    if "answers" in facts:
        usage = wording.usage(*(facts[name] for name in ("tokens", "completion_tokens", "answers", "cost")))
        warnings.warn(f"the critic: {usage}", Notice, stacklevel=2)
    model = {"model": config.name} if config.name else {}
    lines = [json.dumps({**_without_labels(rows[t.id]), **model}, sort_keys=True) for t in traces]
    writing.write_atomic(config.out, "".join(f"{line}\n" for line in lines))
    write_critiques(critiques_path, scoring.critiques(journal))
    journal.remove()
    return config.out


def make_plan(config: ScoreConfig) -> tuple[Backend, list[Trace], scoring.Plan]:
    """Return the backend, the solutions as traces, and the plan of scoring them. Raises UserError."""
    if config.data is None:
        raise UserError("--data is missing: give a json, jsonl or parquet file of problems and solutions")
    traces = solutions.from_files(config.data, config.split, field_names.parse(config.fields))[: config.limit]
    if not traces:
        raise UserError(f"{config.data}: holds no solution")
    files.check_unique_ids([t.id for t in traces], config.data.name)
    backend = load_backend(config)
    identity = scoring_identity(config, backend, provenance.content_hash(traces))
    name = f"{slug(config.model)}-{result_files.short_hash(identity)}"
    return backend, traces, scoring.make_plan(name, backend, traces, config.batch_tokens)


def _may_write_critiques(backend: Backend) -> bool:
    """Return whether texts may come with the scores, as from critics and from backends outside the package."""
    return backend.facts.backend in ("critic", "")


def _without_labels(row: ScoredTrace) -> dict[str, Any]:
    return {k: v for k, v in row.to_json().items() if k not in ("label", "outcome", "cluster")}
