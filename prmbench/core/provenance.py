"""Provenance: commit and dirty flag, package versions, hashes of data and weights. Without torch, and without paths."""

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
"""Packages whose version can change a result."""
MODEL_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".jinja", ".model")
"""Files of a model folder that can change a result: weights, shapes, tokenizer, template, prm.json."""
NOT_MODEL = ("train.json", "non_finite.json", "reference-*.safetensors")
"""Files that training writes into the model's folder, and that are not part of the model."""
ADAPTER_FILE = "adapter_config.json"
WHOLE_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")
"""Files of the weights of a whole model."""
"""Configuration of a LoRA adapter, as peft writes it."""
CARD_FILE, CARD_RECORDS = "prm.json", {"commit", "dirty", "prmbench", "ref_model", "ref_revision"}
"""The model card, and its fields that change no result: which code wrote it, and the reference, hashed on its own."""


def package_versions(*additional: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that can change a result, and of `additional` ones of a task."""
    versions = {"python": platform.python_version()}
    for name in (*PACKAGES, *additional):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


RESULTS = ("leaderboards", "benchmarks/history.jsonl", "benchmarks/HISTORY.md", "docs/performance.md")
"""What commands write in a checkout: it does not change what the code computes."""


def code_state() -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout that this package runs from; None where that is unknown.

    Dirty: there are tracked changes outside RESULTS, into which a run may write. An installed wheel has no checkout;
    its version and the hash of its list of files stand in for the commit.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return _wheel_state()
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(
            root, "status", "--porcelain", "--untracked-files=no", "--", ".", *(f":(exclude){path}" for path in RESULTS)
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes)


def _wheel_state() -> tuple[str | None, bool | None]:
    try:
        distribution = importlib.metadata.distribution("prmbench")
    except importlib.metadata.PackageNotFoundError:
        return None, None
    if Path(str(distribution.locate_file("prmbench/core/provenance.py"))).resolve() != Path(__file__).resolve():
        return None, None  # the code that runs is not that of the installed wheel
    record = distribution.read_text("RECORD") or ""
    return f"wheel {distribution.version} {hashlib.sha256(record.encode()).hexdigest()}", False


def _git(root: Path, *arguments: str) -> str:
    process = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return process.stdout.strip()


def content_hash(traces: Iterable[Trace]) -> str:
    """Return the SHA-256 over ids, subsets, problems, steps, labels and outcomes of the traces, in the order of ids."""
    digest = hashlib.sha256()
    for trace in sorted(traces, key=lambda t: t.id):
        parts = (trace.id, trace.subset, trace.prompt, *trace.steps, trace.first_error, trace.outcome)
        digest.update(repr(parts).encode())
    return digest.hexdigest()


def weights_hash(path: Path) -> str | None:
    """Return the SHA-256 over names and contents of a local model's files, in the order of names.

    Records of how a model was trained are left out: the same training run done twice gives the same hash.

    Args:
        path: A model folder or a GGUF file; for anything else the result is None.
    """
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if _is_model_file(p) and p.is_file())
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        if file.name == CARD_FILE:
            digest.update(_relevant_fields(file))
            continue
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def adapter_base(folder: Path) -> tuple[str, str | None] | None:
    """Return the base model of the LoRA adapter in a folder, a path or hub id, and its revision or None.

    A relative path is looked up from the current folder, as in peft, and from the adapter's.

    Returns:
        None for a folder that holds a whole model, or no adapter.

    Raises:
        UserError: The adapter names no base model, or two different folders have the name.
    """
    path = folder / ADAPTER_FILE
    if not reading.exists(path) or _has_whole_model(folder):
        return None
    values = reading.read_json(path)
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: names no base model; put it in as base_model_name_or_path")
    check_text(base, f"{path}: base_model_name_or_path")
    here, beside = Path(base), folder / base
    if reading.exists(beside):
        if reading.exists(here) and not here.samefile(beside):
            raise UserError(f"{path}: base {base} is in the current folder and beside the adapter; write its full path")
        base = base if reading.exists(here) else str(beside)
    revision = values.get("revision")
    return base, revision if isinstance(revision, str) and revision else None


def _has_whole_model(folder: Path) -> bool:
    """Return whether a folder holds a model's own weights; a config.json alone some trainers put beside an adapter."""
    if not (folder / "config.json").exists():
        return False
    has_adapter = any((folder / f"adapter_model.{suffix}").exists() for suffix in ("safetensors", "bin"))
    return not has_adapter or any(next(folder.glob(pattern), None) for pattern in WHOLE_WEIGHTS)


def _is_model_file(file: Path) -> bool:
    return file.suffix in MODEL_SUFFIXES and not any(file.match(name) for name in NOT_MODEL)


def _relevant_fields(card: Path) -> bytes:
    """Return the fields of a prm.json that can change a result, as JSON; the whole content where it is no card."""
    raw = card.read_bytes()
    try:
        values = json.loads(raw)
        return json.dumps({k: v for k, v in values.items() if k not in CARD_RECORDS}, sort_keys=True).encode()
    except (ValueError, AttributeError, RecursionError):
        return raw


def hardware() -> str:
    """Return the processor's model and number of cores; the engine adds the accelerator."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.processor() or platform.machine()
