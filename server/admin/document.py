"""What the admin API has: one table; routes, methods, OpenAPI document and page come of it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from headrace import __version__
from server.admin.schemas import (
    COMPONENTS,
    LIMIT,
    LOGGING,
    SECONDS,
    TEXT,
    WORKER,
    Schema,
    listed,
    one_of,
)
from server.wire.routes import JSON

PREFIX = "/admin/v1"
_DONE = {200: "done", 202: "begun: it goes on behind the answer"}
_PARAMETERS = {"worker": WORKER, "model": TEXT}  # of paths


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `body` is the JSON schema of what it takes, if it takes anything; `answer` the
    name of that of what it answers with.

    `rpc` is its method of `headrace.v1.Admin`. `bare` is the one field whose value is all that REST
    takes and answers with.
    """

    name: str
    rpc: str
    method: str
    path: str  # behind PREFIX, its parameters in braces
    text: str
    answer: str = "Nothing"
    body: Schema | None = None
    query: tuple[tuple[str, str, Schema], ...] = ()  # name, what it is, and its schema
    bare: str | None = None
    status: int = 200


OPERATIONS = (
    Operation(
        "workers", "ListWorkers", "GET", "/workers", "The workers: number, process, addresses.",
        "Workers",
    ),
    Operation(
        "drain_worker", "DrainWorker", "POST", "/workers/{worker}/drain",
        "Start a new worker in the place of this one, which finishes what is under way and ends.",
        "Workers",
    ),
    Operation(
        "trace", "TraceWorker", "POST", "/workers/{worker}/trace",
        "Look at what the worker's event loop does, also while something blocks it: shares of time "
        "by stack, and what held it longest.",
        "Trace", query=(("seconds", "how long, 0.1 to 60; 5 without", SECONDS),),
    ),
    Operation(
        "reload", "Reload", "POST", "/reload", "Read files, models and code again, as SIGHUP does.",
        status=202,
    ),
    Operation(
        "drain", "Drain", "POST", "/drain", "Finish what is under way and end, as SIGTERM does.",
        status=202,
    ),
    Operation(
        "models", "ListModels", "GET", "/models", "The repository's index, as one worker has it.",
        "Models",
    ),
    Operation(
        "load", "LoadModel", "POST", "/models/{model}/load", "Load a model in all workers.",
    ),
    Operation(
        "unload", "UnloadModel", "POST", "/models/{model}/unload", "Let a model serve no more.",
    ),
    Operation(
        "limits", "GetLimits", "GET", "/limits", "The limits of tenants that hold.",
        "Limits", bare="limits",
    ),
    Operation(
        "set_limits", "SetLimits", "PUT", "/limits",
        "Put other limits in their place until the next start; the file is not changed.",
        "Limits", listed(LIMIT), bare="limits",
    ),
    Operation(
        "logging", "GetLogging", "GET", "/logging", "Which lines the workers write.", "Logging",
    ),
    Operation(
        "set_logging", "SetLogging", "PUT", "/logging", "Write other lines until the next start.",
        "Logging", LOGGING,
    ),
)  # fmt: skip


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _of(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace admin", "version": __version__},
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": COMPONENTS,
        },
        "security": [{"bearer": []}, {"key": []}, {}],
    }


def _of(operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in _PARAMETERS.items()
        if f"{{{name}}}" in operation.path
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": schema}
        for name, text, schema in operation.query
    ]
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.text,
        "parameters": parameters,
        "responses": {
            str(operation.status): _response(_DONE[operation.status], operation.answer),
            "default": _response("an error", "Error"),
        },
    }
    if operation.body is not None:
        content = {JSON: {"schema": operation.body}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _response(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": one_of(schema)}}}


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; }
code, pre { font: .875rem/1.5 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem 1rem; border-radius: .375rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 1.5rem; }
td, th { text-align: left; vertical-align: top; padding: .5rem .75rem .5rem 0; }
tr { border-bottom: 1px solid var(--line); }
td:first-child { white-space: nowrap; }
.method { display: inline-block; width: 3.25rem; font-weight: 600; }
@media (max-width: 45rem) {
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  td { padding: .5rem 0 0; }
  td:last-child { padding: .25rem 0 .5rem; }
}
.body { margin: .25rem 0 0; opacity: .75; font-size: .875rem; }
"""


def page() -> str:
    """Return the same as a page of HTML that needs nothing else."""
    rows = "\n".join(map(_row, OPERATIONS))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Headrace admin</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Headrace admin</h1>
<p>Version {html.escape(__version__)}. For programs: <a href="/openapi.json">openapi.json</a>.
Where an access file is in force, a call needs a credential with the scope <code>admin</code>.
What changes something is sent as JSON, or called by gRPC on <code>--admin-grpc-port</code>
(service <code>headrace.v1.Admin</code>):</p>
<pre>curl -X POST -H 'content-type: application/json' -H "x-api-key: $KEY" \\
  http://127.0.0.1:8003{PREFIX}/workers/0/trace?seconds=5</pre>
<table>
<thead><tr><th>Call</th><th>What it does</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


def _row(operation: Operation) -> str:
    extra = [f"<code>?{html.escape(name)}</code>: {html.escape(text)}"
             for name, text, _ in operation.query]  # fmt: skip
    if operation.body is not None:
        schema = operation.body.get("items", operation.body)
        names = ", ".join(f"<code>{html.escape(name)}</code>" for name in schema["properties"])
        kind = "a list of objects" if "items" in operation.body else "an object"
        extra.append(f"Body: {kind} with {names}")
    notes = "".join(f'<p class="body">{each}</p>' for each in extra)
    path = html.escape(PREFIX + operation.path)
    return (
        f'<tr><td><code><span class="method">{operation.method}</span> {path}</code>'
        f'<p class="body">gRPC: <code>{operation.rpc}</code></p></td>'
        f"<td>{html.escape(operation.text)}{notes}</td></tr>"
    )
