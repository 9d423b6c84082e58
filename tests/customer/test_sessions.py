"""Signing in over gRPC, with a real Redis: there, away, silent, and back again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from structlog.testing import capture_logs

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, session_pb2, session_pb2_grpc
from customer_svc.app import Settings, build
from mesh.errors import MeshError
from mesh.rpc.call import CLIENT_ADDRESS
from stack.servers import Servers
from stack.servers.redis import Redis as RedisServer
from tests.services import Client, Keys, eventually, new_key, refused, running, settings_for

PASSWORD = "correct horse battery staple"


@asynccontextmanager
async def customer_service(servers: Servers, keys: Keys, redis: RedisServer, **more: Any) -> AsyncIterator[Client]:
    """A customer service of its own, and a client that nobody is signed in with."""
    settings = settings_for(
        Settings, "customer", servers, keys, redis_url=redis.url, signing_key=keys.signing.private, **more
    )
    async with running(build(settings)) as address:
        client = Client(address, "customer", keys)
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture(scope="module")
async def client(servers: Servers, keys: Keys) -> AsyncIterator[Client]:
    async with customer_service(servers, keys, servers.redis) as client:
        yield client


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    async with Redis.from_url(servers.redis.url, decode_responses=True) as redis:
        yield redis


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(servers.postgres.url_for("customer_svc"))
    yield connection
    await connection.close()


CHEAP = {"password_memory_kib": 64, "password_passes": 1}
"""Hashes for tests of many sign-ins."""


def coming_from(address: str) -> tuple[tuple[str, str], ...]:
    """The metadata with which the edge passes on a call from an address; none when that is empty."""
    return ((CLIENT_ADDRESS, address),) if address else ()


async def sign_up(
    client: Client, email: str | None = None, *, address: str = "", key: str | None = None
) -> customer_pb2.Customer:
    request = customer_pb2.CreateCustomerRequest(email=email or f"{uuid4()}@example.com", name="Ada", password=PASSWORD)
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    reply = await client(stub.CreateCustomer, request, key=key, metadata=coming_from(address))
    made: customer_pb2.Customer = reply.customer
    return made


async def read(client: Client, customer_id: str) -> customer_pb2.Customer:
    request = customer_pb2.GetCustomerRequest(customer_id=customer_id)
    reply = await client(customer_pb2_grpc.CustomerServiceStub(client.channel).GetCustomer, request)
    found: customer_pb2.Customer = reply.customer
    return found


async def sign_in(
    client: Client, email: str, password: str = PASSWORD, *, key: str | None = None, address: str = ""
) -> session_pb2.Session:
    request = session_pb2.CreateSessionRequest(email=email, password=password)
    stub = session_pb2_grpc.SessionServiceStub(client.channel)
    reply = await client(stub.CreateSession, request, key=key, metadata=coming_from(address))
    session: session_pb2.Session = reply.session
    return session


async def reasons_of(*sign_ins: Any) -> list[str]:
    """What came of sign-ins at once: the reasons of those that were refused, `in` for the others."""
    outcomes = await asyncio.gather(*sign_ins, return_exceptions=True)
    assert all(isinstance(each, session_pb2.Session | MeshError) for each in outcomes)
    return sorted(getattr(each, "reason", "in") for each in outcomes)


async def test_who_signs_in_is_known_by_the_access_token(client: Client) -> None:
    customer = await sign_up(client)
    began = datetime.now(UTC).replace(microsecond=0)
    session = await sign_in(client, customer.email)
    assert session.customer_id == customer.id
    issued = session.expire_time.ToDatetime(UTC) - timedelta(minutes=15)
    assert began <= issued <= datetime.now(UTC) + timedelta(seconds=1)
    assert await read(client.as_(session.access_token), "me") == customer


async def test_an_email_address_signs_in_in_any_spelling(client: Client) -> None:
    customer = await sign_up(client, f"Ada.{uuid4()}@Example.com")
    for spelled in (customer.email.upper(), customer.email.lower()):
        assert (await sign_in(client, spelled)).customer_id == customer.id


async def test_of_the_refresh_token_only_a_digest_is_kept_for_thirty_days(client: Client, redis: Redis) -> None:
    customer = await sign_up(client)
    session = await sign_in(client, customer.email)
    family, secret = session.refresh_token.split(".")
    assert len(secret) >= 43
    kept = await redis.hgetall(f"session:{family}")
    assert kept["customer_id"] == customer.id
    assert kept["token_sha256"] == sha256(secret.encode()).hexdigest()
    assert secret not in str(kept)
    assert 30 * 86_400 - 60 < await redis.ttl(f"session:{family}") <= 30 * 86_400


async def test_each_sign_in_is_a_session_of_its_own_whatever_the_key(
    client: Client, database: asyncpg.Connection
) -> None:
    customer, key = await sign_up(client), new_key()
    one, two = await sign_in(client, customer.email, key=key), await sign_in(client, customer.email, key=key)
    assert one.refresh_token != two.refresh_token
    assert one.access_token != two.access_token
    stored = await database.fetchval("SELECT count(*) FROM mesh.idempotency WHERE method LIKE '%SessionService%'")
    assert stored == 0


async def test_an_unknown_email_address_and_a_wrong_password_read_alike(client: Client) -> None:
    customer = await sign_up(client)
    wrong = await refused(sign_in(client, customer.email, "a wrong password"))
    unknown = await refused(sign_in(client, f"{uuid4()}@example.com"))
    for error in (wrong, unknown):
        assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "CREDENTIALS_INVALID")
    assert (wrong.message, wrong.metadata, wrong.violations) == (unknown.message, unknown.metadata, unknown.violations)


async def test_no_secret_is_logged(client: Client) -> None:
    with capture_logs() as logs:
        customer = await sign_up(client)
        session = await sign_in(client, customer.email)
        await refused(sign_in(client, customer.email, "a wrong password"))
    assert len(logs) >= 3
    for secret in (PASSWORD, "a wrong password", session.access_token, session.refresh_token, customer.email):
        assert secret not in repr(logs)


async def test_failures_with_one_email_address_are_limited_also_side_by_side(servers: Servers, keys: Keys) -> None:
    async with (
        customer_service(servers, keys, servers.redis, sign_in_failures=3) as client,
        customer_service(servers, keys, servers.redis, sign_in_failures=3) as other_worker,
    ):
        customer, bystander = await sign_up(client), await sign_up(client)
        for email in (customer.email, f"{uuid4()}@example.com"):
            guesses = [sign_in(client, email, f"guess {n}") for n in range(6)]
            guesses += [sign_in(other_worker, email.upper(), f"other guess {n}") for n in range(6)]
            assert await reasons_of(*guesses) == ["CREDENTIALS_INVALID"] * 3 + ["RATE_LIMITED"] * 9
        # From now on the right password does not help either: it would tell the one who guesses.
        error = await refused(sign_in(client, customer.email))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 15 * 60
        assert (await sign_in(client, bystander.email)).customer_id == bystander.id


async def guess(client: Client, email: str, address: str, times: int) -> list[str]:
    """What comes of wrong passwords from an address."""
    return await reasons_of(*(sign_in(client, email, f"guess {n}", address=address) for n in range(times)))


@pytest.mark.parametrize(
    ("stranger", "neighbour", "owner"),
    [("192.0.2.1", "192.0.2.1", "192.0.2.2"), ("2001:db8:1:1::1", "2001:db8:1:1:ffff::2", "2001:db8:1:2::1")],
)
async def test_failures_of_a_stranger_do_not_lock_the_owner_out(
    servers: Servers, keys: Keys, stranger: str, neighbour: str, owner: str
) -> None:
    async with customer_service(servers, keys, servers.redis, **CHEAP) as client:
        customer = await sign_up(client)
        for _ in range(3):
            await guess(client, customer.email, stranger, 12)
        assert await guess(client, customer.email, neighbour, 2) == ["RATE_LIMITED"] * 2, "they are one client"
        assert (await refused(sign_in(client, customer.email, address=stranger))).reason == "RATE_LIMITED"
        assert (await sign_in(client, customer.email, address=owner)).customer_id == customer.id


async def test_failures_from_many_addresses_are_limited_but_where_the_owner_has_signed_in_before(
    servers: Servers, keys: Keys
) -> None:
    limits = {"sign_in_failures": 2, "sign_in_failures_per_email": 8}
    async with (
        customer_service(servers, keys, servers.redis, **limits, **CHEAP) as client,
        customer_service(servers, keys, servers.redis, **limits, **CHEAP) as other_worker,
    ):
        customer, home = await sign_up(client), "198.51.100.1"
        await sign_in(client, customer.email, address=home)
        for number in range(4):
            worker = (client, other_worker)[number % 2]
            # What is refused for one client does not count for all.
            outcome = await guess(worker, customer.email, f"192.0.2.{number}", 4)
            assert outcome == ["CREDENTIALS_INVALID"] * 2 + ["RATE_LIMITED"] * 2
        error = await refused(sign_in(other_worker, customer.email, address="203.0.113.1"))
        assert error.reason == "RATE_LIMITED"
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 15 * 60
        assert (await sign_in(other_worker, customer.email, address=home)).customer_id == customer.id
        assert await guess(client, customer.email, home, 3) == ["CREDENTIALS_INVALID"] * 2 + ["RATE_LIMITED"], (
            "one client's own limit holds there, too"
        )


async def test_one_address_signs_in_fifty_times_at_once_and_then_at_its_rate_whichever_worker_it_asks(
    servers: Servers, keys: Keys
) -> None:
    # One in a quarter of an hour, so that none is added while the test runs.
    limits = {"sign_in_rate_per_address": 1 / 900, **CHEAP}
    async with (
        customer_service(servers, keys, servers.redis, **limits) as client,
        customer_service(servers, keys, servers.redis, **limits) as other_worker,
    ):
        customer, address = await sign_up(client), "192.0.2.50"
        tries = [
            sign_in((client, other_worker)[number % 2], f"{uuid4()}@example.com", address=address)
            for number in range(60)
        ]
        assert await reasons_of(*tries) == ["CREDENTIALS_INVALID"] * 50 + ["RATE_LIMITED"] * 10
        error = await refused(sign_in(client, customer.email, address=address))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 900
        assert (await sign_in(client, customer.email, address="192.0.2.51")).customer_id == customer.id


async def test_one_address_signs_up_fifty_customers_at_once_and_then_at_its_rate(servers: Servers, keys: Keys) -> None:
    limits = {"sign_in_rate_per_address": 1 / 900, **CHEAP}
    async with customer_service(servers, keys, servers.redis, **limits) as client:
        address, key, email = "192.0.2.60", new_key(), f"{uuid4()}@example.com"
        first = await sign_up(client, email, address=address, key=key)
        for _ in range(49):
            await sign_up(client, address=address)
        error = await refused(sign_up(client, address=address))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert error.retry_after
        assert await sign_up(client, email, address=address, key=key) == first, "a replay costs nothing"
        assert (await sign_in(client, email, address=address)).customer_id == first.id, "signing in counts apart"
        await sign_up(client, address="192.0.2.61")


async def test_a_limited_address_is_admitted_again_at_its_rate(servers: Servers, keys: Keys) -> None:
    async with customer_service(servers, keys, servers.redis, sign_in_rate_per_address=2, **CHEAP) as client:
        customer, address = await sign_up(client), "192.0.2.70"

        async def limited() -> bool:
            return "RATE_LIMITED" in await reasons_of(
                *(sign_in(client, customer.email, address=address) for _ in range(20))
            )

        async def let_in() -> bool:
            return await reasons_of(sign_in(client, customer.email, address=address)) == ["in"]

        assert await eventually(limited)
        assert await eventually(let_in)


async def test_no_rate_limits_a_client_whose_address_is_unknown_or_when_it_is_off(servers: Servers, keys: Keys) -> None:
    async with (
        customer_service(servers, keys, servers.redis, sign_in_rate_per_address=1 / 900, **CHEAP) as client,
        customer_service(servers, keys, servers.redis, sign_in_rate_per_address=0, **CHEAP) as unlimited,
    ):
        customer = await sign_up(client)
        for asked, address in ((client, ""), (unlimited, "192.0.2.80")):
            tries = [sign_in(asked, customer.email, address=address) for _ in range(60)]
            assert await reasons_of(*tries) == ["in"] * 60


async def test_without_redis_signing_up_goes_on_without_a_rate(servers: Servers, keys: Keys, folder: Path) -> None:
    nowhere = RedisServer(f"unix://{folder}/none.sock")
    async with customer_service(servers, keys, nowhere, sign_in_rate_per_address=1 / 900, **CHEAP) as client:
        for _ in range(51):
            await sign_up(client, address="192.0.2.90")


async def test_failures_are_forgotten_when_the_window_has_passed(servers: Servers, keys: Keys, redis: Redis) -> None:
    others = {key async for key in redis.scan_iter("sign-in:*")}
    async with customer_service(
        servers, keys, servers.redis, sign_in_failures=2, sign_in_window_seconds=1000, **CHEAP
    ) as client:
        customer = await sign_up(client)
        assert await reasons_of(*(sign_in(client, customer.email, "wrong") for _ in range(4))) == [
            "CREDENTIALS_INVALID", "CREDENTIALS_INVALID", "RATE_LIMITED", "RATE_LIMITED",
        ]  # fmt: skip

        async def age(seconds: int) -> None:
            """Move the attempts into the past."""
            for key in {key async for key in redis.scan_iter("sign-in:*")} - others:
                for attempt in await redis.zrange(key, 0, -1):
                    await redis.zincrby(key, -1000 * seconds, str(attempt))

        await age(500)
        assert await reasons_of(sign_in(client, customer.email)) == ["RATE_LIMITED"]
        await age(500)
        assert await reasons_of(sign_in(client, customer.email)) == ["in"]


async def test_sign_ins_that_succeed_never_count(servers: Servers, keys: Keys) -> None:
    async with customer_service(servers, keys, servers.redis, sign_in_failures=1) as client:
        customer = await sign_up(client)
        assert await reasons_of(*(sign_in(client, customer.email) for _ in range(8))) == ["in"] * 8


async def test_a_sign_in_that_the_caller_gives_up_does_not_count(servers: Servers, keys: Keys, redis: Redis) -> None:
    async with customer_service(
        servers, keys, servers.redis, sign_in_failures=1, password_memory_kib=64 * 1024, password_passes=8
    ) as client:
        customer = await sign_up(client)
        others = {key async for key in redis.scan_iter("sign-in:*")}

        async def counted() -> set[str]:
            return {key async for key in redis.scan_iter("sign-in:*")} - others

        async def not_counted() -> bool:
            return not await counted()

        given_up = asyncio.create_task(sign_in(client, customer.email, "wrong"))
        await eventually(counted)
        given_up.cancel()
        await asyncio.wait([given_up])
        await eventually(not_counted)
        assert await reasons_of(sign_in(client, customer.email)) == ["in"]


async def test_a_hash_follows_the_parameters_at_the_next_sign_in(
    client: Client, servers: Servers, keys: Keys, database: asyncpg.Connection
) -> None:
    customer = await sign_up(client)

    async def stored() -> str:
        query = "SELECT password_hash FROM customers WHERE id = $1::text::uuid"
        return str(await database.fetchval(query, customer.id))

    assert "m=19456,t=2,p=1" in await stored()
    async with customer_service(servers, keys, servers.redis, password_passes=3) as raised:
        await refused(sign_in(raised, customer.email, "a wrong password"))
        assert "m=19456,t=2,p=1" in await stored()
        await sign_in(raised, customer.email)
        assert "m=19456,t=3,p=1" in await stored()
        assert (await sign_in(raised, customer.email)).customer_id == customer.id
    assert await read(client.as_((await sign_in(client, customer.email)).access_token), "me") == customer


async def test_without_redis_only_signing_in_stops(servers: Servers, keys: Keys, folder: Path) -> None:
    nowhere = RedisServer(f"unix://{folder}/none.sock")
    async with customer_service(servers, keys, nowhere) as client:
        customer = await sign_up(client)
        error = await refused(sign_in(client, customer.email))
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
        assert error.retry_after
        assert await read(client.as_(keys.token("customer", UUID(customer.id))), "me") == customer
        check = health_pb2_grpc.HealthStub(client.channel).Check  # type: ignore[attr-defined]  # set by its __init__
        health = await client(check, health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_redis_that_does_not_answer_holds_nobody_up(servers: Servers, keys: Keys) -> None:
    silent = asyncio.Event()

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, customer_service(servers, keys, RedisServer(f"redis://{host}:{port}")) as client:
        # Both end before the deadline of the caller, which would have another reason.
        signing_in = asyncio.create_task(refused(sign_in(client, f"{uuid4()}@example.com")))
        await sign_up(client, address="192.0.2.99")
        assert (await signing_in).reason == "DEPENDENCY_UNAVAILABLE"
        silent.set()


async def test_signing_in_goes_on_when_redis_is_back(servers: Servers, keys: Keys, folder: Path) -> None:
    async with (
        Servers.started(folder, only={"redis"}) as own,
        customer_service(servers, keys, own.redis) as client,
    ):
        customer = await sign_up(client)
        await sign_in(client, customer.email)
        own.supervisor["redis"].kill()

        async def back() -> bool:
            return await reasons_of(sign_in(client, customer.email)) == ["in"]

        assert await eventually(back)


@pytest.mark.parametrize(
    ("email", "password", "field"),
    [
        ("not an address", PASSWORD, "email"),
        ("a@example.com", "", "password"),
        ("a@example.com", "x" * 129, "password"),
    ],
)
async def test_a_bad_sign_in_names_the_field(client: Client, email: str, password: str, field: str) -> None:
    error = await refused(sign_in(client, email, password))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == [field]


def family_key(session: session_pb2.Session) -> str:
    """The key of a session's family in Redis."""
    return f"session:{session.refresh_token.partition('.')[0]}"


