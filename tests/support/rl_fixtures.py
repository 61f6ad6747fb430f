"""Small RL runs for tests: a policy of ten words that is right by chance, its prompts, and short cuts to train it.

With so few words a random model often ends on one of two answers: most prompts have right and wrong completions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from token_kinds import TEMPLATE
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prmbench.config.distrl_options import DistRLConfig
from prmbench.data.rollouts import Rollout
from prmbench.rl.distrl import train_distrl
from prmbench.rl.result import Finished
from prmbench.rl.token_rows import Row, Rows

MARKERS = ("<unk>", "<|end|>", "<|user|>", "<|assistant|>")
WORDS = ("\n", "x", "y", "Answer: 0\n", "Answer: 1\n", "Well.\n\n")
HELD_OUT = ("x", "y", "xyx", "yxy")
"""Prompts for validation, none of them one of `save_prompts`' own."""
SGD = {"optimizer": "sgd", "learning_rate": 0.005, "rm_learning_rate": 0.005, "max_grad_norm": 0.0}
"""A plain step along the gradient, which rounding moves no more than the gradient itself."""


@cache
def words() -> PreTrainedTokenizerFast:
    """A word a token; whatever else is unknown."""
    vocabulary = {word: i for i, word in enumerate(MARKERS + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"Answer: \d\n|Well\.\n\n|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="<unk>", chat_template=TEMPLATE
    )


def save_policy(folder: Path, seed: int = 0, auto: str = "AutoModelForCausalLM", **more: Any) -> Path:
    """A random Llama over these words in `folder`; at this scale its tokens have probabilities from 0.01 to 0.5."""
    torch.manual_seed(seed)
    shape = transformers.LlamaConfig(
        vocab_size=len(words()),
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "initializer_range": 0.25,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "bos_token_id": None,
            **more,
        },
    )
    getattr(transformers, auto).from_config(shape).save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def save_prompts(path: Path, texts: Sequence[str] = ("xx", "xy", "yx", "yy", "xxy", "yyx"), **more: Any) -> Path:
    """The answer to every other one is 1."""
    rows = [{"id": f"p{i}", "prompt": t, "answer": str(i % 2), **more} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(model: Path, asked: Path, out: Path, **more: Any) -> DistRLConfig:
    """A run of two steps on three prompts of four completions each, on the paper's objective."""
    usual = {
        "preset": "paper",
        "verifier": "exact",
        "group_size": 4,
        "prompts": 3,
        "draw": 6,
        "rounds": 3,
        "minibatch": 0,
        "rm_minibatch": 0,
        "lora_rank": 0,
        "max_new_tokens": 8,
        "steps": 2,
        "save_every": 0,
        "device": "cpu",
        "learning_rate": 1e-2,
        "rm_learning_rate": 1e-2,
    }
    return DistRLConfig(model=str(model), data=asked, out=out, **{**usual, **more})


def run(config: DistRLConfig, **more: Any) -> Finished:
    """Trains; there is one process, so there is a summary."""
    done = train_distrl(config, **more)
    assert done is not None
    return done


def weights(folder: Path) -> dict[str, Tensor]:
    """Of a trained model."""
    return load_file(folder / "model.safetensors")


def distance(a: Path, b: Path) -> float:
    """The largest difference between the weights of two models."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def lines(out: Path, validations: bool = False) -> list[dict[str, Any]]:
    """Of metrics.jsonl: the steps, or the validations."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if ("validation" in line) == validations]


def column(out: Path, name: str) -> list[Any]:
    """One number of every step."""
    return [line.get(name) for line in lines(out)]


def row(size: int, outcome: int, group: int, *, start: int = 2, masked: bool = False, steps: int = 1) -> Row:
    """A completion of so many tokens behind a prompt of two."""
    said = Rollout(f"{group}/{size}", "xy", steps=("x",) * steps, outcome=outcome)
    ids = tuple(4 + (3 * i + size) % 6 for i in range(start + size))
    return Row(said, ids, start, group, masked=masked)


def rows(*each: Row) -> Rows:
    """Of this process."""
    return Rows(each, "cpu")
