"""The source of a `pkg.mod:Class` backend: its file and those beside it that it imports. Edited code gives new scores.

Read, not run: what is imported is taken from the text, so a name that is put together at run time is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")
"""Folders in which files lie beside each other that have nothing to do with each other."""
IMPORTERS = ("import_module", "__import__")
"""Functions that import what their first argument names."""


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    file: Path

    @property
    def package(self) -> list[str]:
        """The parts of the name that relative imports start from."""
        parts = self.name.split(".")
        return parts if self.file.name == "__init__.py" else parts[:-1]


def source_hash(path: str) -> str:
    """16 hex digits that change with the file of a `pkg.mod:Class` backend and with the helpers it imports.

    Helpers are the files under the folder that the module, or its package, lies in; of an installed package those of
    the package alone. Empty where there is no such file.
    """
    name = path.partition(":")[0]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    start = _Module(name, Path(spec.origin))
    helpers = _helpers(start)
    digest = hashlib.sha256(start.file.read_bytes())
    for helper in sorted(helpers, key=lambda module: module.name):
        digest.update(f"\n{helper.name} {hashlib.sha256(helper.file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:16]


def _helpers(start: _Module) -> set[_Module]:
    """All modules beside `start` that it imports, and those that they import."""
    depth = start.name.count(".") + (start.file.name == "__init__.py")
    root = start.file.parents[depth]
    top = start.name.partition(".")[0]
    seen, waiting = {start}, [start]
    while waiting:
        for name in _imported(waiting.pop()):
            own = name.partition(".")[0] == top
            file = _file(root, name) if own or root.name not in INSTALLED else None
            if file is None or name.partition(".")[0] == "prmbench":  # whose commit the manifest names
                continue
            module = _Module(name, file)
            if module not in seen:
                seen.add(module)
                waiting.append(module)
    return seen - {start}


def _file(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)


def _imported(module: _Module) -> Iterator[str]:
    """Names that the module's text imports, each with the packages around it; some may be no modules."""
    yield from _with_packages(module.name)
    try:
        tree = ast.parse(module.file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return  # importing it will say so
    for node in ast.walk(tree):
        for name in _names(node, module):
            yield from _with_packages(name)


def _names(node: ast.AST, module: _Module) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module.package
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *filter(None, [node.module])])
        if origin:
            yield origin
        yield from (".".join(filter(None, [origin, alias.name])) for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        value = node.args[0].value
        if called in IMPORTERS and isinstance(value, str) and value and not value.startswith("."):
            yield value


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    if all(part.isidentifier() for part in parts):
        yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))
