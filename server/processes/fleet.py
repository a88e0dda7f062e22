"""The workers as the admin API sees them."""

from __future__ import annotations

from typing import Any

from headrace.errors import NotFoundError, UnavailableError
from server.processes.child import Child
from server.processes.supervisor import Supervisor
from server.processes.workers import Workers

_CHANGE_TIMEOUT_S = 1800.0  # as that of a command about models


class WorkerFleet:
    """Implements `server.admin.operations.Fleet`."""

    def __init__(self, supervisor: Supervisor, workers: Workers) -> None:
        self._supervisor = supervisor
        self._workers = workers

    def listed(self) -> list[dict[str, Any]]:
        """Return number, process and addresses of each worker."""
        return [
            {"worker": _number(child), "pid": child.pid, "ready": bool(child.ready)}
            | {name: child.ready[name] for name in ("grpc", "http", "metrics") if child.ready}
            for child in self._supervisor.taking()
        ]

    async def drain(self, number: int) -> None:
        """Replace a worker. Raises NotFoundError, UnavailableError."""
        self._child(number)
        await self._workers.replace(number)

    async def ask(self, number: int | None, what: str, timeout_s: float, **arguments: Any) -> Any:
        """Return a worker's answer, of any one that is ready without a number."""
        child = self._child(number)
        return await self._workers.questions.ask(child, what, timeout_s, **arguments)

    async def change_model(self, operation: str, name: str) -> None:
        """Load or unload in all workers: the one that is asked passes it on."""
        await self.ask(None, operation, _CHANGE_TIMEOUT_S, name=name)

    async def change(self, name: str, value: dict[str, Any]) -> None:
        """Change a setting in all workers, and in those that start later."""
        await self._workers.live.change(name, value)

    def reload(self) -> None:
        """Begin to replace all workers."""
        self._supervisor.request_reload()

    def end(self) -> None:
        """Begin to end the server."""
        self._supervisor.request_end()

    def _child(self, number: int | None) -> Child:
        """Return the newest of a number, or any one that is ready."""
        for child in reversed(self._supervisor.taking()):
            if child.ready and number in {None, _number(child)}:
                return child
        if number is None:
            raise UnavailableError("no worker is ready", mend="try again later")
        raise NotFoundError(f"there is no worker {number} that is ready")


def _number(child: Child) -> int:
    return int(child.spec.role.rpartition("-")[2])
