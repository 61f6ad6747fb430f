"""Weights on their way to a server's GPUs: who decides that they travel over NCCL, and what the server is asked.

There is no vLLM here; tests/test_vllm.py drives vLLM's own sender against such a server.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_samplers import loaded
from stub_server import stub_server

from prmbench.core.records import RetryError, UserError
from prmbench.engines import weight_transfer
from prmbench.engines.server import ServerEngine
from prmbench.engines.weight_sync import ModelWeights
from prmbench.engines.weight_transfer import TransferLink, local_address, open_transfer

READY = {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}, "world_size": 2, "success": True}


def engine(url: str, **more: Any) -> ServerEngine:
    return ServerEngine(url, None, frozenset({2}), model="base", **{"tries": 3, "first_pause": 0.01, **more})


class Sender:
    """vLLM's trainer side, as far as the server sees it."""

    def __init__(self, client: Any) -> None:
        self.client, self.source, self.sent = client, None, {}  # type: ignore[var-annotated]

    def send_weights(self) -> None:
        infos = self.source.metadata()
        self.client.start_weight_update()
        self.client.update_weights({"names": [info.name for info in infos]})
        self.sent = dict(self.source)
        assert [(i.name, i.dtype, i.shape) for i in infos] == [
            (name, t.dtype, tuple(t.shape)) for name, t in self.sent.items()
        ]
        self.client.finish_weight_update()


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """As if vLLM were installed; the servers and their workers that were connected to."""
    made = []

    def connect(server: ServerEngine, workers: int, weights: ModelWeights) -> Sender:
        made.append((server.url, workers))
        server.init_weight_transfer_engine({"world_size": workers + 1})
        return Sender(server)

    monkeypatch.setattr(weight_transfer, "_connect", connect)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return made


def test_all_weights_are_sent_in_one_transfer(policy: Path, connected: list[Any]) -> None:
    weights = ModelWeights(loaded(policy).model, torch.bfloat16)
    with stub_server(lambda *_: (200, READY)) as (url, requests):
        link = open_transfer(engine(url), weights, "cuda:0")
        assert link is not None
        for version in (1, 2):
            link.push(version, weights)
    assert connected == [(url, 2)]
    names = list(weights.model.state_dict())
    update = [
        ("/start_weight_update", {}),
        ("/update_weights", {"update_info": {"names": names}}),
        ("/finish_weight_update", {"weight_version": None}),
        ("/reset_prefix_cache", {}),
    ]
    assert requests == [
        ("/server_info?config_format=json", {}),
        ("/get_world_size", {}),
        ("/init_weight_transfer_engine", {"init_info": {"world_size": 3}}),
        *update,
        *update,
    ]
    assert {name: w.dtype for name, w in link.engine.sent.items()} == dict.fromkeys(names, torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "status", "info"),
    [
        ("cpu", 200, READY),  # NCCL is between GPUs
        ("cuda:0", 404, {}),  # a vLLM before these endpoints, or one without the development mode
        ("cuda:0", 200, {**READY, "vllm_config": {"weight_transfer_config": None}}),
        ("cuda:0", 200, {**READY, "vllm_config": {"weight_transfer_config": {"backend": "ipc"}}}),
        ("cuda:0", 200, {**READY, "world_size": "two"}),
        ("cuda:0", 200, {"vllm_config": "VllmConfig(...)"}),
    ],
)
def test_without_a_transfer_weights_travel_as_files(
    device: str, status: int, info: Any, policy: Path, connected: list[Any]
) -> None:
    with stub_server(lambda *_: (status, info)) as (url, requests):
        assert open_transfer(engine(url), ModelWeights(loaded(policy).model), device) is None
    assert connected == []
    assert bool(requests) == device.startswith("cuda")


def test_a_trainer_without_vllm_sends_files(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with stub_server(lambda *_: (200, READY)) as (url, requests):
        assert open_transfer(engine(url), ModelWeights(loaded(policy).model), "cuda:0") is None
        assert requests == []


def test_a_process_that_sends_nothing_gathers_with_the_others(policy: Path, connected: list[Any]) -> None:
    gathered = []

    class Counted(ModelWeights):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in super().__iter__():
                gathered.append(name)
                yield name, tensor

    weights = Counted(loaded(policy).model)
    with stub_server(lambda *_: (200, READY)) as (url, requests):
        link = open_transfer(engine(url, sends_weights=False), weights, "cuda:0")
        assert link == TransferLink(link.sampler, None)  # type: ignore[union-attr]
        link.push(1, weights)  # type: ignore[union-attr]
        assert requests == []
    assert gathered == list(weights.model.state_dict())
    assert connected == []


@pytest.mark.parametrize(("path", "status"), [("/update_weights", 500), ("/start_weight_update", 400)])
def test_a_broken_transfer_is_not_repeated(path: str, status: int, policy: Path, connected: list[Any]) -> None:
    """The other side would be within the first one still. All weights are gathered, with which others wait."""
    weights = ModelWeights(loaded(policy).model)
    with stub_server(lambda asked, _: (status if asked == path else 200, READY)) as (url, requests):
        link = open_transfer(engine(url), weights, "cuda:0")
        assert link is not None
        with pytest.raises(RetryError if status == 500 else UserError, match=path):
            link.push(1, weights)
        assert [asked for asked, _ in requests].count(path) == 1


def test_a_group_that_does_not_form_is_one_line(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise RuntimeError("Timed out after 300 seconds\nwaiting for clients")

    monkeypatch.setattr(weight_transfer, "_connect", connect)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with (
        stub_server(lambda *_: (200, READY)) as (url, _),
        pytest.raises(
            RetryError, match=r"transfer of weights failed \(.*\); start it anew without --weight-transfer"
        ) as caught,
    ):
        open_transfer(engine(url), ModelWeights(loaded(policy).model), "cuda:0")
    assert "\n" not in str(caught.value)


def test_the_trainer_is_found_where_the_server_sees_it() -> None:
    with stub_server(lambda *_: (200, {})) as (url, _):
        assert local_address(url) == "127.0.0.1"
