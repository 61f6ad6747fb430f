"""Packs the loose runs of a study into one archive per task, for maintainers of leaderboards/.

    python -m prmbench.core.packing FOLDER             # FOLDER/*.json and their scores -> FOLDER/<task>.tar.xz
    python -m prmbench.core.packing --unpack FOLDER    # and back

No score and no row changes; fractions in metrics of training steps are rounded to seven significant digits, which a
float32 has, as further ones are two fifths of an archive. `scores_sha256` of a packed run is that of its uncompressed
lines, and `metrics_sha256` that of a gzip file without compression, since xz compresses what gzip has not; the rest of
the result stays.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from prmbench.core import archives, reading, result_files, validation, writing
from prmbench.core.records import RunResult, UserError
from prmbench.core.result_files import Run


def pack(folder: Path) -> list[Path]:
    """Pack every loose run under the folder; runs that an archive holds already stay in it.

    The loose files are deleted once the archive on disk has been read again and gives the same rows and scores.

    Returns:
        The archives that were written.

    Raises:
        UserError: A run cannot be read, or there is none.
    """
    unpacked = [path for path in reading.find_paths(folder, ".json") if result_files.has_scores(path)]
    if not unpacked:
        raise UserError(f"{folder}: has no loose runs; name the folder that `prmbench eval --out` wrote to")
    groups: dict[Path, list[Run]] = {}
    for path in unpacked:
        manifest = (run := result_files.read_stored(path)).result.manifest
        archive = folder / f"{manifest.task}{archives.SUFFIX}"
        groups.setdefault(archive, []).append(run)
    for archive, runs in groups.items():
        if archive.exists():
            runs += [result_files.read_stored(path) for path in result_files.result_paths(archive)]
        archives.write(archive, _contents(runs))
        for run in runs:
            _check_same(run, result_files.read_stored(archive / run.path.name))
        for run in runs:
            if not archives.archive_of(run.path):
                for path in (run.path, result_files.scores_path(run.path), result_files.metrics_path(run.path)):
                    path.unlink(missing_ok=True)
    return list(groups)


def _contents(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return the members by name: results, lines, values, metrics. Runs on the same traces are neighbours."""
    results, lines, values, metrics = {}, {}, {}, {}
    ordered = sorted(runs, key=lambda run: (run.result.manifest.benchmark_hash, run.path.name))
    for run in ordered:
        manifest, stem = run.result.manifest, run.path.name.removesuffix(".json")
        if run.path.name in results:
            raise UserError(f"{run.path}: another run has this name; pack them into different folders")
        pairs = [result_files.split_values(line) for line in result_files.score_lines(run.path)]
        digest = result_files.sha256(b"".join(result_files.join_values(*pair) for pair in pairs))
        raw = result_files.read_file(run.path, result_files.MAX_RESULT_BYTES, "restore it")
        raw = raw.replace(manifest.scores_sha256.encode(), digest.encode())
        lines[stem + result_files.LINES_SUFFIX] = b"".join(line + b"\n" for line, _ in pairs)
        values[stem + result_files.VALUES_SUFFIX] = b"".join(value + b"\n" for _, value in pairs)
        if before := manifest.config.get("metrics_sha256"):
            name = stem + result_files.METRICS_SUFFIX
            metrics[name] = _gzipped(map(_rounded, _metrics(run)), level=0)
            raw = raw.replace(before.encode(), result_files.sha256(metrics[name]).encode())
        results[run.path.name] = raw
    return {**results, **lines, **values, **metrics}


def _metrics(run: Run) -> list[bytes]:
    """Return the lines of a run's metrics, none if it has no such file. Raises UserError where one is malformed."""
    source = f"{run.path}: its metrics"
    raw = result_files.read_metrics(run.path, run.result.manifest)
    lines = list(result_files.unpacked_lines(raw, f"{source} are no record of training steps")) if raw else []
    for number, line in enumerate(lines, 1):
        validation.read_step(line, f"{source}, line {number}")
    return lines


def _rounded(line: bytes) -> bytes:
    """Return a line of metrics with its fractions to seven significant digits; whole numbers stay."""

    def shortened(text: str) -> float:
        value = float(text)
        return value if value.is_integer() else float(f"{value:.7g}")

    return json.dumps(json.loads(line, parse_float=shortened)).encode()


def _gzipped(lines: Iterable[bytes], level: int = 9) -> bytes:
    return gzip.compress(b"".join(line + b"\n" for line in lines), level, mtime=0)


def _with_hashes(run: Run, scores: str, metrics: object) -> RunResult:
    """Return the run's result with these hashes of its files."""
    manifest = run.result.manifest
    config = {**manifest.config, "metrics_sha256": metrics} if metrics else manifest.config
    return replace(run.result, manifest=replace(manifest, scores_sha256=scores, config=config))


def _check_same(before: Run, after: Run) -> None:
    """Refuse a run that differs in more than the hashes of its files."""
    result_files.read_metrics(after.path, after.result.manifest)  # refuses what is not of its hash
    manifest = before.result.manifest
    after_result = _with_hashes(after, manifest.scores_sha256, manifest.config.get("metrics_sha256"))
    if (before.scores, before.result) != (after.scores, after_result):
        raise UserError(f"{after.path}: differs from {before.path}, which stays; please report this")


def unpack(folder: Path) -> list[Path]:
    """Write the runs of the folder's archives as loose files into the archives' folders, and delete the archives.

    Returns:
        The `<run-id>.json` files that were written.
    """
    written = []
    for archive in archives.find_archives(folder):
        for path in result_files.result_paths(archive):
            run, loose = result_files.read_stored(path), archive.parent / path.name
            packed = _gzipped(result_files.score_lines(path))
            metrics = b""
            if run.result.manifest.config.get("metrics_sha256"):  # of no lines, if nothing was trained
                metrics = _gzipped(_metrics(run))
                writing.write_atomic(result_files.metrics_path(loose), metrics)
            result = _with_hashes(run, result_files.sha256(packed), metrics and result_files.sha256(metrics))
            result_files.write_run(loose, result, packed)
            _check_same(run, result_files.read_stored(loose))
            written.append(loose)
        archive.unlink()
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or unpack the folder that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m prmbench.core.packing", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unpack", action="store_true", help="write the runs of the archives as loose files again")
    options = parser.parse_args(arguments)
    try:
        paths = unpack(options.folder) if options.unpack else pack(options.folder)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
