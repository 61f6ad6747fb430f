"""README, CONTRIBUTING, SECURITY and docs/: their commands exist, their links lead somewhere, their paths are there.

What needs the built site is in test_docs_site.py.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import io
import itertools
import json
import re
import shlex
import tempfile
import tokenize
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_calls import fine

from prmbench.cli import app
from prmbench.core.records import UserError
from prmbench.tasks.registry import ENTRY_POINTS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("docs/**/*.ipynb"),
        ROOT / "leaderboards" / "README.md",
        ROOT / "benchmarks" / "README.md",
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"(?:prmbench|tests|benchmarks|leaderboards|docs)/[\w./-]+")
SOURCE_FILE = re.compile(r"[\w/]+\.(?:py|js|sh)")
MENTIONED_FILE = re.compile(r"(?<![\w/.-])[\w/]+\.(?:py|md|sh|js)\b")
DOTTED_NAME = re.compile(r"prmbench(?:\.\w+)+")
ELSEWHERE = {"mine.py"}
"""Files that a reader of docs/ makes."""
OTHER_PROJECTS = {
    "modeling.py",
    "process_bench/process_eval.py",
    "tokenizers.py",
    "train_rm_with_accelerate.py",
}
"""Files that a docstring or a comment cites from another project."""


def text_of(page: Path) -> str:
    """A page's Markdown; of a notebook, that of its cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


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
    if "|" in words:
        words = words[: words.index("|")]
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
    except (typer.Exit, UserError) as error:
        cause = error.__context__  # what is wrong with the words, which was printed
        if type(cause).__name__ != "MissingParameter":  # a sentence may name a command without its arguments
            return str(cause or error) or "words that belong to no option"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_that_a_page_gives_them(page: Path) -> None:
    for line in commands(text_of(page)):
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
    text = text_of(page)
    links = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    missing = [link for link in links if not (page.parent / link).exists()]
    spans = [span for span in SPAN.findall(FENCE.sub("", text)) if PATH.fullmatch(span)]
    missing += [span for span in spans if not any(ROOT.glob(span.rstrip("/")))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = commands(text_of(page))
    named = {match[1] for line in lines if (match := re.match(r"make ([a-z-]+)", line))}
    assert named <= targets


@functools.cache
def project_files() -> frozenset[str]:
    """The ends of all paths in the project: for `prmbench/rl/models.py` also `rl/models.py` and `models.py`."""
    folders = ("benchmarks", "docs", "leaderboards", "prmbench", "tests")
    paths = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    parts = [path.relative_to(ROOT).parts for path in paths]
    return frozenset("/".join(part[start:]) for part in parts for start in range(len(part)))


def resolve(dotted: str) -> object:
    """The module, function, class or attribute of a dotted name; raises AttributeError where there is none."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ImportError(dotted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_names_of_the_code_that_a_page_cites_exist(page: Path) -> None:
    spans = SPAN.findall(FENCE.sub("", text_of(page)))
    missing = [s for s in spans if SOURCE_FILE.fullmatch(s) and s not in project_files() | ELSEWHERE]
    assert missing == []
    for span in spans:
        if DOTTED_NAME.fullmatch(span) and span != ENTRY_POINTS:  # a group of entry points looks like a module
            resolve(span)


def test_a_cited_name_that_is_gone_is_noticed() -> None:
    with pytest.raises(AttributeError):
        resolve("prmbench.config.Lost")
    with pytest.raises(AttributeError):
        resolve("prmbench.lost.Name")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_imports_names_that_exist(page: Path) -> None:
    for language, body in FENCE.findall(text_of(page)):
        if language == "python":
            imports = [node for node in ast.walk(ast.parse(body)) if isinstance(node, ast.ImportFrom)]
            for node in imports:
                if node.module is not None and node.module.startswith("prmbench"):
                    for name in node.names:
                        resolve(f"{node.module}.{name.name}")


def test_start_here_shows_what_its_command_prints() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    shown = next(body for language, body in FENCE.findall(text) if language == "text")
    (line,) = (line for line in commands(text) if line.startswith("prmbench eval --model step-length"))
    with tempfile.TemporaryDirectory() as out:
        printed = fine(*shlex.split(line)[1:-1], ROOT / shlex.split(line)[-1], "--out", out)
    rows = {" ".join(row.split()) for row in printed.splitlines()}
    expected = {" ".join(row.split()) for row in shown.splitlines() if not set(row) <= {" ", "─"}}
    assert len(expected) > 7
    assert expected <= rows


def test_contributing_places_every_package() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where things are")[1].split("## ")[0]
    packages = {path.parent.name for path in (ROOT / "prmbench").glob("*/__init__.py")}
    named = set(
        re.findall(r"`([a-z]+)`", "".join(line.split("|")[1] for line in table.splitlines() if line[:1] == "|"))
    )
    assert named - {"prmbench"} == packages


def cited_files(code: str) -> set[str]:
    """The names of files in a module's comments and in its docstrings, those beneath constants included."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    texts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts.append(node.value.value)
    return set(MENTIONED_FILE.findall("\n".join(texts)))


def test_files_that_comments_and_docstrings_cite_exist() -> None:
    there = project_files() | OTHER_PROJECTS
    missing = set()
    for path in (path for folder in ("prmbench", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        if not set(MENTIONED_FILE.findall(code)) <= there:  # many strings are no citations
            missing |= {f"{path.relative_to(ROOT)}: {name}" for name in cited_files(code) - there}
    assert missing == set()


def test_modules_that_pages_run_exist() -> None:
    for page in PAGES:
        for module in re.findall(r"python -m (prmbench(?:\.\w+)*)", page.read_text(encoding="utf-8")):
            assert importlib.util.find_spec(module) is not None, f"{page.name}: {module}"
