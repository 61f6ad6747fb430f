"""token_logprobs.py and the transformers engine against slow, plain computations; all models are random and tiny."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import save_model
from token_kinds import byte_bpe
from torch import Tensor

from prmbench.core.records import UserError
from prmbench.engines import generation, token_logprobs
from prmbench.engines.encoding import Encoded
from prmbench.engines.hf import HFEngine, Placement, load

CPU = Placement("cpu", "float32")
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "initializer_range": 0.5,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(config: type[transformers.PretrainedConfig], **more: object) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config(**{**SHAPE, **more}))


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return HFEngine(random_model(transformers.LlamaConfig), None)


def trace(name: str, length: int, start: int, *ends: int) -> Encoded:
    draw = np.random.default_rng(sum(map(ord, name)))
    return Encoded(name, tuple(int(i) for i in draw.integers(3, 64, length)), start, ends)


BATCH = [
    trace("short", 9, 3, 5, 8),
    trace("long", 23, 1, 4, 11, 22),
    trace("middle", 14, 6, 14),
    trace("two", 23, 20, 21),
]


# --- token_logprobs.py ----------------------------------------------------------------------------------------


def parts(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(11, 8).to(dtype), torch.randn(37, 8).to(dtype), torch.randint(37, (11,))


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_head_agrees_with_a_full_log_softmax(chunk: int, with_bias: bool, softcap: float | None) -> None:
    hidden, weight, targets = parts()
    bias = torch.linspace(-2, 2, 37) if with_bias else None
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logp, logz = token_logprobs.target_logprobs(hidden, weight, targets, bias, softcap, chunk)
    assert logp.dtype == logz.dtype == torch.float32
    torch.testing.assert_close(logp.double(), logits.log_softmax(-1)[range(11), targets], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logz.double(), logits.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_head_reduces_bfloat16_in_float32() -> None:
    hidden, weight, targets = parts(torch.bfloat16)
    exact = hidden.double() @ weight.double().T
    logp, logz = token_logprobs.target_logprobs(hidden, weight, targets)
    # The inputs are bfloat16 as given; nothing after them may be. Rounding the logits would cost some 1e-2.
    torch.testing.assert_close(logp.double(), exact.log_softmax(-1)[range(11), targets], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logz.double(), exact.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_head_holds_only_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    real = torch.logsumexp
    monkeypatch.setattr(torch, "logsumexp", lambda x, **k: (rows.append(len(x)), real(x, **k))[1])
    hidden, weight, targets = parts()
    token_logprobs.target_logprobs(hidden, weight, targets, chunk=4)
    assert rows == [4, 4, 3]


# --- log-probabilities ------------------------------------------------------------------------------------------


def slow_logprobs(model: Any, encoded: Encoded) -> tuple[list[float], list[float]]:
    """One forward pass a token, each on nothing but the tokens before it; normalisers with the one after the last."""
    logp, logz = [], []
    with torch.no_grad():
        for position in range(encoded.start, encoded.ends[-1] + 1):
            logits = model(input_ids=torch.tensor([encoded.ids[:position]])).logits[0, -1].double()
            logz.append(float(logits.logsumexp(-1)))
            if position < encoded.ends[-1]:
                logp.append(float(logits.log_softmax(-1)[encoded.ids[position]]))
    return logp, logz


def test_logprobs_agree_with_a_loop_over_tokens(engine: HFEngine) -> None:
    for encoded, out in zip(BATCH, engine.logprobs(BATCH), strict=True):
        logp, logz = slow_logprobs(engine.model, encoded)
        assert len(out.logprobs) == encoded.ends[-1] - encoded.start
        np.testing.assert_allclose(out.logprobs, logp, atol=1e-5)
        np.testing.assert_allclose(out.normalisers, logz, atol=1e-5)


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda batch: [[e] for e in batch], id="one at a time"),
        pytest.param(lambda batch: [batch[::-1]], id="the other way round"),
        pytest.param(lambda batch: [batch[:1], batch[1:]], id="uneven batches"),
        pytest.param(lambda batch: [[*batch, trace("wide", 60, 2, 9)]], id="padded further"),
    ],
)
def test_logprobs_do_not_depend_on_the_batch(
    engine: HFEngine, arrange: Callable[[list[Encoded]], list[list[Encoded]]]
) -> None:
    together = dict(zip([e.id for e in BATCH], engine.logprobs(BATCH), strict=True))
    for batch in arrange(BATCH):
        for encoded, out in zip(batch, engine.logprobs(batch), strict=True):
            if encoded.id in together:
                np.testing.assert_allclose(out.logprobs, together[encoded.id].logprobs, atol=1e-5)
                np.testing.assert_allclose(out.normalisers, together[encoded.id].normalisers, atol=1e-5)


def test_outputs_and_states_leave_the_padding_out(engine: HFEngine) -> None:
    for encoded, logits, states in zip(BATCH, engine.outputs(BATCH), engine.states(BATCH), strict=True):
        with torch.no_grad():
            alone = engine.model(input_ids=torch.tensor([encoded.ids]), output_hidden_states=True)
        np.testing.assert_allclose(logits, alone.logits[0], atol=1e-5)
        np.testing.assert_allclose(states, alone.hidden_states[-1][0], atol=1e-5)


POSITIONS = [[1, 4, 7], [0, 22], [3, 4, 5, 6], []]


def test_outputs_and_states_at_chosen_positions(engine: HFEngine) -> None:
    for read in (engine.outputs, engine.states):
        for rows, chosen, positions in zip(read(BATCH), read(BATCH, POSITIONS), POSITIONS, strict=True):
            np.testing.assert_array_equal(chosen, rows[positions])


def test_only_chosen_positions_are_copied_from_the_device(engine: HFEngine) -> None:
    """Counted where the tensors leave the device: as bytes of what is made into an array."""
    copied: list[int] = []

    real = Tensor.cpu

    def cpu(tensor: Tensor) -> Tensor:
        copied.append(tensor.numel() * tensor.element_size())
        return real(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "cpu", cpu)
        list(engine.states(BATCH))
        everything = sum(copied)
        copied.clear()
        list(engine.states(BATCH, POSITIONS))
    width = engine.model.config.hidden_size * 4
    assert everything == width * sum(len(encoded.ids) for encoded in BATCH)
    assert sum(copied) == width * sum(map(len, POSITIONS))


def test_padding_is_hidden_from_a_model_that_looks_both_ways() -> None:
    torch.manual_seed(0)
    shape = transformers.BertConfig(**{**SHAPE, "num_labels": 2})
    model = transformers.AutoModelForTokenClassification.from_config(shape)
    for encoded, logits in zip(BATCH, HFEngine(model, None).outputs(BATCH), strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([encoded.ids])).logits[0]
        np.testing.assert_allclose(logits, alone, atol=1e-5)


ROW_SHAPES = {"short": 9, "long": 230, "middle": 61, "other": 229}
ARCHITECTURES: dict[str, tuple[type, dict[str, object]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {}),
    "phi3": (transformers.Phi3Config, {}),
    "olmo2": (transformers.Olmo2Config, {}),
    "granite": (transformers.GraniteConfig, {}),
    "gpt_neox": (transformers.GPTNeoXConfig, {}),
    "gpt2": (transformers.GPT2Config, {"n_head": 4, "n_embd": 16, "n_layer": 2, "n_positions": 512}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_of_causal_models_needs_no_mask(name: str) -> None:
    """To the last bit: no position sees what follows it."""
    config, more = ARCHITECTURES[name]
    engine = HFEngine(random_model(config, **more, max_position_embeddings=512), None)
    batch = [trace(kind, length, 1, length) for kind, length in ROW_SHAPES.items()]
    masks: list[object] = []
    hook = lambda _, __, arguments: masks.append(arguments["attention_mask"])  # noqa: E731
    assert not engine.padding_needs_mask()
    engine.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    without = list(engine.logprobs(batch))
    engine._padding_needs_mask = True
    for mine, masked in zip(without, engine.logprobs(batch), strict=True):
        np.testing.assert_array_equal(mine.logprobs, masked.logprobs)
        np.testing.assert_array_equal(mine.normalisers, masked.normalisers)
    assert [mask is None for mask in masks] == [True, False]


@pytest.mark.parametrize(
    ("auto", "config", "more"),
    [
        pytest.param("AutoModel", transformers.BertConfig, {}, id="bidirectional"),
        pytest.param("AutoModelForCausalLM", transformers.Gemma2Config, {}, id="layers with windows"),
        pytest.param("AutoModelForCausalLM", transformers.MistralConfig, {"sliding_window": 64}, id="a window"),
    ],
)
def test_padding_of_other_models_keeps_its_mask(auto: str, config: type, more: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config(**{**SHAPE, **more}))
    engine = HFEngine(model, None)
    assert engine.padding_needs_mask()
    masks: list[object] = []
    hook = lambda _, __, arguments: masks.append(arguments["attention_mask"])  # noqa: E731
    engine.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    list(engine.states(BATCH))
    (mask,) = masks
    assert isinstance(mask, Tensor)
    assert mask.sum(1).tolist() == [len(encoded.ids) for encoded in BATCH]


def test_a_window_that_is_switched_off_is_none() -> None:
    engine = HFEngine(random_model(transformers.MistralConfig, sliding_window=None), None)
    assert not engine.padding_needs_mask()


def test_masked_positions_are_hidden_and_still_counted(engine: HFEngine) -> None:
    plain = trace("masked", 16, 8, 15)
    hidden = replace(plain, masked_positions=(2, 5))
    other = replace(
        hidden, ids=tuple(7 if i in hidden.masked_positions else token for i, token in enumerate(plain.ids))
    )
    first, second, unmasked = (next(engine.logprobs([e])).logprobs for e in (hidden, other, plain))
    np.testing.assert_array_equal(first, second)  # what is hidden may be anything
    assert np.abs(first - unmasked).max() > 1e-3

    mask = torch.ones(1, 16, dtype=torch.long)
    mask[0, list(hidden.masked_positions)] = 0
    with torch.no_grad():
        out = engine.model(torch.tensor([plain.ids]), attention_mask=mask, position_ids=torch.arange(16)[None])
    wanted = out.logits[0].log_softmax(-1)[range(7, 14), plain.ids[8:15]]
    np.testing.assert_allclose(first, wanted, atol=1e-5)
    beside = list(engine.logprobs([BATCH[1], hidden]))[1]  # padded: the mask belongs to its own row
    np.testing.assert_allclose(beside.logprobs, first, atol=1e-5)


def test_the_head_meets_only_step_positions(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No [batch, time, vocabulary] block: neither from the model's own head nor from token_logprobs.py."""
    rows = []
    real = torch.mm
    vocabulary = engine.model.config.vocab_size

    def spy(a: Tensor, b: Tensor, **more: Any) -> Tensor:
        if b.shape[1] == vocabulary:
            rows.append(len(a))
        return real(a, b, **more)

    def refuse(*_: Any) -> None:
        raise AssertionError("the model's own head was called")

    monkeypatch.setattr(torch, "mm", spy)
    handle = engine.model.get_output_embeddings().register_forward_pre_hook(refuse)
    try:
        list(engine.logprobs(BATCH))
    finally:
        handle.remove()
    asked = sum(e.ends[-1] - e.start + 1 for e in BATCH)
    assert sum(rows) == asked < sum(len(e.ids) for e in BATCH)


