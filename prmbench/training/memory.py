"""Predicts the peak memory of a training run's phases on its device, from the shapes of its models. Nothing is loaded.

It counts the tensors that a decoder of the Llama family (Llama, Qwen2, Mistral) keeps for the backward pass as
transformers writes its layers, and what the output head and one layer need besides. benchmarks/memory.py compares it
with a count of all tensors. Fragmentation, CUDA's context and the workspaces of cuBLAS come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from prmbench.engines import token_logprobs

GIB = 2**30
SEQUENCES = 64
"""Completions whose keys and values a sampler should at least hold at a time; with fewer it draws slowly."""
FLOAT, HALF = 4, 2
"""Bytes of a number in float32 and in bfloat16."""
MOMENTS: Mapping[str, int] = {"adamw": 8, "adamw_8bit": 2, "sgd": 0}
"""Bytes of an optimizer's state a weight."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that decide how much memory it takes."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    """Width of all heads' queries together."""
    key_value: int
    """Width of all heads' keys together, and of all their values."""
    heads: int
    vocabulary: int
    tied: bool
    """Whether the output head is the embedding matrix."""
    others: int = 0
    """Parameters besides: norms and biases, and whatever another architecture has more or less."""

    @property
    def embedding(self) -> int:
        """Parameters of the embedding matrix, and of the output head."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of the matrices of a layer."""
        attention = 2 * self.hidden * (self.query + self.key_value)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2) + self.others

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters on all matrices of the layers."""
        widths = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value)
        return self.layers * rank * (widths + 3 * (self.hidden + self.intermediate))

    def cache(self, token_bytes: int) -> int:
        """Bytes of the keys and values of a token, of so many bytes a number."""
        return 2 * self.layers * self.key_value * token_bytes


def shape_of(model: Any) -> Shape:
    """Returns the shape of a transformers model without a head, whose weights need not be there.

    Of an architecture that is no decoder of attention and gated MLPs it is a rough likeness, with as many parameters.
    """
    text = model.config.get_text_config()
    hidden = _size(text, "hidden_size", 1)
    heads = _size(text, "num_attention_heads", 1)
    width = _size(text, "head_dim", hidden // heads)
    shape = Shape(
        layers=_size(text, "num_hidden_layers", 1),
        hidden=hidden,
        intermediate=_size(text, "intermediate_size", 4 * hidden),
        query=heads * width,
        key_value=_size(text, "num_key_value_heads", heads) * width,
        heads=heads,
        vocabulary=_size(text, "vocab_size", 1),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )
    counted = sum(p.numel() for p in model.parameters())
    return replace(shape, others=counted - shape.layers * shape.layer - shape.embedding)


def _size(config: Any, name: str, default: int) -> int:
    """Returns a size from a model's config, the mean where it is one a layer; state-space models lack some."""
    value = getattr(config, name, None) or default
    return sum(value) // len(value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is used, as far as it decides about memory."""

    shape: Shape
    half: bool
    """Whether forward passes compute in half precision, by autocast."""
    on_gpu: bool = True
    """A CPU keeps matrices that are not trained in float32."""
    trained: bool = True
    lora_rank: int = 0
    checkpointing: bool = False
    optimizer: str = "adamw"
    shares_base: bool = False
    """Whether the weights besides adapters are those of another model, which are counted there."""

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.trained and not self.lora_rank

    @property
    def trained_parameters(self) -> int:
        """Number of weights with gradients."""
        return self.shape.parameters if self.full else self.shape.adapters(self.lora_rank) if self.trained else 0

    @property
    def weights(self) -> int:
        """Bytes of the weights: those that are not trained have the precision of the forward pass on a GPU."""
        shape = self.shape
        adapters = 0 if self.full else FLOAT * self.trained_parameters
        if self.shares_base:
            return adapters
        frozen = 0 if self.full else shape.layers * shape.layer + (0 if shape.tied else shape.embedding)
        return adapters + FLOAT * shape.parameters - (HALF * frozen if self.half and self.on_gpu else 0)

    @property
    def gradients(self) -> int:
        """Bytes of the gradients."""
        return FLOAT * self.trained_parameters

    @property
    def moments(self) -> int:
        """Bytes of the optimizer's state."""
        return MOMENTS[self.optimizer] * self.trained_parameters

    def update(self, tokens: int) -> int:
        """Bytes that a micro-batch adds to weights, gradients and optimizer state at its peak.

        That is where the output head's backward pass begins, while everything is kept, or with checkpointing also
        inside the layer whose activations are computed again.
        """
        shape = self.shape
        layer = self._layer_activations() * tokens + self._weight_copies(shape.layer)
        states = (3 if self.full else 2) * FLOAT * shape.hidden * tokens  # of the last norm, and those the head reads
        if not self.checkpointing:
            return shape.layers * layer + states + self._head_backward(tokens)
        inputs = shape.layers * FLOAT * shape.hidden * tokens
        backward = (3 * self._bytes * shape.intermediate + 3 * FLOAT * shape.hidden) * tokens
        return inputs + states + max(self._head_backward(tokens), layer + backward)

    def reading(self, tokens: int) -> int:
        """Bytes that a forward pass without gradients adds to the weights at its peak."""
        shape = self.shape
        mlp = (4 * self._bytes * shape.intermediate + (2 * FLOAT + self._bytes) * shape.hidden) * tokens
        logits = 2 * FLOAT * self._logits(tokens)
        head = self._head_copy() + logits
        return max(
            mlp + self._weight_copies(shape.hidden * shape.intermediate), head + 2 * FLOAT * shape.hidden * tokens
        )

    @property
    def _bytes(self) -> int:
        """Bytes of a number that a matrix product gives."""
        return HALF if self.half else FLOAT

    def _layer_activations(self) -> int:
        """Bytes a token that a layer keeps for its backward pass."""
        shape, size = self.shape, self._bytes
        # Each norm keeps what it reads and, where its weight is trained, what it multiplies with that weight.
        norms = 2 * FLOAT * shape.hidden * (2 if self.full else 1) + 2 * FLOAT
        # Autocast rounds the input of each of five matrices by itself; without it they share what the norm gives.
        inputs = (5 if self.half else 2) * size * shape.hidden
        attention = 2 * size * (shape.query + shape.key_value) + FLOAT * shape.heads
        # The outputs of gate, its activation, of up, and the input of down.
        mlp = 4 * size * shape.intermediate
        # Adapters keep their narrow states, and under autocast a copy of what the output projection reads.
        lora = 0 if self.full else 7 * size * self.lora_rank + (size * shape.query if self.half else 0)
        return norms + inputs + attention + mlp + lora

    def _weight_copies(self, parameters: int) -> int:
        """Bytes of the rounded copies of trained float32 matrices, which the backward pass needs."""
        return HALF * parameters if self.half and self.full else 0

    def _head_copy(self) -> int:
        """Bytes of the rounded copy of an output head in float32."""
        is_float = self.full or self.shape.tied
        return HALF * self.shape.embedding if self.half and self.on_gpu and is_float else 0

    def _logits(self, tokens: int) -> int:
        """Numbers in a chunk of logits."""
        weight = torch.empty(self.shape.vocabulary, 0, device="meta" if self.on_gpu else "cpu")
        return min(token_logprobs.default_chunk(weight), tokens) * self.shape.vocabulary

    def _head_backward(self, tokens: int) -> int:
        """Bytes of the head's backward pass: gradients of its states and of a trained weight, and chunks of logits.

        A second chunk's logits are made while the first's are there, and with fewer of them the gradient of the weight
        is there twice, while a chunk's part is added to it.
        """
        logits, weight = self._logits(tokens), FLOAT * self.shape.embedding if self.full else 0
        chunks = weight + (FLOAT + (HALF if self.half else 0)) * logits
        if logits < tokens * self.shape.vocabulary:
            chunks += max(FLOAT * logits, weight)
        return self._head_copy() + chunks + FLOAT * self.shape.hidden * tokens


