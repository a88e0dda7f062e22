"""The messages of tests/conformance/interop.proto, made anew in each test process.

They live in a descriptor pool of their own, so that they meet no other copy of `grpc.testing`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent.parent / "conformance" / "interop.proto"


def _classes() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "interop.binpb"
        arguments = ["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={target}", str(PROTO)]
        assert protoc.main(arguments) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(files.file[0].SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"grpc.testing.{message.name}")
        )
        for message in files.file[0].message_type
    }


_CLASSES = _classes()
Empty = _CLASSES["Empty"]
BoolValue = _CLASSES["BoolValue"]
EchoStatus = _CLASSES["EchoStatus"]
Payload = _CLASSES["Payload"]
ResponseParameters = _CLASSES["ResponseParameters"]
SimpleRequest = _CLASSES["SimpleRequest"]
SimpleResponse = _CLASSES["SimpleResponse"]
StreamingInputCallRequest = _CLASSES["StreamingInputCallRequest"]
StreamingInputCallResponse = _CLASSES["StreamingInputCallResponse"]
StreamingOutputCallRequest = _CLASSES["StreamingOutputCallRequest"]
StreamingOutputCallResponse = _CLASSES["StreamingOutputCallResponse"]
