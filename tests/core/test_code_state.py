"""What counts as a change of the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from prmbench.core import provenance


@pytest.mark.parametrize(
    ("changed", "is_dirty"),
    [
        ("prmbench/core/provenance.py", True),
        ("benchmarks/history.py", True),
        ("leaderboards/a.md", False),
        ("benchmarks/HISTORY.md", False),  # each of `make bench`'s runs writes these three for the next to find
        ("benchmarks/history.jsonl", False),
        ("docs/performance.md", False),
    ],
)
def test_results_that_commands_write_are_no_changes_of_the_code(
    changed: str, is_dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    module, file = tmp_path / "prmbench" / "core" / "provenance.py", tmp_path / changed
    for path in (module, file):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n", encoding="utf-8")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "__file__", str(module))
    commit, dirty = provenance.code_state()
    assert commit is not None
    assert dirty is False
    file.write_text("two\n", encoding="utf-8")
    assert provenance.code_state() == (commit, is_dirty)
