"""Prepares a run of train-distrl: renders the prompts and compares the models' tokenizers and shapes.

Errors that are cheap to find come first; weights are loaded last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench.backends import cards, common
from prmbench.config import RolloutConfig, distrl_options
from prmbench.config.distrl_options import SELF, DistRLConfig, ResolvedDistRL
from prmbench.core import processes, reading, result_files
from prmbench.core.provenance import CARD_FILE
from prmbench.core.records import UserError
from prmbench.data import field_names, rollouts
from prmbench.data import prompts as prompt_files
from prmbench.data.prompts import Prompt
from prmbench.engines import generation
from prmbench.engines.addresses import server_host
from prmbench.engines.choice import with_engine
from prmbench.engines.hf import HFEngine
from prmbench.sampling.completions import check_verifiers, verifier_kind
from prmbench.training import run_setup
from prmbench.training.memory import Plan
from prmbench.training.model import ModelSetup
from prmbench.training.run_folder import RUN
from prmbench.training.run_setup import RunSetup
from prmbench.verification.extraction import extract_gold_answers
from prmbench.verification.verifiers import answer_or_line

NOT_IDENTITY = frozenset(
    {
        "allow_empty",
        "validation_data",
        "first_rollouts",
        "rm_model",
        "arm",
        "server",
        "draw_tokens",
        "resume",
    }
)
"""Further options that do not change what a step computes, or that the identity holds as a hash."""


@dataclass(frozen=True, slots=True)
class Job(RunSetup[ResolvedDistRL]):
    """A run of train-distrl, before any weight is loaded."""

    prompts: tuple[Prompt, ...]
    prompt_ids: Mapping[str, tuple[int, ...]]
    """Token ids of each rendered prompt, by the prompt's id."""
    validation: tuple[Prompt, ...]
    drawing: RolloutConfig
    """How training completions are sampled: from the policy as it is, or probability ratios would be biased."""
    judging: RolloutConfig
    """How validation completions are sampled."""
    policy_plan: Plan
    """What decides how much memory the policy takes."""
    shares_base: bool
    """Whether the adapters of the reward model are put on the policy's base, since both start from the same weights."""
    other_plans: Mapping[str, Plan]
    """The same of the other models in memory: `rm`, and `start` where log-ratios are to the policy's start."""

    @property
    def rm_setup(self) -> ModelSetup:
        """How the reward model is made ready."""
        return self.model_setup_for_reading if self.config.rm_update == "frozen" else self.setup

    @property
    def first(self) -> int:
        """1 when the start policy's rollouts are trained on before step 1."""
        return int(self.config.first_rollouts is not None)

    @property
    def data_counts(self) -> dict[str, Any]:
        """What train.json says of the data."""
        return {"prompts": len(self.prompts), "validation_prompts": len(self.validation)}


def resolved(config: DistRLConfig) -> ResolvedDistRL:
    """Checks the options and fills those left out from arm and preset. Raises UserError."""
    config = distrl_options.resolve(options.validate(_as_trained(options.validate(config))))
    reward_models = [config.rm_model] if config.rm_model not in ("", SELF) else []
    run_setup.check_start(config, "a json, jsonl or parquet file of prompts, or gym:NAME", reward_models)
    if config.group_size == 1:
        raise UserError("--group-size is 1: advantages are relative to a prompt's other completions; use 2 or more")
    if config.step_values != "none" and config.first_rollouts is not None:
        raise UserError(
            f"--first-rollouts: their steps get no values, and --step-values is {config.step_values}; drop one of them"
        )
    config = with_engine(config, samples=True, recorded=_recorded_engine(config.out))
    if (config.engine == "server") != bool(config.server):
        raise UserError("--engine server and --server URL go together; give both, or neither")
    for url in config.server:
        server_host(url, "--server", "http://node1:8000")
    if len(config.server) > processes.world_size():
        raise UserError(
            f"--server: {len(config.server)} servers for {processes.world_size()} processes, and a process asks one; "
            f"start as many processes, or name fewer servers"
        )
    return config


def _recorded_engine(out: Path) -> object:
    """Returns the engine of the run in a folder; None where there is none, or it cannot be read."""
    try:
        record = reading.read_json(out / RUN) if (out / RUN).exists() else {}
    except UserError:
        return None
    identity = record.get("identity") if isinstance(record, dict) else None
    return identity.get("engine") if isinstance(identity, dict) else None


