"""`prmbench card`: the model card of an evaluated model, with its numbers in the hub's `model-index` form.

Judges nothing and uploads nothing: it tells what the results say. The text is assets/model_card.md.
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
"""In a card of ours."""
SAME = ("model", "revision", "weights", "ref_model", "ref_revision", "ref_weights")
"""What runs of one model have in common, where they say it."""
PICKS = ("best_of", "weighted_vote")
"""Metrics of picking one among N: their floors are the accuracy of a blind pick, a majority@N and pass@N."""
NOT_RESULTS = ("threshold", "mdd", "drop_mdd", "p_value", "reliability")
"""Metrics that say how a result came about, or are points of a plot: in the table, not in the metadata."""
IN_SAMPLE = ("/calibrated_in_sample", "/oracle")
NOT_OPTIONS = ("out", "force", "dry_run", "resume", "save_every", "server", "tracker")
"""What a command says of the machine, not of the result."""
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Section:
    """What the card says of one run."""

    title: str
    table: str
    """As the terminal shows it."""
    facts: tuple[tuple[str, str], ...]
    command: str
    """Empty when no command gives such a run."""
    fence: str
    """What stands around the table and the command, which hold foreign names."""
    rows: tuple[tuple[str, ...], ...]


def card(config: CardConfig, runs: Sequence[Path]) -> str:
    """The card of the model that all these runs are of; written to `--out` when that is given.

    Raises UserError on runs of several models, and where `--out` may not be written.
    """
    if not runs:
        raise UserError("card: give the <run-id>.json of at least one run")
    if config.out is not None:
        output_checks.check_outputs(
            [config.out], config, [file for run in runs for file in result_files.run_paths(run)], force=config.force
        )
    read: list[RunResult] = []
    for path in runs:
        result = tasks.read_verified(path, resampled=True).result
        if result not in read:  # a path may be given twice
            read.append(result)
    _check_same([result.manifest for result in read], runs)
    results = _narrowed(read, config.protocol)
    text = f"---\n{_metadata(config, results).strip()}\n---\n\n{_body(config, results)}"
    if config.out is not None:
        writing.write_atomic(config.out, text)
    return text


def _narrowed(results: Sequence[RunResult], wanted: Sequence[str]) -> list[RunResult]:
    """With the protocols wanted, where a run has one; else all but those tuned on the traces they are judged by."""
    known = list(dict.fromkeys(r.protocol for result in results for r in result.rows if not _is_floor(r)))
    for name in wanted:
        if name not in known:
            raise UserError(f"--protocol {name}: the runs have {', '.join(known)}")
    return [replace(result, rows=tuple(_told(result.rows, wanted))) for result in results]


def _told(rows: Sequence[MetricRow], wanted: Sequence[str]) -> list[MetricRow]:
    mine = {r.protocol for r in rows if r.protocol in wanted}
    return [r for r in rows if _is_floor(r) or (r.protocol in mine if mine else not _is_in_sample(r))]


def _is_in_sample(row: MetricRow) -> bool:
    return any(rule in row.protocol for rule in IN_SAMPLE)


def _check_same(manifests: Sequence[RunManifest], paths: Sequence[Path]) -> None:
    """Raises UserError on runs of several models, or of several contents under one id."""
    ids = Counter((m.benchmark, m.task, m.run_id) for m in manifests)
    for (benchmark, _, name), times in ids.items():
        if times > 1:
            raise UserError(f"card: {times} unlike results are run {_flat(name)} of {_flat(benchmark)}; keep one")
    for name in SAME:
        found = list(dict.fromkeys(value for m in manifests if (value := getattr(m, name)) is not None))
        if len(found) > 1:
            raise UserError(
                f"card: {', '.join(p.name for p in paths)} differ in {name.replace('_', ' ')} "
                f"({_flat(found[0])} and {_flat(found[1])}); a card is about one model"
            )


# --- the metadata -------------------------------------------------------------------------------------------


def _metadata(config: CardConfig, results: Sequence[RunResult]) -> str:
    """YAML with a `model-index`."""
    from huggingface_hub import ModelCardData

    runs = Counter(_dataset_type(r.manifest) for r in results)

    def split(m: RunManifest) -> str | None:
        return m.run_id if runs[_dataset_type(m)] > 1 else None

    told = ModelCardData(
        license=config.license,
        tags=["process-reward-model", "prmbench"],
        model_name=_flat(_name(config, results)),
        eval_results=[found for result in results for found in eval_results(result, split(result.manifest))],
    )
    return str(told.to_yaml())


def eval_results(result: RunResult, split: str | None = None) -> Iterator[EvalResult]:
    """Every number of a run that is a result of the model's; protocol, interval and floors are its `metric_args`.

    `split` tells runs on one dataset apart, since the hub shows what has the same dataset as one.
    """
    from huggingface_hub import EvalResult

    m = result.manifest
    for row in result.rows:
        if _is_floor(row) or row.value is None or row.metric.startswith(NOT_RESULTS):
            continue
        about: dict[str, Any] = {"protocol": _flat(row.protocol), "lo": _rounded(row.lo), "hi": _rounded(row.hi)}
        about |= {"n": row.n, "unscored": row.unscored or None, "note": _flat(row.note) or None}
        yield EvalResult(
            task_type="text-generation" if tasks.find_task(m.task).reads_outcomes else "text-classification",
            task_name=tasks.find_task(m.task).title,
            dataset_type=_flat(_dataset_type(m)),
            dataset_name=_flat(_dataset(m)),
            dataset_config=_flat(row.subset),
            dataset_split=split,
            dataset_revision=None if m.data_revision is None else _flat(m.data_revision),
            dataset_args={"version": m.benchmark_version, "sha256": _flat(m.benchmark_hash), "run": m.run_id},
            metric_type=_flat(row.metric),
            metric_name=_flat(f"{row.metric}, {row.protocol}"),
            metric_value=_rounded(row.value),
            metric_args=about | {"floors": _floors(row, result.rows) or None},
        )


def _floors(row: MetricRow, rows: Sequence[MetricRow]) -> dict[str, float | None]:
    """What chance or a shortcut reaches where the row stands."""
    metrics = {row.metric}
    how, _, n = row.metric.partition("@")
    if how in PICKS:
        metrics = {"accuracy", f"majority@{n}", f"pass@{n}"}
    beside = [r for r in rows if _is_floor(r) and r.subset == row.subset and r.metric in metrics]
    return {r.protocol: _rounded(r.value) for r in beside if r.value is not None}


def _is_floor(row: MetricRow) -> bool:
    return row.protocol.startswith("floor/")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _dataset_type(m: RunManifest) -> str:
    """The hub id of the data; of local files, which have none, the name of the benchmark."""
    return m.data_source if "/" in m.data_source else _dataset(m)


def _dataset(m: RunManifest) -> str:
    """The benchmark's name; with the task's where several tasks share it."""
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
    identity = [(what, value) for what, value in _identity([r.manifest for r in results]) if value]
    sections = [_section(result) for result in results]
    template = environment.get_template("model_card.md")
    return template.render(marker=MARKER, name=_escaped(_name(config, results)), identity=identity, runs=sections)


def _identity(manifests: Sequence[RunManifest]) -> Iterator[tuple[str, str]]:
    def said(name: str) -> str:
        return _escaped(
            ", ".join(dict.fromkeys(str(v) for m in manifests if (v := getattr(m, name)) not in (None, "")))
        )

    yield from ((name, said(name)) for name in ("model", "revision"))
    yield "SHA-256 of the weights", said("weights")
    yield "read by", said("backend")
    yield "input format", said("input_format")
    yield "reference", said("ref_model")
    yield "revision of the reference", said("ref_revision")
    yield "beta", said("beta")
    yield "trained from", said("signal")
    yield "trained on", _escaped(", ".join(dict.fromkeys(name for m in manifests for name in m.trained_on)))


def _section(result: RunResult) -> Section:
    m = result.manifest
    table, line = _terminal(result), command(m)
    return Section(
        title=_escaped(f"{_dataset(m)}: {tasks.find_task(m.task).title}"),
        table=table,
        facts=tuple((what, _escaped(value)) for what, value in _facts(m) if value),
        command=line,
        fence=_fence(table + line),
        rows=tuple(_cells(row) for row in result.rows),
    )


def _terminal(result: RunResult) -> str:
    from rich.console import Console

    page = io.StringIO()
    Console(file=page, width=80, color_system=None, legacy_windows=False).print(run_table(result))
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip().split("\n"))


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
    """A foreign text as Markdown that shows it, in one line: special characters by number, which is never markup."""
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", _flat(text))


def _flat(text: str) -> str:
    """In one line."""
    return " ".join(text.split())


def _fence(text: str) -> str:
    """Backticks that the text cannot close."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


