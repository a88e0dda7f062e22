"""Feast, in an environment of its own: fills the store, encodes requests, reads answers, is timed.

A process of `harness.Side`: each line of stdin is a command with its arguments, see `_Feast`.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.features_parts import facts

CONFIG = """project: headrace
provider: local
registry:
  path: {folder}/registry.db
  cache_ttl_seconds: 86400
online_store:
  type: redis
  connection_string: "127.0.0.1:{port}"
offline_store:
  type: file
entity_key_serialization_version: 3
"""
AGE = timedelta(hours=1)  # of every value


def write_config(folder: Path, port: int) -> None:
    """Write the repository's file for a store on that port."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feature_store.yaml").write_text(CONFIG.format(folder=folder, port=port))


def answer(_name: str, source: str) -> None:
    """Do what each line of stdin says; what Feast prints goes to stderr."""
    out, sys.stdout = sys.stdout, sys.stderr
    os.environ["FEAST_USAGE"] = "False"
    feast = _Feast(source)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(getattr(feast, command)(*arguments)), file=out, flush=True)


class _Feast:
    def __init__(self, folder: str) -> None:
        from feast import FeatureStore

        self._folder = Path(folder)
        self._store = FeatureStore(repo_path=folder)

    def fill(self) -> dict[str, Any]:
        """Apply the definitions, and write every entity's features."""
        import pandas as pd
        from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
        from feast.types import Float64

        for width in facts.WIDTHS:
            key, names = facts.key_of(width), facts.names_of(width)
            file = self._folder / f"{width}.parquet"
            columns = dict(zip(names, facts.values_of(width).T, strict=True))
            frame = pd.DataFrame(
                {key: facts.ids(), **columns, "event_time": datetime.now(UTC) - AGE}
            )
            frame.to_parquet(file)
            entity = Entity(name=f"user_{width}", join_keys=[key], value_type=ValueType.INT64)
            view = FeatureView(
                name=facts.view_of(width),
                entities=[entity],
                schema=[Field(name=name, dtype=Float64) for name in names],
                ttl=timedelta(0),
                source=FileSource(path=str(file), timestamp_field="event_time"),
            )
            service = FeatureService(name=facts.service_of(width), features=[view])
            self._store.apply([entity, view, service])
            self._store.write_to_online_store(facts.view_of(width), frame)
        return {}

    def bodies(self, width: int, calls: list[list[int]]) -> dict[str, Any]:
        """Return the messages of calls to the gRPC server, and to the HTTP server."""
        from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesRequest
        from feast.protos.feast.types.Value_pb2 import Value

        key, service = facts.key_of(width), facts.service_of(width)
        messages = []
        for entities in calls:
            request = GetOnlineFeaturesRequest(feature_service=service)
            request.entities[key].val.extend(Value(int64_val=each) for each in entities)
            messages.append(base64.b64encode(request.SerializeToString()).decode())
        documents = [{"feature_service": service, "entities": {key: each}} for each in calls]
        return {"grpc": messages, "http": [json.dumps(each) for each in documents]}

    def values(self, width: int, message: str) -> dict[str, Any]:
        """Return the values of a gRPC server's answer, by entity."""
        from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

        reply = GetOnlineFeaturesResponse.FromString(base64.b64decode(message))
        columns = {
            name: [value.double_val for value in result.values]
            for name, result in zip(reply.metadata.feature_names.val, reply.results, strict=True)
        }
        return {"values": _rows(columns, width)}

    def measure(self, width: int, rows: int, run_s: float) -> dict[str, Any]:
        """Call the SDK one call at a time; return µs a call, and what is wrong about an answer.

        The answer is left as Feast's message: making a dictionary of it is not counted.
        """
        service = self._store.get_feature_service(facts.service_of(width))
        key = facts.key_of(width)
        calls = facts.calls_of(facts.calls_for(rows), rows)
        requests = [[{key: each} for each in entities] for entities in calls]
        read = self._store.get_online_features
        problem = None
        for entities, request in zip(calls, requests, strict=True):
            columns = read(features=service, entity_rows=request).to_dict()
            problem = problem or facts.wrong(_rows(columns, width), entities, width)
        done, start_s = 0, time.perf_counter()
        for request in itertools.cycle(requests):
            read(features=service, entity_rows=request)
            done += 1
            if time.perf_counter() - start_s >= run_s:
                break
        return {
            "us": (time.perf_counter() - start_s) / done * 1e6,
            "problem": problem,
            "checked": len(calls),
        }


def _rows(columns: dict[str, list[float]], width: int) -> list[list[float]]:
    return [list(row) for row in zip(*(columns[n] for n in facts.names_of(width)), strict=True)]
