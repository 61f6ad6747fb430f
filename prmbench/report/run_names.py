"""Tells runs of equal name apart: by what differs between them, where that is one short fact, else by their ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from prmbench.core.records import RunManifest
from prmbench.core.result_files import Run
from prmbench.tasks.wording import model_name

ID_LENGTH = 6
"""Digits of a run's id that are shown, unless they are equal too."""


def _short_id(manifest: RunManifest) -> str:
    return manifest.run_id.rsplit("-", 1)[-1][:ID_LENGTH]


READING_FACTS: tuple[Callable[[RunManifest], str], ...] = (
    lambda manifest: manifest.backend,
    lambda manifest: manifest.input_format,
    lambda manifest: manifest.ref_model or "",
)
"""How a model's scores were read."""
DIFFERENCES: tuple[Callable[[RunManifest], str], ...] = (
    *READING_FACTS,
    _short_id,
    lambda manifest: manifest.run_id,
)
"""What a name can be told apart by, in order of preference."""


def tell_apart(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs, in order; those of one benchmark and equal name have suffixes that differ.

    Tables and figures show the suffix. A model's own name stays, so that it is one row of the overview.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        manifest = run.result.manifest
        groups.setdefault((manifest.benchmark, manifest.task, model_name(manifest)), []).append(run)
    suffixes = {
        id(run): suffix for group in groups.values() for run, suffix in zip(group, _suffixes(group), strict=True)
    }
    return [replace(run, suffix=suffixes[id(run)]) for run in runs]


def _suffixes(group: Sequence[Run]) -> list[str]:
    if len(group) > 1:
        for difference in DIFFERENCES:
            texts = [difference(run.result.manifest) for run in group]
            if all(texts) and len(set(texts)) == len(texts):
                return texts
    return [""] * len(group)  # one run, or the same run in two places, which `load` refuses


def reading(run: Run, others: Sequence[Run]) -> str:
    """Returns what sets a run apart from others of its name: model, weights or how its scores were read; else empty."""
    own = run.result.manifest
    if own.kind == "outcome":
        return ""  # a policy's own completions have no step scores to read
    manifests = [other.result.manifest for other in others if other.result.manifest.kind != "outcome"]
    facts = (_checkpoint, _weights, *READING_FACTS)
    return ", ".join(text for fact in facts if (text := fact(own)) and any(fact(m) != text for m in manifests))


def _checkpoint(manifest: RunManifest) -> str:
    return f"{manifest.model}@{manifest.revision[:7]}" if manifest.revision else manifest.model


def _weights(manifest: RunManifest) -> str:
    return f"weights {manifest.weights[:ID_LENGTH]}" if manifest.weights else ""