def _as_trained(config: DistRLConfig) -> DistRLConfig:
    """Beta and margin as the reward model was trained with, unless they are given. Raises UserError on another loss."""
    card_fields = cards.read_fields(Path(config.rm_model)) if config.rm_model else None
    if card_fields is None:
        return config
    card = Path(config.rm_model) / CARD_FILE
    loss, values = card_fields.get("loss"), {"rm_beta": card_fields.get("beta"), "rm_margin": card_fields.get("margin")}
    arm_loss = config.rm_loss or distrl_options.ARMS[config.arm].get("rm_loss")
    family = str(loss).removesuffix("_early").removesuffix("_late")
    if config.rm_loss is None and loss and arm_loss and family != arm_loss:
        raise UserError(
            f"--rm-model {config.rm_model}: was trained as {loss}, and arm {config.arm} goes on as {arm_loss}; "
            f"choose an arm for {loss}, or say --rm-loss {arm_loss}"
        )
    try:
        filled: dict[str, Any] = {
            k: float(v) for k, v in values.items() if v is not None and getattr(config, k) is None
        }
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{card}: beta and margin must be numbers ({error}); take another --rm-model") from error
    return replace(config, **filled)


def prepare(config: ResolvedDistRL) -> Job:
    """Reads prompts; of the models only tokenizers and shapes. `config` must be `resolved`. Raises UserError."""
    setup = run_setup.model_setup(config)
    shape = run_setup.load_shape(config.model, config.revision, setup)
    rm_shape = _reward_shape(config, setup, shape)
    template = common.template_source(config)
    names = field_names.parse(config.fields)
    prompts = tuple(prompt_files.load(run_setup.data_path(config), (), config.limit, names))
    validation = tuple(prompt_files.load(config.validation_data, fields=names)) if config.validation_data else ()
    _check_apart(prompts, validation)
    drawing = _drawing(config)
    check_verifiers((*prompts, *validation), drawing)
    if config.step_values == "answer":
        _check_gold(prompts, drawing)
    max_tokens = run_setup.smallest(shape.max_tokens, rm_shape.max_tokens if rm_shape else None)
    ids = _prompt_ids(prompts, "--data", shape, template, max_tokens)
    _prompt_ids(validation, "--validation-data", shape, template, max_tokens)
    revision, rm_revision = shape.revision or config.revision, rm_shape.revision if rm_shape else None
    is_same_start = config.rm_model in ("", config.model) and (rm_shape is None or rm_revision == revision)
    # A base that FSDP has sharded is not shared: each process has a small part of it in any case.
    shares_base = bool(config.lora_rank) and config.rm_update == "online" and is_same_start and not setup.sharded
    identity = {
        **run_setup.base_identity(
            config, setup, template or shape.tokenizer.chat_template, revision, NOT_IDENTITY | _unused(config)
        ),
        **_identity(config, rm_revision, prompts, validation),
    }
    return Job(
        config=config,
        setup=setup,
        tokenizer=shape.tokenizer,
        template=template,
        max_tokens=max_tokens,
        budget=run_setup.micro_batch_tokens(config, setup.placement),
        revision=revision,
        other_revision=rm_revision if config.rm_model else revision,
        identity=identity,
        prompts=prompts,
        prompt_ids=ids,
        validation=validation,
        drawing=drawing,
        judging=replace(drawing, temperature=0.6, top_p=0.95, group_size=config.validation_samples),
        policy_plan=run_setup.memory_plan(config, setup, shape),
        shares_base=shares_base,
        other_plans=_other_plans(config, setup, shape, rm_shape, shares_base),
    )


def _check_apart(prompts: Sequence[Prompt], validation: Sequence[Prompt]) -> None:
    trained = {prompt.text for prompt in prompts}
    overlap = [prompt.id for prompt in validation if prompt.text in trained]
    if overlap:
        name = overlap[0][:60]
        raise UserError(f"--validation-data: prompt {name} is in --data, too ({len(overlap)} are); take them out")


