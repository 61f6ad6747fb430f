"""Writes files whole or not at all, never through a link, and with one line for whatever goes wrong.

Standard library only. output_checks.py decides which files a command may write.
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

from prmbench.core.reading import error_reason, lstat
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
"""Advice for errors other than a lack of space."""
STALE_SECONDS = 86_400.0
"""Age from which a temporary file of another machine counts as left over."""
_RUN = secrets.token_hex(4)
"""Distinguishes this process from a later one with the same process number."""
_TEMPORARY = re.compile(r"\.prmbench-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_SYSTEM_ERROR = re.compile(r"os error \d+|No space left|quota exceeded|failed writing file|Permission denied|I/O error")
"""Messages of libraries written in other languages when the system refuses to write."""
_cleaned: set[Path] = set()
"""Folders in which this process has removed the temporary files of killed ones."""


def raise_cannot_write(path: Path, error: OSError) -> NoReturn:
    """Raise the UserError for a full disk, a missing permission, or an impossible name."""
    hint = HINTS.get(error.errno or 0, "choose another --out or free some space")
    raise UserError(f"cannot write {path}: {error_reason(error)}; {hint}") from error


def check_target(path: Path) -> None:
    """Raise UserError unless the path is free or has a regular file: no link, no device, no folder."""
    info = lstat(path)
    if info is None or stat.S_ISREG(info.st_mode):
        return
    if stat.S_ISLNK(info.st_mode):
        raise UserError(f"{path}: is a link, and nothing is written through links; name the file itself")
    if stat.S_ISDIR(info.st_mode):
        raise UserError(f"{path}: is a folder; name a file")
    raise UserError(f"{path}: is a pipe or a device; name a file")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write the whole file or nothing: temporary file in the same folder, fsync, rename.

    A new file has the permissions that the umask leaves; an existing one keeps its own.

    Raises:
        UserError: The file cannot be written, or `check_target` refuses the path.
    """
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError as error:
        raise UserError(f"cannot write {path}: a text holds half a character (a lone surrogate); mend it") from error
    check_target(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_files(path.parent)
        temporary = _temporary(path.parent)
        with _created(temporary) as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except OSError as error:
        raise_cannot_write(path, error)
    finally:
        if temporary is not None:
            with suppress(OSError):  # it is gone after a rename, and after a failure that is the error to report
                temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise UserError if no file can be written into the folder, so that this shows before the work starts."""
    info = lstat(folder)
    if info is not None and not folder.is_dir():
        kind = "a file" if folder.is_file() else "no folder"
        raise UserError(f"--out {folder}: is {kind}; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_files(folder)
        temporary = _temporary(folder)
        _created(temporary).close()
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise_cannot_write(folder, error)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder inside `folder` and remove it at the end.

    It is for files that are moved to their place once all of them are complete. Raises OSError as file operations do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_files(folder)
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into(source: Path, folder: Path) -> None:
    """Move every file under `source` to the same name under `folder`, each atomically.

    Raises:
        UserError: `check_target` refuses one of the targets; nothing is moved then.
        OSError: A file operation failed.
    """
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in names:
        check_target(folder / name)
        fsync(source / name)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(folder / name)
    fsync(folder)


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a library that writes to `path` into a UserError.

    Libraries in Rust and C++ report a full disk by errors of their own, some as a bare Exception.
    """
    try:
        yield
    except OSError as error:
        raise_cannot_write(path, error)
    except Exception as error:
        text = one_line(error)
        if isinstance(error, UserError) or not _SYSTEM_ERROR.search(text):
            raise
        raise UserError(f"cannot write {path}: {text[:200]}; choose another --out or free some space") from error


def open_to_append(path: Path) -> IO[bytes]:
    """Open a new or existing regular file to read and to append to. Raises OSError, with ELOOP for a link."""
    return _regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+")


def append_lines(path: Path, lines: Iterable[str], *, durable: bool = False) -> None:
    """Append lines to a new or existing file, on a new line even if a kill has cut the last one.

    Args:
        path: The file.
        lines: Lines without their ends.
        durable: Whether they must be on disk when this returns.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        with open_to_append(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
            line_end = b"\n" if size and file.read(1) != b"\n" else b""
            file.write(line_end + "".join(f"{line}\n" for line in lines).encode())
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise_cannot_write(path, error)


@contextmanager
def file_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on a file.

    Args:
        path: The file; it is created if necessary.
        busy: Error message when another process holds the lock.

    Raises:
        UserError: Another process holds the lock, or the file cannot be created.
    """
    try:
        lock = _regular(path, os.O_RDWR | os.O_CREAT, "rb+")
    except OSError as error:
        raise_cannot_write(path, error)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


def fsync(path: Path) -> None:
    """Return when the file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _regular(path: Path, flags: int, mode: str) -> IO[bytes]:
    """Open a regular file, never through a link, and without blocking on a pipe."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is a pipe or a device", str(path))
    return os.fdopen(descriptor, mode)


# --- temporary files ----------------------------------------------------------------------------------------


def remove_stale_files(folder: Path) -> None:
    """Remove this user's temporary files and folders of killed processes, once per folder."""
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with suppress(OSError):  # a file that cannot be removed does no harm
        for path in folder.glob(".prmbench-*.tmp"):
            info = path.lstat()
            if info.st_uid != os.geteuid() or not _is_left_over(path.name, info.st_mtime):
                continue
            if stat.S_ISDIR(info.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_left_over(name: str, changed: float) -> bool:
    """Return whether a temporary file's process has ended; on another machine, whether the file is old."""
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return False
    machine, pid, run = match[1], int(match[2]), match[3]
    if machine != _machine():  # its processes cannot be seen from here
        return time.time() - changed > STALE_SECONDS
    if pid == os.getpid():
        return run != _RUN
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _temporary(folder: Path) -> Path:
    return folder / f".prmbench-{_machine()}-{os.getpid()}-{_RUN}-{secrets.token_hex(4)}.tmp"


def _created(path: Path) -> IO[bytes]:
    """Create and open a file with the permissions that the umask leaves."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")


def _machine() -> str:
    """Return 8 hex digits that identify the machine and, in a container, its process namespace."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]
