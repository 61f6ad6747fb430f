"""`prmbench card`: writes a model card with the results of a model, also in the hub's `model-index` form.

Nothing is judged or uploaded. The template is assets/model_card.md.
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
from prmbench.config import CardConfig, EvalConfig
from prmbench.config.distrl_options import DistRLConfig
from prmbench.core import output_checks, result_files, writing
from prmbench.core.records import MetricRow, RunManifest, RunResult, UserError
from prmbench.report import run_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MARKER = "<!-- written by prmbench card -->"
"""Marks a card that this command wrote."""
SHARED_FIELDS = ("model", "revision", "weights", "ref_model", "ref_revision", "ref_weights")
"""Manifest fields that all runs of one model share, where they are recorded."""
PICK_METRICS = ("best_of", "weighted_vote")
"""Metrics of picking one among N; their floors are the accuracy of a random pick, majority@N and pass@N."""
EXCLUDED_METRICS = ("threshold", "mdd", "drop_mdd", "p_value", "reliability")
"""Metrics that are no results of their own; they are in the table but not in the metadata."""
IN_SAMPLE = ("/calibrated_in_sample", "/oracle")
EXCLUDED_OPTIONS = ("out", "force", "dry_run", "resume", "save_every", "server", "tracker")
"""Options that do not affect the result."""
DIGITS = 6


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


def card(config: CardConfig, runs: Sequence[Path]) -> str:
    """Returns the model card of the runs' common model, and writes it to `--out` if given.

    Raises:
        UserError: The runs are of several models, or `--out` may not be written.
    """
    if not runs:
        raise UserError("card: give the <run-id>.json of at least one run")
    if config.out is not None:
        output_checks.check_outputs(
            [config.out], config, [file for run in runs for file in result_files.run_paths(run)], force=config.force
        )
    stored: list[RunResult] = []
    for path in runs:
        result = tasks.read_verified(path, resampled=True).result
        if result not in stored:  # a path may be given twice
            stored.append(result)
    _check_one_model([result.manifest for result in stored], runs)
    results = _with_protocols(stored, config.protocol)
    text = f"---\n{_metadata(config, results).strip()}\n---\n\n{_body(config, results)}"
    if config.out is not None:
        writing.write_atomic(config.out, text)
    return text


def _with_protocols(results: Sequence[RunResult], wanted: Sequence[str]) -> list[RunResult]:
    """The results with only the wanted protocols, if they have any; else without those tuned on the judged traces."""
    available = list(dict.fromkeys(r.protocol for result in results for r in result.rows if not _is_floor(r)))
    for name in wanted:
        if name not in available:
            raise UserError(f"--protocol {name}: the runs have {', '.join(available)}")
    return [replace(result, rows=tuple(_rows_of_protocols(result.rows, wanted))) for result in results]


def _rows_of_protocols(rows: Sequence[MetricRow], wanted: Sequence[str]) -> list[MetricRow]:
    present = {r.protocol for r in rows if r.protocol in wanted}
    return [r for r in rows if _is_floor(r) or (r.protocol in present if present else not _is_in_sample(r))]


def _is_in_sample(row: MetricRow) -> bool:
    return any(rule in row.protocol for rule in IN_SAMPLE)


def _check_one_model(manifests: Sequence[RunManifest], paths: Sequence[Path]) -> None:
    """Raises UserError on runs of several models, or on different results with the same id."""
    ids = Counter((m.benchmark, m.task, m.run_id) for m in manifests)
    for (benchmark, _, name), count in ids.items():
        if count > 1:
            raise UserError(
                f"card: {count} unlike results are run {_one_line(name)} of {_one_line(benchmark)}; keep one"
            )
    for name in SHARED_FIELDS:
        values = list(dict.fromkeys(value for m in manifests if (value := getattr(m, name)) is not None))
        if len(values) > 1:
            raise UserError(
                f"card: {', '.join(p.name for p in paths)} differ in {name.replace('_', ' ')} "
                f"({_one_line(values[0])} and {_one_line(values[1])}); a card is about one model"
            )


# --- the metadata -------------------------------------------------------------------------------------------


def _metadata(config: CardConfig, results: Sequence[RunResult]) -> str:
    """The card's YAML metadata, with a `model-index`."""
    from huggingface_hub import ModelCardData

    runs = Counter(_dataset_type(r.manifest) for r in results)

    def split(m: RunManifest) -> str | None:
        return m.run_id if runs[_dataset_type(m)] > 1 else None

    card_data = ModelCardData(
        license=config.license,
        tags=["process-reward-model", "prmbench"],
        model_name=_one_line(_name(config, results)),
        eval_results=[entry for result in results for entry in eval_results(result, split(result.manifest))],
    )
    return str(card_data.to_yaml())


