"""What the edge needs to know of the contracts: their methods, and how long each has to answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import (
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
    ServiceDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool

from commerce.access.v1 import access_pb2
from gateway.query import Parameter, parameters

PATH_VARIABLE = re.compile(r"{([\w.]+)}")
"""A variable of the path of an HTTP rule; the group is the field."""

TIME_TO_ANSWER = 5.0
"""Seconds that a method has, unless it is named below."""
TIMES_TO_ANSWER = {
    # Passwords are hashed slowly, on purpose.
    "/commerce.customer.v1.CustomerService/CreateCustomer": 10.0,
    "/commerce.customer.v1.SessionService/CreateSession": 10.0,
    "/commerce.customer.v1.SessionService/RefreshSession": 10.0,
    "/commerce.customer.v1.SessionService/DeleteSession": 10.0,
    # It asks other services for all they hold.
    "/commerce.customer.v1.CustomerService/ExportCustomer": 30.0,
}


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the contracts, as the edge sees it."""

    service: str
    """The full name of its service, `commerce.order.v1.OrderService`."""
    name: str
    """Its own name, `CreateOrder`."""
    access: access_pb2.Access.ValueType
    """Who may call it."""
    is_read: bool
    """Whether it has no side effects, so that it can be tried again whatever became of it."""
    is_stream: bool
    """Whether it answers again and again, for as long as the client listens."""
    verb: str
    """The HTTP verb for JSON clients, `POST`; empty for a method without an HTTP rule."""
    template: str
    """The HTTP path for JSON clients, `/v1/orders/{order_id}:cancel`; empty for a method without an HTTP rule."""
    body: str
    """The field of the request that JSON clients send as the body, `*` for all fields outside the path; or empty."""
    parameters: Mapping[str, Parameter]
    """The query parameters for JSON clients, by each name that is accepted."""
    is_raw: bool
    """Whether the HTTP body is not JSON but arbitrary bytes, such as a webhook."""
    response_body: str
    """The JSON name of the one field of its response that JSON clients get, bare; empty when they get all of it."""

    @property
    def path(self) -> str:
        """What a gRPC client asks for."""
        return f"/{self.service}/{self.name}"

    @property
    def upstream(self) -> str:
        """The name of the service that serves it, `order`."""
        return self.service.split(".")[1]

    @property
    def is_open(self) -> bool:
        """Whether people may call it. What is not declared is not open."""
        return self.access in (access_pb2.ACCESS_PUBLIC, access_pb2.ACCESS_CUSTOMER, access_pb2.ACCESS_STAFF)

    @property
    def seconds(self) -> float:
        """How long it has to answer; 0 for a stream, which takes as long as it takes."""
        return 0.0 if self.is_stream else TIMES_TO_ANSWER.get(self.path, TIME_TO_ANSWER)


def transcoder_descriptors() -> bytes:
    """The contracts as a serialized FileDescriptorSet that Envoy's transcoder takes.

    It refuses `response_body`, but for raw bodies. `Method.response_body` says what it is not told.
    """
    contracts = _contracts()
    for _, _, method in _declared(contracts):
        method.options.Extensions[annotations_pb2.http].ClearField("response_body")
    return contracts.SerializeToString(deterministic=True)


@cache
def methods() -> Sequence[Method]:
    """All methods of the contracts, those that only services may call among them."""
    contracts = _contracts()
    pool = DescriptorPool()
    for file in contracts.file:
        pool.Add(file)
    return tuple(
        _method(f"{file.package}.{service.name}", method, pool) for file, service, method in _declared(contracts)
    )


def _method(service: str, method: MethodDescriptorProto, pool: DescriptorPool) -> Method:
    rule: http_pb2.HttpRule = method.options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern") or ""
    template = getattr(rule, verb) if verb else ""
    described = pool.FindServiceByName(service).methods_by_name[method.name]
    request, response = described.input_type, described.output_type
    body = request.fields_by_name.get(rule.body)
    return Method(
        service=service,
        name=method.name,
        access=method.options.Extensions[access_pb2.access],
        is_read=method.options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS,
        is_stream=method.server_streaming,
        verb=verb.upper(),
        template=template,
        body=rule.body,
        parameters=parameters(request, rule, frozenset(PATH_VARIABLE.findall(template))) if verb else {},
        is_raw=body is not None and body.message_type == pool.FindMessageTypeByName("google.api.HttpBody"),
        response_body=response.fields_by_name[rule.response_body].json_name if rule.response_body else "",
    )


def _contracts() -> FileDescriptorSet:
    return FileDescriptorSet.FromString((files("commerce") / "commerce.binpb").read_bytes())


def _declared(
    contracts: FileDescriptorSet,
) -> Iterator[tuple[FileDescriptorProto, ServiceDescriptorProto, MethodDescriptorProto]]:
    for file in contracts.file:
        if file.package.startswith("commerce."):
            for service in file.service:
                for method in service.method:
                    yield file, service, method