def training_phases(plan: Plan, reference: Plan | None, tokens: int) -> dict[str, float]:
    """Returns the peaks in GiB of train-sft and train-rm, in one process without shards.

    Args:
        plan: The model in training.
        reference: The model that gives the reference's log-probabilities before the first update, which is `plan`
            itself without --ref-model; None without a reference.
        tokens: Padded tokens of a micro-batch.
    """
    kept = kept_bytes([plan])
    phases = {"load": plan.weights}
    if reference is not None:
        phases["reference"] = reference.weights + reference.reading(tokens)
    return _in_gib(phases | {"update": kept + plan.gradients + plan.update(tokens), "save": kept})


def kept_bytes(plans: Iterable[Plan]) -> int:
    """Returns the bytes of weights and optimizer state, which stay through all phases."""
    return sum(plan.weights + plan.moments for plan in plans)


def distrl_phases(policy: Plan, others: Mapping[str, Plan], tokens: int, drawing: int) -> dict[str, float]:
    """Returns the peaks in GiB of train-distrl, in one process without shards.

    Args:
        policy: The policy.
        others: The other models in memory, by name; that of the reward model is `rm`.
        tokens: Padded tokens of a micro-batch.
        drawing: Bytes that the sampler takes while it draws, besides the policy.
    """
    plans = (policy, *others.values())
    kept, reading = kept_bytes(plans), max(plan.reading(tokens) for plan in plans)
    phases = {"load": sum(plan.weights for plan in plans), "draw": kept + drawing, "score": kept + reading}
    rm = others.get("rm")
    if rm is not None and rm.trained:
        phases["update_rm"] = kept + rm.gradients + rm.update(tokens)
    return _in_gib(phases | {"update_policy": kept + policy.gradients + policy.update(tokens), "save": kept})


def vllm_bytes(shape: Shape, tokens: int) -> int:
    """Returns what vLLM needs beside training: its weights, with a head of their own, and keys and values.

    `tokens`: longest prompt and completion. Its graphs and its own activations, one to three GiB, come on top.
    """
    untied = shape.parameters + (shape.embedding if shape.tied else 0)
    return HALF * untied + SEQUENCES * tokens * shape.cache(HALF)


def _in_gib(phases: Mapping[str, int]) -> dict[str, float]:
    return {name: round(size / GIB, 2) for name, size in phases.items()}
