"""From a frozen dataclass to Typer options and back, and from errors to exit codes. Knows no command."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from prmbench import config as options
from prmbench.core import output_checks, reading
from prmbench.core.option_values import OPTIONS, check_text
from prmbench.core.records import NonFiniteError, Notice, RetryError, UserError
from prmbench.core.redaction import one_line

BAD_INPUT, NON_FINITE, TRY_AGAIN, STOPPED = 2, 3, 75, 143


def command(app: typer.Typer, config: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers `body(config, **other)` with the app: an option for every field, plus the body's own parameters.

    Flags win over `--config file.toml`, which wins over defaults. A UserError becomes one line and exit code 2.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(body, eval_str=True).parameters.values() if p.name != "config"]

        def run(ctx: typer.Context, config_file: Path | None, **given: Any) -> None:
            if not sys.stderr.isatty():
                os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars; read when they are loaded
            other = {p.name: given.pop(p.name) for p in own}
            with one_line_errors(), output_checks.also_reading(_paths(config_file, other)):
                body(_resolve(config, ctx, config_file, given), **other)

        words = "TOML file of options; flags win over it."
        file = typer.Option("--config", help=words, show_default=False, readable=False)
        head = [
            inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            _parameter("config_file", Annotated[Path | None, file], None),
        ]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*head, *_field_parameters(config), *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        )
        app.command(body.__name__.removesuffix("_").replace("_", "-"), help=inspect.getdoc(body))(run)
        return body

    return register


def _paths(config_file: Path | None, arguments: Mapping[str, Any]) -> list[Path]:
    """The files that the command line names beside its options: all of them are read. Raises UserError."""
    listed = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    found = [path for path in (config_file, *listed) if isinstance(path, Path)]
    for path in found:
        check_text(str(path), "a path")
    return found


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _field_parameters(config: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(config)
    found = []
    for f in fields(config):
        name = f.name.replace("_", "-")
        flag = f"--{name}/--no-{name}" if hints[f.name] == bool | None else f"--{name}"
        default = f.default if f.default is not MISSING else None
        hint = list[str] if get_origin(hints[f.name]) is tuple else hints[f.name]
        shown = default not in (None, (), "", False)
        # Whether a file may be read is found out by reading it, and then said in one line.
        option = typer.Option(flag, help=f.metadata["help"], show_default=shown, readable=False)
        found.append(_parameter(f.name, Annotated[hint, option], list(default) if default == () else default))
    return found


def _resolve(config: type[Any], ctx: typer.Context, file: Path | None, given: dict[str, Any]) -> Any:
    flags = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    read = options.read_toml(file) if file else {}
    return options.from_mapping(config, {**read, **flags}, str(file or OPTIONS))


class one_line_errors:
    """Turns a user's mistake into one line on stderr and exit code 2, and a signal into exit code 143.

    So too what the system refuses, wherever it comes up: a folder that may not be searched, a disk that is full.
    """

    def __enter__(self) -> None:
        signal.signal(signal.SIGTERM, _raise_interrupt)
        self.shown = warnings.showwarning
        warnings.showwarning = _note

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        warnings.showwarning = self.shown
        for known, code in ((UserError, BAD_INPUT), (NonFiniteError, NON_FINITE), (RetryError, TRY_AGAIN)):
            if isinstance(error, known):
                say("error", error)
                raise typer.Exit(code)
        if isinstance(error, KeyboardInterrupt):
            typer.echo("stopped; what was finished is kept, the same command goes on from there", err=True)
            raise typer.Exit(STOPPED)
        if isinstance(error, OSError) and error.errno != errno.EPIPE:  # of a closed pipe click takes care
            where = f"{error.filename}: " if error.filename is not None else ""
            say("error", f"{where}{reading.reason(error)}")
            raise typer.Exit(BAD_INPUT)
        if isinstance(error, RecursionError | UnicodeEncodeError):
            what = reading.TOO_DEEP if isinstance(error, RecursionError) else "a text that is not valid Unicode"
            say("error", f"the input is refused: {what}")
            raise typer.Exit(BAD_INPUT)
        if isinstance(error, MemoryError) or _out_of_memory(error):
            say("error", "out of memory; use a smaller --batch-tokens (what was finished is kept)")
            raise typer.Exit(BAD_INPUT)


def _note(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our own warnings as one line; those of libraries are for their developers, and stay silent."""
    if category is Notice:
        say("note", message)


def say(kind: str, message: object) -> None:
    """Prints a message on stderr: one line without secrets, whatever foreign names it holds."""
    typer.echo(f"{kind}: {one_line(message)}", err=True)


def _out_of_memory(error: BaseException | None) -> bool:
    """The two ways torch says it, on a GPU and on a CPU, without importing torch to ask."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
