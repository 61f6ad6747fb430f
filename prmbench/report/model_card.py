"""`prmbench card`: writes a model card with the results of a model, also in the hub's `model-index` form.

Unless more is asked for, a card shows one number of each run, see headlines.py. Nothing is judged or uploaded. The
template is assets/model_card.md; hub_results.py has the files beside the card.
"""

from __future__ import annotations

import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmbench import config as options
from prmbench import tasks
from prmbench.config import CardConfig, EvalConfig, PublishConfig
from prmbench.config.distrl_options import DistRLConfig
from prmbench.core import archives, output_checks, reading, result_files, writing
from prmbench.core.records import MetricRow, RunManifest, RunResult, UserError
from prmbench.report import hub_results, run_table
from prmbench.report.headlines import (
    dataset_name,
    flattened,
    floors_of,
    headline,
    is_floor,
    is_in_sample,
    is_result,
    rounded,
)
from prmbench.tasks.published import unofficial_note
from prmbench.tasks.wording import hidden_floors

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MARKER = "<!-- written by prmbench card -->"
"""Marks a card that this command wrote."""
SHARED_FIELDS = ("model", "revision", "weights", "ref_model", "ref_revision", "ref_weights")
"""Manifest fields that all runs of one model share, where they are recorded."""
EXCLUDED_OPTIONS = ("out", "force", "dry_run", "resume", "save_every", "server", "tracker")
"""Options that do not affect the result."""


@dataclass(frozen=True, slots=True)
class Section:
    """The card's section on one run."""

    title: str
    table: str
    """The table as shown on a terminal."""
    facts: tuple[tuple[str, str], ...]
    command: str
    """Empty when no command gives such a run."""
    fence: str
    """Code fence for the table and the command, longer than any run of backticks in them."""
    rows: tuple[tuple[str, ...], ...]
    """All rows of the run under the protocols shown; empty in a card of one number per run."""
    left_out: int
    """How many numbers of the run the card does not show."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card, and the files that were written: the card's first; none without `--out`."""

    text: str
    written: tuple[Path, ...]


def card(config: CardConfig, runs: Sequence[Path]) -> str:
    """Returns the model card of the runs' common model; see `write_card`."""
    return write_card(config, runs).text


def write_card(config: CardConfig, runs: Sequence[Path]) -> Card:
    """Makes the model card of the runs' common model, and writes it and the hub's result files if `--out` is given.

    Args:
        config: The options of `prmbench card`.
        runs: The `<run-id>.json` of the runs.

    Raises:
        UserError: The runs are of several models, or a file may not be written.
    """
    reads = [file for run in runs for file in result_files.run_paths(run)]
    if config.out is not None:
        output_checks.check_outputs([config.out], config, reads, force=config.force)
    results = read_results(runs)
    text = card_text(config, list(results.values()))
    if config.out is None:
        return Card(text, ())
    files = {config.out: text}
    if not config.card_only:
        files |= {config.out.parent / name: content for name, content in result_texts(config, results).items()}
    output_checks.check_outputs(files, config, reads, force=config.force)
    for path, content in files.items():
        writing.write_atomic(path, content)
    return Card(text, tuple(files))


def read_results(runs: Sequence[Path]) -> dict[Path, RunResult]:
    """Reads the results of one model by path, and checks that their numbers follow from their scores.

    Raises:
        UserError: There is no run, one cannot be read or was altered, or they are of several models.
    """
    if not runs:
        raise UserError("card: give the <run-id>.json of at least one run")
    stored: dict[Path, RunResult] = {}
    for path in runs:
        result = tasks.read_verified(path, resampled=True).result
        if result not in stored.values():  # a path may be given twice
            stored[path] = result
    _check_one_model([result.manifest for result in stored.values()], runs)
    return stored


def card_text(config: PublishConfig, results: Sequence[RunResult]) -> str:
    """Returns the text of the card, metadata first. Raises UserError if no run has a protocol that is asked for."""
    shown = shown_results(config, results)
    numbers = [shown_rows(config, result) for result in shown]
    return f"---\n{_metadata(config, shown, numbers).strip()}\n---\n\n{_body(config, results, shown)}"


