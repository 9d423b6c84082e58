"""Revoked access tokens, as a process learns of them from a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from mesh.rpc.revocations import REVOKE, STREAM, Revocations
from stack.servers import Servers
from tests.services import eventually, signal


@asynccontextmanager
async def following(url: str) -> AsyncIterator[Revocations]:
    revocations = Revocations(url)
    await revocations.start()
    try:
        yield revocations
    finally:
        await revocations.stop()


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    async with Redis.from_url(servers.redis.url, decode_responses=True) as redis:
        yield redis


async def revoke(redis: Redis, revoked: str = "", *, seconds: int = 900) -> str:
    """Revoke the tokens of a session, by default a new one; its id."""
    revoked = revoked or str(uuid4())
    script = redis.register_script(f"{REVOKE}\nrevoke(KEYS[1], ARGV[1], ARGV[2])")
    await script(keys=[STREAM], args=[revoked, seconds])
    return revoked


async def learned(revocations: Revocations, *revoked: str) -> None:
    """Wait until a process knows of these."""

    async def known() -> bool:
        return set(revoked) <= set(revocations.ids)

    await eventually(known)


async def test_a_process_knows_earlier_revocations_when_it_has_started_and_learns_of_new_ones(
    servers: Servers, redis: Redis
) -> None:
    # More than one page of the stream.
    earlier = [await revoke(redis) for _ in range(1_200)]
    async with following(servers.redis.url) as revocations, following(servers.redis.url) as other:
        # On a slow machine, it starts before it has read all.
        await learned(revocations, *earlier)
        new = await revoke(redis)
        await learned(revocations, new)
        await learned(other, new)


async def test_follower_goes_on_after_an_error_that_is_none_of_redis(
    servers: Servers, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = Redis.xread, [RuntimeError("unknown to redis-py")]

    async def fail_once(client: Redis, *arguments: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return await read(client, *arguments, **more)

    monkeypatch.setattr(Redis, "xread", fail_once)
    async with following(servers.redis.url) as revocations:
        await learned(revocations, await revoke(redis))
    assert not failures


async def test_revocations_are_forgotten_when_their_tokens_have_expired(folder: Path) -> None:
    async with (
        Servers.started(folder, only={"redis"}) as own,
        Redis.from_url(own.redis.url) as redis,
        following(own.redis.url) as revocations,
    ):
        await revoke(redis, seconds=0)
        lasting = await revoke(redis)
        await learned(revocations, lasting)
        assert set(revocations.ids) == {lasting}
        assert await redis.ttl(STREAM) == -1, "Redis evicts what has a time to live first"
        # Entries that are as old as a token can be are dropped.
        await revoke(redis, seconds=-1)
        assert await redis.xlen(STREAM) == 0


async def test_a_process_learns_after_a_lost_connection_what_was_revoked_meanwhile(folder: Path) -> None:
    async with Servers.started(folder, only={"redis"}) as own, Redis.from_url(own.redis.url) as redis:
        earlier = await revoke(redis)
        async with following(own.redis.url) as revocations:
            signal(own, "redis", SIGSTOP)

            async def lost() -> bool:
                return not revocations.is_current

            with capture_logs() as logs:
                await eventually(lost)
            assert [each["event"] for each in logs] == ["revocations do not arrive: revoked tokens are accepted"]
            assert earlier in revocations.ids, "what it knows stays refused"
            signal(own, "redis", SIGCONT)
            await learned(revocations, await revoke(redis))


async def test_a_redis_that_is_silent_or_not_there_does_not_keep_a_process_from_starting(folder: Path) -> None:
    async with following(f"unix://{folder}/none.sock") as revocations:
        assert not revocations.is_current
        assert not revocations.ids
    async with Servers.started(folder, only={"redis"}) as own:
        signal(own, "redis", SIGSTOP)
        async with following(own.redis.url) as revocations:
            assert not revocations.is_current
        signal(own, "redis", SIGCONT)
