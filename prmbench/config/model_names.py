"""Tells a mistyped model from a hub id, without asking the hub, and says what may have been meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prmbench.core import hub_access, reading
from prmbench.core.option_values import SIMILAR
from prmbench.core.records import UserError

MODEL_FILES = ("config.json", "adapter_config.json", "prm.json")
"""Files of which a model's folder has at least one."""
MAX_ENTRIES = 500
"""Most entries of a folder that are looked at for a name like the mistyped one."""


def check_model_path(name: str, known: Iterable[str] = (), option: str = "--model") -> None:
    """Refuse a model's name that is no file, no folder, none of the known names and, by its form, no hub id.

    Args:
        name: What the user wrote.
        known: Names that need no file, such as the baselines.
        option: The option that the name belongs to, for the message.

    Raises:
        UserError: There is no such model; the message names the nearest one.
    """
    known = tuple(known)
    if name in known or reading.exists(Path(name)):
        return
    parts = name.split("/")
    same = [other for other in known if other.lower() == name.lower()]
    if same:
        raise UserError(f"{option} {name}: did you mean {same[0]}?")
    if _is_path(name):
        raise UserError(f"{option} {name}: no such file or folder{_hint(name, known)}")
    if hub_access.is_cached(name):
        return
    if len(parts) == 1:
        raise UserError(
            f"{option} {name}: no such file or folder, and no hub id, which is ORG/NAME{_hint(name, known)}"
        )
    if Path(parts[0]).is_dir():
        raise UserError(
            f"{option} {name}: the folder {parts[0]} is here, and {parts[1]} is not in it{_hint(name, known)} "
            "(for a hub id of that name, start in another folder)"
        )


def _is_path(name: str) -> bool:
    """Return whether a name has the form of a path and cannot be a hub id, ORG/NAME."""
    return (
        name.startswith((".", "/", "~"))
        or name.endswith(("/", ".gguf", ".safetensors"))
        or name.count("/") > 1
        or "\\" in name
    )


def nearest_model(name: str, known: Iterable[str] = ()) -> str | None:
    """Return the existing folder, file or known name that a mistyped one is most like; None where none is like it."""
    expanded = os.path.expanduser(name)  # noqa: PTH111 - Path's raises on unknown users
    if expanded != name and reading.exists(Path(expanded)):  # in quotes, so that the shell left the ~ alone
        return expanded
    path = _nearest_path(name)
    if path is not None and "/" in name:
        return path
    names = tuple(known)
    candidates = {other.rsplit("/", 1)[-1].lower(): other for other in reversed(names)}
    candidates |= {other.lower(): other for other in names}
    if "/" not in name:
        candidates |= {model.rsplit("/", 1)[-1].lower(): model for model in _models_below()}
    if path is not None:
        candidates[path.lower()] = path
    close = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=SIMILAR)
    return candidates[close[0]] if close else None


def _hint(name: str, known: tuple[str, ...]) -> str:
    nearest = nearest_model(name, known)
    if nearest is not None:
        return f"; did you mean {nearest}?"
    baselines = [other for other in known if "/" not in other]
    return f" (baselines: {', '.join(baselines)})" if baselines and "/" not in name else ""


def _nearest_path(name: str) -> str | None:
    """Return the path in which each part of `name` that does not exist is replaced by the most similar entry."""
    parts = [part for part in name.replace("\\", "/").rstrip("/").split("/") if part]
    path = Path("/") if name.startswith("/") else Path()
    for number, part in enumerate(parts):
        if part in (".", "..") or (path / part).exists():
            path /= part
            continue
        is_last = number == len(parts) - 1
        entries = {entry.name.lower(): entry.name for entry in _entries(path) if is_last or entry.is_dir()}
        close = difflib.get_close_matches(part.lower(), entries, n=1, cutoff=SIMILAR)
        if not close:
            return None
        path /= entries[close[0]]
    return str(path) if path.is_dir() or path.suffix == ".gguf" else None


def _models_below() -> Iterator[str]:
    """Yield the model folders and GGUF files of the working folder and of the folders in it."""
    for entry in _entries(Path()):
        yield from (str(path) for path in (entry, *_entries(entry)) if _is_model(path))


def _is_model(path: Path) -> bool:
    return path.suffix == ".gguf" or any((path / name).is_file() for name in MODEL_FILES)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, at most `MAX_ENTRIES`; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names[:MAX_ENTRIES]]
