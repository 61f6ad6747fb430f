"""Archives of runs: many small files of one study in one `.tar.xz`, read in memory and never unpacked to disk.

A path such as `steps.tar.xz/<run-id>.json` names a member, and `read` takes such a path like that of a loose file. An
archive may come from anybody: its size, the memory that unpacking takes, and every member's type, name and size are
bounded.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from prmbench.core import reading, writing
from prmbench.core.records import UserError

SUFFIX = ".tar.xz"
MAX_PACKED_BYTES, MAX_UNPACKED_BYTES = 2**26, 2**29
"""Limits of an archive; the largest committed one has 5 MB, and 55 MB unpacked."""
MAX_MEMBERS = 100_000
MAX_XZ_MEMORY = 2**28
"""Memory in bytes that xz may use: a header may ask for up to 4 GiB."""


def archive_of(path: Path) -> Path | None:
    """Return the archive that `path` names a member of; None for the path of a loose file."""
    return path.parent if path.parent.name.endswith(SUFFIX) and path.parent.is_file() else None


def read(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file, loose or in an archive. Links are refused.

    Args:
        path: The file, or `ARCHIVE.tar.xz/MEMBER`.
        max_bytes: Largest size allowed.

    Raises:
        UserError: There is no such file, it is larger, or the archive is invalid.
    """
    archive = archive_of(path)
    if archive is None:
        return reading.read_bytes(path, max_bytes=max_bytes, follow_links=False)
    content = members(archive).get(path.name)
    if content is None:
        raise UserError(f"{path}: cannot be read (the archive has no such member)")
    if len(content) > max_bytes:
        raise UserError(f"{path}: has more than {max_bytes:,} bytes")
    return content


def find_archives(folder: Path) -> list[Path]:
    """Return the archives in the folder and the folders in it, sorted."""
    return [path for path in reading.find_paths(folder, SUFFIX) if path.is_symlink() or not path.is_dir()]


def members(archive: Path) -> Mapping[str, bytes]:
    """Return an archive's members by name. The last few archives are kept in memory as long as they do not change.

    Raises:
        UserError: The file is a link, cut, damaged or too large, or a member is no plain file with a plain name.
    """
    state = archive.lstat()
    return _members(archive, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=2)
def _members(archive: Path, state: tuple[int, ...]) -> Mapping[str, bytes]:
    """Return the members of an archive; `state` changes with the file, so that a cached result is never stale."""
    packed = reading.read_bytes(archive, max_bytes=MAX_PACKED_BYTES, follow_links=False)
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(packed, archive)), mode="r:") as tar:
            for member in tar:
                name = member.name
                if member.type != tarfile.REGTYPE or member.sparse is not None:
                    raise UserError(f"{archive}: its member {name[:80]!r} is no plain file; pack the runs again")
                if name in ("", ".", "..") or "/" in name or "\\" in name or name in contents:
                    raise UserError(f"{archive}: its member {name[:80]!r} is there twice or no plain name")
                if len(contents) == MAX_MEMBERS:
                    raise UserError(f"{archive}: has more than {MAX_MEMBERS:,} members")
                file = tar.extractfile(member)
                contents[name] = file.read() if file else b""
                if len(contents[name]) != member.size:
                    raise UserError(f"{archive}: its member {name[:80]!r} is cut; restore the file")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{archive}: not an archive of runs ({error}); restore the file") from error
    return contents


def _unpacked(packed: bytes, archive: Path) -> bytes:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
    try:
        content = decompressor.decompress(packed, max_length=MAX_UNPACKED_BYTES + 1)
    except lzma.LZMAError as error:
        raise UserError(f"{archive}: not an archive of runs ({error}); restore the file") from error
    if len(content) > MAX_UNPACKED_BYTES:
        raise UserError(f"{archive}: unpacked, it has more than {MAX_UNPACKED_BYTES:,} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise UserError(f"{archive}: not an archive of runs (it is cut, or has something behind its end)")
    return content


def write(archive: Path, contents: Mapping[str, bytes]) -> None:
    """Write an archive with these members, in their order: those that resemble each other should be neighbours."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    writing.write_atomic(archive, lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME))
