"""Data ablations of the reward models, called probes: trained on shuffled outcomes or with a late marker.

F1 is measured as in the reward model study: process level, threshold tuned on val.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from prmbench.core.records import RunManifest
from prmbench.metrics.equivalence import MARGINS
from prmbench.report.stats import mean
from prmbench.studies.reporting.nested_seeds import difference
from prmbench.studies.reporting.policy_claims import METHODS, Question, by_world
from prmbench.studies.reporting.reward_model_runs import PROCESS_READOUTS, BySeed, Study, chance
from prmbench.studies.reporting.reward_model_tables import mean_value, over_seeds
from prmbench.tasks.table import PERCENT, Row, Table, Value

PROBE = re.compile(r"(?P<method>\w+?)_(?P<probe>shuffled|marker0|marker1|marker5)")
PROBES = {
    "": "as in the miniature",
    "shuffled": "outcomes shuffled",
    "marker0": "marker known, absent",
    "marker1": "marker tells the outcome (noise 0.1)",
    "marker5": "marker tells nothing (noise 0.5)",
}
SUBSETS = ("onpolicy", "injected")
F1_MARGIN = MARGINS["F1"]
NO_CHANGE = MARGINS["F1 of a probe"].value
"""Up to this change, the claim that F1 does not change holds."""

PANEL_OF = {"plain": "", "marker": "marker1"}
"""Panel of the RL study -> the probe whose reward models its arms start from."""


def is_probe(manifest: RunManifest) -> bool:
    """Whether a run is of a probe. Probes are not in the tables of the reward model study."""
    return PROBE.fullmatch(manifest.model) is not None


def name(method: str, probe: str) -> str:
    """Returns a probe's model name, such as `ipvrm_marker1`; the method itself for no probe."""
    return f"{method}_{probe}" if probe else method


def f1(models: Study, method: str, probe: str, scene: str) -> BySeed:
    """Returns first-error F1 on a subset by world."""
    return models.f1(name(method, probe), PROCESS_READOUTS, (scene,))


def questions(models: Study) -> list[Question]:
    """Returns the questions about the probes; those without runs have no values."""
    return [q for scene in SUBSETS for q in (*_shuffled(models, scene), *_marked(models, scene))]


def _shuffled(models: Study, scene: str) -> Iterator[Question]:
    for method in METHODS:
        shuffled = name(method, "shuffled")
        probe_f1 = f1(models, method, "shuffled", scene)
        floor = models.by_seed("steps", shuffled, chance(), (scene,))
        gap = difference(by_world(probe_f1), by_world(floor))
        yield Question(
            "shuffled", "", f"{shuffled} - random scores", f"F1, {scene}", gap, low=-math.inf, high=NO_CHANGE
        )
        gap = difference(by_world(f1(models, method, "", scene)), by_world(probe_f1))
        yield Question("shuffled", "", f"{method} - {shuffled}", f"F1, {scene}", gap, margin=F1_MARGIN)


def _marked(models: Study, scene: str) -> Iterator[Question]:
    f1_of = {(m, p): by_world(f1(models, m, p, scene)) for m in METHODS for p in ("marker0", "marker1", "marker5")}
    drops = {m: difference(f1_of[m, "marker0"], f1_of[m, "marker1"]) for m in METHODS}
    for m in METHODS:
        harmless = difference(f1_of[m, "marker0"], f1_of[m, "marker5"])
        comparison = f"{name(m, 'marker0')} - {name(m, 'marker5')}"
        yield Question("marker", "", comparison, f"F1, {scene}", harmless, low=-math.inf, high=NO_CHANGE)
        comparison = f"{name(m, 'marker0')} - {name(m, 'marker1')}"
        if m == METHODS[0]:
            yield Question("marker", "", comparison, f"F1, {scene}", drops[m], low=-math.inf, high=NO_CHANGE)
        else:
            yield Question("marker", "", comparison, f"F1, {scene}", drops[m], margin=F1_MARGIN)
            drop_difference = difference(drops[m], drops[METHODS[0]])
            yield Question(
                "marker", "", f"drop of {m} - drop of {METHODS[0]}", f"F1, {scene}", drop_difference, margin=F1_MARGIN
            )
            lead = difference(f1_of[METHODS[0], "marker1"], f1_of[m, "marker1"])
            comparison = f"{name(METHODS[0], 'marker1')} - {name(m, 'marker1')}"
            yield Question("marker", "", comparison, f"F1, {scene}", lead, margin=F1_MARGIN)


# --- tables ---------------------------------------------------------------------------------------------------


def probe_grid(models: Study) -> Table:
    """Returns the table of F1 of every method and probe."""
    groups: list[tuple[Row, ...]] = []
    for method in METHODS:
        rows: list[Row] = []
        for probe, words in PROBES.items():
            cells = [over_seeds(f1(models, method, probe, scene)) for scene in SUBSETS]
            if any(cells) and (probe or len(_probed(models, method)) > 0):
                worlds = max(mean.n for mean in cells if mean is not None)
                rows.append(
                    (name(method, probe), words, Value(worlds, "count"), *(mean_value(c, PERCENT) for c in cells))
                )
        groups.append(tuple(rows))
    floor = [_floor(models, scene) for scene in SUBSETS]
    if any(groups) and any(floor):
        row: Row = (
            "random scores, best threshold",
            "",
            "",
            *(mean_value(mean(v) if v else None, PERCENT) for v in floor),
        )
        groups.append((row,))
    return Table(
        label="rl-probes",
        title="Reward models on shuffled outcomes and with a late marker",
        caption="First-error F1, process level, threshold tuned on val, percent; mean over worlds with its 95% "
        "t-interval. The traces that are judged never carry the marker; the completions that the reward models were "
        "trained on do. Comparisons pair the worlds.",
        header=("Method", "Trained on", "Worlds", *SUBSETS),
        groups=tuple(group for group in groups if group),
        text_columns=2,
    )


def _probed(models: Study, method: str) -> list[str]:
    return [m for m in models.methods if m.startswith(f"{method}_") and PROBE.fullmatch(m)]


def _floor(models: Study, scene: str) -> list[float]:
    by_world: BySeed = {}
    for method in models.methods:
        by_world |= models.by_seed("steps", method, chance(), (scene,))
    return list(by_world.values())
