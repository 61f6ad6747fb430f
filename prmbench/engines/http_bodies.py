"""Limits the decompressed size of HTTP response bodies, so that no server can fill this machine's memory.

Needs the extra `openai`, whose SDK sends requests by httpx2.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import httpx2

from prmbench.engines.http_replies import MAX_BODY_BYTES, TOO_LARGE_MESSAGE

ACCEPT_ENCODING = "gzip"
"""Value of the Accept-Encoding header: the compression that is decoded here."""


class _LimitedStream(httpx2.AsyncByteStream):
    """The decompressed bytes of a body; raises ReadError beyond MAX_BODY_BYTES."""

    def __init__(self, stream: httpx2.AsyncByteStream, is_compressed: bool) -> None:
        self._stream, self._is_compressed = stream, is_compressed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # accepts gzip and zlib
        size = 0
        async for chunk in self._stream:
            try:
                piece = unpacker.decompress(chunk, MAX_BODY_BYTES - size + 1) if self._is_compressed else chunk
            except zlib.error as error:
                raise httpx2.DecodingError(str(error)) from error
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise httpx2.ReadError(TOO_LARGE_MESSAGE)
            yield piece

    async def aclose(self) -> None:
        """Close the connection's stream."""
        await self._stream.aclose()


async def limit_body(response: httpx2.Response) -> None:
    """Limit a response's body to MAX_BODY_BYTES; an HTTP client calls this before it reads the body."""
    is_compressed = response.headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip", "deflate")
    response.headers.pop("content-encoding", None)  # else the client decompresses it as well, without a limit
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _LimitedStream(response.stream, is_compressed)
