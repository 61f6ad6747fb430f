"""Files of others are read whole or refused in one line, whatever is in them or in their place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from odd_files import CONTENTS, PATHS

from prmbench import config as options
from prmbench.core import reading
from prmbench.core.records import UserError


def refusal(path: Path, read: object) -> str:
    with pytest.raises(UserError) as caught:
        read(path)  # type: ignore[operator]
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300 + len(str(path))
    return line


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("read", [reading.read_json, reading.read_toml])
def test_odd_contents(tmp_path: Path, kind: str, read: object) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENTS[kind])
    if (read, kind) in {
        (reading.read_toml, "empty"),
        (reading.read_toml, "a byte order mark alone"),
        (reading.read_json, "a list"),
        (reading.read_json, "a text"),
        (reading.read_json, "null"),
    }:
        read(path)  # type: ignore[operator]
        return
    assert str(path) in refusal(path, read)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("read", [reading.read_bytes, reading.read_text, reading.read_json, reading.read_toml])
def test_odd_paths(tmp_path: Path, kind: str, read: object) -> None:
    refusal(PATHS[kind](tmp_path / "file.json"), read)


@pytest.mark.parametrize(
    "ask", [reading.read_bytes, reading.check_file, reading.lexists, reading.exists, reading.lstat]
)
def test_a_nul_in_a_path(tmp_path: Path, ask: object) -> None:
    assert "NUL" in refusal(tmp_path / "a\0b", ask) or "null byte" in refusal(tmp_path / "a\0b", ask)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": -1e400}', "the number -1e400 is too large"),
        (f'{{"a": {"1" * 5000}}}', "too many digits"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "not valid JSON"),
    ],
)
def test_what_json_may_not_hold_is_named(text: str, says: str) -> None:
    with pytest.raises(UserError, match="here: ") as caught:
        reading.parse_json(text, "here")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = " + "[" * 50_000, "nested too deeply"),
        (".".join("a" * 3000) + " = 1", "nested too deeply"),
        ("seed = " + "9" * 5000, "too many digits"),
        ("rm_loss = 'a'\n[rm]\nloss = 'b'", "rm_loss is there twice"),
        ("batch-tokens = 1\nbatch_tokens = 2", "batch_tokens is there twice"),
        ("seed = 1\nseed = 2", "not valid TOML"),
        ("model = 'a\0b'", "not valid TOML"),
    ],
)
def test_toml_that_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    assert says in refusal(path, options.read_toml)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sed": 1}, "unknown option 'sed'; the nearest is 'seed'"),
        ({"temprature": 1.0}, "unknown option 'temprature'; the nearest is 'temperature'"),
        ({"temperature": float("nan")}, "temperature is nan; expected a finite number"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 10**400}, "temperature is 1000000"),
        ({"temperature": 10**5000}, "temperature is a number of too many digits; expected float"),
        ({"data": "a\0b"}, "a NUL can be in no name"),
        ({"out": "a\udcff"}, "not valid Unicode"),
        ({"subset": ["a\0b"]}, "a NUL can be in no name"),
        ({"seed": [1]}, "expected int"),
    ],
)
def test_values_that_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        options.from_mapping(options.EvalConfig, values, "file.toml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("file.toml: ")
    assert len(str(caught.value)) < 1000


def test_options_of_callers_are_named_as_on_the_command_line() -> None:
    with pytest.raises(UserError, match=r"^--batch-tokens is '5'; expected int"):
        options.validate(options.EvalConfig(batch_tokens="5"))  # type: ignore[arg-type]


def test_the_limit_of_digits_is_pythons(tmp_path: Path) -> None:
    most = sys.get_int_max_str_digits()
    assert reading.parse_json("9" * most, "here") == int("9" * most)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n\n", []),
        (b'{"a": 1}\n\x00\x00\n[2]', ['{"a": 1}', "\0\0", "[2]"]),
        (b"\xff\n1\n", ["\ufffd", "1"]),
    ],
)
def test_what_a_crash_left_of_a_line_stays_a_line(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert reading.read_appended_lines(path) == lines


def test_a_file_may_be_as_large_as_it_may_be_and_no_larger(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert reading.read_bytes(path, max_bytes=5) == b"12345"
    assert "has more than 4 bytes" in refusal(path, lambda p: reading.read_bytes(p, max_bytes=4))


def test_a_link_is_followed_unless_it_may_not_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    link = tmp_path / "b"
    link.symlink_to("a")
    assert reading.read_bytes(link) == b"1"
    assert "it is a link" in refusal(link, lambda p: reading.read_bytes(p, follow_links=False))
