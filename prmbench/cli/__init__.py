"""The command line. Options are fields of the dataclasses in config; commands import what they need when they run."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import prmbench
from prmbench import config as options
from prmbench.config import cli_options
from prmbench.config.distrl_options import DistRLConfig
from prmbench.config.usage_errors import OneLineCommand, OneLineGroup
from prmbench.core.progress import job_bars, progress_bar, steps_bar
from prmbench.core.redaction import one_line

if TYPE_CHECKING:
    from prmbench.core.records import MetricRow
    from prmbench.core.result_files import Run
    from prmbench.report import Folders, Report

app = typer.Typer(
    name="prmbench",
    cls=OneLineGroup,
    help="Train and evaluate process reward models: every number with its protocol, interval and chance floors.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
FAILED = 1
FINISHED_BEFORE = "finished before, nothing done"
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel="Output")]
NoProgress = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel="Output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.", rich_help_panel="Output")]


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


def _benchmark_names() -> Iterable[str]:
    from prmbench.data.benchmarks import BENCHMARKS
    from prmbench.tasks import installed_benchmarks

    return (*BENCHMARKS, *(entry.name for entry in installed_benchmarks()))


def _model_names() -> Iterable[str]:
    from prmbench.backends import BASELINES, cards

    return (*BASELINES, *cards.MODELS)


def _backend_names() -> Iterable[str]:
    from prmbench.backends import BACKENDS

    return ("auto", *BACKENDS)


def _rendering_names() -> Iterable[str]:
    from prmbench.data.renderings import RENDERINGS

    return RENDERINGS


COMPLETIONS: cli_options.Completions = {
    "model": _model_names,
    "benchmark": _benchmark_names,
    "backend": _backend_names,
    "rendering": _rendering_names,
    "template": lambda: ("auto", "plain"),
    "device": lambda: ("auto", "cpu", "cuda", "balanced"),
    "formats": lambda: ("csv", "tex", "json"),
}
command = partial(cli_options.command, app, completions=COMPLETIONS)
"""Registers a command of this app, with an option for every field of a dataclass."""


# --- commands ------------------------------------------------------------------------------------------------


@command(options.EvalConfig)
def eval_(config: options.EvalConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Evaluate a PRM (step F1, best-of-N, calibration) or a policy: every protocol, with intervals and floors."""
    with progress_bar(quiet, "scoring") as progress:
        from prmbench import evaluation, tasks

        plan = evaluation.dry_run(config) if config.dry_run else None
        run = evaluation.evaluate(config, progress) if plan is None else None
    if plan is not None:
        _print_mapping(plan, json_)
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
    with progress_bar(quiet, "scoring") as progress:
        from prmbench import evaluation

        plan = evaluation.dry_run(config) if config.dry_run else None
        path = evaluation.score(config, progress) if plan is None else None
    if plan is not None:
        _print_mapping(plan, as_json=False)
    if path is not None and not quiet:
        typer.echo(f"scores: {path}", err=True)


@command(options.ServeConfig)
def serve(config: options.ServeConfig, quiet: Quiet = False) -> None:
    """Serve a PRM over HTTP: problem and steps in, step scores out, batched over requests."""
    from prmbench import serving

    if config.dry_run:
        typer.echo(json.dumps(serving.describe(config), indent=2))
        return
    if not serving.serve(config, quiet):
        cli_options.say("error", "stopped before every request was answered; use a longer --drain")
        os._exit(cli_options.STOPPED)  # the model may still be busy, and nobody waits for it


@command(options.InitConfig)
def init(
    config: options.InitConfig,
    folder: Annotated[Path, typer.Argument(help="Folder of a model.", metavar="DIR", readable=False)],
) -> None:
    """Write the prm.json that says how your checkpoint is read; `eval --model DIR` then needs no flags."""
    from prmbench.backends import init_card

    path, content = init_card.init(config, folder)
    typer.echo(f"{path}: {json.dumps(content, ensure_ascii=False)}")


