"""`model_warmup`: what runs before a model answers, and what makes the load fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from onnx import TensorProto

from headrace.errors import InternalError
from server.execution.session import Session
from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from tests.server.onnx_models import add_model, gather_model, identity_model, put


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


def sample(inputs: str, more: str = "batch_size: 2") -> str:
    return f'max_batch_size: 8 model_warmup {{ name: "first" {more} {inputs} }}'


def entry(name: str, kind: str, dims: int | str, source: str) -> str:
    return f'inputs {{ key: "{name}" value {{ data_type: {kind} dims: [{dims}] {source} }} }}'


class Seen:
    """What sessions were run with."""

    def __init__(self) -> None:
        self.feeds: list[list[np.ndarray[Any, Any]]] = []

    def __enter__(self) -> Seen:
        real = Session.run

        def run(session: Session, feeds: Any) -> Any:
            self.feeds.append([array.copy() for array in feeds])
            return real(session, feeds)

        self._patch = patch.object(Session, "run", run)
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


SECOND = entry("INPUT1", "TYPE_INT32", 4, 'input_data_file: "second"')
ADD = entry("INPUT0", "TYPE_INT32", 4, "random_data: true") + SECOND


async def test_samples_run_before_anybody_asks(tmp_path: Path, executor: RunThreads) -> None:
    folder = put(tmp_path, "add", add_model(), config=sample(ADD, "batch_size: 3 count: 4"))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "second").write_bytes(np.arange(9, dtype=np.int32).tobytes())
    repository = ModelRepository(tmp_path, executor)
    with Seen() as seen:
        await repository.load("add")
    runs = [feeds for feeds in seen.feeds if feeds[0].shape == (3, 4)]
    assert len(runs) == 4
    assert runs[0][1].tolist() == [[0, 1, 2, 3]] * 3
    assert len(np.unique(runs[0][0])) > 1
    assert all((feeds[0] == runs[0][0]).all() for feeds in runs)
    assert repository.get("add").statistics.execution_count == 0


async def test_a_sample_of_no_rows_is_passed_over(tmp_path: Path, executor: RunThreads) -> None:
    put(tmp_path, "add", add_model(), config=sample(ADD, "batch_size: 0"))
    await ModelRepository(tmp_path, executor).load("add")


async def test_text_and_flags(tmp_path: Path, executor: RunThreads) -> None:
    words = b"\x02\0\0\0hi" + b"\x03\0\0\0you"
    config = sample(entry("TEXT", "TYPE_STRING", 2, 'input_data_file: "words"'))
    folder = put(tmp_path, "text", identity_model(), config=config)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "words").write_bytes(words)
    config = sample(entry("TEXT", "TYPE_BOOL", 5, "random_data: true"))
    put(tmp_path, "flags", identity_model(TensorProto.BOOL), config=config)
    config = sample(entry("TEXT", "TYPE_STRING", 2, "random_data: true"))
    put(tmp_path, "empty", identity_model(), config=config)
    repository = ModelRepository(tmp_path, executor)
    with Seen() as seen:
        for name in ("text", "flags", "empty"):
            await repository.load(name)
    batches = [feeds[0] for feeds in seen.feeds if feeds[0].shape[0] == 2]
    assert batches[0].tolist() == [["hi", "you"]] * 2
    assert batches[1].dtype == bool
    assert batches[2].tolist() == [["", ""]] * 2


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (entry("INPUT0", "TYPE_INT32", 4, "zero_data: true"), "missing required input"),
        (entry("INPUT9", "TYPE_INT32", 4, "zero_data: true"), "no input 'INPUT9'"),
        (entry("INPUT0", "TYPE_FP32", 4, "zero_data: true"), "data_type of input 'INPUT0' differs"),
        (entry("INPUT0", "TYPE_INT32", -1, "zero_data: true"), "variable-size dimensions"),
        (entry("INPUT0", "TYPE_INT32", 5, "zero_data: true") + SECOND, "unexpected shape"),
        (entry("INPUT0", "TYPE_INT32", 4, ""), "has none of zero_data"),
        (entry("INPUT0", "TYPE_INT32", 4, 'input_data_file: "no"'), "there is no file warmup/no"),
        (entry("INPUT0", "TYPE_INT32", 4, 'input_data_file: "../config.pbtxt"'), "no file warmup"),
        (entry("INPUT0", "TYPE_INT32", 4, 'input_data_file: "short"'), "the file is too short"),
        (entry("INPUT0", "TYPE_INT32", 1 << 40, "zero_data: true"), "the sample is too large"),
    ],
)  # fmt: skip
async def test_a_sample_that_is_wrong_is_a_load_that_fails(
    tmp_path: Path, executor: RunThreads, inputs: str, said: str
) -> None:
    folder = put(tmp_path, "add", add_model(), config=sample(inputs))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "short").write_bytes(b"123")
    (folder / "warmup" / "second").write_bytes(bytes(16))
    repository = ModelRepository(tmp_path, executor)
    with pytest.raises(InternalError, match="failed to run warmup sample 'first'") as caught:
        await repository.load("add")
    assert said in caught.value.message


async def test_a_graph_that_fails_on_a_sample(tmp_path: Path, executor: RunThreads) -> None:
    config = (
        'max_batch_size: 8 model_warmup { name: "far" batch_size: 1 inputs { key: "index" value '
        '{ data_type: TYPE_INT64 input_data_file: "index" } } }'
    )
    folder = put(tmp_path, "gather", gather_model(), config=config)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "index").write_bytes(np.int64(99).tobytes())
    with pytest.raises(InternalError, match="sample 'far': the model failed on this input"):
        await ModelRepository(tmp_path, executor).load("gather")
