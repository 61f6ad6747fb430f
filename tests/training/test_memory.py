"""The prediction of peak memory, term by term, at sizes where each can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from rl_fixtures import options, save_policy, save_prompts

from prmbench.config.distrl_options import DistRLConfig
from prmbench.engines.hf import Placement
from prmbench.rl import models
from prmbench.rl.setup import Job, prepare, resolved
from prmbench.training import memory, run_setup
from prmbench.training.memory import Plan, Shape
from prmbench.training.model import ModelSetup, open_runner

SMALL = Shape(layers=3, hidden=8, intermediate=20, query=8, key_value=4, heads=2, vocabulary=100, tied=False, others=5)
LAYER = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 20
HEAD = 100 * 8


def test_weights_gradients_and_moments_of_full_training_take_sixteen_bytes() -> None:
    plan = Plan(SMALL, half=True)
    count = 3 * LAYER + 2 * HEAD + 5
    assert (plan.weights, plan.gradients, plan.moments) == (4 * count, 4 * count, 8 * count)
    assert replace(plan, optimizer="adamw_8bit").moments == 2 * count
    assert replace(plan, optimizer="sgd").moments == 0
    assert replace(plan, shape=replace(SMALL, tied=True)).weights == 4 * (count - HEAD)


def test_what_is_not_trained_takes_two_bytes_on_a_gpu_but_for_embeddings_and_norms() -> None:
    frozen = Plan(SMALL, half=True, trained=False)
    assert frozen.weights == 2 * (3 * LAYER + HEAD) + 4 * (HEAD + 5)
    assert (frozen.gradients, frozen.moments) == (0, 0)
    assert replace(frozen, on_gpu=False).weights == 4 * (3 * LAYER + 2 * HEAD + 5)
    lora = replace(frozen, trained=True, lora_rank=2)
    adapters = 3 * 2 * ((8 + 8) * 2 + (8 + 4) * 2 + (8 + 20) * 3)
    assert lora.weights == frozen.weights + 4 * adapters
    assert (lora.gradients, lora.moments) == (4 * adapters, 8 * adapters)
    assert replace(lora, shares_base=True).weights == 4 * adapters


def test_the_weights_of_real_models_are_as_many(tmp_path: Path) -> None:
    for tied in (False, True):
        folder = save_policy(tmp_path / str(tied), tie_word_embeddings=tied)
        setup = ModelSetup(Placement("cpu", "float32"), lora_rank=2)
        full = open_runner(str(folder), None, "lm", replace(setup, lora_rank=0))
        lora = open_runner(str(folder), None, "lm", setup)
        shape = memory.shape_of(full.model.base_model)
        assert shape.parameters == sum(p.numel() for p in full.model.parameters())
        assert shape.adapters(2) == sum(p.numel() for p in lora.trained)
        assert shape.others == 5 * 16  # norms


def test_a_model_without_heads_or_with_a_size_for_each_layer_has_a_shape_with_its_parameters() -> None:
    config = transformers.MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, state_size=4)
    mamba = transformers.AutoModel.from_config(config)
    assert memory.shape_of(mamba).parameters == sum(p.numel() for p in mamba.parameters())
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
    )
    llama = transformers.AutoModel.from_config(config)
    expected = memory.shape_of(llama)
    vars(llama.config)["intermediate_size"] = [10, 14]  # as in Gemma 3n; a Llama's config refuses it otherwise
    assert memory.shape_of(llama) == expected


def test_checkpointing_keeps_the_inputs_of_layers_alone() -> None:
    """With many layers; one layer's own activations are added once."""
    deep, deeper = (Plan(replace(SMALL, layers=n), half=True, checkpointing=True) for n in (100, 101))
    assert deeper.update(50) - deep.update(50) == 4 * 8 * 50
    plain, longer = (replace(plan, checkpointing=False) for plan in (deep, deeper))
    # Two norms of two tensors and a scale; five rounded inputs; queries, keys, values and output with a normaliser a
    # head; four wide tensors; and the rounded weights.
    token = 2 * (2 * 4 * 8 + 4) + 5 * 2 * 8 + 2 * (8 + 4) * 2 + 4 * 2 + 4 * 2 * 20
    assert longer.update(50) - plain.update(50) == token * 50 + 2 * LAYER
    frozen = [replace(plan, lora_rank=2) for plan in (plain, longer)]
    lora = 2 * (4 * 8 + 4) + 5 * 2 * 8 + 2 * (8 + 4) * 2 + 4 * 2 + 4 * 2 * 20 + 7 * 2 * 2 + 2 * 8
    assert frozen[1].update(50) - frozen[0].update(50) == lora * 50


