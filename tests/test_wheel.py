"""The wheel and the source archive hold all they need: installed outside the checkout, the package works."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import prmbench

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"  # a copy: setuptools leaves a build folder behind
    shutil.copytree(ROOT / "prmbench", source / "prmbench", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tests").mkdir()
    (source / "tests" / "test_any.py").touch()  # which setuptools would take along
    for path in (*ROOT.glob("*.*"), ROOT / "LICENSE", ROOT / "Makefile"):
        if path.is_file():
            shutil.copy(path, source / path.name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def site(archives: Path) -> Path:
    """A folder with the wheel's files and nothing of the checkout."""
    (wheel,) = archives.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(archives / "site"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return archives / "site"


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
    assert "random" in (tmp_path / "board" / "demo_traces.md").read_text()
    assert "random" in (tmp_path / "board" / "report.html").read_text()
    listed = outside(site, tmp_path, "-m", "prmbench", "models").stdout
    assert "Qwen/Qwen2.5-Math-PRM-7B" in listed


@pytest.mark.slow
def test_a_wheel_run_names_the_wheel_in_its_manifest(site: Path, tmp_path: Path) -> None:
    code = "from prmbench.core.provenance import code_state; print(*code_state())"
    said = outside(site, tmp_path, "-c", code).stdout.split()
    assert said[:2] == ["wheel", prmbench.__version__]
    assert len(said[2]) == 64
    assert said[3] == "False"


@pytest.mark.slow
def test_the_wheels_metadata_name_the_version_and_every_extra(site: Path) -> None:
    (metadata,) = (path.read_text(encoding="utf-8") for path in site.glob("prmbench-*.dist-info/METADATA"))
    fields = email.message_from_string(metadata)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert fields["Version"] == prmbench.__version__
    assert set(fields.get_all("Provides-Extra", [])) == set(extras)
    assert {"vllm", "train", "openai", "serve", "docs", "all"} <= set(extras)
    needed = [Requirement(line) for line in fields.get_all("Requires-Dist", [])]
    for extra, lines in extras.items():
        names = {r.name for r in needed if r.marker and r.marker.evaluate({"extra": extra})}
        assert names == {Requirement(line).name for line in lines}, extra
    assert {r.name for r in needed if r.marker is None} == {Requirement(line).name for line in project["dependencies"]}
    everything = next(r for r in needed if r.name == "prmbench")
    assert everything.extras == set(extras) - {"all", "dev"}


@pytest.mark.slow
def test_the_source_archive_has_what_it_says_it_is_and_nothing_big(archives: Path) -> None:
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        sizes = {member.name.partition("/")[2]: member.size for member in tar if member.isfile()}
    assert {"LICENSE", "README.md", "CITATION.cff", "CHANGELOG.md", "pyproject.toml"} <= sizes.keys()
    folders = {name.partition("/")[0] for name in sizes if "/" in name}
    assert folders == {"prmbench", "prmbench.egg-info"}
    assert max(sizes.values()) < 100_000
    assert archive.stat().st_size < 2_000_000
