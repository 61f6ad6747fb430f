"""A tiny model that samples three completions, for tests of weights on their way to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prmbench.engines.generation import SampledTokens, Sampling
from prmbench.engines.hf import HFEngine, Placement, load

PROMPTS = [[5, 6, 7], [40, 41], [9, 8, 7, 6]]
CPU = Placement("cpu", "float32")


def loaded(folder: Path) -> HFEngine:
    return load(str(folder), "lm", CPU)


def draw(engine: Any, seeds: Sequence[int] = (1, 2, 3)) -> list[SampledTokens]:
    return engine.sample(PROMPTS, [8] * len(PROMPTS), seeds, Sampling(), ())
