"""Files of a run: the result, its scores, and the journal of a run in progress. Atomic writes, no torch.

A run is `<run-id>.json` with `<run-id>.scores.jsonl.gz` in the same folder; while it is scored, each process appends
whole batches to `<run-id>.journal/<process>.jsonl`. The runs of a study may be packed into archives, see `packing`:
there a run has the same names under `ARCHIVE.tar.xz/`, and every function here reads it by its path in the same way.
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
from prmbench.core.records import RunManifest, RunResult, ScoredTrace, UserError

SCORES_SUFFIX = ".scores.jsonl.gz"
METRICS_SUFFIX = ".metrics.jsonl.gz"
JOURNAL_HEAD = "run.json"
"""File of a journal that holds the identity of its run."""
LINES_SUFFIX, VALUES_SUFFIX = ".scores.jsonl", ".values.jsonl"
"""In an archive, instead of the scores file: its lines without `values`, and the values. Runs of a study often share
all lines and differ in the values; kept apart, they compress to three quarters of the size."""
TEXTS_SUFFIXES = (".critiques.jsonl", ".rollouts.jsonl")
"""Files with the texts that critics and policies generated, in the folder of their runs."""
MAX_RESULT_BYTES = 2**26
MAX_BLANK_LINES = 1_000
MAX_UNPACKED_BYTES, MAX_LINE_BYTES = 2**29, 2**20
"""Of a scores or metrics file; the largest committed ones have 1.2 MB, and lines of 3 kB."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run as it is on disk."""

    result: RunResult
    scores: tuple[ScoredTrace, ...]
    path: Path
    suffix: str = ""
    """What tells the run apart from others of equal name on its benchmark: see `prmbench.report.run_names`."""
    is_judged_again: bool = False
    """Whether the file's rows are by an earlier version's estimators, so that these are computed from the scores."""


def scores_path(path: Path) -> Path:
    """Return the path of a run's scores: `x/<run-id>.json` -> `x/<run-id>.scores.jsonl.gz`."""
    return path.with_name(path.name.removesuffix(".json") + SCORES_SUFFIX)


def metrics_path(path: Path) -> Path:
    """Return the path of a training run's metrics of each step: `x/<run-id>.json` -> `x/<run-id>.metrics.jsonl.gz`."""
    return path.with_name(path.name.removesuffix(".json") + METRICS_SUFFIX)


def run_paths(path: Path) -> tuple[Path, ...]:
    """Return the paths of all files that a run may have, by its <run-id>.json; the archive of a packed run."""
    if archive := archives.archive_of(path):
        return (archive,)
    texts = (path.with_suffix(suffix) for suffix in TEXTS_SUFFIXES)
    return path, scores_path(path), metrics_path(path), *texts


def pack_scores(scores: Iterable[ScoredTrace]) -> bytes:
    """Return scores as gzipped JSON lines, sorted by id, without a time stamp: equal scores give equal bytes."""
    lines = (json.dumps(row.to_json(), sort_keys=True) for row in sorted(scores, key=lambda t: t.id))
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def unpack_scores(raw: bytes, path: Path | str, max_lines: int = validation.MAX_TRACES) -> tuple[ScoredTrace, ...]:
    """Return the scores in a packed file: the inverse of `pack_scores`.

    Args:
        raw: Packed content of the file.
        path: The file, for error messages.
        max_lines: Lines that the file may have: as many as its manifest counts traces.

    Raises:
        UserError: The file is no gzip of JSON lines, a field has another type than it should, or unpacked it is larger
            than any honest file.
    """
    return _parse_traces(unpacked_lines(raw, f"{path}: not a scores file"), path, max_lines)


def _parse_traces(lines: Iterable[bytes], path: Path | str, max_lines: int) -> tuple[ScoredTrace, ...]:
    traces = []
    for number, line in enumerate(lines, 1):
        if number > max_lines:
            raise UserError(f"{path}: has more than the {max_lines:,} traces that manifest.n counts")
        traces.append(validation.read_trace(line, f"{path}, line {number}"))
    return tuple(traces)