async def refresh(client: Client, refresh_token: str) -> session_pb2.Session:
    request = session_pb2.RefreshSessionRequest(refresh_token=refresh_token)
    reply = await client(session_pb2_grpc.SessionServiceStub(client.channel).RefreshSession, request)
    session: session_pb2.Session = reply.session
    return session


async def sign_out(client: Client, refresh_token: str) -> None:
    request = session_pb2.DeleteSessionRequest(refresh_token=refresh_token)
    await client(session_pb2_grpc.SessionServiceStub(client.channel).DeleteSession, request)


async def is_revoked(client: Client, refresh_token: str) -> bool:
    error = await refused(refresh(client, refresh_token))
    return (error.code.name, error.reason) == ("UNAUTHENTICATED", "SESSION_REVOKED")


async def age_first_use(redis: Redis, session: session_pb2.Session, seconds: int) -> None:
    """Move the first use of the token that was refreshed last into the past."""
    assert await redis.hincrby(family_key(session), "used_ms", -seconds * 1000) > 0


async def test_refreshing_gives_a_new_pair_of_tokens_for_the_same_customer(client: Client) -> None:
    customer = await sign_up(client)
    first = await sign_in(client, customer.email)
    second = await refresh(client, first.refresh_token)
    third = await refresh(client, second.refresh_token)
    assert len({each.refresh_token for each in (first, second, third)}) == 3
    assert len({each.access_token for each in (first, second, third)}) == 3
    assert third.customer_id == customer.id
    assert third.expire_time.ToDatetime(UTC) > datetime.now(UTC)
    assert await read(client.as_(third.access_token), "me") == customer


