"""A bare grpc.aio echo, as a process: `python -m ops.bench.echo PORT`.

Its contract is made here rather than in `proto/`, which is the mesh's alone.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "ops.bench.echo.v1.EchoService"
_PACKAGE = "ops.bench.echo.v1"


def descriptors() -> bytes:
    """The contract as a serialized FileDescriptorSet, for Envoy's transcoder."""
    files = descriptor_pb2.FileDescriptorSet()
    for dependency in (descriptor_pb2.DESCRIPTOR, http_pb2.DESCRIPTOR, annotations_pb2.DESCRIPTOR):
        dependency.CopyToProto(files.file.add())
    files.file.add().CopyFrom(_contract())
    return files.SerializeToString()


def _contract() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="bench/echo/v1/echo.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=["google/api/annotations.proto"],
    )
    message = file.message_type.add(name="Echo")
    message.field.add(
        name="text",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        json_name="text",
    )
    method = file.service.add(name="EchoService").method.add(
        name="Echo", input_type=f".{_PACKAGE}.Echo", output_type=f".{_PACKAGE}.Echo"
    )
    method.options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(post="/v1/echo", body="*"))
    return file


async def _serve(port: int) -> None:
    pool = descriptor_pool.Default()
    pool.Add(_contract())
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Echo"))

    async def echo(request: Any, _: object) -> Any:
        return message(text=request.text)

    handler = grpc.unary_unary_rpc_method_handler(
        echo, request_deserializer=message.FromString, response_serializer=message.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Echo": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
