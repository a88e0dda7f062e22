"""Whether a JSON value is as a schema of the admin API's document says, and no more than that."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "integer": (int,), "number": (int, float),
    "array": (list,), "object": (dict,),
}  # fmt: skip


def check(value: Any, schema: dict[str, Any], components: dict[str, Any], at: str = "") -> None:
    """Assert it. A property that the schema does not name is an error, too."""
    if "$ref" in schema:
        check(value, components[schema["$ref"].rpartition("/")[2]], components, at)
        return
    kind = schema["type"]
    assert isinstance(value, _TYPES[kind]), (at, kind, value)
    assert kind == "boolean" or not isinstance(value, bool), (at, kind, value)
    assert value in schema.get("enum", [value]), at
    if kind in {"integer", "number"}:
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), (at, value)
        assert value > schema.get("exclusiveMinimum", value - 1), (at, value)
    if kind == "array":
        for number, each in enumerate(value):
            check(each, schema["items"], components, f"{at}/{number}")
    if kind == "object":
        assert set(schema.get("required", ())) <= set(value), (at, value)
        assert set(value) <= set(schema["properties"]), (at, value)
        for name, each in value.items():
            check(each, schema["properties"][name], components, f"{at}/{name}")
