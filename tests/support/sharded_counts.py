"""Run in each process of a group: measures what each process loads, hashes and sends, into `<folder>/<rank>.json`."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from prmbench.core import processes
from prmbench.engines.hf import Placement
from prmbench.training import checkpoints
from prmbench.training import model as models
from prmbench.training.model import ModelSetup, Runner, open_runner


def setup(strategy: str, lora_rank: int = 0) -> ModelSetup:
    return ModelSetup(Placement("cpu", "float32"), strategy, lora_rank, seed=3)


def memory(name: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def whole(runner: Runner) -> dict[str, Any]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {**get_model_state_dict(runner.module, options=options), **dict(runner.module.named_buffers())}


def largest_difference(name: str, kind: Any, lora_rank: int) -> float:
    """Between the weights and buffers of a replicated and a sharded model; infinity where they differ in kind."""
    both = [open_runner(name, None, kind, setup(strategy, lora_rank)) for strategy in ("ddp", "fsdp")]
    replicated, sharded = ({n.removeprefix("module."): v for n, v in whole(runner).items()} for runner in both)
    trained = [[p.requires_grad for p in runner.model.parameters()] for runner in both]
    if processes.rank() > 0:  # its full weights are empty by design, its buffers are not
        replicated = {n: v for n, v in replicated.items() if n in sharded}
    is_alike = (
        replicated.keys() == sharded.keys()
        and trained[0] == trained[1]
        and both[0].engine.stops == both[1].engine.stops
    )
    return max(float((v - sharded[n]).abs().max()) for n, v in replicated.items()) if is_alike else float("inf")


def reductions(runner: Runner, kept: int) -> list[str]:
    """Names of the reductions in one update of three micro-batches; the gradients are left in the model."""
    processes.KEPT_GRADIENT_BYTES = kept
    counts: list[str] = []
    ids = torch.arange(6).reshape(1, 6) % 5 + processes.rank()
    runner.module.zero_grad()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("reduce_scatter_single", "all_reduce"):
            send = getattr(dist, name)

            def counted(*inputs: Any, name: str = name, send: Any = send, **options: Any) -> Any:
                counts.append(name)
                return send(*inputs, **options)

            patched.setattr(dist, name, counted)
        for number in range(3):
            with processes.gradient_accumulation(runner.module, last=number == 2):
                runner.run(ids + number, torch.arange(5), ids[0, 1:]).sum().backward()
    return counts


def measure(folder: Path) -> None:
    processes.start()
    result: dict[str, Any] = {}

    # Loading: the same numbers as with a copy in each process, but one process alone holds the whole model.
    cases = [(name, kind, rank) for name in ("tied", "untied") for kind in ("lm", "value") for rank in (0, 2)]
    result["differences"] = [largest_difference(str(folder / name), kind, rank) for name, kind, rank in cases]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    runner = open_runner(str(folder / "large"), None, "lm", setup("fsdp"))
    result["model_bytes"] = sum(4 * p.numel() for p in runner.model.parameters())
    result["peak_bytes"] = memory("VmHWM") - before
    try:
        open_runner(str(folder / "absent"), None, "lm", setup("fsdp"))
    except models.UserError as error:
        result["error"] = str(error)

    # Hashing: each process its own shards when saving, a share of the files when resuming.
    hashed: list[int] = []
    digest = checkpoints._digest
    checkpoints._digest = lambda path: (hashed.append(path.stat().st_size), digest(path))[1]
    checkpoints.save(folder / "checkpoints", 1, checkpoints.training_state(runner.model, None), {})
    result["hashed_when_saving"] = sum(hashed)
    hashed.clear()
    result["is_found"] = checkpoints.newest(folder / "checkpoints") is not None
    result["hashed_when_resuming"] = sum(hashed)
    shard = folder / "checkpoints" / "00000001" / "__1_0.distcp"
    if processes.rank() == 0:
        raw = shard.read_bytes()
        shard.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
    processes.barrier()
    result["damaged_is_found"] = checkpoints.newest(folder / "checkpoints") is not None

    # Gradients: one reduction per shard of the model and update, where they may be kept until then. A mesh of two
    # nodes with one process each reduces them between the nodes once an update in any case.
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    gradients = []
    for strategy, name, kept in (
        ("fsdp", "kept", 1 << 30),
        ("fsdp", "each", 0),
        ("hsdp", "kept", 1 << 30),
        ("hsdp", "each", 0),
    ):
        runner = open_runner(str(folder / "tied"), None, "lm", setup(strategy))
        result[f"{strategy}_{name}"] = dict(Counter(reductions(runner, kept)))
        gradients.append([p.grad.full_tensor() for p in runner.trained if p.grad is not None])
    result["modules"] = sum(isinstance(m, FSDPModule) for m in runner.module.modules())
    result["gradient_size"] = max(float(g.abs().max()) for g in gradients[0])
    result["gradient_difference"] = max(
        float((a - b).abs().max()) for others in gradients[1:] for a, b in zip(gradients[0], others, strict=True)
    )
    (folder / f"{processes.rank()}.json").write_text(json.dumps(result))
