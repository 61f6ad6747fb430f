"""A run on its way to disk: judged as it is stored, written whole, and judged again when it is asked for again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prmbench import disk, judge, outputs, store
from prmbench.config import EvalConfig
from prmbench.schema import SCORING_VERSION, Notice, RunManifest, RunResult, ScoredTrace, UserError


def is_stored(path: Path, config: EvalConfig) -> bool:
    """Whether the run is on disk and to be judged again, not made again.

    Raises UserError when one of its files may not be written, be it a link or a file that this command reads.
    """
    outputs.check(store.files_of(path), config, force=True)
    return path.exists() and not config.force


def judge_again(path: Path, config: EvalConfig) -> store.Run:
    """The stored scores under today's judging options: they move rows, not scores."""
    run = store.read_run(path)
    warnings.warn(f"{path}: its stored scores are judged again; --force makes them anew", Notice, stacklevel=2)
    if run.result.manifest.scoring_version != SCORING_VERSION:
        raise UserError(
            f"{path}: scored by another version of the code; pass --force to score anew, or choose another --out"
        )
    facts = replace(run.result.manifest, seed=config.seed, calibrate_on=config.calibrate_on)
    return finish(facts, run.scores, config.protocol, path)


def finish(facts: RunManifest, scores: Sequence[ScoredTrace], wanted: Sequence[str], path: Path) -> store.Run:
    """Judges scores and writes the run. Scores are judged as they are stored, so a recomputation agrees exactly."""
    extra = {*facts.extra_protocols, *(set(judge.checked(facts, wanted)) - set(judge.keys(facts)))}
    packed = store.pack_scores(scores)
    facts = replace(facts, extra_protocols=tuple(sorted(extra)), scores_sha256=store.sha256(packed))
    kept = store.unpack_scores(packed, path)
    result = RunResult(facts, judge.judge(facts, kept))
    store.write_run(path, result, packed)
    return store.Run(result, kept, path)


def keep_texts(path: Path, said: Mapping[str, Sequence[str]]) -> None:
    """What critics wrote, one JSON line a trace; no file where nothing was."""
    lines = (json.dumps({"id": name, "said": texts}, ensure_ascii=False) for name, texts in sorted(said.items()))
    if said:
        disk.write_atomic(path, "".join(f"{line}\n" for line in lines))
