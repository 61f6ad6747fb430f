"""Checks ranges and lengths of scored traces, by the kind of score in their manifest; tasks check more of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prmbench.core.records import RunManifest, ScoredTrace
from prmbench.core.validation.fields import LARGEST_COUNT, LARGEST_SCORE, NOTE_LENGTH, Fault, all_within, short

FINISHES = ("", "stop", "length")
MAX_STEPS = 1_000_000


def trace_faults(scores: Iterable[ScoredTrace], manifest: RunManifest) -> Iterator[Fault]:
    """Yield every invalid field of a scored trace; lines are counted from 1."""
    for number, trace in enumerate(scores, 1):
        for field, problem in _trace(trace, manifest):
            yield f"scores line {number} ({short.repr(trace.id)}): {field}", problem


def _trace(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    if not trace.id:
        yield "id", "is empty"
    texts = (trace.id, trace.subset, trace.cluster, trace.unscored, trace.answer)
    if len("".join(texts)) > NOTE_LENGTH:  # ids and groups are the user's, and may be whole problems
        for field, text in zip(("id", "subset", "cluster", "unscored", "answer"), texts, strict=True):
            if len(text) > NOTE_LENGTH:
                yield field, f"has {len(text):,} characters, more than {NOTE_LENGTH:,}"
    if trace.finish not in FINISHES:
        yield "finish", f"is {short.repr(trace.finish)}, not one of {FINISHES}"
    if trace.outcome not in (None, 0, 1):
        yield "outcome", f"is {short.repr(trace.outcome)}, not 0 or 1"
    yield from _labels(trace)
    if trace.unscored:
        counts = () if manifest.kind == "outcome" else trace.tokens  # a completion that was not verified has a length
        if trace.values or counts or trace.verdicts or trace.also:
            yield "unscored", "has a reason, beside scores"
        yield from _counts(trace)
    else:
        yield from _scores(trace, manifest)


def _labels(trace: ScoredTrace) -> Iterator[Fault]:
    """Yield invalid labels."""
    if not 0 <= trace.steps <= MAX_STEPS:
        yield "steps", f"is {short.repr(trace.steps)}, not from 0 to {MAX_STEPS}"
    if trace.label is not None and not -1 <= trace.label < max(trace.steps, 0):
        yield "label", f"is {short.repr(trace.label)} for {short.repr(trace.steps)} steps"
    labels = trace.step_labels
    if labels and not (len(labels) == trace.steps and all_within(labels, 0, 1)):
        yield "step_labels", f"must be one number from 0 to 1 for each of {trace.steps} steps"


def _scores(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    if manifest.kind == "outcome":
        yield from _counts(trace)
    elif manifest.kind == "verdict":
        verdicts = [v for v in trace.verdicts if v is not None]
        if not trace.verdicts or not all_within(verdicts, -1, trace.steps - 1):
            yield "verdicts", f"is {short.repr(trace.verdicts)}: null, or from -1 to {trace.steps - 1}, one a vote"
    else:
        yield from _step_scores(trace, manifest)


def _counts(trace: ScoredTrace) -> Iterator[Fault]:
    if not all_within(trace.tokens, 0, LARGEST_COUNT):
        yield "tokens", f"is {short.repr(trace.tokens)}, not counts"


def _step_scores(trace: ScoredTrace, manifest: RunManifest) -> Iterator[Fault]:
    lowest, highest = (0.0, 1.0) if manifest.kind == "prob" else (-LARGEST_SCORE, LARGEST_SCORE)
    for name, values in series_of(trace).items():
        if len(values) != trace.steps or not all_within(values, lowest, highest):
            yield name, f"must be one finite number from {lowest:g} to {highest:g} for each of {trace.steps} steps"
    for name in manifest.series:
        if name not in trace.also:
            yield f"also.{name}", "is missing, and the manifest names it"
    # Mean readouts divide sums by the number of tokens, so every step needs one.
    min_tokens = 1 if manifest.kind == "logratio" else 0
    has_counts = len(trace.tokens) == trace.steps or not (trace.tokens or min_tokens)
    if not has_counts or not all_within(trace.tokens, min_tokens, LARGEST_COUNT):
        yield "tokens", f"must be one count of at least {min_tokens} for each of {trace.steps} steps"


def series_of(trace: ScoredTrace) -> dict[str, Sequence[float]]:
    """Return the numbers of a score line by field: `values`, and every further series."""
    return {"values": trace.values, **{f"also.{short.repr(name)[1:-1]}": values for name, values in trace.also.items()}}


def coverage_faults(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Iterator[Fault]:
    """Yield ids that occur twice, and differences between the scores and what the manifest says of them."""
    duplicates = sorted(name for name, times in Counter(t.id for t in scores).items() if times > 1)
    if duplicates:
        yield "scores", f"have {len(duplicates)} ids twice, the first is {short.repr(duplicates[0])}"
    if len(scores) != manifest.n:
        yield "manifest.n", f"is {manifest.n}, and there are {len(scores)} traces in the scores"
    subsets = {t.subset for t in scores}
    if subsets != set(manifest.subsets):
        yield (
            "manifest.subsets",
            f"are {short.repr(sorted(manifest.subsets))}, and those in the scores {short.repr(sorted(subsets))}",
        )
