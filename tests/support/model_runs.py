"""Run in each process of a group: opens models to train and to read, and process 0 writes what they are as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prmbench.core import processes
from prmbench.engines.hf import Placement
from prmbench.training.model import ModelSetup, Runner, open_runner, with_shared_base

IDS = torch.arange(4, 10).repeat(2, 1)


def logprobs(runner: Runner) -> Tensor:
    """Log-probabilities of a few tokens."""
    positions = torch.arange(5)
    return runner.run(IDS, positions, IDS[0, positions + 1]).detach()


def facts(runner: Runner) -> dict[str, Any]:
    """The wrapper, the bytes of what is trained and of what is not, and numbers of a forward pass."""
    frozen = {name: p for name, p in runner.module.named_parameters() if not p.requires_grad}
    return {
        "wrapper": type(runner.module).__name__,
        "trained": sum(p.numel() for p in runner.trained),
        "matrices": sorted({str(p.dtype) for name, p in frozen.items() if "proj" in name}),
        "others": sorted({str(p.dtype) for name, p in frozen.items() if "proj" not in name and "lm_head" not in name}),
        "training": runner.model.training,
        "logprobs": logprobs(runner).tolist(),
    }


def open_all(model: str, out: Path) -> None:
    """Opens a frozen model and one with adapters, with each strategy."""
    ModelSetup.frozen_dtype = torch.bfloat16  # type: ignore[assignment,method-assign]  # as on a GPU
    processes.start()
    told = {}
    for strategy in ("ddp", "fsdp"):
        setup = ModelSetup(Placement("cpu", "bfloat16"), strategy, lora_rank=2)
        told[f"{strategy} lora"] = facts(runner := open_runner(model, None, "lm", setup))
        if strategy == "ddp":
            told["ddp shared"] = facts(with_shared_base(runner, setup))
        frozen = ModelSetup(Placement("cpu", "bfloat16"), strategy, frozen=True)
        told[f"{strategy} frozen"] = facts(open_runner(model, None, "lm", frozen))
    if processes.rank() == 0:
        out.write_text(json.dumps(told))
