"""What one option is: a dataclass field with its default and its help text."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A dataclass field with the help text that `--help` shows."""
    return field(default=default, metadata={"help": text})
