"""Continuous batching: equal to one static batch, whatever the cache holds, and with no forward row to waste."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from static_decoding import decode_statically
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prmbench.core.records import UserError
from prmbench.engines import decoding, decoding_cache
from prmbench.engines.decoding import decode, decode_continuously, splitmix64
from prmbench.engines.generation import SampledTokens, Sampling

V = 40
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 4,
}


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


def _sliding() -> Any:
    """One layer that sees six tokens back, one that sees all."""
    config = transformers.Gemma2Config(**SHAPE, sliding_window=6)
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    return transformers.Gemma2ForCausalLM(config)


def _learned_positions() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=V, n_positions=128, n_embd=16, n_layer=2, n_head=2)
    )


def _linear_attention() -> Any:
    """Convolutions instead of attention in one of two layers."""
    config = transformers.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"], pad_token_id=0)
    assert not decoding_cache.is_plain(config)
    return transformers.Lfm2ForCausalLM(config)


ARCHITECTURES = {f.__name__.strip("_"): f for f in (_llama, _sliding, _learned_positions, _linear_attention)}


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Any:
    return _random(ARCHITECTURES[request.param])


@pytest.fixture
def llama() -> Any:
    return _random(_llama)


def _random(make: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    model = make().eval()
    for parameter in model.parameters():  # far from uniform, so that a wrong mask changes tokens
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.5)
    return model


def _work(count: int = 24) -> tuple[list[list[int]], list[int], list[int]]:
    """Prompts of unequal length, every third of them shared by several rows, with limits and seeds."""
    draws = np.random.default_rng(0)
    distinct = [draws.integers(0, V, draws.integers(1, 15)).tolist() for _ in range(count // 3)]
    prompts = [distinct[i % len(distinct)] for i in range(count)]
    return prompts, draws.integers(1, 40, count).tolist(), list(range(100, 100 + count))


def _same(ours: list[SampledTokens], reference: list[SampledTokens]) -> bool:
    for one, other in zip(ours, reference, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-4, rtol=0)
    return [one.ids for one in ours] == [other.ids for other in reference]


# --- the same completions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Sampling(1.0), Sampling(0.0), Sampling(0.7, top_p=0.8, top_k=9)])
def test_completions_equal_those_of_one_static_batch(model: Any, how: Sampling) -> None:
    prompts, limits, seeds = _work()
    uncut = decode_statically(model, prompts, limits, seeds, how, ())
    stops = {uncut[i].ids[len(uncut[i].ids) // 2] for i in range(0, len(uncut), 9)}
    reference = decode_statically(model, prompts, limits, seeds, how, stops)
    assert sum(len(r.ids) < limit for r, limit in zip(reference, limits, strict=True)) > 3
    for cache_tokens in (None, 400, 150, 1):
        assert _same(decode(model, prompts, limits, seeds, how, stops, cache_tokens), reference)


def test_a_prompt_that_was_read_beside_a_long_one_is_inserted_without_its_padding(llama: Any) -> None:
    """Places for two: one prompt is read once, padded to 60, and inserted after all columns have moved to the left."""
    draws = np.random.default_rng(3)
    long, short = draws.integers(0, V, 60).tolist(), draws.integers(0, V, 5).tolist()
    prompts, limits = [long, *[short] * 40], [2, *draws.integers(5, 20, 40).tolist()]
    seeds = list(range(len(prompts)))
    reference = decode_statically(llama, prompts, limits, seeds, Sampling(1.0), ())
    assert _same(decode(llama, prompts, limits, seeds, Sampling(1.0), (), 2 * 129), reference)


def test_rows_that_give_up_their_place_go_on_where_they_were(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for four rows of the first width; all turn out to be long, so the cache is widened and rows wait again."""
    monkeypatch.setattr(decoding, "SLACK", 4)
    prompts, limits, seeds = [[1, 2, 3], [4], [5, 6], [7, 8]] * 2, [80] * 8, list(range(8))
    given_up = _count_calls(monkeypatch, decoding._Batch, "_give_up", lambda _, rows: len(rows))
    widened = _count_calls(monkeypatch, decoding_cache.FixedCache, "widen", lambda _, columns: columns)
    ours = decode(llama, prompts, limits, seeds, Sampling(), (), cache_tokens=108)
    assert _same(ours, decode_statically(llama, prompts, limits, seeds, Sampling(), ()))
    assert widened == [54, 87]  # 3 + 80 / 4 + 4 = 27, doubled, and the longest row with the slack
    assert given_up[0] == 2


