"""From options to all that a loop needs: rows encoded, their order, the run's identity, models and reference.

Mistakes that cost nothing to find come first; weights are read last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prmbench import config as options
from prmbench.backends import common, ref_cache
from prmbench.config import TrainConfig, TrainRMConfig, presets
from prmbench.core import provenance
from prmbench.core.records import UserError, text_hash
from prmbench.data import rollouts, training_data
from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.engines.render import PLAIN
from prmbench.objectives import Reduction
from prmbench.training import batching, reference
from prmbench.training import model as models
from prmbench.training.batching import Order
from prmbench.training.examples import Dataset, Encoder, build, check_usable
from prmbench.training.losses import LOSSES, LossRow
from prmbench.training.model import Runner, Setup

PLAIN_AS_JINJA = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
"""What --template plain renders, as a template that a tokenizer can keep."""
NOT_IDENTITY = {
    "out",
    "dry_run",
    "data",
    "model",
    "ref_model",
    "revision",
    "template",
    "preset",
    "engine",
    "device",
    "batch_tokens",
    "strategy",
    "gradient_checkpointing",
    "save_every",
    "trust_remote_code",
}
"""Options that do not change what a run computes, or that the identity holds as a hash."""
FLOAT32 = 3.4e38
"""About the largest float32; what enters tensors must be below."""
RANGES = {
    "batch_size": (1, sys.maxsize),
    "steps": (1, sys.maxsize),
    "batch_tokens": (1, sys.maxsize),
    "max_tokens": (1, sys.maxsize),
    "lora_rank": (0, sys.maxsize),
    "save_every": (0, sys.maxsize),
    "seed": (0, 2**32 - 1),
    "max_grad_norm": (0, FLOAT32),
    "weight_decay": (0, FLOAT32),
    "margin": (0, FLOAT32),
    "warmup": (0, 1),
}
"""Of options, both ends included."""
Known = Sequence[NDArray[np.float32]] | None


class References(NamedTuple):
    """The reference's log-probabilities, one array an example; None for a loss without a reference."""

    training: Known
    held_out: Known


@dataclass(frozen=True, slots=True)
class Part:
    """Rows to train on, or held out."""

    data: Dataset
    lengths: tuple[int, ...]
    """Tokens of each example."""
    sizes: tuple[int, ...]
    """Values of each example that count in the loss."""

    def tokens(self, unit: int) -> int:
        """Of a unit, padding left out."""
        return sum(self.lengths[i] for i in self.data.units[unit])


@dataclass(frozen=True, slots=True)
class Job:
    """A run, before any weight is loaded."""

    config: TrainConfig
    """Every None filled."""
    row: LossRow
    setup: Setup
    training: Part
    held_out: Part | None
    order: Order
    budget: int
    """Padded tokens of a micro-batch."""
    template: str | None
    revisions: tuple[str | None, str | None]
    """Resolved, of the model and of the reference."""
    memory: tuple[int, int]
    """(parameters, bytes of activations a padded token leaves behind): a guess from the model's shape."""
    identity: Mapping[str, Any]
    """All that moves the weights: a run is continued only when it is the same."""

    @property
    def beta(self) -> float:
        """Scale of the loss; 1 where it has none."""
        beta = getattr(self.config, "beta", None)
        return 1.0 if beta is None else float(beta)

    @property
    def margin(self) -> float:
        """Margin of the loss; 0 where it has none."""
        return float(getattr(self.config, "margin", None) or 0.0)

    @property
    def reduction(self) -> Reduction:
        """The command's, or the preset's where the command has no such option; any where the loss has none."""
        own: Reduction | None = getattr(self.config, "reduction", None)
        return own or presets.PRESETS[self.config.preset][presets.loss_of(self.config)].reduction or "sequence"

    @property
    def saved_template(self) -> str | None:
        """What the trained model's tokenizer gets; None = keeps its own."""
        return PLAIN_AS_JINJA if self.template == PLAIN else self.template

    @property
    def facts(self) -> dict[str, Any]:
        """For train.json."""
        parts = {"training": self.training, "held_out": self.held_out}
        commit, dirty = provenance.code_state()
        return {
            "config": options.to_json(self.config),
            "data": {
                name: {
                    "units": len(part.data.units),
                    "examples": len(part.data.examples),
                    "tokens": part.data.tokens,
                    "left_out": dict(part.data.left_out),
                }
                for name, part in parts.items()
                if part is not None
            },
            "commit": commit,
            "dirty": dirty,
        }

    @property
    def card_facts(self) -> dict[str, Any]:
        """For prm.json."""
        told = {name: self.identity[name] for name in ("template", "data_hash")}
        return {**told, "ref_revision": self.revisions[1] if self.row.reference else None}


def resolved(config: TrainConfig) -> TrainConfig:
    """The options checked, every None filled from the preset. Raises UserError."""
    config = presets.resolve(options.coerced(config))
    if not config.model:
        raise UserError("--model is missing: give the policy to start from, a hub id, a folder or a .gguf file")
    if config.data is None:
        raise UserError("--data is missing: give a file of rollouts, jsonl or parquet")
    models.check_whole(config.model)
    loss = presets.loss_of(config)
    if isinstance(config, TrainRMConfig):
        if loss == "sft":
            raise UserError("--loss sft: trains a policy, not a reward model; use train-sft")
        if config.ref_model and not LOSSES[loss].reference:
            raise UserError(f"--ref-model: loss {loss} has no reference; drop it")
    if os.path.realpath(config.out) == os.path.realpath(config.model):
        raise UserError(f"--out {config.out}: is the model to start from; choose another folder")
    _check_numbers(config)
    return config


