"""Payment methods over gRPC: kept, listed, and resolved for the services that charge them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, events_pb2
from customer_svc.app import Settings, build
from mesh.db.database import Database
from mesh.lifecycle import Service
from mesh.rpc import status
from stack.servers import Servers
from tests.services import Client, Keys, new_key, port_of, refused, running, settings_for

TOKENS = (
    "tok_visa",
    "tok_declined",
    "tok_insufficient_funds",
    "tok_slow",
    "tok_timeout",
    "tok_flaky",
    "tok_refund_fails",
)
Stub = customer_pb2_grpc.CustomerServiceStub


@pytest.fixture(scope="module")
async def service(servers: Servers, keys: Keys) -> AsyncIterator[Service]:
    settings = settings_for(
        Settings, "customer", servers, keys, redis_url=servers.redis.url, signing_key=keys.signing.private,
        sandbox_currencies=("EUR", "JPY"),
    )  # fmt: skip
    service = build(settings)
    async with running(service):
        yield service


@pytest.fixture(scope="module")
async def client(service: Service, keys: Keys) -> AsyncIterator[Client]:
    client = Client(f"127.0.0.1:{port_of(service)}", "customer", keys)
    yield client
    await client.close()


@pytest.fixture(scope="module")
async def orders(service: Service, keys: Keys) -> AsyncIterator[Client]:
    client = Client(f"127.0.0.1:{port_of(service)}", "customer", keys, peer="order")
    yield client
    await client.close()


@pytest.fixture(scope="module")
async def payments(service: Service, keys: Keys) -> AsyncIterator[Client]:
    client = Client(f"127.0.0.1:{port_of(service)}", "customer", keys, peer="payment")
    yield client
    await client.close()


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(servers.postgres.url_for("customer_svc"))
    yield connection
    await connection.close()


@pytest.fixture
async def customer(client: Client) -> str:
    """The id of a new customer."""
    request = customer_pb2.CreateCustomerRequest(
        email=f"{uuid4()}@example.com", name="Ada", password="correct horse battery staple"
    )
    made = await client(Stub(client.channel).CreateCustomer, request)
    return str(made.customer.id)


@pytest.fixture
def ada(client: Client, keys: Keys, customer: str) -> Client:
    """The same connection, signed in as the new customer."""
    return client.as_(keys.token("customer", UUID(customer)))


async def add(
    client: Client,
    token: str = "tok_visa",
    *,
    customer: str = "me",
    provider: str = "",
    default: bool = False,
    key: str | None = None,
) -> customer_pb2.PaymentMethod:
    request = customer_pb2.AddPaymentMethodRequest(
        customer_id=customer, token=token, make_default=default, provider=provider
    )
    reply = await client(Stub(client.channel).AddPaymentMethod, request, key=key)
    method: customer_pb2.PaymentMethod = reply.payment_method
    return method


async def delete(client: Client, method_id: str, *, customer: str = "me", key: str | None = None) -> None:
    request = customer_pb2.DeletePaymentMethodRequest(customer_id=customer, payment_method_id=method_id)
    await client(Stub(client.channel).DeletePaymentMethod, request, key=key)


async def make_default(
    client: Client, method_id: str, *, customer: str = "me", key: str | None = None
) -> customer_pb2.PaymentMethod:
    request = customer_pb2.SetDefaultPaymentMethodRequest(customer_id=customer, payment_method_id=method_id)
    reply = await client(Stub(client.channel).SetDefaultPaymentMethod, request, key=key)
    method: customer_pb2.PaymentMethod = reply.payment_method
    return method


async def etag_of(client: Client) -> str:
    reply = await client(Stub(client.channel).GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me"))
    return str(reply.customer.etag)


async def methods_of(client: Client, customer: str = "me") -> list[customer_pb2.PaymentMethod]:
    request = customer_pb2.ListPaymentMethodsRequest(customer_id=customer)
    reply = await client(Stub(client.channel).ListPaymentMethods, request)
    assert reply.next_page_token == ""
    return list(reply.payment_methods)


def asked(queries: Sequence[tuple[str, str]]) -> list[customer_pb2.PaymentMethodQuery]:
    return [customer_pb2.PaymentMethodQuery(customer_id=who, payment_method_id=which) for who, which in queries]


async def resolve(client: Client, *queries: tuple[str, str]) -> list[customer_pb2.PaymentMethodResult]:
    request = customer_pb2.ResolvePaymentMethodsRequest(queries=asked(queries))
    reply = await client(Stub(client.channel).ResolvePaymentMethods, request)
    return list(reply.results)


async def select(client: Client, *queries: tuple[str, str]) -> list[customer_pb2.SelectedPaymentMethodResult]:
    request = customer_pb2.SelectPaymentMethodsRequest(queries=asked(queries))
    reply = await client(Stub(client.channel).SelectPaymentMethods, request)
    return list(reply.results)


@pytest.mark.parametrize("token", TOKENS)
async def test_every_token_of_the_sandbox_makes_a_card(ada: Client, customer: str, token: str) -> None:
    method = await add(ada, token)
    assert (method.customer_id, method.provider, method.is_default) == (customer, "sandbox", True)
    assert method.brand in {"visa", "mastercard", "amex"}
    assert len(method.last4) == 4
    assert method.last4.isdigit()
    assert 1 <= method.expire_month <= 12
    assert method.expire_year > datetime.now(UTC).year


async def test_payment_method_is_of_the_provider_that_the_request_names(ada: Client) -> None:
    assert (await add(ada, provider="sandbox")).provider == "sandbox"
    error = await refused(add(ada, provider="another"))
    assert (error.code.name, error.reason, error.metadata) == (
        "NOT_FOUND", "PROVIDER_NOT_FOUND", {"provider": "another"}
    )  # fmt: skip
    assert (await refused(add(ada, provider="Not A Name"))).reason == "VALIDATION_FAILED"


async def test_selection_tells_which_currencies_a_provider_takes(ada: Client, orders: Client, customer: str) -> None:
    await add(ada)
    request = customer_pb2.SelectPaymentMethodsRequest(queries=asked([(customer, "")]))
    reply = await orders(Stub(orders.channel).SelectPaymentMethods, request)
    assert [(each.provider, list(each.currency_codes)) for each in reply.limited_providers] == [
        ("sandbox", ["EUR", "JPY"])
    ]


async def test_a_token_is_neither_told_nor_logged_nor_published(
    ada: Client, orders: Client, payments: Client, customer: str, database: asyncpg.Connection
) -> None:
    with capture_logs() as logs:
        method = await add(ada, "tok_insufficient_funds", key=new_key())
        listed = await methods_of(ada)
        selected = await select(orders, (customer, ""))
        await resolve(payments, (customer, ""))
        await refused(add(ada, "tok_insufficient_funds_of_nobody"))
    assert logs
    payloads = await database.fetch("SELECT payload FROM mesh.outbox WHERE aggregate_id = $1::text::uuid", customer)
    replies = await database.fetch("SELECT reply FROM mesh.idempotency WHERE caller = $1", f"customer:{customer}")
    assert len(payloads) == 2
    assert len(replies) == 1
    seen = [repr(logs), *(each.SerializeToString() for each in (method, *listed, *selected))]
    seen += [row[0] for row in (*payloads, *replies)]
    assert not [each for each in seen if "tok_insufficient" in str(each)]


async def test_a_token_that_the_provider_does_not_know_is_refused(ada: Client) -> None:
    error = await refused(add(ada, "tok_of_nobody"))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PROVIDER_TOKEN_UNKNOWN")
    assert [violation.field for violation in error.violations] == ["token"]
    assert "tok_of_nobody" not in str((error.message, error.metadata, error.violations))


@pytest.mark.parametrize("token", ["4242424242424242", "4242 4242 4242 4242", "tok_4242-4242-4242-4242"])
async def test_a_card_number_is_refused(ada: Client, token: str) -> None:
    error = await refused(add(ada, token))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert await methods_of(ada) == []


async def test_the_first_is_the_default_until_another_takes_its_place(ada: Client) -> None:
    first = await add(ada)
    second = await add(ada, "tok_slow")
    assert (first.is_default, second.is_default) == (True, False)
    third = await add(ada, "tok_flaky", default=True)
    assert third.is_default
    listed = await methods_of(ada)
    assert [(each.id, each.is_default) for each in listed] == [(third.id, True), (second.id, False), (first.id, False)]


@pytest.mark.parametrize("default", [False, True])
async def test_of_many_added_at_once_one_is_the_default(ada: Client, default: bool) -> None:
    await asyncio.gather(*(add(ada, default=default) for _ in range(12)))
    listed = await methods_of(ada)
    assert len(listed) == 12
    assert sum(each.is_default for each in listed) == 1


async def test_the_database_itself_refuses_a_second_default(
    ada: Client, customer: str, database: asyncpg.Connection
) -> None:
    await add(ada)
    await add(ada)
    with pytest.raises(asyncpg.UniqueViolationError):
        await database.execute(
            "UPDATE payment_methods SET is_default = true WHERE customer_id = $1::text::uuid", customer
        )


async def test_a_payment_method_is_added_once_for_its_key(ada: Client) -> None:
    key = new_key()
    made = await asyncio.gather(*(add(ada, key=key) for _ in range(5)))
    assert {each.id for each in made} == {made[0].id}
    assert len(await methods_of(ada)) == 1
    error = await refused(add(ada, "tok_slow", key=key))
    assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")


async def test_a_payment_method_changes_its_customer(ada: Client, customer: str, database: asyncpg.Connection) -> None:
    await add(ada)
    now = await ada(Stub(ada.channel).GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me"))
    assert now.customer.etag == "2"
    row = await database.fetchrow(
        "SELECT type, payload FROM mesh.outbox WHERE aggregate_id = $1::text::uuid AND sequence = 2", customer
    )
    assert row is not None
    assert row["type"] == "commerce.customer.updated"
    assert events_pb2.CustomerUpdated.FromString(row["payload"]) == events_pb2.CustomerUpdated(
        customer_id=customer, update_time=now.customer.update_time, etag="2"
    )


async def test_deleting_the_default_promotes_the_newest_one_left(ada: Client) -> None:
    first, second, third = await add(ada), await add(ada, "tok_slow"), await add(ada, "tok_flaky")
    await delete(ada, first.id)
    assert [(each.id, each.is_default) for each in await methods_of(ada)] == [(third.id, True), (second.id, False)]
    await delete(ada, third.id)
    assert [(each.id, each.is_default) for each in await methods_of(ada)] == [(second.id, True)]
    await delete(ada, second.id)
    assert await methods_of(ada) == []
    assert (await add(ada)).is_default


async def test_deleting_another_one_leaves_the_default(ada: Client) -> None:
    first, second = await add(ada), await add(ada)
    await delete(ada, second.id)
    assert await methods_of(ada) == [first]


async def test_a_deleted_payment_method_leaves_no_token_and_pays_for_nothing(
    ada: Client, orders: Client, payments: Client, customer: str, database: asyncpg.Connection
) -> None:
    method = await add(ada)
    await delete(ada, method.id)
    assert await database.fetchval("SELECT count(*) FROM payment_methods WHERE id = $1::text::uuid", method.id) == 0
    reasons = [
        status.from_status(result.error).reason
        for ask, caller in ((select, orders), (resolve, payments))
        for result in await ask(caller, (customer, ""), (customer, method.id))
    ]
    assert reasons == ["PAYMENT_METHOD_MISSING", "PAYMENT_METHOD_NOT_FOUND"] * 2


async def test_a_payment_method_is_deleted_once_for_its_key(ada: Client) -> None:
    first, second, key = await add(ada), await add(ada), new_key()
    for _ in range(2):
        await delete(ada, first.id, key=key)
    assert [each.id for each in await methods_of(ada)] == [second.id]
    assert await etag_of(ada) == "4"
    assert (await refused(delete(ada, second.id, key=key))).reason == "IDEMPOTENCY_KEY_REUSED"
    error = await refused(delete(ada, first.id))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "PAYMENT_METHOD_NOT_FOUND")
    assert error.metadata == {"paymentMethodId": first.id}


async def test_a_payment_method_made_default_pays_for_what_names_none(
    ada: Client, orders: Client, customer: str
) -> None:
    first, second = await add(ada), await add(ada, "tok_slow")
    made = await make_default(ada, second.id)
    assert (made.id, made.is_default) == (second.id, True)
    assert [(each.id, each.is_default) for each in await methods_of(ada)] == [(second.id, True), (first.id, False)]
    assert [each.payment_method.id for each in await select(orders, (customer, ""))] == [second.id]


async def test_making_the_default_one_default_again_changes_nothing(
    ada: Client, customer: str, database: asyncpg.Connection
) -> None:
    method = await add(ada)
    assert await make_default(ada, method.id) == method
    assert await etag_of(ada) == "2"
    counted = "SELECT count(*) FROM mesh.outbox WHERE aggregate_id = $1::text::uuid"
    assert await database.fetchval(counted, customer) == 2


async def test_a_replayed_change_of_the_default_does_not_undo_a_later_one(ada: Client) -> None:
    first, second, key = await add(ada), await add(ada), new_key()
    made = await make_default(ada, second.id, key=key)
    await make_default(ada, first.id)
    assert await make_default(ada, second.id, key=key) == made
    assert [(each.id, each.is_default) for each in await methods_of(ada)] == [(second.id, False), (first.id, True)]


async def test_changes_of_the_default_at_once_leave_exactly_one(ada: Client) -> None:
    methods = [await add(ada) for _ in range(6)]
    changes = [make_default(ada, each.id) for each in methods[2:]] + [delete(ada, each.id) for each in methods[:2]]
    await asyncio.gather(*changes)
    listed = await methods_of(ada)
    assert len(listed) == 4
    assert sum(each.is_default for each in listed) == 1


async def test_deleting_and_making_default_publish_that_the_customer_changed(
    ada: Client, customer: str, database: asyncpg.Connection
) -> None:
    first, second = await add(ada), await add(ada)
    await make_default(ada, second.id)
    await delete(ada, first.id)
    rows = await database.fetch(
        "SELECT type, sequence FROM mesh.outbox WHERE aggregate_id = $1::text::uuid ORDER BY sequence", customer
    )
    assert [tuple(row) for row in rows] == [
        ("commerce.customer.created", 1),
        *(("commerce.customer.updated", version) for version in (2, 3, 4, 5)),
    ]


async def test_a_stranger_neither_deletes_nor_makes_default(
    client: Client, keys: Keys, ada: Client, customer: str
) -> None:
    method, mallory = await add(ada), await sign_up(client)
    stranger = client.as_(keys.token("customer", UUID(mallory)))
    for change in (delete, make_default):
        for who, reason in ((customer, "CUSTOMER_NOT_FOUND"), ("me", "PAYMENT_METHOD_NOT_FOUND")):
            error = await refused(change(stranger, method.id, customer=who))
            assert (error.code.name, error.reason) == ("NOT_FOUND", reason)
        error = await refused(change(client, method.id, customer=customer))
        assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
        error = await refused(change(ada, "not an id"))
        assert [each.field for each in error.violations] == ["payment_method_id"]
    assert await methods_of(ada) == [method]
    staff = client.as_(keys.token("staff", uuid4()))
    assert await make_default(staff, method.id, customer=customer) == method
    await delete(staff, method.id, customer=customer)
    assert await methods_of(ada) == []


async def test_staff_may_add_and_list_for_anyone(client: Client, keys: Keys, customer: str) -> None:
    staff = client.as_(keys.token("staff", uuid4()))
    made = await add(staff, customer=customer)
    assert await methods_of(staff, customer) == [made]
    nobody = str(uuid4())
    for refusal in (add(staff, customer=nobody), methods_of(staff, nobody), add(staff), methods_of(staff)):
        error = await refused(refusal)
        assert (error.code.name, error.reason) == ("NOT_FOUND", "CUSTOMER_NOT_FOUND")


async def test_a_stranger_neither_adds_nor_lists(client: Client, keys: Keys, ada: Client, customer: str) -> None:
    stranger = client.as_(keys.token("customer", uuid4()))
    for refusal in (add(stranger, customer=customer), methods_of(stranger, customer)):
        error = await refused(refusal)
        assert (error.code.name, error.reason) == ("NOT_FOUND", "CUSTOMER_NOT_FOUND")
    for refusal in (add(client, customer=customer), methods_of(client, customer)):
        error = await refused(refusal)
        assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    assert await methods_of(ada) == []


async def test_pages_show_each_payment_method_once(client: Client, ada: Client, keys: Keys) -> None:
    added = [await add(ada) for _ in range(5)]
    stub, token, seen, pages = Stub(ada.channel), "", [], 0
    while pages == 0 or token:
        request = customer_pb2.ListPaymentMethodsRequest(customer_id="me", page_size=2, page_token=token)
        page = await ada(stub.ListPaymentMethods, request)
        seen += [each.id for each in page.payment_methods]
        token, pages = page.next_page_token, pages + 1
        if pages == 1:
            elsewhere = client.as_(keys.token("customer", uuid4()))
            foreign = customer_pb2.ListPaymentMethodsRequest(customer_id="me", page_token=token)
            error = await refused(elsewhere(stub.ListPaymentMethods, foreign))
            assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
    assert seen == [each.id for each in reversed(added)]
    assert pages == 3


async def test_a_batch_is_resolved_each_query_for_itself(
    client: Client, keys: Keys, orders: Client, payments: Client
) -> None:
    people = [await sign_up(client) for _ in range(3)]
    rich, other, poor = people
    named = await add(client.as_(keys.token("customer", UUID(rich))), "tok_visa")
    default = await add(client.as_(keys.token("customer", UUID(rich))), "tok_slow", default=True)
    theirs = await add(client.as_(keys.token("customer", UUID(other))), "tok_flaky")
    nobody, nothing = str(uuid4()), str(uuid4())
    queries = [
        (rich, ""), (rich, named.id), (poor, ""), (rich, theirs.id), (rich, nothing), (nobody, ""), (other, ""),
        (nobody, theirs.id), (poor, theirs.id), (rich, default.id),
    ]  # fmt: skip
    selected, resolved = await select(orders, *queries), await resolve(payments, *queries)
    told = [
        each.payment_method.id if each.HasField("payment_method") else status.from_status(each.error).reason
        for each in selected
    ]
    assert told == [
        default.id, named.id, "PAYMENT_METHOD_MISSING", "PAYMENT_METHOD_NOT_FOUND", "PAYMENT_METHOD_NOT_FOUND",
        "CUSTOMER_NOT_FOUND", theirs.id, "CUSTOMER_NOT_FOUND", "PAYMENT_METHOD_NOT_FOUND", default.id,
    ]  # fmt: skip
    secrets = [
        (each.payment_method.customer_id, each.payment_method.id, each.payment_method.token)
        if each.HasField("payment_method")
        else status.from_status(each.error).reason
        for each in resolved
    ]
    assert secrets == [
        (rich, default.id, "tok_slow"), (rich, named.id, "tok_visa"), "PAYMENT_METHOD_MISSING",
        "PAYMENT_METHOD_NOT_FOUND", "PAYMENT_METHOD_NOT_FOUND", "CUSTOMER_NOT_FOUND", (other, theirs.id, "tok_flaky"),
        "CUSTOMER_NOT_FOUND", "PAYMENT_METHOD_NOT_FOUND", (rich, default.id, "tok_slow"),
    ]  # fmt: skip
    for results in (selected, resolved):
        assert {each.payment_method.provider for each in results if each.HasField("payment_method")} == {"sandbox"}


async def test_the_largest_batch_takes_one_statement(
    service: Service, orders: Client, payments: Client, ada: Client, customer: str
) -> None:
    method = await add(ada)
    database = next(part for part in service.parts if isinstance(part, Database))
    counts: dict[str, list[int]] = {"select": [], "resolve": []}
    for size in (1, 1000):
        before = database.statements
        selected = await select(orders, *[(customer, "")] * size)
        between = database.statements
        resolved = await resolve(payments, *[(customer, method.id)] * size)
        counts["select"].append(between - before)
        counts["resolve"].append(database.statements - between)
        assert {each.payment_method.id for each in selected} == {method.id}
        assert {each.payment_method.token for each in resolved} == {"tok_visa"}
    for one, many in counts.values():
        # The relay may look into its outbox meanwhile.
        assert one >= 1
        assert many < 5


@pytest.mark.parametrize("peer", ["gateway", "operator"])
async def test_payment_methods_of_others_are_for_services_only(
    service: Service, keys: Keys, customer: str, peer: str
) -> None:
    for token in ("", keys.token("customer", UUID(customer)), keys.token("staff", uuid4())):
        outsider = Client(f"127.0.0.1:{port_of(service)}", "customer", keys, peer=peer, token=token)
        for refusal in (resolve(outsider, (customer, "")), select(outsider, (customer, ""))):
            error = await refused(refusal)
            assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
        await outsider.close()


async def test_only_the_payment_service_gets_a_token(service: Service, keys: Keys, customer: str) -> None:
    for peer in ("order", "product", "customer"):
        for token in ("", keys.token("staff", uuid4())):
            other = Client(f"127.0.0.1:{port_of(service)}", "customer", keys, peer=peer, token=token)
            error = await refused(resolve(other, (customer, "")))
            assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
            await other.close()


async def sign_up(client: Client) -> str:
    request = customer_pb2.CreateCustomerRequest(email=f"{uuid4()}@example.com", name="B", password="a good password")
    made = await client(Stub(client.channel).CreateCustomer, request)
    return str(made.customer.id)
