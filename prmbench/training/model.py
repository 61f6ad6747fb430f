"""The model in training: loading, head, LoRA, and the forward pass from token ids to a loss's values.

Trained weights are float32 whatever the forward pass computes in. Frozen ones have that precision themselves on a GPU,
and models trained with adapters of their own share one base.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from prmbench.core import processes, provenance
from prmbench.core.records import Notice, UserError
from prmbench.engines import token_logprobs
from prmbench.engines.hf import HFEngine, Placement, load
from prmbench.training import sharded_loading
from prmbench.training.batching import LabelledBatch
from prmbench.training.losses import Head

LABELS: dict[Head, int] = {"value": 1, "classes": 2}


class Forward(nn.Module):
    """Computes the values that a loss needs, at the positions it reads and nowhere else.

    It is a module because DDP and FSDP2 hook into the forward pass of a root module, and only inside it are the weights
    of a sharded head complete.
    """

    def __init__(self, model: Any, kind: Head) -> None:
        super().__init__()
        self.model = model
        self.kind = kind

    def forward(self, ids: Tensor, score_positions: Tensor, targets: Tensor, p_min: float | None = None) -> Any:
        """Computes what the head says at some positions.

        Args:
            ids: [b, t] token ids.
            score_positions: [n] positions to read, in `ids` laid flat.
            targets: [n] tokens whose log-probabilities are wanted, or [n, k] several a position; for head "lm" only.
            p_min: None = log-probabilities of the targets, with gradients. Else the targets' candidate sets and the
                entropies, as `token_logprobs.candidates` returns them; 0 = sets without candidates.

        Returns:
            [n] or [n, k] float32 log-probabilities, [n] values or [n] log-odds, by head; or (CandidateSet, [n]).
        """
        if self.kind != "lm":
            logits = self.model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[score_positions].float()
            return logits[:, 0] if self.kind == "value" else logits[:, 1] - logits[:, 0]
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        layer = self.model.get_output_embeddings()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        bias = getattr(layer, "bias", None)
        if p_min is not None:
            return token_logprobs.candidates(states[score_positions], layer.weight, targets, p_min, bias, softcap)
        logprobs = token_logprobs.target_logprobs if targets.dim() == 1 else token_logprobs.logprobs_at
        return logprobs(states[score_positions], layer.weight, targets, bias, softcap)[0]


@dataclass(frozen=True, slots=True)
class Runner:
    """A model ready for forward and backward passes on this process's device."""

    engine: HFEngine
    adapters: Any
    """The peft model around it, or None."""
    module: nn.Module
    """`Forward`, replicated or sharded over the processes."""
    device: str
    autocast: torch.dtype | None

    @property
    def model(self) -> Any:
        """The transformers model, adapters inside."""
        return self.engine.model

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def run(self, ids: Tensor, score_positions: Tensor, targets: Tensor, p_min: float | None = None) -> Any:
        """Runs `Forward` in this run's precision.

        One pass uses a weight once, so a cache of weights in half precision would fill memory and serve nobody.
        """
        with self.precision(cache=False):
            return self.module(ids, score_positions, targets, p_min)

    def precision(self, cache: bool = True) -> AbstractContextManager[Any]:
        """Returns a context in which forward passes compute in the precision of --dtype.

        `cache`: whether weights in half precision are kept until its end, for further passes.
        """
        device, enabled = self.device.partition(":")[0], self.autocast is not None
        return torch.autocast(device, self.autocast, enabled=enabled, cache_enabled=cache)

    def values(self, batch: LabelledBatch) -> Tensor:
        """Returns the loss's values, [b, T]: with a reference, the log-ratios to it."""
        values = batch.spread(self.run(batch.ids, batch.score_positions, batch.targets))
        return values if batch.reference is None else values - batch.reference


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """How models are loaded and prepared; for a reference it differs in `frozen` only."""

    placement: Placement
    """Device and precision of the forward passes, resolved."""
    strategy: str = "ddp"
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    seed: int = 0
    remote_code: bool = False
    frozen: bool = False
    """Whether the model is only read: it has no gradients, no adapters, and DDP does not wrap it."""

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Precision of the matrices that are not trained: that of the forward passes on a GPU, float32 on a CPU."""
        return torch.float32 if self.placement.device == "cpu" else getattr(torch, self.placement.dtype)

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded: with FSDP or HSDP and several processes."""
        return self.strategy != "ddp" and processes.world_size() > 1