@command(options.RolloutConfig)
def rollout(config: options.RolloutConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Sample completions for prompts and verify their answers: a rollouts file for training and evaluation."""
    with progress_bar(quiet, "sampling") as progress:
        from prmbench.sampling import rollout as sampling

        plan = sampling.dry_run(config) if config.dry_run else None
        path = sampling.run_rollout(config, progress) if plan is None else None
    if plan is not None:
        _print_mapping(plan, json_)
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
    with progress_bar(quiet, "training") as progress:
        from prmbench.training import train

        plan = train.dry_run(config) if config.dry_run else None
        trained = train.train(config, progress) if plan is None else None
    if plan is not None:
        _print_mapping(plan, json_)
    if trained is None:
        return
    if json_ or not quiet:
        _print_mapping(trained, json_)
    if not json_:
        typer.echo(f"{'model' if trained.fresh else FINISHED_BEFORE}: {trained.out}")


@command(DistRLConfig)
def train_distrl(config: DistRLConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Fine-tune a policy with prefix-value rewards: DistRL, GRPO and the other arms of one loop."""
    with steps_bar(quiet) as progress:
        from prmbench.rl import distrl

        plan = distrl.dry_run(config) if config.dry_run else None
        trained = distrl.train_distrl(config, progress) if plan is None else None
    if plan is not None:
        _print_mapping(plan, json_)
    if trained is None:
        return
    if json_ or not quiet:
        _print_mapping(trained, json_)
    if trained.result is not None and not json_ and not quiet:
        from prmbench import report, tasks

        result = tasks.read_verified(trained.result).result
        _console().print(report.run_table(result, result.rows))
    if not json_:
        typer.echo(f"{'policy' if trained.fresh else FINISHED_BEFORE}: {trained.out}")


@command(options.CompareConfig)
def compare(
    config: options.CompareConfig,
    first: Annotated[Path, typer.Argument(help="<run-id>.json of the first run.", readable=False)],
    second: Annotated[Path, typer.Argument(help="<run-id>.json of the second run.", readable=False)],
    json_: Json = False,
    quiet: NoProgress = False,
) -> None:
    """Paired differences between two runs (second minus first), with intervals and p-values."""
    with progress_bar(quiet, "comparing"):
        from prmbench import tasks
        from prmbench.tasks.comparison_verdicts import verdicts

        _add_benchmarks(config.benchmark)
        a, b = tasks.read_verified(first), tasks.read_verified(second)
        pairs = tasks.pairs(a.result.manifest, b.result.manifest, config.protocol, config.against)
        rows = tasks.compare((a.result, a.scores), (b.result, b.scores), pairs)
        judged = verdicts(rows, tasks.find_task(a.result.manifest.task))
    if json_:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows], "verdicts": [asdict(v) for v in judged]}))
        return
    from prmbench import report
    from prmbench.tasks.wording import model_name

    for which, run in (("first", a), ("second", b)):
        typer.echo(f"{which}: {model_name(run.result.manifest)}, run {run.result.manifest.run_id}")
    _console().print(report.compare_table(rows, judged))


@command(options.PowerConfig)
def power(
    config: options.PowerConfig,
    first: Annotated[
        Path, typer.Argument(help="A pilot: <run-id>.json, or a folder of runs over seeds.", readable=False)
    ],
    second: Annotated[
        Path | None, typer.Argument(help="The other side, where the pilot has it.", readable=False)
    ] = None,
    json_: Json = False,
    quiet: NoProgress = False,
) -> None:
    """How many problems or seeds a difference needs, from a pilot run, a pair, or folders of runs over seeds."""
    with progress_bar(quiet, "judging"):
        from prmbench.report import power as planning

        _add_benchmarks(config.benchmark)
        plan = planning.plan(config, first, second)
    typer.echo(json.dumps(asdict(plan)) if json_ else "\n".join(planning.lines(plan)))


