"""Packages that only some commands need: which extra of prmbench brings each, and the message where it is missing."""

from __future__ import annotations

import importlib.util

from prmbench.core.records import UserError

EXTRAS = {
    "accelerate": "train",
    "bitsandbytes": "adam8bit",
    "fastapi": "serve",
    "gguf": "demo",
    "httpx2": "openai",
    "latex2sympy2_extended": "verify",
    "liger_kernel": "liger",
    "math_verify": "verify",
    "openai": "openai",
    "peft": "train",
    "reasoning_gym": "verify",
    "uvicorn": "serve",
    "vllm": "vllm",
}
"""Module -> the extra that installs it. Every module that this package imports is here or a dependency."""


def require(module: str, purpose: str) -> None:
    """Raises UserError with the command that installs a module, unless it is there. Nothing is imported.

    Args:
        module: A key of EXTRAS.
        purpose: What needs it, as the user wrote it: `--lora-rank`.
    """
    if importlib.util.find_spec(module) is None:
        raise missing(module, purpose)


def missing(module: str, purpose: str, cause: ImportError | None = None) -> UserError:
    """Returns the error that says that a module is not installed, and which command installs it.

    Args:
        module: The module.
        purpose: What needs it, as the user wrote it.
        cause: What importing it raised, where it was tried.
    """
    why = f" ({cause})" if cause else ""
    return UserError(f"{purpose}: needs {module.replace('_', '-')}, which is not installed{why}; {remedy(module)}")


def remedy(module: str) -> str:
    """Returns the command that installs a module: with its extra, or by itself where no extra has it."""
    return f"pip install 'prmbench[{EXTRAS[module]}]'" if module in EXTRAS else f"pip install {module}"
