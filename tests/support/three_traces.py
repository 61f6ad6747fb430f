"""Three short traces for models that are tiny."""

from __future__ import annotations

from prmbench.core.records import Trace

TRACES = [
    Trace("a", "What is 2 plus 3?", ("We add 2 and 3.", "That is 5.", "So the answer is 5."), first_error=-1),
    Trace("b", "Half of 18?", ("18 / 2 = 8.", "It is 8, which we check: 8 * 2 = 16, not 18."), first_error=0),
    Trace("c", "Is 91 prime?", ("No.",), first_error=-1),
]
