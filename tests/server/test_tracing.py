"""Traces of a whole server: a real client's headers, and what a collector gets of them."""

from __future__ import annotations

import secrets
import urllib.request
from pathlib import Path

import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http

from tests.server.onnx_models import put
from tests.server.processes.running import eventually
from tests.server.test_reload import serving
from tests.server.test_request_lines import asking, pick_model
from tests.server.test_serve import FREE_PORTS, serve
from tests.support.otlp_collector import CAN_EXPORT, OtlpCollector, attributes_of

pytestmark = pytest.mark.slow
needs_exporter = pytest.mark.skipif(
    not CAN_EXPORT, reason="OpenTelemetry's exporter is not installed"
)
SPAN = "00f067aa0ba902b7"


def caller(flags: str) -> tuple[str, dict[str, str]]:
    trace = secrets.token_hex(16)
    return trace, {"traceparent": f"00-{trace}-{SPAN}-{flags}"}


@needs_exporter
def test_who_records_is_traced_on_both_wires_and_others_are_not(tmp_path: Path) -> None:
    put(tmp_path / "models", "pick", pick_model())
    with OtlpCollector() as collector:
        arguments = ("--trace-endpoint", collector.endpoint, "--trace-rate", "0")
        with serving(tmp_path / "models", tmp_path / "data", *arguments) as (process, line):
            recorded, quiet = [], []
            for name in ("grpc", "http"):
                with asking(line, name) as ask:
                    for number in range(5):  # by gRPC from the second on they go through the door
                        trace, headers = caller("01")
                        recorded.append((trace, f"{name}-{number}"))
                        ask(1, f"{name}-{number}", headers)
                        trace, headers = caller("00")
                        quiet.append(trace)
                        ask(1, f"{name}-{number}", headers)
                        ask(1, f"{name}-{number}", {})
            for trace, request_id in recorded:
                server = collector.named("ModelInfer", trace)
                assert server.parent_span_id.hex() == SPAN
                assert attributes_of(server) == {
                    "triton.model_name": "pick", "triton.model_version": "1",
                    "triton.request_id": request_id, "rpc.grpc.status_code": 0,
                }  # fmt: skip
                model = collector.named("model", trace)
                queue = collector.named("queue", trace)
                assert model.parent_span_id == queue.parent_span_id == server.span_id
                assert queue.end_time_unix_nano == model.start_time_unix_nano
                assert attributes_of(model)["headrace.batch_rows"] == 1
            assert {span.trace_id.hex() for span in collector.spans} == {t for t, _ in recorded}
            with urllib.request.urlopen(f"http://{line['metrics']}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            sent = [
                float(each.rpartition(" ")[2])
                for each in text.splitlines()
                if each.startswith("headrace_traces_sent_total{")
            ]
            assert len(sent) == 2
            assert sum(sent) == len(recorded)
            assert process.end() == 0
        assert {each["service.name"] for each in collector.resources} == {"headrace"}


@needs_exporter
def test_clients_turn_it_on_and_off_in_all_workers(tmp_path: Path) -> None:
    put(tmp_path / "models", "pick", pick_model())
    with OtlpCollector() as collector:
        arguments = ("--trace-endpoint", collector.endpoint, "--trace-rate", "0")
        with serving(tmp_path / "models", tmp_path / "data", *arguments) as (process, line):

            def rates() -> set[str]:
                found = set()
                for _ in range(4):  # new connections alternate between the workers
                    with triton_http.InferenceServerClient(line["http"]) as client:
                        found.add(client.get_trace_settings("pick")["trace_rate"])
                return found

            with triton.InferenceServerClient(line["grpc"]) as client:
                assert "trace" in client.get_server_metadata().extensions
                client.update_trace_settings("pick", {"trace_rate": "1"})
                with pytest.raises(triton.InferenceServerException, match="trace file location"):
                    client.update_trace_settings(settings={"trace_file": "x"})
            eventually(lambda: rates() == {"1"}, "every worker has it")
            for name in ("grpc", "http"):
                with asking(line, name) as ask:
                    for number in range(3):
                        ask(1, f"{name}-{number}", {})
            eventually(
                lambda: sum(span.name == "ModelInfer" for span in list(collector.spans)) == 6,
                "all are traced",
            )
            assert all(
                not span.parent_span_id for span in collector.spans if span.name == "ModelInfer"
            )
            assert process.end() == 0


def test_what_cannot_be_traced_is_refused_at_the_start(tmp_path: Path) -> None:
    arguments = (
        "--model-repository",
        str(tmp_path),
        *FREE_PORTS,
        "--data-dir",
        str(tmp_path / "d"),
    )
    with serve(*arguments, "--trace-endpoint", "http://user:secret@host/v1/traces") as process:
        assert process.wait() == 1
        assert "OTEL_EXPORTER_OTLP_HEADERS" in process.text
        assert "secret" not in process.text
    if not CAN_EXPORT:
        with serve(*arguments, "--trace-endpoint", "http://host:4318/v1/traces") as process:
            assert process.wait() == 1
            assert "pip install" in process.text