def check(placement: Placement) -> None:
    """Raises UserError for a placement in which evaluation runs and training does not."""
    if placement.spread:
        raise UserError(f"--device {placement.device}: training spreads a model with torchrun and --strategy fsdp")
    if placement.dtype == "float16":
        raise UserError("--dtype float16: its gradients underflow; use bfloat16 or float32")


def check_whole(name: str) -> None:
    """Raises UserError for an adapter: training starts from full weights."""
    if (adapted := provenance.adapter_base(Path(name))) is not None:
        raise UserError(f"--model {name}: is an adapter of {adapted[0]}; training takes whole weights, merge it first")


def open_runner(name: str, revision: str | None, kind: Head, setup: ModelSetup) -> Runner:
    """Loads a model with the head that a loss trains, or to be read only. Raises UserError."""
    torch.manual_seed(setup.seed)  # new heads and adapters; the same in every process

    def open_on(device: str) -> tuple[HFEngine, Any]:
        engine = _open(name, revision, kind, Placement(device, "float32"), setup)
        if device != "meta":
            _check_causal(engine.model, name)
        return engine, add_adapters(engine.model, kind, setup.lora_rank) if setup.lora_rank else None

    if setup.sharded:
        return prepared(*sharded_loading.open_once(open_on), kind, setup)
    # On the CPU first where the device gets fewer bytes than are loaded: matrices in half precision.
    on_cpu_first = setup.frozen or setup.lora_rank > 0
    return prepared(*open_on("cpu" if on_cpu_first else setup.placement.device), kind, setup)


def prepared(engine: HFEngine, adapters: Any, kind: Head, setup: ModelSetup) -> Runner:
    """Returns a loaded model ready to be trained or read: in its precision, on its device, wrapped.

    `adapters`: the peft model around it, or None.
    """
    model = engine.model
    _without_dropout(model)
    if setup.frozen:
        model.requires_grad_(False)
    if setup.frozen or adapters is not None:
        _cast_frozen_matrices(model, setup.frozen_dtype)
    if not setup.sharded:
        model.to(setup.placement.device)
    if setup.gradient_checkpointing and not setup.frozen:
        _recompute_activations(model)
    return _runner(engine, adapters, kind, setup)


def with_shared_base(runner: Runner, setup: ModelSetup) -> Runner:
    """Returns another model with adapters of its own, which start as those of `runner` are now, on the same base.

    The two models hold the same frozen parameters, so these are in memory once. Each has its own modules: no adapter
    has to be switched on or off, and each has its own gradients, optimizer and checkpoints. For models that FSDP has
    not sharded.
    """
    frozen = {id(p): p for p in runner.model.parameters() if not p.requires_grad}
    adapters = copy.deepcopy(runner.adapters, memo=frozen)
    engine = HFEngine(adapters.get_base_model(), runner.engine.tokenizer, runner.engine.revision)
    return _runner(engine, adapters, "lm", setup)


def _runner(engine: HFEngine, adapters: Any, kind: Head, setup: ModelSetup) -> Runner:
    """Wraps a model that is on its device for forward and backward passes in this process group."""
    dtype = getattr(torch, setup.placement.dtype)
    forward: nn.Module = Forward(engine.model, kind)
    weights = sharded_loading.whole_weights(forward) if setup.sharded else {}
    if not setup.frozen:
        engine.model.train()  # without dropout this means: checkpointing may work
    module = forward
    if setup.sharded or not setup.frozen:  # DDP would make room for gradients that a frozen model never has
        module = processes.wrap_distributed(forward, setup.strategy, setup.placement.device, dtype)
    if setup.sharded:
        sharded_loading.fill_shards(module, weights, setup.placement.device)
    autocast = None if setup.sharded or dtype == torch.float32 else dtype
    return Runner(engine, adapters, module, setup.placement.device, autocast)


