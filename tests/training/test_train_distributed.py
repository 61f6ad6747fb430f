"""Two processes on gloo give what one gives: DDP and FSDP2, full and LoRA; sharded checkpoints load in one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed_runs
import pytest
import sharded_counts
from distributed_runs import Run
from forked import run_group
from rl_fixtures import save_policy
from train_runs import data, distance, metrics, options, run, traces

from prmbench.config import TrainRMConfig
from prmbench.training.batching import make_order, micro_batches

STEADY = {
    "optimizer": "sgd",
    "learning_rate": 0.003,
    "steps": 5,
    "batch_size": 5,
    "batch_tokens": 120,
    "save_every": 3,
    "beta": 2.0,  # more would magnify roundings
}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(policy: Path, tmp_path: Path) -> None:
    """Eight rows in batches of five, in micro-batches: shares are uneven, and once one process has nothing."""
    rows = traces()
    rows[3] = replace(rows[3], steps=("One might be tempted to multiply.", *rows[3].steps), first_error=None)
    file = data(tmp_path, rows)
    cases = [
        (strategy, lora, loss)
        for lora, loss in ((0, "ipvrm"), (2, "ipvrm"), (0, "q_rm"))
        for strategy in ("ddp", "fsdp")
    ]

    def config(name: str, lora: int, loss: str, **more: Any) -> TrainRMConfig:
        return options(policy, file, tmp_path / name, **{**STEADY, "lora_rank": lora, "loss": loss, **more})

    runs = [Run(config(f"{s}-{n}-{loss}", n, loss, strategy=s)) for s, n, loss in cases]
    # A batch of one pair: the other process has nothing to do. And a run that one process is told
    # to stop: both do, with a checkpoint of shards.
    runs.append(Run(config("tiny", 0, "dpo_rm", batch_size=1, strategy="fsdp")))
    parts = {"optimizer": "adamw", "strategy": "fsdp", "validation": 0.25}
    runs.append(Run(config("parts", 0, "ipvrm", **parts), stop_at=3))
    run_group(distributed_runs.train_all, runs)

    for lora, loss in ((0, "ipvrm"), (2, "ipvrm"), (0, "q_rm")):
        alone = tmp_path / f"alone-{lora}-{loss}"
        run(config(alone.name, lora, loss))
        for strategy in ("ddp", "fsdp"):
            both = tmp_path / f"{strategy}-{lora}-{loss}"
            assert metrics(both) == pytest.approx(metrics(alone), abs=1e-6), both.name
            assert metrics(both, "accuracy")[1:] == metrics(alone, "accuracy")[1:]  # first there are ties
            assert metrics(both, "grad_norm") == pytest.approx(metrics(alone, "grad_norm"), rel=1e-4)
            assert distance(both, alone) < 1e-5, both.name
        assert distance(alone, policy) > 1e-4 if loss == "ipvrm" else metrics(alone)[-1] < metrics(alone)[0]
    assert json.loads((tmp_path / "ddp-0-ipvrm" / "train.json").read_text())["result"]["processes"] == 2

    run(config("tiny-alone", 0, "dpo_rm", batch_size=1))
    assert distance(tmp_path / "tiny", tmp_path / "tiny-alone") < 1e-5

    # Two processes saved three updates in shards; one takes them up.
    begun: list[int] = []
    run(config("parts", 0, "ipvrm", **{**parts, "strategy": "ddp"}), progress=lambda done, *_: begun.append(done))
    assert begun == [4, 5]
    run(config("unparted", 0, "ipvrm", **{**parts, "strategy": "ddp"}))
    assert metrics(tmp_path / "parts") == pytest.approx(metrics(tmp_path / "unparted"), rel=1e-4)
    assert distance(tmp_path / "parts", tmp_path / "unparted") < 1e-3  # Adam magnifies what SGD would not


@pytest.mark.slow
def test_two_nodes_of_two_processes_give_what_one_process_gives(policy: Path, tmp_path: Path) -> None:
    """HSDP: shards within a node, copies in both, with gradients kept until an update's last micro-batch or not."""
    file = data(tmp_path)

    def config(name: str, **more: Any) -> TrainRMConfig:
        return options(policy, file, tmp_path / name, **{**STEADY, "loss": "ipvrm", "strategy": "hsdp", **more})

    adam = {"optimizer": "adamw"}
    runs = [Run(config("kept")), Run(config("each"), kept_gradient_bytes=0)]
    runs.append(Run(config("parts", **adam), stop_at=3))
    run_group(distributed_runs.train_all, runs, count=4, LOCAL_WORLD_SIZE="2")
    run(config("alone"))
    for name in ("kept", "each"):
        assert metrics(tmp_path / name) == pytest.approx(metrics(tmp_path / "alone"), abs=1e-6)
        assert metrics(tmp_path / name, "grad_norm") == pytest.approx(
            metrics(tmp_path / "alone", "grad_norm"), rel=1e-4
        )
        assert distance(tmp_path / name, tmp_path / "alone") < 1e-5
    assert distance(tmp_path / "alone", policy) > 1e-4

    begun: list[int] = []
    run(config("parts", **adam), progress=lambda done, *_: begun.append(done))
    assert begun == [4, 5]
    run(config("unparted", **adam))
    assert distance(tmp_path / "parts", tmp_path / "unparted") < 1e-3


