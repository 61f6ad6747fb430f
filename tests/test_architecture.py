"""The shape of the code: what imports what, and that nothing names a machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import prmbench

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "pandas", "scipy", "sklearn", "transformers", "matplotlib", "datasets", "pyarrow"}
MACHINE_PATH = re.compile(rb"(?<![\w.~-])/(?:work|tmp|root|home|Users)/\w")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["prmbench", "prmbench.cli"])
def test_imports_stay_light(module: str) -> None:
    done = run("-c", f"import {module}, sys; print(*sorted({HEAVY!r} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_reading_results_loads_its_parser_no_sooner_than_needed() -> None:
    done = run("-c", "import prmbench.cli, prmbench.core.result_files, sys; print('pydantic' in sys.modules)")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_help_of_the_module() -> None:
    done = run("-m", "prmbench", "--help")
    assert done.returncode == 0, done.stderr
    assert "eval" in done.stdout


def test_public_names_exist() -> None:
    assert prmbench.__all__
    assert [name for name in prmbench.__all__ if not hasattr(prmbench, name)] == []


def test_imports_point_down() -> None:
    pytest.importorskip("importlinter")
    done = run("-c", "from importlinter.cli import lint_imports_command as main; main()")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("text", "found"), [(b"open('/home/ann/x')", True), (b"see example.org/home/ann", False)])
def test_the_path_pattern_itself(text: bytes, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) == found


def test_no_file_names_a_machine() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    listing = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    # This file holds an example of what it looks for.
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file() and ROOT / name != Path(__file__)]
    assert len(paths) > 10
    assert [str(path.relative_to(ROOT)) for path in paths if MACHINE_PATH.search(path.read_bytes())] == []
