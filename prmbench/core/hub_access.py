"""Asks the Hugging Face hub once, quickly and aloud, before its library does, which retries for a minute in silence."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
import warnings
from functools import cache
from pathlib import Path

from prmbench.core.records import Notice, UserError
from prmbench.core.redaction import host_of

TIMEOUT = 5.0
"""Seconds in which the hub must answer."""


def is_cached(name: str, file: str = "config.json", revision: str | None = None) -> bool:
    """Return whether the hub's cache on this machine holds a file of a model."""
    return cached_path(name, file, revision) is not None


def cached_path(name: str, file: str, revision: str | None = None) -> Path | None:
    """Return where the hub's cache holds a file of a model; None where it does not, or where it can be no hub id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def check_reachable(name: str, revision: str | None = None) -> None:
    """Raises UserError where the hub cannot be reached and a model is not in the cache; says where the cache serves."""
    from huggingface_hub import constants

    if _can_ask(name):
        return
    host = host_of(constants.ENDPOINT)
    is_known = any(is_cached(name, file, revision) for file in ("config.json", "adapter_config.json"))
    reason = "HF_HUB_OFFLINE forbids to ask the hub" if constants.HF_HUB_OFFLINE else f"{host} cannot be reached"
    if not is_known:
        raise UserError(
            f"model {name}: cannot be loaded ({reason}, and its cache here does not hold it); "
            "give a local folder, or go online"
        )
    if not constants.HF_HUB_OFFLINE:
        warnings.warn(f"{reason}; {name} is read from the cache", Notice, stacklevel=1)


def is_local_only(name: str, revision: str | None = None) -> bool:
    """Return whether a hub model can only be read from the cache, because the hub cannot be reached.

    Raises:
        UserError: The hub cannot be reached, and the model is not in the cache.
    """
    check_reachable(name, revision)
    return not _can_ask(name)


def _can_ask(name: str) -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, name)


@cache
def _answers(endpoint: str, name: str) -> bool:
    """Return whether the hub answers; it is asked once for each model of a command."""
    warnings.warn(f"asking {host_of(endpoint)} for {name}", Notice, stacklevel=1)
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT):
            return True
    except (urllib.error.HTTPError, http.client.HTTPException, ValueError):
        return True  # an answer, whatever it says; or an address that the hub's library will complain about
    except OSError as error:  # a certificate that Python does not trust may be one that the hub's library does
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
