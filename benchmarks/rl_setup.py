"""What the benchmarks of reinforcement learning share: a model on disk, drawn completions, arms ready for a step.

Outcomes are made up, weights do not move (rate 0), the reward model stands a little beside the policy: so every round
does the same. Completions are drawn once, outside of what is timed. Nothing is measured here.
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
from prmbench.rl.step_rollouts import Draw
from prmbench.rl.token_rows import Row
from prmbench.studies.miniature import tiny_model
from prmbench.training import optimiser
from prmbench.verification.verifiers import Verifier

SHAPES: dict[str, dict[str, Any]] = {
    # The miniature world's policy; SmolLM2-135M's vocabulary and width with 3 of its 30 layers.
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
"""Standard deviation of the embedding, which is the head too: about two tokens a place have a probability of 0.1 (the
paper's Table 11: 1.33). Layers have wide weights (`initializer_range`), or the input would be its own next token."""
PROMPT_TOKENS = (16, 48)


@dataclass(frozen=True)
class Size:
    """How much a step has."""

    shape: str
    prompts: int
    group: int
    length: int
    """Of the longest completion; the shortest may have a quarter."""
    updates: int
    """Policy updates of a step."""


@dataclass(frozen=True)
class Scene:
    """One policy, one reward model, one set of completions, for all arms."""

    asked: DistRLConfig
    """Before an arm's values are filled in."""
    job: Job
    models: Models
    draw: Draw


def write(folder: Path, size: Size) -> None:
    """The model, and prompts of random words."""
    words = tiny_model.tokenizer()
    shape = {"vocab_size": len(words), **SHAPES[size.shape]}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **shape, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=SHARPNESS[size.shape])
    model.save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    draw = random.Random(0)
    lengths = [draw.randint(*PROMPT_TOKENS) for _ in range(size.prompts)]
    texts = [" ".join(str(draw.randrange(10)) for _ in range(length)) for length in lengths]
    rows = [{"id": str(i), "prompt": text, "answer": "0"} for i, text in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def open_scene(folder: Path, size: Size, arm: Arm, options: Mapping[str, Any], beside: float = 0.002) -> Scene:
    """Reads what `write` wrote; draws the completions. `beside`: noise on the reward model, a share of its weights'."""
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
        perturb(models.rm.model, beside)
    return Scene(config, job, models, draw_once(job, models, size))


def perturb(model: torch.nn.Module, share: float) -> None:
    """As if some updates were done: with equal models every TD would be 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.add_(noise * share * weight.std().nan_to_num())


def return_freed_memory() -> None:
    """Undoes hf.keep_freed_memory, so that what is resident is what lives, not what glibc keeps for later (Linux)."""
    libc = ctypes.CDLL(None)
    libc.mallopt(hf.M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(hf.M_TRIM_THRESHOLD, 0)


def draw_once(job: Job, models: Models, size: Size) -> Draw:
    """Ragged completions of the policy itself; a prompt's first is wrong, its second right, the others by chance."""
    draw = random.Random(1)
    prompts = [job.prompt_ids[p.id] for p in job.prompts for _ in range(size.group)]
    limits = [draw.randint(max(size.length // 4, 1), size.length) for _ in prompts]
    drawn = InTraining(models.policy).sample(prompts, limits, list(range(len(prompts))), Sampling(temperature=1.0), ())
    rows = []
    for i, (prompt, found) in enumerate(zip(prompts, drawn, strict=True)):
        group, k = divmod(i, size.group)
        outcome = k if k in (0, 1) else draw.randrange(2)
        told = Rollout(str(i), "", outcome=outcome, steps=("",) * 4, tokens=len(found.ids))
        rows.append(Row(told, (*prompt, *found.ids), len(prompt), group))
    return Draw(tuple(rows), {}, 0)


def fixed(scene: Scene, arm: Arm) -> DistRLConfig:
    """An arm's options in the scene; at rate 0, so that every round does the same."""
    return replace(resolved(replace(scene.asked, arm=arm)), learning_rate=0.0, rm_learning_rate=0.0)


def run_of(scene: Scene, config: DistRLConfig, out: Path) -> distrl.Run:
    """An arm at work on the scene's models, its optimizers new."""
    job, models = replace(scene.job, config=config), scene.models
    if config.reward == "verifier":
        models = replace(models, rm=None)
    optimizers = {"policy": optimiser.make(models.policy.trained, config)}
    if models.rm is not None:
        optimizers["rm"] = optimiser.make(models.rm.trained, config)
    source = open_source(job, models.policy)
    log = Log(out, config.steps, None, None)
    return distrl.Run(job, models, optimizers, source, Verifier(1), Progress(), log)