def unpacked_lines(raw: bytes, message: str) -> Iterator[bytes]:
    """Yield the lines of a gzipped text one by one, so that a small file that unpacks to a huge one fills no memory.

    Args:
        raw: The packed text.
        message: Beginning of error messages.

    Raises:
        UserError: The file is no gzip, is cut, or unpacks to more than `MAX_LINE_BYTES` in a line or
            `MAX_UNPACKED_BYTES` in all, or has more than `MAX_BLANK_LINES`.
    """
    total = blank = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                total += len(line)
                if len(line) > MAX_LINE_BYTES or total > MAX_UNPACKED_BYTES:
                    too_long = len(line) > MAX_LINE_BYTES
                    subject, limit = ("a line of it", MAX_LINE_BYTES) if too_long else ("it", MAX_UNPACKED_BYTES)
                    raise UserError(f"{message} (unpacked, {subject} has more than {limit:,} bytes)")
                if not line.isspace():
                    yield line.rstrip(b"\n")
                    continue
                blank += 1
                if blank > MAX_BLANK_LINES:  # millions of them compress to almost nothing and take minutes to skip
                    raise UserError(f"{message} (has more than {MAX_BLANK_LINES:,} blank lines)")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{message} ({error}); score the model again") from error


def sha256(raw: bytes) -> str:
    """Return the SHA-256 as hex digits."""
    return hashlib.sha256(raw).hexdigest()


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys, two spaces and a newline at the end: the form of every JSON file written here."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def short_hash(facts: Mapping[str, Any]) -> str:
    """Return the first 12 hex digits of a mapping's SHA-256, as in run ids."""
    return sha256(canonical_json(dict(facts)).encode())[:12]


def write_run(path: Path, result: RunResult, packed: bytes) -> None:
    """Write a run's files: the scores first, then the result with their hash, which so never lacks its scores."""
    writing.write_atomic(scores_path(path), packed)
    writing.write_atomic(path, result_json(result))


def result_json(result: RunResult) -> str:
    """Return a result as canonical JSON, but every row on one line, since there may be a thousand of them."""
    values = result.to_json()
    rows = ",\n".join(f"    {json.dumps(row, sort_keys=True, ensure_ascii=False)}" for row in values["rows"])
    before, _, after = canonical_json({**values, "rows": ["ROWS"]}).rpartition('    "ROWS"')
    return f"{before}{rows}{after}" if rows else canonical_json(values)


def read_stored(path: Path) -> Run:
    """Read a result and its scores, loose or packed, and check every field of both, as far as all tasks agree on it.

    `prmbench.tasks.read_run` checks besides what the run's task demands.

    Raises:
        UserError: One of the files is missing, a link, too large, of another kind or altered, or has an invalid field.
    """
    raw = read_file(path, MAX_RESULT_BYTES, "name the <run-id>.json of a finished run")
    result = validation.read_result(reading.decode_text(raw, path), str(path))
    validation.check_result(result, str(path))
    source = scores_path(path)
    lines, digest = _lines_and_digest(path)
    if digest != result.manifest.scores_sha256:
        raise UserError(f"{source}: its SHA-256 is not the one in {path.name}; restore the file or score again")
    run = Run(result, _parse_traces(lines, f"{path}: {source.name}", result.manifest.n), path)
    validation.check_scores(result.manifest, run.scores, str(path))
    return run


def score_lines(path: Path) -> Iterable[bytes]:
    """Return the lines of a run's scores, loose or packed, by its `<run-id>.json`. Raises UserError."""
    return _lines_and_digest(path)[0]


def _lines_and_digest(path: Path) -> tuple[Iterable[bytes], str]:
    """Return the lines and the SHA-256 of the scores file; of a packed run that of the lines, as gzip's bytes vary."""
    if archives.archive_of(path):
        lines = _packed_lines(path)
        return lines, sha256(b"".join(lines))
    source = scores_path(path)
    packed = read_file(source, MAX_UNPACKED_BYTES, "a result needs its scores beside it")
    return unpacked_lines(packed, f"{path}: {source.name}: not a scores file"), sha256(packed)


def _packed_lines(path: Path) -> list[bytes]:
    """Return the lines of a packed run's scores.

    Raises:
        UserError: One of the two members is missing or has a line that is too long, or their numbers of lines differ.
    """
    stem = path.name.removesuffix(".json")
    remedy = "a result needs its scores beside it"
    lines, values = (
        read_file(path.with_name(stem + suffix), MAX_UNPACKED_BYTES, remedy).split(b"\n")
        for suffix in (LINES_SUFFIX, VALUES_SUFFIX)
    )
    if len(lines) != len(values):
        raise UserError(f"{path}: its archive has {len(lines):,} lines of scores and {len(values):,} of values")
    joined = [join_values(*pair) for pair in zip(lines, values, strict=True) if pair != (b"", b"")]
    if any(len(line) > MAX_LINE_BYTES for line in joined):
        raise UserError(f"{path}: a line of its scores has more than {MAX_LINE_BYTES:,} bytes")
    return joined


def split_values(line: bytes) -> tuple[bytes, bytes]:
    """Split a line of a scores file into the line without its values, and the values."""
    row = json.loads(line)
    values = row.pop("values")
    return json.dumps(row, sort_keys=True).encode(), json.dumps(values).encode()


