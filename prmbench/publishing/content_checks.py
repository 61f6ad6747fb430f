"""Refuses to publish a file that holds a secret or names a path of this machine.

Only text is searched: weights hold numbers. What looks like a key is refused, whoever put it there, and not repeated.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prmbench.core import reading
from prmbench.core.records import UserError
from prmbench.core.redaction import MIN_SECRET_LENGTH, scrub

TEXT_SUFFIXES = (".json", ".jsonl", ".md", ".yaml", ".yml", ".jinja", ".txt", "")
VOCABULARIES = ("tokenizer.json", "vocab*", "merges.txt")
"""Files whose strings are tokens: one may look like a path."""
KEYS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}|\bAKIA[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[\w-]{35}|\bpypi-[\w-]{40,}|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)
"""Access tokens of the hub, OpenAI, GitHub, AWS, Slack, Google and PyPI, and private keys."""
USER_FOLDER = re.compile(
    r"(?<![\w.:/-])(?:file://)?(?:/(?:home|Users|root|tmp|private|mnt|scratch|work|workspace|var/folders)/[\w.-]+"
    r"|[A-Za-z]:\\{1,4}Users\\)"
)
"""A path under a folder where machines keep their users' files."""
WHOLE_PATH = re.compile(r"(?:/[\w. +-]+){2,}/?|~/.+|\.{1,2}/.+|[A-Za-z]:\\.+|file://.+")
"""A text that is nothing but a path."""
SOURCE_FIELDS = ("ref_model", "name_or_path")
"""Ends of the names of fields that say where a model comes from: a hub id, or a folder of this machine."""


def check(name: str, text: str, token: str | None, folder: Path | None = None) -> None:
    """Raises UserError where a file's text holds a secret or a local path.

    Args:
        name: Path of the file in the repository, for messages.
        text: Its content.
        token: The hub's token of this user, which must be in no file.
        folder: The folder that the file is in, from which a relative path may be meant.
    """
    base, secret = Path(name).name, token if token and len(token) >= MIN_SECRET_LENGTH else None
    is_vocabulary = any(fnmatch.fnmatch(base, pattern) for pattern in VOCABULARIES)
    for number, line in enumerate(text.splitlines(), 1):
        if KEYS.search(line) or (secret and secret in line) or (not is_vocabulary and scrub(line) != line):
            raise UserError(f"{name}, line {number}: holds what looks like a key or a password; take it out")
    if is_vocabulary:
        return
    for path in _local_paths(base, text, folder):
        hint = "; --ref-model ORG/NAME replaces it" if path.endswith("(ref_model)") else ""
        raise UserError(f"{name}: names {path}, a path of this machine{hint or '; put a hub id there, or take it out'}")


def is_text(path: Path) -> bool:
    """Whether a file is searched: by its suffix."""
    return path.suffix.lower() in TEXT_SUFFIXES


def _local_paths(base: str, text: str, folder: Path | None) -> Iterator[str]:
    """Yields paths of this machine in a text; of JSON also those in single values."""
    for prefix in {os.fspath(Path.home()), os.fspath(Path.cwd())} - {"/"}:
        if re.search(rf"(?<![\w./-]){re.escape(prefix)}(?![\w-])", text):
            yield prefix
    if match := USER_FOLDER.search(text):
        yield match[0]
    if base.endswith(".json"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{base}: is no JSON ({type(error).__name__}); mend the file") from error
        yield from _paths_in(value, "", folder)


def _paths_in(value: Any, field: str, folder: Path | None) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _paths_in(part, str(name), folder)
    elif isinstance(value, list):
        for part in value:
            yield from _paths_in(part, field, folder)
    elif isinstance(value, str) and (WHOLE_PATH.fullmatch(value) or _is_local_model(value, field, folder)):
        yield f"{value} ({field})" if field else value


def _is_local_model(value: str, field: str, folder: Path | None) -> bool:
    """Whether the source of a model, which may be a hub id, is a file or a folder here."""
    if not field.endswith(SOURCE_FIELDS) or not value:
        return False
    return any(reading.exists(path) for path in (Path(value), *([folder / value] if folder else [])))
