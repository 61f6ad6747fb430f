"""Releases: one version everywhere, what the release workflow demands before it publishes, and the container."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_recipes import ROOT, triggers, yaml_of

import prmbench

RELEASE = ROOT / ".github" / "workflows" / "release.yml"
DOCKER = ROOT / ".github" / "workflows" / "docker.yml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def check_version(tag: str, root: Path) -> str:
    """What .ci/check_version.py says."""
    spec = importlib.util.spec_from_file_location("check_version", ROOT / ".ci" / "check_version.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fault: str = module.main(tag, root)
    return fault


def runs(job: dict[str, Any]) -> list[str]:
    return [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]


# --- the version ----------------------------------------------------------------------------------------------


def test_the_version_has_one_source_and_the_citation_agrees() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "prmbench.__version__"}
    assert yaml_of(ROOT / "CITATION.cff")["version"] == prmbench.__version__


def test_a_tag_is_checked_against_every_place(tmp_path: Path) -> None:
    (tmp_path / "prmbench").mkdir()
    texts = {
        "prmbench/__init__.py": '__version__ = "1.2.3"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.3\n",
        "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n## 1.2.3 (2030-01-02)\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert check_version("v1.2.3", tmp_path) == ""
    assert check_version("1.2.3", tmp_path) == "tag 1.2.3: a tag is v and the version"
    for name, text in texts.items():
        (tmp_path / name).write_text(text.replace("1.2.3", "1.2.4"))
        assert check_version("v1.2.3", tmp_path) == f"tag v1.2.3: {name} has 1.2.4"
        (tmp_path / name).write_text(text)


def test_the_places_that_are_checked_have_a_version_in_this_repository() -> None:
    assert check_version(f"v{prmbench.__version__}", ROOT) == ""


# --- the release workflow -------------------------------------------------------------------------------------


def test_a_release_is_published_from_a_tag_after_all_checks_and_without_a_token() -> None:
    workflow = yaml_of(RELEASE)
    assert triggers(RELEASE) == {"push": {"tags": ["v*"]}}
    jobs = workflow["jobs"]
    assert (jobs["publish"]["needs"], jobs["build"]["needs"]) == ("build", "test")
    assert runs(jobs["test"]) == ['python .ci/check_version.py "$GITHUB_REF_NAME"', ".ci/run"]
    assert "pipx run build" in runs(jobs["build"])
    (upload,) = (step for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", ""))
    download, publish = jobs["publish"]["steps"]
    assert upload["with"] == download["with"]
    assert publish["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in publish  # no token, no other index
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in jobs[name] for name in ("test", "build"))
    assert "secrets." not in RELEASE.read_text(encoding="utf-8")


# --- the container --------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def copied() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    words = [arguments.split() for name, arguments in instructions() if name == "COPY"]
    return [source for line in words if not line[0].startswith("--from") for source in line[:-1]]


def test_everything_that_the_image_copies_is_there_and_not_ignored() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        last = [rule for rule in rules if fnmatch.fnmatch(source, rule.removeprefix("!"))][-1]
        assert last == f"!{source}"
    assert sorted(rule[1:] for rule in rules if rule[0] == "!") == sorted(copied())  # nothing else is sent


def test_what_the_package_is_built_from_is_in_the_image() -> None:
    project = PROJECT["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml", "prmbench"} <= set(copied())


def test_the_image_runs_the_demo_as_a_user_without_rights() -> None:
    found = instructions()
    last_stage = found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]
    values = dict(last_stage)
    assert values["ENTRYPOINT"] == '["prmbench"]'
    assert values["CMD"] == '["demo"]'
    assert values["USER"] not in ("root", "0")
    assert any(
        name == "RUN" and f"--home-dir {values['WORKDIR']} --uid 1000 {values['USER']}" in a for name, a in last_stage
    )  # its home, where it may write


def test_the_image_has_the_python_and_the_versions_of_the_lock() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    assert f"command -v python{python} " in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]
    assert text.count("FROM python:${PYTHON}-slim") == text.count("FROM ") == 2
    installs = [line for name, line in instructions() if name == "RUN" and " install " in line]
    assert len(installs) == 2
    for line in installs:
        assert "--no-cache-dir" in line
        assert "requirements.lock" in line
    assert '--index-url "${TORCH_INDEX}"' in installs[0]
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu\n" in text
    (extras,) = re.findall(r'"/src\[([\w,]+)\]"', installs[1])
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("event", ["push", "pull_request"])
def test_the_image_is_built_when_what_it_is_made_from_changes(event: str) -> None:
    paths = set(triggers(DOCKER)[event]["paths"])
    assert {"Dockerfile", ".dockerignore", "requirements.lock", "pyproject.toml"} <= paths
    assert runs(yaml_of(DOCKER)["jobs"]["demo"])[:2] == [
        "docker build -t prmbench .",
        "docker run --rm --network none prmbench",
    ]
