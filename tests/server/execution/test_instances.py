"""How many runs at a time, of how many threads."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from headrace.errors import FailedPreconditionError
from server.execution.instances import count_of, instances_of


def asked(text: str, cores: int) -> tuple[int, int]:
    return tuple(instances_of(text_format.Parse(text, model_config_pb2.ModelConfig()), cores))


THREADS = 'parameters { key: "intra_op_thread_count" value { string_value: "%s" } }'


@pytest.mark.parametrize(
    ("text", "cores", "wanted"),
    [
        ("", 1, (1, 1)),
        ("", 4, (4, 1)),
        ("instance_group { count: 2 }", 4, (2, 1)),
        ("instance_group { }", 4, (1, 1)),
        ("instance_group { count: 2 } instance_group { count: 1 kind: KIND_CPU }", 4, (3, 1)),
        ("instance_group { count: 9 }", 2, (2, 1)),
        (THREADS % 2, 4, (2, 2)),
        (THREADS % 3, 4, (1, 3)),
        (THREADS % 64, 4, (1, 4)),
        (THREADS % 0, 4, (4, 1)),
        ("instance_group { count: 4 } " + THREADS % 2, 4, (2, 2)),
        # Whoever waits for a GPU needs no core.
        ("instance_group { kind: KIND_GPU gpus: [0, 1] count: 2 }", 1, (4, 1)),
        ("instance_group { kind: KIND_GPU }", 1, (1, 1)),
    ],
)
def test_its_threads_are_never_more_than_the_cores(
    text: str, cores: int, wanted: tuple[int, int]
) -> None:
    assert asked(text, cores) == wanted


def test_how_many_are_asked_for() -> None:
    groups = "instance_group { count: 2 } instance_group { }"
    counts = [
        count_of(text_format.Parse(text, model_config_pb2.ModelConfig())) for text in ("", groups)
    ]
    assert counts == [1, 3]


@pytest.mark.parametrize("value", ["", "two", "-1", "99999", "²"])
def test_what_is_no_number(value: str) -> None:
    with pytest.raises(FailedPreconditionError, match="intra_op_thread_count"):
        asked(THREADS % value, 4)
