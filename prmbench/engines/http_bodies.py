"""Bodies of replies are read up to a bound, unpacked: no server fills this machine's memory.

Needs the extra `openai`, whose SDK sends requests by httpx2.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import httpx2

from prmbench.engines.http_replies import MOST_BYTES, TOO_LARGE

ENCODING = "gzip"
"""What requests say that they read: the one way to pack a body that is unpacked here."""


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of a body, unpacked, until there are too many."""

    def __init__(self, stream: httpx2.AsyncByteStream, packed: bool) -> None:
        self._stream, self._packed = stream, packed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # takes gzip and zlib
        size = 0
        async for chunk in self._stream:
            try:
                piece = unpacker.decompress(chunk, MOST_BYTES - size + 1) if self._packed else chunk
            except zlib.error as error:
                raise httpx2.DecodingError(str(error)) from error
            size += len(piece)
            if size > MOST_BYTES:
                raise httpx2.ReadError(TOO_LARGE)
            yield piece

    async def aclose(self) -> None:
        """Close the connection's stream."""
        await self._stream.aclose()


async def bound(response: httpx2.Response) -> None:
    """What an HTTP client calls before it reads a body: it then reads no more than MOST_BYTES of it."""
    packed = response.headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip", "deflate")
    response.headers.pop("content-encoding", None)  # else the client unpacks it, too, and without a bound
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream, packed)
