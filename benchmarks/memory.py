"""Peak memory as training/memory.py predicts it from shapes, against a count of every tensor of a real update.

The count runs the trainer's own forward and backward passes and its optimizer on fake tensors, which have shapes and no
numbers: two micro-batches and a step, once the optimizer has its state, and a pass without gradients. It takes the
branches of a GPU (bfloat16 autocast, flash attention, rounded factors of the head) and needs none.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import transformers
from shapes import SHAPES
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prmbench.config import TrainConfig
from prmbench.engines import token_logprobs
from prmbench.engines.hf import HFEngine, Placement
from prmbench.training import optimiser
from prmbench.training.memory import GIB, Plan, Shape, distrl_phases, shape_of, vllm_bytes
from prmbench.training.model import ModelSetup, Runner, add_adapters, prepared

TOLERANCE = 0.1
COLUMNS = 11
"""Tokens whose log-probabilities are read at a position: the sampled one and ten candidates."""
MODELS = ("1.5B", "7B")


class GpuSetup(ModelSetup):
    """A setup that stores frozen matrices as on a GPU, for fake tensors that say they are on a CPU."""

    frozen_dtype = torch.bfloat16


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, each storage once, and their peak."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._references: dict[int, Any] = {}
        for tensor in tensors:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._references:
            return

        def freed(_: Any) -> None:
            del self._references[key]
            self.live -= size

        self._references[key] = weakref.ref(storage, freed)
        self.live += size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts what it returns."""
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        self.peak = max(self.peak, self.live)
        return output


def flash_attention(_: Any, query: Tensor, key: Tensor, value: Tensor, __: Any, **___: Any) -> tuple[Tensor, None]:
    """Calls the operation that causal attention without a mask runs on a GPU."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)[0]
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Makes tensors without numbers, for which the package takes its branches for a GPU."""
    ALL_ATTENTION_FUNCTIONS.register("counted", flash_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("counted", lambda *_, **__: None)
    chunk = token_logprobs.default_chunk
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(FakeTensor, "is_cuda", property(lambda _: True)))
        on_gpu = lambda weight: chunk(torch.empty(len(weight), 0, device="meta"))  # noqa: E731
        stack.enter_context(mock.patch.object(token_logprobs, "default_chunk", on_gpu))
        # Moving a model whose weights are fake fails, and all of them are where they should be.
        stack.enter_context(mock.patch.object(nn.Module, "_apply", lambda module, *_, **__: module))
        stack.enter_context(FakeTensorMode())
        yield


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    model: str
    lora_rank: int
    checkpointing: bool

    def __str__(self) -> str:
        """Names the case as the table does."""
        weights = f"LoRA-{self.lora_rank}" if self.lora_rank else "full"
        return f"{self.model} {weights}{', checkpointing' if self.checkpointing else ''}"


def count(config: Any, case: Case, rows: int, length: int) -> dict[str, int]:
    """Returns the counted bytes: those that stay, and the peaks of an update and of a pass without gradients."""
    with pretend_gpu():
        config._attn_implementation = "counted"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        setup = GpuSetup(Placement("cpu", "bfloat16"), "ddp", case.lora_rank, case.checkpointing)
        adapters = add_adapters(model, "lm", case.lora_rank) if case.lora_rank else None
        runner = prepared(HFEngine(model, None), adapters, "lm", setup)
        optimizer = optimiser.make(runner.trained, TrainConfig())
        ids = torch.zeros(rows, length, dtype=torch.long)
        positions, targets = torch.arange(rows * length), torch.zeros(rows * length, COLUMNS, dtype=torch.long)
        bytes_ = LiveBytes([*runner.module.parameters(), *runner.module.buffers(), ids, positions, targets])
        with bytes_:
            _update(runner, optimizer, ids, positions, targets)  # allocates the optimizer's state
            kept = bytes_.peak = bytes_.live
            _update(runner, optimizer, ids, positions, targets)
            update, bytes_.peak = bytes_.peak, bytes_.live
            with torch.no_grad():
                runner.run(ids, positions, targets[:, 0], 0.1)
        return {"kept": kept, "update": update, "score": bytes_.peak}


