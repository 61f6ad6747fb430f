"""Writes finished runs, and recomputes the metrics of stored ones."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prmbench import tasks
from prmbench.config import EvalConfig, to_json
from prmbench.core import output_checks, result_files, writing
from prmbench.core.records import (
    ESTIMATOR_VERSION,
    SCORING_VERSION,
    Notice,
    RunManifest,
    RunResult,
    ScoredTrace,
    UserError,
)
from prmbench.tasks.published import official_readings


def is_stored(path: Path, config: EvalConfig) -> bool:
    """Return whether the run is on disk and its scores are to be used.

    Raises:
        UserError: One of the run's files may not be written: it is a link, or a file that this command reads.
    """
    output_checks.check_outputs(result_files.run_paths(path), config, force=True)
    return path.exists() and not config.force


def judge_again(path: Path, config: EvalConfig, benchmark: str) -> result_files.Run:
    """Recompute the rows of a stored run under the seed, the calibration subset and the protocols of `config`.

    The run is filed under `benchmark`, since the name of a user's data may have changed and moves no score.

    Raises:
        UserError: The run was scored by another version of the code.
    """
    run = tasks.read_run(path)
    if run.result.manifest.scoring_version != SCORING_VERSION:
        raise UserError(
            f"{path}: scored by another version of the code; pass --force to score anew, or choose another --out"
        )
    manifest = replace(run.result.manifest, seed=config.seed, calibrate_on=config.calibrate_on)
    if config.name is not None:
        options = {**manifest.config, "name": to_json(config)["name"]}
        manifest = replace(manifest, name=config.name, config=options)
    if manifest.benchmark != benchmark:
        options = {**manifest.config, "data_name": config.data_name}
        manifest = replace(manifest, benchmark=benchmark, config=options)
    warnings.warn(_what_changes(run.result.manifest, manifest, path), Notice, stacklevel=2)
    return judge_and_write(manifest, run.scores, config.protocol, path)


def _what_changes(before: RunManifest, after: RunManifest, path: Path) -> str:
    """Return what judging a run's stored scores again does to its files."""
    text = f"{path}: its stored scores are judged again; --force makes them anew"
    names = {"benchmark": (before.benchmark, after.benchmark), "name": (before.name, after.name)}
    changes = [f"{field} is {new!r}, no longer {old!r}" for field, (old, new) in names.items() if old != new]
    if not changes:
        return text
    scores = result_files.scores_path(path).name
    where = f"{path.name} is written anew under the same name, and no score of {scores} changes"
    return f"{text}. The run's {' and its '.join(changes)}: {where}; reports and tables made before still have the old"


def judge_and_write(
    manifest: RunManifest, scores: Sequence[ScoredTrace], protocols: Sequence[str], path: Path
) -> result_files.Run:
    """Compute the metrics of a run and write it.

    Args:
        manifest: All of the manifest but the additional protocols and the hash of the scores.
        scores: The scored traces. They are packed and unpacked first, so that a recomputation from the file agrees
            to the last digit.
        protocols: Keys that the user asked for, in addition to those that every such run has.
        path: The `<run-id>.json` to write.
    """
    logging.getLogger(__name__).info("computing the metrics of %d traces, with intervals", len(scores))
    protocols = (*protocols, *_official_protocols(manifest))
    additional = set(tasks.resolve_protocols(manifest, protocols)) - set(tasks.protocol_keys(manifest))
    extra_protocols = tuple(sorted({*manifest.extra_protocols, *additional}))
    packed = result_files.pack_scores(scores)
    manifest = replace(
        manifest,
        extra_protocols=extra_protocols,
        scores_sha256=result_files.sha256(packed),
        estimator_version=ESTIMATOR_VERSION,
    )
    stored_scores = result_files.unpack_scores(packed, path)
    result = RunResult(manifest, tasks.judge(manifest, stored_scores))
    result_files.write_run(path, result, packed)
    return result_files.Run(result, stored_scores, path)


def _official_protocols(manifest: RunManifest) -> list[str]:
    """Return the protocols under which numbers of this model on this benchmark were published, if the run has them."""
    keys: list[str] = []
    for reading in official_readings(manifest.benchmark, manifest.model):
        try:
            keys += tasks.resolve_protocols(manifest, [reading.protocol])
        except UserError:  # the model was loaded otherwise, so that its scores are of another kind
            continue
    return keys


def write_critiques(path: Path, critiques: Mapping[str, Sequence[str]]) -> None:
    """Write the texts of critics by trace id, one JSON line per trace; no file where there are none."""
    lines = (json.dumps({"id": name, "said": texts}, ensure_ascii=False) for name, texts in sorted(critiques.items()))
    if critiques:
        writing.write_atomic(path, "".join(f"{line}\n" for line in lines))
