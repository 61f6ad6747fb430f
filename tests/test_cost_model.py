"""Predicted costs: each formula at a model small enough to count by hand, and the page's tables."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT


@pytest.fixture
def cost_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("cost_model")


def small(**changes: Any) -> Any:
    """One layer: matrices 2x4, 2x2, 2x2, 4x2, 2x3, 2x3 and 3x2, which are 42 weights; a head of 5 x 2."""
    from shapes import Shape

    sizes = {"vocabulary": 5, "hidden": 2, "intermediate": 3, "layers": 1, "heads": 2, "kv_heads": 1, "head_width": 2}
    return Shape(**{"kind": "qwen2", **sizes, "tied": True, **changes})


def test_counts_of_a_model_of_42_weights(cost_model: ModuleType) -> None:
    assert cost_model.body_parameters(small()) == 8 + 4 + 4 + 8 + 6 + 6 + 6
    assert cost_model.parameters(small()) == 42 + 10
    assert cost_model.parameters(small(tied=False)) == 42 + 20
    assert cost_model.parameters(small(layers=3)) == 3 * 42 + 10
    assert cost_model.adapter_parameters(small(layers=2), 4) == 2 * 4 * (6 + 4 + 4 + 6 + 5 + 5 + 5)
    assert cost_model.kv_bytes(small(layers=3)) == 3 * 2 * 2 * 2  # keys and values, two numbers each, of two bytes


def test_flops_of_a_forward_pass(cost_model: ModuleType) -> None:
    """Three tokens, one read: 2 x (42 x 3 + 10 x 1). Attention: queries times keys and weights times values, each
    2 x 3 x 3 x 4 FLOP with all pairs, of which half are masked."""
    assert cost_model.attention_flops(small(), 3) == 2 * (2 * 3 * 3 * 4) / 2
    assert cost_model.forward_flops(small(), 3, 1) == 2 * (42 * 3 + 10) + 72
    assert cost_model.scoring_flops(small(), [3, 3], [1, 2]) == 2 * (2 * 42 * 3 + 72) + 2 * 10 * 3


def test_scoring_takes_flops_over_the_rate_of_all_gpus(cost_model: ModuleType) -> None:
    machine = cost_model.Machine(flops=100.0, flops_share=0.5, load=13.0)
    flops = 3400 * (2 * (42 * 850 + 10 * 720) + 2 * 4 * 850**2)
    assert cost_model.scoring_seconds(small(), machine, 2) == {"load": 2 * 52 / 13, "pass": flops / (2 * 50)}


def test_the_parts_of_a_step(cost_model: ModuleType) -> None:
    """Of 4 completions trained on and 8 sampled, of 3 tokens after 2 of the prompt."""
    step = cost_model.Step(completions=4, sampled=8, prompt=2, mean=3, longest=6)
    machine = cost_model.Machine(
        flops=10.0, flops_share=0.1, bandwidth=4.0, bandwidth_share=0.5, launch=1e-9, links=5.0
    )
    forward = 4 * (2 * (42 * 5 + 10 * 3) + 2 * 4 * 25)
    full, lora = (cost_model.step_seconds(small(), step, machine, 2, rank) for rank in (0, 2))
    assert full["read"] == lora["read"] == pytest.approx(2 * forward / 2)
    assert full["learn"] == pytest.approx(2 * 4 * forward / 2)  # forward, again, backward of twice a forward
    assert lora["learn"] == pytest.approx(2 * 3 * forward / 2)
    # Six steps read 2 x 52 bytes of weights; 4 rows a GPU, 3 tokens each, read a context of 3.5 tokens of 8 bytes.
    prefill = 2 * (2 * (42 * 2 + 10) + 2 * 4 * 4) / 2
    assert full["sample"] == pytest.approx((6 * 2 * 52 + 4 * 3 * 3.5 * 8) / 2 + prefill)
    # Two models; a ring of two moves 2 x 1 / 2 of four bytes a weight.
    assert full["exchange"] == pytest.approx(2 * 4 * 52 / 5)
    assert lora["exchange"] == pytest.approx(2 * 4 * 70 / 5)
    assert cost_model.step_seconds(small(), step, machine, 1, 0)["exchange"] == 0
    slow = cost_model.Machine(flops=10.0, flops_share=0.1, launch=100.0)
    assert cost_model.step_seconds(small(), step, slow, 2, 0)["sample"] == pytest.approx(600 + prefill)


def test_more_than_a_node_exchanges_at_the_networks_rate(cost_model: ModuleType) -> None:
    machine = cost_model.Machine(links=8.0, network=2.0)
    in_node, beyond = (cost_model.exchange_seconds(small(), machine, gpus, 0) for gpus in (8, 16))
    assert in_node == pytest.approx(2 * 2 * 7 / 8 * 4 * 52 / 8)
    assert beyond == pytest.approx(2 * 2 * 15 / 16 * 4 * 52 / 2)


def test_what_fits_on_a_gpu(cost_model: ModuleType) -> None:
    """All weights: 16 bytes each, of two models. Adapters: two bytes a weight of each base, and 16 an adapter's."""
    assert cost_model.resident_bytes(small(), 1, 0) == 2 * 16 * 52
    assert cost_model.resident_bytes(small(), 4, 2) == 2 * (2 * 52 + 16 * 70) / 4
    assert cost_model.resident_bytes(small(), 1, 2) == 2 * 52 + 2 * 16 * 70
    machine = cost_model.Machine(memory=cost_model.ACTIVATIONS + 2 * 16 * 52)
    assert cost_model.fits(small(), machine, 1, 0)
    assert not cost_model.fits(small(vocabulary=6), machine, 1, 0)


@pytest.mark.parametrize("name", ["0.6B", "1.5B", "7B", "72B"])
def test_parameters_are_those_of_the_models_of_transformers(cost_model: ModuleType, name: str) -> None:
    import torch
    import transformers

    shape = cost_model.SHAPES[name]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(shape.config())
    assert cost_model.parameters(shape) == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.01, "under 0.05 s"), (0.123, "0.12 s"), (42.4, "42 s"), (150, "2.5 min"), (7200, "2 h")],
)
def test_a_duration_has_two_digits(cost_model: ModuleType, seconds: float, text: str) -> None:
    assert cost_model.duration(seconds) == text


def test_the_pages_tables_are_those_of_the_model_and_say_that_they_are_predictions(cost_model: ModuleType) -> None:
    text = Path(ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert cost_model.rewritten(text) == text, "python benchmarks/cost_model.py --write"
    for name in cost_model.TABLES:
        table = text.partition(f"<!-- begin predicted {name} -->")[2].partition("<!-- end")[0]
        header, _, *rows = table.strip().splitlines()
        assert "predicted" in header
        assert all(cost_model.MARK in row for row in rows)
    with pytest.raises(SystemExit, match="begin predicted scoring"):
        cost_model.rewritten("a page without tables")