def test_besides_its_layers_an_update_keeps_the_last_states_and_what_the_heads_backward_pass_needs() -> None:
    """In float32 on a CPU, with fewer tokens than a chunk of logits has rows."""
    full = Plan(replace(SMALL, layers=0), half=False, on_gpu=False)
    # States of the last norm and of the head (one more where the norm's weight is trained) and their gradient; the
    # logits, and the gradient of the head's weight.
    assert full.update(50) == 3 * 4 * 8 * 50 + 4 * 8 * 50 + 4 * 100 * 50 + 4 * HEAD
    assert replace(full, lora_rank=2).update(50) == 2 * 4 * 8 * 50 + 4 * 8 * 50 + 4 * 100 * 50


def test_phases_of_training() -> None:
    plan = Plan(replace(SMALL, vocabulary=2**24), half=True, lora_rank=2)
    phases = memory.training_phases(plan, replace(plan, trained=False, lora_rank=0), 100)
    assert list(phases) == ["load", "reference", "update", "save"]
    assert phases["load"] <= phases["save"] < phases["update"]
    bytes_ = plan.weights + plan.moments + plan.gradients + plan.update(100)
    assert phases["update"] == round(bytes_ / 2**30, 2)
    rl = memory.distrl_phases(plan, {"rm": replace(plan, shares_base=True)}, 100, drawing=2**31)
    assert rl["draw"] == pytest.approx(rl["save"] + 2, abs=0.01)
    assert rl["update_rm"] == rl["update_policy"]
    frozen = memory.distrl_phases(plan, {"rm": replace(plan, trained=False, lora_rank=0)}, 100, drawing=0)
    assert "update_rm" not in frozen
    assert frozen["save"] > rl["save"]  # a base of its own


def test_vllm_holds_rounded_weights_with_a_head_of_their_own_and_keys_and_values() -> None:
    weights = 2 * (3 * LAYER + 2 * HEAD + 5)
    cache = 2 * 3 * 4 * 2
    assert memory.vllm_bytes(SMALL, 10) == weights + 64 * 10 * cache
    tied = replace(SMALL, tied=True)
    assert memory.vllm_bytes(tied, 10) == memory.vllm_bytes(SMALL, 10)


@pytest.mark.parametrize(
    ("more", "shared", "others"),
    [
        ({"lora_rank": 2}, True, {"rm"}),
        ({"lora_rank": 2, "rm_model": "start"}, True, {"rm"}),
        ({"lora_rank": 2, "rm_model": "other"}, False, {"rm"}),
        ({"lora_rank": 2, "rm_model": "start", "rm_update": "frozen"}, False, {"rm"}),
        ({"reference": "sft"}, False, {"rm", "start"}),
        ({"reference": "sft", "lora_rank": 2}, True, {"rm"}),
        ({"arm": "grpo"}, False, set()),
        ({"arm": "spro"}, False, {"start"}),
    ],
)
def test_the_models_that_are_planned_are_those_that_are_opened(
    more: dict[str, str | int], shared: bool, others: set[str], tmp_path: Path
) -> None:
    folders = {name: str(save_policy(tmp_path / name)) for name in ("start", "other")}
    more |= {"rm_model": folders[str(more["rm_model"])]} if "rm_model" in more else {}
    config: DistRLConfig = options(Path(folders["start"]), save_prompts(tmp_path / "p.jsonl"), tmp_path / "out", **more)
    job: Job = prepare(resolved(config))
    assert set(job.other_plans) == others
    assert any(plan.shares_base for plan in job.other_plans.values()) == shared
    opened = models.open_models(job)
    runners = [r for r in (opened.policy, opened.rm, opened.start) if r is not None]
    storages = {p.data_ptr(): p.nbytes for runner in runners for p in runner.model.parameters()}
    plans = (job.policy_plan, *job.other_plans.values())
    assert sum(storages.values()) == sum(plan.weights for plan in plans)
    assert sum(4 * sum(p.numel() for p in r.trained) for r in runners) == sum(plan.gradients for plan in plans)


def test_the_plan_is_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shape = run_setup.load_shape(str(save_policy(tmp_path / "start")), None, ModelSetup(Placement("cpu", "float32")))
    setup = ModelSetup(Placement("cuda:0", "bfloat16"), lora_rank=4, gradient_checkpointing=True)
    config = options(tmp_path, tmp_path, tmp_path, optimizer="adamw_8bit")
    plan = run_setup.memory_plan(config, setup, shape)
    assert (plan.half, plan.on_gpu, plan.lora_rank, plan.checkpointing) == (True, True, 4, True)
    assert plan.optimizer == "adamw_8bit"
    frozen = run_setup.memory_plan(config, replace(setup, frozen=True), shape)
    assert (frozen.trained, frozen.lora_rank, frozen.checkpointing) == (False, 0, False)
    assert isinstance(shape.model, transformers.PreTrainedModel)
