"""Runs of `train-rm` and `train-sft` under the results: a table of how they ended, and their curves.

They are read from train.json and metrics.jsonl, the files that training writes into its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core import reading
from prmbench.core.records import UserError
from prmbench.core.redaction import one_line
from prmbench.core.result_files import canonical_json
from prmbench.metrics.first_error import Floats
from prmbench.report.figures import MAX_RUNS, PALETTE, FigurePlan, legend_label, render_figures
from prmbench.report.frame import TRAINING_SHEET
from prmbench.report.panels import legend_below, small_multiples
from prmbench.report.sheets import Sheet
from prmbench.tasks.table import FRACTION, PERCENT, Row, Table, Unit, Value

RUN, METRICS = "train.json", "metrics.jsonl"
MAX_LINES = 1_000_000
MAX_POINTS = 60
"""Points of a curve; each is a mean over equally many updates."""
PANELS: dict[str, tuple[str, float]] = {
    "loss": ("loss", 1),
    "accuracy": ("right decisions, percent", 100),
    "grad_norm": ("gradient norm before clipping", 1),
    "lr": ("learning rate", 1),
}
"""Title and scale of a panel, by the name in metrics.jsonl; `validation_` and the name is drawn in the same panel."""
LAST_SHARE = 0.1
"""Share of the updates over which the table averages, as the trainer does."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """One training run."""

    name: str
    """Its folder, relative to the results."""
    config: Mapping[str, Any]
    """The options in train.json."""
    finished: bool
    lines: tuple[Mapping[str, Any], ...]
    """Lines of metrics.jsonl."""

    def series(self, metric: str) -> tuple[Floats, Floats]:
        """Returns the updates and the finite values of a metric there, [n] each."""
        pairs = [(line["update"], line[metric]) for line in self.lines if _is_finite(line.get(metric))]
        table = np.array(pairs, dtype=float).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def option(self, name: str) -> str:
        """Returns an option as text on one line; empty where the run has no such option."""
        value = self.config.get(name)
        return "" if value is None else one_line(str(value))[:100]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_logs(results: Path) -> tuple[tuple[TrainingLog, ...], list[str]]:
    """Reads the training runs under a folder; returns them by name, and a message for each that cannot be read.

    Runs of `train-distrl`, whose lines count steps instead of updates, have results of their own and are left out.
    """
    logs, broken = [], []
    for path in reading.find_paths(results, RUN):
        if path.name != RUN or not (path.parent / METRICS).is_file():
            continue
        try:
            log = _read_log(path, path.parent.relative_to(results).as_posix())
        except UserError as error:
            broken.append(str(error))
            continue
        if log.lines:
            logs.append(log)
    return tuple(logs), broken


def _read_log(path: Path, name: str) -> TrainingLog:
    record = reading.read_json(path)
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not the record of a training run (it has no `config`); delete it or train again")
    source = path.parent / METRICS
    texts = reading.read_appended_lines(source)
    if len(texts) > MAX_LINES:
        raise UserError(f"{source}: not the record of a training run (more than {MAX_LINES:,} lines)")
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number == len(texts):  # a run in progress may be in the middle of it
                break
            raise UserError(f"{source}, line {number}: not valid JSON; restore the file or train again") from error
        if not isinstance(line, dict):
            raise UserError(f"{source}, line {number}: not a JSON object; restore the file or train again")
        if _is_finite(line.get("update")):
            lines.append(line)
    return TrainingLog(one_line(name), config, record.get("finished") is True, tuple(lines))


def sheets(logs: Sequence[TrainingLog], png: bool = False) -> tuple[Sheet, ...]:
    """Returns the sheet of the training runs; none without runs."""
    if not logs:
        return ()
    table = _table(logs)
    columns = ("run", "loss", "start_model", "seed", "updates")
    numbers = [dict(zip(columns, _facts(log), strict=True)) for log in logs]
    return (
        Sheet(
            name=TRAINING_SHEET,
            description="Training runs of train-rm and train-sft, as metrics.jsonl recorded them. Their numbers are on "
            "training data, or on held-out prompts of the same file; how good a model is, a benchmark says.",
            tables=(table,),
            figures=render_figures(partial(_plans, logs), png),
            runs=(),
            rules="none",
            sizes={},
            csv="".join(",".join(_quoted(str(cell)) for cell in row) + "\n" for row in (columns, *map(_facts, logs))),
            json=canonical_json({"runs": numbers}),
            column_descriptions=COLUMNS,
            training_runs=len(logs),
        ),
    )


COLUMNS = {
    "loss function": "The objective that the run minimised.",
    "start model": "The model that training started from.",
    "updates": "Optimiser steps so far.",
    "loss": "Mean over the last tenth of the updates.",
    "right decisions": "Share of right decisions on the training batches, over the last tenth of the updates.",
    "validation loss": "On held-out prompts, at the last validation.",
    "validation, right decisions": "Share of right decisions on held-out prompts, at the last validation.",
    "state": "Whether the run has reached its last update.",
}


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _facts(log: TrainingLog) -> tuple[str, str, str, str, int]:
    return log.name, log.option("loss") or "sft", log.option("model"), log.option("seed"), _updates(log)


def _updates(log: TrainingLog) -> int:
    return int(max(line["update"] for line in log.lines))


def _table(logs: Sequence[TrainingLog]) -> Table:
    return Table(
        label="training-runs",
        title="Training runs",
        caption="How the runs ended: means over the last tenth of the updates, and the last validation. A dash: "
        "the run has no such number; losses of different functions cannot be compared.",
        header=(
            *("Run", "Loss function", "Start model", "State", "Updates"),
            *("Loss", "Right decisions", "Validation loss", "Validation, right decisions", "Seconds"),
        ),
        groups=(tuple(_row(log) for log in logs),),
        text_columns=4,
    )


def _row(log: TrainingLog) -> Row:
    name, loss, model, _, updates = _facts(log)
    last = max(1, int(LAST_SHARE * len(log.series("loss")[1])))

    def value(metric: str, unit: Unit, count: int) -> Value:
        values = log.series(metric)[1][-count:]
        return Value(fmean(values) if len(values) else None, unit)

    state = "finished" if log.finished else "not finished"
    return (
        *(name, loss, model, state, Value(updates, "count")),
        *(value("loss", FRACTION, last), value("accuracy", PERCENT, last)),
        *(value("validation_loss", FRACTION, 1), value("validation_accuracy", PERCENT, 1)),
        value("seconds", "count", 1),
    )


# --- curves ----------------------------------------------------------------------------------------------------------


def _plans(logs: Sequence[TrainingLog]) -> list[FigurePlan]:
    shown = logs[:MAX_RUNS]
    panels = {metric: panel for metric, panel in PANELS.items() if any(len(log.series(metric)[0]) for log in shown)}
    if not panels:
        return []
    figure, axes = small_multiples([title for title, _ in panels.values()], 2.9)
    for axis, (metric, (_, scale)) in zip(axes, panels.items(), strict=True):
        axis.set_xlabel("update", fontsize=8)
        for log, color in zip(shown, PALETTE, strict=False):
            _draw(axis, log, metric, scale, color)
    _finish(figure, axes, any(len(log.series("validation_loss")[0]) for log in shown))
    caption = (
        "A colour per run. Solid: training batches, each point a mean over equally many updates. Dashed with dots: "
        "held-out prompts."
    )
    if len(shown) < len(logs):
        caption += f" {len(shown)} of {len(logs)} runs."
    return [(f"{TRAINING_SHEET}-curves", "Training curves", caption, figure)]


def _draw(axis: Axes, log: TrainingLog, metric: str, scale: float, color: str) -> None:
    updates, values = log.series(metric)
    if len(updates):
        parts = min(MAX_POINTS, len(updates))
        x, y = (
            [float(part.mean()) for part in np.array_split(numbers, parts)] for numbers in (updates, scale * values)
        )
        marker = "o" if parts == 1 else ""
        axis.plot(x, y, color=color, lw=1.4, marker=marker, ms=3, label=legend_label(log.name))
    updates, values = log.series(f"validation_{metric}")
    axis.plot(updates, scale * values, "--o", color=color, lw=1.1, ms=3.5)


def _finish(figure: Figure, axes: Sequence[Axes], is_validated: bool) -> None:
    if is_validated:
        axes[0].plot([], [], "--o", color="#444444", lw=1.1, ms=3.5, label="held-out prompts")
    legend_below(figure, axes)
