"""prmbench: evaluates process reward models, and says how far to trust the numbers.

The public names load on first use, so that `import prmbench` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "EvalConfig": "config",
    "EvalProtocol": "schema",
    "RunResult": "schema",
    "StepScores": "schema",
    "Trace": "schema",
    "UserError": "schema",
    "evaluate": "evaluate",
    "judge": "judge",
    "load_backend": "backends",
    "read_run": "store",
}
__all__ = [
    "EvalConfig",
    "EvalProtocol",
    "RunResult",
    "StepScores",
    "Trace",
    "UserError",
    "evaluate",
    "judge",
    "load_backend",
    "read_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prmbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prmbench.{_HOMES[name]}"), name)
