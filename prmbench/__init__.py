"""prmbench: evaluates process reward models, and says how far to trust the numbers.

The public names load on first use, so that `import prmbench` stays light; docs/api.md has an example of each.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "EvalConfig": ("config", "EvalConfig"),
    "EvalProtocol": ("core.records", "EvalProtocol"),
    "RunResult": ("core.records", "RunResult"),
    "StepScores": ("core.records", "StepScores"),
    "Trace": ("core.records", "Trace"),
    "UserError": ("core.records", "UserError"),
    "evaluate": ("evaluation", "evaluate"),
    "load_backend": ("backends", "load_backend"),
    "load_traces": ("data", "load"),
    "read_run": ("core.result_files", "read_run"),
}
"""Public name -> module, and name there. No public name is a module's: importing that would overwrite it."""
__all__ = [
    "EvalConfig",
    "EvalProtocol",
    "RunResult",
    "StepScores",
    "Trace",
    "UserError",
    "evaluate",
    "load_backend",
    "load_traces",
    "read_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prmbench' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"prmbench.{module}"), attribute)
