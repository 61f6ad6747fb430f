"""Functions shared by the model backends: opening engines, chat templates, and the facts of a loaded model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prmbench.backends import Facts, cards
from prmbench.backends.cards import ModelCard
from prmbench.backends.infer import QWEN_HEADS, ModelFiles
from prmbench.config import LoadConfig, ModelConfig, RolloutConfig, unused_options
from prmbench.core import provenance, reading
from prmbench.core.records import Trace, UserError, text_hash
from prmbench.engines.choice import with_engine
from prmbench.engines.encoding import PLAIN, Encoded, encode_chat, encode_tagged
from prmbench.engines.hf import Head, HFEngine, Placement, load, resolve_commit
from prmbench.engines.kernels import BF16_PRODUCTS
from prmbench.engines.vllm import EXCLUSIVE_SHARE, VllmEngine, VllmOptions, open_vllm

LM = HFEngine | VllmEngine
"""An engine that `open_lm` returns."""
EngineConfig = ModelConfig | RolloutConfig
"""Configs that choose an engine."""
QWEN_HEAD = "score."
"""Prefix of the head's tensors in a model of the architectures `QWEN_HEADS`."""
VLLM_BATCH_TOKENS = 2**16
"""Tokens scored per journal entry with vLLM, which makes its own batches."""


def open_model(card: ModelCard, config: ModelConfig, kind: Head) -> HFEngine:
    """Load the card's model with transformers, on the configured device and in the configured precision.

    Raises:
        UserError: Another engine is configured, or the model cannot be loaded.
    """
    config = with_engine(config, samples=False)
    if config.engine != "hf":
        raise UserError(
            f"--engine {config.engine}: backend {card.backend} needs what only the engine hf gives; vllm runs the "
            "backends implicit, critic, token_cls, value_head and tag_lm with a tag, `rollout` and benchmark policy"
        )
    _check_gpus(config)
    trust_code = card.remote_code and config.trust_remote_code
    return load(card.model, kind, resolve_placement(config), card.revision, trust_code, empty=config.dry_run)


def open_classifier(card: ModelCard, config: ModelConfig, kind: Head) -> LM:
    """Load a model whose head scores every token, in the configured engine.

    Args:
        card: The model; with `head`, that head is among its weights.
        config: Engine, device and precision.
        kind: `classes` for a token classifier of transformers, `none` where the head is read apart from the model.

    Raises:
        UserError: vLLM does not have this kind of head, or the model cannot be loaded.
    """
    if config.engine != "vllm":
        return open_model(card, config, kind)
    files = ModelFiles.open(card.model, card.revision)
    if files.base is not None or not _vllm_has_head(card, kind, files.architecture):
        raise UserError(
            f"--engine vllm: the head of {card.model} ({files.architecture or 'of no named architecture'}) is not one "
            f"that vLLM reads (whole models ...ForTokenClassification, {', '.join(QWEN_HEADS)}); use --engine hf"
        )
    if config.dry_run:
        return load(card.model, kind, resolve_placement(config), card.revision, empty=True)
    return open_lm(card.model, card.revision, config, VllmOptions(classifies=True, share=EXCLUSIVE_SHARE))


def _vllm_has_head(card: ModelCard, kind: Head, architecture: str) -> bool:
    if kind == "classes":
        return architecture.endswith("ForTokenClassification")
    return card.head == QWEN_HEAD and architecture in QWEN_HEADS


def model_shape(engine: LM) -> Any:
    """Return the model's transformers config."""
    return engine.llm.model_config.hf_config if isinstance(engine, VllmEngine) else engine.model.config


def open_lm(
    name: str,
    revision: str | None,
    config: EngineConfig,
    options: VllmOptions | None = None,
    empty: bool = False,
    remote_code: bool = False,
) -> LM:
    """Load a causal language model in the configured engine, to score or to sample.

    Args:
        name: Hub id, folder or .gguf file.
        revision: Hub revision; None = the newest.
        config: Engine, device and precision.
        options: How vLLM is started; None = its defaults.
        empty: Leave the weights out, for a dry run; this uses the engine hf.
        remote_code: Whether the model's own code may run.

    Raises:
        UserError: The engine does not support the options, or the model cannot be loaded.
    """
    config = with_engine(config, samples=False)  # callers that sample have chosen already
    _check_gpus(config)
    if config.engine == "openai":
        raise UserError("--engine openai: asks critics; use hf or vllm to score or sample with a model of your own")
    if empty or config.engine == "hf":
        return load(name, "lm", resolve_placement(config), revision, remote_code, empty)
    if remote_code:
        raise UserError(f"--engine vllm: {name} runs code of its own; use --engine hf")
    return open_vllm(
        name,
        revision,
        resolve_placement(config),
        replace(options or VllmOptions(), tensor_parallel=config.tensor_parallel),
    )


def _check_gpus(config: EngineConfig) -> None:
    if config.tensor_parallel > 1 and config.engine == "hf":
        raise UserError(
            f"--tensor-parallel {config.tensor_parallel}: is vLLM's; with the engine hf use --device balanced"
        )


