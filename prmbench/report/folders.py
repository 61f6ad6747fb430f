"""Chooses the folders of a report: the official leaderboards of a checkout, and the user's own runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prmbench.config import EvalConfig
from prmbench.report.load import find_results

BOARD, RESULTS = Path("leaderboards"), "results"
"""Folder of the official leaderboards in a checkout of the repository, and of the runs in it."""
OWN_REPORT = "report"
"""Folder, beside the user's own runs, of the report on them."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a report reads runs, and where it writes."""

    results: Path
    out: Path

    @property
    def is_official(self) -> bool:
        """Whether the report is the official leaderboard, which lists no run of uncommitted code."""
        return self.out.absolute().name == BOARD.name and (self.out / RESULTS).is_dir()


def choose_folders(results: Path | None, out: Path | None, check: bool = False) -> list[Folders]:
    """Returns the folders of every report to write or check.

    Without folders these are the official leaderboards, in a checkout, and the report on the user's own runs in
    `runs`, where there are any; a check without folders is one of the leaderboards, where there are some.

    Args:
        results: The folder with runs that the user named.
        out: The folder for the report that the user named.
        check: Whether the reports are only checked.
    """
    official = Folders(BOARD / RESULTS, BOARD)
    if results is None and out is None:
        own = EvalConfig.out
        if not official.results.is_dir():
            return [Folders(own, own / OWN_REPORT)]
        has_own = not check and own.is_dir() and find_results(own, own / OWN_REPORT)[0]
        return [*([Folders(own, own / OWN_REPORT)] if has_own else []), official]
    if results is None:
        results = official.results if official.results.is_dir() else EvalConfig.out
    if out is None:
        out = BOARD if results.absolute() == official.results.absolute() else results / OWN_REPORT
    return [Folders(results, out)]
