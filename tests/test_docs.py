"""README, CONTRIBUTING, SECURITY and docs/: their commands exist, their links lead somewhere, their paths are there."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from prmbench.cli import app
from prmbench.core.records import UserError

ROOT = Path(__file__).parents[1]
USAGE_ERROR = typer.BadParameter.__bases__[0]
"""click's class, which newer versions of typer carry inside."""
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "leaderboards" / "README.md",
        ROOT / "benchmarks" / "README.md",
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"(?:prmbench|tests|benchmarks|leaderboards|docs)/[\w./-]+")


def commands(text: str) -> list[str]:
    """Every command line in a page's shell blocks, continued lines joined, and in its code spans."""
    blocks = [body.replace("\\\n", " ") for language, body in FENCE.findall(text) if language == "sh"]
    spans = [span.replace("\n", " ") for span in SPAN.findall(FENCE.sub("", text))]
    return [line.strip() for block in blocks for line in block.splitlines()] + spans


def prmbench_arguments(line: str) -> list[str] | None:
    """What a command line gives to prmbench; None where it runs something else."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if words and words[0] == "torchrun" and "prmbench" in words:
        words = words[words.index("prmbench") :]
    if not words or words[0] != "prmbench":
        return None
    return [word for before, word in itertools.pairwise(words) if word != "..." or before.startswith("--")]


def refusal_of(arguments: list[str]) -> str | None:
    """What the command line answers to arguments that it cannot parse; None where it takes them."""
    group: Any = typer.main.get_command(app)
    if arguments[0] not in group.commands:
        return f"no command {arguments[0]}"
    try:
        group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    except (USAGE_ERROR, UserError) as error:
        if type(error).__name__ != "MissingParameter":  # a sentence may name a command without its arguments
            return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_that_a_page_gives_them(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        arguments = prmbench_arguments(line)
        if arguments and not arguments[0].startswith("-"):
            refusal = refusal_of(arguments)
            assert refusal is None, f"{page.name}: {line}: {refusal}"


def test_the_readme_shows_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {arguments[0] for line in commands(text) if (arguments := prmbench_arguments(line))}
    assert {"eval", "score", "compare", "rollout", "train-rm", "train-distrl", "report"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    missing = [link for link in links if not (page.parent / link).exists()]
    spans = [span for span in SPAN.findall(FENCE.sub("", text)) if PATH.fullmatch(span)]
    missing += [span for span in spans if not any(ROOT.glob(span.rstrip("/")))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = commands(page.read_text(encoding="utf-8"))
    named = {match[1] for line in lines if (match := re.match(r"make ([a-z-]+)", line))}
    assert named <= targets
