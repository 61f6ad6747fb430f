"""Commands called as a user calls them."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from prmbench.cli import app


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


def fine(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """The one line of a mistake: exit code 2, nothing on stdout, no traceback."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line
