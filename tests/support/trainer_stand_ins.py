"""Stand-ins with the shapes that verl, OpenRLHF, SkyRL, slime and prime-rl give to code of their users.

Made from the projects' documentation and sources, no code of theirs. A trainer itself is in no test but TRL's.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


@contextmanager
def installed(**modules: dict[str, Any]) -> Iterator[None]:
    """Puts modules into sys.modules, with the packages above them; a name has `__` for each dot."""
    before = dict(sys.modules)
    try:
        for name, members in modules.items():
            path = name.replace("__", ".")
            for end in range(1, path.count(".") + 2):
                parent = ".".join(path.split(".")[:end])
                sys.modules.setdefault(parent, ModuleType(parent))
            vars(sys.modules[path]).update(members)
        yield
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


def load_file(path: Path, name: str) -> Any:
    """The object of a file that a user wrote, as verl and OpenRLHF load it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


# --- verl ---


class RewardManagerBase:
    """verl's base class: it must not be needed for more than its class methods."""

    def __init__(self) -> None:
        raise AssertionError("its arguments differ between versions")

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[float]) -> Tensor:
        return torch.tensor(scores, dtype=torch.float32)  # a None would raise


class DataProto:
    """Rows of left-padded prompts and right-padded responses, with what is no tensor beside them."""

    def __init__(self, batch: dict[str, Tensor], non_tensor_batch: dict[str, list[Any]]) -> None:
        self.batch, self.non_tensor_batch = batch, non_tensor_batch

    def __len__(self) -> int:
        return len(self.batch["responses"])

    def __getitem__(self, key: Any) -> Any:
        batch = {name: tensor[key] for name, tensor in self.batch.items()}
        others = {name: values[key] for name, values in self.non_tensor_batch.items()}
        if isinstance(key, slice):
            return DataProto(batch, others)
        return SimpleNamespace(batch=batch, non_tensor_batch=others)


def data_proto(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, **others: list[Any]
) -> DataProto:
    """Prompts padded on the left and responses on the right, by one token more than the longest needs."""
    wide, long = max(map(len, prompts)) + 1, max(map(len, responses)) + 1
    left = [[pad] * (wide - len(row)) + list(row) for row in prompts]
    right = [list(row) + [pad] * (long - len(row)) for row in responses]
    masks = [
        [0] * (wide - len(p)) + [1] * (len(p) + len(r)) + [0] * (long - len(r))
        for p, r in zip(prompts, responses, strict=True)
    ]
    batch = {"prompts": torch.tensor(left), "responses": torch.tensor(right), "attention_mask": torch.tensor(masks)}
    return DataProto(batch, others)


def run_reward_loop(manager: Any, data: DataProto) -> list[dict[str, Any]]:
    """One task a row at the same time, as verl's worker does."""

    async def score() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(len(data)))))

    return asyncio.run(score())


# --- SkyRL ---


@dataclass
class AdvantageEstimatorRegistry:
    """SkyRL's registry: a name has one function."""

    functions: dict[str, Any] = field(default_factory=dict)

    def register(self, name: str, function: Any) -> None:
        if name in self.functions:
            raise ValueError(f"{name} is registered already")
        self.functions[name] = function


def skyrl_tensors(rewards: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Token-level rewards [b, t] and the response mask [b, t], padded with zeros on the right."""
    width = max(map(len, rewards)) + 2
    padded = torch.tensor([list(row) + [0.0] * (width - len(row)) for row in rewards])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rewards])
    return padded, mask


# --- prime-rl ---


@dataclass
class Node:
    """A message of a trace with its tokens; `mask` is on where the policy sampled."""

    message: Any
    token_ids: list[int]
    mask: list[bool]
    advantages: list[float] | None = None


def trace(name: str, problem: str, prompt: Sequence[int], response: Sequence[int], forced: int = 0) -> Any:
    """A single-turn trace; the first `forced` tokens of the answer are the template's, not the policy's."""
    nodes = [
        Node(SimpleNamespace(role="user", content=problem), list(prompt), [False] * len(prompt)),
        Node(
            SimpleNamespace(role="assistant", content=""),
            list(response),
            [False] * forced + [True] * (len(response) - forced),
        ),
    ]
    return SimpleNamespace(id=name, nodes=nodes, has_error=False, agent=SimpleNamespace(trainable=True), reward=1.0)


class Algorithm:
    """prime-rl's base class."""

    def __init__(self, config: Any, policy_pool: Any) -> None:
        self.config, self.policy_pool = config, policy_pool


def iter_trainable_traces(episodes: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    for episode in episodes:
        for member in episode.traces:
            if not member.has_error and member.agent.trainable and any(any(node.mask) for node in member.nodes):
                yield episode, member


def assign_advantages(member: Any, values: list[float]) -> None:
    """One number for each sampled token, in order; another number of them is an error."""
    nodes = [node for node in member.nodes if any(node.mask)]
    assert len(values) == sum(sum(node.mask) for node in nodes)
    remaining = iter(values)
    for node in nodes:
        node.advantages = [next(remaining) for sampled in node.mask if sampled]