def _check_numbers(config: TrainConfig) -> None:
    """Written so that NaN passes none of them."""
    for name, (lowest, highest) in RANGES.items():
        value = getattr(config, name, None)
        if value is not None and not lowest <= value <= highest:
            wanted = f"at least {lowest}" if highest == sys.maxsize else f"{lowest} to {highest}"
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected {wanted}")
    for name in ("learning_rate", "epochs", "beta"):
        value = getattr(config, name, None)
        if value is not None and not 0 < value < FLOAT32:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected above 0, below {FLOAT32}")


def placement(config: TrainConfig) -> Placement:
    """Where training runs and in what it computes. Raises UserError on what only evaluation can do."""
    found = Placement(config.device, config.dtype).resolve()
    models.check(found)
    return found


def prepare(config: TrainConfig) -> Job:
    """Reads and encodes the rows; of the models only tokenizers and shapes. `config` must be `resolved`."""
    row = LOSSES[presets.loss_of(config)]
    setup = Setup(
        placement(config),
        config.strategy,
        config.lora_rank,
        config.gradient_checkpointing,
        config.seed,
        config.trust_remote_code,
    )
    shape = _shape(config.model, config.revision, setup)
    other = _reference_shape(config, row, setup, shape)
    assert config.data is not None
    template = common.template_source(config)
    found = rollouts.limited(rollouts.read(config.data), config.limit)
    limits = (config.max_tokens, shape.max_tokens, other.max_tokens if other else None)
    encoder = Encoder(
        shape.tokenizer, template, min((n for n in limits if n is not None), default=None), row.card.get("separator")
    )
    make = partial(build, row=row, encoder=encoder, pairs=getattr(config, "pairs", None), seed=config.seed)
    mine, held = training_data.split(found, config.validation, config.seed)
    data, rest = make(mine), make(held)
    check_usable(data, row)
    if held and not rest.units:
        data = replace(data, left_out={**data.left_out, "rollouts held out, none of use: no validation": len(held)})
    training = _part(data, row)
    budget = config.batch_tokens or (batching.CPU_TOKENS if setup.placement.device == "cpu" else batching.GPU_TOKENS)
    order = batching.make_order(
        len(training.data.units), config.batch_size or 1, config.epochs or 1.0, config.steps, config.seed
    )
    mine_at = shape.revision or config.revision
    revisions = (mine_at, other.revision if other else mine_at)
    identity = _identity(config, setup, template or shape.tokenizer.chat_template, revisions) | {
        "data_hash": rollouts.content_hash(found)
    }
    held_out = _part(rest, row) if rest.units else None
    return Job(config, row, setup, training, held_out, order, budget, template, revisions, _memory(shape), identity)


def open_models(job: Job) -> tuple[Runner, References]:
    """The model to train, and the reference's log-probabilities, for which no second model stays in memory."""
    config, revision = job.config, job.revisions[0]
    opened: list[Runner] = []

    def start() -> Runner:
        if not opened:
            opened.append(models.open_runner(config.model, revision, job.row.head, job.setup))
        return opened[0]

    known = References(None, None)
    if job.row.reference:
        known = _references(job, start)
    return start(), known


def _references(job: Job, start: Any) -> References:
    """By the model itself before its first update, or by --ref-model, which is let go of again."""
    name: str = getattr(job.config, "ref_model", None) or ""
    examples = [*job.training.data.examples, *(job.held_out.data.examples if job.held_out else ())]
    bare = replace(job.setup, lora_rank=0, gradient_checkpointing=False)

    def other() -> Runner:
        return models.open_runner(name, job.revisions[1], "lm", bare)

    found = reference.logprobs(job.config.out, reference_identity(job), examples, job.budget, other if name else start)
    count = len(job.training.data.examples)
    return References(found[:count], found[count:])


def reference_identity(job: Job) -> str:
    """All of the reference and of how it is run that moves its numbers; the same in all processes."""
    sharded = f" {job.setup.strategy}" if job.setup.sharded else ""
    return ref_cache.identity(job.identity["ref_weights"], job.setup.placement) + sharded


def _shape(name: str, revision: str | None, setup: Setup) -> HFEngine:
    return load(name, "none", setup.placement, revision, setup.remote_code, empty=True)


def _reference_shape(config: TrainConfig, row: LossRow, setup: Setup, shape: HFEngine) -> HFEngine | None:
    name = getattr(config, "ref_model", None)
    if not row.reference or not name:
        return None
    other = _shape(name, None, setup)
    if other.tokenizer.get_vocab() != shape.tokenizer.get_vocab():
        raise UserError(
            f"--ref-model {name}: its vocabulary is not that of {config.model}; a log-ratio needs the same tokens"
        )
    return other


def _memory(shape: HFEngine) -> tuple[int, int]:
    layers = getattr(shape.model.config.get_text_config(), "num_hidden_layers", 1)
    return sum(p.numel() for p in shape.model.parameters()), 2 * layers * shape.token_bytes


def _part(data: Dataset, row: LossRow) -> Part:
    sizes = [int((~np.isnan(e.labels)).sum()) if row.view == "steps" else len(e.reads) for e in data.examples]
    return Part(data, tuple(len(e.ids) for e in data.examples), tuple(sizes))


def _identity(
    config: TrainConfig, setup: Setup, template: Any, revisions: tuple[str | None, str | None]
) -> dict[str, Any]:
    told = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_IDENTITY}
    reference_name = getattr(config, "ref_model", None) or config.model
    return {
        **told,
        "loss": presets.loss_of(config),
        "dtype": setup.placement.dtype,
        "template": text_hash(template if isinstance(template, str) else repr(template)),
        "weights": common.local_weights(config.model) or f"{config.model}@{revisions[0]}",
        "ref_weights": common.local_weights(reference_name) or f"{reference_name}@{revisions[1]}",
    }
