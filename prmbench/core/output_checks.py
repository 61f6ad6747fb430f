"""Which files a command may write: none that it reads, no link, no device, and an existing one only with --force.

Every command calls `check_outputs` before it starts; writing.py refuses links and devices once more when it writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prmbench.core import reading, writing
from prmbench.core.records import UserError

READS = (
    "data",
    "template",
    "model",
    "ref_model",
    "rm_model",
    "ref_cache",
    "against",
    "validation_data",
    "first_rollouts",
)
"""Options that name a file or a folder to read."""
NOT_FILES = ("auto", "plain")
"""Values of --template that never name a file, even if there is one of that name."""
POINTERS = {"prm.json": "ref_model", "adapter_config.json": "base_model_name_or_path"}
"""Files of a model folder, and the field in them that may name another model folder."""
TRAINED = ("train.json", "metrics.jsonl", "non_finite.json", "prm.json")
"""Files other than the model's that training writes into --out."""
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt", "prm.json"),
)
"""Patterns of the files that saving a model may write."""
FOLDERS = ("adapter", "rm", "weights", "result", "drawn", "checkpoints")
"""Folders of a training run that are rewritten during it."""
_command_line_paths: ContextVar[tuple[Path, ...]] = ContextVar("files named on the command line", default=())


@contextmanager
def also_reading(paths: Iterable[Path]) -> Iterator[None]:
    """Make `check_outputs` count these paths among those that are read, while this is open.

    They are the command's arguments and its --config file.
    """
    token = _command_line_paths.set(tuple(paths))
    try:
        yield
    finally:
        _command_line_paths.reset(token)


def check_outputs(
    written: Iterable[Path], config: Any = None, reads: Iterable[Path] = (), *, force: bool = False
) -> None:
    """Refuse output files that the command reads, that are no plain files, or that exist without `force`.

    Args:
        written: All files that the command writes, whether they exist or not.
        config: Its options; those in `READS` name what it reads.
        reads: Further files and folders that it reads.
        force: Whether an existing file may be replaced. A file that is read never may be.

    Raises:
        UserError: One of the files may not be written.
    """
    read = [*_paths_read(config), *reads]
    sources = {identity: path for path in read for identity in _identities(path)}
    for path in written:
        try:
            writing.check_target(path)
        except UserError as error:
            raise UserError(f"--out {error}") from error
        info = reading.lstat(path)
        if info is None:
            if path in read:  # reading it will fail; writing it first would only hide that
                raise UserError(f"--out {path}: is a file that is read; name another")
            continue
        if (info.st_dev, info.st_ino) in sources:
            source = sources[info.st_dev, info.st_ino]
            link = "" if source == path else f", by way of {source}"
            raise UserError(f"--out {path}: is a file that is read{link}; name another")
        if not force:
            raise UserError(f"--out {path}: exists; name another file, or pass --force to replace it")


def check_training(out: Path, config: Any) -> None:
    """Raise UserError when training into `out` would overwrite a file or folder that the options name as input."""
    for path in _paths_read(config):
        if not reading.exists(path):
            continue
        if os.path.realpath(path) == os.path.realpath(out):
            raise UserError(f"--out {out}: is a folder that this command reads ({path}); choose another")
        if any(_is_inside(path, out / name) for name in FOLDERS):
            raise UserError(f"--out {out}: this command reads {path}, which it would overwrite; choose another")
    saved = {path for name in MODEL_FILES for path in out.glob(name)} if out.is_dir() else set()
    check_outputs([*(out / name for name in TRAINED), *sorted(saved)], config, force=True)


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _paths_read(config: Any) -> Iterator[Path]:
    """Yield the files and folders that options and command line name, and those that model folders point to."""
    for path in _command_line_paths.get():
        yield from _with_pointers(path)
    for name in READS:
        value = getattr(config, name, None)
        for path in value if isinstance(value, tuple) else (value,):
            if path and str(path) not in NOT_FILES:
                yield from _with_pointers(Path(path))


def _with_pointers(path: Path) -> Iterator[Path]:
    """Yield the path, and the local models that prm.json or adapter_config.json name if the path is a model folder."""
    yield path
    for name, field in POINTERS.items():
        try:
            if not (path / name).is_file():
                continue
            value = reading.read_json(path / name).get(field)
        except (OSError, ValueError, UserError, AttributeError):
            continue  # missing, or its own reader will refuse it
        if isinstance(value, str) and value:
            yield path / value
            yield Path(value)


def _identities(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (device, inode) of a path and of the files directly in a folder; links have those of their target."""
    try:
        info = path.stat()
        yield info.st_dev, info.st_ino
        members = sorted(path.iterdir()) if path.is_dir() else []
    except (OSError, ValueError):
        return  # missing or not accessible: reading it will say so
    for member in members:
        with suppress(OSError):  # a link that leads nowhere
            info = member.stat()
            yield info.st_dev, info.st_ino
