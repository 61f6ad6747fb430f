"""Recognises a report that was made before from the same files, so that nothing is judged or drawn again.

A stamp states that a report of exactly these results, by exactly this code, left exactly these files and found no
error. Its name is the hash of all of them, its content a signature with a key that only the user can read; stamps with
another signature are ignored.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
import secrets
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prmbench.core import archives, reading, writing
from prmbench.core.records import UserError
from prmbench.report.sheets import Section

INPUT_SUFFIXES = (".json", ".jsonl", ".jsonl.gz", archives.SUFFIX)
OUTPUT_SUFFIXES = (".md", ".svg", ".png", ".html", ".csv", ".tex", ".json")
PACKAGES = ("numpy", "pandas", "matplotlib", "pydantic", "jinja2", "pyarrow", "scikit-learn", "scipy", "latex2mathml")
"""Packages that numbers, figures or checks depend on."""


def inputs(
    results: Path, out: Path, formats: Sequence[str], sections: Sequence[Section] = (), *, official: bool = True
) -> str:
    """Returns the hash of the results, of this package, of those it uses, and of the options; empty if unreadable."""
    package = Path(__file__).parents[1]
    paths = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for suffix in INPUT_SUFFIXES:
        paths += [path for path in reading.find_paths(results, suffix) if path.is_symlink() or not path.is_dir()]
    settings = (
        str(results),
        str(out),
        sorted(formats),
        official,
        [str(section.sheets.__module__) for section in sections],
        platform.python_version(),
        *map(_version, PACKAGES),
    )
    return _hash(repr(settings), paths)


def state(input_hash: str, out: Path, *, check: bool) -> str:
    """Returns the hash of `inputs` and of the present files under `out`; empty when one cannot be read.

    Args:
        input_hash: Value of `inputs` before the results were read.
        out: Folder for tables, figures and the page.
        check: Whether the report only checks, which ignores the page and the PNGs.
    """
    suffixes = [suffix for suffix in OUTPUT_SUFFIXES if not (check and suffix in (".png", ".html"))]
    folders = (out, out / "figures", out / "published")
    paths = [path for folder in folders for path in folder.glob("*") if path.suffix in suffixes and path.is_file()]
    return _hash(f"{input_hash} {check}", paths) if input_hash else ""


def _hash(prefix: str, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256(prefix.encode(errors="surrogateescape"))
    try:
        for path in sorted(paths):
            content = reading.read_bytes(path, follow_links=False)
            digest.update(f"\0{path}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    except UserError:
        return ""
    return digest.hexdigest()


def is_known(name: str) -> bool:
    """Returns whether a report ended in this state without an error."""
    try:
        return bool(name) and hmac.compare_digest(
            reading.read_bytes(_folder() / name, max_bytes=64, follow_links=False), _signature(name)
        )
    except UserError:
        return False


def remember(name: str) -> None:
    """Records that a report ended in this state without an error; does nothing if the cache cannot be written."""
    try:
        if name:
            writing.write_atomic(_folder() / name, _signature(name))
    except UserError:
        return


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PRMBENCH_CACHE") or Path(cache) / "prmbench") / "reports"


def _signature(name: str) -> bytes:
    return hmac.new(_key(), name.encode(), hashlib.sha256).hexdigest().encode()


def _key() -> bytes:
    """The user's key, created if there is none. Raises UserError when others could have read it."""
    path = _folder() / "key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        info = path.lstat()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reading.error_reason(error)})") from error
    key = reading.read_bytes(path, max_bytes=32, follow_links=False)
    if info.st_mode & 0o077 or info.st_uid != os.geteuid() or len(key) != 32:  # noqa: PLR2004 - as it was made
        raise UserError(f"{path}: is not a key that only you can read; delete it")
    return key
