"""headrace.v1 on the wire: a field's number and type are for ever, and fields are only added."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_tools import protoc

from server.pb import admin_pb2, headrace_pb2
from tests.contracts.golden import CHANGED, read_json

SOURCE = (Path(__file__).parents[2] / "proto/headrace/v1/headrace.proto").read_text()
GOLDEN = read_json("headrace_v1.json")
TYPES = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def described(field: Any) -> str:
    """A field as proto3 writes it: `repeated Column inputs = 2`."""
    kind = TYPES[field.type]
    if field.message_type is not None:
        kind = field.message_type.full_name
    oneof = field.containing_oneof
    words = ["repeated"] if field.is_repeated else []
    if oneof is not None:
        words = ["optional"] if oneof.name == f"_{field.name}" else [f"oneof {oneof.name}:"]
    return " ".join([*words, kind, field.name])


def messages_in(scope: Any) -> Iterator[Any]:
    """All messages of a file or a message, nested ones too."""
    named = scope.nested_types if hasattr(scope, "nested_types") else None
    for message in named if named is not None else scope.message_types_by_name.values():
        yield message
        yield from messages_in(message)


def enums_in(file: Any) -> Iterator[Any]:
    yield from file.enum_types_by_name.values()
    for message in messages_in(file):
        yield from message.enum_types


def signature(method: Any) -> str:
    """A method as proto3 writes it, without the package."""
    sent = "stream " if method.client_streaming else ""
    got = "stream " if method.server_streaming else ""
    return f"{sent}{method.input_type.name} -> {got}{method.output_type.name}"


def shape(file: Any) -> dict[str, Any]:
    """Messages by field number, enums by value, services by method; names with their package."""
    return {
        "messages": {
            message.full_name: {
                str(field.number): described(field)
                for field in sorted(message.fields, key=lambda field: field.number)
            }
            for message in messages_in(file)
        },
        "enums": {
            enum.full_name: {str(value.number): value.name for value in enum.values}
            for enum in enums_in(file)
        },
        "services": {
            service.full_name: {method.name: signature(method) for method in service.methods}
            for service in file.services_by_name.values()
        },
    }


def broken(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a client of the old file would stumble over in the new one; additions are none."""
    found = []
    for kind, entries in old.items():
        for name, members in entries.items():
            now = new[kind].get(name)
            if now is None:
                found.append(f"{name} is gone")
                continue
            for key, what in members.items():
                if now.get(key) != what:
                    found.append(f"{name} {key}: was {what!r}, is {now.get(key)!r}")
    return found


FILES = {"headrace_v1": headrace_pb2, "admin_v1": admin_pb2}


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_a_client_relies_on_has_changed_or_gone(name: str) -> None:
    assert broken(read_json(f"{name}.json"), shape(FILES[name].DESCRIPTOR)) == [], CHANGED


@pytest.mark.parametrize("name", FILES)
def test_what_is_new_is_pinned_from_its_first_day(name: str) -> None:
    found = shape(FILES[name].DESCRIPTOR)
    assert found == read_json(f"{name}.json"), (
        f"add what is new to golden/{name}.json: it cannot change later"
    )


def compiled(text: str, folder: Path) -> dict[str, Any]:
    """The shape of a .proto text, by protoc itself."""
    (folder / "headrace.proto").write_text(text)
    result = folder / "descriptors"
    arguments = ["protoc", f"-I{folder}", f"--descriptor_set_out={result}", "headrace.proto"]
    assert protoc.main(arguments) == 0
    pool = DescriptorPool()
    (file,) = FileDescriptorSet.FromString(result.read_bytes()).file
    pool.Add(file)
    return shape(pool.FindFileByName("headrace.proto"))


CHANGES = {
    "a field is removed": ("  string source = 5;\n", "", "Truth 5"),
    "a field gets another number": ("string source = 5;", "string source = 6;", "Truth 5"),
    "a field gets another type": ("double value = 3;", "float value = 3;", "Truth 3"),
    "a field gets another name": ("double value = 3;", "double amount = 3;", "Truth 3"),
    "two fields change places": (
        "string name = 2;\n  double value = 3;", "string name = 3;\n  double value = 2;", "Truth 2",
    ),
    "a list becomes one": ("repeated uint32 nulls = 7;", "uint32 nulls = 7;", "Column 7"),
    "one becomes a list": ("string min_offset = 4;", "repeated string min_offset = 4;", " 4"),
    "what may be absent may not": (
        "optional int64 event_time = 4;", "int64 event_time = 4;", "Truth 4",
    ),
    "a field leaves its choice": (
        "    StringArrays string_arrays = 11;\n  }", "  }\n  StringArrays string_arrays = 11;",
        "Column 11",
    ),
    "a message is renamed": ("Int64Values", "LongValues", "Int64Values is gone"),
    "a method is renamed": ("rpc Feedback(", "rpc Truths(", "Predictions Feedback"),
    "a method becomes a stream": (
        "returns (FeedbackReply)", "returns (stream FeedbackReply)", "Predictions Feedback",
    ),
    "a method answers with something else": (
        "returns (FeedbackReply)", "returns (PushReply)", "Predictions Feedback",
    ),
    "a service is renamed": ("service Features ", "service Rows ", "Features is gone"),
    "another package": ("package headrace.v1;", "package headrace.v2;", "Column is gone"),
}  # fmt: skip
ADDITIONS = {
    "a field": ("string source = 5;", "string source = 5;\n  string note = 6;"),
    "a message": ("message Truth {", "message Note { enum Kind { NONE = 0; } }\nmessage Truth {"),
    "a method": ("  rpc Push(", "  rpc Pull(PushRequest) returns (PushReply);\n  rpc Push("),
    "a choice": ("BytesValues bytes = 6;", "BytesValues bytes = 6;\n    Int64Values times = 12;"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_breaking_change_is_refused(change: str, tmp_path: Path) -> None:
    old, new, named = CHANGES[change]
    assert old in SOURCE
    found = broken(GOLDEN, compiled(SOURCE.replace(old, new), tmp_path))
    assert any(named in line for line in found), found


@pytest.mark.parametrize("addition", ADDITIONS)
def test_an_addition_breaks_nobody_and_must_be_pinned(addition: str, tmp_path: Path) -> None:
    old, new = ADDITIONS[addition]
    assert old in SOURCE
    found = compiled(SOURCE.replace(old, new), tmp_path)
    assert broken(GOLDEN, found) == []
    assert found != GOLDEN
    assert broken(found, GOLDEN) != [], "once pinned it may not go"
