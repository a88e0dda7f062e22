"""The backend `remote`: what a model is, the remote server says when it is loaded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2

from headrace.errors import FailedPreconditionError
from server.backends.contract import Host, Made, ModelConfig, VersionFiles
from server.backends.remote.engine import RemoteEngine
from server.backends.remote.messages import error_of
from server.backends.remote.oip import OipUpstream
from server.backends.remote.settings import Settings, read_settings
from server.backends.remote.tensorflow import TensorflowUpstream
from server.backends.remote.upstream import CallFailedError, RemoteModel, RemoteTensor, Upstream
from server.execution.statistics import Statistics
from server.models.pbtxt import config_datatype, config_of, drafted
from server.models.signatures import signatures
from server.protocol.tensors import DATATYPES, shape_text

NAME = "remote"
_CONFIG_FILE = "config.pbtxt"
_LOAD_NS_MAX = 10_000_000_000


class RemoteBackend:
    """Loads configurations: a remote model has no file."""

    default_filename = ""
    graphs = False

    def load(
        self,
        files: VersionFiles,
        number: int,
        config: ModelConfig | None,
        host: Host,
        statistics: Statistics,
    ) -> Made:
        """Return the remote model. Raises FailedPreconditionError for what does not fit it, and
        UnavailableError where the remote server does not answer."""
        given = model_config_pb2.ModelConfig() if config is None else config
        _check(given, files)
        settings = read_settings(given.parameters, files.name, files.beside)

        async def load() -> Made:
            upstream = _upstream(settings)
            try:
                full = _completed(given, files.name, await upstream.described(_LOAD_NS_MAX))
            except CallFailedError as error:
                await upstream.close()
                raise error_of(error.number, error.words) from error
            except BaseException:
                await upstream.close()
                raise
            inputs = signatures(full.input, full.max_batch_size)
            outputs = signatures(full.output, full.max_batch_size)
            engine = RemoteEngine(
                settings, upstream, inputs, outputs, statistics, host.executor, random.random
            )
            return Made(full, engine)

        return asyncio.run_coroutine_threadsafe(load(), host.loop).result()


def _check(given: ModelConfig, files: VersionFiles) -> None:
    """Raise FailedPreconditionError for what a remote model cannot be.

    Where requests go, and by which files, only the folder says: a request to load would else let
    this machine connect to wherever it likes.
    """
    own = config_of(files.beside(".", _CONFIG_FILE))
    if own.backend != NAME or dict(own.parameters) != dict(given.parameters):
        raise FailedPreconditionError(
            "the parameters of a remote model cannot come with a request",
            mend="put them into the folder's config.pbtxt",
        )
    scheduling = given.WhichOneof("scheduling_choice")
    if scheduling is not None or given.model_transaction_policy.decoupled:
        raise FailedPreconditionError(
            "a remote model is scheduled by its own server",
            where=_CONFIG_FILE,
            expected="none",
            got=scheduling or "decoupled",
        )


def _upstream(settings: Settings) -> Upstream:
    return OipUpstream(settings) if settings.tensorflow is None else TensorflowUpstream(settings)


def _completed(given: ModelConfig, name: str, remote: RemoteModel) -> ModelConfig:
    """Return the configuration with the tensors of the remote model."""
    full = drafted(given, name)
    full.backend, full.platform = NAME, ""
    if remote.max_batch_size is not None:
        full.max_batch_size = _batch_size(given.max_batch_size, remote.max_batch_size)
    batches = full.max_batch_size > 0
    _complete(full.input, remote.inputs, "input", batches)
    _complete(full.output, remote.outputs, "output", batches)
    return full


def _batch_size(given: int, remote: int) -> int:
    if given > remote:
        raise FailedPreconditionError(
            "max_batch_size is more than the remote model's",
            where=_CONFIG_FILE,
            expected=f"at most {remote}",
            got=given,
        )
    return given or remote


def _complete(tensors: Any, told: Sequence[RemoteTensor], kind: str, batches: bool) -> None:
    """Fill in the remote model's tensors, or compare them with those that are configured."""
    configured = {tensor.name: tuple(tensor.dims) for tensor in tensors}
    found = model_config_pb2.ModelConfig()
    for tensor in told:
        dims = _dims(tensor, kind, batches, configured)
        data_type = config_datatype(tensor.datatype)
        found.input.add(name=tensor.name, data_type=data_type, dims=dims)
        found.input[-1].optional = tensor.optional
    if not found.input:
        raise FailedPreconditionError(f"the remote model tells no {kind}")
    if tensors:
        expected = sorted(_tensor_text(each) for each in found.input)
        got = sorted(_tensor_text(each) for each in tensors)
        if expected != got:
            raise FailedPreconditionError(
                f"the {kind}s differ from the remote model's",
                where=_CONFIG_FILE,
                expected=", ".join(expected),
                got=", ".join(got),
            )
        del tensors[:]
    for each in found.input:
        added = tensors.add(name=each.name, data_type=each.data_type, dims=each.dims)
        if kind == "input":
            added.optional = each.optional


def _dims(
    tensor: RemoteTensor, kind: str, batches: bool, configured: dict[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Return the dimensions of a tensor, without that of the batch."""
    which = f"{kind} '{tensor.name[:64]}' of the remote model"
    if tensor.shape is None and tensor.name in configured:
        return configured[tensor.name]
    if tensor.shape is None:
        raise FailedPreconditionError(
            f"{which} is of a rank that nobody tells",
            where=_CONFIG_FILE,
            mend="configure its dims",
        )
    if tensor.datatype not in DATATYPES or (batches and tensor.shape[:1] != (-1,)):
        raise FailedPreconditionError(
            f"{which} is of no kind that is known",
            got=f"{tensor.datatype[:16]} {shape_text(tensor.shape)[:64]}",
        )
    return tensor.shape[1:] if batches else tensor.shape


def _tensor_text(tensor: Any) -> str:
    kind = model_config_pb2.DataType.Name(tensor.data_type)
    return f"{tensor.name} {kind} {shape_text(tensor.dims)}"
