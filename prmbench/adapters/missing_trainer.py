"""Imports a trainer when an adapter needs it, or says in one line that it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from prmbench.core.records import UserError


def import_trainer(module: str, trainer: str) -> ModuleType:
    """Return a module of a trainer. Raises UserError where it is not installed, or has no such module."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        installed = error.name is not None and error.name != module.partition(".")[0]
        reason = f"has no module {error.name}; another version may have it" if installed else "is not installed"
        raise UserError(f"{trainer} {reason}; this adapter runs inside {trainer} and needs {module}") from error
