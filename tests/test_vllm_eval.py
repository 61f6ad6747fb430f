"""vLLM where others are judged: log-probabilities, reward models, rollouts, a critic behind its server.

Against transformers on a CPU in float32: `make test-vllm`. Commands run as processes of their own, as users start them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import save_model
from safetensors.torch import load_file, save_file
from token_kinds import byte_bpe
from vllm_runs import CPU, MARKS, opened, served

from prmbench import tasks
from prmbench.core import result_files
from prmbench.data import rollouts
from prmbench.engines import vllm
from prmbench.engines.encoding import Encoded
from prmbench.engines.hf import load
from prmbench.engines.vllm import VllmOptions

pytestmark = MARKS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tiny models of one vocabulary; vLLM's attention on a CPU wants heads of 32."""
    folder = tmp_path_factory.mktemp("pair")
    return save_model(folder / "policy", 0, head_dim=32), save_model(folder / "reference", 1, head_dim=32)


def prmbench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prmbench", *map(str, arguments)]
    return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)


def done(*arguments: object) -> str:
    found = prmbench(*arguments)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def only_run(out: Path) -> result_files.Run:
    (path,) = out.glob("*[0-9a-f].json")
    return tasks.read_run(path)


def test_log_probabilities_are_those_of_transformers(smollm2_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that begin late, text behind the last step, traces longer than a piece; measured: at most 6e-5 nats."""
    monkeypatch.setattr(vllm, "READ_TOKENS", 64)
    theirs, ours = opened(smollm2_model, VllmOptions(reads=True)), load(str(smollm2_model), "lm", CPU)
    ids = tuple(ours.tokenizer((Path(__file__).parents[1] / "LICENSE").read_text())["input_ids"])
    batch = [
        Encoded("short", ids[:9], 1, (4, 9)),
        Encoded("late", ids[100:160], 20, (30, 50)),
        Encoded("pieces", ids[200:390], 3, (70, 180)),
        Encoded("full", ids[: theirs.max_tokens], 1, (255,)),
        *(Encoded("word", (*ids[:30], word), 30, (31,)) for word in (*ids[40:44], ids[40])),  # one request
    ]
    assert theirs.max_tokens == 255
    for encoded, found, known in zip(batch, theirs.logprobs(batch), ours.logprobs(batch), strict=True):
        assert found.logprobs.dtype == np.float32
        assert found.normalisers is None
        assert len(found.logprobs) == encoded.ends[-1] - encoded.start
        print(encoded.id, np.abs(found.logprobs - known.logprobs).max())  # noqa: T201
        assert np.allclose(found.logprobs, known.logprobs, rtol=0, atol=5e-4)


def test_a_reward_model_has_the_same_scores(pair: tuple[Path, Path], benchmark_folder: Path, tmp_path: Path) -> None:
    """Policy and reference in one process, through the command line: two models that do not get mixed up."""
    policy, reference = pair
    runs = []
    for engine in ("hf", "vllm"):
        told = ("--engine", engine, "--device", "cpu", "--out", tmp_path / engine, "--data", benchmark_folder)
        done("eval", "--model", policy, "--backend", "implicit", "--ref-model", reference, *told)
        runs.append(only_run(tmp_path / engine))
    ours, theirs = runs
    assert theirs.result.manifest.engine == "vllm"
    assert theirs.result.manifest.run_id != ours.result.manifest.run_id
    assert [s.id for s in theirs.scores] == [s.id for s in ours.scores]
    assert [s.tokens for s in theirs.scores] == [s.tokens for s in ours.scores]
    difference = [
        abs(a - b)
        for x, y in zip(*(r.scores for r in runs), strict=True)
        for a, b in zip(x.values, y.values, strict=True)
    ]
    spread = np.std([v for s in ours.scores for v in s.values])
    print(max(difference), spread)  # noqa: T201
    assert max(difference) < 5e-4 < spread / 100
    numbers = [
        [(r.subset, r.protocol, r.metric, r.n, r.value) for r in run.result.rows if r.metric == "f1"] for run in runs
    ]
    assert numbers[0] == numbers[1]
    assert len({value for *_, value in numbers[0]}) > 3


def shepherd(folder: Path) -> dict[str, Any]:
    """A language model that says + or - behind a tag."""
    save_model(folder, 2, head_dim=32)
    return {"backend": "tag_lm", "tag": "<extra_0>", "good": "a", "bad": "b"}


def classifier(folder: Path, labels: int = 2) -> dict[str, Any]:
    save_model(folder, 3, "AutoModelForTokenClassification", num_labels=labels, head_dim=32)
    return {"backend": "token_cls", "separator": "\n\n"} if labels > 1 else {"backend": "value_head"}


def qwen(folder: Path, architecture: str, outputs: int) -> None:
    """Random weights in the shape of Qwen2.5-Math-PRM and Qwen2.5-Math-RM, whose head has two layers."""
    torch.manual_seed(4)
    tokenizer = byte_bpe()
    shape = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    transformers.Qwen2ForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, outputs))
    tensors = {f"score.{name}": 5 * weight.detach() for name, weight in head.state_dict().items()}
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))


def qwen_prm(folder: Path) -> dict[str, Any]:
    qwen(folder, "Qwen2ForProcessRewardModel", 2)
    return {"backend": "token_cls", "tag": "<extra_0>", "prompt": "qwen_math_prm_system", "head": "score."}


def qwen_rm(folder: Path) -> dict[str, Any]:
    qwen(folder, "Qwen2ForRewardModel", 1)
    return {"backend": "value_head", "head": "score."}


@pytest.mark.parametrize("kind", [qwen_prm, qwen_rm, classifier, partial(classifier, labels=1), shepherd])
def test_a_step_tagger_has_the_same_scores(
    kind: Callable[[Path], dict[str, Any]], benchmark_folder: Path, tmp_path: Path
) -> None:
    """By vLLM's pooling, at every step's end: tag, separator, last token; one class, two, and a head of two layers."""
    model = tmp_path / "model"
    card = kind(model)
    (model / "prm.json").write_text(json.dumps(card))
    runs = []
    for engine in ("hf", "vllm"):
        told = ("--engine", engine, "--device", "cpu", "--out", tmp_path / engine, "--data", benchmark_folder)
        done("eval", "--model", model, *told)
        runs.append(only_run(tmp_path / engine))
    ours, theirs = runs
    assert (theirs.result.manifest.engine, theirs.result.manifest.backend) == ("vllm", card["backend"])
    assert [s.id for s in theirs.scores] == [s.id for s in ours.scores]
    values = [[v for s in run.scores for v in s.values] for run in runs]
    print(np.abs(np.subtract(*values)).max(), np.std(values[0]))  # noqa: T201
    assert np.abs(np.subtract(*values)).max() < 5e-4
    assert np.std(values[0]) > 0.05


def asked(path: Path) -> Path:
    rows = [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(1, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rollouts_are_those_of_transformers(smollm2_model: Path, tmp_path: Path) -> None:
    """Greedy ones, to the letter, through the command line; the same command again has nothing to do."""
    data = asked(tmp_path / "prompts.jsonl")
    found = {}
    for engine in ("hf", "vllm"):
        out = tmp_path / f"{engine}.jsonl"
        command = (
            "rollout",
            "--model",
            smollm2_model,
            "--engine",
            engine,
            "--device",
            "cpu",
            "--data",
            data,
            "--out",
            out,
        )
        greedy = ("--temperature", 0, "--group-size", 1, "--max-new-tokens", 24, "--verifier", "exact")
        done(*command, "--out", out, *greedy)
        found[engine] = [(r.id, r.completion, r.tokens, r.finish, r.outcome) for r in rollouts.read(out)]
    assert found["vllm"] == found["hf"]
    assert len(found["hf"]) == 3
    assert all(text for _, text, *_ in found["hf"])
    told = json.loads(out.with_name("vllm.jsonl.json").read_text())
    assert told["identity"]["engine"] == "vllm"


def test_a_policy_is_judged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """`eval --benchmark policy`: the completions of a prompt differ."""
    data, out = asked(tmp_path / "prompts.jsonl"), tmp_path / "out"
    told = ("--engine", "vllm", "--device", "cpu", "--data", data, "--out", out, "--verifier", "exact")
    done("eval", "--benchmark", "policy", "--model", pair[0], *told, "--group-size", 3, "--max-new-tokens", 8)
    manifest = only_run(out).result.manifest
    assert (manifest.engine, manifest.n) == ("vllm", 9)
    (texts,) = out.glob("*.rollouts.jsonl")
    said = [r.completion for r in rollouts.read(texts)]
    assert all(len(set(said[i : i + 3])) == 3 for i in (0, 3, 6))


def critiques(out: Path) -> dict[str, list[str]]:
    (path,) = out.glob("*.critiques.jsonl")
    return {row["id"]: row["said"] for row in map(json.loads, path.read_text().splitlines())}


def probability(said: str) -> float:
    return float(said.removeprefix("P(yes) = "))


def test_a_critic_behind_the_server_says_what_it_says_here(
    smollm2_model: Path, benchmark_folder: Path, tmp_path: Path
) -> None:
    """SmolLM2 finds nothing, but in the same words: greedy answers from transformers and from vLLM's own server.

    The step-wise critic is cut short, and then has to decide: by the log-probabilities of one token.
    """
    (benchmark_folder / "math.jsonl").unlink()
    about = ("--data", benchmark_folder, "--limit", 2, "--critic-tokens", 16, "--device", "cpu")
    command = ("eval", "--backend", "critic", "--model", smollm2_model, *about)
    critics = ("processbench", "stepwise")
    with served(smollm2_model, tmp_path / "log", VllmOptions(max_tokens=2048)) as (url, _):
        for critic in critics:
            there = ("--engine", "openai", "--base-url", f"{url}/v1", "--critic", critic)
            done(*command, *there, "--out", tmp_path / critic / "openai")
    for critic in critics:
        done(*command, "--critic", critic, "--out", tmp_path / critic / "hf")
        ours, theirs = (only_run(tmp_path / critic / engine) for engine in ("hf", "openai"))
        said, known = (critiques(tmp_path / critic / engine) for engine in ("openai", "hf"))
        assert said.keys() == known.keys()
        assert len(said) == 2
        for mine, other in zip(said.values(), known.values(), strict=True):
            assert mine[0] == other[0] != ""
            assert [probability(text) for text in mine[1:]] == pytest.approx(
                [probability(t) for t in other[1:]], abs=1e-4
            )
            assert len(mine) == (1 if critic == "processbench" else 2)
        assert theirs.result.manifest.engine == "openai"
        assert theirs.result.manifest.completion_tokens == ours.result.manifest.completion_tokens > 0
        assert [s.verdicts for s in theirs.scores] == [s.verdicts for s in ours.scores]
        if critic == "processbench":
            assert theirs.result.manifest.tokens == ours.result.manifest.tokens
    assert any(verdict is not None for s in theirs.scores for verdict in s.verdicts)