async def test_refreshing_keeps_only_digests_and_does_not_extend_the_session(client: Client, redis: Redis) -> None:
    first = await sign_in(client, (await sign_up(client)).email)
    key = family_key(first)
    assert await redis.expire(key, 1000)
    second = await refresh(client, first.refresh_token)
    assert 0 < await redis.ttl(key) <= 1000
    kept = str(await redis.hgetall(key))
    assert sha256(second.refresh_token.split(".")[1].encode()).hexdigest() in kept
    for session in (first, second):
        assert session.refresh_token.split(".")[1] not in kept


async def test_an_old_refresh_token_revokes_its_family_and_no_other(client: Client) -> None:
    customer = await sign_up(client)
    first, other_device = await sign_in(client, customer.email), await sign_in(client, customer.email)
    second = await refresh(client, first.refresh_token)
    third = await refresh(client, second.refresh_token)
    with capture_logs() as logs:
        assert await is_revoked(client, first.refresh_token)
    assert [each["customer_id"] for each in logs if each["event"] == "refresh token reused"] == [customer.id]
    assert first.refresh_token not in repr(logs)
    for session in (third, second, first):
        assert await is_revoked(client, session.refresh_token)
    assert (await refresh(client, other_device.refresh_token)).customer_id == customer.id


async def test_a_retry_within_ten_seconds_of_the_first_use_gets_a_pair_of_the_same_family(
    client: Client, redis: Redis
) -> None:
    first = await sign_in(client, (await sign_up(client)).email)
    lost = await refresh(client, first.refresh_token)
    await age_first_use(redis, first, 2)
    retried = await refresh(client, first.refresh_token)
    assert retried.refresh_token != lost.refresh_token
    assert family_key(retried) == family_key(first)
    following = await refresh(client, retried.refresh_token)
    # The reply that was taken for lost is in somebody's hands after all.
    assert await is_revoked(client, lost.refresh_token)
    assert await is_revoked(client, following.refresh_token)


