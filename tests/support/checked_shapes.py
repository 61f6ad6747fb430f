"""A copy of a module of equations in which every call checks the annotated shapes; the one in use stays as it is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import jaxtyping
from jaxtyping import install_import_hook


def checked(name: str) -> ModuleType:
    """The module `name`, loaded once more under jaxtyping and beartype."""
    plain = importlib.import_module(name)
    del sys.modules[name]
    try:
        with install_import_hook(name, "beartype.beartype"):
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            vars(module).update(Bool=jaxtyping.Bool, Float=jaxtyping.Float, Int=jaxtyping.Int)
            spec.loader.exec_module(module)
    finally:
        sys.modules[name] = plain
    return module
