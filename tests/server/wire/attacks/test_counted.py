"""What attackers do is seen by operators: at `/metrics` of a real worker."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from server.wire.http2.frames import ErrorCode
from tests.server.serving import start_worker
from tests.support.attacker import Attacker, Goaway
from tests.support.frame_factory import FrameFactory

# The reason, and what it is for.
_FLOODS: list[tuple[str, Callable[[FrameFactory], bytes]]] = [
    ("too_many_pings", lambda factory: factory.ping() * 10_000),
    ("ping_flood", lambda factory: factory.ping(ack=True) * 10_000),
    ("settings_flood", lambda factory: factory.settings() * 5_000),
]


def _counted(address: str) -> dict[str, float]:
    """The abuse counters of a worker by their reason."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(
        r'^headrace_http2_abuse_total\{.*reason="(\w+)".*\} (\S+)$', text, re.MULTILINE
    )
    return {reason: float(value) for reason, value in found}


@pytest.mark.wire("B2-02")
@pytest.mark.wire("B2-05")
def test_b2_02_b2_05_floods_show_up_in_a_workers_metrics(tmp_path: Path) -> None:
    with start_worker(tmp_path) as process:
        ready = process.event("ready")
        assert _counted(ready["metrics"]) == {}
        expected: dict[str, float] = {}
        for count in (1, 2):
            for reason, frames in _FLOODS:
                with Attacker(int(ready["grpc"].rsplit(":", 1)[1])) as attacker:
                    attacker.greet()
                    attacker.send(frames(attacker.factory))
                    assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, reason)
                expected[reason] = count
                assert _counted(ready["metrics"]) == expected
        assert process.end() == 0