def test_rows_in_progress_and_logits_at_a_time_are_limited(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory alone would let thousands of short rows begin, whose logits and noise it does not hold."""
    prompts, limits, seeds = _work()
    reference = decode_statically(llama, prompts, limits, seeds, Sampling(), ())
    monkeypatch.setattr(decoding, "MOST_ROWS", 5)
    monkeypatch.setattr(decoding, "SAMPLED_LOGITS", 2 * V)
    rows = _count_calls(monkeypatch, decoding, "_sample_rows", lambda logits, *_: len(logits))
    steps = _count_calls(monkeypatch, decoding, "sample_token", lambda logits, *_: len(logits))
    caches = _count_calls(
        monkeypatch, decoding_cache.FixedCache, "__init__", lambda _, tokens, columns: tokens // columns
    )
    for cache_tokens in (None, 2**20, 600):
        assert _same(decode(llama, prompts, limits, seeds, Sampling(), (), cache_tokens), reference)
    assert max(steps) == 5
    assert max(rows) == 2
    assert caches[:2] == [5, 5]


def test_tokens_move_to_the_left_when_the_columns_run_out(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SLACK", 4)
    prompts, limits, seeds = _work(60)
    shifts = _count_calls(monkeypatch, decoding_cache.FixedCache, "shift", lambda _, columns: columns)
    ours = decode(llama, prompts, limits, seeds, Sampling(), (), cache_tokens=4 * 60)
    assert _same(ours, decode_statically(llama, prompts, limits, seeds, Sampling(), ()))
    assert len(shifts) > 2
    assert min(shifts) >= 4


def _count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seen: Callable[..., int]) -> list[int]:
    calls: list[int] = []
    method = getattr(owner, name)

    def counted(*arguments: Any) -> Any:
        calls.append(seen(*arguments))
        return method(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_finished_completions_are_reported_before_others_end(llama: Any) -> None:
    reported: list[int] = []
    limits = [30, 2, 9]

    def report(i: int, tokens: SampledTokens) -> None:
        reported.append(i)
        assert len(tokens.ids) == len(tokens.logprobs) == limits[i]

    decode_continuously(llama, [[1], [2, 3], [4]], limits, [1, 2, 3], Sampling(), (), None, report)
    assert reported == [1, 2, 0]


def test_finished_completions_are_not_kept(llama: Any) -> None:
    """A run of a hundred thousand completions would keep gigabytes of tokens that are in its journal already."""
    alive: list[int] = []

    def report(*_: object) -> None:
        gc.collect()
        alive.append(sum(type(o) is decoding._Row for o in gc.get_objects()))

    decode_continuously(llama, [[1, 2]] * 12, [3] * 12, range(12), Sampling(), (), 4 * 70, report)
    assert alive[0] == 12
    assert alive[-1] <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_without_keys_and_values_is_refused(dtype: torch.dtype) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 4}
    model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(vocab_size=V, **shape)).eval().to(dtype)
    with pytest.raises(UserError, match="keeps no keys and values"):
        decode(model, [[1, 2]], [3], [0], Sampling(), ())


# --- the work done ------------------------------------------------------------------------------------------


class Passes:
    """Counts the rows of all forward passes of a model, of prompts and of single tokens."""

    def __init__(self, model: Any) -> None:
        self.prompts: list[int] = []
        self.steps: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        rows, width = inputs["input_ids"].shape
        (self.steps if inputs.get("past_key_values") is not None else self.prompts).append(rows)
        assert width == 1 or inputs.get("past_key_values") is None


def _dictate(monkeypatch: pytest.MonkeyPatch, lengths: Sequence[int]) -> None:
    """Let the completion of seed i have `lengths[i]` tokens: 1, and the stop 0 at its end."""
    keys = splitmix64(torch.arange(len(lengths))).tolist()
    by_key = dict(zip(keys, lengths, strict=True))

    def sample(logits: Tensor, keys: Tensor, step: Tensor, _: Sampling) -> tuple[Tensor, Tensor]:
        assert len(logits) == len(keys)
        ends = torch.tensor([by_key[key] for key in keys.tolist()])
        return (step + 1 < ends).long(), torch.zeros(len(keys))

    monkeypatch.setattr(decoding, "sample_token", sample)


@pytest.mark.parametrize("slots", [8, 16])
def test_log_normal_lengths_waste_no_rows_and_few_places(
    llama: Any, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds `slots` rows of any length. A static batch of so many would run until its longest row ends."""
    count, limit = slots * 30, 200
    lengths = np.random.default_rng(5).lognormal(3.2, 0.8, count).clip(1, limit).astype(int)
    _dictate(monkeypatch, lengths.tolist())
    passes = Passes(llama)
    places = _count_calls(monkeypatch, decoding._Batch, "_step", lambda batch, _: batch.cache.slots)
    columns = 2 + limit + decoding.SLACK
    sampled = decode(llama, [[1, 2]] * count, [limit] * count, range(count), Sampling(), {0}, slots * columns)
    assert [len(s.ids) for s in sampled] == lengths.tolist()
    useful = int(lengths.sum())
    static = sum(slots * int(lengths[at : at + slots].max()) for at in range(0, count, slots))
    assert sum(passes.steps) + sum(passes.prompts) <= 1.15 * useful
    assert sum(places) <= 1.15 * useful
    assert static > 2 * useful


class CatBytes(TorchDispatchMode):
    """Sums the bytes that `torch.cat` writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.cat.default:
            self.bytes += out.numel() * out.element_size()
        return out


def test_no_step_copies_the_cache(llama: Any) -> None:
    """Twice the length makes twice the bytes: what is left is the rotary embedding's, a token's worth at every step."""

    def bytes_written(decoder: Any, length: int) -> int:
        with CatBytes() as written:
            decoder(llama, [[1, 2, 3]] * 4, [length] * 4, range(4), Sampling(), ())
        return written.bytes

    ours = [bytes_written(decode, n) for n in (50, 100, 200)]
    assert ours[2] - ours[1] == pytest.approx(2 * (ours[1] - ours[0]), rel=0.01)
    growing = [bytes_written(decode_statically, n) for n in (50, 100, 200)]
    assert growing[2] - growing[1] > 3 * (growing[1] - growing[0])
    assert growing[2] > 10 * ours[2]
