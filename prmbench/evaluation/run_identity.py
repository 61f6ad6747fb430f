"""What a run is: its id, from all that moves a score and nothing else, and its manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from prmbench import config as options
from prmbench import data
from prmbench.backends import Backend, Facts
from prmbench.backends.critic.answer_parser import READING_VERSION
from prmbench.backends.plugin_source import source_hash
from prmbench.config import EvalConfig, ModelConfig
from prmbench.core import provenance, result_files, validation
from prmbench.core.records import RunManifest, UserError
from prmbench.data import rollout_traces
from prmbench.evaluation import scoring

LONGEST_SLUG = 128
"""Characters of a model's name in a file name; the hash behind it tells models apart."""


def run_id(model: str, identity: Mapping[str, Any], loaded: data.Loaded) -> str:
    """`<model>-<hash>`, also a file name."""
    facts = {**identity, "benchmark": loaded.benchmark, "version": loaded.version}
    if loaded.task != "steps":
        facts["task"] = loaded.task
    return f"{slug(model)}-{result_files.short_hash(facts)}"


def slug(model: str) -> str:
    """A model's name as part of a file name."""
    plain = re.sub(r"[^a-z0-9.]+", "-", options.public_name(model).removesuffix(".gguf").lower())
    return plain[:LONGEST_SLUG].strip("-.")


def identity(config: ModelConfig, backend: Backend, content: str) -> dict[str, Any]:
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
        **({} if _sure(backend.facts) else {"seed": config.seed}),
        **({"decay": config.decay} if backend.facts.backend == "endo" else {}),
        **({"reading": READING_VERSION} if backend.facts.backend == "critic" else {}),
    }


def _sure(facts: Facts) -> bool:
    """Whether no chance is in the scores: a forward pass has none, a critic that samples has."""
    return facts.engine in ("hf", "vllm") and facts.backend != "critic"


def check_calibration(config: EvalConfig, subsets: Sequence[str]) -> None:
    """Raises UserError unless --calibrate-on names a subset of the data, or is the choice that everybody makes."""
    if config.calibrate_on not in (EvalConfig.calibrate_on, *subsets):
        raise UserError(f"--calibrate-on {config.calibrate_on}: the data has subsets {', '.join(subsets)}")


def content(loaded: data.Loaded) -> str:
    """SHA-256 over what the numbers are about: of tasks other than step F1 also groups, answers and step labels."""
    known = provenance.content_hash(loaded.traces)
    return known if loaded.task == "steps" else rollout_traces.content_hash(known, loaded.traces)


def run_manifest(config: EvalConfig, facts: Facts, loaded: data.Loaded, known: Mapping[str, Any]) -> RunManifest:
    """The manifest of a run; `known` are the fields that only the caller knows, and win over what is said here.

    Raises UserError where the run could not be read again, such as one of a file whose name has control characters.
    """
    manifested = {f.name for f in fields(RunManifest)}
    told = {k: v for k, v in asdict(facts).items() if k in manifested}
    told["backend"] = told["backend"] or config.backend
    described = RunManifest(
        **{
            "model": options.public_name(config.model),
            "boundary": config.boundary,
            "benchmark": loaded.benchmark,
            "benchmark_version": loaded.version,
            "task": loaded.task,
            "subsets": loaded.subsets,
            "n": len(loaded.traces),
            "config": options.to_json(config),
            "seed": config.seed,
            "scores_sha256": "",
            "calibrate_on": config.calibrate_on,
            "data_source": loaded.source,
            "data_revision": loaded.revision,
            "packages": provenance.packages(),
            **told,
            **known,
        }
    )
    validation.check_draft(described, "such a result could not be read again, so change this first")
    return described
