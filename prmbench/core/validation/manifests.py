"""Checks ranges and lengths of a manifest and of metric rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from prmbench.core.records import MetricRow, RunManifest
from prmbench.core.validation.fields import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    LARGEST_SCORE,
    MAX_ITEMS,
    MAX_REPLICATES,
    MAX_TRACES,
    MAX_WEIGHTS,
    NAME,
    NAME_LENGTH,
    NOTE_LENGTH,
    TEXT_LENGTH,
    Fault,
    setting_faults,
    short,
    text_faults,
)

TEXTS = (
    *("model", "backend", "input_format", "benchmark_hash", "scores_sha256", "revision", "weights"),
    *("ref_model", "ref_revision", "ref_weights", "template", "data_source", "data_revision", "signal"),
    *("dtype", "engine", "device", "hardware", "commit", "name"),
)
LISTS = ("subsets", "series", "rules", "extra_protocols", "trained_on", "commits", "packages", "request_changes")
LIMITS = (-LARGEST_NUMBER, LARGEST_NUMBER)
SHARES = {
    **dict.fromkeys(("p_value", "ece_if_calibrated"), (0.0, 1.0)),
    **dict.fromkeys(("mdd", "drop_mdd"), (0.0, LARGEST_NUMBER)),
}
"""Metric computed from bootstrap replicates -> its range; the exact value takes another bootstrap to check."""
ROW_TEXTS = {"subset": NOTE_LENGTH, "protocol": TEXT_LENGTH, "metric": TEXT_LENGTH, "note": NOTE_LENGTH}
"""Field -> largest number of characters."""


def manifest_faults(manifest: RunManifest) -> Iterator[Fault]:
    """Yield every invalid field of a manifest."""
    for field, problem in (
        *_texts(manifest),
        *_names(manifest),
        *_counts(manifest),
        *setting_faults(manifest.config, "config"),
        *setting_faults(manifest.assumed, "assumed"),
    ):
        yield f"manifest.{field}", problem


def _texts(manifest: RunManifest) -> Iterator[Fault]:
    for field in ("run_id", "model", "benchmark"):
        if not getattr(manifest, field).strip():
            yield field, "is empty"
    if not NAME.fullmatch(manifest.task):
        yield "task", f"is {short.repr(manifest.task)}: letters, digits and . + - _ only, since it names a file"
    yield from text_faults("task", manifest.task, NAME_LENGTH)
    if not NAME.fullmatch(manifest.run_id):
        yield "run_id", f"is {short.repr(manifest.run_id)}: letters, digits and . + - _ only, since it names a file"
    yield from text_faults("run_id", manifest.run_id, NAME_LENGTH)
    yield from text_faults("benchmark", manifest.benchmark, NAME_LENGTH)
    for field in TEXTS:
        yield from text_faults(field, getattr(manifest, field) or "")
    for pair in manifest.packages.items():
        for text in pair:
            yield from text_faults("packages", text)


def _names(manifest: RunManifest) -> Iterator[Fault]:
    lists = {"subsets": manifest.subsets, "series": manifest.series, "calibrate_on": (manifest.calibrate_on,)}
    for field, names in lists.items():
        invalid = [name for name in names if not NAME.fullmatch(name) or len(name) > NAME_LENGTH]
        if invalid:
            yield field, f"has {short.repr(invalid[0])}: at most {NAME_LENGTH} letters, digits and . + - _"
    if not manifest.subsets:
        yield "subsets", "is empty"
    for field in LISTS:
        items = getattr(manifest, field)
        if len(items) > MAX_ITEMS:
            yield field, f"has {len(items)} items, more than {MAX_ITEMS}"
        if len(set(items)) < len(items) and field in ("subsets", "series", "rules", "extra_protocols"):
            yield field, "names one of its items twice"
        for item in items:
            yield from text_faults(field, item)


def _counts(manifest: RunManifest) -> Iterator[Fault]:
    ranges: dict[str, tuple[float, float]] = {
        "n": (1, MAX_TRACES),
        "seed": (-LARGEST_COUNT, LARGEST_COUNT),
        "replicates": (0, MAX_REPLICATES),
        **dict.fromkeys(
            (
                "benchmark_version",
                "schema_version",
                "scoring_version",
                "estimator_version",
                "tokens",
                "completion_tokens",
                "answers",
            ),
            (0, LARGEST_COUNT),
        ),
        **dict.fromkeys(("seconds", "finished_at", "cost", "memory_gib"), (0, LARGEST_COUNT)),
        **dict.fromkeys(("native", "fixed"), (-LARGEST_SCORE, LARGEST_SCORE)),
    }
    for field, (low, high) in ranges.items():
        value: float | None = getattr(manifest, field)
        if value is not None and not low <= value <= high:  # NaN is in no range
            yield field, f"is {short.repr(value)}, not from {low:,} to {high:,}"
    if manifest.positive_class is not None and not 0 <= manifest.positive_class <= LARGEST_COUNT:
        yield "positive_class", f"is {short.repr(manifest.positive_class)}, not a count"
    if manifest.beta is not None and not 0 < manifest.beta <= LARGEST_SCORE:
        yield "beta", f"is {short.repr(manifest.beta)}, not above 0"
    if manifest.replicates <= MAX_REPLICATES and manifest.n * manifest.replicates > MAX_WEIGHTS:
        yield (
            "replicates",
            f"is {manifest.replicates} for {short.repr(manifest.n)} traces, more than a bootstrap can hold",
        )


def row_faults(rows: Sequence[MetricRow], manifest: RunManifest) -> Iterator[Fault]:
    """Yield every invalid field of a row; whether its number follows from the scores is checked in tasks/."""
    for i, row in enumerate(rows):
        for field, problem in _row(row, manifest):
            yield f"rows.{i}.{field}", problem
    keys = Counter((row.subset, row.protocol, row.metric) for row in rows)
    for key, times in keys.items():
        if times > 1:
            yield "rows", f"has {short.repr('/'.join(key))} {times} times"


def _row(row: MetricRow, manifest: RunManifest) -> Iterator[Fault]:
    for field, max_length in ROW_TEXTS.items():
        if not getattr(row, field) and field != "note":
            yield field, "is empty"
        yield from text_faults(field, getattr(row, field), max_length)
    yield from _row_numbers(row)
    if not 0 <= row.n <= manifest.n:
        yield "n", f"is {short.repr(row.n)}, not from 0 to {manifest.n}"
    elif not 0 <= row.unscored <= row.n:
        yield "unscored", f"is {short.repr(row.unscored)}, not from 0 to {row.n}"


def _row_numbers(row: MetricRow) -> Iterator[Fault]:
    for field in ("value", "lo", "hi"):
        number: float | None = getattr(row, field)
        low, high = SHARES.get(row.metric, LIMITS)
        if number is not None and not low <= number <= high:
            yield field, f"is {short.repr(number)}, not a finite number from {low:g} to {high:g}"
    if (row.lo is None) != (row.hi is None) or (row.value is None and row.lo is not None):
        yield "lo", f"and hi are {row.lo!r} and {row.hi!r} beside the value {row.value!r}"
    elif row.lo is not None and row.hi is not None and row.lo > row.hi:
        yield "lo", f"is {row.lo!r}, above hi, {row.hi!r}"
