"""Signing up, and reading a customer, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, events_pb2
from customer_svc.app import Settings, build
from stack.servers import Servers
from tests.services import Client, Keys, new_key, refused, running, settings_for

PASSWORD = "correct horse battery staple"


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
def stub(client: Client) -> customer_pb2_grpc.CustomerServiceAsyncStub:
    return customer_pb2_grpc.CustomerServiceStub(client.channel)


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(servers.postgres.url_for("customer_svc"))
    yield connection
    await connection.close()


def new_customer(email: str | None = None, **more: str) -> customer_pb2.CreateCustomerRequest:
    given = {"name": "Ada", "phone": "+4930123456", "password": PASSWORD, **more}
    return customer_pb2.CreateCustomerRequest(email=email or f"{uuid4()}@example.com", **given)


async def test_a_customer_signs_up_once_for_their_key(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub
) -> None:
    request, key = new_customer(), new_key()
    made = await client(stub.CreateCustomer, request, key=key)
    assert await client(stub.CreateCustomer, request, key=key) == made
    assert (made.customer.email, made.customer.name, made.customer.phone) == (request.email, "Ada", "+4930123456")
    assert made.customer.create_time == made.customer.update_time
    for spelled in (request.email, request.email.upper()):
        error = await refused(client(stub.CreateCustomer, new_customer(spelled, name="Bob"), key=key))
        assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")


async def test_strangers_who_choose_the_same_key_both_sign_up(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub
) -> None:
    key = new_key()
    ada, bob = new_customer(name="Ada"), new_customer(name="Bob")
    made = [await client(stub.CreateCustomer, request, key=key) for request in (ada, bob)]
    assert [reply.customer.email for reply in made] == [ada.email, bob.email]
    assert [await client(stub.CreateCustomer, request, key=key) for request in (ada, bob)] == made, "each is replayed"


async def test_a_key_of_somebody_who_is_known_is_theirs_whatever_the_email_address(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, keys: Keys
) -> None:
    key, staff = new_key(), client.as_(keys.token("staff", uuid4()))
    await staff(stub.CreateCustomer, new_customer(), key=key)
    assert (await refused(staff(stub.CreateCustomer, new_customer(), key=key))).reason == "IDEMPOTENCY_KEY_REUSED"
    await client(stub.CreateCustomer, new_customer(), key=key)


async def test_attempts_under_one_key_at_once_make_one_customer(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub
) -> None:
    request, key = new_customer(), new_key()
    made = await asyncio.gather(*(client(stub.CreateCustomer, request, key=key) for _ in range(6)))
    assert len({reply.customer.id for reply in made}) == 1


async def test_an_email_address_keeps_its_spelling_and_is_taken_in_any(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub
) -> None:
    email = f"Ada.{uuid4()}@Example.com"
    made = await client(stub.CreateCustomer, new_customer(email))
    assert made.customer.email == email
    key = new_key()
    error = await refused(client(stub.CreateCustomer, new_customer(email.upper()), key=key))
    assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "EMAIL_TAKEN")
    assert email.lower() not in (error.message + str(error.metadata)).lower()
    # A refusal leaves nothing behind: the key is still good, for whatever it is used next.
    await client(stub.CreateCustomer, new_customer(), key=key)


async def test_a_taken_email_address_is_not_in_the_log_of_the_database(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, servers: Servers, database: asyncpg.Connection
) -> None:
    email = f"{uuid4()}@example.com"
    await client(stub.CreateCustomer, new_customer(email))
    assert (await refused(client(stub.CreateCustomer, new_customer(email.upper())))).reason == "EMAIL_TAKEN"
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await database.execute("SELECT 'the-control'::int")
    said = (servers.supervisor.logs / "postgres.log").read_text()
    assert "the-control" in said
    assert email not in said.lower()
    assert "customers_email" not in said, "no statement fails, whatever the server logs of those that do"


async def test_of_sign_ups_at_once_with_one_email_address_one_succeeds(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub
) -> None:
    email = f"{uuid4()}@example.com"
    outcomes = await asyncio.gather(
        *(client(stub.CreateCustomer, new_customer(spelled)) for spelled in (email, email.upper()) * 3),
        return_exceptions=True,
    )
    reasons = [getattr(outcome, "reason", "made") for outcome in outcomes]
    assert sorted(reasons) == ["EMAIL_TAKEN"] * 5 + ["made"]


async def test_a_name_is_stored_without_the_space_around_it(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, database: asyncpg.Connection
) -> None:
    made = (await client(stub.CreateCustomer, new_customer(name=" \u2003Ada  Lovelace\u00a0"))).customer
    assert made.name == "Ada  Lovelace"
    assert await database.fetchval("SELECT name FROM customers WHERE id = $1", UUID(made.id)) == "Ada  Lovelace"


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("email", "not an address"),
        ("email", "4242424242424242@example.com"),
        ("name", "4242 4242 4242 4242"),
        ("name", "A\0da"),
        ("name", " \u00a0 "),
        ("name", "Ada\u202eecalevoL"),
        ("password", "correct\0horse"),
        ("phone", "030 123456"),
        ("password", "short"),
        ("password", "x" * 129),
    ],
)
async def test_a_bad_field_is_named(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, field: str, bad: str
) -> None:
    error = await refused(client(stub.CreateCustomer, new_customer(**{field: bad})))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == [field]


async def test_a_password_is_kept_as_argon2id_with_the_parameters_of_owasp(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, database: asyncpg.Connection
) -> None:
    made = await client(stub.CreateCustomer, new_customer(), key=new_key())
    stored = await database.fetchval("SELECT password_hash FROM customers WHERE id = $1::text::uuid", made.customer.id)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_sign_up_publishes_an_event(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, database: asyncpg.Connection
) -> None:
    made = await client(stub.CreateCustomer, new_customer())
    row = await database.fetchrow(
        "SELECT type, sequence, payload FROM mesh.outbox WHERE aggregate_id = $1::text::uuid", made.customer.id
    )
    assert row is not None
    assert (row["type"], row["sequence"]) == ("commerce.customer.created", 1)
    assert events_pb2.CustomerCreated.FromString(row["payload"]) == events_pb2.CustomerCreated(
        customer_id=made.customer.id, create_time=made.customer.create_time
    )
    for personal in (made.customer.email, made.customer.name, made.customer.phone, PASSWORD):
        assert personal.encode() not in row["payload"]


async def test_a_customer_is_read_by_themselves_and_by_staff(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, keys: Keys
) -> None:
    made = (await client(stub.CreateCustomer, new_customer())).customer
    themselves = client.as_(keys.token("customer", made.id))
    staff = client.as_(keys.token("staff", uuid4()))
    for reader, named in ((themselves, "me"), (themselves, made.id), (staff, made.id)):
        read = await reader(stub.GetCustomer, customer_pb2.GetCustomerRequest(customer_id=named))
        assert read.customer == made


async def test_a_customer_does_not_exist_for_a_stranger(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, keys: Keys
) -> None:
    made = (await client(stub.CreateCustomer, new_customer())).customer
    stranger = client.as_(keys.token("customer", uuid4()))
    staff = client.as_(keys.token("staff", uuid4()))
    theirs = await refused(stranger(stub.GetCustomer, customer_pb2.GetCustomerRequest(customer_id=made.id)))
    nobody = str(uuid4())
    none = await refused(stranger(stub.GetCustomer, customer_pb2.GetCustomerRequest(customer_id=nobody)))
    assert theirs.message.replace(made.id, nobody) == none.message
    gone = await refused(stranger(stub.GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me")))
    no_customer = await refused(staff(stub.GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me")))
    for error in (theirs, none, gone, no_customer):
        assert (error.code.name, error.reason) == ("NOT_FOUND", "CUSTOMER_NOT_FOUND")


async def test_reading_a_customer_needs_a_good_token(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub
) -> None:
    request = customer_pb2.GetCustomerRequest(customer_id="me")
    missing = await refused(client(stub.GetCustomer, request))
    assert (missing.code.name, missing.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    bad = await refused(client.as_("not.a.token")(stub.GetCustomer, request))
    assert (bad.code.name, bad.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_what_is_not_built_says_so(
    client: Client, stub: customer_pb2_grpc.CustomerServiceAsyncStub, keys: Keys
) -> None:
    staff = client.as_(keys.token("staff", uuid4()))
    error = await refused(staff(stub.ListCustomers, customer_pb2.ListCustomersRequest()))
    assert (error.code.name, error.reason) == ("UNIMPLEMENTED", "METHOD_UNIMPLEMENTED")
