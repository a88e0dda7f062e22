"""HTTP/2 frames as a client writes them, illegal ones too.

Built on `hpack` and `struct`, not on the code under test: nothing here checks anything, so that a
test may set any flag, any length and any stream id.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

Pair = tuple[bytes, bytes]
GRPC_FIELDS: list[Pair] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/test.Service/Method"),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
]


class FrameFactory:
    """Frames of one connection: its HPACK encoder has the state that the peer's decoder needs.

    `headers` and `continuation` take fields, or a block that is encoded already. `padding` is the
    number of padding bytes; None leaves the flag off. Stream ids may have their reserved bit set.
    """

    def __init__(self) -> None:
        self.encoder = Encoder()

    def preface(self, settings: Mapping[int, int] | None = None) -> bytes:
        """The preface and the client's first SETTINGS."""
        return PREFACE + self.settings(settings)

    def raw(self, kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
        length = len(payload)
        head = struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream_id)
        return head + payload

    def block(self, fields: Iterable[Pair] = GRPC_FIELDS, *, huffman: bool = True) -> bytes:
        """A header block; the encoder learns from it, so send what this returned."""
        return bytes(self.encoder.encode(list(fields), huffman=huffman))

    def headers(
        self,
        stream_id: int,
        fields: Iterable[Pair] | bytes = GRPC_FIELDS,
        *,
        end_stream: bool = False,
        end_headers: bool = True,
        padding: int | None = None,
        priority: tuple[int, int, bool] | None = None,
    ) -> bytes:
        """`priority` is (the stream depended on, weight 1 to 256, exclusive)."""
        payload = self._block(fields)
        flags = (END_STREAM if end_stream else 0) | (END_HEADERS if end_headers else 0)
        if priority is not None:
            payload = self._dependency(*priority) + payload
            flags |= HAS_PRIORITY
        return self._padded(HEADERS, flags, stream_id, payload, padding)

    def continuation(
        self, stream_id: int, fields: Iterable[Pair] | bytes = b"", *, end_headers: bool = True
    ) -> bytes:
        return self.raw(
            CONTINUATION, END_HEADERS if end_headers else 0, stream_id, self._block(fields)
        )

    def split_headers(
        self,
        stream_id: int,
        fields: Iterable[Pair] | bytes = GRPC_FIELDS,
        *,
        cuts: Iterable[int],
        end_stream: bool = False,
    ) -> bytes:
        """HEADERS and CONTINUATION frames, the block cut at these places."""
        block = self._block(fields)
        places = sorted(min(cut, len(block)) for cut in cuts)
        pieces = [
            block[start:end] for start, end in zip([0, *places], [*places, len(block)], strict=True)
        ]
        last = len(pieces) - 1
        frames = [self.headers(stream_id, pieces[0], end_stream=end_stream, end_headers=last == 0)]
        frames += [
            self.continuation(stream_id, piece, end_headers=at == last)
            for at, piece in enumerate(pieces[1:], 1)
        ]
        return b"".join(frames)

    def data(
        self,
        stream_id: int,
        data: bytes = b"",
        *,
        end_stream: bool = False,
        padding: int | None = None,
    ) -> bytes:
        return self._padded(DATA, END_STREAM if end_stream else 0, stream_id, data, padding)

    def rst_stream(self, stream_id: int, code: int = 8) -> bytes:
        return self.raw(RST_STREAM, 0, stream_id, struct.pack(">I", code))

    def settings(
        self, values: Mapping[int, int] | Iterable[tuple[int, int]] | None = None, *,
        ack: bool = False,
    ) -> bytes:  # fmt: skip
        """`values` by the setting's number; pairs where one comes twice."""
        pairs = values.items() if isinstance(values, Mapping) else values or ()
        payload = b"".join(struct.pack(">HI", key, value) for key, value in pairs)
        return self.raw(SETTINGS, ACK if ack else 0, 0, payload)

    def ping(self, opaque: bytes = b"\1\2\3\4\5\6\7\x08", *, ack: bool = False) -> bytes:
        return self.raw(PING, ACK if ack else 0, 0, opaque)

    def window_update(self, stream_id: int, increment: int) -> bytes:
        return self.raw(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))

    def priority(
        self, stream_id: int, depends_on: int = 0, weight: int = 16, *, exclusive: bool = False
    ) -> bytes:
        return self.raw(PRIORITY, 0, stream_id, self._dependency(depends_on, weight, exclusive))

    def goaway(self, last_stream_id: int = 0, code: int = 0, debug: bytes = b"") -> bytes:
        return self.raw(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + debug)

    def _block(self, fields: Iterable[Pair] | bytes) -> bytes:
        return fields if isinstance(fields, bytes) else self.block(fields)

    @staticmethod
    def _dependency(depends_on: int, weight: int, exclusive: bool) -> bytes:
        return struct.pack(">IB", depends_on | (1 << 31 if exclusive else 0), weight - 1)

    def _padded(
        self, kind: int, flags: int, stream_id: int, payload: bytes, padding: int | None
    ) -> bytes:
        if padding is None:
            return self.raw(kind, flags, stream_id, payload)
        return self.raw(
            kind, flags | PADDED, stream_id, bytes((padding,)) + payload + bytes(padding)
        )


def split_frames(data: bytes) -> list[bytes]:
    """Whole frames, one by one; the last item is what is not whole, if anything."""
    frames = []
    at = 0
    while at < len(data):
        stop = at + 9 + int.from_bytes(data[at : at + 3], "big")
        frames.append(data[at:stop])
        at = stop
    return frames