# --- heads that are not a plain product -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (transformers.GraniteConfig, {"logits_scaling": 4.0}),
        (transformers.CohereConfig, {"logit_scale": 0.25}),
    ],
)
def test_a_model_that_rescales_its_logits_is_refused(config: type, more: dict[str, float]) -> None:
    scaled = HFEngine(random_model(config, **more), None)
    with pytest.raises(UserError, match="rescales its logits"):
        scaled.check_head()
    (name,) = more
    for inner in (scaled.model, scaled.model.config):
        setattr(inner, name, 1.0)
    scaled.check_head()


def test_the_soft_cap_of_gemma_2() -> None:
    capped = HFEngine(random_model(transformers.Gemma2Config, final_logit_softcapping=3.0, initializer_range=1.0), None)
    capped.check_head()
    encoded = BATCH[0]
    out = next(capped.logprobs([encoded]))
    logp, logz = slow_logprobs(capped.model, encoded)
    np.testing.assert_allclose(out.logprobs, logp, atol=1e-5)
    np.testing.assert_allclose(out.normalisers, logz, atol=1e-5)
    capped.model.config.final_logit_softcapping = None
    assert np.abs(next(capped.logprobs([encoded])).logprobs - np.array(logp)).max() > 0.1  # the cap bites here


def test_a_bias_in_the_head() -> None:
    biased = HFEngine(random_model(transformers.PhiConfig, num_key_value_heads=4), None)
    torch.nn.init.normal_(biased.model.lm_head.bias, std=2.0)
    biased.check_head()
    logp, _ = slow_logprobs(biased.model, BATCH[2])
    np.testing.assert_allclose(next(biased.logprobs([BATCH[2]])).logprobs, logp, atol=1e-5)


