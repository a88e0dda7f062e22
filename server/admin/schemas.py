"""What the admin API takes and answers with, as JSON schemas for its OpenAPI document.

The names are those of the answers in the document's components.
"""

from __future__ import annotations

from typing import Any

from headrace.errors import STATUS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
WORKER: Schema = {"type": "integer", "minimum": 0, "maximum": 9999}
SECONDS: Schema = {"type": "number", "minimum": 0.1, "maximum": 60, "default": 5}
_POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_MILLISECONDS: Schema = {"type": "number", "minimum": 0}


def listed(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def one_of(name: str) -> Schema:
    """Return the schema that a component of the document is."""
    return {"$ref": f"#/components/schemas/{name}"}


def _known(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """Return the schema of an answer: later versions may say more."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def _taken(properties: dict[str, Schema]) -> Schema:
    """Return the schema of what is taken: any of these, and nothing else."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


LIMIT = _taken({
    "tenant": TEXT,
    "names": listed(TEXT),
    "requests_per_s": _POSITIVE,
    "burst": {"type": "number", "minimum": 1},
    "rows_per_s": _POSITIVE,
    "concurrent": {"type": "integer", "minimum": 1},
})  # fmt: skip
_SWITCHES: dict[str, Schema] = {
    "log_info": BOOLEAN,
    "log_warning": BOOLEAN,
    "log_error": BOOLEAN,
    "log_verbose_level": COUNT | {"maximum": 2**31 - 1},
}
LOGGING = _taken(_SWITCHES)
_STACK = listed(TEXT | {"description": "the callback first: module.function:line"})

COMPONENTS: dict[str, Schema] = {
    "Error": _known({"error": TEXT, "code": TEXT | {"enum": list(STATUS)}}),
    "Nothing": _known({}),
    "Workers": _known({"workers": listed(one_of("Worker"))}),
    "Worker": _known(
        {
            "worker": WORKER,
            "pid": COUNT,
            "ready": BOOLEAN,
            **{
                name: TEXT | {"description": "HOST:PORT, once it is ready"}
                for name in ("grpc", "http", "metrics")
            },
        },
        optional=("grpc", "http", "metrics"),
    ),
    "Trace": _known({
        "looks": COUNT,
        "interval_ms": _MILLISECONDS,
        "busy": _SHARE | {"description": "of the looks, those that found a callback at work"},
        "stacks": listed(_known({"share": _SHARE, "stack": _STACK})),
        "longest": listed(_known({"ms": _MILLISECONDS, "stack": _STACK})),
    }),
    "Models": _known({"models": listed(one_of("Model"))}),
    "Model": _known({
        "name": TEXT,
        "version": TEXT,
        "state": TEXT | {"enum": ["", "READY", "LOADING", "UNLOADING", "UNAVAILABLE"]},
        "reason": TEXT | {"description": "why it is UNAVAILABLE"},
    }),
    "Limits": listed(one_of("Limit")),
    "Limit": LIMIT | {"required": ["tenant", "names"]},
    "Logging": _known({**_SWITCHES, "log_file": TEXT, "log_format": TEXT}),
}  # fmt: skip