def result_texts(config: PublishConfig, results: Mapping[Path, RunResult]) -> dict[str, str]:
    """Returns the hub's files on the results, by their paths in a model repository."""
    shown = shown_results(config, list(results.values()))
    published = [
        hub_results.PublishedRun(result, tuple(shown_rows(config, result)), _recorded_at(path, result.manifest))
        for path, result in zip(results, shown, strict=True)
    ]
    return hub_results.files(config, published)


def _recorded_at(path: Path, manifest: RunManifest) -> int:
    """When the result was recorded, in Unix seconds: the time of its file where an old one does not say."""
    if manifest.finished_at is not None:
        return manifest.finished_at
    info = reading.lstat(archives.archive_of(path) or path)
    return 0 if info is None else int(info.st_mtime)


def shown_results(config: PublishConfig, results: Sequence[RunResult]) -> list[RunResult]:
    """Returns the results with the rows of the protocols that a card shows, and the floors.

    These are the protocols asked for where a run has one of them, else the one of its main number; with
    `--all-protocols` all that were not tuned on the judged traces.
    """
    wanted = config.protocol
    available = list(dict.fromkeys(r.protocol for result in results for r in result.rows if not is_floor(r)))
    for name in wanted:
        if name not in available:
            raise UserError(f"--protocol {name}: the runs have {', '.join(available)}")
    return [replace(result, rows=tuple(_rows_to_show(result, wanted, config.all_protocols))) for result in results]


def shown_rows(config: PublishConfig, result: RunResult) -> list[MetricRow]:
    """Returns the rows of a result that become numbers of the metadata: its main one, or all that it shows."""
    if not _is_brief(config, result):
        return [row for row in result.rows if row.value is not None and is_result(row)]
    main = headline(result)
    return [] if main is None else [main]


def _is_brief(config: PublishConfig, result: RunResult) -> bool:
    """Whether the card has only the main number of a run: no protocol of its was asked for."""
    return not config.all_protocols and not any(row.protocol in config.protocol for row in result.rows)


def _rows_to_show(result: RunResult, wanted: Sequence[str], all_protocols: bool) -> list[MetricRow]:
    present = {r.protocol for r in result.rows if r.protocol in wanted}
    main = None if all_protocols else headline(result)
    if not present and main is not None:
        present = {main.protocol}
    task = tasks.find_task(result.manifest.task)
    hidden = hidden_floors((r.protocol for r in result.rows), present) if present else ()

    def is_shown(row: MetricRow) -> bool:
        if is_floor(row):
            return row.protocol not in hidden
        return row.protocol in present if present else not is_in_sample(task, row)

    return list(filter(is_shown, result.rows))


def _check_one_model(manifests: Sequence[RunManifest], paths: Sequence[Path]) -> None:
    """Raises UserError on runs of several models, or on different results with the same id."""
    ids = Counter((m.benchmark, m.task, m.run_id) for m in manifests)
    for (benchmark, _, name), count in ids.items():
        if count > 1:
            raise UserError(
                f"card: {count} unlike results are run {flattened(name)} of {flattened(benchmark)}; keep one"
            )
    for name in SHARED_FIELDS:
        values = list(dict.fromkeys(value for m in manifests if (value := getattr(m, name)) is not None))
        if len(values) > 1:
            raise UserError(
                f"card: {', '.join(p.name for p in paths)} differ in {name.replace('_', ' ')} "
                f"({flattened(values[0])} and {flattened(values[1])}); a card is about one model"
            )


# --- the metadata -------------------------------------------------------------------------------------------


def _metadata(config: PublishConfig, results: Sequence[RunResult], numbers: Sequence[Sequence[MetricRow]]) -> str:
    """The card's YAML metadata, with a `model-index` of the numbers of each result."""
    from huggingface_hub import ModelCardData

    runs = Counter(_dataset_type(r.manifest) for r in results)

    def split(m: RunManifest) -> str | None:
        return m.run_id if runs[_dataset_type(m)] > 1 else None

    card_data = ModelCardData(
        license=config.license,
        tags=["process-reward-model", "prmbench"],
        model_name=flattened(_name(config, results)),
        eval_results=[
            entry
            for result, rows in zip(results, numbers, strict=True)
            for entry in eval_results(result, rows, split(result.manifest))
        ],
    )
    return str(card_data.to_yaml())


