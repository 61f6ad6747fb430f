"""What the site adds to the pages of docs/: pages from elsewhere in the repository, and the list of commands.

A link from one Markdown file to another is written for readers of the repository. On the site, pages of docs/ lie at
the top and the other ones beneath the folder that they come from, so that links between the two are translated.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/*.md", "leaderboards/*.md")
"""Pages of the repository that the site shows, too."""
FIGURES = "leaderboards/figures/*.svg"
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)]*)?(?=\))")
DIAGRAMS = re.compile(r'<script type="module">(?:(?!</script>).)*jp-Mermaid.*?</script>', re.DOTALL)
"""What nbconvert adds to notebooks to draw diagrams, with a library from elsewhere. No notebook here has one."""
COMMANDS_MARK = "<!-- commands -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/ and the figures that they show."""
    for pattern in (*OUTSIDE, FIGURES):
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translates links, and puts the list of commands where its mark is."""
    source = page.file.src_uri
    home = posixpath.dirname(source if any(Path(source).match(pattern) for pattern in OUTSIDE) else f"docs/{source}")
    if source.startswith("leaderboards/"):
        # Generated pages fold tables into raw HTML, whose inside is Markdown. Their numbers would fill the search.
        markdown = markdown.replace("<details>", '<details markdown="1">')
        page.meta |= {"search": {"exclude": True}, "hide": ["toc"]}

    def translate(link: re.Match[str]) -> str:
        repository_path = posixpath.normpath(posixpath.join(home, link[2]))
        uri = repository_path.removeprefix("docs/")
        if files.get_file_from_path(uri) is None:
            return link[0]  # strict builds refuse it, with the page's name
        return f"{link[1]}{posixpath.relpath(uri, posixpath.dirname(source) or '.')}{link[3] or ''}"

    return LINK.sub(translate, markdown).replace(COMMANDS_MARK, commands_page())


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Takes out the script that would load a library from elsewhere."""
    return DIAGRAMS.sub("", output) if page.file.src_uri.endswith(".ipynb") else output


# --- the command line's reference ---------------------------------------------------------------------------------


def commands_page() -> str:
    """Returns Markdown with a section for each command: its usage, and a table for each panel of its options."""
    from prmbench.cli import app

    group: Any = typer.main.get_command(app)
    sections = (_command(name, command) for name, command in group.commands.items() if not command.hidden)
    return "\n".join(sections)


def _command(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"prmbench {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    tables = "".join(
        f"\n**{title}**\n\n| option | meaning |\n|---|---|\n{rows}" for title, rows in _panels(command, context).items()
    )
    return f"## prmbench {name}\n\n{_text(command.help or '')}\n\n```text\nprmbench {name} {usage}\n```\n{tables}"


def _panels(command: Any, context: Any) -> dict[str, str]:
    """Returns the rows of each panel of the help page by its title; a row is what the help page says of an option."""
    panels: dict[str, str] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or parameter.name == "help":
            continue
        default_panel = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panel = getattr(parameter, "rich_help_panel", None) or default_panel
        flag, _, value = record[0].partition(" <")
        name = f"`{flag}`" + (f"<br>{_text('<' + value)}" if value else "")
        panels[panel] = panels.get(panel, "") + f"| {name} | {_text(record[1])} |\n"
    return panels


def _text(text: str) -> str:
    """Returns text of a help page with everything that Markdown would take for markup escaped, code spans excepted."""
    parts = re.split(r"(`[^`]*`)", text)
    escaped = [part if part.startswith("`") else re.sub(r"[*_|\[\]]", _entity, html.escape(part)) for part in parts]
    return "".join(escaped).replace("\n\n", "<br>").replace("\n", " ")


def _entity(character: re.Match[str]) -> str:
    return f"&#{ord(character[0])};"
