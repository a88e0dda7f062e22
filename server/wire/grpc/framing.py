"""gRPC's length-prefixed messages: one flag byte, four bytes of length, then the message.

Messages and DATA frames have nothing to do with each other: a prefix or a message may be split
anywhere, and one frame may hold many messages.
"""

from __future__ import annotations

from headrace.errors import InternalError, ResourceExhaustedError

PREFIX_BYTES = 5
# Pieces below this are gathered in one buffer: a message that dribbles in as two-byte DATA frames
# would else cost twenty times its size (Data Dribble, CVE-2019-9511).
_SMALL_PIECE_BYTES = 1024


def frame(message: bytes, compressed: bool = False) -> bytes:
    """Return `message` with its prefix. Raises OverflowError from 4 GiB on."""
    return (b"\1" if compressed else b"\0") + len(message).to_bytes(4, "big") + message


def whole(body: bytes) -> bytes | None:
    """Return the message if `body` is exactly one that is not compressed, else None.

    For a body that came in one DATA frame, whose size the frame limit has checked.
    """
    length = len(body) - PREFIX_BYTES
    # The flag is the top byte of a five-byte length: one comparison checks both.
    if length >= 0 and body.startswith(length.to_bytes(PREFIX_BYTES, "big")):
        return body[PREFIX_BYTES:]
    return None


class MessageReader:
    """Takes the messages out of one stream's DATA. After an error it is of no more use."""

    __slots__ = ("_compressed", "_held", "_max", "_missing", "_pieces", "_prefix")

    def __init__(self, message_bytes_max: int) -> None:
        self._max = message_bytes_max
        self._prefix = b""  # what has come of a prefix that is not whole
        self._compressed = False
        self._missing = 0  # bytes of the message under way still to come; 0: none is under way
        self._pieces: list[bytes | bytearray] = []
        self._held = 0

    @property
    def bytes_held(self) -> int:
        """How much of an unfinished message, its prefix included, waits here."""
        return self._held

    def feed(self, data: bytes) -> list[tuple[bool, bytes]]:
        """Take the next bytes; return (compressed, message) of every message that they finish.

        Raises ResourceExhaustedError as soon as a prefix declares more than the limit, before
        anything of that message is kept, and InternalError for a flag other than 0 and 1.
        """
        messages: list[tuple[bool, bytes]] = []
        position, end = 0, len(data)
        while position < end:
            if not self._missing:
                taken = PREFIX_BYTES - len(self._prefix)
                prefix = self._prefix + data[position : position + taken]
                position += taken
                if len(prefix) < PREFIX_BYTES:
                    self._prefix, self._held = prefix, len(prefix)
                    break
                self._prefix, self._held = b"", PREFIX_BYTES
                self._begin(prefix)
            missing = self._missing
            if missing > end - position:
                self._keep(data[position:])
                break
            message = data[position : position + missing]
            position += missing
            if self._pieces:
                message = b"".join((*self._pieces, message))
                self._pieces.clear()
            self._missing = self._held = 0
            messages.append((self._compressed, message))
        return messages

    def finish(self) -> None:
        """Say that the stream has ended. Raises InternalError when a message is cut short."""
        if self._held:
            raise InternalError("the stream ended within a message")

    def _begin(self, prefix: bytes) -> None:
        flag = prefix[0]
        length = int.from_bytes(prefix[1:], "big")
        if flag > 1:
            raise InternalError("a message's flag byte is neither 0 nor 1", got=flag)
        if length > self._max:
            raise ResourceExhaustedError(
                f"Received message larger than max ({length} vs. {self._max})"
            )
        self._compressed = flag == 1
        self._missing = length

    def _keep(self, piece: bytes) -> None:
        size = len(piece)
        self._missing -= size
        self._held += size
        if size >= _SMALL_PIECE_BYTES:
            self._pieces.append(piece)
            return
        if not self._pieces or isinstance(self._pieces[-1], bytes):
            self._pieces.append(bytearray())
        self._pieces[-1] += piece
