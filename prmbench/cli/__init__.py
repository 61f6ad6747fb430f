"""The command line. Options are fields of the dataclasses in config; commands import what they need when they run."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import prmbench
from prmbench import config as options
from prmbench.config import cli_options
from prmbench.config.distrl_options import DistRLConfig
from prmbench.core.progress import job_bars, progress_bar, steps_bar
from prmbench.core.redaction import one_line

if TYPE_CHECKING:
    from prmbench.core.records import MetricRow
    from prmbench.core.result_files import Run

app = typer.Typer(
    name="prmbench",
    help="Train and evaluate process reward models: every number with its protocol, interval and chance floors.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
FAILED = 1
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"prmbench {prmbench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


command = partial(cli_options.command, app)
"""Registers a command of this app, with an option for every field of a dataclass."""


# --- commands ------------------------------------------------------------------------------------------------


@command(options.EvalConfig)
def eval_(config: options.EvalConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Evaluate a PRM (step F1, best-of-N, calibration) or a policy: every protocol, with intervals and floors."""
    from prmbench import evaluation, tasks

    if config.dry_run:
        _print_mapping(evaluation.dry_run(config), json_)
        return
    with progress_bar(quiet, "scoring") as progress:
        run = evaluation.evaluate(config, progress)
    if run is None:
        return
    protocols = set(tasks.resolve_protocols(run.result.manifest, config.protocol))
    rows = run.result.rows
    if protocols:  # model-free baselines are always shown, since an F1 means little without them
        rows = tuple(r for r in rows if r.protocol in protocols or r.protocol.startswith("floor/"))
    elif not json_:  # the table leaves out these long names; the file has them
        rows = tuple(r for r in rows if "calibrated_in_sample" not in r.protocol)
    _print_run(run, rows, json_, quiet)


@command(options.ScoreConfig)
def score(config: options.ScoreConfig, quiet: Quiet = False) -> None:
    """Score your own solutions, no label needed: step scores to a jsonl file."""
    from prmbench import evaluation

    if config.dry_run:
        _print_mapping(evaluation.dry_run(config), as_json=False)
        return
    with progress_bar(quiet, "scoring") as progress:
        path = evaluation.score(config, progress)
    if path is not None and not quiet:
        typer.echo(f"scores: {path}", err=True)