async def test_a_retry_later_than_ten_seconds_after_the_first_use_revokes_the_family(
    client: Client, redis: Redis
) -> None:
    first = await sign_in(client, (await sign_up(client)).email)
    second = await refresh(client, first.refresh_token)
    await age_first_use(redis, first, 2)
    retried = await refresh(client, first.refresh_token)
    # The first use counts, not the last.
    await age_first_use(redis, first, 9)
    assert await is_revoked(client, first.refresh_token)
    for session in (second, retried):
        assert await is_revoked(client, session.refresh_token)


async def test_attempts_at_once_with_one_refresh_token_leave_one_family_that_goes_on(client: Client) -> None:
    customer = await sign_up(client)
    first = await sign_in(client, customer.email)
    sessions = await asyncio.gather(*(refresh(client, first.refresh_token) for _ in range(6)))
    assert len({each.refresh_token for each in sessions}) == 6
    following = await refresh(client, sessions[3].refresh_token)
    assert (await refresh(client, following.refresh_token)).customer_id == customer.id


async def test_of_many_retries_only_the_newest_refresh_tokens_are_good(client: Client, redis: Redis) -> None:
    first = await sign_in(client, (await sign_up(client)).email)
    sessions = [await refresh(client, first.refresh_token) for _ in range(12)]
    kept = await redis.hget(family_key(first), "token_sha256")
    assert kept is not None
    assert kept.split() == [sha256(each.refresh_token.split(".")[1].encode()).hexdigest() for each in sessions[-8:]]


