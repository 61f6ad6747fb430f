"""`prmbench serve`: a reward model behind HTTP.

A request passes gate.py, becomes traces in request_bodies.py, is scored with others by scheduler.py, and is answered in
the JSON of answers.py. Needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import warnings
from typing import TYPE_CHECKING, Any

from prmbench import config as options
from prmbench.backends import find_card, load_backend
from prmbench.config import ServeConfig, unused_options
from prmbench.core import extras, processes, reading
from prmbench.core.records import Notice, UserError
from prmbench.core.redaction import SERVER_TOKEN

if TYPE_CHECKING:
    from prmbench.serving.app import Service

PACKAGES = ("fastapi", "uvicorn")
NOT_SERVED = {
    **dict.fromkeys(unused_options.DATA, "`serve` takes its solutions from requests"),
    "ref_cache": "would grow with every request",
}
"""Options of other commands that run a model and that `serve` cannot use, each with the reason."""
MIN_TOKEN_LENGTH = 8
OPEN_FILES = 8192
OTHERS = 0o077
"""Permission bits of everybody but a file's owner."""


def serve(config: ServeConfig, quiet: bool = False) -> bool:
    """Load a model and answer requests until SIGTERM or SIGINT, then finish the requests that were taken.

    Args:
        config: The options of `prmbench serve`.
        quiet: Whether to leave out the line on stderr that names the address.

    Returns:
        Whether every request that was taken has been answered; a second signal ends the process itself.

    Raises:
        UserError: An option or the model cannot be used, a package is missing, or the port is taken.
    """
    config = options.validate(config)
    check_options(config)
    from prmbench.serving import uvicorn_server

    token = read_token(config)
    listener = bind(config.host, config.port)
    _allow_many_connections()
    try:
        service = open_service(config)
        listen(listener, config)
        return asyncio.run(uvicorn_server.run(service, listener, token, quiet))
    finally:
        listener.close()


def describe(config: ServeConfig) -> dict[str, Any]:
    """Return how the model would be read, without its weights. `config.dry_run` must be set. Raises UserError."""
    config = options.validate(config)
    check_options(config)
    return dict(open_service(config).description)


def open_service(config: ServeConfig) -> Service:
    """Return the service of a model. Raises UserError where it cannot be loaded."""
    from prmbench.backends import cards
    from prmbench.evaluation import scoring
    from prmbench.serving.answers import describe_model
    from prmbench.serving.app import Service
    from prmbench.serving.request_bodies import Reading
    from prmbench.serving.scheduler import Scheduler

    card, backend = find_card(config), load_backend(config)
    description = describe_model(config, card, backend)
    mark = card.tag or card.separator
    prompt = cards.prompt_text(card.prompt) if card.prompt and card.backend == "token_cls" else None
    names = tuple(dict.fromkeys((description["id"], config.model)))
    budget = scoring.batch_budget(backend, config.batch_tokens)
    scheduler = Scheduler(backend, budget, config.max_pending, config.batching)
    return Service(config, backend, description, Reading(names, mark, prompt), scheduler)


def check_options(config: ServeConfig) -> None:
    """Raise UserError on options that `serve` cannot use, and where a package that it needs is missing."""
    for package in PACKAGES:
        extras.require(package, "serve")
    defaults = ServeConfig()
    for name, reason in NOT_SERVED.items():
        if getattr(config, name) != getattr(defaults, name):
            raise UserError(f"--{name.replace('_', '-')}: {reason}; drop it")
    if config.engine == "openai":
        raise UserError("--engine openai: that model is behind a server already; ask that server, or use `score`")
    if config.model in ("gold", "outcome-oracle"):
        raise UserError(f"--model {config.model}: reads labels, and requests have none; use it with `eval`")
    if processes.world_size() > 1:
        raise UserError("serve: runs in one process; start it without torchrun")


def read_token(config: ServeConfig) -> str | None:
    """Return the token that requests must bring, from --token-file or the environment; None = none is needed.

    Raises:
        UserError: The token cannot be used, or is missing where one is needed.
    """
    from prmbench.serving.gate import is_loopback

    in_environment = os.environ.get(SERVER_TOKEN, "").strip()
    if config.token_file is not None and in_environment:
        raise UserError(f"--token-file: {SERVER_TOKEN} is set in the environment, too; unset it, or drop the option")
    source = SERVER_TOKEN if config.token_file is None else f"--token-file {config.token_file}"
    token = in_environment if config.token_file is None else _read_token_file(config)
    if not token and config.token_file is None:
        if not is_loopback(config.host) and not config.no_token:
            raise UserError(
                f"--host {config.host}: others can reach it; set {SERVER_TOKEN} or pass --token-file FILE, or "
                "--no-token to let everyone use the model"
            )
        return None
    if config.no_token:
        raise UserError(f"--no-token: {source} has a token; drop one of them")
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{source}: a token has at least {MIN_TOKEN_LENGTH} characters, all of them ASCII, and no blanks; "
            "e.g. openssl rand -hex 32"
        )
    return token


def _read_token_file(config: ServeConfig) -> str:
    path = config.token_file
    assert path is not None
    try:
        token = reading.read_text(path).strip()
    except UserError as error:
        raise UserError(f"--token-file {error}") from error
    if path.stat().st_mode & OTHERS:
        warnings.warn(f"--token-file {path}: others may read it; chmod 600 {path}", Notice, stacklevel=2)
    return token


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not listening yet: the model is loaded first. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: cannot be resolved; give an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def listen(listener: socket.socket, config: ServeConfig) -> None:
    """Take connections from now on. Raises UserError where another process was quicker."""
    try:
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        raise _cannot_listen(config.host, config.port, error) from error


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"--host {host} --port {port}: cannot be listened on ({reading.error_reason(error)}); choose another, or "
        "--port 0 for one that is free"
    )


def _allow_many_connections() -> None:
    """Raise the limit on open files, of which every connection is one, as far as this user may."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    file_limit = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if limit not in (resource.RLIM_INFINITY, file_limit) and limit < file_limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file_limit, most))
