"""Flat JSON of responses; what a whole server does is in `backends/test_decoupled.py`."""

import numpy as np
import pytest

from headrace.errors import InvalidArgumentError
from server.protocol.oip import InferAnswer, OutputTensor
from server.protocol.rest_generate import fields_of


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_what_json_cannot_carry(datatype: str) -> None:
    answer = InferAnswer("m", "1", "", [OutputTensor("y", datatype, np.zeros(1, np.uint16))])
    with pytest.raises(InvalidArgumentError, match=f"'y' is {datatype}, which JSON cannot carry"):
        fields_of(answer)
