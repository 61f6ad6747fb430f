"""Text files as users have them: UTF-8 with or without a byte order mark, any line ends. Standard library only."""

from __future__ import annotations

from pathlib import Path

from prmbench.schema import UserError

BYTE_ORDER_MARK = "\ufeff"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """Read a user's text file as UTF-8, without its byte order mark and with LF as its line end.

    Raises:
        UserError: The file is not UTF-8; a file that looks like UTF-16 is called so.
        OSError: The file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8").lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        with path.open("rb") as file:
            looks_like = ", looks like UTF-16" if file.read(2) in _UTF_16_MARKS else ""
        raise UserError(f"{path}: not UTF-8 at byte {error.start}{looks_like}; save it as UTF-8") from error
    if "\0" in text[:4]:  # UTF-16 without a mark: every other byte of plain English is zero, which UTF-8 allows
        raise UserError(f"{path}: not UTF-8, looks like UTF-16 (it begins with zero bytes); save it as UTF-8")
    return text


def normalise_line_ends(text: str) -> str:
    r"""Return the text with LF for every CR LF and every CR alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(text: str) -> list[str]:
    """Return the lines of a JSON-lines text that are not blank.

    Lines end at LF only: U+2028, NEL and form feed may stand inside a JSON string, where `str.splitlines` would cut.
    """
    return [line for line in text.split("\n") if line.strip()]
