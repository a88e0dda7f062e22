"""A repository in S3, against moto's server. Where s3fs or moto is not installed (`make test` does,
from requirements/models.lock), the same code is tested over fsspec's memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.models.sources import Mirror
from server.models.urls import check_url
from tests.server.onnx_models import add_model, mlp_model

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    import fsspec

    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("models")
    yield files
    server.stop()


def test_a_bucket_is_followed(bucket: Any, tmp_path: Path) -> None:
    check_url("s3://models/prod")
    bucket.pipe_file("models/prod/add/1/model.onnx", add_model())
    bucket.pipe_file("models/prod/add/config.pbtxt", b"max_batch_size: 8")
    mirror = Mirror("s3://models/prod", tmp_path)
    mirror.sync(None)
    version = (mirror.root / "add" / "1").resolve()
    assert (version / "model.onnx").read_bytes() == add_model()
    bucket.pipe_file("models/prod/add/config.pbtxt", b"max_batch_size: 9")  # as long as before
    bucket.pipe_file("models/prod/mlp/1/model.onnx", mlp_model())
    mirror.sync(None)
    assert (mirror.root / "add" / "config.pbtxt").read_bytes() == b"max_batch_size: 9"
    assert (mirror.root / "add" / "1").resolve() == version  # it did not move
    assert (mirror.root / "mlp" / "1" / "model.onnx").read_bytes() == mlp_model()
    bucket.rm("models/prod/mlp", recursive=True)
    mirror.sync(None)
    assert not (mirror.root / "mlp").exists()
