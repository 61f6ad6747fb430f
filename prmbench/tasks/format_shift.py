"""Task format_shift: first-error F1 on the same traces in other formats, and what each format takes from it.

Pure functions of committed scores. What the formats look like is data/renderings.py's; here are only their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import EvalProtocol, RunManifest, ScoredTrace, UserError
from prmbench.metrics import first_error
from prmbench.metrics.first_error import Floats, Ints, Sample
from prmbench.tasks import steps
from prmbench.tasks.metric_rows import OUT_OF_FOLD, Cell, Judged, Part, absent, of_subset, resampled
from prmbench.tasks.steps import FOLDS, Subset

PLAIN = "plain"
"""The traces as they are: what every rendering is compared with."""
MERGED, PREFIX = "merged", "prefix"
"""Renderings that ask another question than the plain traces: fewer steps, other labels."""
NAMES = (PLAIN, "headers", "markdown", "separators", MERGED, "split", "answerless", PREFIX)
"""Renderings in table order."""
METRICS = ("f1", "f1_base", "f1_drop")
"""F1 of a rendering, of the plain verdicts on the same question, and the second minus the first."""
_PAIR = 2
"""Steps that become one under `merged`."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A base subset under one rendering."""

    subset: Subset
    base: str
    rendering: str
    plain: tuple[ScoredTrace, ...]
    """[n]: the same solutions as they are."""
    whole: bool = True
    """False where some plain traces have no counterpart."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where thresholds come from in one base subset: a column each of `tuned` [b, folds or 1], or nothing and why."""

    tuned: Floats | None = None
    """None: each rendering has its own (oracle)."""
    lacking: str = ""
    note: str = ""


def rendered_name(name: str, rendering: str) -> str:
    """A base subset's name under a rendering: `math+headers`; plain ones keep theirs."""
    return name if rendering == PLAIN else f"{name}+{rendering}"


def base_and_rendering(subset: str) -> tuple[str, str]:
    """Inverse of `rendered_name`."""
    base, plus, rendering = subset.rpartition("+")
    return (base, rendering) if plus and rendering in NAMES and rendering != PLAIN else (subset, PLAIN)


def rendered_id(name: str, rendering: str) -> str:
    """A trace's id under a rendering: `math-7@headers`."""
    return name if rendering == PLAIN else f"{name}@{rendering}"


def keys(manifest: RunManifest) -> tuple[str, ...]:
    """The protocols of step F1, without the one that is tuned and judged on the same traces of one subset only."""
    return tuple(p.key for p in steps.protocols(manifest) if p.threshold != "calibrated_in_sample")


