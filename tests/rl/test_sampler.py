"""The model in training as its own sampler: what it leaves behind, and when its log-probabilities are corrected."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import save_model

from prmbench.core.records import RetryError
from prmbench.engines.generation import Sampling
from prmbench.engines.hf import Placement
from prmbench.rl import sampler
from prmbench.training.model import ModelSetup, Runner, open_runner


def _opened(tmp_path: Path, dtype: str) -> tuple[Runner, sampler.Source]:
    setup = ModelSetup(Placement("cpu", dtype), lora_rank=2)
    runner = open_runner(str(save_model(tmp_path, 0)), None, "lm", setup)
    job: Any = SimpleNamespace(setup=setup)
    return runner, sampler._open_hf(job, runner)


@pytest.mark.parametrize(("dtype", "is_corrected"), [("float32", False), ("bfloat16", True)])
def test_half_precision_is_measured_and_corrected(tmp_path: Path, dtype: str, is_corrected: bool) -> None:
    _, source = _opened(tmp_path, dtype)
    rows: Any = SimpleNamespace(sampler_logprobs=lambda: torch.tensor([-1.0, -2.0]))
    trainer = torch.tensor([-1.1, -1.8])
    weight = sampler.importance_weights(rows, trainer, source)
    if is_corrected:
        assert weight is not None
        torch.testing.assert_close(weight, torch.tensor([-0.1, 0.2]).exp())
    else:
        assert weight is None
    mismatch = sampler.step_mismatch(rows, trainer, source, dtype)  # no error: nothing was sent that could be stale
    assert mismatch is not None
    assert mismatch.rms == pytest.approx(0.025**0.5)
    sent = sampler.Source(SimpleNamespace(sampler=None), dict, foreign=True)  # type: ignore[arg-type]
    with pytest.raises(RetryError):
        sampler.step_mismatch(rows, trainer, sent, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampling_leaves_the_model_as_it_was(tmp_path: Path, dtype: str) -> None:
    runner, source = _opened(tmp_path, dtype)
    before = {name: (p.dtype, p.data_ptr()) for name, p in runner.model.named_parameters()}
    held: set[torch.dtype] = set()
    finished: list[int] = []

    def watch(i: int, _: Any) -> None:
        finished.append(i)
        held.add(runner.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype)
        assert not runner.model.training

    source.link.sampler.sample_continuously(  # type: ignore[attr-defined]
        [[5, 6], [7]], [6, 3], [1, 2], Sampling(), (), None, watch
    )
    assert finished == [1, 0]
    assert held == {getattr(torch, dtype)}
    assert runner.model.training
    assert {name: (p.dtype, p.data_ptr()) for name, p in runner.model.named_parameters()} == before
