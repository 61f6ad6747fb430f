"""`eval --benchmark policy` on a rollouts file: what was drawn is judged as it is, and no model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench import data, tasks
from prmbench.backends import Facts
from prmbench.backends.common import chat_format
from prmbench.config import EvalConfig
from prmbench.core import processes, provenance, result_files, writing
from prmbench.core.records import UserError
from prmbench.core.validation import SAMPLING
from prmbench.data import rollouts
from prmbench.data.rollouts import Rollout
from prmbench.evaluation.completion_traces import prompts_hash, scored
from prmbench.evaluation.run_files import finish, is_stored, judge_again
from prmbench.evaluation.run_identity import check_calibration, run_id, run_manifest
from prmbench.sampling import rollout


def evaluate(config: EvalConfig) -> result_files.Run | None:
    """The run of a file that `prmbench rollout` wrote; its summary says which model spoke, and how.

    Raises UserError.
    """
    writing.check_writable(config.out)
    source = _given(config)
    told = _summary(source)
    rows = rollouts.read(source)
    if rollouts.content_hash(rows) != told["content"]:
        raise UserError(f"{source}: is not what `prmbench rollout` wrote any more; draw the completions again")
    found = _chosen(rows, config)
    row = data.BENCHMARKS["policy"]
    about = data.Loaded(
        (), tuple(dict.fromkeys(r.subset for r in found)), source.name, None, row.name, row.version, row.task
    )
    check_calibration(config, about.subsets)
    name = run_id(told["config"]["model"], {**told["identity"], "content": rollouts.content_hash(found)}, about)
    path = config.out / f"{name}.json"
    if processes.rank() != 0:
        return None
    if is_stored(path, config):
        return judge_again(path, config)
    drawn = {name: told["config"][name] for name in (*SAMPLING, "max_new_tokens", "verifier", "split", "template")}
    made: dict[str, Any] = {
        "run_id": name,
        "model": told["config"]["model"],
        "benchmark_hash": prompts_hash((r.group, r.subset, r.prompt, r.gold) for r in found),
        "config": {**options.to_json(config), **drawn},
        "packages": {**provenance.packages(), **told["packages"]},
        "tokens": sum(r.tokens or 0 for r in found),
        "n": len(found),
        **{name: told[name] for name in ("commit", "seconds")},
        "commits": tuple(told["commits"]),
        "dirty": provenance.code_state()[1] or told["dirty"],
    }
    facts = run_manifest(config, _facts(told, config), about, made)
    tasks.checked(facts, config.protocol)
    return finish(facts, [scored(r) for r in found], config.protocol, path)


def _facts(told: dict[str, Any], config: EvalConfig) -> Facts:
    identity = told["identity"]
    return Facts(
        kind="outcome",
        input_format=chat_format(config),
        backend="policy",
        template=told["template"],
        hardware=told["hardware"],
        **{name: identity[name] for name in ("revision", "weights", "dtype", "device", "engine")},
    )


def _given(config: EvalConfig) -> Path:
    if config.data is None or not config.data.is_file():
        raise UserError(
            "--data: benchmark policy without --model judges one rollouts file, as `prmbench rollout` writes it; "
            "name the file, or give --model to draw completions for prompts"
        )
    return config.data


def _summary(source: Path) -> dict[str, Any]:
    told = rollout.summary(source)
    needed = {"config", "identity", "content", "template", "hardware", "packages", "commit", "commits", "dirty"}
    if not needed <= set(told):
        raise UserError(
            f"{source}: no {rollout.beside(source).name} beside it says who wrote these completions; "
            "draw them with `prmbench rollout`, or give --model and prompts"
        )
    return told


def _chosen(found: Sequence[Rollout], config: EvalConfig) -> list[Rollout]:
    """Of the subsets asked for, `--limit` prompts each with all their completions."""
    present = dict.fromkeys(r.subset for r in found)
    for name in config.subset:
        if name not in present:
            raise UserError(f"--subset {name}: the file has {', '.join(present)}")
    return rollouts.limited([r for r in found if not config.subset or r.subset in config.subset], config.limit)
