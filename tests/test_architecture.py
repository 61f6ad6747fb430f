"""The shape of the code: what imports what, what files are called, and that nothing names a machine."""

from __future__ import annotations

import graphlib
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import prmbench

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "pandas", "scipy", "sklearn", "transformers", "matplotlib", "datasets", "pyarrow"}
MOST_TOP_LEVEL_MODULES = 5
SHARED_FILE_NAMES = {
    "__init__.py": "a package's own file",
    "__main__.py": "what `python -m` runs",
    "best_of_n.py": "metrics/ computes what tasks/ turns into rows",
    "calibration.py": "metrics/ computes what tasks/ turns into rows",
    "distrl.py": "rl/ trains what tasks/ turns into rows",
    "setup.py": "each of the two trainers prepares its run there",
}
"""File names that the package has more than once, each with the reason: one idea, one level down."""
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


def import_graph() -> dict[str, set[str]]:
    """Every module with the modules of the package that it imports, also inside functions and for types."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("prmbench", cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = import_graph()
    assert len(graph) > 100
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_import_graph_knows_imports_inside_functions() -> None:
    assert "prmbench.cli" in import_graph()["prmbench.__main__"]
    assert "prmbench.report" in import_graph()["prmbench.cli"], "the CLI imports it inside a command"


def test_few_modules_at_the_top_level() -> None:
    assert len(list((ROOT / "prmbench").glob("*.py"))) <= MOST_TOP_LEVEL_MODULES


def test_a_file_name_stands_for_one_idea() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "prmbench").rglob("*.py"):
        places[path.name].append(str(path.relative_to(ROOT)))
    shared = {name: sorted(paths) for name, paths in places.items() if len(paths) > 1}
    assert {name: paths for name, paths in shared.items() if name not in SHARED_FILE_NAMES} == {}
    assert set(SHARED_FILE_NAMES) - set(shared) == set(), "a name that is no longer shared"


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
