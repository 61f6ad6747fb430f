"""Files of a run: the result, its scores, the journal of a run in progress. Atomic writes, no torch.

A run is `<run-id>.json` beside `<run-id>.scores.jsonl.gz`; while it is scored, each process appends whole
batches to `<run-id>.journal/<process>.jsonl`. The runs of a study may be packed into archives, see `packing`: there a
run has the same names under `ARCHIVE.tar.xz/`, and whoever reads it by its path reads it the same way.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prmbench.core import archives, reading, validation, writing
from prmbench.core.records import RunResult, ScoredTrace, UserError

SCORES_SUFFIX = ".scores.jsonl.gz"
METRICS_SUFFIX = ".metrics.jsonl.gz"
LINES_SUFFIX, VALUES_SUFFIX = ".scores.jsonl", ".values.jsonl"
"""In an archive, instead of the scores file: its lines without `values`, and the values. All runs of a world have the
same lines and each has its own values; apart, they take three quarters of the room."""
TEXTS_SUFFIXES = (".critiques.jsonl", ".rollouts.jsonl")
"""What critics and policies wrote, beside their runs."""
MOST_RESULT_BYTES = 2**26
MOST_BLANK_LINES = 1_000
MOST_UNPACKED_BYTES, MOST_LINE_BYTES = 2**29, 2**20
"""Of a scores or metrics file; the largest committed ones have 1.2 MB, and lines of 3 kB."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run as it lies on disk."""

    result: RunResult
    scores: tuple[ScoredTrace, ...]
    path: Path


def scores_path(path: Path) -> Path:
    """`x/<run-id>.json` -> `x/<run-id>.scores.jsonl.gz`."""
    return path.with_name(path.name.removesuffix(".json") + SCORES_SUFFIX)


def metrics_path(path: Path) -> Path:
    """`x/<run-id>.json` -> `x/<run-id>.metrics.jsonl.gz`: a training run's record of its steps, where it has one."""
    return path.with_name(path.name.removesuffix(".json") + METRICS_SUFFIX)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of a run, there or not, by its <run-id>.json; the archive of a packed run."""
    if archive := archives.archive_of(path):
        return (archive,)
    texts = (path.with_suffix(suffix) for suffix in TEXTS_SUFFIXES)
    return path, scores_path(path), metrics_path(path), *texts


def pack_scores(scores: Iterable[ScoredTrace]) -> bytes:
    """Scores as gzipped JSON lines, sorted by id, without a time stamp: equal scores give equal bytes."""
    lines = (json.dumps(row.to_json(), sort_keys=True) for row in sorted(scores, key=lambda t: t.id))
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def unpack_scores(raw: bytes, path: Path | str, most: int = validation.MOST_TRACES) -> tuple[ScoredTrace, ...]:
    """Inverse of `pack_scores`.

    Args:
        raw: Content of the file, packed.
        path: What a message begins with when the file is not what it should be.
        most: Lines that the file may have: as many as its manifest counts traces.

    Raises:
        UserError: The file is no gzip of JSON lines, a field has another type than it should, or unpacked it is larger
            than any honest file.
    """
    return _traces(unpacked_lines(raw, f"{path}: not a scores file"), path, most)


def _traces(lines: Iterable[bytes], path: Path | str, most: int) -> tuple[ScoredTrace, ...]:
    found = []
    for number, line in enumerate(lines, 1):
        if number > most:
            raise UserError(f"{path}: has more than the {most:,} traces that manifest.n counts")
        found.append(validation.read_trace(line, f"{path}, line {number}"))
    return tuple(found)


def unpacked_lines(raw: bytes, fault: str) -> Iterator[bytes]:
    """Lines of a gzipped text, one after the other, so that a small file never fills the memory.

    Args:
        raw: The packed text.
        fault: What a message begins with.

    Raises:
        UserError: The file is no gzip, is cut, or unpacks to more than `MOST_LINE_BYTES` in a line or
            `MOST_UNPACKED_BYTES` in all, or has more than `MOST_BLANK_LINES`.
    """
    total = blank = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            while line := stream.readline(MOST_LINE_BYTES + 1):
                total += len(line)
                if len(line) > MOST_LINE_BYTES or total > MOST_UNPACKED_BYTES:
                    what = "a line of it" if len(line) > MOST_LINE_BYTES else "it"
                    most = MOST_LINE_BYTES if len(line) > MOST_LINE_BYTES else MOST_UNPACKED_BYTES
                    raise UserError(f"{fault} (unpacked, {what} has more than {most:,} bytes)")
                if not line.isspace():
                    yield line.rstrip(b"\n")
                    continue
                blank += 1
                if blank > MOST_BLANK_LINES:  # millions of them pack into nothing and would take minutes to pass over
                    raise UserError(f"{fault} (has more than {MOST_BLANK_LINES:,} blank lines)")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{fault} ({error}); score the model again") from error


def sha256(raw: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(raw).hexdigest()


def canonical_json(value: object) -> str:
    """Sorted keys, two spaces, one newline at the end: the form of every JSON file we write."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def short_hash(facts: Mapping[str, Any]) -> str:
    """12 hex digits that name a set of facts: run ids."""
    return sha256(canonical_json(dict(facts)).encode())[:12]


