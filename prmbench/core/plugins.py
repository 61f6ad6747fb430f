"""Objects of the user's own modules: finds them by `pkg.mod:NAME`, and says where in their files an error lies."""

from __future__ import annotations

import gc
import importlib
import re
import sys
import sysconfig
import traceback
from importlib.metadata import EntryPoint
from pathlib import Path
from types import FunctionType
from typing import Any

from prmbench.core.records import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()
_INSTALL_FOLDERS = ("site-packages", "dist-packages")
_CALL = re.compile(r"([\w.<>]+)\(\) (?:takes|missing|got)\b")
"""The message of a TypeError about a call with other arguments than a function takes."""
_imported: set[str] = set()
"""Names of the modules outside this package that were imported for the user."""


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
    _remember(module)
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise UserError(f"{option} {path}: {_import_error(error, module)}") from error
    if not hasattr(imported, name):
        file = getattr(imported, "__file__", None) or "a folder without code"
        raise UserError(f"{option} {path}: {module} has no {name} ({file}); choose a name that it has")
    return getattr(imported, name)


def load_entry_point(entry: EntryPoint, group: str) -> object:
    """Returns the object that an installed package's entry point names.

    Raises:
        UserError: The package cannot be imported, or has no such name.
    """
    _remember(entry.module)
    try:
        return entry.load()
    except Exception as error:
        source = f"entry point {entry.name} ({group}): {entry.value}"
        cause = _import_error(error, entry.module)
        raise UserError(f"{source} cannot be loaded: {cause}, or uninstall its package") from error


def _remember(module: str) -> None:
    if module.partition(".")[0] != _PACKAGE.name:
        _imported.add(module)


def _import_error(error: Exception, module: str) -> str:
    """Returns why a module cannot be imported, with file and line where the cause lies in it."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"cannot be imported ({error}); is its folder on PYTHONPATH?"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}; repair it"
    return f"{_place(error) or module}: {type(error).__name__} ({error}); repair it"


def plugin_fault(error: BaseException) -> str:
    """Returns `FILE, line N: ...` for an error that a module of the user's raised; empty for any other error.

    A call of one of its functions with arguments that the function does not take is such an error, too.
    """
    if not _imported or not isinstance(error, Exception):
        return ""
    place = _place(error) or (_signature_place(error) if isinstance(error, TypeError) else "")
    return f"{place}: {type(error).__name__} ({error}); repair it" if place else ""


def _place(error: BaseException) -> str:
    """Returns file and line of the innermost frame of a traceback that lies in a plugin; empty where none does."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_plugin_file(frame.filename)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _is_plugin_file(filename: str) -> bool:
    """Whether a file is neither of this package, nor of Python, nor of a package that no plugin is in."""
    path = Path(filename)
    if filename.startswith("<") or path.is_relative_to(_PACKAGE):
        return False
    if any(part in _INSTALL_FOLDERS for part in path.parts):
        tops = {module.partition(".")[0] for module in _imported}
        following = path.parts[max(path.parts.index(f) for f in _INSTALL_FOLDERS if f in path.parts) + 1]
        return following.removesuffix(".py") in tops
    return not path.resolve().is_relative_to(_STANDARD_LIBRARY)


def _signature_place(error: TypeError) -> str:
    """Returns where the function is defined that the message of the error names, if it is a plugin's."""
    match = _CALL.match(str(error))
    name = match[1] if match else None
    namespaces = [vars(sys.modules[module]) for module in _imported if module in sys.modules]
    for function in gc.get_objects():  # also finds lambdas and functions inside functions
        is_function = type(function) is FunctionType  # isinstance would wake lazy objects of libraries
        if is_function and function.__qualname__ == name and any(function.__globals__ is n for n in namespaces):
            return f"{function.__code__.co_filename}, line {function.__code__.co_firstlineno}"
    return ""
