"""Faster arithmetic for a loaded model: bfloat16 products on a CPU, Liger's Triton kernels, torch.compile by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prmbench.core import extras
from prmbench.core.records import UserError

BF16_PRODUCTS = "bf16-products"
"""The precision in which linear layers multiply in bfloat16 and all else is float32."""


def check_bf16_products(device: str) -> None:
    """Raise UserError unless the device is a CPU with instructions for products of bfloat16 numbers."""
    if device != "cpu":
        raise UserError(f"--dtype {BF16_PRODUCTS}: is of CPUs; on {device} use bfloat16")
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        raise UserError(
            f"--dtype {BF16_PRODUCTS}: this CPU lacks the instructions (avx512_bf16 or amx_bf16 in lscpu); use float32"
        )


def round_products(model: Any) -> Any:
    """Let the linear layers of a model's body multiply in bfloat16, and return the model.

    Their weights, inputs and results are rounded to bfloat16, sums inside a product are float32. Residual stream,
    norms, attention, embeddings and the output head stay float32. Frozen weights are held in bfloat16 only.
    """
    for module in model.base_model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_round_input)
            module.register_forward_hook(_widen_result)
    return model


def _round_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(torch.bfloat16), *inputs[1:])


def _widen_result(_: nn.Module, __: tuple[Tensor, ...], result: Tensor) -> Tensor:
    return result.float()


def apply_liger(model: Any, device: str) -> None:
    """Replace norms, rotary embeddings and gated units of a model by Liger's kernels.

    Raises:
        UserError: Liger is not installed, there is no GPU, or it does not know the model's architecture.
    """
    option = "--kernels liger"
    if not device.startswith("cuda"):
        raise UserError(f"{option}: its kernels run on a GPU, not on {device}; drop it")
    extras.require("liger_kernel", option)
    from liger_kernel.transformers import monkey_patch

    kind = model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"{option}: it has no kernels for models of type {kind}; drop it")
    # Its losses stay off: they would compute logits of all positions, or need labels.
    monkey_patch._apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


def compile_layers(model: Any) -> None:
    """Compile every decoder layer in place, once for all lengths.

    Layers of one class share their code, so that the first alone takes long to compile.

    Raises:
        UserError: The model does not say what its layers are.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(f"--compile: {type(model).__name__} does not name its layers; drop it")
    for layer in layers:
        layer.compile(dynamic=True)