def _update(runner: Runner, optimizer: Any, ids: Tensor, positions: Tensor, targets: Tensor) -> None:
    for _ in range(2):
        runner.run(ids, positions, targets).sum().backward()
    nn.utils.clip_grad_norm_(runner.trained, 1.0)
    optimiser.step(optimizer, 1e-5)


def predict(config: Any, case: Case, tokens: int) -> tuple[Plan, dict[str, int]]:
    """Returns the prediction of `count`."""
    plan = Plan(shape_of_config(config), half=True, lora_rank=case.lora_rank, checkpointing=case.checkpointing)
    kept = plan.weights + plan.moments
    update, score = kept + plan.gradients + plan.update(tokens), kept + plan.reading(tokens)
    return plan, {"kept": kept, "update": update, "score": score}


def print_phases(models: list[str], rank: int, tokens: int, length: int) -> None:
    """Prints the predicted peaks of train-distrl with a reward model that learns; vLLM sleeps but while it draws."""
    names = ("load", "draw", "score", "update_rm", "update_policy", "save")
    print(_row("GiB, policy and reward model beside vLLM", *names))
    print(f"|---|{'---:|' * len(names)}")
    for model in models:
        for lora_rank in (0, rank):
            for optimizer in ("adamw", "adamw_8bit")[: 1 if lora_rank else 2]:
                shape = shape_of_config(SHAPES[model].config())
                policy = Plan(shape, True, lora_rank=lora_rank, checkpointing=True, optimizer=optimizer)
                rm = replace(policy, shares_base=lora_rank > 0)
                phases = distrl_phases(policy, {"rm": rm}, tokens, vllm_bytes(shape, length))
                case = f"{Case(model, lora_rank, True)}, {optimizer}"
                print(_row(case, *(phases[name] for name in names)))


def shape_of_config(config: Any) -> Shape:
    """Returns the shape of the model that a config describes."""
    with torch.device("meta"):
        return shape_of(transformers.AutoModel.from_config(config))


def _row(*cells: object) -> str:
    return "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def main() -> None:
    """Prints the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layers", type=int, help="instead of the model's own")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=4095)
    parser.add_argument("--lora-rank", type=int, default=128)
    options = parser.parse_args()
    tokens = options.rows * options.length
    cases = [Case(m, rank, c) for m in options.models for rank in (0, options.lora_rank) for c in (False, True)]
    ratios: dict[str, float] = {}
    print(_row("GiB", "weights", "Adam", *(f"{p} predicted | counted" for p in ("update", "score")), "worst ratio"))
    print(f"|---|{'---:|' * 7}")
    for case in cases:
        shape = SHAPES[case.model]
        config = replace(shape, layers=options.layers or shape.layers).config()
        plan, predicted = predict(config, case, tokens)
        counted = count(config, case, options.rows, options.length)
        of_case = [predicted[phase] / counted[phase] for phase in counted]
        worst = max(of_case, key=lambda ratio: abs(ratio - 1))
        assert abs(worst - 1) <= TOLERANCE, f"{case}: predicted {predicted}, counted {counted}"
        ratios[str(case)] = worst
        pairs = [f"{predicted[p] / GIB:.1f} | {counted[p] / GIB:.1f}" for p in ("update", "score")]
        print(_row(case, plan.weights / GIB, plan.moments / GIB, *pairs, f"{worst:.3f}"), flush=True)
        last = (predicted["update"] / GIB, counted["update"] / GIB)
    print()
    print_phases(options.models, options.lora_rank, tokens, options.length)
    name = max(ratios, key=lambda case: abs(ratios[case] - 1))
    result = {
        "benchmark": "memory",
        "ratio": round(ratios[name], 4),
        "ours": round(last[0], 3),
        "peer": round(last[1], 3),
        "unit": "GiB at the peak of an update of the last case, predicted (ours) and counted (peer); ratio: the worst",
        "largest_difference": round(max(abs(ratio - 1) for ratio in ratios.values()), 4),
        "worst": name,
        "tokens": tokens,
        "ratios": {case: round(ratio, 4) for case, ratio in ratios.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
