import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import InvalidArgumentError
from trainer.golden import golden_bytes, read_golden


def test_tensors_come_back_bit_for_bit():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(7, 5)).astype(np.float32)
    features[0] = [np.nan, np.inf, -np.inf, -0.0, 1e-45]
    tensors = {"features": features, "probability": rng.random((7, 1)).astype(np.float32)}
    found = read_golden(golden_bytes(tensors))
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        assert found[name].shape == values.shape
        assert np.array_equal(found[name].view(np.int32), values.view(np.int32))


def test_no_rows():
    assert read_golden(golden_bytes({"x": np.empty((0, 3), np.float32)}))["x"].shape == (0, 3)


def test_another_file_is_named():
    with pytest.raises(InvalidArgumentError, match="not an Arrow file"):
        read_golden(b"no")


def test_another_column_is_named():
    sink = pa.BufferOutputStream()
    table = pa.table({"features": [1.0]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidArgumentError, match="'features' is no tensor"):
        read_golden(sink.getvalue().to_pybytes())
