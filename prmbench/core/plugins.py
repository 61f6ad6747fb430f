"""Objects of the user's own modules: finds them by `pkg.mod:NAME`, and says where in their files an error lies."""

from __future__ import annotations

import importlib
import inspect
import signal
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from prmbench.core.records import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()
_INSTALL_FOLDERS = ("site-packages", "dist-packages")
MAIN = 'if __name__ == "__main__":'
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
    except BaseException as error:  # also SystemExit: a script without a guard ends the program when it is imported
        if _is_signal(error):
            raise
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
    except BaseException as error:
        if _is_signal(error):
            raise
        source = f"entry point {entry.name} ({group}): {entry.value}"
        cause = _import_error(error, entry.module)
        raise UserError(f"{source} cannot be loaded: {cause}, or uninstall its package") from error


def _remember(module: str) -> None:
    if module.partition(".")[0] != _PACKAGE.name:
        _imported.add(module)


def _import_error(error: BaseException, module: str) -> str:
    """Returns why a module cannot be imported, with file and line where the cause lies in it."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"cannot be imported ({error}); is its folder on PYTHONPATH?"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}; repair it"
    if isinstance(error, SystemExit):
        return f"{_place(error) or module}: ends the program ({_description(error)}) on import; put that below {MAIN}"
    return f"{_place(error) or module}: {_description(error)}; repair it"


def _description(error: BaseException) -> str:
    return f"{type(error).__name__} ({error})" if str(error) else type(error).__name__


def _is_signal(error: BaseException) -> bool:
    """Whether the user stopped the program: a plugin may raise KeyboardInterrupt, too.

    The command line's handlers of signals raise it in a frame of their own; Python's raises it wherever the program is.
    """
    if not isinstance(error, KeyboardInterrupt) or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return isinstance(error, KeyboardInterrupt)
    frames = traceback.extract_tb(error.__traceback__)
    return not (frames and _is_plugin_file(frames[-1].filename))


def check_arguments(function: Callable[..., Any], arguments: Sequence[str], name: str) -> None:
    """Checks that a plugin's function or class can be called, before the call: then it is known whose fault it is.

    Args:
        function: The function, or the class.
        arguments: Names of the positional arguments of the call, for the message.
        name: What the function is, for the message where it has no file: `--backend pkg.mod:Class`.

    Raises:
        UserError: It does not take so many arguments.
    """
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:
        return  # written in C: without a signature
    except TypeError as error:
        target = function.__init__ if inspect.isclass(function) else function
        code = getattr(target, "__code__", None)
        place = f"{code.co_filename}, line {code.co_firstlineno}" if code else name
        called = getattr(target, "__qualname__", name)
        raise UserError(f"{place}: {called} must take ({', '.join(arguments)}): {error}; repair it") from error


def plugin_fault(error: BaseException) -> str:
    """Returns `FILE, line N: ...` for an error that a module of the user's raised; empty for any other error."""
    if not _imported or _is_signal(error):
        return ""
    place = _place(error)
    return f"{place}: {_description(error)}; repair it" if place else ""


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
