"""What is wrong with the words of a command line, in one line with the option that was meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from prmbench.core.redaction import one_line

UsageError: Any = typer.BadParameter.__base__
"""Base of all that Typer says of a command line; it has no public name of its own."""
DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".gz")
FOR_DATA, FOR_OTHERS = ("data", "model", "results", "out"), ("model", "results", "data", "out")
"""Options that a word without one may be meant for, the likeliest first: a file of data, and anything else."""
BAD_INPUT = 2


class OneLineCommand(TyperCommand):
    """A command that says in one line what is wrong with its words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words; those that belong to no option are refused with the option that they may be meant for."""
        ctx.allow_extra_args = True  # so that they arrive here
        try:
            rest = super().parse_args(ctx, args)
        except UsageError as error:
            _end(ctx, error.format_message())
        if ctx.args and not ctx.resilient_parsing:  # as a shell parses what is not complete
            _end(ctx, _stray_words(ctx, ctx.args))
        return rest


class OneLineGroup(TyperGroup):
    """The commands; an unknown one is refused in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words before the command."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            return super().parse_args(ctx, args)  # raises what prints the help
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            _end(ctx, error.format_message())

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the command that the first word names, and the words after it."""
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            _end(ctx, error.format_message())


def _stray_words(ctx: Any, words: Sequence[str]) -> str:
    """Says that words belong to no option, and which option the first may be meant for."""
    text = f"{words[0]!r} belongs to no option"
    unused = [p for p in ctx.command.params if getattr(ctx.get_parameter_source(p.name), "name", "") != "COMMANDLINE"]
    options: Mapping[str, str] = {p.name: p.opts[0] for p in unused if p.param_type_name == "option"}
    arguments = [p for p in ctx.command.params if p.param_type_name == "argument"]
    if arguments:
        return f"{text}; the command takes {' '.join(p.metavar or p.name.upper() for p in arguments)} and options"
    likely = FOR_DATA if words[0].lower().endswith(DATA_SUFFIXES) or Path(words[0]).is_file() else FOR_OTHERS
    option = next((options[name] for name in likely if name in options), None)
    return f"{text}; did you mean {option} {words[0]}" if option else text


def _end(ctx: Any, message: str) -> NoReturn:
    help_of = f"`{ctx.command_path} --help` lists the options"
    typer.echo(f"error: {ctx.info_name}: {one_line(message).rstrip('.')}; {help_of}", err=True)
    raise typer.Exit(BAD_INPUT)
