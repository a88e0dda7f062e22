"""grpc's interop cases with Node's @grpc/grpc-js: interop_client.js has their steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from server.wire.http2.hpack import Decoder
from tests.support.interop_node import NodeClient
from tests.support.interop_service import TestService
from tests.support.interop_tap import Tap


@pytest.fixture(scope="module")
def client() -> Iterator[NodeClient]:
    client = NodeClient()
    yield client
    client.close()


@pytest.mark.parametrize(
    "case",
    [
        "empty_unary",
        "large_unary",
        "client_streaming",
        "server_streaming",
        "ping_pong",
        "empty_stream",
        "custom_metadata",
        "status_code_and_message",
        "special_status_message",
        "unimplemented_method",
        "unimplemented_service",
        "concurrent_large_unary",
    ],
)
async def test_grpc_js(client: NodeClient, port: int, service: TestService, case: str) -> None:
    await asyncio.to_thread(client.run, case, port)
    assert service.cancelled == 0


@pytest.mark.parametrize(
    ("case", "requests", "responses"),
    [
        ("client_compressed_unary", [[False], [True], [False]], [[], [False], [False]]),
        ("server_compressed_unary", [[False], [False]], [[True], [False]]),
        ("client_compressed_streaming", [[False], [True, False]], [[], [False]]),
        ("server_compressed_streaming", [[False]], [[True, False]]),
    ],
)
async def test_grpc_js_compressed(
    client: NodeClient,
    tapped: Tap,
    case: str,
    requests: list[list[bool]],
    responses: list[list[bool]],
) -> None:
    await asyncio.to_thread(client.run, case, tapped.port)
    assert tapped.requests == requests
    assert tapped.responses == responses


@pytest.mark.parametrize(
    "case", ["cancel_after_begin", "cancel_after_first_response", "timeout_on_sleeping_server"]
)
async def test_grpc_js_cancels(
    client: NodeClient, port: int, service: TestService, case: str
) -> None:
    await asyncio.to_thread(client.run, case, port)
    await service.until(live=0)
    # Node half-closes before it resets: a handler whose requests end there may end by itself. And a
    # call that is cancelled at once need not reach the server.
    if case == "timeout_on_sleeping_server":
        assert service.entered >= 1


async def test_grpc_js_indexes_nothing_once_it_is_asked(
    client: NodeClient, port: int, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata that is new in every call is nothing to index."""
    sizes: list[int] = []
    resize = Decoder._resize

    def spy(self: Decoder, block: bytes) -> int:
        at = resize(self, block)
        if at:
            sizes.append(self._bytes_max)
        return at

    monkeypatch.setattr(Decoder, "_resize", spy)
    await asyncio.to_thread(client.run, "fresh_metadata", port)
    assert sizes == ([0] if transport == "headrace" else [])
