"""Sampling in half precision: the head sums in float32, as the trainer's, and frozen weights are converted once."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import pytest
import torch
import transformers
from static_decoding import decode_statically
from torch.utils._python_dispatch import TorchDispatchMode

from prmbench.engines import token_logprobs
from prmbench.engines.decoding import decode
from prmbench.engines.frozen_weights import frozen_weights_in
from prmbench.engines.generation import SampledTokens, Sampling

BF16 = torch.bfloat16
PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]] * 4
LIMITS = [24] * len(PROMPTS)


def _llama(tied: bool = False, vocab_size: int = 300) -> Any:
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _difference(model: Any, sampled: list[SampledTokens]) -> float:
    """Return the root mean square of sampler's minus trainer's log-probabilities, in nats."""
    differences = []
    for prompt, completion in zip(PROMPTS, sampled, strict=True):
        ids = torch.tensor([[*prompt, *completion.ids]])
        with torch.no_grad():
            states = model.base_model(ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
            targets = torch.tensor(completion.ids)
            trainer, _ = token_logprobs.target_logprobs(states, model.lm_head.weight, targets)
        differences.append(trainer.numpy() - np.array(completion.logprobs))
    return float(np.sqrt((np.concatenate(differences) ** 2).mean()))


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_float32_logits_are_nearer_to_the_trainers(how: str) -> None:
    model = _llama()
    model.lm_head.weight.data *= 4  # logits of a trained model's size, which round by more
    model.to(BF16 if how == "bfloat16" else torch.float32)
    with torch.autocast("cpu", BF16, enabled=how == "autocast"):
        arguments = (model, PROMPTS, LIMITS, list(range(len(PROMPTS))), Sampling(), ())
        ours, rounded = decode(*arguments), decode_statically(*arguments)
        assert _difference(model, ours) < 0.9 * _difference(model, rounded)


def test_the_head_equals_that_of_the_trainer_exactly() -> None:
    """On equal states, and so at the first token of a prompt that is read alone."""
    model = _llama().to(BF16)
    sampled = decode(model, [[1, 2, 3]], [1], [5], Sampling(), ())[0]
    states = model.base_model(torch.tensor([[1, 2, 3]])).last_hidden_state[0, -1:]
    trainer, _ = token_logprobs.target_logprobs(states, model.lm_head.weight, torch.tensor(sampled.ids))
    assert trainer.item() == pytest.approx(sampled.logprobs[0], abs=1e-6)


@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
def test_a_head_that_is_set_aside_is_read(tmp_path: Path) -> None:
    """As `--device balanced` does with what does not fit on the GPUs."""
    arguments = (PROMPTS[:3], LIMITS[:3], [1, 2, 3], Sampling(), ())
    reference = decode(_llama().to(BF16), *arguments)
    model = _llama().to(BF16)
    accelerate.dispatch_model(model, {"model": "cpu", "lm_head": "disk"}, main_device="cpu", offload_dir=tmp_path)
    assert model.lm_head.weight.device.type == "meta"
    assert decode(model, *arguments) == reference


class Conversions(TorchDispatchMode):
    """Sums the bytes that conversions to another precision write, of matrices as large as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        converts = function.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy)  # by inference mode
        if converts and out.dtype != args[0].dtype and out.dim() == 2:
            self.bytes += out.numel() * out.element_size() * (min(out.shape) >= 32)
        return out


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_weights_are_converted_once(tied: bool) -> None:
    model = _llama(tied)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]))
    before = {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()}
    weights = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.dim() == 2 and "lora" not in n)
    found = {}
    for is_held in (False, True):
        held = frozen_weights_in(model, BF16) if is_held else nullcontext()
        with torch.autocast("cpu", BF16), Conversions() as conversions, held:
            sampled = decode(model, PROMPTS, LIMITS, range(len(PROMPTS)), Sampling(), ())
        found[is_held] = sampled, conversions.bytes
    assert found[True][0] == found[False][0]  # to the bit, log-probabilities included
    passes = LIMITS[0]  # one that reads the prompts, and one for each token but the last
    assert found[False][1] == passes * weights * 2
    assert found[True][1] == weights * 2
    assert {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()} == before


def test_weights_are_put_back_after_an_error_and_left_alone_in_full_precision() -> None:
    model = _llama().requires_grad_(False)
    weight = model.model.layers[0].mlp.up_proj.weight
    pointer = weight.data_ptr()
    dtypes = []

    def fail() -> None:
        with frozen_weights_in(model, BF16):
            dtypes.append(weight.dtype)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert dtypes == [BF16]
    assert (weight.dtype, weight.data_ptr()) == (torch.float32, pointer)
    with frozen_weights_in(model, None):
        assert weight.data_ptr() == pointer
    with frozen_weights_in(model.requires_grad_(True), BF16):
        assert weight.data_ptr() == pointer
