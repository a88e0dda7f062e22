"""Python models as Triton's users write them: what they get, what they answer, what they say."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from server.execution.engine import Asked
from tests.server.backends.serving import Served, config, outputs, put_python
from tests.server.onnx_models import add_model, put

pytestmark = pytest.mark.slow

ECHO = """
def execute(self, requests):
    found = []
    for request in requests:
        array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        found.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)]))
    return found
"""
SEEN = """
def initialize(self, args):
    self.args = args
    pb_utils.Logger.log_warn("a warning")
    print("printed", file=sys.stderr)

def execute(self, requests):
    return [self.answer(request, len(requests)) for request in requests]

def answer(self, request, count):
    said = {
        "id": request.request_id(), "wanted": request.requested_output_names(),
        "parameters": json.loads(request.parameters()), "count": count,
        "args": self.args, "correlation": request.correlation_id(), "timeout": request.timeout(),
        "cancelled": request.is_cancelled(), "dtype": request.inputs()[0].triton_dtype(),
        "none": pb_utils.get_input_tensor_by_name(request, "nothing"),
        "config": pb_utils.get_output_config_by_name(
            json.loads(self.args["model_config"]), "SAID")["data_type"],
    }
    tensor = pb_utils.Tensor("SAID", np.array([json.dumps(said).encode()], object))
    return pb_utils.InferenceResponse([tensor], parameters={"answered": True, "by": "seen"})
"""
WRONG = """
def execute(self, requests):
    def failed(*what):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(*what))

    kind = int(pb_utils.get_input_tensor_by_name(requests[0], "KIND").as_numpy()[0])
    answers = [
        [failed("not there", pb_utils.TritonError.NOT_FOUND)], [failed("plain")],
        [], None, "text", [None], [pb_utils.InferenceResponse([])],
    ]
    if kind == 7:
        raise ValueError("seven is too many")
    if kind == 8:
        raise pb_utils.TritonModelException("what a model says")
    if kind == 9:
        pb_utils.Tensor("OUT", [1, 2])
    return answers[kind]
"""
COMPLETED = """
@staticmethod
def auto_complete_config(config):
    names = [tensor["name"] for tensor in config.as_dict()["input"]]
    config.add_input({"name": "IN", "data_type": "TYPE_FP32", "dims": [2]})
    config.add_input({"name": "MORE", "data_type": "TYPE_FP32", "dims": [2], "optional": True})
    config.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]})
    config.set_max_batch_size(8)
    config.set_dynamic_batching()
    return config

def execute(self, requests):
    found = []
    for request in requests:
        sum = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        more = pb_utils.get_input_tensor_by_name(request, "MORE")
        if more is not None:
            sum = sum + more.as_numpy()
        found.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", sum * len(requests))]))
    return found
"""
PLACE = """
def execute(self, requests):
    import helper, server
    text = f"{helper.WHO} {server.WHO} {os.getpid()} {__name__}"
    time.sleep(0.2)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], object))])]
"""
SENDER = """
def execute(self, requests):
    sender = requests[0].get_response_sender()
    array = pb_utils.get_input_tensor_by_name(requests[0], "IN").as_numpy()

    def later():
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    threading.Thread(target=later).start()
"""
ASYNC = """
async def execute(self, requests):
    array = pb_utils.get_input_tensor_by_name(requests[0], "IN").as_numpy()
    asks = [
        pb_utils.InferenceRequest(
            model_name="add", requested_output_names=["OUTPUT0"],
            inputs=[pb_utils.Tensor(name, array + number) for name in ("INPUT0", "INPUT1")],
        ).async_exec()
        for number in range(3)
    ]
    answers = await asyncio.gather(*asks)
    assert all(len(answer.output_tensors()) == 1 for answer in answers)
    sums = [pb_utils.get_output_tensor_by_name(a, "OUTPUT0").as_numpy() for a in answers]
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", sum(sums))])]
"""
MANY = """
async def execute(self, requests):
    (wanted,) = pb_utils.get_input_tensor_by_name(requests[0], "IN").as_numpy().tolist()

    def ask(number):
        return pb_utils.InferenceRequest(
            model_name="slow", requested_output_names=["OUT"],
            inputs=[pb_utils.Tensor("IN", np.array([[number]], np.int32))],
        ).async_exec()

    given_up = [ask(-1) for _ in range(20)]
    for each in given_up:
        each.cancel()
    answers = await asyncio.gather(*map(ask, range(wanted)))
    array = np.array([a.output_tensors()[0].as_numpy()[0, 0] for a in answers], np.int32)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])]
