"""Sends weights to the GPUs of vLLM servers over NCCL, by vLLM's own weight transfer: no file is written.

Where this is not possible, weight_sync.py's files do the same.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from prmbench.core import processes
from prmbench.core.records import RetryError
from prmbench.core.redaction import first_line
from prmbench.engines.server import ServerEngine
from prmbench.engines.weight_sync import ModelWeights, WeightInfo, Weights, one_pass, run_in_all_processes


@dataclass(frozen=True, slots=True)
class TransferLink:
    """A process's server, to whose GPUs the first process of each server sends the weights."""

    sampler: ServerEngine
    engine: Any
    """vLLM's trainer side of the transfer; None in a process that sends nothing."""

    def push(self, version: int, weights: Weights) -> None:
        """Send the weights to every server, one tensor at a time.

        Args:
            version: Not used.
            weights: The `ModelWeights`, in the precision in which they travel.

        Raises:
            UserError: A server refuses them; raised in every process.
            RetryError: A server does not answer, or the transfer breaks off; raised in every process.
        """
        run_in_all_processes(lambda: self._send(weights))

    def _send(self, weights: Weights) -> None:
        assert isinstance(weights, ModelWeights)
        with one_pass(weights) as tensors:
            if self.engine is not None:
                self.engine.source = _Source(weights.metadata(), tensors)
                with _transfer_errors(self.sampler.url):
                    self.engine.send_weights()
                self.sampler.reset_prefix_cache()


@dataclass(frozen=True, slots=True)
class _Source:
    """One pass over the weights, with the methods of vLLM's `WeightSource`."""

    infos: list[WeightInfo]
    tensors: Iterator[tuple[str, Tensor]]

    def metadata(self) -> list[WeightInfo]:
        return self.infos

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.tensors


def open_transfer(server: ServerEngine, weights: ModelWeights, device: str) -> TransferLink | None:
    """Join every server's workers with the process that sends to them. All processes call it.

    Args:
        server: This process's server.
        weights: The weights that will be sent.
        device: The device that they are on.

    Returns:
        None where a trainer or a server cannot: the trainer needs a GPU and vLLM, the server the option
        `--weight-transfer-config` of `serve_command`.

    Raises:
        RetryError: The two sides do not find each other.
    """
    can_send = device.startswith("cuda") and importlib.util.find_spec("vllm") is not None
    engine: Any = None
    workers = 0

    def ask() -> None:
        nonlocal workers
        workers = server.transfer_workers() if can_send and server.sends_weights else 0

    run_in_all_processes(ask)
    if not all(processes.all_gather(can_send and (workers > 0 or not server.sends_weights))):
        logging.getLogger(__name__).info("weights travel to the servers as files")
        return None

    def connect() -> None:
        nonlocal engine
        if workers:
            with _transfer_errors(server.url):
                engine = _connect(server, workers, weights)

    run_in_all_processes(connect)
    return TransferLink(server, engine)


def _connect(server: ServerEngine, workers: int, weights: ModelWeights) -> Any:
    """Return vLLM's trainer side of a transfer, in a group with the server's workers."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_open_port

    info = NCCLTrainerInitInfo(local_address(server.url), get_open_port(), workers + 1, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=server, source=weights)


def local_address(url: str) -> str:
    """Return the address of this machine that a server sees; raises OSError when it is not reached."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname, port), timeout=30) as connection:
        return str(connection.getsockname()[0])


@contextmanager
def _transfer_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise RetryError(
            f"server {url}: the transfer of weights failed ({first_line(error)}); start it anew without "
            "--weight-transfer-config, and they travel as files"
        ) from error
