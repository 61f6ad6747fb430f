"""A process that is gone or hangs ends the others with one line; one that is late where work is uneven does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lost_process
import pytest
from forked import Child, group_environments, started_group
from paths import ROOT, SUPPORT
from train_runs import data, metrics, options

from prmbench.core import processes
from prmbench.core.records import UserError

AGAIN = "the same command goes on from what is kept"


def first_of_two(where: Callable[..., None], how: str, *more: object) -> Child:
    """Runs two processes, of which process 1 is disturbed; returns process 0, which has ended."""
    with started_group(lost_process.run, where, how, *more, PRMBENCH_TIMEOUT="4") as (first, _):
        first.wait()
    return first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("fails", 75, "process 1 has ended, and says itself why"),
        ("is killed", 75, "process 1 has given no sign of life for 4 seconds (PRMBENCH_TIMEOUT)"),
        ("stops", 75, "process 1 has given no sign of life for 4 seconds (PRMBENCH_TIMEOUT)"),
        ("is late", 0, ""),
    ],
)
def test_where_work_is_uneven_a_late_process_is_waited_for_and_a_lost_one_is_not(
    how: str, code: int, reason: str
) -> None:
    ended = first_of_two(lost_process.meet, how)
    assert ended.poll() == code, ended.stderr
    errors = [text for text in ended.stderr.splitlines() if not text.startswith("INFO")]
    assert errors == ([f"error: process 0 of 2, a sum over all processes: {reason}; {AGAIN}"] if code else [])
    if how != "fails":
        assert "at a sum over all processes; not there yet: 1" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "how", "reason"),
    [
        ("ddp", "is late", "another process has not come within 4 seconds (PRMBENCH_TIMEOUT)"),
        ("fsdp", "is killed", "another process has ended, and says itself why"),
        ("fsdp", "stops", "another process has not come within 4 seconds (PRMBENCH_TIMEOUT)"),
    ],
)
def test_training_ends_with_one_line_when_a_process_is_lost(
    policy: Path, tmp_path: Path, strategy: str, how: str, reason: str
) -> None:
    config = options(policy, data(tmp_path), tmp_path / "out", strategy=strategy, save_every=1)
    ended = first_of_two(lost_process.train, how, config)
    assert ended.poll() == 75, ended.stderr
    (error,) = [text for text in ended.stderr.splitlines() if text.startswith("error")]
    assert error == f"error: process 0 of 2, training: {reason}; {AGAIN}"
    assert "Traceback" not in ended.stderr
    assert len(metrics(tmp_path / "out")) == 2
    assert (tmp_path / "out" / "checkpoints" / "00000002" / "MANIFEST.json").exists()


@pytest.mark.slow
def test_a_process_lost_while_a_checkpoint_is_loaded_does_not_make_the_checkpoint_unreadable(tmp_path: Path) -> None:
    ended = first_of_two(lost_process.load, "is killed", tmp_path)
    assert ended.poll() == 75, ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        f"error: process 0 of 2, loading a checkpoint: another process has ended, and says itself why; {AGAIN}"
    )


@pytest.mark.slow
def test_a_python_of_its_own_ends_too() -> None:
    """The children of the other tests leave by os._exit; Python itself ends threads and modules first."""
    command = [sys.executable, "-c", "import lost_process as lost; lost.run(lost.meet, 'is killed')"]
    path = os.pathsep.join(map(str, (ROOT, SUPPORT)))
    shared = {**os.environ, "PYTHONPATH": path, "PRMBENCH_TIMEOUT": "4"}
    first, other = (
        subprocess.Popen(command, env={**shared, **rank}, stderr=subprocess.PIPE, text=True)
        for rank in group_environments(2)
    )
    with first, other:
        try:
            _, errors = first.communicate(timeout=120)
        finally:
            first.kill()
            other.kill()
    assert first.returncode == 75, errors
    assert errors.splitlines()[-1] == (
        "error: process 0 of 2, a sum over all processes: process 1 has given no sign of life for 4 seconds "
        f"(PRMBENCH_TIMEOUT); {AGAIN}"
    )


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon", "86400"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PRMBENCH_TIMEOUT", text)
    with pytest.raises(UserError, match=f"PRMBENCH_TIMEOUT={text}: give seconds"):
        processes.timeout_seconds()


def test_the_limit_is_ten_minutes_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRMBENCH_TIMEOUT", raising=False)
    assert processes.timeout_seconds() == 600
    monkeypatch.setenv("PRMBENCH_TIMEOUT", "90.5")
    assert processes.timeout_seconds() == 90.5


def test_the_memory_that_a_dry_run_tells_is_that_of_the_device_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a GPU which --device cpu leaves alone."""
    properties = {"cuda:1": SimpleNamespace(total_memory=3 * 2**30)}
    monkeypatch.setattr(processes.torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: True)
    assert (processes.device_memory_gib("cuda:1"), processes.device_memory_gib("cpu")) == (3, None)


def test_nodes_of_different_sizes_are_refused_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the process whose own number would do: 4 processes as nodes of 2, 1 and 1."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "all_gather", lambda value: [value, value, 1, 1])
    with pytest.raises(UserError, match=r"--strategy hsdp: nodes with \[1, 2\] processes; start as many on each"):
        processes._mesh("hsdp", "cpu")
