"""Recognises a report that has been made before from the same files, so that nothing is judged or drawn again.

A stamp is no number: it says that a report of exactly these results, by exactly this code, left exactly these files and
found no fault. Its name is the hash of all of them and its content a signature by a key that only the user can read;
what is older, altered or someone else's is passed over.
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

READ = (".json", ".jsonl.gz", archives.SUFFIX)
WRITTEN = (".md", ".svg", ".png", ".html", ".csv", ".tex", ".json")
USED = ("numpy", "pandas", "matplotlib", "pydantic", "jinja2", "pyarrow", "scikit-learn", "scipy")
"""Packages that a number, a drawing or a check depends on."""


def inputs(results: Path, out: Path, formats: Sequence[str], sections: Sequence[Section] = ()) -> str:
    """Return the hash of the results, of this package and those it uses, and of the options; empty if unreadable."""
    package = Path(__file__).parents[1]
    paths = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for suffix in READ:
        paths += [path for path in reading.find_paths(results, suffix) if path.is_symlink() or not path.is_dir()]
    about = (
        str(results),
        str(out),
        sorted(formats),
        [str(section.sheets.__module__) for section in sections],
        platform.python_version(),
        *map(_version, USED),
    )
    return _hash(repr(about), paths)


def state(made_of: str, out: Path, *, check: bool) -> str:
    """Return the hash of `inputs` and of the files under `out` now; empty when one cannot be read.

    Args:
        made_of: What `inputs` returned before the results were read.
        out: Folder for tables, figures and the page.
        check: Whether the report only checks: then the page and the PNGs are not looked at.
    """
    kinds = [kind for kind in WRITTEN if not (check and kind in (".png", ".html"))]
    folders = (out, out / "figures", out / "published")
    paths = [path for folder in folders for path in folder.glob("*") if path.suffix in kinds and path.is_file()]
    return _hash(f"{made_of} {check}", paths) if made_of else ""


def _hash(about: str, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256(about.encode(errors="surrogateescape"))
    try:
        for path in sorted(paths):
            content = reading.read_bytes(path, follow_links=False)
            digest.update(f"\0{path}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    except UserError:
        return ""
    return digest.hexdigest()


def is_known(name: str) -> bool:
    """Return whether a report left this state without a fault."""
    try:
        return bool(name) and hmac.compare_digest(
            reading.read_bytes(_folder() / name, max_bytes=64, follow_links=False), _signature(name)
        )
    except UserError:
        return False


def remember(name: str) -> None:
    """Write down that a report left this state without a fault; where that cannot be, the next one is made anew."""
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
    """The user's key, made when there is none. Raises UserError when others could have read it."""
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
