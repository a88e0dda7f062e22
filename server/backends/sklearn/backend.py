"""The backend of scikit-learn: files of skops, read as data. Pickles are programs, and refused."""

from __future__ import annotations

from headrace.errors import FailedPreconditionError, HeadraceError
from server.backends.forests.backend import ConvertingBackend
from server.backends.forests.forest import UNREADABLE
from server.backends.lookup import SKLEARN
from server.backends.sklearn.estimators import read_skops
from server.backends.sklearn.model import SklearnModel

_ZIP = b"PK\x03\x04"


class SklearnBackend(ConvertingBackend):
    """Loads `model.skops`."""

    def __init__(self) -> None:
        super().__init__(SKLEARN, "model.skops", read_sklearn)


def read_sklearn(data: bytes) -> SklearnModel:
    """Return the model of a file. Raises FailedPreconditionError, UnimplementedError."""
    if not data.startswith(_ZIP):
        raise FailedPreconditionError(
            "a pickled model is not opened: whoever wrote it could run any code here",
            expected="model.skops or model.onnx",
            got="a pickle of scikit-learn, or what is no file of skops",
            mend="save it by skops.io.dump, or convert it by skl2onnx (zipmap=False)",
        )
    try:
        return read_skops(data)
    except HeadraceError:
        raise
    except UNREADABLE:
        raise FailedPreconditionError(
            "the file is not a whole model of scikit-learn",
            expected="what skops.io.dump writes of a fitted one",
            got="what cannot be read so",
            mend="save the model anew",
        ) from None
