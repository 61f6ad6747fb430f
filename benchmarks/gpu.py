"""What a GPU can show, in blocks of under ten minutes each: `make gpu`, or `python benchmarks/gpu.py BLOCK ...`.

It runs where there are only torch, transformers, numpy, scipy, pydantic and pytest: weights are random and the
tokenizer is made in place. Each block runs in a process of its own and writes one JSON file with the name of the card,
the versions and the commit. A block that lacks a package says so and is left out; one that has a result is not run
again (`--force` runs it); one that fails leaves one line in its file, runs again the next time, and makes the exit code
1.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # prmbench need not be installed

import torch  # noqa: E402
import transformers  # noqa: E402
from gpu_blocks import BLOCKS, MissingError, Place  # noqa: E402

from prmbench.core import provenance  # noqa: E402
from prmbench.core.writing import write_atomic  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
LIMIT = 600
"""Seconds after which a block is stopped."""


def card_name(device: str) -> str:
    """Return the name of the card, or of the device where it is none."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device.partition(":")[0]


def environment(place: Place) -> dict[str, Any]:
    """Return what a result must say of the machine and the code."""
    commit, is_dirty = provenance.code_state()
    return {
        "card": card_name(place.device),
        "toy": place.toy,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "dirty": is_dirty,
    }


def run_here(name: str, place: Place) -> dict[str, Any]:
    """Run a block in this process; return its `result`, or why it is `skipped`."""
    try:
        return {"result": BLOCKS[name](place)}
    except MissingError as reason:
        return {"skipped": str(reason)}


def run_apart(name: str, place: Place) -> dict[str, Any]:
    """Run a block in a process of its own, which may fail or hang; return what `run_here` does, or `error`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--here", "--device", place.device, name]
    try:
        done = subprocess.run(
            [*command, *(["--toy"] if place.toy else [])], capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"was not done after {LIMIT} s and was stopped"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    return {"error": f"exit code {done.returncode}: {lines[-1][:300]}"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=f"{', '.join(BLOCKS)} [default: all, in this order]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that the blocks run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results, one folder a card in it")
    parser.add_argument("--force", action="store_true", help="run blocks again that have a result")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.blocks) - set(BLOCKS)):
        parser.error(f"there is no block {unknown[0]}; choose from {', '.join(BLOCKS)}")
    if options.device == "cpu" and not options.toy:
        parser.error("there is no GPU (torch.cuda.is_available() is false); --toy runs tiny sizes on a CPU")
    return options


def has_result(path: Path, toy: bool) -> bool:
    """Return whether a block has been run at this size; one that failed or lacked a package is run again."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return "result" in record and record["toy"] == toy


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the blocks, print a line for each, and return 1 if one failed."""
    options = parse(arguments)
    place = Place(options.device, options.toy)
    if options.here:
        print(json.dumps(run_here(options.blocks[0], place)))
        return 0
    folder = options.out / re.sub(r"[^a-z0-9]+", "-", card_name(options.device).lower())
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in options.blocks or BLOCKS:
        path = folder / f"{name}.json"
        if not options.force and has_result(path, place.toy):
            print(f"{name}: has a result in {path}; --force runs it again", flush=True)
            continue
        started = time.monotonic()
        outcome = run_apart(name, place)
        record = {"block": name, **environment(place), "seconds": round(time.monotonic() - started, 1), **outcome}
        write_atomic(path, json.dumps(record, indent=1) + "\n")
        failed += "error" in outcome
        print(f"{name}: {json.dumps(outcome)}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
