"""The monitor's own process: `python -m server.control.monitor_run DATA_DIR`.

It reads one JSON request a line on stdin, runs the monitor's job over the files, and answers one
JSON line on stdout. A process of its own, at low priority, because the job is minutes of computing
in the worst case and control's loop holds the ingester, on whose latency predictions wait.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features import CompiledService, FeatureBatch, definitions_from_source
from headrace.errors import FailedPreconditionError, HeadraceError, InvalidArgumentError
from monitor.daily import DayProfile, Decode, decode_days
from monitor.job import run
from monitor.profile import Profile, profile_from_table
from server import logs
from trainer.bundle import Manifest
from trainer.registry import ArtifactStore

_LOG = logging.getLogger("headrace")

_NICENESS = 10
_BASELINE = "baseline.msgpack"
_HEAD_BYTES = 8  # of a packed row: its schema id and how many features it has

# The last: names by which truth of this model may go, the likeliest first.
Loaded = tuple[Profile, Decode, list[DayProfile], list[str]]


class MonitorRequest(msgspec.Struct, frozen=True):
    """Run for one model up to and with the UTC day `through`, against this version's profile."""

    model: str
    version: str
    through: date


class MonitorReply(msgspec.Struct, frozen=True):
    """`result` is the job's (JSON), or `code` and `error` say what was wrong."""

    result: Any = None
    code: str | None = None
    error: str | None = None


class Monitor:
    """Runs requests on one data folder; keeps what it loaded of the last version."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._artifacts = ArtifactStore(data_dir / "artifacts")
        self._loaded: dict[str, Loaded] = {}

    def answer(self, request: MonitorRequest) -> MonitorReply:
        """Run the job, which keeps its reports and incidents, and return its result."""
        try:
            profile, decode, baseline, truth_names = self._load(request.version)
            result = run(
                self._data_dir,
                request.model,
                profile,
                decode,
                request.through,
                baseline_days=baseline,
                truth_names=truth_names,
            )
        except HeadraceError as error:
            return MonitorReply(code=error.code, error=error.message)
        except Exception:  # noqa: BLE001 - the process boundary: the next request may do
            _LOG.exception("the monitor failed")
            return MonitorReply(code="internal", error="the monitor failed; its log says why")
        return MonitorReply(result=result)

    def _load(self, version: str) -> Loaded:
        known = self._loaded.get(version)
        if known is None:
            manifest = self._artifacts.verify(version)
            if manifest.feature_service is None:
                raise FailedPreconditionError(
                    "the live version has no feature service: there are no features to watch",
                    where=f"model {manifest.name!r}",
                )
            digests = {file.path: file.sha256 for file in manifest.files}
            with pa.ipc.open_file(self._artifacts.read(digests["profile.arrow"])) as file:
                profile = profile_from_table(file.read_all())
            decode = _decoder(manifest, self._artifacts.read(digests["definitions.py"]))
            baseline = (
                decode_days(self._artifacts.read(digests[_BASELINE]))
                if _BASELINE in digests
                else []
            )
            # Of two classes the second is what happened: `late`, not `on_time`.
            classes = manifest.decision.classes if manifest.decision is not None else []
            known = (profile, decode, baseline, classes[::-1])
            self._loaded = {version: known}
        return known


def _decoder(manifest: Manifest, source: bytes) -> Decode:
    assert manifest.feature_service is not None
    service = definitions_from_source(source).service(manifest.feature_service.name)
    # The job hands over rows without nulls.
    return lambda rows: decode_rows(service, [row or b"" for row in rows.to_pylist()])


def decode_rows(service: CompiledService, rows: list[bytes]) -> NDArray[np.float32]:
    """Return float32 [rows, F] of packed rows, null as NaN.

    A row of another service (a challenger's, say) has other features: all of it is NaN, because
    they are not this profile's. The schema id in front of a row tells rows of one service apart.
    """
    matrix = np.full((len(rows), len(service.columns)), np.nan, np.float32)
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row[:_HEAD_BYTES], []).append(number)
    for head, numbers in groups.items():
        schema_id = int.from_bytes(head[:4], "little")
        try:
            batch = FeatureBatch.unpack(service, [rows[n] for n in numbers], schema_id)
        except InvalidArgumentError:
            continue
        matrix[numbers] = batch.matrix()
    return matrix


def main() -> None:
    """Answer until stdin ends: control is gone then."""
    logs.setup("monitor")
    os.nice(_NICENESS)
    monitor = Monitor(Path(sys.argv[1]))
    decoder = msgspec.json.Decoder(MonitorRequest)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(monitor.answer(decoder.decode(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