"""
SLOW = ECHO.replace("found = []", "time.sleep(0.2); found = []")
KNOWS = """
def execute(self, requests):
    pairs = [("echo", ""), ("echo", "1"), ("echo", "9"), ("add", ""), ("nope", "")]
    ready = [pb_utils.is_model_ready(*pair) for pair in pairs]
    texts = np.array([b"", "na\u00efve".encode(), b"\\xff"], object)
    raw = pb_utils.serialize_byte_tensor(texts)
    assert pb_utils.deserialize_bytes_tensor(raw).tolist() == texts.tolist()
    assert raw[:8] == bytes(4) + (6).to_bytes(4, "little")
    for cut in (raw[:-1], raw[:2]):
        try:
            pb_utils.deserialize_bytes_tensor(cut)
        except ValueError:
            continue
        raise AssertionError("it is cut off")
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array(ready))])]
"""
ASKS = """
def execute(self, requests):
    name = pb_utils.get_input_tensor_by_name(requests[0], "MODEL").as_numpy()[0]  # bytes
    request = pb_utils.InferenceRequest(
        model_name=name, requested_output_names=[],
        inputs=[pb_utils.Tensor("IN", np.arange(4, dtype=np.float32))],
    )
    answer = request.exec()
    if answer.has_error():
        text = f"{answer.error().code()} {answer.error().message()}"
    else:
        text = str(answer.output_tensors()[0].as_numpy().tolist())
    return [pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([text], object))])]
"""
LARGE = """
def execute(self, requests):
    array = pb_utils.get_input_tensor_by_name(requests[0], "IN").as_numpy()
    array *= 2  # it may be written to
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])]
"""


@pytest.fixture(scope="module", params=[2, 1], ids=["two cores", "one core"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Where models leave the loop a core, and where it stays with their runs."""
    root = tmp_path_factory.mktemp("models")
    put(root, "add", add_model())
    put_python(root, "echo", ECHO, config("IN:FP32:-1", "OUT:FP32:-1"))
    put_python(root, "text", ECHO, config("IN:STRING:-1", "OUT:STRING:-1"))
    put_python(root, "half", ECHO, config("IN:FP16:-1", "OUT:FP16:-1"))
    put_python(root, "seen", SEEN, config("IN:INT32:1", "SAID:STRING:1 OTHER:FP32:1"))
    put_python(root, "wrong", WRONG, config("KIND:INT32:1", "OUT:FP32:1"))
    put_python(root, "completed", COMPLETED)
    folder = put_python(
        root, "place", PLACE,
        config("IN:INT32:1", "OUT:STRING:1", "instance_group { count: 2 kind: KIND_CPU }"),
    )  # fmt: skip
    (folder / "1" / "helper.py").write_text("WHO = 'beside'")
    (folder / "server").mkdir()
    (folder / "server" / "__init__.py").write_text("WHO = 'own'")
    put_python(root, "sender", SENDER, config("IN:FP32:2", "OUT:FP32:2"))
    put_python(root, "async", ASYNC, config("IN:INT32:1,4", "OUT:INT32:1,4"))
    put_python(root, "many", MANY, config("IN:INT32:1", "OUT:INT32:-1"))
    put_python(
        root, "slow", SLOW,
        config("IN:INT32:1", "OUT:INT32:1", "dynamic_batching {}", batch=256),
    )  # fmt: skip
    put_python(root, "knows", KNOWS, config("IN:INT32:1", "OUT:BOOL:-1"))
    put_python(root, "asks", ASKS, config("MODEL:STRING:1", "SAID:STRING:1"))
    put_python(root, "large", LARGE, config("IN:FP64:-1", "OUT:FP64:-1"))
    with Served(root, cores=request.param) as served:
        yield served


def said(answer: dict[str, Any], name: str = "SAID") -> str:
    value: bytes = answer[name][0]
    return value.decode()


