"""The tests marked `gpu` run on a pretend accelerator, in a process of its own, so that their code is never stale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def in_new_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_tests_marked_gpu_pass_on_the_pretend_accelerator() -> None:
    plugins = ["-p", "pretend_gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = in_new_process("-m", "pytest", *plugins, "-q", "-m", "gpu", "tests/test_gpu.py")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert re.search(r"\d+ passed in", done.stdout), done.stdout[-1000:]  # none is skipped


def test_the_pretend_accelerator_refuses_what_a_gpu_refuses_and_counts_what_the_host_waits_for() -> None:
    code = """
import pretend_gpu, torch
pretend_gpu.turn_on()
a = torch.arange(4.0, device="pretend")
assert a.device.type == "pretend"
assert (a + 1).device.type == "pretend" and a.cpu().device.type == "cpu"
for wrong in (lambda: a + torch.ones(4), lambda: torch.ones(4).add_(a), lambda: torch.ones(4)[a.long()]):
    try:
        wrong()
    except RuntimeError as error:
        assert "two devices" in str(error)
    else:
        raise SystemExit("two devices were mixed")
assert (a + torch.tensor(1.0)).sum().cpu() == 10  # CUDA takes a number from the host, too
copy = a.cpu()
copy[0] = 7
view = a[1:]
view += 1
assert a.tolist() == [0, 2, 3, 4]
pretend_gpu.SYNCS.clear()
a.sum()
assert not pretend_gpu.SYNCS
a.sum().item(); a.cpu(); a.tolist(); a[a > 2]; a.nonzero(); bool(a.any())
assert pretend_gpu.SYNCS == {"item": 2, "copy to the host": 2, "index": 1, "nonzero": 1}, pretend_gpu.SYNCS
x = torch.ones(3, device="pretend", requires_grad=True)
(x * x).sum().backward()
assert x.grad.device.type == "pretend" and x.grad.tolist() == [2, 2, 2]
"""
    done = in_new_process("-c", code)
    assert done.returncode == 0, done.stderr
