"""Models of TensorFlow Serving, behind a stand-in that is as strict as its documentation."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import (
    DeadlineExceededError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from tests.server.backends.remote.tensorflow_serving import (
    RefusedError,
    Signature,
    TensorflowServing,
)
from tests.server.backends.remote.test_remote import parameter, put_certificates
from tests.server.backends.serving import Served, outputs
from tests.server.processes.running import eventually
from tests.support.tls import Certificates

X = np.array([[1.5, np.nan], [np.inf, -np.inf], [16777216.0, 0.1]], np.float32)
TEXTS = np.array([b"so", b"\x00\xff\x80", "gehört".encode()], object)


def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"] * 2}


def mixed(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "twice": inputs["x"] * 2,
        "next": inputs["n"] + 1,
        "not": ~inputs["b"],
        "same_bytes": inputs["s"],
        "hex": np.array([each.hex().encode() for each in inputs["s"]], object),
        "small": inputs["u"],
    }


MIXED = Signature(
    {
        "x": ("DT_FLOAT", [-1, 2]),
        "n": ("DT_INT64", [-1]),
        "b": ("DT_BOOL", [-1, 1]),
        "s": ("DT_STRING", [-1]),
        "u": ("DT_UINT8", [-1, 1, 2]),
    },
    {
        "twice": ("DT_FLOAT", [-1, 2]),
        "next": ("DT_INT64", [-1]),
        "not": ("DT_BOOL", [-1, 1]),
        "same_bytes": ("DT_STRING", [-1]),
        "hex": ("DT_STRING", [-1]),
        "small": ("DT_UINT8", [-1, 1, 2]),
    },
    mixed,
)
DOUBLE = Signature({"x": ("DT_FLOAT", [-1, 2])}, {"y": ("DT_FLOAT", [-1, 2])}, doubled)
MODELS = {
    "double": {
        "serving_default": DOUBLE,
        "wide": Signature(
            {"x": ("DT_DOUBLE", [-1, 1])}, {"y": ("DT_DOUBLE", [-1, 1])}, doubled
        ),
    },
    "mixed": {"serving_default": MIXED},
    "scalar": {
        "serving_default": Signature({"x": ("DT_DOUBLE", [])}, {"y": ("DT_DOUBLE", [])}, doubled)
    },
    "vague": {
        "serving_default": Signature({"x": ("DT_FLOAT", None)}, {"y": ("DT_FLOAT", None)}, doubled)
    },
    "half": {
        "serving_default": Signature(
            {"x": ("DT_HALF", [-1])}, {"y": ("DT_FLOAT", [-1])}, doubled
        )
    },
}  # fmt: skip


def put(root: Path, name: str, address: str, model: str = "double", more: str = "") -> None:
    (root / name / "1").mkdir(parents=True)
    text = 'backend: "remote"\n' + parameter("URL", address) + parameter("MODEL", model)
    text += parameter("PROTOCOL", "tensorflow_serving") + more
    (root / name / "config.pbtxt").write_text(text)


class Pair:
    """Our server, and the other one, in one loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.served = Served(root, [])
        self.other = TensorflowServing(MODELS)
        self.address = self.served.run(self.other.start())

    def load(self, name: str, model: str = "double", more: str = "") -> None:
        put(self.root, name, self.address, model, more)
        self.served.run(self.served.repository.load(name))

    def ask(self, name: str = "double", **more: Any) -> Any:
        row = {"x": np.array([[1.0, 2.0]], np.float32)}
        return outputs(self.served.run(self.served.answer(name, row, **more)))["y"].tolist()


@contextmanager
def pair(root: Path) -> Iterator[Pair]:
    found = Pair(root)
    with found.served:
        try:
            yield found
        finally:
            found.served.run(found.other.stop())