# --- weights that are set aside ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_accelerate_has_set_aside_is_read(tied: bool) -> None:
    """As --device balanced does with what no GPU can hold: such weights are on `meta` between forward passes."""
    accelerate = pytest.importorskip("accelerate")
    whole = HFEngine(random_model(transformers.LlamaConfig, tie_word_embeddings=tied), None)
    offloaded = HFEngine(random_model(transformers.LlamaConfig, tie_word_embeddings=tied), None)
    accelerate.cpu_offload(offloaded.model, execution_device=torch.device("cpu"))
    assert offloaded.model.lm_head.weight.device.type == "meta"
    for mine, other in zip(offloaded.logprobs(BATCH), whole.logprobs(BATCH), strict=True):
        np.testing.assert_array_equal(mine.logprobs, other.logprobs)
    steps = [replace(encoded, score_positions=(3, 5)) for encoded in BATCH]
    for one, two in zip(offloaded.next_tokens(steps, [7, 9]), whole.next_tokens(steps, [7, 9]), strict=True):
        np.testing.assert_array_equal(one.logprobs, two.logprobs)
        np.testing.assert_array_equal(one.likeliest, two.likeliest)
    offloaded.check_head()
    head = torch.nn.Linear(16, 2)
    bare = [HFEngine(e.model.model, None) for e in (offloaded, whole)]
    for e in bare:
        e.set_head(head)
    for one, two in zip(bare[0].outputs(BATCH), bare[1].outputs(BATCH), strict=True):
        np.testing.assert_array_equal(one, two)
    assert offloaded.model.lm_head.weight.device.type == "meta"