def _reward_shape(config: ResolvedDistRL, setup: ModelSetup, shape: HFEngine) -> HFEngine | None:
    """The tokenizer and shape of a reward model with a name of its own."""
    if config.reward == "verifier" and config.rm_model and config.rm_model != SELF:
        raise UserError(f"--rm-model {config.rm_model}: --reward verifier uses no reward model; drop one of them")
    scalar = config.reward != "verifier" and config.rm_loss == "q_rm"
    if scalar and not config.rm_model:
        raise UserError("--rm-loss q_rm: needs a trained reward model; give --rm-model, made by train-rm --loss q_rm")
    if config.reward != "verifier" and config.rm_update == "frozen" and not config.rm_model:
        raise UserError("--rm-update frozen: needs a trained reward model; give --rm-model, or --rm-update online")
    if not config.rm_model or config.rm_model == SELF:
        return None
    other = run_setup.load_other_shape("--rm-model", config.rm_model, setup, config.model, shape)
    if scalar and not any("ForTokenClass" in name for name in other.model.config.architectures or ()):
        raise UserError(f"--rm-model {config.rm_model}: has no scalar head; give one made by train-rm --loss q_rm")
    return other


def gold_text(prompt: Prompt, drawing: RolloutConfig) -> str:
    """Returns a prompt's gold answer as text; empty where none can be read."""
    if verifier_kind(prompt, drawing) == "math":
        return next(iter(extract_gold_answers(prompt.gold)), "")
    return answer_or_line(prompt.gold) or prompt.gold.strip()


def _check_gold(prompts: Sequence[Prompt], drawing: RolloutConfig) -> None:
    without = [prompt.id for prompt in prompts if not gold_text(prompt, drawing)]
    if without:
        raise UserError(
            f"--step-values answer: reads the probability of the gold answer, and prompt {without[0][:60]} has none "
            f"({len(without)} such prompts); give one, or --step-values continuations"
        )


def _other_plans(
    config: ResolvedDistRL, setup: ModelSetup, shape: HFEngine, rm_shape: HFEngine | None, shares_base: bool
) -> dict[str, Plan]:
    """Returns how the models besides the policy use memory, as rl/models.py opens them."""
    if config.reward == "verifier":
        return {}
    frozen = replace(setup, frozen=True)
    plans = {}
    if config.rm_model != SELF:
        rm_setup = frozen if config.rm_update == "frozen" else setup
        plans["rm"] = replace(run_setup.memory_plan(config, rm_setup, rm_shape or shape), shares_base=shares_base)
    if config.reference == "sft" and not config.lora_rank:
        plans["start"] = run_setup.memory_plan(config, frozen, shape)
    return plans


def _drawing(config: ResolvedDistRL) -> RolloutConfig:
    shared = ("model", "template", "dtype", "device", "seed", "max_new_tokens", "verifier", "split", "group_size")
    values = {name: getattr(config, name) for name in shared}
    return RolloutConfig(
        **values,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        batch_tokens=config.draw_tokens if config.engine == "hf" else None,  # vLLM forms its own batches
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


def _unused(config: ResolvedDistRL) -> set[str]:
    """Returns the options on values of steps that the run does not use: they are newer than stored runs."""
    used = {
        "none": (),
        "continuations": ("step_values", "continuations"),
        "answer": ("step_values", "step_weight", "answer_text"),
    }[config.step_values]
    return {"step_values", "step_weight", "continuations", "answer_text"}.difference(used)


def _identity(
    config: ResolvedDistRL, rm_revision: str | None, prompts: Sequence[Prompt], validation: Sequence[Prompt]
) -> dict[str, Any]:
    """The part of a run's identity that train-rm does not have."""
    name, first = config.rm_model, config.first_rollouts
    return {
        "engine": "hf" if config.engine == "hf" else "vllm",
        "processes": processes.world_size(),
        "rm_weights": name if name in ("", SELF) else run_setup.weights_of(name, rm_revision),
        "prompts_hash": _prompts_hash(prompts),
        "validation_hash": _prompts_hash(validation),
        "first_rollouts": rollouts.content_hash(rollouts.read(first)) if first else None,
    }


def _prompts_hash(prompts: Sequence[Prompt]) -> str:
    return result_files.sha256(repr([(p.id, p.subset, p.text, p.gold) for p in prompts]).encode())
