"""The REST peer: FastAPI on uvicorn (uvloop, httptools), the Open Inference Protocol, one model.

Runs in the peer's own environment: `python rest_peer.py ONNX_FILE`; prints its port once it serves.
"""

import json
import socket
import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

OPTIONS = onnxruntime.SessionOptions()
OPTIONS.intra_op_num_threads = 1
OPTIONS.inter_op_num_threads = 1
SESSION = onnxruntime.InferenceSession(sys.argv[1], OPTIONS, providers=["CPUExecutionProvider"])
LENGTH_HEADER = "inference-header-content-length"
app = FastAPI()


class Input(BaseModel):
    """One input tensor as JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Call(BaseModel):
    """An inference request as JSON."""

    inputs: list[Input]
    id: str = ""


class Output(BaseModel):
    """One output tensor as JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Answer(BaseModel):
    """An inference response as JSON."""

    model_name: str
    model_version: str
    outputs: list[Output]


# The model runs in the event loop: a hop to a thread would cost more than the run.
@app.post("/v2/models/mlp/infer")
async def infer(call: Call) -> Answer:
    """Answer a JSON request."""
    source = call.inputs[0]
    row = np.array(source.data, np.float32).reshape(source.shape)
    (answer,) = SESSION.run(["probability"], {"features": row})
    output = Output(
        name="probability", datatype="FP32", shape=list(answer.shape), data=answer.ravel().tolist()
    )
    return Answer(model_name="mlp", model_version="1", outputs=[output])


@app.post("/binary/v2/models/mlp/infer")
async def infer_binary(request: Request) -> Response:
    """Answer a request whose tensor's bytes follow its JSON, with the same form."""
    body = await request.body()
    length = int(request.headers[LENGTH_HEADER])
    source = json.loads(body[:length])["inputs"][0]
    row = np.frombuffer(body, np.float32, offset=length).reshape(source["shape"])
    (answer,) = SESSION.run(["probability"], {"features": row})
    raw = answer.tobytes()
    head = json.dumps(describe(answer.shape, len(raw))).encode()
    return Response(
        head + raw,
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def describe(shape: tuple[int, ...], size_bytes: int) -> dict[str, Any]:
    """Return the JSON of a response whose tensor follows as bytes."""
    output = {
        "name": "probability",
        "datatype": "FP32",
        "shape": shape,
        "parameters": {"binary_data_size": size_bytes},
    }
    return {"model_name": "mlp", "model_version": "1", "outputs": [output]}


def main() -> None:
    """Serve until the process is ended."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False,
                            log_level="warning")  # fmt: skip
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
