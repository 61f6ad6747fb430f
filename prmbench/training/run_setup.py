"""What train-sft, train-rm and train-distrl do alike before any weights are loaded, and when they stop and go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from prmbench import config as options
from prmbench.backends import common
from prmbench.config import TrainConfig
from prmbench.config.distrl_options import ResolvedDistRL
from prmbench.core import extras, processes, provenance, result_files
from prmbench.core.records import UserError, text_hash
from prmbench.engines.encoding import PLAIN
from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.training import batching, checkpoints, optimiser, run_folder, tracking
from prmbench.training import model as models
from prmbench.training.checkpoints import Checkpoint
from prmbench.training.memory import Plan, shape_of
from prmbench.training.model import ModelSetup

C = TypeVar("C", bound=TrainConfig | ResolvedDistRL)
F = TypeVar("F", bound=run_folder.Facts)
PLAIN_AS_JINJA = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
"""What --template plain renders, as a template that a tokenizer can keep."""
NOT_IDENTITY = frozenset(
    {
        "out",
        "dry_run",
        "data",
        "fields",
        "model",
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
        "tracker",
    }
)
"""Options that do not change what a run computes, or that its identity holds as a hash."""


@dataclass(frozen=True, slots=True)
class RunSetup(Generic[C]):
    """A training run before any weights are loaded: what both trainers know of theirs."""

    config: C
    """The resolved options: those left out have the preset's values."""
    setup: ModelSetup
    """How the models are made ready."""
    tokenizer: Any
    template: str | None
    """Source of --template; None = the tokenizer's own."""
    max_tokens: int | None
    """Longest sequence that all models of the run take; None = no limit."""
    budget: int
    """Padded tokens of a micro-batch."""
    revision: str | None
    """Resolved revision of the model to start from."""
    other_revision: str | None
    """Resolved revision of the reference (train-rm) or of the reward model (train-distrl)."""
    identity: Mapping[str, Any]
    """All that moves the weights: a run is continued only when it is the same."""

    @property
    def model_setup_for_reading(self) -> ModelSetup:
        """How a model is made ready that is read and not trained."""
        return replace(self.setup, lora_rank=0, gradient_checkpointing=False, frozen=True)

    @property
    def saved_template(self) -> str | None:
        """The chat template that the trained model's tokenizer gets; None = it keeps its own."""
        return PLAIN_AS_JINJA if self.template == PLAIN else self.template

    @property
    def data_counts(self) -> dict[str, Any]:
        """What train.json says of the data."""
        raise NotImplementedError

    @property
    def facts(self) -> dict[str, Any]:
        """What train.json says besides the identity."""
        commit, dirty = provenance.code_state()
        return {
            "config": options.to_json(self.config),
            "data": self.data_counts,
            "commit": commit,
            "dirty": dirty,
        }


def check_start(config: TrainConfig | ResolvedDistRL, data: str, others: Iterable[str] = ()) -> None:
    """Checks that there are a model and data to start from, and that --out is neither model.

    Args:
        config: Options of a training command.
        data: What to give as --data, for the error.
        others: Names of further models to start from.

    Raises:
        UserError: A model or the data is missing, a model is an adapter, or --out is one of the models.
    """
    if not config.model:
        raise UserError("--model is missing: give the policy to start from, a hub id, a folder or a .gguf file")
    if config.data is None:
        raise UserError(f"--data is missing: give {data}")
    tracking.check_installed(config.tracker)
    for name in (config.model, *others):
        models.check_whole(name)
        if os.path.realpath(config.out) == os.path.realpath(name):
            raise UserError(f"--out {config.out}: is a model to start from; choose another folder")


def data_path(config: TrainConfig | ResolvedDistRL) -> Path:
    """Returns --data, which `check_start` has seen."""
    assert config.data is not None
    return config.data


def placement(config: TrainConfig | ResolvedDistRL) -> Placement:
    """Returns where training runs and in what precision. Raises UserError for what only evaluation can do."""
    resolved = Placement(config.device, config.dtype).resolve()
    models.check(resolved)
    return resolved


def model_setup(config: TrainConfig | ResolvedDistRL) -> ModelSetup:
    """Returns how the models of a run are made ready. Raises UserError where LoRA or Adam needs a missing package."""
    if config.lora_rank:
        extras.require("peft", f"--lora-rank {config.lora_rank}")
    where = placement(config)
    checkpointing = config.gradient_checkpointing
    setup = ModelSetup(
        where,
        config.strategy,
        config.lora_rank,
        where.device != "cpu" if checkpointing == "auto" else checkpointing == "on",
        config.seed,
        config.trust_remote_code,
    )
    optimiser.check(config.optimizer, setup.sharded)
    return setup


def micro_batch_tokens(config: TrainConfig | ResolvedDistRL, placement: Placement) -> int:
    """Returns the padded tokens that a micro-batch may hold: --batch-tokens, or the device's default."""
    return config.batch_tokens or (batching.CPU_TOKENS if placement.device == "cpu" else batching.GPU_TOKENS)


