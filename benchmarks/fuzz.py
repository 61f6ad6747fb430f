"""Gives damaged input to every reader, which may answer with one line and an exit code only.

    python benchmarks/fuzz.py [--mutations 10000] [--seed 0] [--only TARGET]

Each mutation damages one valid input (a byte, a field of its JSON, its structure) and gives it to the command or
function that reads it. A run that ends in an exception other than `UserError`, or in an exit code that is not in
EXIT_CODES, counts as a traceback; its target, seed and number are printed so that it can be repeated. The last line has
the number of tracebacks; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from prmbench.backends.critic import answer_parser
from prmbench.cli import app
from prmbench.core.records import UserError
from prmbench.data import prompts
from prmbench.verification.answer_region import answer_region
from prmbench.verification.extraction import extract_answers, extract_gold_answers
from prmbench.verification.latex import plain_latex

EXIT_CODES = (0, 1, 2, 3, 75)
"""The documented exit codes of prmbench."""
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ",
    "\n", "\x00", "\ud800", "\ufeff", "\u2028", "a" * 5000, "../../x", "/etc/passwd", "-1", "1e999", "<script>", "|`*_",
    "{{ 1 }}", "\\boxed{", [], [[]], [None], {}, {"a": {}}, [1, "a", None], ["x"] * 300,
)  # fmt: skip
ANSWER_PIECES = (
    "\\boxed{", "}", "{", "\\frac", "12", "1,000", "½", "x", "=", "\\le", "(", ")", "[", ",", "\\cup", "\\text{", "and",
    "<answer>", "</answer>", "<think>", "</think>", "$", "\\", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "%", "°",
    "\n", " ", "The answer is ", "e", "^", "_", "\\pm", "\\sqrt", "√", "####", "Answer:", "not", ".", "cm", "52_8",
    "3:4", "\ud800", "\x00",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader, with a valid input."""

    valid: bytes
    suffix: str
    read: Callable[[Path], None]


def damaged(valid: bytes, rng: random.Random) -> bytes:
    """Return the input with one to three damages."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        valid = (_damaged_json if rng.random() < 0.7 else _damaged_bytes)(valid, rng)
    return valid


def _damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((0, 1, 2, 10, 200)))
    inserted = rng.choice(
        (b"", bytes([rng.randrange(256)]), data[start:end] * 2, b"\xef\xbb\xbf", b"\r\n", b"[" * 3000, b"\x00")
    )
    return data[:start] + inserted + data[end:]


def _damaged_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or move one value in a line of JSON; damage bytes of other data."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except (ValueError, RecursionError):
        return _damaged_bytes(data, rng)
    places = list(_json_places(value))
    if not places:
        return _damaged_bytes(data, rng)
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.7:
        parent[key] = rng.choice((*ODD_VALUES, parent[key], [parent[key]]))
    elif action < 0.85:
        del parent[key]
    elif isinstance(parent, dict):
        parent[rng.choice(("extra", "id", "", "label"))] = parent.pop(key)
    else:
        parent.insert(0, rng.choice(ODD_VALUES))
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines)


def _json_places(value: Any) -> Iterable[tuple[Any, Any]]:
    """Yield every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _json_places(inner)


class TracebackError(Exception):
    """A command ended with an exception or an undocumented exit code."""


def command(*arguments: str) -> None:
    """Run a prmbench command in this process.

    Raises:
        TracebackError: It ended with an exception or an undocumented exit code.
    """
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise TracebackError(f"{arguments[0]}: {type(result.exception).__name__}") from result.exception
    if result.exit_code not in EXIT_CODES:
        raise TracebackError(f"{arguments[0]}: exit code {result.exit_code}")


