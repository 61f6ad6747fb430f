"""What `prmbench push` would upload: which files, where to, and what is left out. Nothing here uses the network."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from prmbench import tasks
from prmbench.config import PushConfig
from prmbench.core import archives, output_checks, provenance, reading, result_files
from prmbench.core.records import Notice, RunManifest, RunResult, UserError
from prmbench.core.redaction import one_line
from prmbench.publishing import content_checks
from prmbench.report import hub_results, model_card
from prmbench.report.headlines import flattened
from prmbench.report.load import refusal

PARTS = ("model", "card", "results", "scores")
"""What can be uploaded. Scores go into a data set, all else into a model repository."""
MODEL_FILES = (*output_checks.MODEL_FILES, "adapter_config.json", "pytorch_model*.bin", "*.gguf", "*.model", "LICENSE*")
"""Patterns of the files that make up a model; nothing else of its folder is uploaded as one."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
CARD = "README.md"
RESULT_PATTERNS = (f"{hub_results.EVAL_RESULTS}/*.yaml", f"{hub_results.EVERY_EVAL_EVER}/*.json")
"""Files that `prmbench card` wrote beside its card."""
MAX_TEXT_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class PushFile:
    """A file and its place in the repository."""

    path: str
    """Path in the repository."""
    size: int
    """In bytes."""
    source: str
    """Where its content comes from, for the reader of the list."""
    content: Path | bytes
    """The file, or its content where that was made or checked here."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An upload: one commit."""

    repo: str
    repo_type: Literal["model", "dataset"]
    revision: str
    private: bool
    create_pr: bool
    files: tuple[PushFile, ...]
    left_out: tuple[str, ...]
    """Files of a model's folder that are not uploaded."""
    message: str
    """Message of the commit."""


def make_plan(config: PushConfig, paths: Sequence[Path], token: str | None = None) -> Plan:
    """Returns what would be uploaded.

    Args:
        config: The options of `prmbench push`.
        paths: A model's folder, `<run-id>.json` of results, or folders and archives of results.
        token: The hub's token of this user, which must be in no file.

    Raises:
        UserError: An option, a folder or a run cannot be used; a run is dirty; or a file lies outside its folder, holds
            a secret or names a local path.
    """
    _check_repo(config.repo)
    folder, runs = _sort_paths(paths)
    parts = _parts(config, folder, runs)
    if config.revision is not None and not config.revision.strip("/ "):
        raise UserError("--revision is empty; name a branch")
    files: dict[str, PushFile] = {}
    if "scores" in parts:
        files = {file.path: file for file in _score_files(config, runs)}
    else:
        if folder is not None:
            files = {file.path: file for file in _folder_files(config, folder, parts)}
        if runs and {"card", "results"} & set(parts):
            files |= {file.path: file for file in _result_files(config, runs, parts, folder)}
    checked = tuple(_checked(file, token, folder) for _, file in sorted(files.items()))
    return Plan(
        repo=config.repo,
        repo_type="dataset" if "scores" in parts else "model",
        revision=config.revision or "main",
        private=config.private,
        create_pr=config.create_pr,
        files=checked,
        left_out=_left_out(folder, files) if folder else (),
        message=f"Add {' and '.join(filter(None, (', '.join(parts[:-1]), parts[-1])))} with prmbench",
    )


def summary(plan: Plan, url: str | None = None) -> dict[str, object]:
    """Returns the plan as JSON values, without contents; `url` is that of the commit once there is one."""
    values = {name: value for name, value in asdict(replace(plan, files=())).items() if name != "message"}
    files = [{"path": file.path, "bytes": file.size, "source": file.source} for file in plan.files]
    return {**values, "files": files, "uploaded": url is not None, "url": url}


def lines(plan: Plan) -> Iterator[str]:
    """Yields the lines that show a plan to a reader."""
    how = "as a pull request to" if plan.create_pr else "as one commit to"
    privacy = ", private" if plan.private else ""
    kind = "data set" if plan.repo_type == "dataset" else "model"
    yield f"{how} {kind} {plan.repo}, branch {plan.revision}{privacy}:"
    width = max(len(file.path) for file in plan.files)
    for file in plan.files:
        yield f"  {file.path:<{width}}  {_size(file.size):>9}  {file.source}"
    yield f"in all {len(plan.files)} files, {_size(sum(file.size for file in plan.files))}"
    if plan.left_out:
        yield f"not uploaded: {', '.join(plan.left_out)}"


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size >= 1000:  # noqa: PLR2004 - as the hub counts
            size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


