"""Hashes the source of a `pkg.mod:Class` backend and of the helpers that it imports: edited code gives new scores.

Imports are read from the source text, which is not run, so a name assembled at run time is not found.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTALL_FOLDERS = ("site-packages", "dist-packages")
"""Names of folders that hold unrelated packages side by side."""
IMPORT_FUNCTIONS = ("import_module", "__import__")
"""Functions that import the module named by their first argument."""


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
    """Return a hash, in 16 hex digits, of the file of a `pkg.mod:Class` backend and of the helpers that it imports.

    Helpers are files below the folder that holds the module or its package; for an installed package only the
    package's own files. The hash is empty when the module has no file.
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
    """Return all modules that `start` imports, directly or not, from the folder that holds it."""
    depth = start.name.count(".") + (start.file.name == "__init__.py")
    root = start.file.parents[depth]
    top_package = start.name.partition(".")[0]
    found_modules, to_visit = {start}, [start]
    while to_visit:
        for name in _imported_names(to_visit.pop()):
            same_package = name.partition(".")[0] == top_package
            file = _module_file(root, name) if same_package or root.name not in INSTALL_FOLDERS else None
            if file is None or name.partition(".")[0] == "prmbench":  # the manifest records its commit
                continue
            module = _Module(name, file)
            if module not in found_modules:
                found_modules.add(module)
                to_visit.append(module)
    return found_modules - {start}


def _module_file(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)


def _imported_names(module: _Module) -> Iterator[str]:
    """Yield the names that a module's text imports, each with its parent packages; some may be no modules."""
    yield from _with_packages(module.name)
    try:
        tree = ast.parse(module.file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return  # importing it will raise the error
    for node in ast.walk(tree):
        for name in _names_in_node(node, module):
            yield from _with_packages(name)


def _names_in_node(node: ast.AST, module: _Module) -> Iterator[str]:
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
        if called in IMPORT_FUNCTIONS and isinstance(value, str) and value and not value.startswith("."):
            yield value


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    if all(part.isidentifier() for part in parts):
        yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))
