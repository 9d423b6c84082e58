"""The methods of the contracts as tests enumerate them."""

from __future__ import annotations

import re
from uuid import UUID

from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default as DefaultPool

from commerce.access.v1 import access_pb2
from mesh.rpc.reflection import load_contracts

A_UUID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def access(method: MethodDescriptor) -> access_pb2.Access.ValueType:
    """Who may call it."""
    rule: access_pb2.Access.ValueType = method.GetOptions().Extensions[access_pb2.access]
    return rule


def path(method: MethodDescriptor) -> str:
    """Where a gRPC client asks for it."""
    return f"/{method.containing_service.full_name}/{method.name}"


def verb_and_path(method: MethodDescriptor) -> tuple[str, str]:
    """How a JSON client asks for it, with an id in every place of the path that takes one."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    template: str = getattr(rule, verb)
    return verb.upper(), re.sub(r"\{[^}]*\}", str(A_UUID), template)


METHODS: list[MethodDescriptor] = [
    method
    for file in load_contracts()
    for service in DefaultPool().FindFileByName(file).services_by_name.values()
    for method in service.methods
]
OPEN = [method for method in METHODS if access(method) != access_pb2.ACCESS_SERVICE]
SERVICE_ONLY = [method for method in METHODS if access(method) == access_pb2.ACCESS_SERVICE]
PUBLIC = [method for method in OPEN if access(method) == access_pb2.ACCESS_PUBLIC]
PROTECTED = [method for method in OPEN if access(method) != access_pb2.ACCESS_PUBLIC]
BY_NAME = {method.name: method for method in METHODS}