@command(options.RolloutConfig)
def rollout(config: options.RolloutConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Sample completions for prompts and verify their answers: a rollouts file for training and evaluation."""
    from prmbench.sampling import rollout as sampling

    if config.dry_run:
        _print_mapping(sampling.dry_run(config), json_)
        return
    with progress_bar(quiet, "sampling") as progress:
        path = sampling.run_rollout(config, progress)
    if path is None:
        return
    if json_:
        typer.echo(json.dumps({"path": str(path), **sampling.read_counts(path)}))
        return
    if not quiet:
        typer.echo("\n".join(f"{name}: {value}" for name, value in sampling.read_counts(path).items()))
    typer.echo(f"rollouts: {path}")


@command(options.TrainConfig)
def train_sft(config: options.TrainConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Fine-tune a policy on the right completions of a rollouts file."""
    _train(config, json_, quiet)


@command(options.TrainRMConfig)
def train_rm(config: options.TrainRMConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Train a reward model from outcome labels (or step labels); `eval --model OUT` then needs no flags."""
    _train(config, json_, quiet)


def _train(config: options.TrainConfig, json_: bool, quiet: bool) -> None:
    from prmbench.training import train

    if config.dry_run:
        _print_mapping(train.dry_run(config), json_)
        return
    with progress_bar(quiet, "training") as progress:
        trained = train.train(config, progress)
    if trained is None:
        return
    if json_ or not quiet:
        _print_mapping(trained, json_)
    if not json_:
        typer.echo(f"{'model' if trained.fresh else 'finished before, nothing done'}: {trained.out}")


@command(DistRLConfig)
def train_distrl(config: DistRLConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Fine-tune a policy with prefix-value rewards: DistRL, GRPO and the other arms of one loop."""
    from prmbench.rl import distrl

    if config.dry_run:
        _print_mapping(distrl.dry_run(config), json_)
        return
    with steps_bar(quiet) as progress:
        trained = distrl.train_distrl(config, progress)
    if trained is None:
        return
    if json_ or not quiet:
        _print_mapping(trained, json_)
    if trained.result is not None and not json_ and not quiet:
        from prmbench import report, tasks

        result = tasks.read_verified(trained.result).result
        _console().print(report.run_table(result, result.rows))
    if not json_:
        typer.echo(f"{'policy' if trained.fresh else 'finished before, nothing done'}: {trained.out}")


@command(options.CompareConfig)
def compare(
    config: options.CompareConfig,
    first: Annotated[Path, typer.Argument(help="<run-id>.json of the first run.", readable=False)],
    second: Annotated[Path, typer.Argument(help="<run-id>.json of the second run.", readable=False)],
    json_: Json = False,
) -> None:
    """Paired differences between two runs (second minus first), with intervals and p-values."""
    from prmbench import tasks

    _add_benchmarks(config.benchmark)
    a, b = tasks.read_verified(first), tasks.read_verified(second)
    pairs = tasks.pairs(a.result.manifest, b.result.manifest, config.protocol, config.against)
    rows = tasks.compare((a.result, a.scores), (b.result, b.scores), pairs)
    if json_:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    from prmbench import report

    _console().print(report.compare_table(rows))


@command(options.ReportConfig)
def report(config: options.ReportConfig) -> None:
    """Regenerate tables, figures and the HTML page from the results; --check only says what would change."""
    from prmbench import report as reporting
    from prmbench.studies.reporting.sections import SECTIONS

    _add_benchmarks(config.benchmark)
    text, local = None, config.data if str(config.data) != "hub" else None
    if config.data is not None:
        from prmbench import data

        text = data.texts(local)
    reads = () if local is None else (local,)
    formats = tuple(name.strip() for name in config.formats.split(",") if name.strip())
    done = reporting.report(
        config.results,
        config.out,
        data=text,
        check=config.check,
        recompute=config.recompute,
        reads=reads,
        sections=SECTIONS,
        formats=formats,
        quick=not config.benchmark,  # other processes would not know these
    )
    for line in done.faults:
        if config.check:
            typer.echo(line)
        else:
            cli_options.say("left out", line)
    for line in done.changed:
        typer.echo(line)
    if done.left_out:
        cli_options.say("note", done.left_out)
    if done.faults or (config.check and done.changed):
        raise typer.Exit(FAILED)


@command(options.CardConfig)
def card(
    config: options.CardConfig,
    runs: Annotated[
        list[Path], typer.Argument(help="<run-id>.json of one model's runs.", metavar="RUN...", readable=False)
    ],
) -> None:
    """Write a model card whose numbers the hub can read, each with its protocol, interval and floors."""
    from prmbench.report import model_card

    _add_benchmarks(config.benchmark)
    text = model_card.card(config, runs)
    typer.echo(f"card: {config.out}" if config.out else text)


@command(options.ConvertConfig)
def convert(
    config: options.ConvertConfig,
    data: Annotated[Path, typer.Argument(help="File or folder of step-labelled solutions.", readable=False)],
    json_: Json = False,
) -> None:
    """Turn PRM800K, Math-Shepherd or TRL's stepwise rows into traces that `train-rm` and `eval` read."""
    from prmbench.data import converters

    _print_mapping(converters.convert(config, data), json_)


@command(options.ContaminationConfig)
def contamination(config: options.ContaminationConfig, json_: Json = False) -> None:
    """Find a benchmark's problems in training data by equal texts and shared n-grams, and its duplicates."""
    from prmbench.data import problems

    contamination_report = problems.report_contamination(config)
    text = json.dumps(asdict(contamination_report)) if json_ else "\n".join(problems.report_lines(contamination_report))
    typer.echo(text)


@command(options.DemoConfig)
def demo(config: options.DemoConfig, quiet: Quiet = False) -> None:
    """Run everything offline in minutes: a tiny policy, four reward models, their evaluation; or a real model."""
    if config.world == "smollm2":
        _demo_smollm2(config, quiet)
        return
    from prmbench.studies import demo as story

    with job_bars(quiet) as progress:
        result = story.demo(config, progress)
    if not quiet:
        _console().print(result.table)
    typer.echo(f"runs: {result.results}\nreport: {result.page}")


def _demo_smollm2(config: options.DemoConfig, quiet: bool) -> None:
    from prmbench.studies import demo_smollm2 as story

    with progress_bar(quiet, "scoring") as progress:
        baselines, model, page = story.demo(config, progress)
    rows = [r for r in model.result.rows if r.value is not None and "in_sample" not in r.protocol]
    _print_run(model, rows, as_json=False, quiet=quiet)
    if not quiet:
        typer.echo(f"model-free baselines, F1: {story.f1_summary(baselines)}")
    typer.echo(f"report: {page}")


@app.command()
def models(json_: Json = False) -> None:
    """List the known checkpoints: the input that each is given, and where its scores are read."""
    from prmbench.backends import listing

    for row in listing.describe_models():
        typer.echo(json.dumps(asdict(row)) if json_ else listing.format_row(row))


# --- output ----------------------------------------------------------------------------------------------------


def _add_benchmarks(names: Sequence[str]) -> None:
    """Makes the tasks of the user's own benchmarks known, whose results are read next."""
    if names:
        from prmbench.data import find_benchmark

        for name in names:
            find_benchmark(name)


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_run(run: Run, rows: Sequence[MetricRow], as_json: bool, quiet: bool) -> None:
    if as_json:
        result = run.result.to_json()
        typer.echo(json.dumps({**result, "rows": [asdict(row) for row in rows], "path": str(run.path)}))
        return
    if not quiet:
        from prmbench import report, tasks

        unscored = tasks.find_task(run.result.manifest.task).unscored
        _console().print(report.run_table(run.result, rows))
        for reason, count in Counter(t.unscored for t in run.scores if t.unscored).most_common(3):
            typer.echo(f"{unscored}: {count} x {one_line(reason)}")
        votes = [vote for trace in run.scores for vote in trace.verdicts]
        if None in votes:
            typer.echo(f"votes that could not be read: {votes.count(None)} of {len(votes)}")
    typer.echo(f"result: {run.path}")


def _print_mapping(record: Any, as_json: bool) -> None:
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(record).items()}
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        entries = "".join(f"\n  {entry}" for entry in value) if isinstance(value, tuple) else None
        typer.echo(f"{name}: {value if entries is None else entries or 'none'}")


def main() -> None:
    """Run the command line: the entry point of `prmbench`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # characters that the terminal cannot show must not end a command
    try:
        app()
    except OSError as error:  # e.g. standard output is a file on a full disk
        cli_options.say("error", error.strerror or error)
        sys.exit(cli_options.BAD_INPUT)
