"""The release plan on its way to the workers: followed at control, kept in `run/plan.json`, or made
once from a folder of bundles.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    HeadraceError,
    NotFoundError,
)
from server.control.client import ControlClient
from server.processes.layout import write_atomically

_LOG = logging.getLogger("headrace")

_POLL_WAIT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
_RETRY_BASE_S = 0.2
_RETRY_CAP_S = 5.0

Plan = dict[str, Any]


def read_plan(path: Path) -> Plan | None:
    """Return the plan that was kept, None when there is none or it cannot be read.

    An unreadable one is reported and passed over: control gives it again.
    """
    try:
        plan = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        plan = None
    if isinstance(plan, dict) and isinstance(plan.get("plan"), int):
        return plan
    _LOG.error("%s holds no release plan; it is passed over", path)
    return None


class PlanFollower(threading.Thread):
    """Long-polls control and hands each newer plan on, after it is safely on disk.

    A thread and not a task: the client is synchronous, and a daemon thread that waits in a long
    poll does not hold up the end of the process. When control is gone it tries again, with
    jittered backoff, until stopped: the workers serve their last plan meanwhile.
    """

    def __init__(
        self, url: str, path: Path, first: Plan | None, on_plan: Callable[[Plan], None]
    ) -> None:
        super().__init__(name="plan follower", daemon=True)
        self.contacted = threading.Event()  # control answered, or failed to, for the first time
        self._client = ControlClient(url, timeout_s=_CONNECT_TIMEOUT_S)
        self._path = path
        self._number = first["plan"] if first is not None else 0
        self._on_plan = on_plan
        self._failure = ""
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Hand on no more plans; the thread ends after its poll, or with the process."""
        self._stopped.set()

    def run(self) -> None:
        """Follow until `stop`."""
        from router import parse_plan

        wait_s, retry_s = 0.0, _RETRY_BASE_S
        while not self._stopped.is_set():
            try:
                plan = self._client.plan(self._number, wait_s)
                if plan is not None and not self._stopped.is_set():
                    parse_plan(json.dumps(plan).encode())  # a broken one never replaces a good one
                    write_atomically(self._path, json.dumps(plan).encode())
                    self._number = plan["plan"]
                    self._on_plan(plan)
                    _LOG.info("release plan %d", self._number)
                if self._failure:
                    _LOG.info("control answers again")
                self._failure = ""
                wait_s, retry_s = _POLL_WAIT_S, _RETRY_BASE_S
                self.contacted.set()
                continue
            except FailedPreconditionError as error:
                problem = error.message
                retry_s = _RETRY_CAP_S
            except (HeadraceError, OSError) as error:
                problem = str(error)
            if self._stopped.is_set():
                return  # while all of this ends, control may be gone first
            if problem != self._failure:
                _LOG.warning("no newer release plan: %s; the last one stays", problem)
            self._failure = problem
            self.contacted.set()
            self._stopped.wait(retry_s * random.uniform(0.5, 1.5))
            retry_s = min(retry_s * 2, _RETRY_CAP_S)


def plan_of_folder(folder: Path) -> Plan:
    """Return a fixed plan in which each bundle of `folder` is live at weight 1.

    Raises NotFoundError when the folder is missing or holds no bundle, AlreadyExistsError for two
    bundles of one model, and what reading a bundle raises.
    """
    from trainer.bundle import read_bundle

    if not folder.is_dir():
        raise NotFoundError(f"no folder {folder}", mend="check --registry file://…")
    models: dict[str, Any] = {}
    for manifest in sorted(folder.glob("*/manifest.json")):
        bundle = read_bundle(manifest.parent)
        name = bundle.manifest.name
        if name in models:
            raise AlreadyExistsError(
                f"two bundles of model {name!r}",
                where=str(folder),
                mend="keep one; a split needs a control (`headrace control`)",
            )
        arm = {"arm": "a", "version": bundle.digest, "role": "live", "weight": 1.0}
        models[name] = {"policy": {"kind": "single"}, "arms": [arm]}
    if not models:
        raise NotFoundError(f"no bundle in {folder}", expected="FOLDER/NAME/manifest.json")
    return {"plan": 1, "models": models}
