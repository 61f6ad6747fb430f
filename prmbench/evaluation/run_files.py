"""A run on its way to disk: judged as it is stored, written whole, and judged again when it is asked for again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prmbench import tasks
from prmbench.config import EvalConfig
from prmbench.core import output_checks, result_files, writing
from prmbench.core.records import SCORING_VERSION, Notice, RunManifest, RunResult, ScoredTrace, UserError


def is_stored(path: Path, config: EvalConfig) -> bool:
    """Whether the run is on disk and to be judged again, not made again.

    Raises UserError when one of its files may not be written, be it a link or a file that this command reads.
    """
    output_checks.check(result_files.files_of(path), config, force=True)
    return path.exists() and not config.force


def judge_again(path: Path, config: EvalConfig) -> result_files.Run:
    """The stored scores under today's judging options: they move rows, not scores."""
    run = tasks.read_run(path)
    warnings.warn(f"{path}: its stored scores are judged again; --force makes them anew", Notice, stacklevel=2)
    if run.result.manifest.scoring_version != SCORING_VERSION:
        raise UserError(
            f"{path}: scored by another version of the code; pass --force to score anew, or choose another --out"
        )
    facts = replace(run.result.manifest, seed=config.seed, calibrate_on=config.calibrate_on)
    return finish(facts, run.scores, config.protocol, path)


def finish(facts: RunManifest, scores: Sequence[ScoredTrace], wanted: Sequence[str], path: Path) -> result_files.Run:
    """Judges scores and writes the run. Scores are judged as they are stored, so a recomputation agrees exactly."""
    extra = {*facts.extra_protocols, *(set(tasks.resolve_protocols(facts, wanted)) - set(tasks.protocol_keys(facts)))}
    packed = result_files.pack_scores(scores)
    facts = replace(facts, extra_protocols=tuple(sorted(extra)), scores_sha256=result_files.sha256(packed))
    kept = result_files.unpack_scores(packed, path)
    result = RunResult(facts, tasks.judge(facts, kept))
    result_files.write_run(path, result, packed)
    return result_files.Run(result, kept, path)


def keep_texts(path: Path, said: Mapping[str, Sequence[str]]) -> None:
    """What critics wrote, one JSON line a trace; no file where nothing was."""
    lines = (json.dumps({"id": name, "said": texts}, ensure_ascii=False) for name, texts in sorted(said.items()))
    if said:
        writing.write_atomic(path, "".join(f"{line}\n" for line in lines))
