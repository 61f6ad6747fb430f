"""Reads files of unknown origin: text, JSON and TOML, or one line that says why a file is refused.

Standard library only. What JSON and TOML contain is checked by the callers.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prmbench.core.records import UserError

TOO_DEEP = "nested too deeply to be read"
BYTE_ORDER_MARK = "\ufeff"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def check_file(path: Path) -> None:
    """Raise UserError unless a regular file is at the path, or a link to one."""
    try:
        _check_kind(path, path.stat().st_mode)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error_reason(error)})") from error
    except ValueError as error:  # NUL in the name
        raise UserError(f"{str(path)!r}: cannot be read ({error})") from error


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: cannot be read (it is a folder); name a file")
    if not stat.S_ISREG(mode):  # reading a pipe may block for ever, and a device may never end
        raise UserError(f"{path}: cannot be read (it is a pipe or a device); save what it gives to a file")


def read_bytes(path: Path, *, max_bytes: int | None = None, follow_links: bool = True) -> bytes:
    """Read the content of a regular file.

    Args:
        path: The file.
        max_bytes: Largest size allowed; None for any size.
        follow_links: Whether a link to a regular file is read, too.

    Raises:
        UserError: There is no such file, it may not be read, or it is larger.
    """
    check_file(path)  # before it is opened: opening a device may have side effects
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
        with os.fdopen(os.open(path, flags), "rb") as file:
            info = os.fstat(file.fileno())
            _check_kind(path, info.st_mode)
            if max_bytes is None:
                return file.read()
            content = file.read(max_bytes + 1) if info.st_size <= max_bytes else b""
    except OSError as error:
        cause = "it is a link; put the file itself there" if error.errno == errno.ELOOP else error_reason(error)
        raise UserError(f"{path}: cannot be read ({cause})") from error
    if max(info.st_size, len(content)) > max_bytes:
        raise UserError(f"{path}: has more than {max_bytes:,} bytes")
    return content


def read_text(path: Path) -> str:
    """Read a text file as UTF-8, without its byte order mark and with LF as its line end.

    Raises:
        UserError: The file cannot be read or is not UTF-8; one that looks like UTF-16 is called so.
    """
    return decode_text(read_bytes(path), path)


def decode_text(raw: bytes, path: Path) -> str:
    """Return the content of a text file as `read_text` does. Raises UserError where it is not UTF-8."""
    try:
        text = raw.decode().lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        looks_like = ", looks like UTF-16" if raw.startswith(_UTF_16_MARKS) else ""
        raise UserError(f"{path}: not UTF-8 at byte {error.start}{looks_like}; save it as UTF-8") from error
    if "\0" in text[:4]:  # UTF-16 without a mark: every other byte of plain English is zero, which UTF-8 allows
        raise UserError(f"{path}: not UTF-8, looks like UTF-16 (it begins with zero bytes); save it as UTF-8")
    return normalise_line_ends(text)


def normalise_line_ends(text: str) -> str:
    r"""Return the text with LF for every CR LF and every CR alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_json_lines(text: str) -> list[str]:
    """Return the lines of a JSON-lines text that are not blank.

    Lines end at LF only: U+2028, NEL and form feed may stand inside a JSON string, where `str.splitlines` would cut.
    """
    return [line for line in text.split("\n") if line.strip()]


def read_appended_lines(path: Path) -> list[str]:
    """Return the lines that are not blank of a JSON-lines file that this program appends to.

    Bytes that a crash left (zeros, half a character) are replaced, so that one line fails to parse and not the file.

    Raises:
        UserError: The file cannot be read.
    """
    return split_json_lines(read_bytes(path).decode(errors="replace"))


def parse_json(text: str, source: str, *, finite: bool = True) -> Any:
    """Parse JSON strictly: no object may have a key twice.

    Args:
        text: The JSON.
        source: The file, for error messages.
        finite: Refuse NaN and infinity. If False, they are read, and numbers with a point or an exponent become
            `WrittenFloat`, so that rows of data keep their digits.

    Raises:
        UserError: The text is not such JSON.
    """
    finite_only: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _finite}
    hooks = finite_only if finite else {"parse_float": WrittenFloat}
    try:
        return json.loads(text, object_pairs_hook=_object_of_pairs, **hooks)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not valid JSON ({error})") from error
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON ({_parse_error(error)})") from error
    except RecursionError as error:
        raise UserError(f"{source}: {TOO_DEEP}") from error


def _parse_error(error: ValueError) -> str:
    return "a number has too many digits" if "integer string conversion" in str(error) else str(error)


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; see `parse_json`. Raises UserError."""
    return parse_json(read_text(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file. Raises UserError."""
    try:
        return tomllib.loads(read_text(path))
    except ValueError as error:  # tomllib's own error is one, and so is a number of too many digits
        raise UserError(f"{path}: not valid TOML ({_parse_error(error)})") from error
    except RecursionError as error:
        raise UserError(f"{path}: {TOO_DEEP}") from error


def find_paths(folder: Path, suffix: str) -> list[Path]:
    """Return all files and folders under `folder` with the suffix, sorted; links to folders are not followed.

    Raises:
        UserError: A folder cannot be searched: its files would be missing from the result without a word.
    """

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: cannot be searched ({error_reason(error)})") from error

    walk = os.walk(folder, onerror=refuse)
    return sorted(
        Path(parent) / name for parent, folders, names in walk for name in (*folders, *names) if name.endswith(suffix)
    )


def short_repr(value: Any) -> str:
    """Return the `repr` of a value of unknown origin for an error message, cut to 60 characters."""
    try:
        return repr(value)[:60]
    except ValueError:  # more digits than Python spells out
        return "a number of too many digits"
    except RecursionError:
        return "a value nested too deeply"


def error_reason(error: OSError) -> str:
    """Return the operating system's words for an error, without its number and the path."""
    return error.strerror or str(error) or type(error).__name__


def lexists(path: Path) -> bool:
    """Return whether there is something at the path, if only a link. Raises UserError when that cannot be found out."""
    return lstat(path) is not None


def exists(path: Path) -> bool:
    """Return whether a file or folder is at the path, links followed. Raises UserError if that is not allowed."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be looked up ({error_reason(error)})") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r}: cannot be looked up ({error})") from error
    return True


def lstat(path: Path) -> os.stat_result | None:
    """Return the `os.lstat` of a path, None when there is nothing. Raises UserError when that cannot be found out."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be looked up ({error_reason(error)})") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r}: cannot be looked up ({error})") from error


def belongs_to_user(path: Path) -> bool:
    """Return whether the file or folder belongs to the user who runs this process; links are followed."""
    try:
        return path.stat().st_uid == os.geteuid()
    except OSError:
        return False


def first_duplicate(names: Iterable[str]) -> str:
    """Return the first name that occurs a second time; empty when none does."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


class WrittenFloat(float):
    """A float that keeps the digits of its source: `str` gives 0.00001 back, and not 1e-05."""

    written: str

    def __new__(cls, text: str) -> WrittenFloat:
        """Parse a number."""
        number = super().__new__(cls, text)
        number.written = text
        return number

    def __str__(self) -> str:
        return self.written


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _object_of_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError(f"the key {first_duplicate(name for name, _ in pairs)[:60]!r} occurs twice in one object")
    return values
