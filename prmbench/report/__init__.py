"""Stored results -> tables, figures and one page: the `report` command, and the tables that `eval` and `compare` print.

Judges nothing itself: numbers come from the rows of each run, or from judge() when asked to recompute.
"""

from prmbench.report.build import Report, report
from prmbench.report.folders import Folders, choose_folders
from prmbench.report.terminal import compare_table, run_table

__all__ = ["Folders", "Report", "choose_folders", "compare_table", "report", "run_table"]