def _recompute_activations(model: Any) -> None:
    """Turns gradient checkpointing on, which is the default on a GPU; a few old architectures do not have it."""
    if not model.supports_gradient_checkpointing:
        name = type(model).__name__
        warnings.warn(Notice(f"{name} has no gradient checkpointing; its activations stay in memory"), stacklevel=2)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its new name is not in every version that we take
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _cast_frozen_matrices(model: Any, dtype: torch.dtype) -> None:
    """Stores the weights of linear layers that are not trained in `dtype`, in which autocast multiplies them anyway.

    So no number changes, and no copy of them is made with every pass. Embeddings and norms, which autocast leaves in
    float32, stay so, and with them the residual stream; so does an output head that is tied to the embeddings.
    """
    from transformers.pytorch_utils import Conv1D

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight = module.weight
            if not weight.requires_grad and id(weight) not in embeddings:
                weight.data = weight.data.to(dtype)


def _open(name: str, revision: str | None, kind: Head, memory: Placement, setup: ModelSetup) -> HFEngine:
    empty = memory.device == "meta"
    engine = load(name, "lm" if kind == "lm" else "none", memory, revision, setup.remote_code, empty)
    _unquantise(engine.model, name)
    if kind == "lm":
        return engine
    config = engine.model.config
    if config.num_labels == LABELS[kind] and any("ForTokenClass" in a for a in config.architectures or ()):
        return load(name, "classes", memory, revision, setup.remote_code, empty)  # continues from a trained head
    return HFEngine(_with_new_head(engine.model, LABELS[kind]).to(memory.device), engine.tokenizer)


def _unquantise(model: Any, name: str) -> None:
    """Lets a model from a GGUF file be saved: once loaded its weights are plain, but it is marked as quantised."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    if Path(name).suffix != ".gguf":
        raise UserError(f"--model {name}: its weights are quantised and cannot be trained; take the full ones")
    quantizer.remove_quantization_config(model)


def _with_new_head(base: Any, labels: int) -> Any:
    """Returns a token classifier around a bare model, with random weights of the usual scale and a bias of 0."""
    config = base.config
    config.num_labels = labels
    with torch.device("meta"):
        model = transformers.AutoModelForTokenClassification.from_config(config, dtype=base.dtype)
    setattr(model, model.base_model_prefix, base)
    if base.device.type == "meta":  # the weights come from another process, the new ones too
        return model
    for module in model.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            nn.init.normal_(module.weight, std=getattr(config.get_text_config(), "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _check_causal(model: Any, name: str) -> None:
    """Raises UserError unless the model is causal: only then are batches padded without a mask exact."""
    ids = torch.arange(7, 15, device=model.device).remainder(model.config.get_text_config().vocab_size).repeat(2, 1)
    ids[1, -1] = 0
    with torch.no_grad():
        first, second = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise UserError(f"--model {name}: its positions see later ones; training needs a causal model")


def _without_dropout(model: Any) -> None:
    """Turns dropout off: log-probabilities are compared with a reference's, and a rerun must give the same ones."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def add_adapters(model: Any, kind: Head, rank: int) -> Any:
    """Puts LoRA adapters into every linear layer of `model`, scaled by 1 (alpha = rank).

    The head of a language model stays as it is; a new head is trained in full.
    """
    import peft
    from transformers.pytorch_utils import Conv1D

    body = model.base_model
    prefix = f"{model.base_model_prefix}." if body is not model else ""
    linear = [prefix + n for n, m in body.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    heads = [n for n, m in model.named_children() if m is not body and isinstance(m, nn.Linear)]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=linear,
        modules_to_save=None if kind == "lm" else heads,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers, which the user cannot change
        return peft.get_peft_model(model, config)


def merged(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Returns the weights of a model with its adapters merged in, W + B A, in float32."""
    weights = {}
    for name, value in state.items():
        if ".lora_" in name or ".original_module." in name:
            continue
        stem, separator, leaf = name.partition(".base_layer.")
        if separator and leaf == "weight":
            delta = state[f"{stem}.lora_B.default.weight"] @ state[f"{stem}.lora_A.default.weight"]
            value = value + (delta.T if model.get_submodule(stem).fan_in_fan_out else delta)  # noqa: PLW2901
        weights[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = value.float()
    return weights
