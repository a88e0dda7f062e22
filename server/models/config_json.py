"""Protobuf messages, a model's configuration above all, as plain JSON values."""

from __future__ import annotations

from typing import Any


def message_json(message: Any) -> dict[str, Any]:
    """Return a protobuf message as plain JSON values, defaults included, whole numbers as numbers.

    protobuf's own JSON writes 64-bit numbers as text, and Triton does not.
    """
    result: dict[str, Any] = {}
    for descriptor in message.DESCRIPTOR.fields:
        value = getattr(message, descriptor.name)
        nested = descriptor.message_type
        if nested is not None and nested.GetOptions().map_entry:
            items = value.items()
            result[descriptor.name] = {
                str(key): message_json(item) if hasattr(item, "DESCRIPTOR") else item
                for key, item in items
            }
        elif descriptor.is_repeated:
            result[descriptor.name] = [_field_json(descriptor, item) for item in value]
        elif (nested is None and descriptor.containing_oneof is None) or message.HasField(
            descriptor.name
        ):
            result[descriptor.name] = _field_json(descriptor, value)
    return result


def _field_json(descriptor: Any, value: Any) -> Any:
    if descriptor.message_type is not None:
        return message_json(value)
    if descriptor.enum_type is not None:
        return descriptor.enum_type.values_by_number[value].name
    return value
