"""Prediction ids: 16 bytes, UUIDv7 layout (CONTRACTS §4).

The layout, most significant bit first: 48 bits of Unix milliseconds (of the *event* time, so that
the id prunes log partitions), 4 bits version (7), 12 bits of counter, 2 bits variant (binary 10),
14 bits of worker number, 16 bits of counter, 32 bits of per-start randomness.
"""

from __future__ import annotations

import uuid

WORKER_MAX = (1 << 14) - 1
_COUNTER_MASK = (1 << 28) - 1
_MILLISECONDS_MASK = (1 << 48) - 1


class PredictionIds:
    """Makes ids that are unique across workers and restarts. Time and randomness are passed in."""

    def __init__(self, worker: int, start_random: int) -> None:
        if not 0 <= worker <= WORKER_MAX:
            raise ValueError(f"worker number must be in [0, {WORKER_MAX}], got {worker}")
        self._tail = (0b10 << 62) | (worker << 48) | (start_random & 0xFFFF_FFFF)
        self._counter = 0

    def take(self, event_time_us: int) -> bytes:
        """Return the next id for a prediction made at `event_time_us` (UTC microseconds)."""
        counter = self._counter = (self._counter + 1) & _COUNTER_MASK
        head = ((event_time_us // 1000) & _MILLISECONDS_MASK) << 16 | 0x7000 | counter >> 16
        return (head << 64 | self._tail | (counter & 0xFFFF) << 32).to_bytes(16, "big")


def id_text(prediction_id: bytes) -> str:
    """Return the canonical UUID text of a 16-byte id."""
    return str(uuid.UUID(bytes=prediction_id))


def id_bytes(text: str) -> bytes:
    """Return the 16 bytes of a UUID text. Raises ValueError when it is none."""
    return uuid.UUID(text).bytes


def id_time_us(prediction_id: bytes) -> int:
    """Return the event time in the id, UTC microseconds, cut to the millisecond."""
    return int.from_bytes(prediction_id[:6], "big") * 1000
