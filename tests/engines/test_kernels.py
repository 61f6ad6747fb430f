"""Faster arithmetic: products in bfloat16 on a CPU, Liger's kernels, and compilation by layer."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from prmbench.backends import common
from prmbench.config import EvalConfig, ModelConfig
from prmbench.core.records import UserError
from prmbench.engines import kernels
from prmbench.engines.encoding import Encoded
from prmbench.engines.hf import HFEngine, Placement, load

BATCH = [Encoded("a", tuple(range(3, 40)), 2, (9, 37)), Encoded("b", tuple(range(5, 12)), 2, (7,))]
ROUNDED = Placement("cpu", kernels.BF16_PRODUCTS)


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with the instructions; without them the same numbers only take longer."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def logprobs(engine: HFEngine) -> np.ndarray:
    return np.concatenate([out.logprobs for out in engine.logprobs(BATCH)])


@pytest.mark.usefixtures("capable")
def test_only_products_are_rounded(policy: Path) -> None:
    """One linear layer is the product of rounded factors, rounded; the stream between layers is float32."""
    rounded, exact = load(str(policy), "lm", ROUNDED.resolve()), load(str(policy), "lm", Placement("cpu", "float32"))
    assert rounded.model.dtype == torch.float32
    assert rounded.weight_bytes < exact.weight_bytes
    layer, original = (e.model.model.layers[0].mlp.up_proj for e in (rounded, exact))
    x = torch.randn(5, layer.in_features)
    expected = x.bfloat16().double() @ original.weight.bfloat16().double().T
    torch.testing.assert_close(layer(x).double(), expected, rtol=2**-8, atol=1e-6)
    assert layer(x).dtype == torch.float32
    states = rounded.hidden_states(BATCH)[0]
    assert not torch.equal(states, states.bfloat16().float())
    bfloat16 = load(str(policy), "lm", Placement("cpu", "bfloat16"))
    errors = [float(np.sqrt(np.mean((logprobs(e) - logprobs(exact)) ** 2))) for e in (rounded, bfloat16)]
    assert 0 < errors[0] < errors[1]


@pytest.mark.usefixtures("capable")
def test_an_empty_model_of_rounded_products_has_its_size(policy: Path) -> None:
    placement = ROUNDED.resolve()
    assert (
        load(str(policy), "lm", placement, empty=True).weight_bytes == load(str(policy), "lm", placement).weight_bytes
    )


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_rounded_products_need_a_cpu_that_has_them(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: False})
    with pytest.raises(UserError, match=r"--dtype bf16-products: this CPU lacks .*lscpu\); use float32"):
        ROUNDED.resolve()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True})
    assert ROUNDED.resolve() == ROUNDED


def test_rounded_products_are_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="is of CPUs; on cuda:0 use bfloat16"):
        Placement("cuda:0", kernels.BF16_PRODUCTS).resolve()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": kernels.BF16_PRODUCTS}, "--dtype bf16-products: is of the engine hf; use bfloat16"),
        ({"kernels": "liger", "compile": True}, "--kernels, --compile: is of the engine hf; drop it"),
    ],
)
def test_other_engines_have_kernels_of_their_own(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        common.resolve_placement(EvalConfig(model="m", engine="vllm", **options))


def test_options_reach_the_placement() -> None:
    config = ModelConfig(model="m", device="cpu", kernels="liger", compile=True)
    assert common.resolve_placement(config) == Placement("cpu", "float32", "liger", True)


# --- Liger -----------------------------------------------------------------------------------------------------------


def liger(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> list[tuple[object, dict[str, object]]]:
    """Stand in for Liger; returns what its function is called with."""
    calls: list[tuple[object, dict[str, object]]] = []
    package, transformers, patch = (
        ModuleType(name)
        for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    )
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(kinds)  # type: ignore[attr-defined]
    patch._apply_liger_kernel_to_instance = lambda model, **options: calls.append((model, options))  # type: ignore[attr-defined]
    transformers.monkey_patch = patch  # type: ignore[attr-defined]
    for module in (package, transformers, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("prmbench.core.extras.require", lambda *_: None)
    return calls


def test_liger_gets_the_model_without_its_losses(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fused loss would replace the forward pass of the language model."""
    calls = liger(monkeypatch, "llama")
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    engine = load(str(policy), "lm", Placement("cuda:0", "float32", "liger"), empty=True)
    assert calls == [(engine.model, {"cross_entropy": False, "fused_linear_cross_entropy": False})]


def test_an_architecture_that_liger_does_not_know(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger itself would say nothing, and the kernels would be torch's."""
    liger(monkeypatch, "qwen2")
    with pytest.raises(UserError, match="--kernels liger: it has no kernels for models of type llama; drop it"):
        kernels.apply_liger(load(str(policy), "lm", Placement("cpu", "float32")).model, "cuda:0")


def test_liger_needs_a_gpu(policy: Path) -> None:
    with pytest.raises(UserError, match="its kernels run on a GPU, not on cpu"):
        load(str(policy), "lm", Placement("cpu", "float32", "liger"))


# --- compilation -----------------------------------------------------------------------------------------------------


def test_every_layer_is_compiled_once_for_all_lengths(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compiled.append((type(self).__name__, options))
    )
    engine = load(str(policy), "lm", Placement("cpu", "float32", compile=True))
    assert compiled == [("LlamaDecoderLayer", {"dynamic": True})] * engine.model.config.num_hidden_layers


def test_compiled_layers_give_the_same_numbers(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile and run without the compiler of C++, whose minute this test saves."""
    exact = load(str(policy), "lm", Placement("cpu", "float32"))
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: real(self, backend="eager", **options))
    compiled = load(str(policy), "lm", Placement("cpu", "float32", compile=True))
    np.testing.assert_allclose(logprobs(compiled), logprobs(exact), atol=1e-6)


def test_a_model_without_named_layers() -> None:
    with pytest.raises(UserError, match="--compile: Linear does not name its layers; drop it"):
        kernels.compile_layers(torch.nn.Linear(2, 2))
