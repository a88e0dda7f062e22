"""Requests and replies in JSON, against the stand-in's own reading of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.errors import FailedPreconditionError, InternalError, InvalidArgumentError
from server.backends.remote.tensorflow_json import (
    is_available,
    outputs_of,
    request_json,
    signature_of,
    words_of,
)
from server.models.loaded import TensorSignature
from tests.server.backends.remote import tensorflow_serving as standin

KINDS = {"FP32": "DT_FLOAT", "FP64": "DT_DOUBLE", "INT64": "DT_INT64", "BOOL": "DT_BOOL"}
DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "BOOL": "?"}


def spec(name: str, datatype: str, *shape: int) -> TensorSignature:
    return TensorSignature(name, datatype, shape)


def text(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), st.integers(1, 4))
def test_what_is_written_is_read_as_it_was(data: st.DataObject, rows: bool, count: int) -> None:
    given_ = []
    signature = {}
    for at, datatype in enumerate(
        data.draw(st.lists(st.sampled_from([*DTYPES, "BYTES"]), min_size=1, max_size=3))
    ):
        shape = (count, *data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)))
        if datatype == "BYTES":
            values = data.draw(
                st.lists(
                    st.binary(max_size=5),
                    min_size=int(np.prod(shape)),
                    max_size=int(np.prod(shape)),
                )
            )
            array = np.empty(len(values), object)
            array[:] = values
            array = array.reshape(shape)
        else:
            array = data.draw(hnp.arrays(DTYPES[datatype], shape))
        given_.append((spec(f"i{at}", datatype, *shape), array))
        signature[f"i{at}"] = (KINDS.get(datatype, "DT_STRING"), list(shape))
    body = json.loads(request_json(given_, "s", rows=rows))
    assert body.pop("signature_name") == "s"
    told = standin.Signature(signature, {}, lambda inputs: inputs)
    found = standin.given(body, told, rows)
    # And back again, as that writes it.
    listed = {
        name: standin.said(name, array) for name, array in found.items() if array.dtype != object
    }
    for each, array in given_:
        assert np.array_equal(found[each.name], array, equal_nan=array.dtype.kind == "f")
    if listed and not rows:
        specs = [each for each, _ in given_ if each.name in listed]
        answer: Any = listed if len(listed) > 1 else listed[specs[0].name]
        for each, array in zip(
            specs, outputs_of(text({"outputs": answer}), specs, (), rows=False), strict=True
        ):
            assert array is not None
            assert np.array_equal(array, found[each.name], equal_nan=array.dtype.kind == "f")


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda e: (
            st.lists(e, max_size=3)
            | st.dictionaries(st.sampled_from(["b64", "a", "outputs"]), e, max_size=2)
        ),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_any_reply_is_read_or_refused(value: Any, rows: bool) -> None:
    specs = [spec("a", "BYTES", -1, 2), spec("b", "FP32", -1)]
    for some in (specs, specs[:1]):
        for body in ({"outputs": value}, {"predictions": value}, value):
            try:
                found = outputs_of(text(body), some, ("a",), rows=rows)
            except InternalError:
                continue
            assert found[0] is not None
            assert found[0].shape[1] == 2
    assert isinstance(words_of(text(value)), str)
    assert is_available(text(value)) is False


def test_outputs_that_nobody_wanted_may_be_missing() -> None:
    specs = [spec("a", "BYTES", -1), spec("b", "FP32", -1)]
    reply = text({"outputs": {"a": ["x", {"b64": "/w=="}]}})
    first, second = outputs_of(reply, specs, ("a",), rows=False)
    assert first is not None
    assert first.tolist() == [b"x", b"\xff"]
    assert second is None
    with pytest.raises(InternalError):
        outputs_of(reply, specs, (), rows=False)
    with pytest.raises(InternalError):
        outputs_of(text({"outputs": [{"b64": "?"}]}), specs[:1], (), rows=False)
    rows = text({"predictions": [{"a": "x", "b": 1}, {"a": "y", "b": 2.5}]})
    both = outputs_of(rows, specs, (), rows=True)
    assert [None if each is None else each.tolist() for each in both] == [[b"x", b"y"], [1, 2.5]]


def test_an_empty_output_has_the_shape_that_is_known() -> None:
    (found,) = outputs_of(b'{"outputs": []}', [spec("a", "FP32", -1, 3)], (), rows=False)
    assert found is not None
    assert found.shape == (0, 3)


def test_inputs_that_rows_cannot_say() -> None:
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    several = [(spec("a", "FP32", -1), one), (spec("b", "FP32", -1), two)]
    for inputs in (several, [(spec("a", "FP32"), np.float32(1) * np.ones(()))]):
        with pytest.raises(InvalidArgumentError, match="equally many rows"):
            request_json(inputs, "s", rows=True)
    with pytest.raises(InvalidArgumentError, match="no elements"):
        request_json([(spec("a", "FP32", -1), one[:0])], "s", rows=False)
    text_ = np.array(["ö"], object)
    assert b"w7Y=" in request_json([(spec("a", "BYTES", -1), text_)], "s", rows=False)


def test_statuses_and_errors() -> None:
    assert is_available(text({"model_version_status": [{"state": "END"}, {"state": "AVAILABLE"}]}))
    assert words_of(b'{"error": "so"}') == "so"
    assert words_of(b'{"error": 5}') == ""
    assert words_of(b"no JSON") == ""
    assert words_of(b'{"error": "half \\ud800 \xc3\xb6"}') == "half ? \u00f6"


def test_a_signature_or_why_there_is_none() -> None:
    told = {
        "inputs": {
            "x": {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "3"}]}},
            "v": {"dtype": "DT_INT32", "tensor_shape": {"unknown_rank": True}},
        },
        "outputs": {"y": {"dtype": "DT_STRING"}},
    }

    def metadata(signature: Any) -> bytes:
        return text({"metadata": {"signature_def": {"signature_def": {"s": signature}}}})

    inputs, outputs = signature_of(metadata(told), "s")
    assert [tuple(each) for each in inputs] == [
        ("v", "INT32", None, False),
        ("x", "FP32", (-1, 3), False),
    ]
    assert [tuple(each) for each in outputs] == [("y", "BYTES", (), False)]
    with pytest.raises(FailedPreconditionError, match="expected s, got t"):
        signature_of(metadata(told), "t")
    with pytest.raises(FailedPreconditionError, match="REST does not carry"):
        signature_of(metadata({"inputs": {"x": {"dtype": "DT_HALF"}}, "outputs": {}}), "s")
    bad_size = {"x": {"dtype": "DT_INT8", "tensor_shape": {"dim": [{"size": "many"}]}}}
    for wrong in (b"", b"[]", b'{"metadata": 5}', metadata({"inputs": bad_size, "outputs": {}})):
        with pytest.raises(FailedPreconditionError, match="does not describe the model"):
            signature_of(wrong, "s")
