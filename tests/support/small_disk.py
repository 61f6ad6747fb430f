"""The command line where no file may grow beyond a size: what a full disk does."""

from __future__ import annotations

import os
import subprocess
import sys

from paths import ROOT

_CODE = """
import resource, sys
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from prmbench.cli import main
main()
"""


def run_with_small_disk(size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a process whose files, but not its output, end at `size` bytes."""
    command = [sys.executable, "-c", _CODE, str(size), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