# --- loading ------------------------------------------------------------------------------------------------------


def test_load_reads_folder_dtype_and_limit(policy: Path) -> None:
    engine = load(str(policy), "lm", Placement("cpu", "bfloat16"))
    assert engine.model.dtype == torch.bfloat16
    assert engine.max_tokens == 2048
    assert engine.tokenizer.get_vocab() == byte_bpe().get_vocab()
    assert engine.revision is None
    assert engine.weight_bytes == 2 * sum(p.numel() for p in engine.model.parameters())


def test_an_empty_load_has_sizes_and_no_weights(policy: Path) -> None:
    engine = load(str(policy), "lm", CPU, empty=True)
    assert {p.device.type for p in engine.model.parameters()} == {"meta"}
    assert engine.weight_bytes == load(str(policy), "lm", CPU).weight_bytes


def test_a_process_works_on_its_own_gpu(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun: memory is counted, and Triton's kernels run, on the current device, which is 0 unless set."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    load(str(policy), "lm", Placement().resolve(), empty=True)
    assert chosen == ["cuda:3"]
    load(str(policy), "lm", CPU)
    assert chosen == ["cuda:3"]


@pytest.mark.parametrize(("device", "dtype"), [("auto", "auto"), ("cpu", "auto"), ("cpu", "float32")])
def test_auto_placement_without_a_gpu(device: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Placement(device, dtype).resolve() == CPU


def test_auto_placement_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert Placement("balanced").resolve().spread
    monkeypatch.setenv("LOCAL_RANK", "3")  # as torchrun sets it: every process takes a GPU of its own
    assert Placement().resolve() == Placement("cuda:3", "bfloat16")
    assert Placement("cuda").resolve() == Placement("cuda:3", "bfloat16")
    assert Placement("cpu").resolve() == CPU
    for device in ("cuda:4", "balanced"):
        with pytest.raises(UserError, match=f"--device {device}"):
            Placement(device).resolve()


def test_a_folder_without_a_tokenizer_is_named(policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(policy, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match=r"bare: has no tokenizer; copy tokenizer\.json"):
        load(str(folder), "lm", Placement("cpu", "float32"))


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_check_passes_a_real_model(dtype: str, smollm2_model: Path) -> None:
    """Logits of 30 and more round by tenths in bfloat16: that is not a scale of the model's own."""
    load(str(smollm2_model), "lm", Placement("cpu", dtype))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", "", "cuda:x", "mps"])
def test_devices_that_are_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device {device}"):
        Placement(device).resolve()


def broken(tmp_path: Path, policy: Path, name: str, content: bytes) -> Path:
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in policy.iterdir():
        (folder / file.name).write_bytes(content if file.name == name else file.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0not a header"),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no-such-architecture"}'),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_broken_folder_is_one_clear_line(tmp_path: Path, policy: Path, file: str, content: bytes) -> None:
    folder = broken(tmp_path, policy, file, content)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load(str(folder), "lm", CPU)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-folder", "nobody/no-such-model", "x/y/z", "missing.gguf", "a b"])
def test_a_model_that_is_nowhere(name: str) -> None:
    with pytest.raises(UserError, match=f"model {name}") as caught:
        load(name, "lm", CPU)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, policy: Path) -> None:
    """transformers would draw a random head and only log a warning."""
    with pytest.raises(UserError, match=r"lacks weights.*score"):
        load(str(policy), "classes", CPU)
    tied = save_model(tmp_path / "tied", 0, tie_word_embeddings=True)
    load(str(tied), "lm", CPU)  # a shared head is not missing


def test_the_cache_for_sampling_follows_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 * 3 layers * 2 heads * 4 wide = 48 numbers a token; memory that torch holds unused is free, too."""
    shape = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=4
    )
    model: Any = SimpleNamespace(
        config=shape, device=torch.device("cuda", 0), dtype=torch.float32, eval=lambda: model, hf_device_map={}
    )
    engine = HFEngine(model, None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (9_000_000, 20_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2_000_000)
    assert engine.cache_tokens == 8_000_000 // (48 * 4)
    monkeypatch.setattr(token_logprobs, "factor_dtype", lambda *_: torch.bfloat16)  # as under autocast
    assert engine.cache_tokens == 8_000_000 // (48 * 2)
    assert engine.batch_tokens == generation.GPU_MAX_BATCH_TOKENS  # in a run's identity, so it moves with nothing
    model.hf_device_map = {"a": 0, "b": 1}
    assert engine.cache_tokens == engine.batch_tokens
