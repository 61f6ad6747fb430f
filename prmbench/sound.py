"""Reads results that somebody else may have written: the type, range and length of every field, before any judging.

pydantic checks types while it parses JSON straight into the records of `schema` (strictly: no text for a number, no
truth value for a count). What it cannot know stands below: ranges, lengths, and how fields depend on each other.
Whether a result may be *listed* (commit, clean tree) is the report's business; whether its rows follow from its scores
is judge's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from reprlib import Repr
from typing import TYPE_CHECKING, Any, TypeVar

from prmbench.schema import (
    READOUTS,
    SCHEMA_VERSION,
    MetricRow,
    RunManifest,
    RunResult,
    ScoredTrace,
    UserError,
)

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

R = TypeVar("R")

NAME = re.compile(r"[\w.+-]+")
"""What a subset or a series may be called: names stand in protocol keys, averages and tables."""
SAMPLING = ("temperature", "top_p", "top_k", "group_size")
"""What a policy's protocol is named by."""
FINISHES = ("", "stop", "length")
OF_OUTCOMES = ("policy", "distrl")
"""Tasks that score no steps."""
OF_FIRST_ERRORS = ("steps", "format_shift")
"""Tasks of which every trace has a label."""
OF_GROUPS = ("policy", "best_of_n")
"""Tasks that look at all completions of a problem together."""

# Limits. Each is far beyond what an honest run needs, and keeps a dishonest one from taking the memory or the day.
MOST_TRACES = 10_000_000
MOST_STEPS = 1_000_000
MOST_COMPLETIONS = 4_096
"""Of one problem."""
MOST_REPLICATES = 10_000
MOST_WEIGHTS = 2_000_000_000
"""Replicates times traces: what a bootstrap holds."""
MOST_ITEMS = 1_000
"""In a list of the manifest."""
MOST_SETTINGS = 10_000
"""Values in `config`, those inside others included."""
NAME_LENGTH, TEXT_LENGTH, NOTE_LENGTH = 200, 1_000, 20_000
"""Characters. An average's name holds the names of all its subsets, and a note may name each of them."""
LARGEST_SCORE = 1e12
LARGEST_COUNT = 2**53
"""A whole number that a float holds exactly."""
LARGEST_SETTING = 1e300
"""Beyond it sums and squares of floats are infinite."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that steer a terminal or turn the direction of writing; line breaks and tabs are harmless and flattened."""

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlist = _short.maxtuple = _short.maxdict = 4

Fault = tuple[str, str]
"""The path of a field, such as `manifest.n`, and what is wrong with it."""


# --- types: JSON to records ---------------------------------------------------------------------------------


def read_result(raw: bytes, where: str) -> RunResult:
    """Parses a `<run-id>.json`.

    Args:
        raw: Content of the file.
        where: The file's name, for the message.

    Raises:
        UserError: The content is no JSON, of a newer schema, or a field has the wrong type. Ranges are `check`'s.
    """
    version = _typed(_Versioned, raw, where, "not a prmbench result").manifest.schema_version
    if not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {_short.repr(version)}: this prmbench reads 1 to {SCHEMA_VERSION}; "
            f"upgrade prmbench"
        )
    return _typed(RunResult, raw, where, "not a prmbench result")


def read_trace(line: bytes, where: str) -> ScoredTrace:
    """Parses one line of a scores file. Raises UserError on a field of the wrong type; ranges are `check`'s."""
    return _typed(ScoredTrace, line, where, "not a scored trace")


def read_step(line: bytes, where: str) -> dict[str, Any]:
    """Parses one line of a metrics file: a training step, its numbers, and perhaps a validation's.

    Raises:
        UserError: The line is no JSON object, its step is no count, or a value is neither a number, a text, a list of
            texts nor such an object itself.
    """
    values: dict[str, Any] = _typed(dict, line, where, "not a record of training steps")
    for path, fault in _step_faults(values):
        raise UserError(f"{where}: not a record of training steps ({path} {fault}); train again")
    return values


