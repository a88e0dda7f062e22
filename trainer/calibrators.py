"""Calibrators: what turns a model's output into a probability that holds (CONTRACTS §6).

A bundle's calibrator is a JSON file of one of the kinds here: numbers, and nothing that could run.
The version's answer is the calibrated output, in every door, in the log and in its golden rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.digest import canonical_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError

CALIBRATOR: Final = "calibrator.json"
BYTES_MAX: Final = 1 << 20

Floats = npt.NDArray[np.float64]
_Output = TypeVar("_Output", bound=npt.NDArray[Any])


class Sigmoid(msgspec.Struct, frozen=True, tag="sigmoid", tag_field="kind"):
    """1 / (1 + exp(a · f + b)), f the output or with `logit` its log odds: Platt (1999), in the
    signs of scikit-learn's `_SigmoidCalibration`."""

    a: float
    b: float
    logit: bool = False


class Beta(msgspec.Struct, frozen=True, tag="beta", tag_field="kind"):
    """1 / (1 + exp(−(a · ln p − b · ln(1 − p) + c))) of a probability p: Kull, Silva Filho and
    Flach (2017)."""

    a: float
    b: float
    c: float


class Isotonic(msgspec.Struct, frozen=True, tag="isotonic", tag_field="kind"):
    """Straight lines between the knots (x, y), flat beyond them: `X_thresholds_` and
    `y_thresholds_` of scikit-learn's `IsotonicRegression(out_of_bounds="clip")`."""

    x: list[float]
    y: list[float]


class Temperature(msgspec.Struct, frozen=True, tag="temperature", tag_field="kind"):
    """softmax(f / t), f the output or with `logit` its logarithm; of one column the sigmoid of its
    score, with `logit` of its log odds: Guo, Pleiss, Sun and Weinberger (2017)."""

    t: float
    logit: bool = False


Calibrator = Sigmoid | Beta | Isotonic | Temperature
_DECODER = msgspec.json.Decoder(Calibrator)


def read_calibrator(data: bytes) -> Calibrator:
    """Return the checked calibrator in JSON `data`. Raises InvalidArgumentError."""
    if len(data) > BYTES_MAX:
        raise _bad("too large", f"at most {BYTES_MAX} bytes", len(data))
    try:
        calibrator: Calibrator = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(str(error), where="calibrator") from error
    check_calibrator(calibrator)
    return calibrator


def calibrator_bytes(calibrator: Calibrator) -> bytes:
    """Return a calibrator as the file of a bundle. Raises InvalidArgumentError."""
    check_calibrator(calibrator)
    return canonical_json(calibrator)


def check_calibrator(calibrator: Calibrator) -> None:
    """Raise InvalidArgumentError unless all that it gives are probabilities."""
    match calibrator:
        case Sigmoid(a=a, b=b):
            if not math.isfinite(a) or not math.isfinite(b) or a == 0.0:
                raise _bad("not a sigmoid", "finite a and b, a not 0", (a, b))
        case Beta(a=a, b=b, c=c):
            if not all(map(math.isfinite, (a, b, c))) or a < 0.0 or b < 0.0 or a + b == 0.0:
                raise _bad("not a beta calibrator", "finite; a, b ≥ 0, not both 0", (a, b, c))
        case Temperature(t=t):
            if not 0.0 < t < math.inf:
                raise _bad("not a temperature", "above 0 and finite", t)
        case _:
            _check_knots(calibrator.x, calibrator.y)


def calibrate(calibrator: Calibrator, output: _Output) -> _Output:
    """Return the calibrated output, of its shape and dtype; NaN stays NaN.

    A probability of one class is [N] or [N, 1], or [N, 2] with that of the other class before it;
    only a temperature takes more. Raises FailedPreconditionError for an output that it cannot be
    of.
    """
    kind = output.dtype
    width = output.shape[-1] if output.ndim > 1 else 1
    if kind.kind != "f" or not 1 <= output.ndim <= 2:
        raise _unfit("one column of floats or several", f"{kind} {list(output.shape)}")
    scores = output.astype(np.float64)
    if isinstance(calibrator, Temperature) and width > 1:
        return _softmax(calibrator, scores).astype(kind)  # type: ignore[return-value]
    if width not in {1, 2}:
        raise _unfit("the probability of one class of two", f"{width} columns")
    one = _one(calibrator)
    if width == 1:
        return one(scores).astype(kind)  # type: ignore[return-value]
    second = one(np.ascontiguousarray(scores[:, 1]))
    return np.stack([1.0 - second, second], axis=1).astype(kind)  # type: ignore[return-value]


def _one(calibrator: Calibrator) -> Callable[[Floats], Floats]:
    """Return what a calibrator makes of the scores of one class."""
    match calibrator:
        case Sigmoid(a=a, b=b, logit=logit):
            return lambda f: _sigmoid(-(a * (_log_odds(f) if logit else f) + b))
        case Temperature(t=t, logit=logit):
            return lambda f: _sigmoid((_log_odds(f) if logit else f) / t)
        case Beta(a=a, b=b, c=c):
            return lambda p: _sigmoid(_scaled_log(a, p) - _scaled_log(b, 1.0 - p) + c)
        case _:
            return lambda f: np.interp(f, calibrator.x, calibrator.y)


def _sigmoid(score: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp(1000) is infinity, and 1 / infinity what it should be
        odds: Floats = 1.0 / (1.0 + np.exp(-score))
    return odds


def _log_odds(p: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 and 1 stay what they are
        odds: Floats = np.log(p) - np.log1p(-p)
    return odds


def _scaled_log(by: float, p: Floats) -> Floats:
    if by == 0.0:  # 0 · ln 0
        return np.where(np.isnan(p), np.nan, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return by * np.log(p)


def _softmax(calibrator: Temperature, scores: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = (np.log(scores) if calibrator.logit else scores) / calibrator.t
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
        parts: Floats = powers / powers.sum(axis=1, keepdims=True)
    return parts


def _check_knots(x: list[float], y: list[float]) -> None:
    if not x or len(x) != len(y):
        raise _bad("knots that are no pairs", "as many x as y, one or more", (len(x), len(y)))
    if not all(map(math.isfinite, x)) or any(b <= a for a, b in pairwise(x)):
        raise _bad("x of the knots is not in order", "finite, each above the one before", x[:8])
    if any(b < a for a, b in pairwise(y)) or not all(0 <= each <= 1 for each in y):
        raise _bad("y of the knots does not rise", "0 to 1, none below the one before", y[:8])


def _bad(what: str, expected: str, got: object) -> InvalidArgumentError:
    return InvalidArgumentError(what, where="calibrator", expected=expected, got=got)


def _unfit(expected: str, got: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "the calibrator does not fit the model's output", expected=expected, got=got
    )