def targets(folder: Path) -> Mapping[str, Target]:
    """Return every reader with a valid input; for readers of results, a run of a baseline is written to `folder`."""
    traces = files("prmbench.assets").joinpath("demo_traces.jsonl").read_bytes().splitlines()
    trace_lines = b"\n".join(traces[:6])
    solutions = b"\n".join(
        json.dumps({"problem": row["problem"], "solution": "\n\n".join(row["steps"])}).encode()
        for row in map(json.loads, traces[:3])
    )
    rollouts = _jsonl(
        {
            "id": f"p{p}/{k}", "group": f"p{p}", "prompt": f"What is {p} + {p}?", "outcome": int(k == 0),
            "completion": f"It is\n\nAnswer: {p + p + k}", "steps": ["It is", f"Answer: {p + p + k}"],
            "answer": str(p + p + k), "finish": "stop",
        }
        for p in range(3)
        for k in range(2)
    )  # fmt: skip
    step = {"completions": [{"text": "a", "rating": 1}], "chosen_completion": 0}
    labelled = {
        "shepherd": {
            "input": "Add. Step 1: a ки\nStep 2: b ки",
            "label": "Add. Step 1: a +\nStep 2: b -",
            "task": "GSM8K",
        },
        "trl": {"prompt": "Add.", "completions": ["a", "b"], "labels": [True, False]},
        "prm800k": {
            "question": {"problem": "Add.", "ground_truth_answer": "3"},
            "label": {"steps": [step], "finish_reason": "solution"},
        },
    }
    prompt_rows = _jsonl(
        {"id": f"q{k}", "prompt": "Add.", "answer": answer} for k, answer in enumerate(("3", "#### 4", "\\frac12", 0.5))
    )
    run = _run(folder, trace_lines)
    other, quiet = str(folder / "traces.jsonl"), ("--out", str(folder / "out"), "--quiet")

    def evaluation(*arguments: str) -> Callable[[Path], None]:
        return lambda path: command("eval", *arguments, "--data", str(path), *quiet)

    def with_out_file(*arguments: str) -> Callable[[Path], None]:
        return lambda path: command(arguments[0], *arguments[1:], str(path), "--out", f"{path}.out.jsonl")

    config = f'model = "random"\ndata = "{other}"\nlimit = 2\nseed = 1\n'
    return {
        "eval": Target(trace_lines, ".jsonl", evaluation("--model", "random")),
        "eval json": Target(b"[" + b",".join(traces[:4]) + b"]", ".json", evaluation("--model", "step-length")),
        "score": Target(solutions, ".jsonl", with_out_file("score", "--model", "step-length", "--data")),
        "best_of_n": Target(rollouts, ".jsonl", evaluation("--benchmark", "best_of_n", "--model", "random")),
        "policy": Target(rollouts, ".jsonl", evaluation("--benchmark", "policy")),
        "toml": Target(config.encode(), ".toml", lambda path: command("eval", "--config", str(path), *quiet)),
        "prm.json": Target(b'{"backend": "implicit", "beta": 0.05, "separator": "x"}', ".json", _model),
        "prompts": Target(prompt_rows, ".jsonl", _load_prompts),
        **{
            f"convert {name}": Target(_jsonl([row] * 3), ".jsonl", with_out_file("convert"))
            for name, row in labelled.items()
        },
        "contamination": Target(trace_lines, ".jsonl", with_out_file("contamination", "--against", other, "--data")),
        "result": Target(run.read_bytes(), ".json", lambda path: _result(path, run, result=True)),
        "scores": Target(_scores(run), ".jsonl", lambda path: _result(path, run, result=False)),
        "answer": Target(b"", ".txt", _grade),
    }


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def _run(folder: Path, traces: bytes) -> Path:
    (folder / "traces.jsonl").write_bytes(traces)
    command(
        "eval", "--model", "random", "--data", str(folder / "traces.jsonl"), "--out", str(folder / "run"), "--quiet"
    )
    return next((folder / "run").glob("*.json"))


def _scores(run: Path) -> bytes:
    import gzip

    return gzip.decompress(run.with_suffix("").with_suffix(".scores.jsonl.gz").read_bytes())


def _result(path: Path, run: Path, result: bool) -> None:
    """Run all commands that read results on a damaged result, or on damaged scores with the valid result."""
    import gzip
    import shutil

    folder = path.with_suffix("")
    folder.mkdir()
    scores = run.with_suffix("").with_suffix(".scores.jsonl.gz")
    copy = folder / run.name
    shutil.copy(path if result else run, copy)
    (folder / scores.name).write_bytes(scores.read_bytes() if result else gzip.compress(path.read_bytes()))
    command("report", "--results", str(folder), "--out", str(folder / "report"))
    command("card", str(copy))
    command("compare", str(run), str(copy))


def _model(path: Path) -> None:
    """Evaluate a model folder that contains only a damaged prm.json."""
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "prm.json").write_bytes(path.read_bytes())
    command("eval", "--model", str(folder), "--data", str(path.parent / "traces.jsonl"), "--dry-run")


def _load_prompts(path: Path) -> None:
    """Read the prompts of a file and their gold answers."""
    try:
        for prompt in prompts.load(path):
            extract_gold_answers(prompt.gold)
    except UserError:
        return


def _grade(path: Path) -> None:
    """Read a completion of random pieces with all readers of answers; no expression is evaluated."""
    rng = random.Random(path.name)
    text = "".join(rng.choices(ANSWER_PIECES, k=rng.randrange(1, 40)))
    region = answer_region(text)
    if region is not None:
        extract_answers(region)
    extract_gold_answers(text)
    plain_latex(text)
    answer_parser.parse_index(text, 3)
    answer_parser.parse_decisions(text)


def fuzz(mutations: int, seed: int, only: str = "", report: Callable[[str], None] = print) -> int:
    """Run mutations, spread evenly over the targets, and return how many ended in a traceback."""
    failures: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        readers = {k: v for k, v in targets(folder).items() if only in ("", k)}
        for number in range(mutations):
            reader = list(readers)[number % len(readers)]
            target = readers[reader]
            path = folder / f"input-{seed}-{number}{target.suffix}"
            path.write_bytes(damaged(target.valid, random.Random(f"{seed}/{number}")))
            try:
                target.read(path)
            except Exception as error:  # noqa: BLE001 - every exception is what is looked for
                failures[reader] += 1
                cause = error.__cause__ or error
                report(f"{reader}, --seed {seed}, mutation {number}: {type(cause).__name__}: {str(cause)[:200]}")
            path.unlink(missing_ok=True)
            if (number + 1) % 500 == 0:
                report(f"{number + 1} mutations, {failures.total()} tracebacks")
    return failures.total()


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the one target to damage")
    options = parser.parse_args(arguments)
    count = fuzz(options.mutations, options.seed, options.only)
    print(f"mutations: {options.mutations}")
    print(f"tracebacks: {count}")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
