"""From options to all that the loop needs: prompts rendered, models' shapes compared, the run's identity.

Mistakes that cost nothing to find come first; weights are read last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench.backends import common
from prmbench.config import RolloutConfig, distrl_options
from prmbench.config.distrl_options import SELF, DistRLConfig
from prmbench.core import processes, provenance, reading, result_files
from prmbench.core.provenance import CARD_FILE
from prmbench.core.records import UserError, text_hash
from prmbench.data import prompts as prompt_files
from prmbench.data import rollouts
from prmbench.data.prompts import Prompt
from prmbench.engines import generation
from prmbench.engines.addresses import address
from prmbench.engines.encoding import PLAIN
from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.rl import ranges
from prmbench.sampling.completions import check_verifiers
from prmbench.training import batching
from prmbench.training import model as training_models
from prmbench.training.model import Setup
from prmbench.training.setup import PLAIN_AS_JINJA

NOT_IDENTITY = {
    "allow_empty",
    "out",
    "dry_run",
    "data",
    "validation_data",
    "first_rollouts",
    "model",
    "rm_model",
    "revision",
    "template",
    "preset",
    "arm",
    "engine",
    "server",
    "device",
    "batch_tokens",
    "draw_tokens",
    "strategy",
    "gradient_checkpointing",
    "save_every",
    "resume",
    "tracker",
    "trust_remote_code",
}
"""Options that do not change what a step computes, or that the identity holds as a hash."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run, before any weight is loaded."""

    config: DistRLConfig
    """Every None filled that has a meaning for the arm."""
    setup: training_models.Setup
    prompts: tuple[Prompt, ...]
    prompt_ids: Mapping[str, tuple[int, ...]]
    """By the prompt's id."""
    validation: tuple[Prompt, ...]
    drawing: RolloutConfig
    """How training completions are drawn: as the policy is, or ratios would be biased."""
    judging: RolloutConfig
    """How validation completions are drawn."""
    tokenizer: Any
    template: str | None
    max_tokens: int | None
    budget: int
    """Padded tokens of a micro-batch."""
    revision: str | None
    rm_revision: str | None
    parameters: tuple[int, int]
    """Of the policy and of the reward model, 0 without one."""
    identity: Mapping[str, Any]
    """All that moves a step: a run is continued only when it is the same."""

    @property
    def bare(self) -> training_models.Setup:
        """For a model that is only read."""
        return replace(self.setup, lora_rank=0, gradient_checkpointing=False)

    @property
    def rm_setup(self) -> training_models.Setup:
        """For the reward model."""
        return self.bare if self.config.rm_update == "frozen" else self.setup

    @property
    def first(self) -> int:
        """1 when the start policy's rollouts are trained on before step 1."""
        return int(self.config.first_rollouts is not None)

    @property
    def saved_template(self) -> str | None:
        """What the trained policy's tokenizer gets; None = keeps its own."""
        return PLAIN_AS_JINJA if self.template == PLAIN else self.template

    @property
    def facts(self) -> dict[str, Any]:
        """For train.json."""
        commit, dirty = provenance.code_state()
        told = {"prompts": len(self.prompts), "validation_prompts": len(self.validation)}
        return {"config": options.to_json(self.config), "data": told, "commit": commit, "dirty": dirty}


def resolved(config: DistRLConfig) -> DistRLConfig:
    """The options checked, every None filled. Raises UserError."""
    config = distrl_options.resolve(_as_trained(options.coerced(config)))
    if not config.model:
        raise UserError("--model is missing: give the policy to start from, a hub id, a folder or a .gguf file")
    if config.data is None:
        raise UserError("--data is missing: give a json, jsonl or parquet file of prompts, or gym:NAME")
    ranges.check(config)
    if config.group_size == 1:
        raise UserError("--group-size is 1: advantages are relative to a prompt's other completions; use 2 or more")
    if (config.engine == "server") != bool(config.server):
        raise UserError("--engine server and --server URL go together; give both, or neither")
    for url in config.server:
        address(url, "--server", "http://node1:8000")
    if len(config.server) > processes.world_size():
        raise UserError(
            f"--server: {len(config.server)} servers for {processes.world_size()} processes, and a process asks one; "
            f"start as many processes, or name fewer servers"
        )
    if config.device in ("balanced", "sequential"):
        raise UserError(f"--device {config.device}: training spreads a model with torchrun and --strategy fsdp")
    for name in (config.model, config.rm_model):
        training_models.check_whole(name)
        if name and name != SELF and os.path.realpath(config.out) == os.path.realpath(name):
            raise UserError(f"--out {config.out}: is a model to start from; choose another folder")
    return config