def judged(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Floors of every rendering, then every protocol's F1, that of the plain verdicts, and the drop between them."""
    parts = _parts(manifest, scores)
    bases = {part.base: part.subset for part in parts if part.rendering == PLAIN}
    cells: dict[str, Mapping[str, Sequence[Cell]]] = {
        f"floor/{name}": {part.subset.name: [steps.floor(name, part.subset)] for part in parts} for name in steps.FLOORS
    }
    for asked in map(EvalProtocol.parse, (*keys(manifest), *manifest.extra_protocols)):
        protocol = steps.resolve(manifest, asked)
        rules = _rules(bases, protocol)
        plain = {
            name: _f1(subset, first_error.sample(subset.traces, protocol), rules[name])
            for name, subset in bases.items()
        }
        cells[protocol.key] = {
            part.subset.name: _cells(part, protocol, rules[part.base], plain[part.base]) for part in parts
        }
    told = tuple(
        Part(s.name, len(s.traces), s.unscored, steps.missing(s)) for s in (rendered.subset for rendered in parts)
    )
    return Judged(told, cells, _averages(parts))


def _averages(parts: Sequence[_Rendered]) -> tuple[tuple[str, ...], ...]:
    """Each rendering over the base subsets, then all renderings but plain over all of them."""
    present = dict.fromkeys(part.rendering for part in parts)
    groups = [tuple(p.subset.name for p in parts if p.rendering == rendering) for rendering in present]
    groups.append(tuple(p.subset.name for p in parts if p.rendering != PLAIN))
    return tuple(dict.fromkeys(group for group in groups if len(group) > 1))


# --- the same traces in other formats ---------------------------------------------------------------------


def _parts(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> list[_Rendered]:
    """Every subset of the run with its plain traces beside it, resampled with the same problems."""
    found: list[_Rendered] = []
    for name in sorted(manifest.subsets, key=lambda name: base_and_rendering(name)[1] != PLAIN):
        base, rendering = base_and_rendering(name)
        if rendering == PLAIN:
            subset = _plain(manifest, of_subset(scores, name), name)
            found.append(_Rendered(subset, name, PLAIN, subset.traces))
            continue
        plain = next((part.subset for part in found if part.subset.name == base), None)
        if plain is None:
            raise UserError(f"subset {name}: the run has no subset {base}, which it is compared with; score both")
        found.append(_beside(plain, of_subset(scores, name), rendering))
    order = {name: i for i, name in enumerate(manifest.subsets)}
    return sorted(found, key=lambda part: order[part.subset.name])


def _plain(manifest: RunManifest, traces: tuple[ScoredTrace, ...], name: str) -> Subset:
    clusters = [t.cluster for t in traces]
    problem, draws = resampled(manifest, name, clusters)
    return Subset(name, traces, np.ascontiguousarray(draws[:, problem]), first_error.folds(clusters, FOLDS))


def _beside(plain: Subset, traces: Sequence[ScoredTrace], rendering: str) -> _Rendered:
    """Traces in the order of the plain ones, with their weights and folds."""
    name = rendered_name(plain.name, rendering)
    by_id = {t.id: t for t in traces}
    there = [i for i, t in enumerate(plain.traces) if rendered_id(t.id, rendering) in by_id]
    if len(there) != len(by_id):
        raise UserError(f"subset {name}: {len(by_id) - len(there)} of its traces have no plain one in {plain.name}")
    ordered = tuple(by_id[rendered_id(plain.traces[i].id, rendering)] for i in there)
    weights = plain.weights if len(there) == len(plain.traces) else np.ascontiguousarray(plain.weights[:, there])
    subset = Subset(name, ordered, weights, plain.fold[there])
    whole = len(there) == len(plain.traces)
    return _Rendered(subset, plain.name, rendering, tuple(plain.traces[i] for i in there), whole)


# --- numbers ----------------------------------------------------------------------------------------------


def _cells(part: _Rendered, protocol: EvalProtocol, rule: _Rule, plain: Floats) -> list[Cell]:
    """`plain`: F1 on all plain traces, [b]."""
    if rule.lacking:
        return absent(METRICS, rule.lacking)
    same_question = part.rendering not in (MERGED, PREFIX) and part.whole
    base = plain if same_question else _f1(part.subset, _base(part, protocol), rule)
    f1 = base if part.rendering == PLAIN else _f1(part.subset, first_error.sample(part.subset.traces, protocol), rule)
    return [Cell(name, values, rule.note) for name, values in zip(METRICS, (f1, base, base - f1), strict=True)]


def _f1(subset: Subset, data: Sample, rule: _Rule) -> Floats:
    if rule.lacking:
        return np.array([np.nan])
    tuned = first_error.best_threshold(data, subset.weights)[:, None] if rule.tuned is None else rule.tuned
    threshold = tuned if tuned.shape[1] == 1 else tuned[:, subset.fold]
    right = (data.lo < threshold) & (threshold <= data.hi)
    return first_error.harmonic(*first_error.accuracies(data, right, subset.weights))


def _base(part: _Rendered, protocol: EvalProtocol) -> Sample:
    """What the plain verdicts say in the rendering's steps: a merged one is flagged where either of its two is."""
    told = protocol if protocol.readout == "vote" else EvalProtocol("as_is", protocol.threshold)
    return first_error.sample(
        [
            _told(plain, shown, part.rendering, first_error.readout(plain, protocol) if told is not protocol else None)
            for plain, shown in zip(part.plain, part.subset.traces, strict=True)
        ],
        told,
    )


def _told(plain: ScoredTrace, shown: ScoredTrace, rendering: str, read: Floats | None) -> ScoredTrace:
    """The plain trace with the rendering's label and number of steps; `read` is its readout, one per plain step."""
    verdicts = tuple(_moved(v, plain.steps, shown.steps, rendering) for v in plain.verdicts)
    if rendering == MERGED:
        read = None if read is None else np.minimum.reduceat(read, range(0, len(read), _PAIR))
    elif rendering == PREFIX:
        read = None if read is None else read[: shown.steps]
    values = () if read is None else tuple(map(float, read))
    return replace(plain, label=shown.label, steps=shown.steps, verdicts=verdicts, values=values)


def _moved(verdict: int | None, plain: int, shown: int, rendering: str) -> int | None:
    """A verdict among `plain` steps as one among `shown` steps."""
    if verdict is None or verdict < 0:
        return verdict
    if verdict >= plain:
        return shown  # a step that is not there: wrong, and not to become right by its number
    if rendering == MERGED:
        return verdict // _PAIR
    return verdict if verdict < shown else -1


# --- thresholds: tuned on plain traces, but for the oracle ------------------------------------------------


def _rules(bases: Mapping[str, Subset], protocol: EvalProtocol) -> dict[str, _Rule]:
    """One per base subset."""
    if protocol.threshold == "oracle":
        return dict.fromkeys(bases, _Rule())
    if protocol.threshold == "cross_validated":
        return {name: _cross_validated(subset, protocol) for name, subset in bases.items()}
    if protocol.on is not None:
        return _calibrated(bases, protocol, protocol.on)
    given = 1.0 if protocol.readout == "vote" else protocol.at
    if given is None:
        raise ValueError(f"{protocol.key}: no number for its threshold")
    return dict.fromkeys(bases, _Rule(np.array([[given]])))


def _calibrated(bases: Mapping[str, Subset], protocol: EvalProtocol, on: str) -> dict[str, _Rule]:
    """The calibration subset itself is judged out of fold."""
    tuning = bases.get(on)
    lacking = f"needs subset {on}, which this run does not have"
    if tuning is not None and (reason := steps.missing(tuning)):
        lacking = f"{on} has {reason} to tune on"
    elif tuning is not None:
        shared = _Rule(first_error.best_threshold(first_error.sample(tuning.traces, protocol), tuning.weights)[:, None])
        own = shared if protocol.threshold == "calibrated_in_sample" else _cross_validated(tuning, protocol)
        return dict.fromkeys(bases, shared) | {on: own if own is shared else replace(own, note=OUT_OF_FOLD)}
    return dict.fromkeys(bases, _Rule(lacking=lacking))


def _cross_validated(plain: Subset, protocol: EvalProtocol) -> _Rule:
    """Each fold by the plain traces of the others."""
    numbers: Ints = np.unique(plain.fold)
    if len(numbers) == 1:
        return _Rule(lacking="cross-validation needs two problems")
    data = first_error.sample(plain.traces, protocol)
    tuned = [first_error.best_threshold(data, plain.weights * (plain.fold != fold)) for fold in numbers]
    return _Rule(np.stack(tuned, axis=1))
