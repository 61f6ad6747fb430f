"""What only a GPU can show; `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prmbench.engines.encoding import Encoded
from prmbench.engines.hf import HFEngine, Placement, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is false"),
]


def batch() -> list[Encoded]:
    rng = np.random.default_rng(0)
    return [Encoded(str(n), tuple(map(int, rng.integers(0, 200, n))), start=2, ends=(n // 2, n)) for n in (40, 17, 64)]


def test_a_gpu_gives_the_cpus_numbers(policy: Path) -> None:
    """Measured against float32 on the CPU; bfloat16 weights move single tokens by a few hundredths."""
    cpu: HFEngine = load(str(policy), "lm", Placement("cpu", "float32"))
    for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 0.3)):
        gpu = load(str(policy), "lm", Placement("cuda", dtype))
        for mine, theirs in zip(gpu.logprobs(batch()), cpu.logprobs(batch()), strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=tolerance)
            assert mine.normalisers == pytest.approx(theirs.normalisers, abs=tolerance)


def test_no_block_of_all_logits_is_ever_held(policy: Path) -> None:
    engine = load(str(policy), "lm", Placement("cuda", "bfloat16"))
    vocabulary = engine.model.config.vocab_size
    traces = [Encoded(str(n), tuple([5] * 1500), start=1, ends=(1500,)) for n in range(16)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    list(engine.logprobs(traces))
    assert torch.cuda.max_memory_allocated() - before < 16 * 1500 * vocabulary * 4


def test_training_on_a_gpu_is_the_cpus_update_and_learns_in_bfloat16(policy: Path, tmp_path: Path) -> None:
    """One SGD step in float32 against the CPU; then forty AdamW steps under autocast, and under recomputation."""
    from train_runs import data, distance, gaps, metrics, options, run

    file = data(tmp_path)
    step = {"optimizer": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0, "steps": 1, "dtype": "float32"}
    for device in ("cpu", "cuda"):
        run(options(policy, file, tmp_path / device, device=device, margin=0.5, **step))
    assert metrics(tmp_path / "cuda") == pytest.approx(metrics(tmp_path / "cpu"), abs=1e-5)
    assert distance(tmp_path / "cuda", tmp_path / "cpu") < 1e-4
    for name, more in (("full", {}), ("lora", {"lora_rank": 4, "gradient_checkpointing": True})):
        learnt = {"steps": 40, "learning_rate": 1e-2, "device": "cuda", "dtype": "bfloat16", **more}
        assert run(options(policy, file, tmp_path / name, **learnt)).accuracy == 1.0
        assert min(gaps(tmp_path / name)) > 0