@pytest.mark.slow
def test_each_process_loads_hashes_and_sends_its_part(tmp_path: Path) -> None:
    save_policy(tmp_path / "tied", tie_word_embeddings=True)
    save_policy(tmp_path / "untied", 1)
    wide = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
    save_policy(tmp_path / "large", num_hidden_layers=12, **wide)
    run_group(sharded_counts.measure, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for result in (first, second):
        assert result["differences"] == [0.0] * 8  # tied or not, with a new head or not, with adapters or not
        assert "absent: no such file or folder" in result["error"]
        assert (result["is_found"], result["damaged_is_found"]) == (True, False)
        assert result["modules"] == 3  # two layers and the rest
        assert result["fsdp_kept"] == {"reduce_scatter_single": 3}
        assert result["fsdp_each"] == {"reduce_scatter_single": 9}  # of three micro-batches
        assert result["hsdp_kept"] == result["hsdp_each"] == {"all_reduce": 3}
        assert result["gradient_difference"] < 1e-6 * result["gradient_size"]
    for name in ("hashed_when_saving", "hashed_when_resuming"):
        assert first[name] + second[name] > first["model_bytes"]  # all of it, once
        assert 0.45 < first[name] / (first[name] + second[name]) < 0.55
    # Process 0 has the whole model, and its half of it; the other never the whole: its half, and a tensor at a time.
    assert first["peak_bytes"] > first["model_bytes"]
    assert second["peak_bytes"] < 0.8 * second["model_bytes"]


# --- shares and order, which need no process ----------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_shares_cover_a_batch_once_in_equally_many_micro_batches(processes: int, budget: int) -> None:
    lengths = [3, 9, 4, 20, 7, 7, 1, 12, 30, 2]
    units = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    shares = micro_batches(units, lengths, budget, processes)
    assert len(shares) == processes
    assert len({len(share) for share in shares}) == 1
    assert sorted(unit for share in shares for batch in share for unit in batch) == units  # halves stay together
    for batch in (batch for share in shares for batch in share):
        width = max((lengths[i] for unit in batch for i in unit), default=0)
        assert len(batch) <= 1 or 2 * len(batch) * width <= budget
    if budget == 10_000:
        assert len(shares[0]) == 1


def test_the_order_is_a_function_of_seed_and_pass() -> None:
    order = make_order(units=7, batch=3, epochs=2.5, steps=None, seed=5)
    assert order.updates == 6  # 18 rows (2.5 x 7, rounded) in threes
    stream = [i for update in range(order.updates) for i in order.batch_of(update)]
    assert len(stream) == 18
    assert sorted(stream[:7]) == sorted(stream[7:14]) == list(range(7))
    assert stream[:7] != stream[7:14]
    assert order.batch_of(4) == stream[12:15]  # whatever was asked before
    assert [n for n in range(1, 7) if order.pass_ends(n)] == [3, 5]
    assert make_order(7, 3, 2.5, None, seed=6).batch_of(0) != order.batch_of(0)
    assert make_order(7, 64, 1.0, 4, seed=5).batch == 7  # no more than there are
    assert make_order(7, 3, 1.0, 4, seed=5).updates == 4
