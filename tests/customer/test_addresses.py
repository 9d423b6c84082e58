"""Postal addresses over gRPC: added, listed and deleted by their owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from google.type import postal_address_pb2
from structlog.testing import capture_logs

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc
from customer_svc.app import Settings, build
from stack.servers import Servers
from tests.services import Client, Keys, new_key, refused, running, settings_for

Stub = customer_pb2_grpc.CustomerServiceStub


@pytest.fixture(scope="module")
async def client(servers: Servers, keys: Keys) -> AsyncIterator[Client]:
    settings = settings_for(
        Settings, "customer", servers, keys, redis_url=servers.redis.url, signing_key=keys.signing.private
    )
    async with running(build(settings)) as address:
        client = Client(address, "customer", keys)
        yield client
        await client.close()


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(servers.postgres.url_for("customer_svc"))
    yield connection
    await connection.close()


async def sign_up(client: Client) -> str:
    request = customer_pb2.CreateCustomerRequest(email=f"{uuid4()}@example.com", name="Ada", password="a good password")
    made = await client(Stub(client.channel).CreateCustomer, request)
    return str(made.customer.id)


@pytest.fixture
async def customer(client: Client) -> str:
    """The id of a new customer."""
    return await sign_up(client)


@pytest.fixture
def ada(client: Client, keys: Keys, customer: str) -> Client:
    """The same connection, signed in as the new customer."""
    return client.as_(keys.token("customer", UUID(customer)))


def postal(street: str = "12 St James's Square", **more: Any) -> postal_address_pb2.PostalAddress:
    return postal_address_pb2.PostalAddress(region_code="GB", address_lines=[street], **more)


async def add(
    client: Client,
    address: postal_address_pb2.PostalAddress | None = None,
    *,
    customer: str = "me",
    key: str | None = None,
) -> customer_pb2.Address:
    request = customer_pb2.AddAddressRequest(customer_id=customer, postal_address=address or postal())
    reply = await client(Stub(client.channel).AddAddress, request, key=key)
    made: customer_pb2.Address = reply.address
    return made


async def delete(client: Client, address_id: str, *, customer: str = "me", key: str | None = None) -> None:
    request = customer_pb2.DeleteAddressRequest(customer_id=customer, address_id=address_id)
    await client(Stub(client.channel).DeleteAddress, request, key=key)


async def addresses_of(client: Client, customer: str = "me") -> list[customer_pb2.Address]:
    reply = await client(Stub(client.channel).ListAddresses, customer_pb2.ListAddressesRequest(customer_id=customer))
    return list(reply.addresses)


async def etag_of(client: Client) -> str:
    reply = await client(Stub(client.channel).GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me"))
    return str(reply.customer.etag)


async def test_an_address_is_kept_with_all_its_fields(ada: Client, customer: str) -> None:
    given = postal_address_pb2.PostalAddress(
        region_code="CH",
        language_code="de",
        postal_code="8001",
        sorting_code="CEDEX 1",
        administrative_area="ZH",
        locality="Z\u00fcrich",
        sublocality="Altstadt",
        address_lines=["Bahnhofstrasse 1", "3. Stock, {links}"],
        recipients=["Ada Lovelace", 'Charles "C" Babbage'],
        organization="Engines, Ltd",
    )
    made = await add(ada, given)
    assert (made.customer_id, made.postal_address) == (customer, given)
    assert made.create_time.seconds > 0
    sparse = await add(ada)
    assert sparse.postal_address == postal()
    assert await addresses_of(ada) == [sparse, made]


async def test_an_address_of_another_revision_of_the_format_is_refused(ada: Client) -> None:
    error = await refused(add(ada, postal(revision=1)))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == ["postal_address"]
    assert "revision" in error.violations[0].description
    assert await addresses_of(ada) == []


async def test_an_address_is_added_once_for_its_key(ada: Client) -> None:
    key = new_key()
    made = await asyncio.gather(*(add(ada, key=key) for _ in range(5)))
    assert {each.id for each in made} == {made[0].id}
    assert len(await addresses_of(ada)) == 1
    error = await refused(add(ada, postal("Elsewhere 1"), key=key))
    assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")


async def test_a_customer_has_at_most_fifty_addresses_also_of_additions_at_once(ada: Client) -> None:
    added = [await add(ada, postal(f"Street {number}")) for number in range(47)]
    outcomes = await asyncio.gather(*(add(ada) for _ in range(6)), return_exceptions=True)
    reasons = [getattr(each, "reason", "added") for each in outcomes]
    assert sorted(reasons) == ["ADDRESS_LIMIT_REACHED"] * 3 + ["added"] * 3
    error = await refused(add(ada))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ADDRESS_LIMIT_REACHED")
    assert len(await addresses_of(ada)) == 50
    await delete(ada, added[0].id)
    await add(ada)
    assert len(await addresses_of(ada)) == 50


async def test_a_deleted_address_leaves_its_row_and_its_list(
    ada: Client, customer: str, database: asyncpg.Connection
) -> None:
    gone, kept = await add(ada, postal("Gone 1")), await add(ada)
    await delete(ada, gone.id)
    assert await addresses_of(ada) == [kept]
    counted = "SELECT count(*) FROM addresses WHERE customer_id = $1::text::uuid"
    assert await database.fetchval(counted, customer) == 1


async def test_an_address_is_deleted_once_for_its_key(ada: Client) -> None:
    one, other, key = await add(ada), await add(ada), new_key()
    for _ in range(2):
        await delete(ada, one.id, key=key)
    assert await etag_of(ada) == "4"
    assert (await refused(delete(ada, other.id, key=key))).reason == "IDEMPOTENCY_KEY_REUSED"
    error = await refused(delete(ada, one.id))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "ADDRESS_NOT_FOUND")
    assert error.metadata == {"addressId": one.id}


async def test_an_address_is_in_no_event_and_in_no_log(
    ada: Client, customer: str, database: asyncpg.Connection
) -> None:
    street = f"Secret Street {uuid4()}"
    with capture_logs() as logs:
        made = await add(ada, postal(street, recipients=["Secret Recipient"]))
        await refused(add(ada, postal_address_pb2.PostalAddress(address_lines=[street])))
        await delete(ada, made.id)
    assert logs
    rows = await database.fetch(
        "SELECT type, payload FROM mesh.outbox WHERE aggregate_id = $1::text::uuid ORDER BY sequence", customer
    )
    assert [row["type"] for row in rows] == ["commerce.customer.created"] + ["commerce.customer.updated"] * 2
    seen = repr(logs).encode() + b"".join(row["payload"] for row in rows)
    assert customer.encode() in seen
    assert b"Secret" not in seen


async def test_pages_show_each_address_once(client: Client, ada: Client, keys: Keys) -> None:
    added = [await add(ada) for _ in range(5)]
    stub, token, seen, pages = Stub(ada.channel), "", [], 0
    while pages == 0 or token:
        request = customer_pb2.ListAddressesRequest(customer_id="me", page_size=2, page_token=token)
        page = await ada(stub.ListAddresses, request)
        seen += [each.id for each in page.addresses]
        token, pages = page.next_page_token, pages + 1
        if pages == 1:
            elsewhere = client.as_(keys.token("customer", uuid4()))
            foreign = customer_pb2.ListAddressesRequest(customer_id="me", page_token=token)
            error = await refused(elsewhere(stub.ListAddresses, foreign))
            assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
            # One that is added meanwhile is newer than the pages that follow.
            await add(ada)
    assert seen == [each.id for each in reversed(added)]
    assert pages == 3


async def test_an_address_of_another_customer_does_not_exist(
    client: Client, keys: Keys, ada: Client, customer: str
) -> None:
    made, mallory = await add(ada), await sign_up(client)
    stranger = client.as_(keys.token("customer", UUID(mallory)))
    for refusal in (
        add(stranger, customer=customer),
        addresses_of(stranger, customer),
        delete(stranger, made.id, customer=customer),
    ):
        error = await refused(refusal)
        assert (error.code.name, error.reason) == ("NOT_FOUND", "CUSTOMER_NOT_FOUND")
    error = await refused(delete(stranger, made.id))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "ADDRESS_NOT_FOUND")
    for refusal in (add(client, customer=customer), addresses_of(client, customer), delete(client, made.id)):
        error = await refused(refusal)
        assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    assert await addresses_of(ada) == [made]


async def test_staff_may_add_list_and_delete_for_anyone(client: Client, keys: Keys, ada: Client, customer: str) -> None:
    staff, nobody = client.as_(keys.token("staff", uuid4())), str(uuid4())
    made = await add(staff, customer=customer)
    assert await addresses_of(staff, customer) == [made]
    for refusal in (add(staff, customer=nobody), addresses_of(staff, nobody), delete(staff, made.id, customer=nobody)):
        error = await refused(refusal)
        assert (error.code.name, error.reason) == ("NOT_FOUND", "CUSTOMER_NOT_FOUND")
    await delete(staff, made.id, customer=customer)
    assert await addresses_of(ada) == []
