"""The documentation site: it builds without a warning, loads nothing from elsewhere, and its notebooks run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import prmbench
from prmbench.cli import app

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SMALL = {
    "POLICY_UPDATES": 40,
    "TRAINING_PROMPTS": 100,
    "REWARD_MODEL_UPDATES": 4,
    "JUDGED": 20,
    "RL_STEPS": 1,
}
"""Sizes of the notebook that trains: every cell runs, and the site's workflow runs them at full size."""
SIZES = "# Sizes"
LOADED_FROM_ELSEWHERE = re.compile(r"""(?:\bsrc|\bimport\(|<link[^>]*\bhref)\s*=?\s*["']?\s*(?:https?:)?//[^"' >]+""")


def needed(name: str) -> Any:
    """A package of the extra docs; its absence skips on a contributor's machine and fails where all tests must run."""
    if os.environ.get("PRMBENCH_NO_SKIP"):
        return importlib.import_module(name)
    return pytest.importorskip(name)


def build(site: Path, **options: Any) -> Path:
    """Builds the site strictly; raises mkdocs' Abort on a warning."""
    needed("material")
    needed("mkdocstrings_handlers.python")
    needed("mkdocs_jupyter")
    config = needed("mkdocs.config").load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(site), **options)
    config.plugins.on_startup(command="build", dirty=False)
    needed("mkdocs.commands.build").build(config)
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NO_MKDOCS_2_WARNING", "1")
        patched.delenv("NOTEBOOKS", raising=False)
        return build(tmp_path_factory.mktemp("docs") / "site")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    assert {page.name: LOADED_FROM_ELSEWHERE.findall(text_of(page)) for page in pages} == {p.name: [] for p in pages}
    assert [sheet.name for sheet in site.rglob("*.css") if re.search(r"url\(\W*https?:|@import", text_of(sheet))] == []


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://a.b/c.js">',
        '<link rel="stylesheet" href="//a.b/c.css">',
        'x = import("https://a.b/c.mjs")',
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_noticed(page: str) -> None:
    assert LOADED_FROM_ELSEWHERE.findall(page)
    assert not LOADED_FROM_ELSEWHERE.findall('<script src="c.js"><a href="https://a.b">')


@pytest.mark.slow
def test_the_command_line_reference_has_every_option(site: Path) -> None:
    page = text_of(site / "reference" / "cli.html")
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        section = page.partition(f'<h2 id="prmbench-{name}">')[2].partition("<h2 ")[0]
        flags = [
            flag for p in command.params if not getattr(p, "hidden", False) for flag in p.opts if flag.startswith("--")
        ]
        assert [flag for flag in flags if not re.search(rf"<code>[^<]*{flag}[</, ]", section)] == [], name


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    pages = text_of(site / "reference" / "prmbench.html") + text_of(site / "reference" / "records.html")
    for module, name in prmbench._HOMES.values():
        assert f'id="prmbench.{module}.{name}"' in pages


@pytest.mark.slow
def test_pages_and_folded_tables_from_outside_docs_are_shown(site: Path) -> None:
    assert 'href="../leaderboards/processbench.html"' in text_of(site / "concepts" / "floors.html")
    assert 'href="docs/' not in text_of(site / "CONTRIBUTING.html")
    folded = text_of(site / "leaderboards" / "processbench.html").partition("<details")[2].partition("</details>")[0]
    assert "<table>" in folded


@pytest.mark.parametrize(
    ("pages", "complaint"),
    [
        ({"index.md": "# A\n\n[b](lost.md)"}, "lost.md"),
        ({"index.md": "# A\n\n[b](#lost)"}, "#lost"),
        ({"index.md": "# A", "b.md": "# B"}, "b.md"),
        ({"index.md": "# A\n\n::: prmbench.core.lost"}, "lost"),
        ({"index.md": "# A\n\n![b](figures/lost.svg)"}, "lost.svg"),
    ],
    ids=["a broken link", "a broken anchor", "a page missing from the nav", "a name that is gone", "a lost picture"],
)
@pytest.mark.slow
def test_a_warning_ends_the_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pages: dict[str, str], complaint: str
) -> None:
    abort = needed("mkdocs.exceptions").MkDocsException
    (tmp_path / "docs").mkdir()
    for name, text in pages.items():
        (tmp_path / "docs" / name).write_text(text)
    with pytest.raises(abort):
        build(tmp_path / "site", docs_dir=str(tmp_path / "docs"), nav=["index.md"], hooks=[])
    assert any(complaint in record.getMessage() for record in caplog.records)


# --- notebooks and pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_results(path: Path) -> None:
    """Results in git would be of another version of the code than the one beside them."""
    cells = [cell for cell in json.loads(text_of(path))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = needed("nbclient"), needed("nbformat")
    needed("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.source.startswith(SIZES):
            assert set(re.findall(r"^(\w+) = ", cell.source, re.MULTILINE)) == set(SMALL)
            cell.source = "\n".join(f"{name} = {value}" for name, value in SMALL.items())
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert sum(bool(cell.get("outputs")) for cell in notebook.cells) > 4


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "figures" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_has_its_script_and_its_page(draw: ModuleType) -> None:
    stored = {path.stem for path in (ROOT / "docs" / "figures").glob("*.svg")}
    pages = "".join(text_of(page) for page in ROOT.glob("docs/concepts/*.md"))
    assert stored == set(draw.FIGURES) == set(re.findall(r"\.\./figures/([\w-]+)\.svg", pages))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first-errors", "thresholds", "pairing", "floors"])
def test_pictures_are_what_the_script_draws(draw: ModuleType, name: str) -> None:
    """The picture `optimism` takes ten seconds to draw."""
    assert draw.render(name) == (ROOT / "docs" / "figures" / f"{name}.svg").read_bytes()
