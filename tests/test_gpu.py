"""What only a GPU can show: `pytest -m gpu`. tests/test_pretend_gpu.py runs it on a pretend accelerator."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pretend_gpu
import pytest
import torch

from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import Sampling
from prmbench.engines.hf import HFEngine, Placement, load

DEVICE = pretend_gpu.NAME if pretend_gpu.is_on() else "cuda"
PRETENDED = DEVICE == pretend_gpu.NAME

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not PRETENDED and not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is false"
    ),
]
LONG = 300 if PRETENDED else 1500
"""Tokens of a long trace."""
PRECISIONS = [("float32", 1e-3), ("bfloat16", 0.15)]
"""Precision, and how far numbers may be from the CPU's in float32: root mean square, nats or logits."""


def batch() -> list[Encoded]:
    rng = np.random.default_rng(0)
    ids = [tuple(map(int, rng.integers(0, 200, n))) for n in (40, 17, 64)]
    return [
        Encoded(str(len(row)), row, start=2, ends=(len(row) // 2, len(row)), score_positions=(3, len(row) - 1))
        for row in ids
    ]


def rms(mine: Any, theirs: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(mine) - np.asarray(theirs)) ** 2)))


def peak_bytes(run: Callable[[], object], vocabulary: int) -> int:
    """What a call adds to the GPU's memory at its peak; on the pretend accelerator its largest block of logits."""
    if PRETENDED:
        pretend_gpu.LARGEST.clear()
        run()
        return pretend_gpu.LARGEST[vocabulary]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_scoring_with_a_language_model_gives_the_cpus_numbers(policy: Path, dtype: str, tolerance: float) -> None:
    cpu: HFEngine = load(str(policy), "lm", Placement("cpu", "float32"))
    gpu = load(str(policy), "lm", Placement(DEVICE, dtype))
    for mine, theirs in zip(gpu.logprobs(batch()), cpu.logprobs(batch()), strict=True):
        assert rms(mine.logprobs, theirs.logprobs) < tolerance
        assert rms(mine.normalisers, theirs.normalisers) < tolerance
    for mine, theirs in zip(gpu.next_tokens(batch(), (5, 6)), cpu.next_tokens(batch(), (5, 6)), strict=True):
        assert rms(mine.logprobs, theirs.logprobs) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_scoring_with_a_classifier_gives_the_cpus_numbers(tmp_path: Path, dtype: str, tolerance: float) -> None:
    from conftest import save_model

    model = str(save_model(tmp_path / "classifier", 0, "AutoModelForTokenClassification", num_labels=2))
    cpu, gpu = (load(model, "classes", p) for p in (Placement("cpu", "float32"), Placement(DEVICE, dtype)))
    for mine, theirs in zip(gpu.outputs(batch()), cpu.outputs(batch()), strict=True):
        assert rms(mine, theirs) < tolerance


def test_sampled_log_probabilities_are_those_of_reading_the_same_tokens(policy: Path) -> None:
    gpu = load(str(policy), "lm", Placement(DEVICE, "float32"))
    prompts, limits = [(5, 6, 7), (9, 8), (5, 6, 7)], [12, 5, 20]
    sampled = gpu.sample(prompts, limits, [1, 2, 3], Sampling(), ())
    rows = [
        Encoded(str(i), (*prompt, *completion.ids), start=len(prompt), ends=(len(prompt) + len(completion.ids),))
        for i, (prompt, completion) in enumerate(zip(prompts, sampled, strict=True))
    ]
    for completion, read, limit in zip(sampled, gpu.logprobs(rows), limits, strict=True):
        assert len(completion.ids) == limit
        assert np.array(completion.logprobs) == pytest.approx(read.logprobs, abs=1e-3)


def test_no_block_of_all_logits_is_ever_held(policy: Path) -> None:
    engine = load(str(policy), "lm", Placement(DEVICE, "bfloat16"))
    vocabulary = engine.model.config.vocab_size
    traces = [Encoded(str(n), tuple([5] * LONG), start=1, ends=(LONG,)) for n in range(16)]
    assert 0 < peak_bytes(lambda: list(engine.logprobs(traces)), vocabulary) < 16 * LONG * vocabulary * 4


def test_training_on_a_gpu_is_the_cpus_update_and_learns_in_bfloat16(policy: Path, tmp_path: Path) -> None:
    """One SGD step in float32 against the CPU; then AdamW under autocast, and under recomputation."""
    from train_runs import data, distance, gaps, metrics, options, run

    file = data(tmp_path)
    step = {"optimizer": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0, "steps": 1, "dtype": "float32"}
    for device in ("cpu", DEVICE):
        run(options(policy, file, tmp_path / device, device=device, margin=0.5, **step))
    assert metrics(tmp_path / DEVICE) == pytest.approx(metrics(tmp_path / "cpu"), abs=1e-5)
    assert distance(tmp_path / DEVICE, tmp_path / "cpu") < 1e-4
    for name, more in (("full", {}), ("lora", {"lora_rank": 4, "gradient_checkpointing": "on"})):
        if name == "lora":
            pytest.importorskip("peft")
        length = {"steps": 12, "learning_rate": 3e-2} if PRETENDED else {"steps": 40, "learning_rate": 1e-2}
        learnt = {**length, "device": DEVICE, "dtype": "bfloat16", **more}
        assert run(options(policy, file, tmp_path / name, **learnt)).accuracy == 1.0
        assert min(gaps(tmp_path / name)) > 0


@pytest.mark.parametrize("arm", ["grpo", "distrl_ipvrm"])
def test_a_step_of_train_distrl_on_a_gpu_is_the_cpus(arm: str, start: Path, prompts: Path, tmp_path: Path) -> None:
    """Completions are the CPU's, too: noise is a hash, and these distributions are far from ties."""
    from rl_fixtures import SGD, column, distance, options, run

    for device in ("cpu", DEVICE):
        run(options(start, prompts, tmp_path / device, arm=arm, steps=1, device=device, dtype="float32", **SGD))
    for name in ("tokens", "entropy", "loss", "grad_norm"):
        mine, theirs = column(tmp_path / DEVICE, name), column(tmp_path / "cpu", name)
        assert mine[0] is not None
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert distance(tmp_path / DEVICE, tmp_path / "cpu") < 1e-4


@pytest.mark.skipif(not PRETENDED, reason="counts what a GPU does not tell")
def test_the_host_waits_for_the_device_a_few_times_a_batch_and_not_for_every_token(policy: Path) -> None:
    engine = load(str(policy), "lm", Placement(DEVICE, "float32"))

    def waits(run: Callable[[], object]) -> int:
        pretend_gpu.SYNCS.clear()
        run()
        return sum(pretend_gpu.SYNCS.values())

    long = [Encoded("long", tuple([5] * 600), start=1, ends=(600,))]
    assert waits(lambda: list(engine.logprobs(long))) <= 4
    read_twice = waits(lambda: list(engine.logprobs([*long, *long])))
    assert read_twice <= 2 * 4
    steps = 24
    assert waits(lambda: engine.sample([(5, 6)] * 4, [steps] * 4, [1, 2, 3, 4], Sampling(), ())) <= 3 * steps


@pytest.mark.parametrize("name", ["ceilings", "decoding", "memory", "scoring", "step", "resume", "checkpoint"])
def test_a_block_of_make_gpu_runs_at_toy_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    blocks = importlib.import_module("gpu_blocks")
    assert blocks.BLOCKS[name](blocks.Place(DEVICE, True))
