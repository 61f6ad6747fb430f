"""What a plug-in's scores depend on: its file, and the files beside it that it imports."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prmbench.backends.plugin_source import source_hash


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On the path of imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("zz_")]:
        del sys.modules[name]  # looking for a module imports the packages around it
    importlib.invalidate_caches()


def put(folder: Path, name: str, text: str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    importlib.invalidate_caches()
    return path


IMPORTS = {
    "import": ("import zz_helper", "zz_helper.py"),
    "as": ("import zz_helper as h", "zz_helper.py"),
    "from": ("from zz_helper import score", "zz_helper.py"),
    "from all": ("from zz_helper import *", "zz_helper.py"),
    "in a function": ("def f():\n    import zz_helper", "zz_helper.py"),
    "in a try": ("try:\n    import zz_helper\nexcept ImportError:\n    pass", "zz_helper.py"),
    "by name": ("import importlib\nh = importlib.import_module('zz_helper')", "zz_helper.py"),
    "a package": ("import zz_parts", "zz_parts/__init__.py"),
    "a package around it": ("import zz_parts.deep.inner", "zz_parts/__init__.py"),
    "a module of a package": ("import zz_parts.deep.inner", "zz_parts/deep/inner.py"),
    "from a package": ("from zz_parts.deep import inner", "zz_parts/deep/inner.py"),
    "by way of another": ("import zz_between", "zz_helper.py"),
}


@pytest.mark.parametrize("how", IMPORTS)
def test_a_helper_beside_a_module_counts(folder: Path, how: str) -> None:
    text, helper = IMPORTS[how]
    put(folder, "zz_between.py", "from zz_helper import x")
    for name in ("zz_helper.py", "zz_parts/__init__.py", "zz_parts/deep/__init__.py", "zz_parts/deep/inner.py"):
        put(folder, name, "x = 1")
    put(folder, "zz_mine.py", text)
    before = source_hash("zz_mine:Class")
    put(folder, helper, "x = 2")
    assert source_hash("zz_mine:Class") != before
    put(folder, helper, "x = 1")
    assert source_hash("zz_mine:Class") == before


RELATIVE = {
    "from .helper import x": "helper.py",
    "from . import helper": "helper.py",
    "from .. import other": "../other.py",
    "from ..other import x": "../other.py",
    "from zz_pack.other import x": "../other.py",
    "import zz_top": "../../zz_top.py",
    "x = 1": "../__init__.py",
}


@pytest.mark.parametrize("text", RELATIVE)
def test_a_helper_of_a_package_counts(folder: Path, text: str) -> None:
    for name in ("__init__.py", "other.py", "sub/__init__.py", "sub/helper.py"):
        put(folder / "zz_pack", name, "x = 1")
    put(folder, "zz_top.py", "x = 1")
    put(folder / "zz_pack", "sub/mine.py", text)
    before = source_hash("zz_pack.sub.mine:Class")
    put(folder / "zz_pack" / "sub", RELATIVE[text], "x = 2")
    assert source_hash("zz_pack.sub.mine:Class") != before


def test_what_is_not_imported_does_not_count(folder: Path) -> None:
    put(folder, "zz_mine.py", "import json, numpy, prmbench.core.records")
    before = source_hash("zz_mine:Class")
    put(folder, "zz_other.py", "x = 1")
    assert source_hash("zz_mine:Class") == before
    raw = (folder / "zz_mine.py").read_bytes()
    assert before == hashlib.sha256(raw).hexdigest()[:16]  # alone, it is its file's own hash, as it always was


def test_an_installed_module_counts_with_its_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    put(folder, "zz_neighbour.py", "x = 1")
    put(folder, "zz_inst/__init__.py")
    put(folder, "zz_inst/part.py", "x = 1")
    put(folder, "zz_inst/mine.py", "import zz_neighbour\nfrom . import part")
    monkeypatch.syspath_prepend(str(folder))
    before = source_hash("zz_inst.mine:Class")
    put(folder, "zz_neighbour.py", "x = 2")
    assert source_hash("zz_inst.mine:Class") == before
    put(folder, "zz_inst/part.py", "x = 2")
    assert source_hash("zz_inst.mine:Class") != before


@pytest.mark.parametrize("text", ["import zz_mine", "def broken(:", "from . import x", "import_module('../..')", "\0"])
def test_odd_sources_are_hashed_all_the_same(folder: Path, text: str) -> None:
    put(folder, "zz_mine.py", text)
    assert len(source_hash("zz_mine:Class")) == 16


def test_what_has_no_file_has_no_hash() -> None:
    assert source_hash("zz_nowhere:Class") == source_hash("sys:Class") == ""
