"""The files beside a model card that the hub and others read: `.eval_results/*.yaml` and Every Eval Ever records.

An entry of `.eval_results` puts a number on the leaderboard of a benchmark's data set, where it stands beside those of
other tools. So there is one only for a whole benchmark that was loaded from the hub.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prmbench.config import PublishConfig
from prmbench.core.records import MetricRow, Notice, RunManifest, RunResult
from prmbench.core.result_files import canonical_json
from prmbench.report import every_eval_ever
from prmbench.report.headlines import dataset_name, flattened, floors_of, headline, is_hub_id, rounded, rule_of
from prmbench.tasks import find_task
from prmbench.tasks.wording import RULES

EVAL_RESULTS, EVERY_EVAL_EVER = ".eval_results", "every_eval_ever"
"""Folders in a model repository."""
FILE_NAME = re.compile(r"[\w+-][\w.+-]*")


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """A run of which numbers are published."""

    result: RunResult
    rows: tuple[MetricRow, ...]
    """The rows to publish."""
    recorded_at: int
    """When the result was recorded, in Unix seconds."""


def files(config: PublishConfig, runs: Sequence[PublishedRun]) -> dict[str, str]:
    """Returns the content of every file by its path in the repository.

    Args:
        config: The options of `card` or `push`.
        runs: Runs of one model.
    """
    texts = dict(_eval_results([run.result for run in runs]))
    for run in runs:
        if run.rows:
            record = every_eval_ever.record(config, run.result, run.rows, run.recorded_at)
            texts[f"{EVERY_EVAL_EVER}/{run.result.manifest.run_id}.json"] = canonical_json(record)
    return texts


def _eval_results(results: Sequence[RunResult]) -> Iterator[tuple[str, str]]:
    """Yields (path, YAML): one file with one value for each benchmark, that of its first run."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    runs: dict[str, RunManifest] = {}
    for result in results:
        m, name = result.manifest, dataset_name(result.manifest)
        if not is_hub_id(m.data_source) or not FILE_NAME.fullmatch(name):
            continue  # data of the user's own have no leaderboard
        row, reason = headline(result), _reason_against(m)
        if name in runs:
            reason = f"{EVAL_RESULTS} holds one value of a task, and {runs[name].run_id} comes first"
        elif row is None or row.value is None:
            reason = "it has no number that could be reached in use"
        if reason or row is None:
            warnings.warn(f"run {m.run_id} of {name}: not in {EVAL_RESULTS}: {reason}", Notice, stacklevel=2)
            continue
        runs[name] = m
        entry = EvalResultEntry(
            dataset_id=m.data_source,
            task_id=name,
            value=rounded(row.value),
            dataset_revision=m.data_revision,
            date=None if m.finished_at is None else datetime.fromtimestamp(m.finished_at, UTC).isoformat(),
            notes=notes(result, row),
        )
        yield f"{EVAL_RESULTS}/{name}.yaml", yaml_dump(eval_result_entries_to_yaml([entry]))


def _reason_against(manifest: RunManifest) -> str:
    """Why a number may not stand for the whole benchmark; empty if it may."""
    options = [name for name in ("limit", "subset", "rendering") if manifest.config.get(name)]
    return f"it is on a part of the benchmark (--{options[0]})" if options else ""


def notes(result: RunResult, row: MetricRow) -> str:
    """Returns what a number means: metric, subsets, protocol with its threshold rule, interval, floors, run."""
    m = result.manifest
    rule = rule_of(find_task(m.task), row.protocol)
    meaning = f" (threshold rule {rule}: {RULES[rule][1]})" if rule in RULES else ""
    parts = [f"{row.metric} as a fraction, on {row.subset}", f"protocol {row.protocol}{meaning}"]
    if row.lo is not None and row.hi is not None:
        parts.append(f"95% interval [{rounded(row.lo)}, {rounded(row.hi)}]")
    parts.append(f"n = {row.n}, {row.unscored} unscored")
    parts += [f"{name} {value}" for name, value in floors_of(row, result.rows).items()]
    parts.append(f"prmbench {m.packages.get('prmbench', '(unknown version)')}, run {m.run_id}")
    return flattened("; ".join(parts))