def _as_trained(config: DistRLConfig) -> DistRLConfig:
    """Beta and margin as the reward model was trained with, unless they are given. Raises UserError on another loss."""
    card = Path(config.rm_model) / CARD_FILE
    if not config.rm_model or not reading.exists(card):
        return config
    told = reading.read_json(card)
    try:
        loss, known = told.get("loss"), {"rm_beta": told.get("beta"), "rm_margin": told.get("margin")}
    except AttributeError as error:
        raise UserError(f"{card}: not a card of a reward model ({error}); take another --rm-model") from error
    wanted = config.rm_loss or distrl_options.ARMS[config.arm].get("rm_loss")
    if config.rm_loss is None and loss and wanted and str(loss).removesuffix("_early").removesuffix("_late") != wanted:
        raise UserError(
            f"--rm-model {config.rm_model}: was trained as {loss}, and arm {config.arm} goes on as {wanted}; "
            f"choose an arm for {loss}, or say --rm-loss {wanted}"
        )
    try:
        filled: dict[str, Any] = {k: float(v) for k, v in known.items() if v is not None and getattr(config, k) is None}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{card}: beta and margin must be numbers ({error}); take another --rm-model") from error
    return replace(config, **filled)


def prepare(config: DistRLConfig) -> Job:
    """Reads prompts; of the models only tokenizers and shapes. `config` must be `resolved`. Raises UserError."""
    assert config.data is not None
    placement = Placement(config.device, config.dtype).resolve()
    training_models.check(placement)
    rank = config.lora_rank or 0
    setup = Setup(
        placement, config.strategy, rank, config.gradient_checkpointing, config.seed, config.trust_remote_code
    )
    shape = load(config.model, "none", placement, config.revision, config.trust_remote_code, empty=True)
    other = _reward_shape(config, placement, shape)
    template = common.template_source(config)
    prompts = tuple(prompt_files.load(config.data, (), config.limit))
    validation = tuple(prompt_files.load(config.validation_data)) if config.validation_data else ()
    _check_apart(prompts, validation)
    drawing = _drawing(config)
    check_verifiers((*prompts, *validation), drawing)
    limits = [n for n in (shape.max_tokens, other.max_tokens if other else None) if n is not None]
    limit = min(limits, default=None)
    ids = _prompt_ids(prompts, "--data", shape, template, limit)
    _prompt_ids(validation, "--validation-data", shape, template, limit)
    revisions = shape.revision or config.revision, other.revision if other else None
    source = template or shape.tokenizer.chat_template
    return Job(
        config=config,
        setup=setup,
        prompts=prompts,
        prompt_ids=ids,
        validation=validation,
        drawing=drawing,
        judging=replace(drawing, temperature=0.6, top_p=0.95, group_size=config.validation_samples),
        tokenizer=shape.tokenizer,
        template=template,
        max_tokens=limit,
        budget=config.batch_tokens or (batching.CPU_TOKENS if placement.device == "cpu" else batching.GPU_TOKENS),
        revision=revisions[0],
        rm_revision=revisions[1] if config.rm_model else revisions[0],
        parameters=(
            _size(shape),
            0 if config.reward == "verifier" or config.rm_model == SELF else _size(other or shape),
        ),
        identity=_identity(config, setup, source, revisions, prompts, validation),
    )


def _check_apart(prompts: Sequence[Prompt], validation: Sequence[Prompt]) -> None:
    trained = {prompt.text for prompt in prompts}
    shared = [prompt.id for prompt in validation if prompt.text in trained]
    if shared:
        name = shared[0][:60]
        raise UserError(f"--validation-data: prompt {name} is in --data, too ({len(shared)} are); take them out")


