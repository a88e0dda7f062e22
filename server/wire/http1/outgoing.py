"""A streamed response on its way: as fast as the client reads, and no further."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

_LOG = logging.getLogger(__name__)


class Outgoing:
    """The body of one response. `writable` is clear while the client does not read."""

    def __init__(
        self, transport: asyncio.WriteTransport, writable: asyncio.Event, *, chunked: bool
    ) -> None:
        self._transport = transport
        self._writable = writable
        self._chunked = chunked

    async def send(self, body: AsyncIterator[bytes], *, head_only: bool) -> bool:
        """Send all of it and close it, whatever happens; False when the body failed."""
        try:
            if head_only:
                return True
            await self._writable.wait()
            async for piece in body:
                if piece:  # an empty chunk would be the last
                    self._write(piece)
                    await self._writable.wait()
            if self._chunked:
                self._transport.write(b"0\r\n\r\n")
        except Exception:  # noqa: BLE001 - a handler's fault: it has begun to answer and cannot any more
            _LOG.exception("a streamed answer failed")
            return False
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()
        return True

    def _write(self, piece: bytes) -> None:
        if self._chunked:
            self._transport.writelines([b"%x\r\n" % len(piece), piece, b"\r\n"])
        else:
            self._transport.write(piece)