@command(options.ReportConfig)
def report(config: options.ReportConfig, quiet: NoProgress = False) -> None:
    """Regenerate tables, figures and the HTML page from the results; --check only says what would change."""
    with progress_bar(quiet, "judging runs") as progress:
        from prmbench import report as reporting
        from prmbench.studies.reporting.sections import SECTIONS

        _add_benchmarks(config.benchmark)
        text, local = None, config.data if str(config.data) != "hub" else None
        if config.data is not None:
            from prmbench import data

            text = data.texts(local)
        formats = tuple(name.strip() for name in config.formats.split(",") if name.strip())
        reports = [
            (
                folders,
                reporting.report(
                    folders.results,
                    folders.out,
                    data=text,
                    check=config.check,
                    recompute=config.recompute,
                    reads=() if local is None else (local,),
                    sections=SECTIONS,
                    formats=formats,
                    quick=not config.benchmark,  # other processes would not know these
                    official=folders.is_official,
                    progress=progress,
                ),
            )
            for folders in reporting.choose_folders(config.results, config.out, config.check)
        ]
    for folders, done in reports:
        _print_report(folders, done, config.check, quiet)
    if any(done.faults or (config.check and done.changed) for _, done in reports):
        raise typer.Exit(FAILED)


def _print_report(folders: Folders, done: Report, check: bool, quiet: bool) -> None:
    from prmbench import tasks

    for line in done.faults:
        if check:
            typer.echo(line)
        else:
            cli_options.say("left out", line)
    for line in done.changed if check or folders.is_official or quiet else ():  # else the page's path says it
        typer.echo(line)
    if done.left_out:
        cli_options.say("note", done.left_out)
    if done.judged_again:
        cli_options.say("note", f"{done.judged_again} of {done.runs} runs have {tasks.JUDGED_AGAIN}")
    if not quiet and done.runs:
        count = f"{done.runs} run{'s' * (done.runs != 1)} in {folders.results}"
        target = f"compared with {folders.out}" if check else f"the page is {folders.out / 'report.html'}"
        cli_options.say("report", f"{count}; {target}")


@command(options.CardConfig)
def card(
    config: options.CardConfig,
    runs: Annotated[
        list[Path], typer.Argument(help="<run-id>.json of one model's runs.", metavar="RUN...", readable=False)
    ],
) -> None:
    """Write a model card and result files whose numbers the hub can read, with protocol, interval and floors."""
    from prmbench.report import model_card

    _add_benchmarks(config.benchmark)
    card = model_card.write_card(config, runs)
    if not card.written:
        typer.echo(card.text)
    for number, path in enumerate(card.written):
        typer.echo(f"{'results' if number else 'card'}: {path}")


