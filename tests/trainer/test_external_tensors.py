"""The walk over an ONNX file, against the onnx package's own view of it."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InvalidArgumentError
from trainer.external_tensors import external_tensors

onnx = pytest.importorskip("onnx")


def tensor(name: str, location: str | None) -> object:
    made = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), name)
    if location is not None:
        made.ClearField("raw_data")
        made.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            made.external_data.add(key=key, value=value)
    return made


def graph(name: str, nodes: list[object], tensors: list[object]) -> object:
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    return onnx.helper.make_graph(nodes, name, [], [output], tensors)


def model(location: dict[str, str | None]) -> bytes:
    """A model with a tensor in each place that may hold one."""
    inner = graph("inner", [], [tensor("in", location.get("inner"))])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    constant = onnx.helper.make_node("Constant", [], ["k"], value=tensor("k", location.get("attr")))
    main = graph("main", [constant, node], [tensor("w", location.get("initializer"))])
    sparse = onnx.helper.make_sparse_tensor(
        tensor("s", location.get("sparse")),
        onnx.numpy_helper.from_array(np.arange(4), "s_i"), [8],
    )  # fmt: skip
    main.sparse_initializer.append(sparse)  # type: ignore[attr-defined]
    function = onnx.helper.make_function(
        "d", "f", [], ["z"],
        [onnx.helper.make_node("Constant", [], ["z"], value=tensor("z", location.get("function")))],
        [onnx.helper.make_opsetid("", 18)],
    )  # fmt: skip
    made = onnx.helper.make_model(main, functions=[function])
    made.doc_string = "a location is mentioned here"  # so that the walk is not skipped
    return bytes(made.SerializeToString())


PLACES = ["initializer", "attr", "inner", "sparse", "function"]


def test_a_model_without_external_tensors_has_none() -> None:
    assert external_tensors(model({})) == set()
    assert external_tensors(b"") == set()


@pytest.mark.parametrize("place", PLACES)
def test_a_location_is_found_wherever_a_tensor_may_be(place: str) -> None:
    assert external_tensors(model({place: f"{place}.bin"})) == {f"{place}.bin"}


def test_all_locations_are_found() -> None:
    locations = {place: f"{place}.bin" for place in PLACES}
    assert external_tensors(model(locations)) == set(locations.values())  # type: ignore[arg-type]


def test_a_length_written_in_too_many_bytes_hides_nothing() -> None:
    """A protobuf reader takes a padded varint; a search for the usual bytes would miss it."""
    plain = b"\x0a\x08location\x12\x01x"
    padded = b"\x0a\x88\x80\x00location\x12\x01x"
    for entry in (plain, padded):
        field = bytes([13 << 3 | 2, len(entry)]) + entry
        data = bytes([5 << 3 | 2, len(field)]) + field
        assert external_tensors(bytes([7 << 3 | 2, len(data)]) + data) == {"x"}


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_truncated_model_is_refused(cut: int) -> None:
    whole = model({"initializer": "w.bin"})
    with pytest.raises(InvalidArgumentError, match=r"model\.onnx: truncated"):
        external_tensors(whole[:-cut])


@pytest.mark.parametrize(
    "data",
    [
        b"\x3b location",  # a group, which proto3 has not
        b"\x38" + b"\xff" * 11 + b"location",  # an endless varint
        b"\x32\x08location\x3d\x00",  # a fixed field, cut off
        b"\x32\x08location\x3a",  # a field without its length
    ],
)
def test_what_is_no_protobuf_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        external_tensors(data)


def delimited(field: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize(("levels", "refused"), [(10, False), (40, True)])
def test_a_model_nested_without_end_is_refused(levels: int, refused: bool) -> None:
    """Model → graph → (node → attribute → graph) again and again."""
    data = b""
    for field in (6, 5, 1) * levels:  # from the inside
        data = delimited(field, data)
    data = delimited(6, b"location") + delimited(7, data)
    if refused:
        with pytest.raises(InvalidArgumentError):
            external_tensors(data)
    else:
        assert external_tensors(data) == set()
