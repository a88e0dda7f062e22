"""Server reflection, v1 and v1alpha: which services are here, and the files that describe them.

The two versions differ in their package's name only. A question that has no answer gets an
error in the stream, which goes on; only bytes that are no request end it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any

from google.protobuf import descriptor_pb2

from server.wire.grpc.status import StatusCode
from server.wire.handlers import Context, Handlers, Kind, Method
from server.wire.services.descriptors import POOL, message_class, parse

_PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
SERVICES = tuple(f"{package}.ServerReflection" for package in _PACKAGES)


class Reflection:
    """Answers for `services` (full names; its own are added) from the files of `pool`.

    A service without a file in the pool is listed, and its symbols are NOT_FOUND.
    """

    def __init__(self, services: Iterable[str], pool: Any) -> None:
        self._services = sorted({*services, *SERVICES})
        # Ours first: the default pool may hold another package's copy under another file name.
        self._pools = (POOL, pool)
        self._questions: dict[str, Callable[[Any, Any], None]] = {
            "file_by_filename": self._file_by_filename,
            "file_containing_symbol": self._file_containing_symbol,
            "file_containing_extension": self._file_containing_extension,
            "all_extension_numbers_of_type": self._all_extension_numbers_of_type,
            "list_services": self._list_services,
        }

    def table(self) -> Handlers:
        """Return the handler table."""
        return {
            f"/{package}.ServerReflection/ServerReflectionInfo": Method(
                Kind.BIDI_STREAM, partial(self._converse, package)
            )
            for package in _PACKAGES
        }

    async def _converse(
        self, package: str, requests: AsyncIterator[bytes], _: Context
    ) -> AsyncIterator[bytes]:
        request_class = message_class(f"{package}.ServerReflectionRequest")
        response_class = message_class(f"{package}.ServerReflectionResponse")
        async for data in requests:
            request = parse(request_class, data)
            response = response_class(valid_host=request.host, original_request=request)
            self._answer(request, response)
            yield response.SerializeToString()

    def _answer(self, request: Any, response: Any) -> None:
        question = request.WhichOneof("message_request")
        if question is None:
            _refuse(response, StatusCode.INVALID_ARGUMENT, "the request asks nothing that is known")
            return
        try:
            self._questions[question](getattr(request, question), response)
        except KeyError:
            _refuse(response, StatusCode.NOT_FOUND, f"{question}: not found")

    def _list_services(self, _: str, response: Any) -> None:
        services = response.list_services_response.service
        for name in self._services:
            services.add(name=name)

    def _file_by_filename(self, name: str, response: Any) -> None:
        _add_files(response, self._first(lambda pool: pool.FindFileByName(name)))

    def _file_containing_symbol(self, symbol: str, response: Any) -> None:
        def find(pool: Any) -> Any:
            try:
                return pool.FindFileContainingSymbol(symbol)
            except KeyError:  # protobuf's upb finds everything so but a service's methods
                return pool.FindMethodByName(symbol).containing_service.file

        _add_files(response, self._first(find))

    def _file_containing_extension(self, asked: Any, response: Any) -> None:
        def find(pool: Any) -> Any:
            extended = pool.FindMessageTypeByName(asked.containing_type)
            return pool.FindExtensionByNumber(extended, asked.extension_number).file

        _add_files(response, self._first(find))

    def _all_extension_numbers_of_type(self, name: str, response: Any) -> None:
        def find(pool: Any) -> Any:
            return pool.FindAllExtensions(pool.FindMessageTypeByName(name))

        numbers = sorted(extension.number for extension in self._first(find))
        answer = response.all_extension_numbers_response
        answer.base_type_name = name
        answer.extension_number.extend(numbers)

    def _first(self, find: Callable[[Any], Any]) -> Any:
        """Return what `find` finds in the first pool that has it. Raises KeyError."""
        for pool in self._pools:
            try:
                return find(pool)
            except KeyError:
                continue
        raise KeyError


def _refuse(response: Any, code: StatusCode, message: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = message


def _add_files(response: Any, file: Any) -> None:
    """Put `file` and, after it, everything that it imports into the response."""
    files = {file.name: file}
    waiting = [file]
    while waiting:
        for imported in waiting.pop().dependencies:
            if imported.name not in files:
                files[imported.name] = imported
                waiting.append(imported)
    encoded = response.file_descriptor_response.file_descriptor_proto
    for found in files.values():
        copied = descriptor_pb2.FileDescriptorProto()
        found.CopyToProto(copied)
        encoded.append(copied.SerializeToString())
