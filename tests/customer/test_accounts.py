"""Signing up, and reading, updating and listing customers, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, events_pb2, session_pb2, session_pb2_grpc
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


async def update(
    client: Client, *, mask: Sequence[str] = (), named: str = "me", key: str | None = None, **new: Any
) -> customer_pb2.Customer:
    request = customer_pb2.UpdateCustomerRequest(customer=customer_pb2.Customer(id=named, **new))
    request.update_mask.paths.extend(mask)
    reply = await client(customer_pb2_grpc.CustomerServiceStub(client.channel).UpdateCustomer, request, key=key)
    changed: customer_pb2.Customer = reply.customer
    return changed


async def sign_up(client: Client, **given: str) -> customer_pb2.Customer:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    made: customer_pb2.Customer = (await client(stub.CreateCustomer, new_customer(**given))).customer
    return made


async def read(client: Client) -> customer_pb2.Customer:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    found: customer_pb2.Customer = (
        await client(stub.GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me"))
    ).customer
    return found


async def sign_in(client: Client, email: str) -> str:
    """The id of the customer who signs in."""
    stub = session_pb2_grpc.SessionServiceStub(client.channel)
    reply = await client(stub.CreateSession, session_pb2.CreateSessionRequest(email=email, password=PASSWORD))
    return str(reply.session.customer_id)


@pytest.fixture
async def made(client: Client) -> customer_pb2.Customer:
    """A new customer."""
    return await sign_up(client)


@pytest.fixture
def ada(client: Client, keys: Keys, made: customer_pb2.Customer) -> Client:
    """The same connection, signed in as the new customer."""
    return client.as_(keys.token("customer", UUID(made.id)))


async def test_an_update_changes_the_fields_that_the_mask_names(ada: Client, made: customer_pb2.Customer) -> None:
    changed = await update(ada, mask=["name"], name=" Grace ", phone="+12025550123", email="other@example.com")
    assert (changed.name, changed.phone, changed.email) == ("Grace", made.phone, made.email)
    assert (changed.etag, changed.create_time) == ("2", made.create_time)
    assert changed.update_time.ToDatetime() > made.update_time.ToDatetime()
    assert await read(ada) == changed
    cleared = await update(ada, mask=["phone"])
    assert (cleared.name, cleared.phone) == ("Grace", "")


async def test_an_update_without_a_mask_changes_all_fields_that_are_not_empty(
    ada: Client, made: customer_pb2.Customer
) -> None:
    changed = await update(ada, phone="+12025550123")
    assert (changed.name, changed.phone, changed.email) == (made.name, "+12025550123", made.email)


async def test_a_customer_is_updated_once_for_their_key(ada: Client) -> None:
    key = new_key()
    first = await update(ada, name="Grace", key=key)
    await update(ada, name="Joan")
    assert await update(ada, name="Grace", key=key) == first
    assert (await read(ada)).name == "Joan"
    assert (await refused(update(ada, name="Mary", key=key))).reason == "IDEMPOTENCY_KEY_REUSED"


async def test_an_update_with_an_older_etag_is_refused(ada: Client, made: customer_pb2.Customer) -> None:
    changed = await update(ada, name="Grace", etag=made.etag)
    for etag in (made.etag, "nonsense"):
        error = await refused(update(ada, name="Joan", etag=etag))
        assert (error.code.name, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert await read(ada) == changed


async def test_of_updates_at_once_with_one_etag_one_succeeds(ada: Client, made: customer_pb2.Customer) -> None:
    outcomes = await asyncio.gather(
        *(update(ada, name=f"Ada {number}", etag=made.etag) for number in range(6)), return_exceptions=True
    )
    assert sorted(getattr(each, "reason", "updated") for each in outcomes) == ["ETAG_MISMATCH"] * 5 + ["updated"]


async def test_an_update_to_the_same_values_changes_nothing(
    ada: Client, made: customer_pb2.Customer, database: asyncpg.Connection
) -> None:
    assert await update(ada, name=made.name, phone=made.phone, email=made.email) == made
    counted = "SELECT count(*) FROM mesh.outbox WHERE aggregate_id = $1::text::uuid"
    assert await database.fetchval(counted, made.id) == 1


async def test_an_update_publishes_an_event_without_personal_data(
    ada: Client, made: customer_pb2.Customer, database: asyncpg.Connection
) -> None:
    changed = await update(ada, name="Grace", email=f"{uuid4()}@example.com", phone="+12025550123")
    row = await database.fetchrow(
        "SELECT type, payload FROM mesh.outbox WHERE aggregate_id = $1::text::uuid AND sequence = 2", made.id
    )
    assert row is not None
    assert row["type"] == "commerce.customer.updated"
    assert events_pb2.CustomerUpdated.FromString(row["payload"]) == events_pb2.CustomerUpdated(
        customer_id=made.id, update_time=changed.update_time, etag="2"
    )


async def test_a_changed_email_address_signs_in_and_frees_the_old_one(
    client: Client, ada: Client, made: customer_pb2.Customer
) -> None:
    email = f"{uuid4()}@example.com"
    assert (await update(ada, email=email)).email == email
    assert await sign_in(client, email) == made.id
    assert (await refused(sign_in(client, made.email))).reason == "CREDENTIALS_INVALID"
    successor = await sign_up(client, email=made.email)
    assert await sign_in(client, made.email) == successor.id


async def test_a_customer_may_change_the_case_of_their_own_email_address(
    client: Client, ada: Client, made: customer_pb2.Customer
) -> None:
    assert (await update(ada, email=made.email.upper())).email == made.email.upper()
    assert await sign_in(client, made.email) == made.id


async def test_an_email_address_of_another_customer_is_refused_in_any_case(
    client: Client, ada: Client, made: customer_pb2.Customer
) -> None:
    other = await sign_up(client)
    for email in (other.email, other.email.upper()):
        error = await refused(update(ada, email=email, name="Grace"))
        assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "EMAIL_TAKEN")
        assert other.email.lower() not in (error.message + str(error.metadata)).lower()
    assert await read(ada) == made


async def test_updates_and_sign_ups_at_once_give_an_email_address_once_and_no_error_in_the_log(
    client: Client, keys: Keys, servers: Servers, database: asyncpg.Connection
) -> None:
    people = [await sign_up(client) for _ in range(6)]
    for _ in range(4):
        email = f"{uuid4()}@example.com"
        updates = [
            update(client.as_(keys.token("customer", UUID(each.id))), email=spelled)
            for each, spelled in zip(people, (email, email.upper()) * 3, strict=True)
        ]
        outcomes = await asyncio.gather(*updates, sign_up(client, email=email), return_exceptions=True)
        assert sorted(getattr(each, "reason", "given") for each in outcomes) == ["EMAIL_TAKEN"] * 6 + ["given"]
        assert await database.fetchval("SELECT count(*) FROM customers WHERE lower(email) = $1", email) == 1
        with pytest.raises(asyncpg.InvalidTextRepresentationError):
            await database.execute(f"SELECT 'control-{email}'::int")
        said = (servers.supervisor.logs / "postgres.log").read_text().lower()
        assert f"control-{email}" in said
        assert email not in said.replace(f"control-{email}", "")
        assert "customers_email" not in said


async def test_only_the_customer_and_staff_update_them(
    client: Client, keys: Keys, ada: Client, made: customer_pb2.Customer
) -> None:
    stranger, staff = (client.as_(keys.token(role, uuid4())) for role in ("customer", "staff"))
    for refusal in (
        update(stranger, named=made.id, name="Mallory"),
        update(stranger, name="Mallory"),
        update(staff, name="Mallory"),
        update(staff, named=str(uuid4()), name="Mallory"),
    ):
        error = await refused(refusal)
        assert (error.code.name, error.reason) == ("NOT_FOUND", "CUSTOMER_NOT_FOUND")
    error = await refused(update(client, named=made.id, name="Mallory"))
    assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    assert await read(ada) == made
    assert (await update(staff, named=made.id, name="Grace")).name == "Grace"


@pytest.mark.parametrize(
    ("mask", "new", "field"),
    [
        (["createTime"], {}, "update_mask"),
        (["email"], {}, "customer.email"),
        (["name"], {}, "customer.name"),
        ([], {"email": "not an address"}, "customer.email"),
        ([], {"name": " "}, "customer.name"),
        ([], {"phone": "030 123456"}, "customer.phone"),
    ],
)
async def test_a_bad_update_names_the_field(ada: Client, mask: list[str], new: dict[str, str], field: str) -> None:
    error = await refused(update(ada, mask=mask, **new))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == [field]


async def listed(client: Client, **given: Any) -> customer_pb2.ListCustomersResponse:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    reply: customer_pb2.ListCustomersResponse = await client(
        stub.ListCustomers, customer_pb2.ListCustomersRequest(**given)
    )
    return reply


async def test_pages_show_each_customer_once_newest_first(client: Client, keys: Keys) -> None:
    staff = client.as_(keys.token("staff", uuid4()))
    people = [await sign_up(client) for _ in range(5)]
    newest_first = people[::-1]
    first = await listed(staff, page_size=2)
    assert list(first.customers) == newest_first[:2]
    # One who signs up meanwhile is newer than the pages that follow.
    await sign_up(client)
    second = await listed(staff, page_size=3, page_token=first.next_page_token)
    assert list(second.customers) == newest_first[2:]


async def test_the_last_page_of_customers_has_no_token(
    client: Client, keys: Keys, database: asyncpg.Connection
) -> None:
    staff = client.as_(keys.token("staff", uuid4()))
    await sign_up(client)
    seen, token, is_first = list[str](), "", True
    while token or is_first:
        page = await listed(staff, page_size=500, page_token=token)
        seen += [each.id for each in page.customers]
        token, is_first = page.next_page_token, False
    assert seen == [str(row["id"]) for row in await database.fetch("SELECT id FROM customers ORDER BY id DESC")]


async def test_a_customer_is_found_by_their_email_address_in_any_case(
    client: Client, keys: Keys, made: customer_pb2.Customer
) -> None:
    staff = client.as_(keys.token("staff", uuid4()))
    for spelled in (made.email, made.email.upper()):
        page = await listed(staff, email=spelled)
        assert (list(page.customers), page.next_page_token) == ([made], "")
    assert await listed(staff, email=f"{uuid4()}@example.com") == customer_pb2.ListCustomersResponse()
    error = await refused(listed(staff, email="not an address"))
    assert [violation.field for violation in error.violations] == ["email"]


async def test_a_page_token_of_all_customers_is_refused_with_a_filter(
    client: Client, keys: Keys, made: customer_pb2.Customer
) -> None:
    staff = client.as_(keys.token("staff", uuid4()))
    await sign_up(client)
    token = (await listed(staff, page_size=1)).next_page_token
    for given in ({"email": made.email, "page_token": token}, {"page_token": token + "x"}):
        error = await refused(listed(staff, **given))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_only_staff_lists_customers(client: Client, ada: Client, made: customer_pb2.Customer) -> None:
    for given in ({}, {"email": made.email}):
        error = await refused(listed(ada, **given))
        assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
    assert (await refused(listed(client))).reason == "TOKEN_MISSING"
