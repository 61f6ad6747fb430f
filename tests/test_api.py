"""docs/api.md: its examples run, and every public name has one."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path

import pytest

import prmbench

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as PYTHONPATH=. does on the command line
    try:
        found = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    finally:
        sys.modules.pop("mine", None)
    assert found.attempted > 30
    assert found.failed == 0


def test_every_public_name_has_an_example() -> None:
    text = PAGE.read_text(encoding="utf-8")
    introduced = set(re.findall(r"\*\*`(\w+)`\*\*", text))
    assert introduced == set(prmbench.__all__)
    imported = {name for line in re.findall(r">>> from prmbench import (.+)", text) for name in line.split(", ")}
    assert imported == set(prmbench.__all__)
