"""The command line. Options are the fields of config.py's dataclasses; bodies import what they need when they run."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer

import prmbench
from prmbench import config as options
from prmbench.schema import EvalProtocol, UserError

if TYPE_CHECKING:
    from prmbench.schema import MetricRow
    from prmbench.store import Run

app = typer.Typer(
    name="prmbench",
    help="Evaluate process reward models: step F1 with its protocol, interval and chance floors.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
FAILED, BAD_INPUT, STOPPED = 1, 2, 143
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prmbench {prmbench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- dataclass -> options ---------------------------------------------------------------------------------


def command(config: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers `body(config, **other)`: an option for every field of the dataclass, plus the body's own parameters.

    Flags win over `--config file.toml`, which wins over defaults. A UserError becomes one line and exit code 2.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(body, eval_str=True).parameters.values() if p.name != "config"]

        def run(ctx: typer.Context, config_file: Path | None, **given: Any) -> None:
            if not sys.stderr.isatty():
                os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars; read when they are loaded
            other = {p.name: given.pop(p.name) for p in own}
            with _one_line_errors():
                body(_resolve(config, ctx, config_file, given), **other)

        file = typer.Option("--config", help="TOML file of options; flags win over it.", show_default=False)
        head = [
            inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            _parameter("config_file", Annotated[Path | None, file], None),
        ]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*head, *_field_parameters(config), *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        )
        app.command(body.__name__.removesuffix("_"), help=inspect.getdoc(body))(run)
        return body

    return register


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _field_parameters(config: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(config)
    found = []
    for f in fields(config):
        flag = f"--{f.name.replace('_', '-')}"
        default = f.default if f.default is not MISSING else None
        hint = list[str] if get_origin(hints[f.name]) is tuple else hints[f.name]
        shown = default not in (None, (), "", False)
        option = typer.Option(flag, help=f.metadata["help"], show_default=shown)
        found.append(_parameter(f.name, Annotated[hint, option], list(default) if default == () else default))
    return found


def _resolve(config: type[Any], ctx: typer.Context, file: Path | None, given: dict[str, Any]) -> Any:
    flags = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    read = options.read_toml(file) if file else {}
    return options.from_mapping(config, {**read, **flags}, str(file or "options"))


class _one_line_errors:
    """Turns a user's mistake into one line on stderr and exit code 2, and a signal into exit code 143."""

    def __enter__(self) -> None:
        signal.signal(signal.SIGTERM, _raise_interrupt)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, UserError):
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(BAD_INPUT)
        if isinstance(error, KeyboardInterrupt):
            typer.echo("stopped; finished batches are kept, the same command goes on from there", err=True)
            raise typer.Exit(STOPPED)
        if isinstance(error, MemoryError) or _out_of_memory(error):
            typer.echo("error: out of memory; use a smaller --batch-tokens (finished batches are kept)", err=True)
            raise typer.Exit(BAD_INPUT)


