"""Checkpoints are whole or absent, and a run goes on from one as if it had never stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from forked import Child
from small_disk import run_with_small_disk
from train_runs import data, metrics, options, run, sft_options, traces

from prmbench.config import TrainRMConfig
from prmbench.core.records import UserError
from prmbench.training import checkpoints
from prmbench.training.train import train


def save(folder: Path, step: int) -> None:
    checkpoints.save(folder, step, {"w": torch.full((3,), float(step))}, {"note": step})


def loaded(found: checkpoints.Checkpoint | None) -> list[float]:
    assert found is not None
    state = {"w": torch.zeros(3)}
    checkpoints.load(found, state)
    return state["w"].tolist()


# --- the folder ---------------------------------------------------------------------------------------------------


def test_the_newest_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for step in (2, 9, 10):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000009", "00000010"]
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.step, found.facts) == (10, {"note": 10})
    assert loaded(found) == [10.0] * 3


@pytest.mark.parametrize("harm", ["no manifest", "torn manifest", "short file", "flipped byte", "missing file"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, harm: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / "00000002"
    shard = max(newest.glob("*.distcp"), key=lambda p: p.stat().st_size)
    raw = shard.read_bytes()
    if harm == "no manifest":
        (newest / "MANIFEST.json").unlink()
    elif harm == "torn manifest":
        (newest / "MANIFEST.json").write_text((newest / "MANIFEST.json").read_text()[:40])
    elif harm == "short file":
        shard.write_bytes(raw[:-1])
    elif harm == "flipped byte":
        shard.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
    else:
        shard.unlink()
    assert loaded(checkpoints.newest(tmp_path)) == [1.0] * 3
    save(tmp_path, 2)  # it may be written again
    assert loaded(checkpoints.newest(tmp_path)) == [2.0] * 3


@pytest.mark.parametrize(
    "harm",
    [
        *({"step": value} for value in (-1, 10**30, True, 1.0, "2", None)),
        *({"facts": {"note": value}} for value in (-1, 10**30, [-1], {"a": [2**60]})),
        *({"facts": value} for value in ([], "x", None)),
    ],
    ids=str,
)
def test_one_that_says_what_cannot_be_is_passed_over(tmp_path: Path, harm: dict[str, object]) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "00000002" / checkpoints.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **harm}))
    assert loaded(checkpoints.newest(tmp_path)) == [1.0] * 3


def test_damaged_later_ones_do_not_push_out_what_is_saved(tmp_path: Path) -> None:
    for step in (4, 8, 9):
        save(tmp_path, step)
    for path in (tmp_path / "00000008", tmp_path / "00000009"):
        (path / "MANIFEST.json").unlink()
    save(tmp_path, 4)  # two damaged ones have higher numbers
    assert loaded(checkpoints.newest(tmp_path)) == [4.0] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["00000004"]
    save(tmp_path, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000004", "00000006"]


def test_half_written_ones_are_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "00000001", tmp_path / ".tmp-7")
    assert loaded(checkpoints.newest(tmp_path)) == [1.0] * 3
    save(tmp_path, 2)
    assert not (tmp_path / ".tmp-7").exists()


def test_what_cannot_be_written_is_one_line_and_harms_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-2").write_text("a file where the folder should be")
    (tmp_path / ".tmp-2").rename(tmp_path / "blocked")
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "blocked", 2)
    assert loaded(checkpoints.newest(tmp_path)) == [1.0] * 3


# --- what a run says of itself ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    """A finished run of two updates whose checkpoints are still there."""
    folder = tmp_path_factory.mktemp("trained")
    run(sft_options(policy, data(folder), folder / "run", steps=2, save_every=1, template="plain"))
    return folder


UPDATE = {"update": 1, "loss": 1.0, "accuracy": None, "seconds": 1.0}
RECORDS: list[tuple[str, str, object]] = [
    *(("train.json", "finished", value) for value in (None, "no", 1)),
    *(("train.json", "identity", value) for value in (None, [], "x")),
    *(("train.json", "result", value) for value in (None, [], {}, {"updates": "x"})),
    *(("checkpoint", "metrics", value) for value in (None, "x", [], 1.5, True, float("nan"))),
    *(("checkpoint", "seconds", value) for value in (None, "x", [], {}, True)),
    *(("checkpoint", "run", value) for value in (None, "x", 3, [])),
    *(("metrics.jsonl", name, value) for name in ("loss", "seconds") for value in (None, "x", [1.0], True)),
    ("metrics.jsonl", "accuracy", "x"),
]


@pytest.mark.parametrize(("file", "field", "value"), RECORDS, ids=str)
def test_an_altered_record_is_one_line(
    finished_run: Path, tmp_path: Path, policy: Path, file: str, field: str, value: object
) -> None:
    out = shutil.copytree(finished_run / "run", tmp_path / "run")
    begun = json.loads((out / "train.json").read_text())
    seal = out / "checkpoints" / "00000002" / checkpoints.MANIFEST
    if file == "train.json":
        begun[field] = value
    else:
        begun["finished"] = False
    if file == "checkpoint":
        sealed = json.loads(seal.read_text())
        sealed["facts"][field] = value
        seal.write_text(json.dumps(sealed))
    elif file == "metrics.jsonl":
        (out / file).write_text(json.dumps({**UPDATE, field: value}) + "\n")
    (out / "train.json").write_text(json.dumps(begun))
    with pytest.raises(UserError, match=r"not the record of a run|is a checkpoint of another run") as caught:
        run(sft_options(policy, finished_run / "rollouts.jsonl", out, steps=2, save_every=1, template="plain"))
    assert str(out) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [None, b"", b'{"update": 1, "loss": 1.0, "accuracy": null, "seconds": 2.5}\n'])
def test_a_run_ends_without_its_whole_log(finished_run: Path, tmp_path: Path, policy: Path, left: bytes | None) -> None:
    out = shutil.copytree(finished_run / "run", tmp_path / "run")
    begun = json.loads((out / "train.json").read_text())
    (out / "train.json").write_text(json.dumps({**begun, "finished": False}))
    (out / "metrics.jsonl").unlink()
    if left is not None:
        (out / "metrics.jsonl").write_bytes(left)
    config = sft_options(policy, finished_run / "rollouts.jsonl", out, steps=2, save_every=1, template="plain")
    done = run(config)
    assert (done.updates, done.loss, done.seconds) == ((2, 1.0, 2.5) if left else (2, None, None))
    again = run(config)
    assert (again.fresh, again.loss) == (False, done.loss)


# --- runs ---------------------------------------------------------------------------------------------------------


def same_bytes(a: Path, b: Path) -> bool:
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


LONG = {"steps": 12, "batch_size": 3, "warmup": 0.2, "save_every": 4}


@pytest.mark.parametrize("more", [{}, {"lora_rank": 2}, {"optimizer": "sgd"}, {"loss": "q_rm"}])
def test_sigterm_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_bytes(
    policy: Path, tmp_path: Path, more: dict[str, object]
) -> None:
    file = data(tmp_path)
    whole = options(policy, file, tmp_path / "whole", **{**LONG, **more})
    run(whole)

    def kill_at_six(done: int, _: int, __: float) -> None:
        if done == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    parts = replace(whole, out=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train(parts, kill_at_six)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [p.name for p in sorted((tmp_path / "parts" / "checkpoints").iterdir())] == ["00000004", "00000006"]
    torch.manual_seed(99)  # whatever the other process had drawn
    begun: list[int] = []
    run(parts, progress=lambda done, *_: begun.append(done))
    assert begun[0] == 7
    assert same_bytes(tmp_path / "whole", tmp_path / "parts")
    for name in ("loss", "lr", "grad_norm", "seen"):
        assert metrics(tmp_path / "parts", name) == metrics(tmp_path / "whole", name)


def train_until(config: TrainRMConfig, at: int) -> None:
    """Prints the number of every update; after number `at` it is killed."""

    def tell(done: int, *_: object) -> None:
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(config, tell)


@pytest.mark.slow
def test_kill_9_anywhere_ends_in_the_same_bytes(policy: Path, tmp_path: Path) -> None:
    """Killed by itself at a random update, then from outside at a random time; then left to end."""
    file = data(tmp_path)
    whole = options(policy, file, tmp_path / "whole", **{**LONG, "steps": 60})
    run(whole)
    parts = replace(whole, out=tmp_path / "parts")
    rng = random.Random()
    at = rng.randrange(1, 40)
    with Child(train_until, parts, at) as first:
        assert first.wait() == -signal.SIGKILL, first.stderr
    assert first.stdout.split() == [str(n) for n in range(1, at + 1)]
    with Child(train_until, parts, 0) as second:
        second.wait_for(lambda: "\n" in second.stdout)
        time.sleep(rng.random() * 0.2)
    begun = int(second.stdout.split()[0])
    assert begun == at // 4 * 4 + 1 or begun == (at - 1) // 4 * 4 + 1  # the kill comes before the checkpoint
    run(parts)
    assert same_bytes(tmp_path / "whole", tmp_path / "parts")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert metrics(tmp_path / "parts", "update") == list(range(1, 61))


def test_a_checkpoint_of_another_run_is_refused(policy: Path, tmp_path: Path) -> None:
    config = options(policy, data(tmp_path), tmp_path / "out", save_every=2)

    def stop(done: int, *_: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    (tmp_path / "out" / "train.json").unlink()
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        train(replace(config, data=data(tmp_path, traces()[:6], "other.jsonl")))


def test_two_runs_in_one_folder_at_a_time_are_refused(policy: Path, tmp_path: Path) -> None:
    config = options(policy, data(tmp_path), tmp_path / "out")
    refused: list[str] = []

    def again(*_: object) -> None:
        with pytest.raises(UserError) as caught:
            train(config)
        refused.append(str(caught.value))

    run(config, progress=again)
    assert all("another process trains here" in line for line in refused)
    assert len(refused) == 5


def test_checkpoints_go_when_the_run_is_finished_unless_asked_for(policy: Path, tmp_path: Path) -> None:
    file = data(tmp_path)
    run(options(policy, file, tmp_path / "plain"))
    assert not (tmp_path / "plain" / "checkpoints").exists()
    run(options(policy, file, tmp_path / "kept", save_every=2))
    assert [p.name for p in sorted((tmp_path / "kept" / "checkpoints").iterdir())] == ["00000004", "00000005"]


def test_an_optimizer_that_has_not_stepped_is_not_made_to(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    before = model.weight.detach().clone()
    state = checkpoints.training_state(model, None)
    checkpoints.save(tmp_path, 1, state, {})
    assert not optimizer.state
    with torch.no_grad():
        model.weight.zero_()
    found = checkpoints.newest(tmp_path)
    assert found is not None
    again = checkpoints.training_state(model, None)
    checkpoints.load(found, again)
    checkpoints.put_back(model, None, again)
    assert torch.equal(model.weight, before)


# --- checkpoints of strangers -----------------------------------------------------------------------------------------


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.file}",)


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def seal(folder: Path) -> None:
    """Makes the manifest say that all is as it was written, which who can write here can do."""
    path = folder / checkpoints.MANIFEST
    told = json.loads(path.read_text())
    told["files"] = {p.name: checkpoints._digest(p) for p in folder.iterdir() if p != path}
    path.write_text(json.dumps(told))


def attacked(folder: Path, how: str, ran: Path) -> None:
    """A sealed checkpoint that runs something when it is read in full trust."""
    model, optimizer = trained()
    state = checkpoints.training_state(model, optimizer)
    if how == "a value":
        state["optimizer"]["param_groups"][0]["lr"] = Attack(ran)
    checkpoints.save(folder, 1, state, {})
    path = folder / "00000001" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    if how == "all of the metadata":
        metadata = Attack(ran)
    elif how == "inside the metadata":
        metadata.planner_data = {"x": Attack(ran)}
    elif how == "behind the metadata":
        path.write_bytes(pickle.dumps(Attack(ran))[:-1] + b"0" + path.read_bytes()[2:])
        return seal(folder / "00000001")
    elif how == "a file elsewhere":
        for info in metadata.storage_data.values():
            info.relative_path = f"../../{ran.name}"
    elif how == "another object":
        metadata = {"state_dict_metadata": {}}
    path.write_bytes(pickle.dumps(metadata))
    return seal(folder / "00000001")


ATTACKS = (
    *("all of the metadata", "inside the metadata", "behind the metadata", "a value"),
    *("a file elsewhere", "another object"),
)


@pytest.mark.parametrize("how", ATTACKS)
def test_a_strangers_checkpoint_runs_nothing(tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    ran = tmp_path / "ran"
    attacked(tmp_path / "checkpoints", how, ran)
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found is not None
    with pytest.raises(UserError, match="is no checkpoint that can be read") as caught:
        checkpoints.load(found, checkpoints.training_state(*trained()))
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not ran.exists()
    assert "Traceback" not in capfd.readouterr().err


def test_the_attack_would_work_on_dcp_itself(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    import torch.distributed.checkpoint as dcp

    ran = tmp_path / "ran"
    attacked(tmp_path, "a value", ran)
    with contextlib.suppress(dcp.api.CheckpointException, TypeError):
        state = checkpoints.training_state(*trained())
        dcp.load(state, checkpoint_id=tmp_path / "00000001", no_dist=True)
    assert ran.exists()


@pytest.mark.parametrize("kind", ["empty", "binary", "cut", "of another shape"])
def test_metadata_that_is_none(tmp_path: Path, kind: str) -> None:
    model, optimizer = trained()
    checkpoints.save(tmp_path, 1, checkpoints.training_state(model, optimizer), {})
    path = tmp_path / "00000001" / ".metadata"
    raw = {"empty": b"", "binary": b"\x00\xff" * 20, "cut": path.read_bytes()[:-9], "of another shape": None}[kind]
    if raw is not None:
        path.write_bytes(raw)
    seal(tmp_path / "00000001")
    other = torch.nn.Linear(5, 2)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    with pytest.raises(UserError, match="is no checkpoint that can be read"):
        checkpoints.load(found, checkpoints.training_state(other if raw is None else model, None))


# --- a disk that is full --------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_of_a_checkpoint(policy: Path, tmp_path: Path) -> None:
    """No file may grow beyond the limit; the weights are larger, and are written by torch's own code."""
    out, file, size = tmp_path / "out", data(tmp_path), 20_000
    flags = ["train-sft", "--preset", "miniature", "--steps", "1", "--optimizer", "sgd", "--device", "cpu"]
    command = [*flags, "--model", str(policy), "--data", str(file), "--out", str(out)]
    done = run_with_small_disk(size, *command)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith("error: cannot write ")
    assert "Traceback" not in done.stderr
    assert not list(out.glob("*.safetensors"))
    assert not [p.name for p in out.rglob("*") if p.name.startswith((".prmbench", ".tmp"))]
    run(sft_options(policy, file, out, steps=1, optimizer="sgd"))  # and goes on with room


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)")]
)
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_disk_that_fills_while_the_model_is_written(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    """The weights may be on disk already: they come to their name together with the rest."""
    owner = transformers.PreTrainedModel if part == "model" else transformers.PreTrainedTokenizerBase

    def fail(*_: object, **__: object) -> None:
        raise error

    config = sft_options(policy, data(tmp_path), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(owner, "save_pretrained", fail)
        with pytest.raises(UserError, match=r"cannot write .*out: No space left"):
            train(config)
    out = tmp_path / "out"
    assert not [p.name for p in out.iterdir() if p.name.startswith(".prmbench") or p.suffix == ".safetensors"]
    assert run(config).fresh
    assert (out / "model.safetensors").exists()
