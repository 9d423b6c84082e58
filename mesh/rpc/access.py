"""Access rules: declared in the contract as a method option, enforced by one link of the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commerce.access.v1 import access_pb2
from mesh.errors import PermissionDenied, Unauthenticated
from mesh.rpc.call import Kind
from mesh.rpc.identity import OUTSIDERS

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

    from mesh.rpc.call import Caller


class AccessUndeclared(Exception):
    """A method of a contract has no access rule, so the server must not start."""


def rule_of(method: MethodDescriptor) -> access_pb2.Access.ValueType:
    """The access rule of a method. Raises AccessUndeclared if the contract has none."""
    rule = method.GetOptions().Extensions[access_pb2.access]
    if rule == access_pb2.ACCESS_UNSPECIFIED:
        raise AccessUndeclared(f"{method.full_name} declares no (commerce.access.v1.access)")
    return rule


def peers_of(method: MethodDescriptor) -> frozenset[str]:
    """The names of the services that may call a method with ACCESS_SERVICE; empty if every service may."""
    return frozenset(method.GetOptions().Extensions[access_pb2.peers])


def accepts_ended_subject(method: MethodDescriptor) -> bool:
    """Whether a method accepts access tokens whose subject has ended."""
    return bool(method.GetOptions().Extensions[access_pb2.accepts_ended_subject])


def require(
    rule: access_pb2.Access.ValueType, *, peer: str, caller: Caller, peers: frozenset[str] = frozenset()
) -> None:
    """Raise unless the rule allows this call. Use cases check the owner of the resource.

    With ACCESS_SERVICE only the services in `peers` may call, or all services if it is empty.

    Raises Unauthenticated / TOKEN_MISSING without a token, and PermissionDenied / ROLE_REQUIRED for the wrong role or
    for a service that may not call.
    """
    match rule:
        case access_pb2.ACCESS_PUBLIC:
            return
        case access_pb2.ACCESS_SERVICE:
            if peer in OUTSIDERS:
                raise PermissionDenied("only services of the mesh may call this", metadata={"access": "SERVICE"})
            if peers and peer not in peers:
                raise PermissionDenied(f"the service {peer} may not call this", metadata={"access": "SERVICE"})
        case _ if caller.kind not in (Kind.CUSTOMER, Kind.STAFF):
            raise Unauthenticated("this needs an access token", reason="TOKEN_MISSING")
        case access_pb2.ACCESS_CUSTOMER:
            return
        case access_pb2.ACCESS_STAFF if caller.is_staff:
            return
        case _:
            raise PermissionDenied("this needs the role staff", metadata={"access": "STAFF"})
