"""The wheel holds all it needs: installed outside the checkout, it evaluates and reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools leaves a build folder behind
    shutil.copytree(ROOT / "prmbench", source / "prmbench", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder / "site"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


def outside(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_an_installed_wheel_evaluates_and_reports(site: Path, tmp_path: Path) -> None:
    where = outside(site, tmp_path, "-c", "import prmbench; print(prmbench.__file__)").stdout
    assert Path(where.strip()).is_relative_to(site)
    traces = site / "prmbench" / "assets" / "demo_traces.jsonl"
    outside(site, tmp_path, "-m", "prmbench", "eval", "--model", "random", "--data", str(traces), "--out", "runs")
    outside(site, tmp_path, "-m", "prmbench", "report", "--results", "runs", "--out", "board", "--data", str(traces))
    assert "Qwen2.5-Math-PRM-7B" in (tmp_path / "board" / "processbench.md").read_text()  # a published row
    assert "random" in (tmp_path / "board" / "report.html").read_text()
    listed = outside(site, tmp_path, "-m", "prmbench", "models").stdout
    assert "Qwen/Qwen2.5-Math-PRM-7B" in listed


@pytest.mark.slow
def test_a_wheel_run_names_the_wheel_in_its_manifest(site: Path, tmp_path: Path) -> None:
    code = "from prmbench.core.provenance import code_state; print(*code_state())"
    said = outside(site, tmp_path, "-c", code).stdout.split()
    assert said[:2] == ["wheel", "0.1.0"]
    assert len(said[2]) == 64
    assert said[3] == "False"
