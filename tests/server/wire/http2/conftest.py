"""Every test of the connection that takes `chop` or `client` runs three times: whole reads, single
bytes, and pieces of random sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from tests.support.core_client import Chop, CoreClient


def _random_pieces(seed: str) -> Chop:
    generator = random.Random(seed)

    def chop(data: bytes) -> Iterable[bytes]:
        at = 0
        while at < len(data):
            size = generator.choice([1, 2, 8, 9, 10, 30, 1_000, 20_000])
            yield data[at : at + size]
            at += size

    return chop


def _bytewise(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


@pytest.fixture(params=["whole", "bytewise", "random"])
def chop(request: pytest.FixtureRequest) -> Chop:
    """How what a client sends is cut into reads."""
    if request.param == "whole":
        return lambda data: [data]
    return _bytewise if request.param == "bytewise" else _random_pieces(request.node.name)


@pytest.fixture
def client(chop: Chop) -> Callable[..., CoreClient]:
    """Makes clients whose reads are cut like this."""

    def make(*arguments: object, **options: object) -> CoreClient:
        return CoreClient(*arguments, chop=chop, **options)  # type: ignore[arg-type]

    return make
