"""Files and paths as nobody means them, by kind: what a reader may meet in place of a good file."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

ROW = {
    "id": "a",
    "problem": "What is 1 plus 1?",
    "prompt": "What is 1 plus 1?",
    "steps": ["We add.", "It is 2."],
    "label": -1,
    "final_answer_correct": True,
    "completion": "It is \\boxed{2}",
    "outcome": 1,
    "answer": "2",
    "group": "g",
}
"""A row that every reader takes, but those of single formats."""


def _with(extra: str) -> bytes:
    """The row with a further field, spelled as JSON."""
    return f"{json.dumps(ROW)[:-1]}, {extra}}}".encode()


def _instead(**fields: object) -> bytes:
    return json.dumps({**ROW, **fields}).encode()


DEEP = 100_000
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a byte order mark alone": b"\xef\xbb\xbf",
    "binary": b"\x00\x01\xff\xfe" * 9,
    "not UTF-8": b'{"id": "\xff"}',
    "cut short": json.dumps(ROW).encode()[:-5],
    "a list": b"[1, 2]",
    "a text": b'"abc"',
    "null": b"null",
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep in a field": _with(f'"x": {"[" * DEEP}{"]" * DEEP}'),
    "too many digits": _with(f'"x": {"9" * 5000}'),
    "an infinite number": _with('"x": 1e999'),
    "NaN": _with('"x": NaN'),
    "a key twice": _with('"id": "b"'),
}
"""What no reader of rows may take."""
TEXTS: dict[str, bytes] = {
    "an integer beyond floats": _instead(label=10**400, first_error=10**400, tokens=10**400, outcome=10**400),
    "half a character in the id": _instead(id="\ud800"),
    "half a character in the problem": _instead(problem="\ud800", prompt="\udfff"),
    "half a character in a step": _instead(steps=["\ud800"], completion="\ud800"),
    "half a character in names": _instead(subset="\ud800", group="\ud800"),
    "half a character in a key": _instead(**{"\ud800": 1}),
    "NUL in the id": _instead(id="a\0b"),
    "NUL in a text": _instead(problem="a\0b", prompt="a\0b", steps=["a\0b"], completion="a\0b"),
    "a very long id": _instead(id="x" * 5000),
    "an id that is a list": _instead(id=[1]),
    "deep, but not too deep": _with(f'"x": {"[" * 500}{"]" * 500}'),
}
"""What some readers take, since they have no use for the field; none may break."""


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as found:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name may have about a hundred characters
        try:
            found.bind(path.name)
        finally:
            os.chdir(here)
    return path


def _circle(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


def _dangling(path: Path) -> Path:
    path.symlink_to(path.with_name("nowhere" + path.suffix))
    return path


def _below_a_file(path: Path) -> Path:
    path.with_name("plain").write_text("x")
    return path.with_name("plain") / path.name


PATHS: dict[str, Callable[[Path], Path]] = {
    "a folder": _folder,
    "a pipe": _pipe,
    "a socket": _socket,
    "a device": lambda _: Path("/dev/zero"),
    "a link to itself": _circle,
    "a link to nothing": _dangling,
    "below a file": _below_a_file,
    "a long name": lambda path: path.with_name("x" * 300 + path.suffix),
    "a long path": lambda path: path.parent / Path(*["y" * 200] * 25) / path.name,
    "a name that is not UTF-8": lambda path: path.with_name("\udcff" + path.suffix),
}
"""Kind -> what to put at a path of that name; gives the path."""