def _reward_shape(config: DistRLConfig, placement: Placement, shape: HFEngine) -> HFEngine | None:
    """Of a reward model with a name of its own."""
    if config.reward == "verifier" and config.rm_model and config.rm_model != SELF:
        raise UserError(f"--rm-model {config.rm_model}: --reward verifier uses no reward model; drop one of them")
    scalar = config.reward != "verifier" and config.rm_loss == "q_rm"
    if scalar and not config.rm_model:
        raise UserError("--rm-loss q_rm: needs a trained reward model; give --rm-model, made by train-rm --loss q_rm")
    if config.reward != "verifier" and config.rm_update == "frozen" and not config.rm_model:
        raise UserError("--rm-update frozen: needs a trained reward model; give --rm-model, or --rm-update online")
    if not config.rm_model or config.rm_model == SELF:
        return None
    other = load(config.rm_model, "none", placement, None, config.trust_remote_code, empty=True)
    if scalar and not any("ForTokenClass" in name for name in other.model.config.architectures or ()):
        raise UserError(f"--rm-model {config.rm_model}: has no scalar head; give one made by train-rm --loss q_rm")
    if other.tokenizer.get_vocab() != shape.tokenizer.get_vocab():
        raise UserError(
            f"--rm-model {config.rm_model}: its vocabulary is not that of {config.model}; both read the same tokens"
        )
    return other


def _size(shape: HFEngine) -> int:
    return sum(p.numel() for p in shape.model.parameters())


def _drawing(config: DistRLConfig) -> RolloutConfig:
    same = ("model", "template", "dtype", "device", "seed", "max_new_tokens", "verifier", "split", "group_size")
    known = {name: getattr(config, name) for name in same}
    return RolloutConfig(
        **known,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        batch_tokens=config.draw_tokens if config.engine == "hf" else None,  # vLLM makes its own batches
    )


def _prompt_ids(
    prompts: Sequence[Prompt], flag: str, shape: HFEngine, template: str | None, limit: int | None
) -> dict[str, tuple[int, ...]]:
    texts = [generation.render_prompt(shape.tokenizer, prompt.text, template) for prompt in prompts]
    ids = dict(zip([p.id for p in prompts], map(tuple, generation.token_ids(shape.tokenizer, texts)), strict=True))
    long = [name for name, tokens in ids.items() if limit is not None and len(tokens) >= limit]
    if long:
        raise UserError(
            f"{flag}: prompt {long[0]} has {len(ids[long[0]])} tokens, which fill the context of {limit}"
            f" ({len(long)} such prompts); take them out"
        )
    return ids


def _identity(
    config: DistRLConfig,
    setup: training_models.Setup,
    template: Any,
    revisions: tuple[str | None, str | None],
    prompts: Sequence[Prompt],
    validation: Sequence[Prompt],
) -> dict[str, Any]:
    told = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_IDENTITY}
    first = config.first_rollouts
    return {
        **told,
        "dtype": setup.placement.dtype,
        "engine": "hf" if config.engine == "hf" else "vllm",
        "processes": processes.world_size(),
        "template": text_hash(template if isinstance(template, str) else repr(template)),
        "weights": common.local_weights(config.model) or f"{config.model}@{revisions[0]}",
        "rm_weights": _weights_of(config.rm_model, revisions[1]),
        "prompts_hash": _prompts_hash(prompts),
        "validation_hash": _prompts_hash(validation),
        "first_rollouts": rollouts.content_hash(rollouts.read(first)) if first else None,
    }


def _weights_of(name: str, revision: str | None) -> str:
    return name if name in ("", SELF) else common.local_weights(name) or f"{name}@{revision}"


def _prompts_hash(prompts: Sequence[Prompt]) -> str:
    return result_files.sha256(repr([(p.id, p.subset, p.text, p.gold) for p in prompts]).encode())


def rate(config: DistRLConfig, peak: float | None, step: int) -> float:
    """Learning rate of step 0, 1, ...: a straight rise to the peak, then flat."""
    return (peak or 0.0) * min(1.0, (step + 1) / config.warmup if config.warmup else 1.0)
