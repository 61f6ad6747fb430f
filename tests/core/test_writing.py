"""Our own files: whole or not at all, never through a link, with the permissions that the umask leaves."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from odd_files import PATHS

from prmbench.core import writing
from prmbench.core.records import UserError


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test looks through its folders anew."""
    monkeypatch.setattr(writing, "_cleaned", set())


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield int(request.param)
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000], indirect=True)
def test_new_files_have_the_permissions_that_open_gives(tmp_path: Path, umask: int) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    writing.write_atomic(tmp_path / "ours", "x")
    with writing.open_to_append(tmp_path / "log") as file:
        file.write(b"x")
    with writing.file_lock(tmp_path / "lock", "busy"):
        pass
    with writing.temporary_folder(tmp_path / "model") as aside:
        (aside / "weights").write_text("x")
        writing.move_into(aside, tmp_path / "model")
    ours = [tmp_path / name for name in ("ours", "log", "lock", "model/weights")]
    assert {mode(path) for path in ours} == {mode(plain)} == {0o666 & ~umask}


@pytest.mark.parametrize("umask", [0o022], indirect=True)
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0o600)
    writing.write_atomic(path, "y")
    assert (mode(path), path.read_text()) == (0o600, "y")


@pytest.mark.parametrize("kind", PATHS)
def test_nothing_is_written_to_odd_paths(tmp_path: Path, kind: str) -> None:
    path = PATHS[kind](tmp_path / "file.json")
    if kind == "a name that is not UTF-8":  # the system takes it; options refuse it
        return
    with pytest.raises(UserError) as caught:
        writing.write_atomic(path, "x")
    assert "\n" not in str(caught.value)
    with pytest.raises((OSError, UserError)):
        writing.open_to_append(path).close()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(UserError, match="is a link"):
        writing.write_atomic(link, "x")
    with pytest.raises(OSError, match="symbolic links"):
        writing.open_to_append(link)
    with pytest.raises(UserError, match="is a link"), writing.file_lock(link, "busy"):
        pass
    with writing.temporary_folder(tmp_path) as aside:
        (aside / "link").write_text("x")
        (aside / "other").write_text("x")
        with pytest.raises(UserError, match="is a link"):
            writing.move_into(aside, tmp_path)
    assert target.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]


def test_a_lock_empties_no_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("precious")
    with writing.file_lock(path, "busy"), pytest.raises(UserError, match="busy"), writing.file_lock(path, "busy"):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, b"a\nb\n"),
        (b"", b"a\nb\n"),
        (b"x\n", b"x\na\nb\n"),
        (b"x", b"x\na\nb\n"),
        (b"x\ny", b"x\ny\na\nb\n"),
        (b"\n", b"\na\nb\n"),
    ],
)
def test_lines_are_appended_behind_a_torn_one(tmp_path: Path, before: bytes | None, after: bytes) -> None:
    path = tmp_path / "a.jsonl"
    if before is not None:
        path.write_bytes(before)
    writing.append_lines(path, ["a", "b"], durable=True)
    assert path.read_bytes() == after


def test_lines_are_not_appended_to_a_link_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "link", tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            writing.append_lines(path, ["a"])
    assert not (tmp_path / "target").exists()


def test_half_a_character_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="half a character"):
        writing.write_atomic(tmp_path / "a", "x\ud800")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "open", "replace", "mkdir"])
def test_what_the_system_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    path = tmp_path / "new" / "a"
    (tmp_path / "new").mkdir()
    path.write_text("before")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=os.strerror(number)) as caught:
        writing.write_atomic(path if call != "mkdir" else tmp_path / "other" / "a", "x")
    monkeypatch.undo()
    assert "cannot write" in str(caught.value)
    assert [p.name for p in path.parent.iterdir()] == ["a"]
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . failed writing file data/0: file write failed"),
        ValueError("I/O error: No space left on device"),
    ],
)
def test_a_full_disk_in_a_library_is_one_line(error: Exception) -> None:
    with pytest.raises(UserError, match="cannot write out"), writing.translate_write_errors(Path("out")):
        raise error


def test_other_errors_of_a_library_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="a bug"), writing.translate_write_errors(Path("out")):
        raise ValueError("a bug")


# --- temporary files ----------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from prmbench.core import writing
sys_replace = os.replace
os.fsync = lambda _: os.kill(os.getpid(), 9)
writing.write_atomic(Path(sys.argv[1]), "half")
"""


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".prmbench-")
    writing.write_atomic(tmp_path / "b", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def name(machine: str | None = None, process: int | None = None, run: str = "0" * 8) -> str:
    own = writing._temporary(Path()).name.split("-")
    return f".prmbench-{machine or own[1]}-{os.getpid() if process is None else process}-{run}-{'1' * 8}.tmp"


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


LEFT: dict[str, tuple[Callable[[], str], float, bool]] = {
    "a dead process": (lambda: name(process=dead()), 0, True),
    "an earlier process of this number": (name, 0, True),
    "this process": (lambda: name(run=writing._RUN), 0, False),
    "a living process": (lambda: name(process=1), 0, False),
    "another machine, a minute ago": (lambda: name(machine="f" * 8, process=dead()), 60, False),
    "another machine, days ago": (lambda: name(machine="f" * 8), 2 * writing.STALE_SECONDS, True),
    "a number that no process has": (lambda: name(process=10**30), 0, True),
    "a name that is almost ours": (lambda: ".prmbench-notes.tmp", 9 * writing.STALE_SECONDS, False),
    "a name of others": (lambda: ".tmp-abc", 9 * writing.STALE_SECONDS, False),
}
"""Whose file: its name, its age in seconds, whether it goes."""


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("whose", LEFT)
def test_whose_temporary_files_go(tmp_path: Path, whose: str, folder: bool) -> None:
    make, age, goes = LEFT[whose]
    path = tmp_path / make()
    if folder:
        path.mkdir()
        (path / "inside").write_text("x")
    else:
        path.write_text("x")
    then = time.time() - age
    os.utime(path, (then, then))
    writing.check_writable(tmp_path)
    assert path.exists() != goes


def test_a_link_with_such_a_name_takes_nothing_along(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "a").write_text("x")
    (tmp_path / name(process=dead())).symlink_to(target)
    writing.check_writable(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    assert (target / "a").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / name(process=dead())
    path.write_text("x")
    os.chown(path, 65534, 65534)
    writing.check_writable(tmp_path)
    assert path.exists()


def test_the_machine_is_part_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    here = writing._machine()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert writing._machine() != here
