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


DIFFERENCES: tuple[Callable[[RunManifest], str], ...] = (
    lambda manifest: manifest.backend,
    lambda manifest: manifest.input_format,
    lambda manifest: manifest.ref_model or "",
    _short_id,
    lambda manifest: manifest.run_id,
)
"""What a name can be told apart by, in order of preference."""


def distinct_names(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, in order; those of one benchmark and equal name have names that differ.

    Only what tables and figures show is changed, not the model or the run's id.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        manifest = run.result.manifest
        groups.setdefault((manifest.benchmark, manifest.task, model_name(manifest)), []).append(run)
    names = {
        id(run): name for key, group in groups.items() for run, name in zip(group, _names(key[2], group), strict=True)
    }
    return [_named(run, names[id(run)]) for run in runs]


def _names(name: str, group: Sequence[Run]) -> list[str]:
    manifests = [run.result.manifest for run in group]
    if len(group) == 1:
        return [""]
    for difference in DIFFERENCES:
        texts = [difference(manifest) for manifest in manifests]
        if all(texts) and len(set(texts)) == len(texts):
            return [f"{name} ({text})" for text in texts]
    return [name] * len(group)  # the same run in two places, which `load` refuses


def _named(run: Run, name: str) -> Run:
    """Return the run with another name; unchanged where it is empty."""
    if not name:
        return run
    return replace(run, result=replace(run.result, manifest=replace(run.result.manifest, name=name)))