def test_all_of_them_serve(served: Served) -> None:
    assert [entry for entry in served.repository.index() if entry.state != "READY"] == []


@pytest.mark.parametrize(
    ("model", "array"),
    [
        ("echo", np.arange(5, dtype=np.float32)),
        ("echo", np.zeros(0, np.float32)),
        ("half", np.array([1.5, -2], np.float16)),
        ("text", np.array([b"", "naïve".encode(), b"\xff\x00"], object)),
    ],
)
def test_tensors_come_back_as_they_went(served: Served, model: str, array: Any) -> None:
    found = served.infer(model, IN=array)["OUT"]
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


def test_what_a_model_is_told(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    import json

    answer = served.run(
        served.answer(
            "seen", {"IN": np.array([1], np.int32)}, request_id="r1", wanted=["SAID"],
            parameters={"temperature": 0.5, "name": "x", "timeout": 30_000_000},
        )
    )  # fmt: skip
    assert answer.parameters == {"answered": True, "by": "seen"}
    assert [output.name for output in answer.outputs] == ["SAID"]
    found = json.loads(said(outputs(answer)))
    args = found.pop("args")
    assert found == {
        "id": "r1", "wanted": ["SAID"], "count": 1, "correlation": 0, "timeout": 30_000_000,
        "parameters": {"temperature": 0.5, "name": "x", "timeout": 30_000_000},
        "cancelled": False, "dtype": 8, "none": None, "config": "TYPE_STRING",
    }  # fmt: skip
    assert args["model_name"] == "seen"
    assert args["model_version"] == "1"
    assert args["model_instance_name"] == "seen_0_0"
    assert (args["model_instance_kind"], args["model_instance_device_id"]) == ("CPU", "0")
    assert Path(args["model_repository"]).name == "seen"
    assert json.loads(args["model_config"])["input"][0]["dims"] == [1]


def test_an_output_that_nobody_made(served: Served) -> None:
    row = {"IN": np.array([1], np.int32)}
    assert list(served.infer("seen", **row)) == ["SAID"]
    with pytest.raises(InternalError, match="gave no output 'OTHER'"):
        served.run(served.answer("seen", row, wanted=["SAID", "OTHER"]))


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        (0, NotFoundError, "not there"),
        (1, InternalError, "plain"),
        (
            2,
            InternalError,
            r"InferenceResponse\(s\) size is:0",
        ),
        (3, InternalError, "Expected a list in the execute return, found type 'NoneType'"),
        (4, InternalError, "found type 'str'"),
        (5, InternalError, "Expected an 'InferenceResponse' object"),
        (7, InternalError, "model instance 'wrong_0_0', message: ValueError: seven is too many"),
        (8, InternalError, "what a model says"),
        (9, InternalError, "expected a NumPy array, got list"),
    ],
)
def test_errors_of_a_model(served: Served, kind: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        served.infer("wrong", KIND=np.array([kind], np.int32))
    assert served.infer("wrong", KIND=np.array([6], np.int32)) == {}


def test_a_configuration_that_the_model_completes(served: Served) -> None:
    model = served.repository.get("completed")
    assert model.max_batch_size == 8
    assert list(model.inputs) == ["IN", "MORE"]
    row = np.ones((1, 2), np.float32)
    many: list[dict[str, Any]] = [{"IN": row * n} for n in range(4)]
    many += [{"IN": row, "MORE": row * 3}]
    found = [answer["OUT"].tolist() for answer in served.infers("completed", many)]
    # Requests of one shape run in one `execute`; that with an optional input is another.
    assert found == [[[4.0 * n] * 2] for n in range(4)] + [[[4.0] * 2]]
    with pytest.raises(InvalidArgumentError, match=r"missing required input\(s\) \['IN'\]"):
        served.infer("completed", MORE=row)


def test_instances_run_beside_each_other_with_modules_of_their_own(served: Served) -> None:
    many = [{"IN": np.array([1], np.int32)}] * 4
    found = [said(answer, "OUT").split() for answer in served.infers("place", many)]
    assert {tuple(words[:2]) for words in found} == {("beside", "own")}
    assert len({words[2] for words in found}) == 2


def test_a_sender_of_one_response(served: Served) -> None:
    array = np.array([1, 2], np.float32)
    assert served.infer("sender", IN=array)["OUT"].tolist() == [1, 2]


def test_requests_to_other_models_at_once(served: Served) -> None:
    found = served.infer("async", IN=np.ones((1, 4), np.int32))["OUT"]
    assert found.tolist() == [[2 + 4 + 6] * 4]


def test_many_requests_to_another_model_are_under_way_together(served: Served) -> None:
    """More than Python's default executor has threads; more than may wait without one each."""
    found = served.infer("many", IN=np.array([400], np.int32))["OUT"]
    assert found.tolist() == list(range(400))
    (counted,) = served.protocol.statistics("slow", "")["model_stats"]
    assert counted["inference_count"] >= 400
    assert counted["execution_count"] < 400 / 6


def test_what_a_model_can_ask_of_the_server_and_of_its_utilities(served: Served) -> None:
    found = served.infer("knows", IN=np.array([1], np.int32))["OUT"]
    assert found.tolist() == [True, True, False, True, False]


def test_what_a_request_to_another_model_answers(served: Served) -> None:
    def ask(name: str) -> str:
        return said(served.infer("asks", MODEL=np.array([name.encode()], object)))

    assert ask("echo") == "[0.0, 1.0, 2.0, 3.0]"
    assert ask("nope") == "2 Request for unknown model: 'nope' is not found"
    assert ask("add").startswith("3 ")
    assert "gave no output" not in ask("wrong")


def test_large_tensors_again_and_again(served: Served) -> None:
    array = np.arange(1_000_000, dtype=np.float64)
    for _ in range(5):
        found = served.infer("large", IN=array)["OUT"]
        assert np.array_equal(found, array * 2)
    assert array[1] == 1


def test_what_runs_is_counted(served: Served) -> None:
    served.infer("echo", IN=np.ones(1, np.float32))
    (found,) = served.protocol.statistics("echo", "")["model_stats"]
    assert found["inference_count"] == found["execution_count"] > 0
    assert found["inference_stats"]["compute_infer"]["ns"] > 0
    metadata = served.protocol.metadata("echo", "")
    assert metadata["platform"] == "python"


@pytest.mark.parametrize(
    ("body", "settings", "text"),
    [
        ("def initialize(self, args):\n    raise ValueError('no weights')\n" + ECHO,
         config("IN:FP32:1", "OUT:FP32:1"), "ValueError: no weights"),
        ("pass", config("IN:FP32:1", "OUT:FP32:1"), "no method 'execute'"),
        ("import nothing_like_it", config("IN:FP32:1", "OUT:FP32:1"), "nothing_like_it"),
        ("def execute(self, requests): os._exit(3)\nos._exit(3)",
         config("IN:FP32:1", "OUT:FP32:1"), "exit code 3"),
        (ECHO, 'backend: "python"', "no input is configured"),
        (ECHO, config("IN:BF16:1", "OUT:FP32:1"), "TYPE_BF16"),
        (ECHO, config("IN:FP32:1 IN:FP32:1", "OUT:FP32:1"), "have one name"),
        (ECHO, config("IN:FP32:1", "OUT:FP32:1", 'parameters { key: "EXECUTION_ENV_PATH" '
         'value { string_value: "x.tar.gz" } }'), "EXECUTION_ENV_PATH is not supported"),
        (ECHO, config("IN:FP32:1", "OUT:FP32:1", 'parameters { key: "EXECUTE_SECONDS_MAX" '
         'value { string_value: "soon" } }'), "EXECUTE_SECONDS_MAX"),
        ("def initialize(self, args):\n    time.sleep(60)\n" + ECHO,
         config("IN:FP32:1", "OUT:FP32:1", 'parameters { key: "START_SECONDS_MAX" '
         'value { string_value: "0.5" } }'), "did not start in time"),
        ("@staticmethod\ndef auto_complete_config(config):\n    config.set_max_batch_size(2)\n"
         + ECHO, config("IN:FP32:1", "OUT:FP32:1", batch=4), "max_batch_size"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded_says_why(
    tmp_path: Path, body: str, settings: str, text: str
) -> None:
    put_python(tmp_path, "bad", body, settings)
    put(tmp_path, "add", add_model())
    with Served(tmp_path) as served:
        assert text in served.reason("bad")
        assert str(tmp_path) not in served.reason("bad")
        assert [model.name for model in served.repository.models()] == ["add"]


def test_code_never_comes_with_a_request(served: Served) -> None:
    from server.models.loading import Overrides

    overrides = Overrides('{"backend": "python"}', {"1/model.py": b"raise SystemExit"})
    with pytest.raises(InternalError, match="cannot come with a request"):
        served.run(served.repository.load("echo", overrides))
    assert served.infer("echo", IN=np.ones(1, np.float32))["OUT"].tolist() == [1.0]


def test_what_it_prints_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_python(tmp_path, "seen", SEEN + '\ndef finalize(self):\n    print("ended well")\n',
               config("IN:INT32:1", "SAID:STRING:1"))  # fmt: skip
    with caplog.at_level(logging.INFO), Served(tmp_path) as served:
        served.infer("seen", IN=np.array([1], np.int32))
        served.run(served.repository.unload("seen"))
        with pytest.raises((NotFoundError, UnavailableError)):
            served.infer("seen", IN=np.array([1], np.int32))
    for text in ("model seen: a warning", "model seen: printed", "model seen: ended well"):
        assert text in caplog.text


def test_one_that_is_loaded_again_is_the_new_one(tmp_path: Path) -> None:
    settings = config("IN:FP32:1", "OUT:FP32:1")
    put_python(tmp_path, "m", ECHO, settings)
    row = np.ones(1, np.float32)
    with Served(tmp_path) as served:
        before = served.repository.get("m")
        put_python(tmp_path, "m", ECHO.replace("array)])", "array * 3)])"), settings)
        served.run(served.repository.load("m"))
        assert served.infer("m", IN=row)["OUT"].tolist() == [3.0]
        put_python(tmp_path, "m", "raise ValueError('broken')", settings)
        with pytest.raises(InternalError, match="broken"):
            served.run(served.repository.load("m"))
        assert served.infer("m", IN=row)["OUT"].tolist() == [3.0]
        with pytest.raises(UnavailableError):
            served.run(before.infer([row], 1, Asked()))


def test_a_decoupled_model_is_not_asked_for_one_response(tmp_path: Path) -> None:
    body = "def execute(self, requests):\n    return None"
    policy = "model_transaction_policy { decoupled: true }"
    put_python(tmp_path, "many", body, config("IN:FP32:1", "OUT:FP32:1", policy))
    with Served(tmp_path) as served, pytest.raises(UnimplementedError, match="decoupled"):
        served.infer("many", IN=np.ones(1, np.float32))


def test_what_it_loads_is_listed_and_warmed_up(tmp_path: Path) -> None:
    """As of any other model: SHA256SUMS, and `model_warmup` before anybody is answered."""
    sample = (
        'model_warmup { name: "first" batch_size: 1 inputs { key: "KIND" value '
        "{ data_type: TYPE_INT32 dims: [1] %s } } }"
    )
    settings = config("KIND:INT32:1", "OUT:FP32:1")
    put_python(tmp_path, "fails", WRONG, settings + sample % "zero_data: true")
    counting = ECHO.replace("found = []", "found = []\n    print('was run')")
    put_python(tmp_path, "warm", counting.replace("IN", "KIND"),
               config("KIND:INT32:1", "OUT:INT32:1") + sample % "zero_data: true")  # fmt: skip
    for name in ("listed", "changed"):
        put_python(tmp_path, name, ECHO, config("IN:FP32:1", "OUT:FP32:1"))
        folder = tmp_path / name / "1"
        digest = hashlib.sha256((folder / "model.py").read_bytes()).hexdigest()
        (folder / "SHA256SUMS").write_text(f"{digest}  model.py\n")
    with (tmp_path / "changed" / "1" / "model.py").open("a") as file:
        file.write("# another byte\n")
    with Served(tmp_path) as served:
        assert [model.name for model in served.repository.models()] == ["listed", "warm"]
        assert "failed to run warmup sample 'first': not there" in served.reason("fails")
        assert "other bytes than are listed" in served.reason("changed")
