"""The id of a run, a hash of everything that can change a score, and its manifest."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from prmbench import config as options
from prmbench import data
from prmbench.backends import Backend, Facts
from prmbench.backends.critic.answer_parser import READING_VERSION
from prmbench.backends.plugin_source import source_hash
from prmbench.config import EvalConfig, ModelConfig
from prmbench.core import provenance, result_files
from prmbench.core.records import RunManifest, UserError
from prmbench.data import rollout_traces
from prmbench.evaluation import scoring
from prmbench.tasks import check_draft

LONGEST_SLUG = 128
"""Longest part of a file name that is the model's name; the hash after it keeps runs apart."""


def run_id(model: str, identity: Mapping[str, Any], loaded: data.LoadedBenchmark) -> str:
    """Return `<model>-<hash>`, which is also the name of the run's files."""
    hashed = {**identity, "benchmark": loaded.family or loaded.benchmark, "version": loaded.version}
    if loaded.task != "steps":
        hashed["task"] = loaded.task
    return f"{slug(model)}-{result_files.short_hash(hashed)}"


def slug(model: str) -> str:
    """Return a model's name as part of a file name."""
    plain = re.sub(r"[^a-z0-9.]+", "-", options.public_name(model).removesuffix(".gguf").lower())
    return plain[:LONGEST_SLUG].strip("-.")


def scoring_identity(config: ModelConfig, backend: Backend, content: str) -> dict[str, Any]:
    """Return everything that can change a score, and nothing else; run ids are hashes of it.

    Args:
        config: The options.
        backend: The loaded backend.
        content: Hash of what is scored.
    """
    names = ("kind", "input_format", "revision", "weights", "ref_model", "ref_revision", "ref_weights", "template")
    facts = asdict(backend.facts)
    return {
        **{name: facts[name] for name in (*names, "dtype", "engine", "device")},
        "model": options.public_name(config.model),
        "backend": backend.facts.backend or f"{config.backend} {source_hash(config.backend)}",
        "boundary": config.boundary,
        "batch_tokens": scoring.batch_budget(backend, config.batch_tokens),
        "content": content,
        **({} if facts["positive_class"] is None else {"positive_class": facts["positive_class"]}),
        # The weights' hash covers a prm.json, and `input_format` the separator and the tag.
        **{name: facts["assumed"][name] for name in ("activation", "head", "prompt") if name in facts["assumed"]},
        **({} if is_deterministic(backend.facts) else {"seed": config.seed}),
        **({"decay": config.decay} if backend.facts.backend == "endo" else {}),
        **({"reading": READING_VERSION} if backend.facts.backend == "critic" else {}),
    }


def is_deterministic(facts: Facts) -> bool:
    """Return whether the scores depend on no seed: those of a forward pass do not, those of critics may."""
    return facts.engine in ("hf", "vllm") and facts.backend != "critic"


def check_calibration(config: EvalConfig, subsets: Sequence[str]) -> None:
    """Raise UserError unless --calibrate-on names a subset of the data or is the default."""
    if config.calibrate_on not in (EvalConfig.calibrate_on, *subsets):
        raise UserError(f"--calibrate-on {config.calibrate_on}: the data has subsets {', '.join(subsets)}")


def content_hash(loaded: data.LoadedBenchmark) -> str:
    """Return the SHA-256 over the traces; of tasks other than step F1 also over groups, answers and step labels."""
    traces_hash = provenance.content_hash(loaded.traces)
    return traces_hash if loaded.task == "steps" else rollout_traces.content_hash(traces_hash, loaded.traces)


def recorded_options(config: ModelConfig, facts: Facts) -> dict[str, Any]:
    """Return the options as a manifest holds them, with the engine that `auto` stood for."""
    engine = facts.engine if facts.engine in ("hf", "vllm", "openai") else "hf"
    return {**options.to_json(config), **({"engine": engine} if config.engine == "auto" else {})}


def run_manifest(
    config: EvalConfig, facts: Facts, loaded: data.LoadedBenchmark, run_fields: Mapping[str, Any]
) -> RunManifest:
    """Return the manifest of a run.

    Args:
        config: The options.
        facts: The backend's facts.
        loaded: The data.
        run_fields: Fields that only the caller knows, such as `run_id`; they win over those derived here.

    Raises:
        UserError: The run could not be read again, e.g. because the name of a file has control characters.
    """
    names = {f.name for f in fields(RunManifest)}
    backend_fields = {k: v for k, v in asdict(facts).items() if k in names}
    backend_fields["backend"] = backend_fields["backend"] or config.backend
    manifest = RunManifest(
        **{
            "model": options.public_name(config.model),
            "name": config.name or "",
            "boundary": config.boundary,
            "benchmark": loaded.benchmark,
            "benchmark_version": loaded.version,
            "task": loaded.task,
            "subsets": loaded.subsets,
            "n": len(loaded.traces),
            "config": recorded_options(config, facts),
            "seed": config.seed,
            "scores_sha256": "",
            "calibrate_on": config.calibrate_on,
            "data_source": loaded.source,
            "data_revision": loaded.revision,
            "packages": provenance.package_versions(),
            "finished_at": int(time.time()),
            **backend_fields,
            **run_fields,
        }
    )
    check_draft(manifest, "such a result could not be read again, so change this first")
    return manifest
