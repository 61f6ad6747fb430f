"""Every kind of file given to every command: it works, or one line says which command or option does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_calls import call

CHAT = [{"role": "user", "content": "P?"}]
FILES: dict[str, list[dict[str, Any]]] = {
    "prm800k": [
        {
            "question": {"problem": "P?", "ground_truth_answer": "2"},
            "label": {"steps": [{"completions": [{"text": "a", "rating": 1}], "chosen_completion": 0}]},
        }
    ],
    "math_shepherd": [{"input": "P? Step 1: a ки\nStep 2: b ки", "label": "P? Step 1: a +\nStep 2: b -", "task": "M"}],
    "trl": [{"prompt": "P?", "completions": ["a", "b"], "labels": [True, False]}],
    "traces": [{"id": f"x-{i}", "problem": f"P{i}?", "steps": ["a", "b"], "label": i % 2 - 1} for i in range(4)],
    "rollouts": [
        {"prompt": f"P{i}?", "completion": f"a\n\n{k}", "outcome": k, "gold": "1"} for i in range(3) for k in range(2)
    ],
    "completions": [{"question": f"P{i}?", "responses": ["1", "2"], "answer": "1"} for i in range(3)],
    "prompts": [{"prompt": f"P{i}?", "answer": "1"} for i in range(3)],
    "questions": [{"question": f"P{i}?", "ground_truth": 1} for i in range(3)],
    "solutions": [{"problem": f"P{i}?", "solution": "a\n\nb"} for i in range(3)],
    "prmbench": [
        {
            "idx": "m_0",
            "question": "q",
            "original_question": "q",
            "modified_question": "q2",
            "original_process": ["a", "b"],
            "modified_process": ["a", "b"],
            "error_steps": [2],
            "classification": "circular",
        }
    ],
    "pairs": [
        {
            "chosen": [*CHAT, {"role": "assistant", "content": "a"}],
            "rejected": [*CHAT, {"role": "assistant", "content": "b"}],
        }
    ],
    "scores": [{"id": "x", "steps": 2, "values": [0.1, 0.2], "tokens": [1, 1]}],
}
EVAL = "eval --model random --out runs --data"
COMMANDS = {
    "eval": f"{EVAL} FILE",
    "format_shift": f"{EVAL} FILE --benchmark format_shift --dry-run",
    "prmbench": f"{EVAL} FILE --benchmark prmbench_preview",
    "best_of_n": f"{EVAL} FILE --benchmark best_of_n",
    "calibration": f"{EVAL} FILE --benchmark calibration",
    "score": "score --model random --data FILE --out s.jsonl",
    "rollout": "rollout --model ./no-policy --data FILE --out r.jsonl",
    "verify": "verify FILE --verifier exact --out v.jsonl",
    "convert": "convert FILE --out c.jsonl",
}
CONVERT = "`prmbench convert FILE --out STEM-traces.jsonl`"
VERIFY = "`prmbench verify FILE --out STEM-verified.jsonl`"
BEST_OF_N = "`prmbench eval --benchmark best_of_n --data FILE`"
ROLLOUT = "`prmbench rollout --model POLICY --data FILE`"
SCORE = "`prmbench score --data FILE`"
TRACES = "`prmbench eval --data FILE`"
PRMBENCH = "`prmbench eval --benchmark prmbench_preview --data FILE`"
TRAIN = "`prmbench train-rm --data FILE`"
SCORED = "give the file of solutions that were scored"
FIXES = {
    "prm800k": CONVERT,
    "math_shepherd": CONVERT,
    "trl": CONVERT,
    "traces": TRACES,
    "rollouts": BEST_OF_N,
    "completions": VERIFY,
    "prompts": ROLLOUT,
    "questions": ROLLOUT,
    "solutions": SCORE,
    "prmbench": PRMBENCH,
    "pairs": TRAIN,
    "scores": SCORED,
}
"""What a command says that has no use for a file."""
WORKS = ""
NO_BENCHMARK = "solutions with step labels are judged without --benchmark"
EXCEPTIONS: dict[str, dict[str, str]] = {
    "eval": {"traces": WORKS},
    "format_shift": {"traces": WORKS},
    "prmbench": {"prmbench": WORKS},
    "best_of_n": {
        **{"rollouts": WORKS, "pairs": WORKS},
        **dict.fromkeys(("trl", "completions", "solutions"), VERIFY),
        "traces": NO_BENCHMARK,
    },
    "calibration": {
        **dict.fromkeys(("rollouts", "pairs", "trl"), WORKS),
        **dict.fromkeys(("completions", "solutions"), VERIFY),
        "traces": NO_BENCHMARK,
    },
    "score": dict.fromkeys(("solutions", "traces", "rollouts"), WORKS),
    "rollout": dict.fromkeys(("prompts", "questions"), "no such file or folder"),
    "verify": {"completions": WORKS, "rollouts": WORKS},
    "convert": dict.fromkeys(("prm800k", "math_shepherd", "trl"), WORKS),
}
"""The commands that read a file, or whose own words about it are better."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_and_a_command(kind: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{kind}-rows.jsonl"
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in FILES[kind]))
    expected = EXCEPTIONS.get(command, {}).get(kind, FIXES[kind])
    result = call(*COMMANDS[command].replace("FILE", name).split())
    if expected == WORKS:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert expected.replace("FILE", name).replace("STEM", f"{kind}-rows") in line
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


@pytest.mark.parametrize("command", ["best_of_n", "calibration", "rollout", "convert", "train"])
def test_the_advice_to_verify_can_be_pasted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("own rows") / "c.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in FILES["completions"]))
    train = f"train-rm --model {policy} --preset miniature --device cpu --out t --data FILE"
    words = {**COMMANDS, "train": train}[command].split()
    result = call(*(str(path) if word == "FILE" else word for word in words))
    assert result.exit_code == 2, result.output
    (advice,) = re.findall(r"`prmbench (verify .*?)`", result.stderr)
    assert shlex.split(advice) == ["verify", str(path), "--out", "c-verified.jsonl"]
    assert call(*shlex.split(advice), "--verifier", "exact").exit_code == 0
