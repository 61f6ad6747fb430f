"""Prepares a run of train-sft or train-rm: encodes the rows, orders them, and opens the model and its reference.

Errors that are cheap to find come first; weights are loaded last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prmbench import config as options
from prmbench.backends import common, ref_cache
from prmbench.config import TrainConfig, TrainRMConfig, presets
from prmbench.config.presets import Settings
from prmbench.core.records import UserError
from prmbench.data import field_names, rollouts, training_data
from prmbench.engines.hf import HFEngine
from prmbench.training import batching, reference, run_setup
from prmbench.training import model as models
from prmbench.training.batching import Order
from prmbench.training.examples import Dataset, Encoder, build, check_usable
from prmbench.training.losses import LOSSES, LossRow
from prmbench.training.memory import Plan
from prmbench.training.model import ModelSetup, Runner
from prmbench.training.run_setup import RunSetup

Logprobs = Sequence[NDArray[np.float32]]
"""Log-probabilities in nats, one array an example."""


class References(NamedTuple):
    """The reference's log-probabilities; None for a loss without a reference."""

    training: Logprobs | None
    held_out: Logprobs | None


@dataclass(frozen=True, slots=True)
class Part:
    """The examples to train on, or those held out for validation."""

    data: Dataset
    lengths: tuple[int, ...]
    """Tokens of each example."""
    sizes: tuple[int, ...]
    """Number of values of each example that count in the loss."""

    def tokens(self, unit: int) -> int:
        """Returns the tokens of a unit, without padding."""
        return sum(self.lengths[i] for i in self.data.units[unit])


@dataclass(frozen=True, slots=True)
class Job(RunSetup[TrainConfig]):
    """A run of train-sft or train-rm, before any weight is loaded."""

    settings: Settings
    """The options and the constants of the loss, none of them missing."""
    row: LossRow
    training: Part
    held_out: Part | None
    order: Order
    plan: Plan
    """What decides how much memory the model in training takes."""
    reference_plan: Plan | None
    """The same of the reference; None for a loss without one."""

    @property
    def data_counts(self) -> dict[str, Any]:
        """What train.json says of the data."""
        parts = {"training": self.training, "held_out": self.held_out}
        return {
            name: {
                "units": len(part.data.units),
                "examples": len(part.data.examples),
                "tokens": part.data.tokens,
                "left_out": dict(part.data.left_out),
            }
            for name, part in parts.items()
            if part is not None
        }

    @property
    def card_facts(self) -> dict[str, Any]:
        """What prm.json says of the run."""
        shared = {name: self.identity[name] for name in ("template", "data_hash")}
        return {**shared, "ref_revision": self.other_revision if self.row.reference else None}


def resolved(config: TrainConfig) -> TrainConfig:
    """Checks the options and fills those left out from the preset. Raises UserError."""
    config = presets.resolve(options.validate(config))
    run_setup.check_start(config, "a file of rollouts, jsonl or parquet")
    loss = presets.loss_of(config)
    if isinstance(config, TrainRMConfig):
        if loss == "sft":
            raise UserError("--loss sft: trains a policy, not a reward model; use train-sft")
        if config.ref_model and not LOSSES[loss].reference:
            raise UserError(f"--ref-model: loss {loss} has no reference; drop it")
    return config