def write_run(path: Path, result: RunResult, packed: bytes) -> None:
    """Scores first, then the result that names their hash: a result on disk always has its scores."""
    writing.write_atomic(scores_path(path), packed)
    writing.write_atomic(path, _result_json(result))


def _result_json(result: RunResult) -> str:
    """Canonical JSON, but for the rows: one a line, since there may be a thousand."""
    told = result.to_json()
    rows = ",\n".join(f"    {json.dumps(row, sort_keys=True, ensure_ascii=False)}" for row in told["rows"])
    head, _, tail = canonical_json({**told, "rows": ["ROWS"]}).rpartition('    "ROWS"')
    return f"{head}{rows}{tail}" if rows else canonical_json(told)


def read_stored(path: Path) -> Run:
    """Reads a result and its scores, loose or packed, and checks every field of both, as far as all tasks agree on it.

    `prmbench.tasks.read_run` checks besides what the run's task demands.

    Raises:
        UserError: One of the files is missing, a link, too large, foreign or altered, or a field of it cannot be.
    """
    raw = read_file(path, MOST_RESULT_BYTES, "name the <run-id>.json of a finished run")
    result = validation.read_result(reading.decoded(raw, path), str(path))
    validation.check_result(result, str(path))
    source = scores_path(path)
    lines, digest = _lines_and_digest(path)
    if digest != result.manifest.scores_sha256:
        raise UserError(f"{source}: its SHA-256 is not the one in {path.name}; restore the file or score again")
    run = Run(result, _traces(lines, f"{path}: {source.name}", result.manifest.n), path)
    validation.check_scores(result.manifest, run.scores, str(path))
    return run


def score_lines(path: Path) -> Iterable[bytes]:
    """The lines of a run's scores, loose or packed, by its `<run-id>.json`. Raises UserError."""
    return _lines_and_digest(path)[0]


def _lines_and_digest(path: Path) -> tuple[Iterable[bytes], str]:
    """The lines, and the SHA-256 of the scores file; of a packed run that of the lines, since gzip's bytes may vary."""
    if archives.archive_of(path):
        lines = _packed_lines(path)
        return lines, sha256(b"".join(lines))
    source = scores_path(path)
    packed = read_file(source, MOST_UNPACKED_BYTES, "a result needs its scores beside it")
    return unpacked_lines(packed, f"{path}: {source.name}: not a scores file"), sha256(packed)