def load_shape(name: str, revision: str | None, setup: ModelSetup) -> HFEngine:
    """Loads a tokenizer and a model without its weights."""
    return load(name, "none", setup.placement, revision, setup.remote_code, empty=True)


def memory_plan(config: TrainConfig | ResolvedDistRL, setup: ModelSetup, shape: HFEngine) -> Plan:
    """Returns what decides how much memory a model takes: its shape, and how the run uses it."""
    return Plan(
        shape_of(shape.model),
        half=setup.placement.dtype != "float32",
        on_gpu=setup.placement.device != "cpu",
        trained=not setup.frozen,
        lora_rank=0 if setup.frozen else setup.lora_rank,
        checkpointing=setup.gradient_checkpointing and not setup.frozen,
        optimizer=config.optimizer,
    )


def load_other_shape(flag: str, name: str, setup: ModelSetup, model: str, shape: HFEngine) -> HFEngine:
    """Loads tokenizer and shape of a second model. Raises UserError where its tokens are not those of `model`."""
    other = load_shape(name, None, setup)
    if other.tokenizer.get_vocab() != shape.tokenizer.get_vocab():
        raise UserError(f"{flag} {name}: its vocabulary is not that of {model}; both models must read the same tokens")
    return other


def smallest(*limits: int | None) -> int | None:
    """Returns the smallest of some limits, of which None is none."""
    return min((limit for limit in limits if limit is not None), default=None)


def base_identity(
    config: TrainConfig | ResolvedDistRL, setup: ModelSetup, template: Any, revision: str | None, more: Iterable[str]
) -> dict[str, Any]:
    """Returns the part of a run's identity that both trainers have.

    Args:
        config: The resolved options.
        setup: How models are made ready.
        template: The chat template in use.
        revision: Resolved revision of the model to start from.
        more: Names of further options that do not belong to the identity.
    """
    left_out = NOT_IDENTITY.union(more)
    return {
        **{f.name: getattr(config, f.name) for f in fields(config) if f.name not in left_out},
        "dtype": setup.placement.dtype,
        "template": text_hash(template if isinstance(template, str) else repr(template)),
        "weights": weights_of(config.model, revision),
    }


def weights_of(name: str, revision: str | None) -> str:
    """Returns a hash of a local model's weights, or the name and revision of one on the hub."""
    return common.local_weights(name) or f"{name}@{revision}"


# --- the run on disk --------------------------------------------------------------------------------------


@contextmanager
def opened(run: RunSetup[Any], may_continue: bool = True) -> Iterator[dict[str, Any]]:
    """Claims the folder of a run and yields what its train.json says; begins the run if there was none.

    All processes call it; process 0 reads and writes. Without `may_continue` a run that lies there is an error.

    Where the body raises UserError before anything was trained, a run that began here is taken back: the mended command
    may use the folder.

    Raises:
        UserError: Another process trains there, the folder holds another run, or it cannot be written.
    """
    out = run.config.out
    with run_folder.claimed(out):
        is_new = not (out / run_folder.RUN).exists()
        record: dict[str, Any] = {}
        if processes.rank() == 0:
            if not may_continue and (out / run_folder.RUN).exists():
                raise UserError(
                    f"--out {out}: holds a run, and --resume is never; choose another folder, or --resume auto"
                )
            record = run_folder.begin(out, run.identity, run.facts)
        try:
            with processes.named_failures("training"):
                yield processes.broadcast(record)
        except UserError:
            if is_new and processes.rank() == 0 and not run_folder.has_progress(out):
                (out / run_folder.RUN).unlink()
            raise


def save_checkpoint(run: RunSetup[Any], step: int, state: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes a checkpoint of `state` after `step` updates. All processes call it.

    `facts`: what the trainer's own record has beside `run_folder.Facts`.
    """
    logged = run_folder.logged(run.config.out) if processes.rank() == 0 else 0
    head = {"run": result_files.short_hash(run.identity), "metrics": logged}
    checkpoints.save(run.config.out / run_folder.CHECKPOINTS, step, state, {**head, **facts})


def restore(
    run: RunSetup[Any],
    record: type[F],
    state_of: Callable[[F], dict[str, Any]],
    put_back: Callable[[F, dict[str, Any]], None],
) -> tuple[Checkpoint, F] | None:
    """Puts the newest checkpoint back and drops what metrics.jsonl has logged since. All processes call it.

    Args:
        run: The run.
        record: The dataclass of the checkpoint's facts.
        state_of: From these facts to the tensors that the checkpoint fills.
        put_back: Takes the filled tensors to models and optimizers.

    Returns:
        The checkpoint and its facts; None without one.

    Raises:
        UserError: The checkpoint is another run's, or cannot be read.
    """
    out = run.config.out
    newest = run_folder.newest_checkpoint(out, run.identity, record)
    if newest is not None:
        checkpoint, facts = newest
        state = state_of(facts)
        checkpoints.load(checkpoint, state)
        put_back(facts, state)
    if processes.rank() == 0:
        checkpoints.clean(out / run_folder.CHECKPOINTS)
        run_folder.cut_log(out, newest[1].metrics if newest else 0)
    processes.barrier()  # the others may read the log next
    return newest