def prepare(config: TrainConfig) -> Job:
    """Reads and encodes the rows; of the models only tokenizers and shapes. `config` must be `resolved`."""
    settings = presets.settings(config)
    row = LOSSES[settings.loss]
    setup = run_setup.model_setup(config)
    shape = run_setup.load_shape(config.model, config.revision, setup)
    reference_shape = _reference_shape(config, settings, setup, shape)
    template = common.template_source(config)
    logging.getLogger(__name__).info("reading and tokenizing %s", run_setup.data_path(config).name)
    names = field_names.parse(config.fields)
    rows = rollouts.limit_prompts(rollouts.read(run_setup.data_path(config), names), config.limit)
    reference_limit = reference_shape.max_tokens if reference_shape else None
    max_tokens = run_setup.smallest(config.max_tokens, shape.max_tokens, reference_limit)
    encoder = Encoder(shape.tokenizer, template, max_tokens, row.card.get("separator"))
    encode = partial(build, loss=row, encoder=encoder, pairs=settings.pairs, seed=config.seed)
    training_rows, held_out_rows = training_data.split_by_prompt(rows, config.validation, config.seed)
    data, held_out = encode(training_rows), encode(held_out_rows)
    check_usable(data, row, run_setup.data_path(config))
    if held_out_rows and not held_out.units:
        reason = "rollouts held out, none of use: no validation"
        data = replace(data, left_out={**data.left_out, reason: len(held_out_rows)})
    training = _part(data, row)
    order = batching.make_order(
        len(training.data.units), settings.batch_size, settings.epochs, config.steps, config.seed
    )
    revision = shape.revision or config.revision
    reference_revision = reference_shape.revision if reference_shape else revision
    identity = {
        **run_setup.base_identity(config, setup, template or shape.tokenizer.chat_template, revision, {"ref_model"}),
        "loss": settings.loss,
        "ref_weights": run_setup.weights_of(settings.ref_model or config.model, reference_revision),
        "data_hash": rollouts.content_hash(rows),
    }
    return Job(
        config=config,
        setup=setup,
        tokenizer=shape.tokenizer,
        template=template,
        max_tokens=max_tokens,
        budget=run_setup.micro_batch_tokens(config, setup.placement),
        revision=revision,
        other_revision=reference_revision,
        identity=identity,
        settings=settings,
        row=row,
        training=training,
        held_out=_part(held_out, row) if held_out.units else None,
        order=order,
        plan=run_setup.memory_plan(config, setup, shape),
        reference_plan=_reference_plan(config, setup, shape, reference_shape) if row.reference else None,
    )


def open_models(job: Job) -> tuple[Runner, References]:
    """Opens the model to train and computes the reference's log-probabilities; no second model stays in memory."""
    opened: list[Runner] = []

    def open_trained() -> Runner:
        if not opened:
            opened.append(models.open_runner(job.config.model, job.revision, job.row.head, job.setup))
        return opened[0]

    references = _references(job, open_trained) if job.row.reference else References(None, None)
    return open_trained(), references


def _references(job: Job, open_trained: Callable[[], Runner]) -> References:
    """Computes them with the model itself before its first update, or with --ref-model, which is then freed."""
    examples = [*job.training.data.examples, *(job.held_out.data.examples if job.held_out else ())]

    def open_reference() -> Runner:
        return models.open_runner(job.settings.ref_model, job.other_revision, "lm", job.model_setup_for_reading)

    opener = open_reference if job.settings.ref_model else open_trained
    logprobs = reference.logprobs(job.config.out, reference_identity(job), examples, job.budget, opener)
    count = len(job.training.data.examples)
    return References(logprobs[:count], logprobs[count:])


def reference_identity(job: Job) -> str:
    """Returns what identifies the reference's numbers: its weights, precision and sharding; equal in all processes."""
    sharded = f" {job.setup.strategy}" if job.setup.sharded else ""
    return ref_cache.reference_identity(job.identity["ref_weights"], job.setup.placement) + sharded


def _reference_shape(config: TrainConfig, settings: Settings, setup: ModelSetup, shape: HFEngine) -> HFEngine | None:
    """The tokenizer and shape of a reference with a name of its own."""
    if not LOSSES[settings.loss].reference or not settings.ref_model:
        return None
    return run_setup.load_other_shape("--ref-model", settings.ref_model, setup, config.model, shape)


def _reference_plan(config: TrainConfig, setup: ModelSetup, shape: HFEngine, other: HFEngine | None) -> Plan:
    """Returns how the reference uses memory: a model of its own is read only, else it is the model in training."""
    return run_setup.memory_plan(config, replace(setup, frozen=other is not None), other or shape)


def _part(data: Dataset, row: LossRow) -> Part:
    sizes = [int((~np.isnan(e.labels)).sum()) if row.view == "steps" else len(e.score_positions) for e in data.examples]
    return Part(data, tuple(len(e.ids) for e in data.examples), tuple(sizes))