@pytest.mark.parametrize("form", ["rows", "columns"])
@pytest.mark.parametrize("batch", [0, 8])
def test_tensors_of_all_kinds_come_back_as_they_went(tmp_path: Path, form: str, batch: int) -> None:
    inputs = {
        "x": X,
        "n": np.array([2**62, -(2**62), 0], np.int64),
        "b": np.array([[True], [False], [True]]),
        "s": TEXTS,
        "u": np.arange(6, dtype=np.uint8).reshape(3, 1, 2),
    }
    with pair(tmp_path) as both:
        more = parameter("FORMAT", form) + f"max_batch_size: {batch}\n"
        both.load("mixed", "mixed", more)
        model = both.served.repository.get("mixed")
        shapes = {name: spec.shape for name, spec in model.inputs.items()}
        assert shapes["u"] == (-1, 1, 2)
        inputs = {name: array.reshape((3, *shapes[name][1:])) for name, array in inputs.items()}
        answer = both.served.infer("mixed", **inputs)
    assert answer["twice"].tobytes() == (X * 2).tobytes()
    assert answer["next"].tolist() == [2**62 + 1, 1 - 2**62, 1]
    assert answer["not"].tolist() == [[False], [True], [False]]
    assert answer["same_bytes"].tolist() == TEXTS.tolist()
    assert answer["hex"].tolist() == [each.hex().encode() for each in TEXTS]
    assert answer["small"].tolist() == inputs["u"].tolist()
    (body,) = both.other.bodies
    assert ("instances" in body) == (form == "rows")


def test_versions_labels_and_signatures(tmp_path: Path) -> None:
    wide = parameter("SIGNATURE_NAME", "wide")
    with pair(tmp_path) as both:
        both.load("seven", more=parameter("VERSION", 7))
        both.load("stable", more=parameter("LABEL", "stable") + parameter("FORMAT", "rows"))
        both.load("wide", more=wide)
        assert both.ask("seven") == [[2, 4]]
        assert both.ask("stable") == [[2, 4]]
        assert both.served.infer("wide", x=np.array([[1e-300]]))["y"].tolist() == [[2e-300]]
        asked = {path for path in both.other.paths if path.startswith("POST")}
        assert asked == {
            "POST /v1/models/double/versions/7:predict",
            "POST /v1/models/double/labels/stable:predict",
            "POST /v1/models/double:predict",
        }
        assert "GET /v1/models/double/versions/7/metadata" in both.other.paths


def test_a_scalar_and_a_rank_that_only_the_configuration_tells(tmp_path: Path) -> None:
    dims = 'put { name: "NAME" data_type: TYPE_FP32 dims: [ -1, 3 ] }\n'
    named = "in" + dims.replace("NAME", "x") + "out" + dims.replace("NAME", "y")
    with pair(tmp_path) as both:
        both.load("scalar", "scalar")
        both.load("vague", "vague", named)
        assert both.served.infer("scalar", x=np.float64(0.5))["y"].tolist() == 1.0
        answer = both.served.infer("vague", x=np.ones((2, 3), np.float32))
        assert answer["y"].tolist() == [[2, 2, 2]] * 2


def test_statuses_become_our_errors_with_the_words_that_are_for_callers(tmp_path: Path) -> None:
    cases = [
        (400, InvalidArgumentError, "so I was told"),
        (429, ResourceExhaustedError, "so I was told"),
        (501, UnimplementedError, "so I was told"),
        (404, UnavailableError, "does not answer"),
        (504, DeadlineExceededError, "the time ran out"),
        (500, InternalError, "the remote server failed"),
        (403, InternalError, "the remote server failed"),
    ]
    with pair(tmp_path) as both:
        both.load("double")
        for status, kind, words in cases:
            both.other.errors = [RefusedError(status, "so I was told")]
            with pytest.raises(kind, match=words):
                both.ask()
            assert both.other.errors == []
        both.other.errors = [RefusedError(503, "")] * 2
        assert both.ask() == [[2, 4]]
        both.other.errors = [RefusedError(503, "")] * 3
        with pytest.raises(UnavailableError):
            both.ask()
        with pytest.raises(UnimplementedError, match="keeps no sequences"):
            both.ask(parameters={"sequence_id": 3})
        empty = {"x": np.ones((0, 2), np.float32)}
        with pytest.raises(InvalidArgumentError, match="no elements"):
            both.served.run(both.served.answer("double", empty))