def eval_results(result: RunResult, rows: Sequence[MetricRow], split: str | None = None) -> Iterator[EvalResult]:
    """Yields rows of a run for the `model-index`; protocol, interval and floors are in `metric_args`.

    `split` distinguishes runs on one dataset, since the hub merges results with the same dataset.
    """
    from huggingface_hub import EvalResult

    manifest = result.manifest
    for row in rows:
        metric_args: dict[str, Any] = {
            "protocol": flattened(row.protocol),
            "lo": rounded(row.lo),
            "hi": rounded(row.hi),
        }
        metric_args |= {"n": row.n, "unscored": row.unscored or None, "note": flattened(row.note) or None}
        yield EvalResult(
            task_type="text-generation" if tasks.find_task(manifest.task).reads_outcomes else "text-classification",
            task_name=tasks.find_task(manifest.task).title,
            dataset_type=flattened(_dataset_type(manifest)),
            dataset_name=flattened(dataset_name(manifest)),
            dataset_config=flattened(row.subset),
            dataset_split=split,
            dataset_revision=None if manifest.data_revision is None else flattened(manifest.data_revision),
            dataset_args={
                "version": manifest.benchmark_version,
                "sha256": flattened(manifest.benchmark_hash),
                "run": manifest.run_id,
            },
            metric_type=flattened(row.metric),
            metric_name=flattened(f"{row.metric}, {row.protocol}"),
            metric_value=rounded(row.value),
            metric_args=metric_args | {"floors": floors_of(row, result.rows) or None},
        )


def _dataset_type(m: RunManifest) -> str:
    """The hub id of the data; for local files the name of the benchmark."""
    return m.data_source if "/" in m.data_source else dataset_name(m)


# --- the text -----------------------------------------------------------------------------------------------


def _name(config: PublishConfig, results: Sequence[RunResult]) -> str:
    return config.name or results[0].manifest.name or results[0].manifest.model


def _body(config: PublishConfig, results: Sequence[RunResult], shown: Sequence[RunResult]) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(  # Markdown: foreign texts go through escaped, blocks of code through _fence
        loader=PackageLoader("prmbench", "assets"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    identity = [(label, value) for label, value in _identity([r.manifest for r in results]) if value]
    sections = [
        _section(result, len(full.rows), _is_brief(config, full)) for full, result in zip(results, shown, strict=True)
    ]
    template = environment.get_template("model_card.md")
    return template.render(marker=MARKER, name=escaped(_name(config, results)), identity=identity, runs=sections)


def _identity(manifests: Sequence[RunManifest]) -> Iterator[tuple[str, str]]:
    def joined(name: str) -> str:
        return escaped(", ".join(dict.fromkeys(str(v) for m in manifests if (v := getattr(m, name)) not in (None, ""))))

    yield from ((name, joined(name)) for name in ("model", "revision"))
    yield "SHA-256 of the weights", joined("weights")
    yield "read by", joined("backend")
    yield "input format", joined("input_format")
    judged = [m for m in manifests if tasks.find_task(m.task).has_threshold and m.kind != "verdict"]
    yield "a step whose score equals the threshold", ", ".join(dict.fromkeys(m.tie for m in judged))
    yield "reference", joined("ref_model")
    yield "revision of the reference", joined("ref_revision")
    yield "beta", joined("beta")
    yield "trained from", joined("signal")
    yield "trained on", escaped(", ".join(dict.fromkeys(name for m in manifests for name in m.trained_on)))


def _section(result: RunResult, rows: int, is_brief: bool) -> Section:
    m = result.manifest
    table, line = _terminal(result), command(m)
    return Section(
        title=escaped(f"{dataset_name(m)}: {tasks.find_task(m.task).title}"),
        table=table,
        facts=tuple((label, escaped(value)) for label, value in _facts(m) if value),
        command=line,
        fence=_fence(table + line),
        rows=() if is_brief else tuple(_cells(row) for row in result.rows),
        left_out=rows - (1 if is_brief else len(result.rows)),
    )


def _terminal(result: RunResult) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=80, color_system=None, legacy_windows=False).print(run_table(result))
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().split("\n"))


