"""The client of control's admin API: plain calls over the standard library's HTTP client.

The command line, the supervisor and the demo use it; it starts fast and needs nothing installed.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from headrace.errors import HeadraceError, InternalError, InvalidArgumentError, UnavailableError

_ERRORS = {kind.code: kind for kind in HeadraceError.__subclasses__()}
_TIMEOUT_S = 60.0


class ControlClient:
    """Talks to one control by its URL. Every call opens a connection of its own: no state to break.

    Every method raises the HeadraceError that control answered with, and UnavailableError when
    control does not answer.
    """

    def __init__(self, url: str, timeout_s: float = _TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidArgumentError(
                "bad URL of control", expected="http://HOST:PORT", got=repr(url)
            )
        self.url = url
        self._parts = parts
        self._timeout_s = timeout_s

    def health(self) -> dict[str, Any]:
        """Return control's own state: {"status", "version", "plan", "ingester", "monitor"}."""
        return self._object("GET", "/v1/health")

    # Plan feed.

    def plan(self, after: int = 0, wait_s: float = 0.0) -> dict[str, Any] | None:
        """Return the release plan once its number is above `after`; None when `wait_s` ran out."""
        query = {"after": after, "wait_s": wait_s}
        timeout_s = wait_s + self._timeout_s
        return _optional(self._call("GET", "/v1/plan", query=query, timeout_s=timeout_s))

    # Blobs and versions.

    def has_blob(self, digest: str) -> bool:
        """Tell whether control holds the bytes of `sha256:…`."""
        status, _ = self._exchange("HEAD", f"/v1/blobs/{digest}")
        return status == 200

    def put_blob(self, digest: str, data: bytes) -> None:
        """Upload bytes; control refuses them when their digest is another one."""
        self._call("PUT", f"/v1/blobs/{digest}", body=data, kind="application/octet-stream")

    def get_blob(self, digest: str) -> bytes:
        """Return the bytes of `sha256:…`."""
        status, body = self._exchange("GET", f"/v1/blobs/{digest}")
        if status != 200:
            raise _error(status, body)
        return body

    def models(self) -> list[dict[str, Any]]:
        """Return every model with its live version."""
        return self._list("/v1/models")

    def versions(self, model: str) -> list[dict[str, Any]]:
        """Return a model's versions, newest first."""
        return self._list(f"/v1/models/{quote(model, '')}/versions")

    def version(self, model: str, digest: str) -> dict[str, Any]:
        """Return one version with its manifest and its audit trail; a prefix of the digest does."""
        return self._object("GET", f"/v1/models/{quote(model, '')}/versions/{quote(digest, ':')}")

    def register(self, model: str, manifest: str, by: str, why: str) -> dict[str, Any]:
        """Register the bundle whose files and manifest were uploaded; `manifest` is its digest."""
        body = {"manifest": manifest, "by": by, "why": why}
        return self._object("POST", f"/v1/models/{quote(model, '')}/versions", body)

    def act(self, model: str, digest: str, action: str, by: str, why: str) -> dict[str, Any]:
        """Move a version: `action` is submit, review, approve, reject or revoke."""
        path = f"/v1/models/{quote(model, '')}/versions/{quote(digest, ':')}/{action}"
        return self._object("POST", path, {"by": by, "why": why})

    # Releases.

    def releases(self, model: str) -> list[dict[str, Any]]:
        """Return a model's release entries, oldest first."""
        return self._list(f"/v1/models/{quote(model, '')}/releases")

    def release(
        self,
        model: str,
        entries: list[dict[str, Any]],
        by: str,
        why: str,
        expected_sequence: int | None = None,
        explain: float = 0.0,
    ) -> dict[str, Any]:
        """Release versions: entries of {"version", "role", "weight"[, "arm"]}; `explain` is the
        share of answers that are logged with attributions.

        With `expected_sequence` the call fails (failed_precondition) when someone was faster.
        """
        more = {"explain": explain} if explain else {}  # a control of before knows no such field
        body = {"entries": entries, "by": by, "why": why, "expected_sequence": expected_sequence}
        return self._object("POST", f"/v1/models/{quote(model, '')}/releases", {**body, **more})

    def rollback(self, model: str, by: str, why: str, to: int | None = None) -> dict[str, Any]:
        """Release again what was released before, or at sequence `to`."""
        body = {"by": by, "why": why, "to": to}
        return self._object("POST", f"/v1/models/{quote(model, '')}/rollback", body)

    # Features.

    def apply_definitions(self, source: bytes, by: str) -> dict[str, Any]:
        """Apply a definitions file; returns {"digest", "views": {name: schema id}, …}."""
        return self._object(
            "POST", "/v1/features/definitions", source, query={"by": by}, kind="text/x-python"
        )

    def definitions(self) -> dict[str, Any] | None:
        """Return {"digest", "source", "views", "services"} as applied last; None before that."""
        return _optional(self._call("GET", "/v1/features/definitions"))

    def backfills(self) -> dict[str, Any]:
        """Return the views that wait for their history, by name: {"state", "cut", …}."""
        return self._object("GET", "/v1/features/backfill")

    def backfill(self, views: Sequence[str], *, empty: bool = False) -> dict[str, Any]:
        """Fill views from history, none named: all that wait; `empty`: serve them without it."""
        body = {"views": list(views), "empty": empty}
        return self._object("POST", "/v1/features/backfill", body)

    # Runs and the monitor.

    def record_run(self, run: dict[str, Any], by: str) -> dict[str, Any]:
        """Store a pipeline run's record; `run["run"]` is its id."""
        return self._object("POST", "/v1/runs", run, query={"by": by})

    def runs(self) -> list[dict[str, Any]]:
        """Return the pipeline runs, newest first."""
        return self._list("/v1/runs")

    def incidents(self, model: str | None = None) -> list[dict[str, Any]]:
        """Return the monitor's incidents."""
        return self._list("/v1/incidents", {"model": model} if model else None)

    def run_monitor(self, model: str, through: str) -> dict[str, Any]:
        """Run the monitor up to and with the day `through` (YYYY-MM-DD); waits for its end."""
        body = {"model": model, "through": through}
        return self._object("POST", "/v1/monitor/run", body, timeout_s=600.0)

    def days(self, model: str) -> list[dict[str, Any]]:
        """Return the monitor's day reports of a model, oldest first."""
        return self._list("/v1/monitor/days", {"model": model})

    # HTTP.

    def _object(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: dict[str, Any] | None = None,
        kind: str = "application/json",
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        value = _optional(
            self._call(method, path, body=body, query=query, kind=kind, timeout_s=timeout_s)
        )
        if value is None:
            raise InternalError("unexpected answer of control", where=path, expected="an object")
        return value

    def _list(self, path: str, query: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        value = self._call("GET", path, query=query)
        if not isinstance(value, list):
            raise InternalError("unexpected answer of control", where=path, expected="a list")
        return value

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: dict[str, Any] | None = None,
        kind: str = "application/json",
        timeout_s: float | None = None,
    ) -> Any:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        target = f"{path}?{urlencode(query)}" if query else path
        status, answer = self._exchange(method, target, data, kind, timeout_s)
        if status == 204:
            return None
        if status != 200:
            raise _error(status, answer)
        return json.loads(answer)

    def _exchange(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        kind: str = "application/octet-stream",
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        parts = self._parts
        make = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        assert parts.hostname is not None
        connection = make(parts.hostname, parts.port, timeout=timeout_s or self._timeout_s)
        try:
            headers = {"Content-Type": kind} if body is not None else {}
            connection.request(method, parts.path.rstrip("/") + target, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            detail = (
                error.strerror if isinstance(error, OSError) and error.strerror else "no answer"
            )
            raise UnavailableError(
                f"control at {self.url} does not answer ({detail})",
                mend="start it with `headrace up` or `headrace control`, or check --control-url",
            ) from None
        finally:
            connection.close()


def _optional(value: object) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    raise InternalError("unexpected answer of control", expected="an object")


def _error(status: int, body: bytes) -> HeadraceError:
    try:
        answer = json.loads(body)
        kind = _ERRORS.get(answer.get("code"), InternalError)
        return kind(str(answer["error"]))
    except (ValueError, AttributeError, KeyError, TypeError):
        return InternalError("control answered with an error", got=f"HTTP status {status}")
