"""From a frozen dataclass to Typer options and back, and from errors to exit codes. Knows no command."""

from __future__ import annotations

import errno
import inspect
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from prmbench import config as options
from prmbench.config import help_panels
from prmbench.config.usage_errors import OneLineCommand
from prmbench.core import output_checks, plugins, reading
from prmbench.core.option_values import Range, check_text
from prmbench.core.records import NonFiniteError, Notice, RetryError, UserError
from prmbench.core.redaction import one_line

BAD_INPUT, NON_FINITE, TRY_AGAIN, STOPPED = 2, 3, 75, 143
LONGEST_METAVAR, LONGEST_WITH_PAIRS = 18, 8
"""Characters of a list of choices for which `--help` has room at 80 columns, and beside pairs `--x --no-x`."""
EXIT_CODES = {UserError: BAD_INPUT, NonFiniteError: NON_FINITE, RetryError: TRY_AGAIN}


Completions = Mapping[str, Callable[[], Iterable[str]]]
"""Values that a shell completes, by option; computed when a shell asks for them."""


def command(
    app: typer.Typer, config: type[Any], completions: Completions | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that registers `body(config, **arguments)` as a command of the app.

    The command has an option for every field of the config, plus the body's own parameters. Flags win over
    `--config file.toml`, which wins over defaults. A UserError becomes one line and exit code 2.

    Args:
        app: The command line.
        config: The dataclass of the command's options.
        completions: Values that a shell completes, for options that are not a choice of a few.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        parameters = [p for p in inspect.signature(body, eval_str=True).parameters.values() if p.name != "config"]

        def run(ctx: typer.Context, config_file: Path | None, **values: Any) -> None:
            if not sys.stderr.isatty():
                os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars; read when they are loaded
            arguments = {p.name: values.pop(p.name) for p in parameters}
            with one_line_errors(), output_checks.also_reading(_paths(config_file, arguments)):
                body(_resolve(config, ctx, config_file, values), **arguments)

        help_text = "TOML file of options; flags win over it."
        file_option = typer.Option("--config", help=help_text, show_default=False, readable=False)
        first = [
            inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            _parameter("config_file", Annotated[Path | None, file_option], None),
        ]
        last = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature([*first, *_field_parameters(config, completions or {}), *last])  # type: ignore[attr-defined]
        name = body.__name__.removesuffix("_").replace("_", "-")
        app.command(name, cls=OneLineCommand, help=inspect.getdoc(body))(run)
        return body

    return register


def _paths(config_file: Path | None, arguments: Mapping[str, Any]) -> list[Path]:
    """Return the files that the command line names beside its options: all of them are read. Raises UserError."""
    values = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    paths = [path for path in (config_file, *values) if isinstance(path, Path)]
    for path in paths:
        check_text(str(path), "a path")
    return paths


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _field_parameters(config: type[Any], completions: Completions) -> list[inspect.Parameter]:
    """Return one parameter with a Typer option for each field of the dataclass, in the order of the help's panels."""
    hints = get_type_hints(config)
    with_pairs = {help_panels.panel(config, name) for name, hint in hints.items() if hint == bool | None}
    parameters = []
    for f in sorted(fields(config), key=lambda f: help_panels.position(f.name)):
        name, hint = f.name.replace("_", "-"), hints[f.name]
        flag = f"--{name}/--no-{name}" if hint == bool | None else f"--{name}"
        default = f.default if f.default is not MISSING else None
        choices = _choices(hint)
        if choices:  # a text for Typer: a wrong choice is then refused where that of a TOML file is, in one line
            hint = str | None
        elif get_origin(hint) is tuple:
            hint = list[str]
        panel = help_panels.panel(config, f.name)
        room = LONGEST_WITH_PAIRS if panel in with_pairs else LONGEST_METAVAR
        values = completions.get(f.name, lambda choices=choices: choices)
        option = typer.Option(
            flag,
            help=_help(f, choices, room),
            metavar=_metavar(choices, room),
            show_default=help_panels.preset_default(config, f.name) or default not in (None, (), "", False),
            readable=False,  # whether a file may be read shows when it is read, and is then said in one line
            rich_help_panel=panel,
            hidden=not help_panels.is_shown(config, f.name),
            autocompletion=_completion(values) if choices or f.name in completions else None,
        )
        parameters.append(_parameter(f.name, Annotated[hint, option], list(default) if default == () else default))
    return parameters


def _completion(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def _metavar(choices: Sequence[str], room: int) -> str | None:
    """Return `<a|b>` where that is short enough not to be wrapped, `<choice>` for longer lists, None for no choices."""
    text = f"<{'|'.join(choices)}>"
    return None if not choices else text if len(text) <= room else "<choice>"


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal, or of a Literal that may be None; empty for other types."""
    literal = next((h for h in (hint, *get_args(hint)) if get_origin(h) is Literal), None)
    return get_args(literal)


def _help(field: Field[Any], choices: Sequence[str], room: int) -> str:
    """Return the field's help text with the choices that it leaves out, and with its range.

    A range that only says what any count or weight has is not shown.
    """
    allowed: Range | None = field.metadata.get("range")
    text: str = field.metadata["help"]
    is_complete = all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in choices)
    if not is_complete and _metavar(choices, room) == "<choice>":
        text = f"{text} One of {', '.join(choices)}."
    if allowed in (None, Range(min=0), Range(min=1)):
        return text
    words = str(allowed)
    return f"{text} {words[0].upper()}{words[1:]}."


def _resolve(config: type[Any], ctx: typer.Context, file: Path | None, values: dict[str, Any]) -> Any:
    """Build the config from defaults, the TOML file and the flags. Raises UserError."""
    flags = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    from_file = options.from_mapping(config, _file_values(config, ctx, file), str(file)) if file else config()
    return options.validate(replace(from_file, **flags))


def _file_values(config: type[Any], ctx: typer.Context, file: Path) -> dict[str, Any]:
    """Return the options in a TOML file: those outside of tables, and those in the table named like the command.

    Tables named like other commands are for them.

    Raises:
        UserError: The file cannot be read, or an option is there twice.
    """
    names = {f.name for f in fields(config)}
    commands = [command.replace("-", "_") for command in getattr(ctx.find_root().command, "commands", {})]
    own = str(ctx.command.name).replace("-", "_")
    values: dict[str, Any] = {}
    tables = [name for name, value in reading.read_toml(file).items() if isinstance(value, dict)]
    for name, value in options.read_toml(file).items():
        table = max((c for c in commands if name.startswith(f"{c}_") and name not in names), key=len, default="")
        if table not in ("", own):
            continue
        option_name = name.removeprefix(f"{table}_") if table else name
        foreign = next((t for t in tables if not table and name.startswith(f"{t}_") and name not in names), None)
        if foreign is not None and not any(n.startswith(f"{foreign}_") for n in names):
            raise UserError(
                f"{file}: unknown option {name!r}: table [{foreign}] is of no command of prmbench; "
                f"put options of {ctx.command.name} at the top of the file or into [{own}], and take [{foreign}] out"
            )
        if option_name in values:
            raise UserError(f"{file}: {option_name} is there twice; keep one")
        values[option_name] = value
    return values


class one_line_errors:
    """Turns a user's mistake into one line on stderr and exit code 2, and a signal into exit code 143.

    What the system refuses is treated alike, wherever it comes up: a folder that may not be searched, a full disk.
    """

    def __enter__(self) -> None:
        signal.signal(signal.SIGTERM, _raise_interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _raise_interrupt)
        self.showwarning = warnings.showwarning
        warnings.showwarning = _print_notice

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        warnings.showwarning = self.showwarning
        if error is not None and os.environ.get("PRMBENCH_TRACEBACK") and not isinstance(error, typer.Exit):
            traceback.print_exception(error)
        for error_class, code in EXIT_CODES.items():
            if isinstance(error, error_class):
                say("error", error)
                raise typer.Exit(code)
        fault = plugins.plugin_fault(error) if error is not None and not isinstance(error, typer.Exit) else ""
        if isinstance(error, KeyboardInterrupt) and not fault:
            typer.echo("stopped; what was finished is kept, the same command goes on from there", err=True)
            raise typer.Exit(STOPPED)
        if isinstance(error, OSError) and error.errno != errno.EPIPE:  # click takes care of a closed pipe
            path = f"{error.filename}: " if error.filename is not None else ""
            say("error", f"{path}{reading.error_reason(error)}")
            raise typer.Exit(BAD_INPUT)
        if isinstance(error, RecursionError | UnicodeEncodeError):
            cause = reading.TOO_DEEP if isinstance(error, RecursionError) else "a text that is not valid Unicode"
            say("error", f"the input is refused: {cause}")
            raise typer.Exit(BAD_INPUT)
        if isinstance(error, MemoryError) or _is_out_of_memory(error):
            say("error", "out of memory; use a smaller --batch-tokens (what was finished is kept)")
            raise typer.Exit(BAD_INPUT)
        if fault:
            say("error", f"{fault} (PRMBENCH_TRACEBACK=1 shows how it came to that)")
            raise typer.Exit(BAD_INPUT)


def _print_notice(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print this package's notices as one line; warnings of libraries are for developers, and stay silent."""
    if category is Notice:
        say("note", message)


def say(kind: str, message: object) -> None:
    """Print `kind: message` on stderr, as one line without secrets, whatever text from elsewhere it holds."""
    typer.echo(f"{kind}: {one_line(message)}", err=True)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether torch ran out of memory, on a GPU or on a CPU, without importing torch to ask."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