def test_the_breaker_opens_and_a_probe_closes_it(tmp_path: Path) -> None:
    more = parameter("FAILURES_MAX", 2) + parameter("RETRIES_MAX", 0)
    with pair(tmp_path) as both:
        both.load("double", more=more + parameter("OPEN_SECONDS", 0.3))
        both.other.errors = [RefusedError(503, "")] * 2
        for _ in range(2):
            with pytest.raises(UnavailableError, match="does not answer"):
                both.ask()
        with pytest.raises(UnavailableError, match="left alone"):
            both.ask()
        model = both.served.repository.get("double")
        eventually(lambda: model.ready, "the breaker lets a probe through")
        assert both.ask() == [[2, 4]]


def test_connections_are_kept_bounded_and_replaced(tmp_path: Path) -> None:
    row = {"x": np.array([[1.0, 2.0]], np.float32)}
    with pair(tmp_path) as both:
        both.load("double", more=parameter("POOL_SIZE", 2))
        both.other.connections.clear()
        for _ in range(3):
            assert both.ask() == [[2, 4]]
        assert len(both.other.connections) == 1
        answers = both.served.infers("double", [row] * 40)
        assert all(each["y"].tolist() == [[2, 4]] for each in answers)
        assert len(both.other.connections) == 2

        async def close() -> None:
            for transport in both.other.connections:
                transport.close()

        both.served.run(close())
        assert both.ask() == [[2, 4]]  # at worst by a second attempt


def test_a_caller_who_leaves_or_is_late_ends_the_remote_call(tmp_path: Path) -> None:
    with pair(tmp_path) as both:
        both.load("double", more=parameter("FAILURES_MAX", 1) + parameter("POOL_SIZE", 1))
        both.other.hang = True
        with pytest.raises(DeadlineExceededError):
            both.ask(timeout_s=0.2)
        both.served.run(asyncio.wait_for(both.other.left.wait(), 10))
        both.other.left.clear()
        seen = len(both.other.paths)
        row = {"x": np.ones((1, 2), np.float32)}
        running = both.served.start(both.served.answer("double", row))
        eventually(lambda: len(both.other.paths) > seen, "the request has arrived")
        running.cancel()
        both.served.run(asyncio.wait_for(both.other.left.wait(), 10))
        both.other.hang = False
        assert both.ask() == [[2, 4]]  # neither was the remote server's fault


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'{"outputs": [[1, 2',
        b'{"predictions": [[1, 2]]}',
        b'{"outputs": [[1, 2], [3]]}',
        b'{"outputs": [[1, 2, 3]]}',
        b'{"outputs": [1, 2]}',
        b'{"outputs": [["1", 2]]}',
        b'{"outputs": [[null, 2]]}',
        b'{"outputs": ' + b"[" * 100_000,
    ],
)
def test_a_reply_that_does_not_fit_harms_its_own_request_only(tmp_path: Path, raw: bytes) -> None:
    with pair(tmp_path) as both:
        both.load("double")
        both.other.raw = raw
        with pytest.raises(InternalError, match="does not fit its signature"):
            both.ask()
        both.other.raw = None
        assert both.ask() == [[2, 4]]


