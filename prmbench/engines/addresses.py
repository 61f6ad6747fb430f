"""Checks of server addresses, of the API key, and of redirects."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urljoin

from prmbench.core.records import UserError
from prmbench.core.redaction import API_KEY, has_secrets, host_of, origin, written_origin


def server_host(url: str, option: str = "--base-url", example: str = "http://127.0.0.1:8000/v1") -> str:
    """Return the host of a server's address.

    Raises:
        UserError: It is no address, or holds a password. The message quotes nothing of the address, since any part of
            it may be a secret.
    """
    if has_secrets(url):
        key = f", and a key in {API_KEY}" if option == "--base-url" else ""
        raise UserError(f"{option}: holds a user, a password or a query; give the plain address{key}")
    if not url.lower().startswith(("http://", "https://")) or not url.isprintable() or " " in url or not _has_host(url):
        raise UserError(f"{option}: not an address like {example}")
    return host_of(url)


def _has_host(url: str) -> bool:
    """Whether a URL has a host that can be looked up, and a valid port."""
    try:
        host_of(url).encode("idna")
    except UnicodeError:
        return False
    return origin(url) is not None


def is_local(host: str) -> bool:
    """Return whether a host is this machine or on a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"


def api_key(host: str) -> str:
    """Return the API key from the environment; a local server needs none.

    Raises:
        UserError: The key is missing or malformed.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key and not is_local(host):
        raise UserError(f"{API_KEY} is not set, and {host} is no local server; set it in the environment")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{API_KEY}: holds characters that no key has; set it again")
    return key or "no-key-needed"


def check_redirect(option: str, url: str, location: str) -> None:
    """Refuse a redirect to another scheme, host or port: requests carry a key and a user's data.

    Args:
        option: The option that named the server, for the message.
        url: The requested URL, or any other URL of the server that the user named.
        location: Where the redirect leads, absolute or not.

    Raises:
        UserError: The redirect leaves the server that the user named.
    """
    try:
        destination = urljoin(url, location)
    except ValueError:
        destination = ""
    if origin(destination) is None or origin(destination) != origin(url):
        raise UserError(
            f"{option} {written_origin(url)}: redirects to {written_origin(destination)}, which is not followed; "
            f"give {option} the address of the server that answers, if you trust it"
        )
