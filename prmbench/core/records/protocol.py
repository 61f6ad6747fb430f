"""Evaluation protocols and their names in rows, tables and options. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from prmbench.core.records.kinds import Boundary, Readout, Threshold, Tie, UserError


def _number(text: str) -> float | None:
    """Return the finite number that a text spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """How step scores become a verdict. Its `key` is the protocol's name.

    Keys have the form `[series.]readout/threshold[:argument][@release]`, e.g. `step_sum/oracle`,
    `prefix_mean/calibrated:gsm8k`, `logprob.step_sum/fixed:0`, `step_sum/oracle@release`, `step_sum/ranking`.
    """

    readout: Readout
    threshold: Threshold
    at: float | None = None
    """The threshold of a `fixed` or `native` rule, in the unit of the readout."""
    on: str | None = None
    """The subset on which a `calibrated` rule tunes its threshold."""
    series: str = ""
    """The series of scores: empty for `values`, otherwise a key of `also`."""
    boundary: Boundary = "exact"
    tie: Tie = "right"
    """The label of a step whose score equals the threshold: the run's own, which no key names."""

    @property
    def is_tuned(self) -> bool:
        """Whether the rule tunes its threshold on labelled traces."""
        return self.threshold not in ("native", "fixed", "ranking")

    @property
    def key(self) -> str:
        """The protocol's name in rows, tables and `--protocol`."""
        argument = "" if self.on is None else f":{self.on}"
        if self.threshold == "fixed" and self.at is not None:
            short = f"{self.at:g}"
            argument = f":{short if float(short) == self.at else repr(self.at)}"
        prefix = f"{self.series}." if self.series else ""
        suffix = "" if self.boundary == "exact" else f"@{self.boundary}"
        return f"{prefix}{self.readout}/{self.threshold}{argument}{suffix}"

    @classmethod
    def parse(cls, key: str) -> EvalProtocol:
        """Parse a protocol's name.

        Raises:
            UserError: The spelling is one that `key` never produces.
        """
        body, _, boundary = key.partition("@")
        scores, slash, rule = body.partition("/")
        series, _, readout = scores.rpartition(".")
        threshold, _, argument = rule.partition(":")
        is_valid = slash and readout in get_args(Readout) and threshold in get_args(Threshold)
        if not is_valid or boundary not in ("", *get_args(Boundary)):
            raise UserError(
                f"protocol {key!r}: expected [series.]readout/threshold[:argument][@release], "
                f"readout one of {', '.join(get_args(Readout))}, threshold one of {', '.join(get_args(Threshold))}"
            )
        at = on = None
        if threshold == "fixed":
            at = _number(argument)
            if at is None:
                raise UserError(f"protocol {key!r}: a fixed threshold needs its number, e.g. fixed:0.5")
        elif threshold.startswith("calibrated"):
            on = argument
            if not on:
                raise UserError(f"protocol {key!r}: a calibrated threshold needs its subset, e.g. calibrated:gsm8k")
        elif argument:
            raise UserError(f"protocol {key!r}: {threshold} takes no argument")
        return cls(readout, threshold, at, on, series, boundary or "exact")  # type: ignore[arg-type]