@command(options.PushConfig)
def push(
    config: options.PushConfig,
    runs: Annotated[
        list[Path],
        typer.Argument(help="A trained model's folder, <run-id>.json, or both.", metavar="RUN...", readable=False),
    ],
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a model, its card, results or scores to the hub as one commit; without --yes only say what would go."""
    from prmbench.publishing import plan as plans
    from prmbench.publishing import upload

    _add_benchmarks(config.benchmark)
    token = upload.find_token()
    plan = plans.make_plan(config, runs, token)
    if not json_ and not quiet:
        typer.echo("\n".join(plans.lines(plan)))
    url = upload.upload(plan, token, force=config.force) if config.yes else None
    if json_:
        typer.echo(json.dumps(plans.summary(plan, url)))
    else:
        typer.echo(f"uploaded: {url}" if url else "nothing was uploaded; pass --yes to do it")


@command(options.ConvertConfig)
def convert(
    config: options.ConvertConfig,
    data: Annotated[Path, typer.Argument(help="File or folder of step-labelled solutions.", readable=False)],
    json_: Json = False,
    quiet: NoProgress = False,
) -> None:
    """Turn PRM800K, Math-Shepherd or TRL's stepwise rows into traces that `train-rm` and `eval` read."""
    with progress_bar(quiet, "converting"):
        from prmbench.data import converters

        conversion = converters.convert(config, data)
    _print_mapping(conversion, json_)


@command(options.VerifyConfig)
def verify(
    config: options.VerifyConfig,
    data: Annotated[Path, typer.Argument(help="File or folder of completions with reference answers.", readable=False)],
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put outcomes on completions from elsewhere: a rollouts file that `eval`, `train-rm` and `train-sft` read."""
    from prmbench.sampling import verify as verification

    with progress_bar(quiet, "verifying", "completions") as progress:
        verified = verification.verify(config, data, progress)
    if verified is None:
        return
    if json_ or not quiet:
        _print_mapping(verified, json_)


@command(options.ContaminationConfig)
def contamination(config: options.ContaminationConfig, json_: Json = False, quiet: NoProgress = False) -> None:
    """Find a benchmark's problems in training data by equal texts and shared n-grams, and its duplicates."""
    with progress_bar(quiet, "comparing texts"):
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
    with job_bars(quiet) as progress:
        from prmbench.studies import demo as story

        result = story.demo(config, progress)
    if not quiet:
        _console().print(result.table)
    typer.echo(f"runs: {result.results}\nreport: {result.page}")


def _demo_smollm2(config: options.DemoConfig, quiet: bool) -> None:
    with progress_bar(quiet, "scoring") as progress:
        from prmbench.studies import demo_smollm2 as story

        baselines, model, page = story.demo(config, progress)
    rows = [r for r in model.result.rows if r.value is not None and "in_sample" not in r.protocol]
    _print_run(model, rows, as_json=False, quiet=quiet)
    if not quiet:
        typer.echo(f"model-free baselines, F1: {story.f1_summary(baselines)}")
    typer.echo(f"report: {page}")


@app.command(cls=OneLineCommand)
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Checkpoint to describe in full: its input, where its score is read, its own label.",
            metavar="[MODEL]...",
            autocompletion=lambda incomplete: [m for m in _model_names() if m.startswith(incomplete)],
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """List the known checkpoints, or describe some: the input that each is given, and where its scores are read."""
    from prmbench.backends import listing

    with cli_options.one_line_errors():
        rows = listing.describe_models(listing.named_cards(names or ()))
    if json_ or names:
        for row in rows:
            typer.echo(json.dumps(asdict(row)) if json_ else listing.format_row(row))
        return
    _console().print(listing.table(rows))


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
        usage = _usage(run)
        shown = {**result, "rows": [asdict(row) for row in rows], "path": str(run.path)}
        typer.echo(json.dumps(shown | ({"usage": usage} if usage else {})))
        return
    if not quiet:
        from prmbench import report, tasks
        from prmbench.tasks import wording

        unscored = tasks.find_task(run.result.manifest.task).unscored
        _console().print(report.run_table(run.result, rows))
        for reason, count in Counter(t.unscored for t in run.scores if t.unscored).most_common(3):
            typer.echo(f"{unscored}: {count} x {one_line(reason)}")
        votes = [vote for trace in run.scores for vote in trace.verdicts]
        if None in votes:
            typer.echo(f"votes that could not be read: {votes.count(None)} of {len(votes)}")
        if usage := _usage(run):
            typer.echo(f"the critic: {wording.usage(**usage)}")
    typer.echo(f"result: {run.path}")


def _usage(run: Run) -> dict[str, Any]:
    """Returns tokens, answers and cost of a critic's run; empty for other models."""
    manifest = run.result.manifest
    if manifest.backend != "critic" or not manifest.completion_tokens:
        return {}
    return {name: getattr(manifest, name) for name in ("tokens", "completion_tokens", "answers", "cost")}


def _print_mapping(record: Any, as_json: bool) -> None:
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(record).items()}
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        if isinstance(value, dict):
            text = ", ".join(f"{key} {number}" for key, number in value.items()) or "none"
        elif isinstance(value, tuple):
            text = "".join(f"\n  {entry}" for entry in value) or "none"
        else:
            text = str(value)
        typer.echo(f"{name}: {text}")


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