# --- the command --------------------------------------------------------------------------------------------


def command(m: RunManifest) -> str:
    """The command line that gives this run, from its recorded options; empty when the options are of no command.

    Paths are told by their last part, as everywhere in results.
    """
    kind: type[EvalConfig | DistRLConfig] = DistRLConfig if m.task == "distrl" else EvalConfig
    defaults = {f.name: f.default for f in fields(kind)}
    told = {name: value for name, value in m.config.items() if name in defaults and name not in NOT_OPTIONS}
    if not told.get("model") and not told.get("data"):
        return ""
    try:
        known = options.to_json(options.from_mapping(kind, told, m.run_id))
    except (UserError, ValueError, OSError):  # a value that is no option's, no address, or no name of a file
        return ""
    if kind is EvalConfig and known["benchmark"] != m.benchmark and ":" not in known["benchmark"]:  # traces at hand
        return ""
    known |= {name: getattr(m, name) for name in ("revision", "ref_revision") if getattr(m, name) is not None}
    changed = {name: known[name] for name in defaults if name not in NOT_OPTIONS and _differs(known, defaults, name)}
    head = ["prmbench", "train-distrl" if m.task == "distrl" else "eval"]
    return shlex.join(head + [part for name, value in changed.items() for part in _flag(name, value)])


def _differs(known: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> bool:
    default = defaults[name]
    return bool(known[name] != (list(default) if isinstance(default, tuple) else default))


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if name == "base_url":
        return ["--base-url", "URL"]
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = value if isinstance(value, list) else [value]
    return [part for one in values for part in (f"--{flag}", str(one))]
