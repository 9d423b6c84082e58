"""Stored replies: what a reply tells is there. A reply without its effect would make a retry report a success."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple
from uuid import UUID

from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from commerce.customer.v1 import customer_pb2
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from commerce.product.v1 import inventory_pb2, product_pb2
from mesh.db import idempotency
from ops.audit.mesh import DATABASES
from ops.audit.reading import Reading
from ops.audit.report import Check

_PORTION = 5_000
_BEGINNING = datetime.min.replace(tzinfo=UTC)
_REPLIES = """
SELECT create_time, digest, method, reply FROM mesh.idempotency
WHERE create_time >= $1 AND (create_time, digest) > ($1, $2) AND reply IS NOT NULL
ORDER BY create_time, digest LIMIT $3
"""


class Resource(NamedTuple):
    """Where the rows of a resource are. They are never deleted while a stored reply tells of them."""

    table: str
    id: str = "id"
    version: str = "version"
    """The column of its etag; empty if it has none."""


RESOURCES: Mapping[str, Resource] = {
    customer_pb2.Customer.DESCRIPTOR.full_name: Resource("customers"),
    order_pb2.Order.DESCRIPTOR.full_name: Resource("orders"),
    payment_pb2.Payment.DESCRIPTOR.full_name: Resource("payments"),
    payment_pb2.Refund.DESCRIPTOR.full_name: Resource("refunds", version=""),
    product_pb2.Product.DESCRIPTOR.full_name: Resource("products"),
    inventory_pb2.Stock.DESCRIPTOR.full_name: Resource("stocks", id="product_id", version=""),
}
"""The resources that stay, by their message. Others, such as addresses, may have been deleted since."""


class Told(NamedTuple):
    """What a reply tells of a resource."""

    resource: Resource
    id: UUID
    version: int


async def replies(reading: Reading) -> Check:
    """Each stored reply has its effect: its resource is there, in the version that it tells or a later one."""
    check = Check(
        "replies",
        "every stored reply has its effect",
        f"the {idempotency.RETENTION.total_seconds() / 3600:g} hours of stored replies",
    )
    for service in DATABASES:
        position = (reading.window.since or _BEGINNING, b"")
        while rows := await reading.fetch(service, _REPLIES, *position, _PORTION):
            position = (rows[-1]["create_time"], rows[-1]["digest"])
            told: dict[Told, str] = {}
            for row in rows:
                try:
                    found = list(_told(row["method"], row["reply"]))
                except (DecodeError, KeyError, ValueError) as error:
                    check.breach(f"the reply {row['digest'].hex()} of {row['method']} cannot be read: {error!r}")
                    continue
                check.checked += bool(found)
                told.update(dict.fromkeys(found, f"the reply {row['digest'].hex()} of {row['method']}"))
            await _compare(reading, check, service, told)
    return check


async def _compare(reading: Reading, check: Check, service: str, told: Mapping[Told, str]) -> None:
    for resource in {each.resource for each in told}:
        ids = list({each.id for each in told if each.resource == resource})
        columns = f"{resource.id} AS id, {resource.version or '0'} AS version"
        rows = await reading.fetch(
            service, f"SELECT {columns} FROM {resource.table} WHERE {resource.id} = ANY($1)", ids
        )
        versions = {row["id"]: row["version"] for row in rows}
        for each, reply in told.items():
            if each.resource != resource:
                continue
            if each.id not in versions:
                check.breach(f"{reply} tells of {resource.table} {each.id}, which does not exist")
            elif versions[each.id] < each.version:
                check.breach(
                    f"{reply} tells of version {each.version} of {resource.table} {each.id},"
                    f" which has version {versions[each.id]}"
                )


def _told(method: str, reply: bytes) -> Iterator[Told]:
    """What a reply tells of resources. Raises KeyError for a method that is in no contract."""
    kind, fields = _shape(method)
    if not fields:
        return
    message = kind.FromString(reply)
    for field, resource in fields.items():
        if message.HasField(field):
            found = getattr(message, field)
            version = int(found.etag or 0) if resource.version else 0
            yield Told(resource, UUID(getattr(found, resource.id)), version)


@cache
def _shape(method: str) -> tuple[type[Message], Mapping[str, Resource]]:
    """The message of the replies of a method, such as `/commerce.order.v1.OrderService/CreateOrder`, and those of its
    fields that are resources."""
    service, _, name = method.strip("/").rpartition("/")
    output = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].output_type
    fields = {
        field.name: RESOURCES[field.message_type.full_name]
        for field in output.fields
        if field.message_type is not None and field.message_type.full_name in RESOURCES and not field.is_repeated
    }
    return GetMessageClass(output), fields