def _out_of_memory(error: BaseException | None) -> bool:
    """The two ways torch says it, on a GPU and on a CPU, without importing torch to ask."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


# --- commands ------------------------------------------------------------------------------------------------


@command(options.EvalConfig)
def eval_(config: options.EvalConfig, json_: Json = False, quiet: Quiet = False) -> None:
    """Score a PRM on a benchmark: step F1 under every protocol, with intervals and chance floors."""
    from prmbench import evaluation

    if config.dry_run:
        _print_mapping(evaluation.dry_run(config), json_)
        return
    with _progress(quiet) as progress:
        run = evaluation.evaluate(config, progress)
    if run is None:
        return
    wanted = {EvalProtocol.parse(key).key for key in config.protocol}
    rows = run.result.rows
    if wanted:  # the floors stay: no F1 is shown without them
        rows = tuple(r for r in rows if r.protocol in wanted or r.protocol.startswith("floor/"))
    elif not json_:  # one long name less a readout; it is in the file
        rows = tuple(r for r in rows if "calibrated_in_sample" not in r.protocol)
    _print_run(run, rows, json_, quiet)


@command(options.ScoreConfig)
def score(config: options.ScoreConfig, quiet: Quiet = False) -> None:
    """Score your own solutions, no label needed: step scores to a jsonl file."""
    from prmbench import evaluation

    if config.dry_run:
        _print_mapping(evaluation.dry_run(config), as_json=False)
        return
    with _progress(quiet) as progress:
        path = evaluation.score(config, progress)
    if path is not None and not quiet:
        typer.echo(f"scores: {path}", err=True)


@command(options.CompareConfig)
def compare(
    config: options.CompareConfig,
    first: Annotated[Path, typer.Argument(help="<run-id>.json of the first run.")],
    second: Annotated[Path, typer.Argument(help="<run-id>.json of the second run.")],
    json_: Json = False,
) -> None:
    """Paired difference in F1 between two runs (second minus first), with its interval and p-value."""
    from prmbench import judge, store

    a, b = store.read_run(first), store.read_run(second)
    pairs = judge.pairs(a.result.manifest, b.result.manifest, config.protocol, config.against)
    rows = judge.compare((a.result, a.scores), (b.result, b.scores), pairs)
    if json_:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    from prmbench import report

    _console().print(report.compare_table(rows))


@command(options.ReportConfig)
def report(config: options.ReportConfig) -> None:
    """Regenerate tables, figures and the HTML page from the results; --check only says what would change."""
    from prmbench import report as reporting

    text = None
    if config.data is not None:
        from prmbench import data

        loaded = data.load("processbench", None if str(config.data) == "hub" else config.data)
        text = {trace.id: trace for trace in loaded.traces}
    changed = reporting.report(config.results, config.out, data=text, check=config.check, recompute=config.recompute)
    for line in changed:
        typer.echo(line)
    if config.check and changed:
        raise typer.Exit(FAILED)


@command(options.DemoConfig)
def demo(config: options.DemoConfig, quiet: Quiet = False) -> None:
    """A real evaluation, offline, in minutes: SmolLM2-135M as a training-free reward model beside the floors."""
    from prmbench import demo as story

    with _progress(quiet) as progress:
        baselines, model, page = story.demo(config, progress)
    rows = [r for r in model.result.rows if r.value is not None and "in_sample" not in r.protocol]
    _print_run(model, rows, as_json=False, quiet=quiet)
    if not quiet:
        typer.echo(f"rows that keep it honest, F1: {story.summary(baselines)}")
    typer.echo(f"report: {page}")


@app.command()
def models(json_: Json = False) -> None:
    """List the checkpoints that `eval` knows how to read."""
    from prmbench.backends import cards

    if not json_:
        typer.echo(f"{'model':<52}{'backend':<11}{'trained from':<13}its own code")
    for card in cards.MODELS.values():
        code = "yes: --trust-remote-code, --revision SHA" if card.remote_code else "no"
        line = f"{card.model:<52}{card.backend:<11}{card.signal:<13}{code}"
        typer.echo(json.dumps(asdict(card)) if json_ else line)


# --- output ----------------------------------------------------------------------------------------------------


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_run(run: Run, rows: Sequence[MetricRow], as_json: bool, quiet: bool) -> None:
    if as_json:
        result = run.result.to_json()
        typer.echo(json.dumps({**result, "rows": [asdict(row) for row in rows], "path": str(run.path)}))
        return
    if not quiet:
        from prmbench import report

        _console().print(report.run_table(run.result, rows))
        for reason, times in Counter(t.unscored for t in run.scores if t.unscored).most_common(3):
            typer.echo(f"unscored, counted as wrong: {times} x {reason}")
    typer.echo(f"result: {run.path}")


def _print_mapping(record: Any, as_json: bool) -> None:
    values = asdict(record)
    typer.echo(json.dumps(values) if as_json else "\n".join(f"{name}: {value}" for name, value in values.items()))


class _progress:
    """A progress bar on stderr, when that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.bar: Any = None
        self.quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> Callable[[int, int, float], None] | None:
        if self.quiet:
            return None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("scoring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} tok/s"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.bar.start()
        task = self.bar.add_task("scoring", total=None, rate="-")
        return lambda done, total, rate: self.bar.update(task, completed=done, total=total, rate=f"{rate:,.0f}")

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()


def main() -> None:
    """Entry point."""
    app()