def _packed_lines(path: Path) -> list[bytes]:
    """The lines of a packed run's scores.

    Raises:
        UserError: One of the two members is missing, has a line too long, or has not the other's number of lines.
    """
    stem = path.name.removesuffix(".json")
    remedy = "a result needs its scores beside it"
    lines, values = (
        read_file(path.with_name(stem + suffix), MOST_UNPACKED_BYTES, remedy).split(b"\n")
        for suffix in (LINES_SUFFIX, VALUES_SUFFIX)
    )
    if len(lines) != len(values):
        raise UserError(f"{path}: its archive has {len(lines):,} lines of scores and {len(values):,} of values")
    joined = [join_values(*pair) for pair in zip(lines, values, strict=True) if pair != (b"", b"")]
    if any(len(line) > MOST_LINE_BYTES for line in joined):
        raise UserError(f"{path}: a line of its scores has more than {MOST_LINE_BYTES:,} bytes")
    return joined


def split_values(line: bytes) -> tuple[bytes, bytes]:
    """A line of a scores file -> the line without its values, and the values."""
    row = json.loads(line)
    values = row.pop("values")
    return json.dumps(row, sort_keys=True).encode(), json.dumps(values).encode()


def join_values(line: bytes, values: bytes) -> bytes:
    """Inverse of `split_values`, but for the order of the fields. What is no JSON object stays none."""
    return line.removesuffix(b"}") + b', "values": ' + values + b"}"


def read_file(path: Path, most: int, remedy: str) -> bytes:
    """Content of a result's file, which may be a member of an archive: a regular one of at most `most` bytes, no link.

    Raises:
        UserError: It is none of this; the message ends with `remedy`.
    """
    try:
        return archives.read(path, most)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def result_paths(archive: Path) -> list[Path]:
    """Every `.json` member of an archive. Raises UserError when it cannot be read."""
    return [archive / name for name in archives.members(archive) if name.endswith(".json")]


def has_scores(path: Path) -> bool:
    """Whether the scores of a result are there."""
    if archive := archives.archive_of(path):
        return path.name.removesuffix(".json") + LINES_SUFFIX in archives.members(archive)
    return scores_path(path).exists()


# --- the journal of a run in progress -----------------------------------------------------------------


class Journal:
    """Append-only record of the batches scored so far; a torn last line (kill -9) is passed over."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, anew: bool = False) -> None:
        """Opens or continues the journal of the run described by `identity`; `anew` empties it first.

        Raises UserError when the folder holds a run begun under another identity (an older scoring version, say).
        """
        self.folder = folder
        head = folder / "run.json"
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link, and nothing is written through links; delete it")
        if anew:
            self._empty()
        if reading.lexists(head):
            begun = _entry_of(reading.read_text(head))
            if begun is None:
                raise UserError(f"{head}: not a journal's head; delete {folder} to start afresh")
            changed = sorted(k for k in identity if begun.get(k) != identity[k])
            if changed:
                raise UserError(
                    f"{folder}: begun with another {', '.join(changed)}; its scores cannot be continued, "
                    f"delete the folder to start afresh"
                )
        else:
            writing.write_atomic(head, canonical_json(dict(identity)))

    def done(self) -> dict[int, dict[str, Any]]:
        """Batches on disk, from all processes of all sittings, by batch number."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in reading.appended_lines(path):
                entry = _entry_of(line)
                if entry is not None and type(entry.get("batch")) is int:  # else torn by a kill, and scored again
                    found[entry["batch"]] = entry
        return found

    @contextmanager
    def claimed(self, process: int) -> Iterator[None]:
        """While this is open, no other process of that number writes here. Raises UserError when one already does."""
        busy = f"{self.folder}: another process is scoring this run; wait for it to end"
        with writing.locked(self.folder / f"{process}.lock", busy):
            yield

    def append(self, process: int, entry: Mapping[str, Any]) -> None:
        """One batch, on disk when this returns."""
        writing.append_lines(self.folder / f"{process}.jsonl", [json.dumps(entry, sort_keys=True)], durable=True)

    def remove(self) -> None:
        """Deletes the journal; the result is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _empty(self) -> None:
        """Forgets what is on disk, unless a process is adding to it."""
        if not self.folder.is_dir():
            return
        with self.claimed(0):
            for path in (*self.folder.glob("*.jsonl"), self.folder / "run.json"):
                path.unlink(missing_ok=True)


def _entry_of(line: str) -> dict[str, Any] | None:
    """The JSON object on a line of our own writing; None for what is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
