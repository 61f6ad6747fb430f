"""Provenance: commit and dirty flag, package versions, hashes of data and weights. No torch, no paths."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

from prmbench.core import reading
from prmbench.core.option_values import check_text
from prmbench.core.records import Trace, UserError

PACKAGES = ("prmbench", "torch", "transformers", "tokenizers", "datasets", "numpy", "gguf")
"""Packages whose version can move a number."""
MODEL_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".jinja", ".model")
"""Files of a model folder that can move a number: weights, shapes, tokenizer, template, prm.json."""
NOT_MODEL = ("train.json", "non_finite.json", "reference-*.safetensors")
"""What training leaves beside the model: its record, not read with it."""
ADAPTER_FILE = "adapter_config.json"
"""Of a LoRA adapter, as peft writes it."""
CARD_FILE, CARD_RECORDS = "prm.json", {"commit", "dirty", "prmbench", "ref_model", "ref_revision"}
"""How a model is read, and what in it says only which code wrote it, or names the reference, which has its own hash."""


def packages(*more: str) -> dict[str, str]:
    """Versions of the packages that can move a number, and of Python; `more` are those of one task."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_state() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout this package runs from.

    Dirty = tracked changes outside `leaderboards/`, which a run itself may write. An installed wheel has no
    checkout: then the version and the hash of its file list stand in for the commit.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return _wheel_state()
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)leaderboards")
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes)


def _wheel_state() -> tuple[str | None, bool | None]:
    try:
        distribution = importlib.metadata.distribution("prmbench")
    except importlib.metadata.PackageNotFoundError:
        return None, None
    if Path(str(distribution.locate_file("prmbench/core/provenance.py"))).resolve() != Path(__file__).resolve():
        return None, None  # the wheel that is installed is not the code that runs
    record = distribution.read_text("RECORD") or ""
    return f"wheel {distribution.version} {hashlib.sha256(record.encode()).hexdigest()}", False


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def content_hash(traces: Iterable[Trace]) -> str:
    """SHA-256 over ids, problems, steps, labels and outcomes, in id order: what the numbers are about."""
    digest = hashlib.sha256()
    for trace in sorted(traces, key=lambda t: t.id):
        parts = (trace.id, trace.subset, trace.prompt, *trace.steps, trace.first_error, trace.outcome)
        digest.update(repr(parts).encode())
    return digest.hexdigest()


def weights_hash(path: Path) -> str | None:
    """SHA-256 over the files of a local model (a folder, or one GGUF file), names and contents in name order.

    Records of how a model came to be have no part in it: a training run done twice gives one hash. None when there is
    nothing local to hash.
    """
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if _moves_a_number(p) and p.is_file())
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        if file.name == CARD_FILE:
            digest.update(_reading(file))
            continue
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def adapter_base(folder: Path) -> tuple[str, str | None] | None:
    """The model that the LoRA adapter in a folder belongs to, a path or a hub id, and its revision where one is named.

    None for a folder that holds a whole model, or no adapter. A relative path is one from the current folder, as peft
    has it, or else from the adapter's own. Raises UserError when the adapter names no base.
    """
    path = folder / ADAPTER_FILE
    if not reading.exists(path) or (folder / "config.json").exists():
        return None
    values = reading.read_json(path)
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: names no base model; put it in as base_model_name_or_path")
    check_text(base, f"{path}: base_model_name_or_path")
    if not reading.exists(Path(base)) and reading.exists(folder / base):
        base = str(folder / base)
    revision = values.get("revision")
    return base, revision if isinstance(revision, str) and revision else None


def _moves_a_number(file: Path) -> bool:
    return file.suffix in MODEL_SUFFIXES and not any(file.match(name) for name in NOT_MODEL)


def _reading(card: Path) -> bytes:
    """What a prm.json says of how the model is read; all of a file that is none."""
    raw = card.read_bytes()
    try:
        values = json.loads(raw)
        return json.dumps({k: v for k, v in values.items() if k not in CARD_RECORDS}, sort_keys=True).encode()
    except (ValueError, AttributeError, RecursionError):
        return raw


def hardware() -> str:
    """Processor model and core count; the accelerator is named by the engine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.processor() or platform.machine()
