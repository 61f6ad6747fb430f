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

TEXT_SUFFIXES = (
    *(".json", ".jsonl", ".md", ".yaml", ".yml", ".toml", ".ini", ".cfg"),
    *(".jinja", ".txt", ".py", ".csv", ".tsv", ".html", ""),
)
VOCABULARIES = ("tokenizer.json", "vocab*", "merges.txt")
"""Files whose strings are tokens: one may look like a path."""
KEYS = re.compile(
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}|\bgl(?:pat|ptt|dt|rt|soat|cbt)-[\w-]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[abeprs]-[A-Za-z0-9-]{10,}|\bhooks\.slack\.com/services/\w+/\w+/\w+"
    r"|\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}|\bpypi-[\w-]{40,}|\bnpm_[A-Za-z0-9]{30,}"
    r"|\b(?:gsk_|r8_|xai-|pplx-|fw_|csk-|tgp_v1_|wandb_v1_|dop_v1_)[A-Za-z0-9_-]{20,}|\bnvapi-[\w-]{20,}"
    r"|\bSG\.[\w-]{16,}\.[\w-]{16,}|\beyJ[\w-]{8,}\.eyJ[\w-]{6,}\.[\w-]*|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY"
)
"""Keys that their form gives away: of hubs, clouds, servers of models and trackers; JSON web tokens; private keys."""
SECRET_WORD = re.compile(r"(?i)pass|pwd|key|secret|token|credential")
NAMED = re.compile(
    r"(?im)(?:(?P<is_key>pass(?:word|wd|phrase)|(?<![a-z])pwd|(?:api|access|private|account|secret)[_-]?key"
    r"|(?<![a-z])(?:client[_-]?)?secret)|(?<![a-z])(?:(?:access|auth|bearer|refresh|api|hub|hf)[_-]?)?token|credential)s?"
    r"(?:[\"']?\s*(?:=>|:=|[:=])\s*(?:\[?\s*[\"'](?P<quoted>[^\"'\s]{6,})[\"']|"
    r"(?P<last>[^\s\"'#,;()]{6,})[ \t]*(?:#.*)?(?:$|[\"']))"
    r"|[= ](?P<inline>[^\s\"'#,;()]{6,}))"
)
"""A value beside a name that secrets have, as JSON, YAML, TOML, Python or a command write it: in quotes, at the end of
a line, or right behind the name."""
PLACEHOLDER = re.compile(
    r"(?i)\W*|(.)\1+|[<\[{$%].*|(?:your|my|some|the|insert|put)[-_].*"
    r"|(?:.*[-_])?(?:placeholder|example|change-?me|redacted|dummy|not[-_]needed).*|(?:os|process|self|env|config)[.:].*"
)
"""What stands where a secret would, and is none."""
RANDOM = re.compile(r"(?=.*(?:[a-zA-Z]+\d|\d+[a-zA-Z])[a-zA-Z0-9]{4})[\w.~+/=-]+")
"""A text with letters and digits in one piece, as random ones have; names of tokens (`reserved_token_0`) have none."""
MIN_PASSWORD, MIN_TOKEN = 8, 16
"""Least characters of a random text that is a secret, beside the name of a password or key, and that of a token."""
HOMES = "home|Users|root|tmp|private|mnt|scratch|work|workspace|workspaces|var/folders"
SHARES = (
    "data|gpfs|fsx|nfs|efs|dfs|lustre|beegfs|opt|srv|media|Volumes|volume|vol|storage|shared?|cluster|projects?|proj"
    r"|raid\d*|ssd\d*|hdd\d*|nvme\d*|disk\d*|data\d+|nas|fast|lscratch|local_scratch|dbfs|kaggle|content/drive|teamspace|run/user"
)
LOCAL_PATH = re.compile(
    rf"(?<![\w./\-)\]}}\\^|])(?:file:/*)?/(?:{SHARES})/(?:[\w.+@-]{{2,}}|\w/[\w.])"
    rf"|(?<![\w./\-)\]}}\\^|])(?:file:/*)?/(?:{HOMES})/[\w.-]+"
    r"|(?<![A-Za-z])[A-Za-z]:[\\/]{1,4}(?:Users|Documents and Settings|ProgramData|Program Files)[\\/]"
    r"|(?<![A-Za-z])[A-Za-z]:/{1,2}[\w.-]+/[\w.-]+"
)
"""A path under a folder where machines keep their users' files, or mount shared ones."""
BACKSLASHED_PATH = re.compile(r"(?<![\w\\])(?:[A-Z]:|\\(?=\\[\w.-]+\\[\w.-]))(?:\\[A-Za-z0-9][\w.$-]{2,}){2,}")
"""A path with a drive, or of a share of a host, where its parts are no commands of LaTeX."""
LATEX_COMMAND = re.compile(
    r"\w*arrow|mapsto|math\w+|text\w*|operatorname|[dt]?frac|sqrt|begin|end|left|right|[cdlv]?dots?|quad|qquad|times|div|cup|cap|sub\w+"
    r"|sup\w+|set\w*|in|notin|to|pm|geq?|leq?|neq?|approx|equiv|sim|log|ln|exp|sin|cos|tan|cot|sec|arc\w+|max|min|sum|prod|int|lim"
    r"|inf|sup|gcd|mod|[bp]mod|implies|iff|therefore|because|forall|exists|infty|partial|nabla|hline|item|label|boxed|over\w*|under\w*"
    r"|(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega)"
    r"|hat|bar|vec|tilde|angle|triangle\w*|circ|cdot|o(?:plus|times)|l?vert|r?vert|[lr](?:angle|floor|ceil|brace)|big\w*|\w+slant|nonumber",
    re.IGNORECASE,
)
"""Commands that may follow one another, or a line break `\\`, in a formula."""
WHOLE_PATH = re.compile(
    r"(?:/[\w. +-]+){2,}/?|~/.+|\.{1,2}/.+|[A-Za-z]:\\.+|[A-Za-z]:/[^/].+|\\\\[\w.$-]+\\.+|file:/.+"
)
"""A text that is nothing but a path."""
SOURCE_FIELDS = ("ref_model", "name_or_path")
"""Ends of the names of fields that say where a model comes from: a hub id, or a folder of this machine."""
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")
WHITESPACE_ESCAPES = "nrtbf"
MAX_NESTING = 4
"""JSON inside of JSON strings that is still searched for secrets."""


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
        for reading_of_line in _with_unescaped(line):
            is_key = KEYS.search(reading_of_line) or (secret and secret in reading_of_line)
            if is_key or (not is_vocabulary and _has_named_secret(reading_of_line)):
                raise UserError(f"{name}, line {number}: holds what looks like a key or a password; take it out")
    if is_vocabulary:
        return
    for path in _local_paths(base, text, folder):
        hint = "; --ref-model ORG/NAME replaces it" if path.endswith("(ref_model)") else ""
        raise UserError(f"{name}: names {path}, a path of this machine{hint or '; put a hub id there, or take it out'}")