def resolve_placement(config: LoadConfig) -> Placement:
    """Return the device, precision and kernels that the config asks for, with `auto` resolved.

    Raises:
        UserError: The device does not exist or lacks what the precision needs, or an engine other than hf is to use it.
    """
    if not isinstance(config, ModelConfig):
        return Placement(config.device, config.dtype).resolve()
    config = with_engine(config, samples=False)  # what samples has its engine already
    if config.engine != "hf" and (forward_options := unused_options.changed(config, unused_options.HF_FORWARD)):
        raise UserError(f"{unused_options.flags(forward_options)}: is of the engine hf; drop it")
    if config.engine != "hf" and config.dtype == BF16_PRODUCTS:
        raise UserError(f"--dtype {config.dtype}: is of the engine hf; use bfloat16")
    return Placement(config.device, config.dtype, config.kernels, config.compile).resolve()


def template_source(config: LoadConfig) -> str | None:
    """Return the template for encoding.py: None (the tokenizer's own), "plain", or the text of a Jinja file."""
    if config.template in ("auto", PLAIN):
        return None if config.template == "auto" else PLAIN
    try:
        return reading.read_text(Path(config.template))
    except UserError as error:
        raise UserError(f"--template {error}; use auto, plain or a Jinja file") from error


def chat_encoder(engine: LM, config: ModelConfig, *other_engines: LM) -> Callable[[Trace], Encoded]:
    """Return a cached encoder of traces as chats of problem and numbered steps.

    Args:
        engine: The engine whose tokenizer encodes.
        config: Template and boundary.
        other_engines: Further engines that must also accept the encoded input; a longer one is unscored.
    """
    limits = [e.max_tokens for e in (engine, *other_engines) if e.max_tokens is not None]
    encode = partial(
        encode_chat,
        engine.tokenizer,
        template=template_source(config),
        boundary=config.boundary,
        max_tokens=min(limits, default=None),
    )
    return cache(encode)


def tagged_encoder(engine: LM, card: ModelCard, config: ModelConfig) -> Callable[[Trace], Encoded]:
    """Return a cached encoder of traces as chats in which the card's tag closes every step."""
    system = cards.prompt_text(card.prompt) if card.prompt else None
    encode = partial(
        encode_tagged,
        engine.tokenizer,
        tag=card.tag or "",
        system=system,
        template=template_source(config),
        max_tokens=engine.max_tokens,
    )
    return cache(encode)


def model_facts(
    card: ModelCard, config: ModelConfig, engine: LM, reference_bytes: int = 0, **backend_facts: Any
) -> Facts:
    """Return the facts of a loaded model; `backend_facts` are those that only its backend knows."""
    place = resolve_placement(config)
    gpu = torch.cuda.get_device_name() if place.device != "cpu" and torch.cuda.is_available() else ""
    source = template_source(config) or engine.tokenizer.chat_template or ""
    return Facts(
        backend=card.backend,
        weight_bytes=engine.weight_bytes + reference_bytes,
        token_bytes=engine.token_bytes,
        batch_tokens=VLLM_BATCH_TOKENS if config.engine == "vllm" else 0,
        revision=engine.revision or card.revision,
        weights=local_weights(card.model),
        template=text_hash(source if isinstance(source, str) else repr(source)),
        beta=card.beta,
        signal=card.signal,
        trained_on=card.trained_on,
        tie=cards.tie_rule(card),
        dtype=place.dtype,
        engine=with_engine(config, samples=False).engine,
        device=place.device.partition(":")[0],
        hardware=gpu or f"{provenance.hardware()}, {torch.get_num_threads()} threads a process",
        **backend_facts,
    )


def local_weights(model: str) -> str | None:
    """Return the hash of a local model's weights, an adapter's together with its base's; None for a hub id."""
    if not reading.exists(Path(model)):
        return None
    weights, adapter = provenance.weights_hash(Path(model)), provenance.adapter_base(Path(model))
    if adapter is None:
        return weights
    base, revision = adapter
    base_weights = provenance.weights_hash(Path(base)) if reading.exists(Path(base)) else None
    return hashlib.sha256(
        f"{weights} {base_weights or f'{base}@{resolve_commit(base, revision)}'}".encode()
    ).hexdigest()


def chat_format(config: ModelConfig) -> str:
    """Return the manifest's name of the input format: numbered steps in a chat, or plain."""
    return "plain+steps" if config.template == PLAIN else "chat+steps"


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) without overflow and exact near 0, so that small scores do not become ties."""
    return np.exp(-np.logaddexp(0.0, -x))  # type: ignore[no-any-return]


def step_sums(per_token: np.ndarray, encoded: Encoded) -> tuple[float, ...]:
    """Return the sums of a per-token quantity over each step's tokens, in float64.

    Args:
        per_token: [ends[-1] - start], one value for each step token.
        encoded: The encoded trace.
    """
    prefix_sums = np.concatenate([[0.0], per_token.astype(np.float64).cumsum()])
    return tuple(
        float(prefix_sums[end - encoded.start] - prefix_sums[begin - encoded.start]) for begin, end in encoded.spans
    )
