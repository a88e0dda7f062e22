"""The metrics of all workers at one address: prometheus-client's parser reads what comes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metric, Sample, parts_of
from server.scrape import Portion, Scrape
from tests.server.onnx_models import add_model, put
from tests.server.processes.running import eventually
from tests.server.test_reload import Load, serving, workers

Values = dict[str, float]


def values_of(text: str, name: str) -> Values:
    """A family's values by worker. Prometheus refuses a text with one series twice, and so we."""
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    values: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in seen, key
            seen.add(key)
            if family.name == name:
                values[sample.labels.get("worker", "")] = sample.value
    return values


class FakeWorker:
    """One end of a scrape, whose worker counted `value`."""

    def __init__(self, folder: Path, slot: int, number: int, started_ns: int, value: float) -> None:
        paths = [folder / f"{each}.sock" for each in range(4)]
        self._portion = (number, started_ns, value)
        self.scrape = Scrape(self.portion, paths, slot)

    async def portion(self) -> Portion:
        number, started_ns, value = self._portion
        labels = {"model": 'worker="1"', "worker": str(number)}
        metric = Metric("nv_inference_count", "counter", "rows", [Sample(value, labels)])
        return Portion(number, started_ns, await parts_of([metric]))


async def test_whoever_is_scraped_tells_of_all(tmp_path: Path) -> None:
    workers = [FakeWorker(tmp_path, 0, 0, 1, 5), FakeWorker(tmp_path, 2, 1, 2, 7)]
    for worker in workers:
        await worker.scrape.start()
    for worker in workers:
        text = (await worker.scrape.text([])).decode()
        assert text.count("# TYPE nv_inference_count counter") == 1
        assert values_of(text, "nv_inference_count") == {"0": 5, "1": 7}
        assert values_of(text, "headrace_workers_silent") == {"": 0}
    for worker in workers:
        await worker.scrape.close()


async def test_of_two_workers_of_one_number_the_older_one_drains(tmp_path: Path) -> None:
    workers = [FakeWorker(tmp_path, 0, 1, 1, 100), FakeWorker(tmp_path, 1, 1, 2, 3)]
    for worker in workers:
        await worker.scrape.start()
    for worker in workers:
        text = (await worker.scrape.text([])).decode()
        assert values_of(text, "nv_inference_count") == {"1": 3, "1-draining": 100}
    for worker in workers:
        await worker.scrape.close()


async def test_who_was_killed_is_gone_and_who_hangs_is_counted(tmp_path: Path) -> None:
    killed = await asyncio.start_unix_server(lambda *_: None, tmp_path / "1.sock")
    killed.close()
    await killed.wait_closed()
    (tmp_path / "1.sock").touch()  # a socket that nobody listens on, or what is left of one

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"what is no portion")
        writer.close()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the other end gives up
        writer.close()

    hung = await asyncio.start_unix_server(hang, tmp_path / "2.sock")
    odd = await asyncio.start_unix_server(talk, tmp_path / "3.sock")
    worker = FakeWorker(tmp_path, 0, 0, 1, 5)
    await worker.scrape.start()
    text = (await asyncio.wait_for(worker.scrape.text([]), 5)).decode()
    assert values_of(text, "nv_inference_count") == {"0": 5}
    assert values_of(text, "headrace_workers_silent") == {"": 2}
    for server in (hung, odd):
        server.close()
    await worker.scrape.close()


@pytest.mark.slow
def test_the_counters_of_two_workers_and_of_one_that_was_killed(tmp_path: Path) -> None:
    put(tmp_path / "models", "add", add_model())

    def scraped(name: str) -> Values:
        with urllib.request.urlopen(f"http://{line['metrics']}/metrics", timeout=10) as answer:
            return values_of(answer.read().decode(), name)

    with serving(tmp_path / "models", tmp_path / "data") as (process, line):
        with Load(line["grpc"]) as load:
            load.goes_on()
        answered = sum(load.answered)
        for _ in range(8):  # whoever of them is met
            counts = scraped("nv_inference_request_success")
            assert set(counts) == {"0", "1"}
            assert sum(counts.values()) == answered
            assert scraped("nv_cpu_utilization").keys() == {""}
        os.kill(workers(tmp_path / "data")["worker-1"], signal.SIGKILL)

        def anew() -> bool:
            try:
                again = scraped("nv_inference_request_success")
            except OSError:  # it met the one that was killed
                return False
            assert again["0"] == counts["0"]
            return again.get("1") == 0

        eventually(anew, "the counters of the other one stay, and its own begin anew")
        assert process.end() == 0