def join_values(line: bytes, values: bytes) -> bytes:
    """Join what `split_values` has split, except for the order of the fields. An invalid line stays invalid."""
    return line.removesuffix(b"}") + b', "values": ' + values + b"}"


def read_metrics(path: Path, manifest: RunManifest) -> bytes:
    """Return the gzipped metrics of a training run's steps; empty if the manifest names no such file.

    Args:
        path: The run's `<run-id>.json`, loose or in an archive.
        manifest: Of the run.

    Raises:
        UserError: The file is missing or altered.
    """
    expected = manifest.config.get("metrics_sha256")
    if not expected:
        return b""
    source = metrics_path(path)
    raw = read_file(source, MAX_UNPACKED_BYTES, "restore it or train again")
    if sha256(raw) != expected:
        raise UserError(f"{source}: its SHA-256 is not the one in {path.name}; restore the file or train again")
    return raw


def read_file(path: Path, max_bytes: int, remedy: str) -> bytes:
    """Read a regular file of at most `max_bytes`, which may be a member of an archive, but no link.

    Raises:
        UserError: It cannot be read, or is larger; the message ends with `remedy`.
    """
    try:
        return archives.read(path, max_bytes)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def result_paths(archive: Path) -> list[Path]:
    """Return the path of every `.json` member of an archive. Raises UserError when it cannot be read."""
    return [archive / name for name in archives.members(archive) if name.endswith(".json")]


def has_scores(path: Path) -> bool:
    """Return whether a result has its scores in the same folder or archive."""
    if archive := archives.archive_of(path):
        return path.name.removesuffix(".json") + LINES_SUFFIX in archives.members(archive)
    return scores_path(path).exists()


# --- the journal of a run in progress -----------------------------------------------------------------


def journal_identity(folder: Path) -> dict[str, Any]:
    """Return the identity of the run whose journal is in a folder; empty where there is none that can be read."""
    path = folder / JOURNAL_HEAD
    try:
        return (_parse_entry(reading.read_text(path)) or {}) if reading.lexists(path) else {}
    except UserError:
        return {}


class Journal:
    """Append-only record of the batches scored so far; a line cut by a kill is skipped."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, restart: bool = False) -> None:
        """Open or continue the journal of the run that `identity` describes; `restart` empties it first.

        Raises:
            UserError: The folder holds a run of another identity, such as an older scoring version.
        """
        self.folder = folder
        identity_path = folder / JOURNAL_HEAD
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link, and nothing is written through links; delete it")
        if restart:
            self._empty()
        if reading.lexists(identity_path):
            stored_identity = _parse_entry(reading.read_text(identity_path))
            if stored_identity is None:
                raise UserError(f"{identity_path}: not a journal's head; delete {folder} to start afresh")
            changed = sorted(k for k in identity if stored_identity.get(k) != identity[k])
            if changed:
                raise UserError(
                    f"{folder}: begun with another {', '.join(changed)}; its scores cannot be continued, "
                    f"delete the folder to start afresh"
                )
        else:
            writing.write_atomic(identity_path, canonical_json(dict(identity)))

    def completed_batches(self) -> dict[int, dict[str, Any]]:
        """Return the entries on disk by batch number: of all processes, earlier and interrupted runs included."""
        entries = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in reading.read_appended_lines(path):
                entry = _parse_entry(line)
                if entry is not None and type(entry.get("batch")) is int:  # else cut by a kill, and scored again
                    entries[entry["batch"]] = entry
        return entries

    @contextmanager
    def lock(self, process: int) -> Iterator[None]:
        """Lock this journal for one process number. Raises UserError while another process has the lock."""
        busy = f"{self.folder}: another process is scoring this run; wait for it to end"
        with writing.file_lock(self.folder / f"{process}.lock", busy):
            yield

    def append(self, process: int, entry: Mapping[str, Any]) -> None:
        """Append the entry of one batch; it is on disk when this returns."""
        writing.append_lines(self.folder / f"{process}.jsonl", [json.dumps(entry, sort_keys=True)], durable=True)

    def remove(self) -> None:
        """Delete the journal, once the result is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _empty(self) -> None:
        """Delete all entries, unless a process is appending to them."""
        if not self.folder.is_dir():
            return
        with self.lock(0):
            for path in (*self.folder.glob("*.jsonl"), self.folder / "run.json"):
                path.unlink(missing_ok=True)


def _parse_entry(line: str) -> dict[str, Any] | None:
    """Return the JSON object on a line that this program wrote; None where it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