def eval_results(result: RunResult, split: str | None = None) -> Iterator[EvalResult]:
    """Yields the results of a run for the `model-index`; protocol, interval and floors are in `metric_args`.

    `split` distinguishes runs on one dataset, since the hub merges results with the same dataset.
    """
    from huggingface_hub import EvalResult

    manifest = result.manifest
    for row in result.rows:
        if _is_floor(row) or row.value is None or row.metric.startswith(EXCLUDED_METRICS):
            continue
        metric_args: dict[str, Any] = {
            "protocol": _one_line(row.protocol),
            "lo": _rounded(row.lo),
            "hi": _rounded(row.hi),
        }
        metric_args |= {"n": row.n, "unscored": row.unscored or None, "note": _one_line(row.note) or None}
        yield EvalResult(
            task_type="text-generation" if tasks.find_task(manifest.task).reads_outcomes else "text-classification",
            task_name=tasks.find_task(manifest.task).title,
            dataset_type=_one_line(_dataset_type(manifest)),
            dataset_name=_one_line(_dataset(manifest)),
            dataset_config=_one_line(row.subset),
            dataset_split=split,
            dataset_revision=None if manifest.data_revision is None else _one_line(manifest.data_revision),
            dataset_args={
                "version": manifest.benchmark_version,
                "sha256": _one_line(manifest.benchmark_hash),
                "run": manifest.run_id,
            },
            metric_type=_one_line(row.metric),
            metric_name=_one_line(f"{row.metric}, {row.protocol}"),
            metric_value=_rounded(row.value),
            metric_args=metric_args | {"floors": _floors(row, result.rows) or None},
        )


def _floors(row: MetricRow, rows: Sequence[MetricRow]) -> dict[str, float | None]:
    """The floors of the row's subset and metric, by protocol."""
    metrics = {row.metric}
    metric, _, n = row.metric.partition("@")
    if metric in PICK_METRICS:
        metrics = {"accuracy", f"majority@{n}", f"pass@{n}"}
    floors = [r for r in rows if _is_floor(r) and r.subset == row.subset and r.metric in metrics]
    return {r.protocol: _rounded(r.value) for r in floors if r.value is not None}


def _is_floor(row: MetricRow) -> bool:
    return row.protocol.startswith("floor/")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _dataset_type(m: RunManifest) -> str:
    """The hub id of the data; for local files the name of the benchmark."""
    return m.data_source if "/" in m.data_source else _dataset(m)


def _dataset(m: RunManifest) -> str:
    """The benchmark's name, with the task's where several tasks share it."""
    shares_name = not tasks.find_task(m.task).has_board and m.task != m.benchmark
    return f"{m.benchmark}-{m.task}" if shares_name else m.benchmark


# --- the text -----------------------------------------------------------------------------------------------


def _name(config: CardConfig, results: Sequence[RunResult]) -> str:
    return config.name or results[0].manifest.model


def _body(config: CardConfig, results: Sequence[RunResult]) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(  # Markdown: foreign texts go through _escaped, blocks of code through _fence
        loader=PackageLoader("prmbench", "assets"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    identity = [(label, value) for label, value in _identity([r.manifest for r in results]) if value]
    sections = [_section(result) for result in results]
    template = environment.get_template("model_card.md")
    return template.render(marker=MARKER, name=_escaped(_name(config, results)), identity=identity, runs=sections)


def _identity(manifests: Sequence[RunManifest]) -> Iterator[tuple[str, str]]:
    def joined(name: str) -> str:
        return _escaped(
            ", ".join(dict.fromkeys(str(v) for m in manifests if (v := getattr(m, name)) not in (None, "")))
        )

    yield from ((name, joined(name)) for name in ("model", "revision"))
    yield "SHA-256 of the weights", joined("weights")
    yield "read by", joined("backend")
    yield "input format", joined("input_format")
    yield "reference", joined("ref_model")
    yield "revision of the reference", joined("ref_revision")
    yield "beta", joined("beta")
    yield "trained from", joined("signal")
    yield "trained on", _escaped(", ".join(dict.fromkeys(name for m in manifests for name in m.trained_on)))


def _section(result: RunResult) -> Section:
    m = result.manifest
    table, line = _terminal(result), command(m)
    return Section(
        title=_escaped(f"{_dataset(m)}: {tasks.find_task(m.task).title}"),
        table=table,
        facts=tuple((label, _escaped(value)) for label, value in _facts(m) if value),
        command=line,
        fence=_fence(table + line),
        rows=tuple(_cells(row) for row in result.rows),
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
    return tuple(_escaped(cell) for cell in cells)


SPECIAL = re.compile(r"[\\`*\[\]<>|~$&!#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.|@(?=[\w-]+\.)")
"""What could begin something else than text in the hub's Markdown: code, emphasis, a link, HTML, mathematics, a cell, a
heading. Single underscores within words cannot; full stops, colons and at signs only within addresses."""


def _escaped(text: str) -> str:
    """Escapes text for Markdown, on one line: special characters become numeric references, which are never markup."""
    return SPECIAL.sub(lambda match: f"&#{ord(match[0])};", _one_line(text))


def _one_line(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def _fence(text: str) -> str:
    """A code fence that the text cannot close."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


# --- the command --------------------------------------------------------------------------------------------


def command(m: RunManifest) -> str:
    """Returns the command line that reproduces a run, from its recorded options; empty if there is none.

    Paths are given by their last part, as everywhere in results.
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