@dataclass(frozen=True, slots=True)
class _Version:
    schema_version: int = 0


@dataclass(frozen=True, slots=True)
class _Versioned:
    """What is read first, since a newer schema may have other types."""

    manifest: _Version


@cache
def _adapter(record: type[R]) -> TypeAdapter[R]:
    """Built once, and not before something is read: pydantic takes longer to load than `--help` may."""
    from pydantic import TypeAdapter

    return TypeAdapter(dict[str, Any] if record is dict else record)


def _typed(record: type[R], raw: bytes, where: str, what: str) -> R:
    from pydantic import ValidationError

    try:
        return _adapter(record).validate_json(raw, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {what} ({_first(error)})") from error


def _first(error: ValidationError) -> str:
    """`manifest.n is 'x': should be a valid integer`, and how many more faults there are."""
    faults = error.errors(include_url=False, include_context=False)
    first, more = faults[0], len(faults) - 1
    path = ".".join(map(str, first["loc"]))
    words = str(first["msg"]).replace("Input should", "should", 1)
    if first["type"] == "missing":
        words = f"{path} is missing"
    elif path:
        words = f"{path} is {_short.repr(first['input'])}: {words}"
    flat = " ".join(words.split())
    return f"{flat}; and {more} more" if more else flat


# --- ranges, lengths, and what depends on what --------------------------------------------------------------


def check(result: RunResult, scores: Sequence[ScoredTrace], where: str) -> None:
    """Raises UserError with the first field whose value cannot be, and how many more there are."""
    manifest = result.manifest
    faults: list[Fault] = list(_manifest(manifest))
    if not faults:  # the rest is measured by the manifest
        faults += _rows(result.rows, manifest)
        faults += _traces(scores, manifest)
    if not faults:
        faults += _coverage(manifest, scores)
    if faults:
        path, words = faults[0]
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(f"{where}: {path} {words}{more}")


def _manifest(manifest: RunManifest) -> Iterator[Fault]:
    for field, words in (
        *_texts(manifest),
        *_names(manifest),
        *_counts(manifest),
        *_task(manifest),
        *_settings(manifest.config, "config"),
    ):
        yield f"manifest.{field}", words


def _texts(manifest: RunManifest) -> Iterator[Fault]:
    for field in ("run_id", "model", "benchmark"):
        if not getattr(manifest, field).strip():
            yield field, "is empty"
    if not NAME.fullmatch(manifest.run_id):
        yield "run_id", f"is {_short.repr(manifest.run_id)}: letters, digits and . + - _ only, since it names a file"
    yield from _text("run_id", manifest.run_id, NAME_LENGTH)
    yield from _text("benchmark", manifest.benchmark, NAME_LENGTH)
    for field in _TEXTS:
        yield from _text(field, getattr(manifest, field) or "")
    for pair in manifest.packages.items():
        for text in pair:
            yield from _text("packages", text)


_TEXTS = (
    *("model", "backend", "input_format", "benchmark_hash", "scores_sha256", "revision", "weights"),
    *("ref_model", "ref_revision", "ref_weights", "template", "data_source", "data_revision", "signal"),
    *("dtype", "engine", "device", "hardware", "commit"),
)


def _names(manifest: RunManifest) -> Iterator[Fault]:
    lists = {"subsets": manifest.subsets, "series": manifest.series, "calibrate_on": (manifest.calibrate_on,)}
    for field, names in lists.items():
        odd = [name for name in names if not NAME.fullmatch(name) or len(name) > NAME_LENGTH]
        if odd:
            yield field, f"has {_short.repr(odd[0])}: at most {NAME_LENGTH} letters, digits and . + - _"
    if not manifest.subsets:
        yield "subsets", "is empty"
    for field in ("subsets", "series", "rules", "extra_protocols", "trained_on", "commits", "packages"):
        items = getattr(manifest, field)
        if len(items) > MOST_ITEMS:
            yield field, f"has {len(items)} items, more than {MOST_ITEMS}"
        if len(set(items)) < len(items) and field in ("subsets", "series", "rules", "extra_protocols"):
            yield field, "names one of its items twice"
        for item in items:
            yield from _text(field, item)


def _counts(manifest: RunManifest) -> Iterator[Fault]:
    most: dict[str, tuple[float, float]] = {
        "n": (1, MOST_TRACES),
        "seed": (-LARGEST_COUNT, LARGEST_COUNT),
        "replicates": (0, MOST_REPLICATES),
        **dict.fromkeys(
            ("benchmark_version", "schema_version", "scoring_version", "tokens", "completion_tokens"),
            (0, LARGEST_COUNT),
        ),
        **dict.fromkeys(("seconds", "cost", "memory_gib"), (0, LARGEST_COUNT)),
        **dict.fromkeys(("native", "fixed"), (-LARGEST_SCORE, LARGEST_SCORE)),
    }
    for field, (low, high) in most.items():
        value = getattr(manifest, field)
        if value is not None and not low <= value <= high:  # NaN is in no range
            yield field, f"is {_short.repr(value)}, not from {low:g} to {high:g}"
    if manifest.beta is not None and not 0 < manifest.beta <= LARGEST_SCORE:
        yield "beta", f"is {_short.repr(manifest.beta)}, not above 0"
    if manifest.replicates <= MOST_REPLICATES and manifest.n * manifest.replicates > MOST_WEIGHTS:
        yield "replicates", f"is {manifest.replicates} for {_short.repr(manifest.n)} traces, more than a bootstrap can hold"


def _task(manifest: RunManifest) -> Iterator[Fault]:
    """Kinds of scores that a task cannot have, and what a task's protocols are named by."""
    if (manifest.task in OF_OUTCOMES) != (manifest.kind == "outcome"):
        yield "task", f"is {manifest.task!r} on {manifest.kind!r} scores, unknown to this version"
    if manifest.task == "policy":
        for name in SAMPLING:
            value = manifest.config.get(name)
            if not _is_number(value) or not 0 <= value <= LARGEST_SCORE:
                yield f"config.{name}", f"is {_short.repr(value)}, not a number of at least 0"
    elif manifest.task == "distrl":
        yield from _training(manifest.config)


def _training(config: Mapping[str, Any]) -> Iterator[Fault]:
    """When the policy was validated, and by how many samples."""
    steps, samples = config.get("validated_at"), config.get("samples")
    rising = isinstance(steps, list | tuple) and all(map(_is_count, steps)) and sorted(set(steps)) == [*steps]
    if not steps or not rising:
        yield "config.validated_at", f"is {_short.repr(steps)}, not a list of rising steps"
    if not _is_count(samples) or not samples:
        yield "config.samples", f"is {_short.repr(samples)}, not a count"


def _settings(config: Mapping[str, Any], path: str) -> Iterator[Fault]:
    """Options may be anything that JSON can say, of a size that a table can hold."""
    prefix = f"{path}." if path else ""
    queue: list[tuple[str, Any]] = [
        (f"{prefix}{_short.repr(name)[1:-1]}", part) for name, value in config.items() for part in (name, value)
    ]
    seen = 0
    while queue:
        where, value = queue.pop()
        seen += 1
        if seen > MOST_SETTINGS:
            yield path, f"has more than {MOST_SETTINGS} values"
            return
        if isinstance(value, Mapping):
            queue += [(where, part) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            queue += [(where, item) for item in value]
        elif isinstance(value, str):
            yield from _text(where, value)
        elif isinstance(value, int | float) and not abs(value) <= LARGEST_SETTING:
            yield where, f"is {_short.repr(value)}, not a finite number"


def _rows(rows: Sequence[MetricRow], manifest: RunManifest) -> Iterator[Fault]:
    for i, row in enumerate(rows):
        for field, words in _row(row, manifest):
            yield f"rows.{i}.{field}", words
    keys = Counter((row.subset, row.protocol, row.metric) for row in rows)
    for key, times in keys.items():
        if times > 1:
            yield "rows", f"has {_short.repr('/'.join(key))} {times} times"


def _row(row: MetricRow, manifest: RunManifest) -> Iterator[Fault]:
    for field in ("subset", "protocol", "metric"):
        if not getattr(row, field):
            yield field, "is empty"
    for field, most in _ROW_TEXTS.items():
        yield from _text(field, getattr(row, field), most)
    for field in ("value", "lo", "hi"):
        value = getattr(row, field)
        if value is not None and not abs(value) <= LARGEST_SETTING:
            yield field, f"is {_short.repr(value)}, not a finite number"
    if (row.lo is None) != (row.hi is None) or (row.value is None and row.lo is not None):
        yield "lo", f"and hi are {row.lo!r} and {row.hi!r} beside the value {row.value!r}"
    elif row.lo is not None and row.hi is not None and row.lo > row.hi:
        yield "lo", f"is {row.lo!r}, above hi, {row.hi!r}"
    if not 0 <= row.n <= manifest.n:
        yield "n", f"is {_short.repr(row.n)}, not from 0 to {manifest.n}"
    elif not 0 <= row.unscored <= row.n:
        yield "unscored", f"is {_short.repr(row.unscored)}, not from 0 to {row.n}"


_ROW_TEXTS = {"subset": NOTE_LENGTH, "protocol": TEXT_LENGTH, "metric": TEXT_LENGTH, "note": NOTE_LENGTH}


# --- scores -------------------------------------------------------------------------------------------------


def _traces(scores: Iterable[ScoredTrace], manifest: RunManifest) -> Iterator[Fault]:
    for number, trace in enumerate(scores, 1):
        for field, words in _trace(trace, manifest):
            yield f"scores line {number} ({_short.repr(trace.id)}): {field}", words


def _trace(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    if not trace.id:
        yield "id", "is empty"
    texts = (trace.id, trace.subset, trace.cluster, trace.unscored, trace.answer)
    together = "".join(texts)
    if len(together) > TEXT_LENGTH or not together.isprintable():  # seldom, and nearly all the time is spent here
        for field, text in zip(("id", "subset", "cluster", "unscored", "answer"), texts, strict=True):
            yield from _text(field, text)
    if trace.finish not in FINISHES:
        yield "finish", f"is {_short.repr(trace.finish)}, not one of {FINISHES}"
    if trace.outcome not in (None, 0, 1):
        yield "outcome", f"is {_short.repr(trace.outcome)}, not 0 or 1"
    yield from _labels(trace, manifest)
    if trace.unscored:
        if trace.values or trace.tokens or trace.verdicts or trace.also:
            yield "unscored", "has a reason, beside scores"
    else:
        yield from _scores(trace, manifest)


def _labels(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    """Step F1 needs a label, and so a step; elsewhere there may be neither."""
    needs_label = manifest.task in OF_FIRST_ERRORS
    fewest = 1 if needs_label else 0
    if not fewest <= trace.steps <= MOST_STEPS:
        yield "steps", f"is {_short.repr(trace.steps)}, not from {fewest} to {MOST_STEPS}"
    if trace.label is None:
        if needs_label:
            yield "label", f"is missing; benchmark {manifest.benchmark} needs one"
    elif not -1 <= trace.label < max(trace.steps, 0):
        yield "label", f"is {_short.repr(trace.label)} for {_short.repr(trace.steps)} steps"
    labels = trace.step_labels
    if manifest.task == "validity" and (not labels or not set(labels) <= {0, 1}):
        yield "step_labels", f"must be 0 or 1 for each of {trace.steps} steps"
    if labels and not (len(labels) == trace.steps and _all_within(labels, 0, 1)):
        yield "step_labels", f"must be one number from 0 to 1 for each of {trace.steps} steps"


def _scores(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    if manifest.task == "distrl":
        yield from _validations(trace, manifest)
    elif manifest.kind == "outcome":
        if trace.values or trace.outcome is None or not _all_within(trace.tokens, 0, LARGEST_COUNT):
            yield "outcome", "of a policy's completion is missing, or it has values, or no count of tokens"
    elif manifest.kind == "verdict":
        verdicts = [v for v in trace.verdicts if v is not None]
        if not trace.verdicts or not _all_within(verdicts, -1, trace.steps - 1):
            yield "verdicts", f"is {_short.repr(trace.verdicts)}: null, or from -1 to {trace.steps - 1}, one a vote"
    else:
        yield from _step_scores(trace, manifest)


def _step_scores(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    lowest, highest = (0.0, 1.0) if manifest.kind == "prob" else (-LARGEST_SCORE, LARGEST_SCORE)
    for name, values in {"values": trace.values, **trace.also}.items():
        if len(values) != trace.steps or not _all_within(values, lowest, highest):
            yield name, f"must be one finite number from {lowest:g} to {highest:g} for each of {trace.steps} steps"
    for name in manifest.series:
        if name not in trace.also:
            yield f"also.{name}", "is missing, and the manifest names it"
    # A mean over no tokens is no number, so of sums every step needs a token.
    fewest = 1 if manifest.kind == "logratio" else 0
    counted = len(trace.tokens) == trace.steps or not (trace.tokens or fewest)
    if not counted or not _all_within(trace.tokens, fewest, LARGEST_COUNT):
        yield "tokens", f"must be one count of at least {fewest} for each of {trace.steps} steps"


def _validations(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    count = len(manifest.config["validated_at"])
    for name, values in {"values": trace.values, **trace.also}.items():
        if trace.steps != count or len(values) != count or not _all_within(values, 0, 1):
            yield name, f"must be one number from 0 to 1 for each of {count} validations"


def _coverage(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Iterator[Fault]:
    """Ids that are doubled, and traces that the manifest promises and the scores file lacks."""
    doubled = sorted(name for name, times in Counter(t.id for t in scores).items() if times > 1)
    if doubled:
        yield "scores", f"have {len(doubled)} ids twice, the first is {_short.repr(doubled[0])}"
    if len(scores) != manifest.n:
        yield "manifest.n", f"is {manifest.n}, and there are {len(scores)} traces in the scores"
    have = {t.subset for t in scores}
    if have != set(manifest.subsets):
        yield "manifest.subsets", f"are {_list(manifest.subsets)}, and those in the scores {_list(have)}"
    if manifest.task in OF_GROUPS:
        groups = Counter((t.subset, t.cluster) for t in scores)
        largest = max(groups.values(), default=0)
        if largest > MOST_COMPLETIONS:
            yield "scores", f"have {largest} completions of one problem, more than {MOST_COMPLETIONS}"


def _step_faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Of a line of metrics: what figures and tables could stumble over."""
    if not _is_count(values.get("step")):
        yield "step", f"is {_short.repr(values.get('step'))}, not a count"
    raised = values.get("alarms") or []
    if not isinstance(raised, list) or not all(isinstance(name, str) for name in raised):
        yield "alarms", f"is {_short.repr(raised)}, not a list of names"
    if not isinstance(values.get("validation", {}), Mapping):
        yield "validation", f"is {_short.repr(values['validation'])}, not an object"
    yield from _settings(values, "")


def _all_within(values: Sequence[float], low: float, high: float) -> bool:
    """Whether all are finite and in the range; fast, since it sees every number of every file."""
    return not values or (all(map(math.isfinite, values)) and low <= min(values) and max(values) <= high)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_SETTING


def _text(field: str, text: str, most: int = TEXT_LENGTH) -> Iterator[Fault]:
    if len(text) > most:
        yield field, f"has {len(text):,} characters, more than {most:,}"
    elif not text.isprintable() and _CONTROL.search(text):
        yield field, f"is {_short.repr(text)}, which has control characters"


def _list(names: Iterable[str]) -> str:
    return _short.repr(sorted(names))
