"""Computes the rows of stored runs again and writes them, for maintainers of leaderboards/ after estimators changed.

    python -m prmbench.tasks.rejudge FOLDER

Scores stay as they are; so do the runs of a folder in which one cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prmbench.core import archives, reading, result_files, writing
from prmbench.core.records import UserError
from prmbench.tasks.parallel import read_and_judge, usable_processors


def rejudge(folder: Path, processes: int = 1) -> list[Path]:
    """Writes every run under the folder with rows by this version's estimators.

    Returns:
        The files that were written: results, and archives of results.

    Raises:
        UserError: A run cannot be read, or there is none.
    """
    loose = [path for path in reading.find_paths(folder, ".json") if result_files.has_scores(path)]
    packed = {archive: result_files.result_paths(archive) for archive in archives.find_archives(folder)}
    paths = [*loose, *(path for members in packed.values() for path in members)]
    if not paths:
        raise UserError(f"{folder}: has no runs; name the folder that `prmbench eval --out` wrote to")
    texts: dict[Path, str] = {}
    for path, judged in zip(paths, read_and_judge(paths, recompute=True, processes=processes), strict=True):
        if isinstance(judged, str):
            raise UserError(judged)
        texts[path] = result_files.result_json(judged[0].result)
    for path in loose:
        writing.write_atomic(path, texts[path])
    for archive, members in packed.items():
        names = {path.name: texts[path].encode() for path in members}
        archives.write(archive, {**archives.members(archive), **names})
    return [*loose, *packed]


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges the runs in the folder that the command line names, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m prmbench.tasks.rejudge", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        paths = rejudge(options.folder, usable_processors())
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
