"""headrace.v1 on the wire: a field's number and type are for ever, and fields are only added."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from server.pb import headrace_pb2
from tests.contracts.golden import CHANGED, read_json

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


def shape(file: Any) -> dict[str, Any]:
    """Messages by field number, services by method."""
    return {
        "messages": {
            message.full_name: {
                str(field.number): described(field)
                for field in sorted(message.fields, key=lambda field: field.number)
            }
            for message in file.message_types_by_name.values()
        },
        "services": {
            service.full_name: {
                method.name: f"{method.input_type.name} -> {method.output_type.name}"
                for method in service.methods
            }
            for service in file.services_by_name.values()
        },
    }


FOUND = shape(headrace_pb2.DESCRIPTOR)


def test_no_field_and_no_method_has_changed_or_gone() -> None:
    for kind, entries in GOLDEN.items():
        for name, members in entries.items():
            kept = {key: FOUND[kind].get(name, {}).get(key) for key in members}
            assert kept == members, CHANGED


def test_what_is_new_is_pinned_from_its_first_day() -> None:
    assert FOUND == GOLDEN, "add what is new to golden/headrace_v1.json: it cannot change later"
