"""`eval --benchmark policy` on a rollouts file: evaluates completions that are sampled already, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench import data, tasks
from prmbench.backends import Facts
from prmbench.backends.common import chat_format
from prmbench.config import EvalConfig, unused_options
from prmbench.core import processes, provenance, result_files, writing
from prmbench.core.records import UserError
from prmbench.data import rollouts
from prmbench.data.rollouts import Rollout
from prmbench.evaluation.completion_traces import prompts_hash, scored_trace
from prmbench.evaluation.run_files import is_stored, judge_again, judge_and_write
from prmbench.evaluation.run_identity import check_calibration, run_id, run_manifest
from prmbench.sampling import rollout
from prmbench.tasks.policy import SAMPLING


def evaluate(config: EvalConfig) -> result_files.Run | None:
    """Evaluate a file that `prmbench rollout` wrote; its summary says which model sampled it, and how.

    Raises:
        UserError: The file or its summary is missing or altered, or an option cannot be used.
    """
    writing.check_writable(config.out)
    source = _rollouts_file(config)
    if config.fields:
        raise UserError("--fields: a rollouts file of `prmbench rollout` has the usual names; drop it")
    options_of_models = (*unused_options.SAMPLING, *unused_options.FORWARD_PASS, *unused_options.STEP_SCORES)
    unused = ("rendering", "calibrate_on", "batch_tokens", "trust_remote_code", "split", *options_of_models)
    unused_options.warn_of_unused(config, unused, f"{source.name} holds completions that are sampled and verified")
    summary = _read_summary(source)
    rows = rollouts.read(source)
    if rollouts.content_hash(rows) != summary["content"]:
        raise UserError(f"{source}: is not what `prmbench rollout` wrote any more; draw the completions again")
    completions = _select(rows, config)
    subsets = tuple(dict.fromkeys(r.subset for r in completions))
    loaded = data.without_traces(data.find_benchmark("policy"), subsets, source.name, config.data_name)
    check_calibration(config, loaded.subsets)
    model = summary["config"]["model"]
    name = run_id(model, {**summary["identity"], "content": rollouts.content_hash(completions)}, loaded)
    path = config.out / f"{name}.json"
    if processes.rank() != 0:
        return None
    if is_stored(path, config):
        return judge_again(path, config, loaded.benchmark)
    sampling_options = (*SAMPLING, "max_new_tokens", "verifier", "split", "template")
    run_fields: dict[str, Any] = {
        "run_id": name,
        "model": model,
        "benchmark_hash": prompts_hash((r.group, r.subset, r.prompt, r.gold) for r in completions),
        "config": {
            **options.to_json(config),
            "engine": summary["identity"]["engine"],
            **{name: summary["config"][name] for name in sampling_options},
        },
        "packages": {**provenance.package_versions(), **summary["packages"]},
        "tokens": sum(r.tokens or 0 for r in completions),
        "n": len(completions),
        **{name: summary[name] for name in ("commit", "seconds")},
        "commits": tuple(summary["commits"]),
        "dirty": provenance.code_state()[1] or summary["dirty"],
    }
    manifest = run_manifest(config, _facts(summary, config), loaded, run_fields)
    tasks.resolve_protocols(manifest, config.protocol)
    return judge_and_write(manifest, [scored_trace(r) for r in completions], config.protocol, path)


def _facts(summary: dict[str, Any], config: EvalConfig) -> Facts:
    identity = summary["identity"]
    return Facts(
        kind="outcome",
        input_format=chat_format(config),
        backend="policy",
        template=summary["template"],
        hardware=summary["hardware"],
        **{name: identity[name] for name in ("revision", "weights", "dtype", "device", "engine")},
    )


def _rollouts_file(config: EvalConfig) -> Path:
    if config.data is None or not config.data.is_file():
        raise UserError(
            "--data: benchmark policy without --model judges one rollouts file, as `prmbench rollout` writes it; "
            "name the file, or give --model to draw completions for prompts"
        )
    return config.data


def _read_summary(source: Path) -> dict[str, Any]:
    """Return what `prmbench rollout` recorded of a rollouts file. Raises UserError where that is missing."""
    summary = rollout.read_sidecar(source)
    needed = {"config", "identity", "content", "template", "hardware", "packages", "commit", "commits", "dirty"}
    if not needed <= set(summary):
        raise UserError(
            f"{source}: no {rollout.sidecar_path(source).name} beside it says who wrote these completions; "
            "draw them with `prmbench rollout`, or give --model and prompts"
        )
    return summary


def _select(completions: Sequence[Rollout], config: EvalConfig) -> list[Rollout]:
    """Return all completions of `--limit` prompts of each `--subset`."""
    present = dict.fromkeys(r.subset for r in completions)
    for name in config.subset:
        if name not in present:
            raise UserError(f"--subset {name}: the file has {', '.join(present)}")
    return rollouts.limit_prompts(
        [r for r in completions if not config.subset or r.subset in config.subset], config.limit
    )
