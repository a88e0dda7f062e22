import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.pipeline import Pipeline, Run


@dataclass(kw_only=True)
class Sums(Run):
    to: Path
    total: int = 0

    @property
    def folder(self) -> Path:
        return self.to / self.run_id


def read(context: Sums) -> None:
    context.total = 1
    context.inputs["numbers"] = "sha256:1"


def double(context: Sums) -> None:
    context.report("half way", 0.5)
    context.total *= 2
    context.parameters["factor"] = 2
    context.outputs["sum"] = "sha256:2"


def fail(context: Sums) -> None:
    raise ArithmeticError("no")


def test_steps_run_in_order_and_say_where_they_are(tmp_path):
    told = []
    context = Sums(code=tmp_path, to=tmp_path, progress=lambda *arguments: told.append(arguments))
    record = Pipeline("sums", [read, double]).run(context)
    assert context.total == 2
    assert told == [
        ("read", "", 0.0), ("read", "", 1.0),
        ("double", "", 0.0), ("double", "half way", 0.5), ("double", "", 1.0),
    ]  # fmt: skip
    assert record["run"] == context.run_id
    assert record["event_type"] == "COMPLETE"
    assert record["failed_step"] is None
    assert record["job"] == {"namespace": "headrace", "name": "sums"}
    assert [step["name"] for step in record["steps"]] == ["read", "double"]
    assert all(step["seconds"] >= 0 for step in record["steps"])
    assert record["inputs"] == [{"namespace": "headrace", "name": "numbers", "digest": "sha256:1"}]
    assert record["outputs"] == [{"namespace": "headrace", "name": "sum", "digest": "sha256:2"}]
    assert record["parameters"] == {"factor": 2}
    assert record["started"] <= record["ended"]
    assert record["environment_digest"].startswith("sha256:")


def test_the_record_lies_beside_the_results(tmp_path):
    context = Sums(code=tmp_path, to=tmp_path)
    record = Pipeline("sums", [read]).run(context)
    assert json.loads((tmp_path / context.run_id / "run.json").read_bytes()) == record


def test_a_step_that_fails_ends_the_run_and_is_on_record(tmp_path):
    context = Sums(code=tmp_path, to=tmp_path)
    with pytest.raises(ArithmeticError):
        Pipeline("sums", [read, fail, double]).run(context)
    record = json.loads((context.folder / "run.json").read_bytes())
    assert record["event_type"] == "FAIL"
    assert record["failed_step"] == "fail"
    assert [step["name"] for step in record["steps"]] == ["read"]
    assert context.total == 1


def test_runs_have_names_of_their_own(tmp_path):
    assert len({Sums(code=tmp_path, to=tmp_path).run_id for _ in range(10)}) == 10