# --- what is asked for ----------------------------------------------------------------------------------------


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not repo:
        raise UserError("--repo is missing: name the repository, ORG/NAME")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--repo {repo}: is no ORG/NAME of letters, digits and . _ - alone") from error
    if repo.count("/") != 1:
        raise UserError(f"--repo {repo}: name the user or organisation too: ORG/{repo}")


def _sort_paths(paths: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """The model's folder, or None, and the results among the paths."""
    folders: list[Path] = []
    runs: list[Path] = []
    for path in paths:
        if not reading.exists(path) and archives.archive_of(path) is None:
            raise UserError(f"{path}: no such file or folder")
        if path.name.endswith(archives.SUFFIX) and path.is_file():
            runs += result_files.result_paths(path)
        elif not path.is_dir():
            runs.append(path)
        elif any(any(path.glob(pattern)) for pattern in (*WEIGHTS, "config.json", "adapter_config.json")):
            folders.append(path)
        elif results := [file for file in sorted(path.glob("*.json")) if result_files.has_scores(file)]:
            runs += results
        else:
            raise UserError(f"{path}: holds no model and no results; name a trained model's folder or a <run-id>.json")
    if len(folders) > 1:
        raise UserError(f"push: {folders[0]} and {folders[1]} are two models; a repository holds one")
    return (folders[0] if folders else None), list(dict.fromkeys(runs))


def _parts(config: PushConfig, folder: Path | None, runs: Sequence[Path]) -> tuple[str, ...]:
    """What to upload, in the order of PARTS. Raises UserError where the paths do not have it."""
    has_results = bool(runs) or (folder is not None and any(any(folder.glob(pattern)) for pattern in RESULT_PATTERNS))
    has_card = bool(runs) or (folder is not None and reading.exists(folder / CARD))
    available = {"model": folder is not None, "card": has_card, "results": has_results, "scores": bool(runs)}
    requested = [part.strip() for value in config.what for part in value.split(",") if part.strip()]
    for part in requested:
        if part not in PARTS:
            raise UserError(f"--what {one_line(part)}: choose from {', '.join(PARTS)}")
        if not available[part]:
            needed = "a trained model's folder" if part == "model" else "the <run-id>.json of a run"
            raise UserError(f"--what {part}: the paths have none; name {needed} as well")
    parts = tuple(part for part in PARTS if (part in requested if requested else available[part] and part != "scores"))
    if "scores" in parts and len(parts) > 1:
        raise UserError("--what scores: goes into a data set of its own; push it by itself, to another --repo")
    return parts


def _check_clean(manifest: RunManifest, path: Path, allow_dirty: bool) -> None:
    if (reason := refusal(manifest)) and not allow_dirty:
        raise UserError(
            f"{path}: {reason}; run it again from a clean commit, or pass --allow-dirty to push it as it is"
        )


# --- files ----------------------------------------------------------------------------------------------------


def _folder_files(config: PushConfig, folder: Path, parts: Sequence[str]) -> Iterator[PushFile]:
    """The files of a model's folder. Raises UserError when it is incomplete, dirty, or a file leads outside it."""
    patterns: list[str] = []
    if "model" in parts:
        if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
            raise UserError(f"{folder}: has no weights; is the training finished?")
        _check_clean_model(folder, config.allow_dirty)
        if not reading.exists(folder / provenance.CARD_FILE):
            message = f"{folder}: has no prm.json, which says how it is read; `prmbench init {folder}` writes it"
            warnings.warn(message, Notice, stacklevel=2)
        patterns += MODEL_FILES
    patterns += [CARD] * ("card" in parts) + list(RESULT_PATTERNS) * ("results" in parts)
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if path.is_dir():
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: is a link that leads out of {folder}; put the file itself there")
        if path.name == provenance.CARD_FILE and config.ref_model is not None:
            yield _with_reference(path, config.ref_model)
        else:
            yield PushFile(path.relative_to(folder).as_posix(), path.stat().st_size, str(path), path)


def _with_reference(path: Path, ref_model: str) -> PushFile:
    """A prm.json that names its reference by a hub id. Raises UserError where it has no reference."""
    record = reading.read_json(path)
    if not isinstance(record, dict) or not record.get("ref_model"):
        raise UserError(f"--ref-model {ref_model}: {path} names no reference; drop the option")
    return _made(
        path.name, result_files.canonical_json({**record, "ref_model": ref_model}), f"{path}, with --ref-model"
    )


def _check_clean_model(folder: Path, allow_dirty: bool) -> None:
    """Raises UserError for a model whose prm.json says that it was trained from a dirty tree, or from no commit."""
    path = folder / provenance.CARD_FILE
    if allow_dirty or not reading.exists(path):
        return
    record = reading.read_json(path)
    if isinstance(record, dict) and "dirty" in record and (record["dirty"] is not False or not record.get("commit")):
        reason = "trained from a dirty tree" if record["dirty"] else "trained without a commit"
        raise UserError(f"{path}: {reason}; train again from a clean commit, or pass --allow-dirty to push it as it is")


def _left_out(folder: Path, files: dict[str, PushFile]) -> tuple[str, ...]:
    """What a model's folder has besides; folders with a slash at their end."""
    used = {name.split("/")[0] for name in files}
    return tuple(f"{p.name}/" if p.is_dir() else p.name for p in sorted(folder.iterdir()) if p.name not in used)


def _result_files(
    config: PushConfig, runs: Sequence[Path], parts: Sequence[str], folder: Path | None
) -> Iterator[PushFile]:
    """The card and the hub's result files, made from the runs. Raises UserError when a run is not the model's."""
    results = model_card.read_results(runs)
    for path, result in results.items():
        _check_clean(result.manifest, path, config.allow_dirty)
        weights = result.manifest.weights
        if folder is not None and "model" in parts and weights != provenance.weights_hash(folder):
            raise UserError(
                f"{path}: is a result of other weights than those of {folder}, or of another prm.json; "
                "give the same eval command again, or push them apart"
            )
    named = replace(config, name=config.name or config.repo)
    if "card" in parts:
        yield _made(CARD, model_card.card_text(named, list(results.values())), "made from the results")
    if "results" in parts:
        for name, text in model_card.result_texts(named, results).items():
            yield _made(name, text, "made from the results")


def _made(path: str, text: str, source: str) -> PushFile:
    content = text.encode()
    return PushFile(path, len(content), source, content)


def _score_files(config: PushConfig, runs: Sequence[Path]) -> Iterator[PushFile]:
    """The results with their scores, and the data set's card. Raises UserError."""
    manifests: list[RunManifest] = []
    for path in runs:
        run = tasks.read_verified(path)
        _check_clean(run.result.manifest, path, config.allow_dirty)
        packed = result_files.pack_scores(run.scores)
        manifest = replace(run.result.manifest, scores_sha256=result_files.sha256(packed))
        if manifest.run_id in [m.run_id for m in manifests]:
            raise UserError(f"push: two results are run {manifest.run_id}; keep one")
        manifests.append(manifest)
        name = f"{manifest.run_id}.json"
        yield _made(name, result_files.result_json(RunResult(manifest, run.result.rows)), str(path))
        scores = result_files.scores_path(Path(name)).name
        yield PushFile(scores, len(packed), str(result_files.scores_path(path)), packed)
    yield _made(CARD, _dataset_card(config, manifests), "made from the results")


def _dataset_card(config: PushConfig, manifests: Sequence[RunManifest]) -> str:
    """The card of a data set of scores, with one configuration for each run."""
    from huggingface_hub import DatasetCardData

    data_files = [
        {"config_name": m.run_id, "data_files": result_files.scores_path(Path(f"{m.run_id}.json")).name}
        for m in manifests
    ]
    metadata = DatasetCardData(
        license=config.license, tags=["process-reward-model", "prmbench"], configs=data_files
    ).to_yaml()
    rows = "\n".join(
        "| " + " | ".join(map(model_card.escaped, (m.run_id, m.model, m.benchmark, str(m.n)))) + " |" for m in manifests
    )
    title = model_card.escaped(flattened(config.name or config.repo))
    return f"""---
{metadata.strip()}
---

{model_card.MARKER}

# {title}: step scores

Scores of process reward models, one line for each trace: identifiers, labels and numbers, no text. Every metric can be
computed again from a run's two files: `prmbench compare`, `prmbench report --results FOLDER --recompute`.

| run | model | benchmark | traces |
|---|---|---|---:|
{rows}
"""


def _checked(file: PushFile, token: str | None, folder: Path | None) -> PushFile:
    """The file, with the content that was searched for secrets and local paths where it is text. Raises UserError."""
    content, source = file.content, Path(file.path)
    if isinstance(content, bytes):
        text = gzip.decompress(content) if source.suffix == ".gz" else content
        content_checks.check(file.path, text.decode(errors="replace"), token)
        return file
    if source.suffix == ".safetensors":
        content_checks.check(file.path, json.dumps(_safetensors_metadata(content), indent=0), token, folder)
    if not content_checks.is_text(source):
        return file
    raw = reading.read_bytes(content, max_bytes=MAX_TEXT_BYTES)
    content_checks.check(file.path, raw.decode(errors="replace"), token, folder)
    return replace(file, content=raw, size=len(raw))


def _safetensors_metadata(path: Path) -> dict[str, str]:
    """The free texts in the head of a file of weights. Raises UserError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as weights:
            return weights.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is no file of weights ({one_line(error)}); restore it") from error
