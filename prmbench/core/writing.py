"""Our own files: written whole or not at all, never through a link, with one line for whatever goes wrong.

Standard library only. Which files a command may write at all is the business of output_checks.py.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

from prmbench.core.reading import lstat, reason
from prmbench.core.records import UserError
from prmbench.core.redaction import one_line

HINTS = {
    errno.EACCES: "choose another --out, or change its permissions",
    errno.EPERM: "choose another --out, or change its permissions",
    errno.EROFS: "choose another --out",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "it is a link, and nothing is written through links; name the file itself",
    errno.ENOTDIR: "a part of its path is a file; choose another --out",
    errno.EISDIR: "it is a folder; choose another --out",
    errno.EEXIST: "a file is where a folder should be; choose another --out",
}
"""How to mend what keeps a file from being written, where it is not a lack of space."""
A_DAY = 86_400.0
"""Seconds after which a temporary file of another machine counts as left over."""
_RUN = secrets.token_hex(4)
"""Names this process beside its number, which a later process may have again."""
_TEMPORARY = re.compile(r"\.prmbench-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_SYSTEM_ERROR = re.compile(r"os error \d+|No space left|quota exceeded|failed writing file|Permission denied|I/O error")
"""How libraries that are not Python say that the system refused to write."""
_cleaned: set[Path] = set()
"""Folders that this process has looked through for temporary files of dead ones."""


def cannot_write(path: Path, error: OSError) -> NoReturn:
    """Raises the one line for a full disk, a missing permission, or a name that cannot be."""
    hint = HINTS.get(error.errno or 0, "choose another --out or free some space")
    raise UserError(f"cannot write {path}: {reason(error)}; {hint}") from error


def check_target(path: Path) -> None:
    """Raises UserError unless there is nothing at the path, or a regular file: no link, no device, no folder."""
    info = lstat(path)
    if info is None or stat.S_ISREG(info.st_mode):
        return
    if stat.S_ISLNK(info.st_mode):
        raise UserError(f"{path}: is a link, and nothing is written through links; name the file itself")
    if stat.S_ISDIR(info.st_mode):
        raise UserError(f"{path}: is a folder; name a file")
    raise UserError(f"{path}: is a pipe or a device; name a file")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes the whole file or nothing: temporary file in the same folder, fsync, rename.

    A new file has the permissions that the umask leaves, an old one keeps its own. Raises UserError, also for what
    `check_target` refuses.
    """
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError as error:
        raise UserError(f"cannot write {path}: a text holds half a character (a lone surrogate); mend it") from error
    check_target(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(path.parent)
        temporary = _temporary(path.parent)
        with _created(temporary) as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except OSError as error:
        cannot_write(path, error)
    finally:
        if temporary is not None:
            with suppress(OSError):  # gone already, unless something went wrong, which is what is said then
                temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Finds out before the work, not after it, that nothing can be written into the folder. Raises UserError."""
    info = lstat(folder)
    if info is not None and not folder.is_dir():
        what = "a file" if folder.is_file() else "no folder"
        raise UserError(f"--out {folder}: is {what}; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over(folder)
        temporary = _temporary(folder)
        _created(temporary).close()
        temporary.unlink(missing_ok=True)
    except OSError as error:
        cannot_write(folder, error)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """An empty folder inside `folder`, removed at the end: for files that are moved to their place once all is there.

    Raises OSError as file operations do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_over(folder)
    aside = _temporary(folder)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def move_into(source: Path, folder: Path) -> None:
    """Moves every file under `source`, already complete, to its name under `folder`, each in one step.

    Raises UserError where `check_target` does, before anything is moved, and OSError.
    """
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in names:
        check_target(folder / name)
        sync(source / name)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(folder / name)
    sync(folder)


@contextmanager
def library_writes(path: Path) -> Iterator[None]:
    """Inside, a library writes to `path`: what keeps it from that becomes a UserError.

    Libraries in Rust and C++ report a full disk each by an error of its own, some as a bare Exception.
    """
    try:
        yield
    except OSError as error:
        cannot_write(path, error)
    except Exception as error:
        text = one_line(error)
        if isinstance(error, UserError) or not _SYSTEM_ERROR.search(text):
            raise
        raise UserError(f"cannot write {path}: {text[:200]}; choose another --out or free some space") from error


def open_to_append(path: Path) -> IO[bytes]:
    """Opens a regular file to read and to append to, new or not. Raises OSError, ELOOP for a link."""
    return _regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+")


def append_lines(path: Path, lines: Iterable[str], *, durable: bool = False) -> None:
    """Appends lines to a file, new or not, behind a line that a kill may have torn. Raises UserError.

    `durable`: they are on disk when this returns.
    """
    try:
        with open_to_append(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
            torn = b"\n" if size and file.read(1) != b"\n" else b""
            file.write(torn + "".join(f"{line}\n" for line in lines).encode())
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        cannot_write(path, error)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """While this is open, no other process holds the lock on the file `path`.

    Raises UserError with the text `busy` when one does, or when the file cannot be made.
    """
    try:
        lock = _regular(path, os.O_RDWR | os.O_CREAT, "rb+")
    except OSError as error:
        cannot_write(path, error)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


def sync(path: Path) -> None:
    """Returns when the file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _regular(path: Path, flags: int, mode: str) -> IO[bytes]:
    """Opens a regular file, never through a link; a pipe is not waited for."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is a pipe or a device", str(path))
    return os.fdopen(descriptor, mode)


# --- temporary files ----------------------------------------------------------------------------------------


def remove_left_over(folder: Path) -> None:
    """Removes this user's temporary files and folders of processes that were killed; each folder is seen once."""
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with suppress(OSError):  # what cannot be removed harms nobody
        for path in folder.glob(".prmbench-*.tmp"):
            info = path.lstat()
            if info.st_uid != os.geteuid() or not _is_left_over(path.name, info.st_mtime):
                continue
            if stat.S_ISDIR(info.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_left_over(name: str, changed: float) -> bool:
    parts = _TEMPORARY.fullmatch(name)
    if parts is None:
        return False
    machine, number, run = parts[1], int(parts[2]), parts[3]
    if machine != _machine():  # whether its process lives cannot be seen from here
        return time.time() - changed > A_DAY
    if number == os.getpid():
        return run != _RUN
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _temporary(folder: Path) -> Path:
    return folder / f".prmbench-{_machine()}-{os.getpid()}-{_RUN}-{secrets.token_hex(4)}.tmp"


def _created(path: Path) -> IO[bytes]:
    """A new file with the permissions that the umask leaves."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")


def _machine() -> str:
    """8 hex digits for the machine and, in a container, its own numbering of processes."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
