"""Run in each process of a group: a sharded model sends its weights to a copy; writes what each process saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from small_samplers import PROMPTS, draw, loaded

from prmbench.core import processes
from prmbench.engines.generation import SampledTokens
from prmbench.engines.weight_sync import ModelCopyLink, ModelWeights
from prmbench.engines.weight_sync_check import TOLERANCE, perturbed_weights, self_test
from prmbench.training.model import Forward


def send_weights(source: Path, other: Path, out: Path) -> None:
    processes.start()
    rank = processes.rank()
    trained, copied = loaded(source), loaded(other)
    module = processes.wrap_distributed(Forward(trained.model, "lm"), "fsdp", "cpu", torch.float32)

    @torch.no_grad()
    def logprobs(drawn: Sequence[SampledTokens]) -> NDArray[np.floating]:
        found = []
        for prompt, d in zip(PROMPTS, drawn, strict=True):
            ids = torch.tensor([[*prompt, *d.ids]])
            reads = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
            found.append(module(ids, reads, torch.tensor(d.ids)).numpy())
        processes.reshard(module)
        return np.concatenate(found)

    mine = partial(draw, copied, [10 * rank + n for n in range(len(PROMPTS))])
    found = self_test(
        ModelCopyLink(copied),
        ModelWeights(trained.model),
        partial(perturbed_weights, module),
        mine,
        logprobs,
        TOLERANCE["float32"],
    )
    told = {**asdict(found), "drawn": [d.ids for d in draw(copied)]}
    (out / f"{rank}.json").write_text(json.dumps(told))
