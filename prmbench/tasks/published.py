"""Numbers published by others, stored as data files with their source and threshold rule.

They have no interval and other inputs, so they are never shown in a table with prmbench's own rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from prmbench.core.records import RunManifest
from prmbench.tasks.table import Code, Row, Value


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model was read for its published numbers."""

    model: str
    """Its hub id."""
    protocol: str
    input_format: str
    """As in the manifest of a run."""

    @property
    def words(self) -> str:
        """`greedy.as_is/native on turns, joint ' '`."""
        return f"{self.protocol} on {self.input_format}"

    def has_scores_of(self, protocol: str) -> bool:
        """Whether a protocol reads scores as this one does, under whatever threshold rule."""
        return protocol.partition("/")[0] == self.protocol.partition("/")[0]


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row of a published table, in percent."""

    model: str
    base: str
    rule: str
    threshold: str
    readout: str
    cells: dict[str, dict[str, float]]
    """Subset -> `f1`, and where published `error_accuracy` and `correct_accuracy`."""
    average: float
    note: str
    reading: Reading | None = None
    """How our own runs read the model in this way; None where they cannot, or where nobody says how it was read."""

    @property
    def name(self) -> str:
        """The model, with its base model in parentheses."""
        return f"{self.model} ({self.base})" if self.base else self.model

    def as_row(self, subsets: tuple[str, ...], source: int) -> Row:
        """Returns the row as table cells; `source` is the number of its publication in the table's notes."""
        return (
            self.name,
            self.readout if self.readout == "not stated" else Code(self.readout),
            self.threshold or "not stated",
            *(_f1(self.cells[s]) for s in subsets),
            published_value(self.average),
            Value(source, "count"),
        )


@dataclass(frozen=True, slots=True)
class Published:
    """A table copied from a paper or a README."""

    title: str
    benchmark: str
    source: str
    note: str
    subsets: tuple[str, ...]
    rows: tuple[PublishedRow, ...]


def _f1(cell: dict[str, float]) -> Value:
    """`79.2 (70.0 / 91.2)`: F1 and, where published, the accuracies on wrong and right traces."""
    f1 = published_value(cell["f1"])
    if "error_accuracy" not in cell:
        return f1
    behind = " / ".join(published_value(cell[name]).number for name in ("error_accuracy", "correct_accuracy"))
    return replace(f1, suffix=f" ({behind})")


def published_value(number: float) -> Value:
    """Returns a number in percent with as many decimals as were published, one or two."""
    return Value(number, "number" if round(number, 1) == number else "hundredths")


@cache
def published(benchmark: str) -> tuple[Published, ...]:
    """Returns the published tables of a benchmark, in file-name order."""
    publications = [_parse(json.loads(raw)) for raw in sources().values()]
    return tuple(publication for publication in publications if publication.benchmark == benchmark)


def official_readings(benchmark: str, model: str) -> tuple[Reading, ...]:
    """Returns the readings of a model, a hub id or a folder of its name, under which its numbers were published."""
    rows = (row for publication in published(benchmark) for row in publication.rows)
    readings = dict.fromkeys(row.reading for row in rows if row.reading is not None)
    return tuple(reading for reading in readings if model in (reading.model, reading.model.rpartition("/")[2]))


def reading_notes(rows: Sequence[PublishedRow]) -> list[str]:
    """Returns what protocol and input each published row is to be compared with."""
    return [f"{row.name}: compare with {row.reading.words}." for row in rows if row.reading is not None]


def unofficial_note(manifest: RunManifest) -> str:
    """Returns what a run says of its reading where its model has published numbers; empty where it has none."""
    readings = official_readings(manifest.benchmark, manifest.model)
    if not readings:
        return ""
    words = "; ".join(reading.words for reading in readings)
    if all(reading.input_format != manifest.input_format for reading in readings):
        return f"not the official reading, which is {words}"
    return f"official reading: {words}; other readouts are not the official reading"


def is_unofficial(manifest: RunManifest, protocol: str) -> bool:
    """Whether a model has published numbers on the benchmark, and none that was read like this run and protocol."""
    readings = official_readings(manifest.benchmark, manifest.model)
    return bool(readings) and not any(
        reading.input_format == manifest.input_format and reading.has_scores_of(protocol) for reading in readings
    )


def sources(benchmarks: Collection[str] | None = None) -> dict[str, bytes]:
    """Returns the contents of the data files by file name; a report writes copies of them beside its tables.

    Args:
        benchmarks: Those whose files are returned; None: all.
    """
    folder = files("prmbench") / "assets" / "published"
    entries = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda e: e.name)
    contents = {entry.name: entry.read_bytes() for entry in entries}
    return {n: raw for n, raw in contents.items() if benchmarks is None or json.loads(raw)["benchmark"] in benchmarks}


def _parse(data: dict[str, Any]) -> Published:
    rows = tuple(
        PublishedRow(
            model=row["model"],
            base=row.get("base", ""),
            rule=row["rule"],
            threshold=row["threshold"],
            readout=row["readout"],
            cells=row["cells"],
            average=row["average"],
            note=row["note"],
            reading=Reading(**row["reading"]) if "reading" in row else None,
        )
        for row in data["rows"]
    )
    return Published(data["title"], data["benchmark"], data["source"], data["note"], tuple(data["subsets"]), rows)
