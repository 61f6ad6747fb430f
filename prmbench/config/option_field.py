"""What one option is: a dataclass field with its default, its help text and the range of its numbers."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from prmbench.core.option_values import Range


def option(default: Any, text: str, **bounds: float) -> Any:
    """Return a dataclass field for an option.

    Args:
        default: The option's value when nobody sets it.
        text: The sentence or sentences that `--help` shows.
        bounds: Bounds of the option's numbers, by the field names of `Range`: `min`, `max`, `above`, `below`, `off`.
            They are checked where a config is built from flags, TOML or Python values; None passes.
    """
    return field(default=default, metadata={"help": text, "range": Range(**bounds) if bounds else None})
