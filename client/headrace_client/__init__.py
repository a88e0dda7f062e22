"""A small client of Headrace: predictions, features, explanations, feedback and tensors."""

from headrace_client.aio import AsyncClient
from headrace_client.answers import Explanation, FeatureRows, Prediction, Truth
from headrace_client.client import Client
from headrace_client.errors import (
    CancelledError,
    ClientError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from headrace_client.tensors import Tensor

__all__ = [
    "AsyncClient",
    "CancelledError",
    "Client",
    "ClientError",
    "DeadlineExceededError",
    "Explanation",
    "FailedPreconditionError",
    "FeatureRows",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "Prediction",
    "ResourceExhaustedError",
    "Tensor",
    "Truth",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
]