def _with_unescaped(line: str) -> Iterator[str]:
    """Yields a line, and what it says once JSON's escapes are resolved, as often as they are nested."""
    for _ in range(MAX_NESTING):
        yield line
        if "\\" not in line:
            return
        line = _unescaped(line)


def _unescaped(line: str) -> str:
    """A line with JSON's escapes resolved."""

    def character(escape: re.Match[str]) -> str:
        code, short = escape.groups()
        return chr(int(code, 16)) if code else "\n" if short in WHITESPACE_ESCAPES else short

    return ESCAPE.sub(character, line)


def _has_named_secret(line: str) -> bool:
    """Whether a line holds a secret variable's value, an address with a password, or a value that is named a secret."""
    if scrub(line) != line:
        return True
    for match in NAMED.finditer(line) if SECRET_WORD.search(line) else ():
        value = match["quoted"] or match["last"] or match["inline"]
        if PLACEHOLDER.fullmatch(value):
            continue
        if RANDOM.fullmatch(value) and len(value) >= (MIN_PASSWORD if match["is_key"] else MIN_TOKEN):
            return True
        if match["is_key"] and (match["quoted"] or (match["last"] and re.search(r"[^A-Za-z._]", value))):
            return True
    return False


def is_text(path: Path) -> bool:
    """Whether a file is searched: by its suffix."""
    return path.suffix.lower() in TEXT_SUFFIXES


def _local_paths(base: str, text: str, folder: Path | None) -> Iterator[str]:
    """Yields paths of this machine in a text; of JSON also those in single values."""
    for prefix in {os.fspath(Path.home()), os.fspath(Path.cwd())} - {"/"}:
        if re.search(rf"(?<![\w./-]){re.escape(prefix)}(?![\w-])", text):
            yield prefix
    if base.endswith(".json"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{base}: is no JSON ({type(error).__name__}); mend the file") from error
        yield from _paths_in(value, "", folder)
    lines = (_unescaped(line) if ".json" in base else line for line in text.splitlines())
    yield from (path for line in lines for path in _paths_in_line(line))


def _paths_in_line(line: str) -> Iterator[str]:
    if match := LOCAL_PATH.search(line):
        yield match[0]
    for match in BACKSLASHED_PATH.finditer(line):
        if not _is_formula(match[0]):
            yield match[0]


def _is_formula(text: str) -> bool:
    """Whether what could be a path is of commands of LaTeX."""
    return any(LATEX_COMMAND.fullmatch(part) for part in re.split(r"\W+", text))


def _paths_in(value: Any, field: str, folder: Path | None) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _paths_in(part, str(name), folder)
    elif isinstance(value, list):
        for part in value:
            yield from _paths_in(part, field, folder)
    elif isinstance(value, str) and (_is_whole_path(value) or _is_local_model(value, field, folder)):
        yield f"{value} ({field})" if field else value


def _is_whole_path(value: str) -> bool:
    return bool(WHOLE_PATH.fullmatch(value)) and not ("\\" in value and _is_formula(value))


def _is_local_model(value: str, field: str, folder: Path | None) -> bool:
    """Whether the source of a model, which may be a hub id, is a file or a folder here."""
    if not field.endswith(SOURCE_FIELDS) or not value:
        return False
    return any(reading.exists(path) for path in (Path(value), *([folder / value] if folder else [])))
