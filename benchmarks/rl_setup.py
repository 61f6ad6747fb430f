"""Shared set-up of the reinforcement-learning benchmarks: a model on disk, sampled completions, arms ready for a step.

Outcomes are made up, the learning rate is 0, and the reward model is a perturbed copy of the policy, so that every
round does the same work. Completions are sampled once, outside of the timed part.
"""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from prmbench.config.distrl_options import Arm, DistRLConfig
from prmbench.data.rollouts import Rollout
from prmbench.engines import hf
from prmbench.engines.generation import Sampling
from prmbench.rl import distrl
from prmbench.rl.metrics_log import Log
from prmbench.rl.models import Models, open_models
from prmbench.rl.resume import Progress
from prmbench.rl.sampler import InTraining, open_source
from prmbench.rl.setup import Job, prepare, resolved
from prmbench.rl.step_rollouts import StepRollouts
from prmbench.rl.token_rows import Row
from prmbench.studies.miniature import tiny_model
from prmbench.training import optimiser
from prmbench.verification.verifiers import Verifier

SHAPES: dict[str, dict[str, Any]] = {
    # The policy of the miniature world, and SmolLM2-135M's vocabulary and width with 3 of its 30 layers.
    "miniature": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.4,
    },
    "smollm2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 3,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "initializer_range": 0.2,
    },
}
SHARPNESS = {"miniature": 0.6, "smollm2": 0.4}
"""Standard deviation of the embedding, which is also the head: about two tokens per position have a probability of at
least 0.1 (the paper's Table 11: 1.33). `initializer_range` is large, or the model would repeat its input token."""
PROMPT_TOKENS = (16, 48)


@dataclass(frozen=True)
class Size:
    """Size of a step."""

    shape: str
    prompts: int
    group: int
    length: int
    """Tokens of the longest completion; the shortest may have a quarter of them."""
    updates: int
    """Policy updates per step."""


@dataclass(frozen=True)
class BenchmarkSetup:
    """One policy, one reward model and one set of completions, for all arms."""

    config: DistRLConfig
    """Configuration before the arm's defaults are applied."""
    job: Job
    models: Models
    draw: StepRollouts


def write_inputs(folder: Path, size: Size) -> None:
    """Write the model, and prompts of random words, to a folder."""
    tokenizer = tiny_model.tokenizer()
    shape = {"vocab_size": len(tokenizer), **SHAPES[size.shape]}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **shape, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=SHARPNESS[size.shape])
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    lengths = [rng.randint(*PROMPT_TOKENS) for _ in range(size.prompts)]
    texts = [" ".join(str(rng.randrange(10)) for _ in range(length)) for length in lengths]
    rows = [{"id": str(i), "prompt": text, "answer": "0"} for i, text in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def open_setup(folder: Path, size: Size, arm: Arm, options: Mapping[str, Any], noise: float = 0.002) -> BenchmarkSetup:
    """Open the models that `write` wrote and sample the completions.

    Args:
        folder: Folder of the model and the prompts.
        size: Size of a step.
        arm: The arm, which decides whether there is a reward model.
        options: Further fields of DistRLConfig.
        noise: Standard deviation of the reward model's noise, relative to that of each weight.
    """
    config = DistRLConfig(
        model=str(folder / "model"),
        data=folder / "prompts.jsonl",
        out=folder / "out",
        arm=arm,
        group_size=size.group,
        prompts=size.prompts,
        minibatch=-(-size.prompts // size.updates),
        rm_minibatch=0,
        **options,
    )
    job = prepare(resolved(config))
    models = open_models(job)
    if models.rm is not None:
        perturb(models.rm.model, noise)
    return BenchmarkSetup(config, job, models, draw_once(job, models, size))


def perturb(model: torch.nn.Module, share: float) -> None:
    """Add noise to the weights, as if the model had been updated; with equal models every TD error would be 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.add_(noise * share * weight.std().nan_to_num())


def return_freed_memory() -> None:
    """Undo hf.keep_freed_memory, so that resident memory does not include what glibc keeps for reuse (Linux)."""
    libc = ctypes.CDLL(None)
    libc.mallopt(hf.M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(hf.M_TRIM_THRESHOLD, 0)


def draw_once(job: Job, models: Models, size: Size) -> StepRollouts:
    """Sample completions of different lengths; a prompt's first is wrong, its second right, the others are random."""
    rng = random.Random(1)
    prompts = [job.prompt_ids[p.id] for p in job.prompts for _ in range(size.group)]
    limits = [rng.randint(max(size.length // 4, 1), size.length) for _ in prompts]
    completions = InTraining(models.policy).sample(
        prompts, limits, list(range(len(prompts))), Sampling(temperature=1.0), ()
    )
    rows = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        group, k = divmod(i, size.group)
        outcome = k if k in (0, 1) else rng.randrange(2)
        rollout = Rollout(str(i), "", outcome=outcome, steps=("",) * 4, tokens=len(completion.ids))
        rows.append(Row(rollout, (*prompt, *completion.ids), len(prompt), group))
    return StepRollouts(tuple(rows), {}, 0)


def fixed_config(setup: BenchmarkSetup, arm: Arm) -> DistRLConfig:
    """Return an arm's configuration with learning rates of 0, so that every round does the same work."""
    return replace(resolved(replace(setup.config, arm=arm)), learning_rate=0.0, rm_learning_rate=0.0)


def make_run(setup: BenchmarkSetup, config: DistRLConfig, out: Path) -> distrl.Run:
    """Return a run of an arm on the models of the set-up, with new optimizers."""
    job, models = replace(setup.job, config=config), setup.models
    if config.reward == "verifier":
        models = replace(models, rm=None)
    optimizers = {"policy": optimiser.make(models.policy.trained, config)}
    if models.rm is not None:
        optimizers["rm"] = optimiser.make(models.rm.trained, config)
    source = open_source(job, models.policy)
    log = Log(out, config.steps, None, None)
    return distrl.Run(job, models, optimizers, source, Verifier(1), Progress(), log)
