"""Limits of what a result may hold, and checks of single values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from reprlib import Repr
from typing import Any, TypeGuard

NAME = re.compile(r"[\w.+-]+")
"""Allowed names of subsets and series, which occur in protocol keys, averages and tables."""

# Limits. Each is far beyond what a real run needs, and keeps a forged one from exhausting memory or time.
MAX_TRACES = 10_000_000
MAX_REPLICATES = 10_000
MAX_WEIGHTS = 2_000_000_000
"""Replicates times traces: the weights that a bootstrap holds in memory."""
MAX_ITEMS = 1_000
"""Largest number of items in a list of the manifest."""
MAX_SETTINGS = 10_000
"""Largest number of values in `config`, nested ones included."""
NAME_LENGTH, TEXT_LENGTH, NOTE_LENGTH = 200, 1_000, 20_000
"""Largest numbers of characters. An average's name holds the names of all its subsets, a note may name all of these,
and a user's id or group may be a whole problem."""
LARGEST_SCORE = 1e12
LARGEST_COUNT = 2**53
"""Largest whole number up to which a float holds all of them exactly."""
LARGEST_NUMBER = 1e100
"""Largest value of an option or a monitor; squares of larger ones would overflow."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that control a terminal or the direction of writing, other than line breaks and tabs."""

short = Repr()
short.maxstring = short.maxother = short.maxlong = 60
short.maxlist = short.maxtuple = short.maxdict = 4
"""`short.repr(value)` is the shortened representation of a value of unknown origin for an error message."""

Fault = tuple[str, str]
"""The path of a field, such as `manifest.n`, and what is wrong with it."""


def setting_faults(config: Mapping[str, Any], path: str) -> Iterator[Fault]:
    """Yield what is wrong with recorded options: they may be any JSON values within the limits."""
    queue: list[tuple[str, Any]] = [(name, part) for name, value in config.items() for part in (name, value)]
    count = 0
    while queue:
        name, value = queue.pop()
        count += 1
        if count > MAX_SETTINGS:
            yield path, f"has more than {MAX_SETTINGS} values"
            return
        if isinstance(value, Mapping):
            queue += [(name, part) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            queue += [(name, item) for item in value]
        elif isinstance(value, str):
            yield from ((_setting(path, name), fault) for _, fault in text_faults(name, value))
        elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
            yield _setting(path, name), f"is {short.repr(value)}, not a finite number up to {LARGEST_NUMBER:g}"


def _setting(path: str, name: str) -> str:
    """The path of an option, whose name may be anything."""
    shown = short.repr(name)[1:-1]
    return f"{path}.{shown}" if path else shown


def all_within(values: Sequence[float], low: float, high: float) -> bool:
    """Return whether all values are finite and in the range; fast, since it sees every number of every file.

    The range is checked first: `isfinite` fails on very large integers, and `min` may miss NaN.
    """
    return not values or (low <= min(values) and max(values) <= high and all(map(math.isfinite, values)))


def is_count(value: Any) -> bool:
    """Return whether the value is a whole number of at least 0 that a float holds exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether the value is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def text_faults(field: str, text: str, max_length: int = TEXT_LENGTH) -> Iterator[Fault]:
    """Yield the fault of a text that is too long, or that has characters which control a terminal."""
    if len(text) > max_length:
        yield field, f"has {len(text):,} characters, more than {max_length:,}"
    elif not text.isprintable() and CONTROL.search(text):
        yield field, f"is {short.repr(text)}, which has control characters"