def test_what_is_no_http_is_unavailable(tmp_path: Path) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    async def started() -> Any:
        return await asyncio.start_server(speak, "127.0.0.1", 0)

    with Served(tmp_path, []) as served:
        server = served.run(started())
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        cases = {
            "other": b"220 mail.example ESMTP\r\n",
            "cut": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{",
            "long": b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 70_000 + b"\r\n\r\n",
            "silent": b"",
        }
        for name, words in cases.items():
            said = words
            put(tmp_path, name, address)
            with pytest.raises(HeadraceError, match="does not answer"):
                served.run(served.repository.load(name))
        server.close()


def test_configurations_that_are_wrong(tmp_path: Path) -> None:
    rows = parameter("FORMAT", "rows")
    cases = {
        "form": ("double", parameter("FORMAT", "x"), "expected rows or columns"),
        "speaks": ("double", parameter("SIGNATURE", "x"), "a parameter is unknown"),
        "both": ("double", parameter("VERSION", 7) + parameter("LABEL", "stable"), "VERSION"),
        "signature": ("double", parameter("SIGNATURE_NAME", "no"), "serving_default, wide"),
        "version": ("double", parameter("VERSION", 8), "does not answer"),
        "missing": ("nothing", "", "does not answer"),
        "vague": ("vague", "", "configure its dims"),
        "half": ("half", "", "got DT_HALF"),
        "scalar": ("scalar", "max_batch_size: 4\n", "of no kind that is known"),
        "row": ("scalar", rows, "expected columns, got rows"),
        "differs": (
            "double",
            'input { name: "x" data_type: TYPE_FP64 dims: [ -1, 2 ] }\n',
            "expected x TYPE_FP32 [-1,2], got x TYPE_FP64 [-1,2]",
        ),
    }  # fmt: skip
    with pair(tmp_path) as both:
        for name, (model, more, reason) in cases.items():
            put(tmp_path, name, both.address, model, more)
            with pytest.raises(HeadraceError) as caught:
                both.served.run(both.served.repository.load(name))
            assert reason in str(caught.value), (name, str(caught.value))
        put(tmp_path, "port", "127.0.0.1:65536")
        with pytest.raises(HeadraceError, match="URL is no address"):
            both.served.run(both.served.repository.load("port"))
        both.other.state = "LOADING"
        put(tmp_path, "loading", both.address)
        with pytest.raises(HeadraceError, match="does not answer"):
            both.served.run(both.served.repository.load("loading"))


def test_its_parameters_are_none_of_the_other_protocol(tmp_path: Path) -> None:
    put(tmp_path, "other", "127.0.0.1:1", more=parameter("LABEL", "x"))
    path = tmp_path / "other" / "config.pbtxt"
    path.write_text(path.read_text().replace("tensorflow_serving", "oip"))
    put(tmp_path, "third", "127.0.0.1:1")
    path = tmp_path / "third" / "config.pbtxt"
    path.write_text(path.read_text().replace("tensorflow_serving", "grpc"))
    with Served(tmp_path) as served:
        assert "a parameter is unknown" in served.reason("other")
        assert "expected oip or tensorflow_serving, got grpc" in served.reason("third")


@pytest.mark.slow
def test_certificates_of_both_sides(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    made = Certificates(tmp_path / "made")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=made.cert("clients-ca"))
    context.load_cert_chain(made.cert("server"), made.key("server"))
    context.verify_mode = ssl.CERT_REQUIRED
    root = tmp_path / "models"
    root.mkdir()
    with Served(root, []) as served:
        other = TensorflowServing(MODELS)
        address = served.run(other.start(context))
        for name, client in (("known", "client"), ("stranger", "stranger"), ("nobody", None)):
            put(root, name, address, more=put_certificates(root / name, made, client))
        served.run(served.repository.load("known"))
        assert served.infer("known", x=np.ones((1, 2), np.float32))["y"].tolist() == [[2, 2]]
        for name in ("stranger", "nobody"):
            with pytest.raises(HeadraceError, match="does not answer"):
                served.run(served.repository.load(name))
        served.run(other.stop())


def test_large_tensors_are_written_and_read_beside_the_loop(tmp_path: Path) -> None:
    many = np.random.default_rng(0).normal(size=(150_000, 2)).astype(np.float32)
    with pair(tmp_path) as both:
        both.load("double")
        answer = both.served.infer("double", x=many)["y"]
    assert answer.tobytes() == (many * 2).tobytes()
