"""Objects of the user's own modules, named on the command line as `pkg.mod:NAME`."""

from __future__ import annotations

import importlib
from typing import Any

from prmbench.core.records import UserError


def import_named(path: str, option: str) -> Any:
    """Returns what `pkg.mod:NAME` names.

    Args:
        path: The name.
        option: Where the user wrote it, for messages: `--benchmark`.

    Raises:
        UserError: The module cannot be imported, or has no such name.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"{option} {path}: write it as pkg.mod:NAME")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{option} {path}: cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    except Exception as error:
        raise UserError(f"{option} {path}: its module raises {type(error).__name__} ({error}); repair it") from error
    if not hasattr(imported, name):
        raise UserError(f"{option} {path}: cannot be imported ({module} has no {name}); choose a name that it has")
    return getattr(imported, name)