def _facts(m: RunManifest) -> Iterator[tuple[str, str]]:
    yield "data", f"{m.data_source or m.benchmark}{f' at {m.data_revision}' if m.data_revision else ''}"
    yield "benchmark", f"{m.benchmark}, version {m.benchmark_version}, SHA-256 {m.benchmark_hash}"
    yield "traces", f"{m.n} ({', '.join(m.subsets)})"
    yield "scored by", f"prmbench {m.packages.get('prmbench', '(unknown version)')}, {_code(m)}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in m.packages.items() if name != "prmbench")
    yield "ran on", ", ".join(filter(None, (m.hardware, m.device, m.dtype, m.engine if m.engine != "none" else "")))
    yield "reading", unofficial_note(m)
    yield "run", f"{m.run_id}, seed {m.seed}, {m.replicates} bootstrap replicates"


def _code(m: RunManifest) -> str:
    if m.commit is None:
        return "no commit recorded"
    state = {True: " with uncommitted changes", None: ", not known whether changed", False: ""}[m.dirty]
    return f"{'' if m.commit.startswith('wheel') else 'commit '}{m.commit}{state}"


def _cells(row: MetricRow) -> tuple[str, ...]:
    value, lo, hi = ("–" if x is None else f"{x:.4f}" for x in (row.value, row.lo, row.hi))
    interval = f"[{lo}, {hi}]" if row.lo is not None and row.hi is not None else "–"
    cells = (row.subset, row.protocol, row.metric, value, interval, str(row.n), str(row.unscored), row.note)
    return tuple(escaped(cell) for cell in cells)


SPECIAL = re.compile(r"[\\`*\[\]<>|~$&!#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.|@(?=[\w-]+\.)")
"""What could begin something else than text in the hub's Markdown: code, emphasis, a link, HTML, mathematics, a cell, a
heading. Single underscores within words cannot; full stops, colons and at signs only within addresses."""


def escaped(text: str) -> str:
    """Returns text as Markdown on one line: special characters become numeric references, never markup."""
    return SPECIAL.sub(lambda match: f"&#{ord(match[0])};", flattened(text))


def _fence(text: str) -> str:
    """A code fence that the text cannot close."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


# --- the command --------------------------------------------------------------------------------------------


def command(m: RunManifest) -> str:
    """Returns the command line that reproduces a run, from its recorded options; empty if there is none.

    Results know paths by their last part, so that these have `PATH/` before them.
    """
    config_type: type[EvalConfig | DistRLConfig] = DistRLConfig if m.task == "distrl" else EvalConfig
    defaults = {f.name: f.default for f in fields(config_type)}
    recorded = {name: value for name, value in m.config.items() if name in defaults and name not in EXCLUDED_OPTIONS}
    if not recorded.get("model") and not recorded.get("data"):
        return ""
    try:
        options_json = options.to_json(options.from_mapping(config_type, recorded, m.run_id))
    except (UserError, ValueError, OSError):  # a value that is no option's, no address, or no name of a file
        return ""
    benchmark = options_json["benchmark"] if config_type is EvalConfig else m.benchmark
    is_own_data = options_json["data"] is not None and m.data_source == options_json["data"]
    if benchmark != m.benchmark and ":" not in benchmark and not is_own_data:
        return ""  # traces of the caller, which no option names
    options_json |= {name: getattr(m, name) for name in ("revision", "ref_revision") if getattr(m, name) is not None}
    changed = {
        name: options_json[name]
        for name in defaults
        if name not in EXCLUDED_OPTIONS and _differs(options_json, defaults, name)
    }
    if changed.get("engine") == "hf" and m.device == "cpu":
        del changed["engine"]  # which `auto` is there
    has_files = m.backend != "baseline" and changed.get("engine") != "openai"
    for name in ("data", "model", "ref_model") if has_files else ("data",):
        if "/" not in (changed.get(name) or "/"):  # the last part of a path: no hub id, which is ORG/NAME
            changed[name] = f"PATH/{changed[name]}"
    base_command = ["prmbench", "train-distrl" if m.task == "distrl" else "eval"]
    return shlex.join(base_command + [part for name, value in changed.items() for part in _flag(name, value)])


def _differs(recorded: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> bool:
    default = defaults[name]
    return bool(recorded[name] != (list(default) if isinstance(default, tuple) else default))


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if name == "base_url":
        return ["--base-url", "URL"]
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = value if isinstance(value, list) else [value]
    return [part for item in values for part in (f"--{flag}", str(item))]
