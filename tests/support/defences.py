"""Defences that no limit loosens, taken out: so that a test sees what they are for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

from server.wire.http2 import control, headers, hpack
from server.wire.http2.headers import Head, Node
from server.wire.http2.hpack import Decoder
from server.wire.http2.stream import Stream
from server.wire.http2.windows import ReceiveWindow


def _skip_the_rest(
    self: Decoder, block: bytes, at: int, node: Node, values: list[bytes], size: int
) -> Head:
    """Refuse a header list at the field that is too much, as if there were no table to follow."""
    return self._heads.too_large(node, values, "too large")


def _receive_anything(self: ReceiveWindow, count: int) -> None:
    self.left -= count


# name → what stands where the defence was
_DEFENCES: dict[str, list[tuple[Any, str, Any]]] = {
    "header_validity": [
        (headers, "problem_of", lambda keys: None),
        (hpack, "trailers_problem", lambda fields: None),
    ],
    "content_length": [(Stream, "received", lambda self, count, ended: True)],
    "decoding_of_refused_blocks": [(Decoder, "_refuse", _skip_the_rest)],
    "increments": [(control, "opened", lambda window, increment: window + increment)],
    "receive_windows": [(ReceiveWindow, "receive", _receive_anything)],
}


def without(names: Iterable[str]) -> contextlib.ExitStack:
    """Take these defences out until the stack is closed."""
    stack = contextlib.ExitStack()
    for name in names:
        for owner, attribute, stopgap in _DEFENCES[name]:
            stack.enter_context(patch.object(owner, attribute, stopgap))
    return stack