@pytest.mark.parametrize("token", ["x", ".", f"{UUID(int=7)}", f"{UUID(int=7)}.secret", "session.secret", "é" * 512])
async def test_an_unknown_refresh_token_is_refused_and_signs_out_without_effect(client: Client, token: str) -> None:
    assert await is_revoked(client, token)
    await sign_out(client, token)


async def test_who_knows_only_the_id_of_a_session_or_an_old_refresh_token_signs_nobody_out(client: Client) -> None:
    first = await sign_in(client, (await sign_up(client)).email)
    second = await refresh(client, first.refresh_token)
    third = await refresh(client, second.refresh_token)
    family = third.refresh_token.partition(".")[0]
    for token in (f"{family}.", f"{family}.{third.refresh_token[-5:]}", first.refresh_token):
        await sign_out(client, token)
    fourth = await refresh(client, third.refresh_token)
    # The reply to the last refresh may be lost.
    await sign_out(client, third.refresh_token)
    assert await is_revoked(client, fourth.refresh_token)


async def test_signing_out_revokes_the_family_and_may_be_repeated(client: Client) -> None:
    customer = await sign_up(client)
    first, other_device = await sign_in(client, customer.email), await sign_in(client, customer.email)
    second = await refresh(client, first.refresh_token)
    for _ in range(2):
        await sign_out(client, second.refresh_token)
    for session in (first, second):
        assert await is_revoked(client, session.refresh_token)
    assert (await refresh(client, other_device.refresh_token)).customer_id == customer.id


async def test_without_redis_refreshing_and_signing_out_say_so(servers: Servers, keys: Keys, folder: Path) -> None:
    nowhere = RedisServer(f"unix://{folder}/none.sock")
    async with customer_service(servers, keys, nowhere) as client:
        token = f"{uuid4()}.secret"
        for call in (refresh(client, token), sign_out(client, token)):
            error = await refused(call)
            assert (error.code.name, error.reason) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
