"""The versioned cache on a real Redis: there, away, silent, restarted, and under concurrent writers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from mesh import tasks
from mesh.cache.versioned import LIFETIME_S, VersionedCache
from mesh.rpc.breaker import State
from stack.servers import Servers
from tests.services import eventually, signal


@dataclass(frozen=True)
class Thing:
    """A row with a version."""

    id: UUID
    version: int = 1
    price: Decimal = Decimal("1.50")
    is_kept: bool = True


@dataclass
class Table:
    """The rows of a database, which counts the reads."""

    rows: dict[UUID, Thing] = field(default_factory=dict)
    reads: int = 0

    def add(self) -> Thing:
        thing = Thing(uuid4())
        self.rows[thing.id] = thing
        return thing

    def change(self, thing_id: UUID) -> Thing:
        """Commit the next version."""
        known = self.rows[thing_id]
        new = self.rows[thing_id] = replace(known, version=known.version + 1)
        return new

    async def load(self, ids: Collection[UUID]) -> dict[UUID, Thing]:
        self.reads += 1
        return {each: self.rows[each] for each in ids if each in self.rows}


@asynccontextmanager
async def cache_at(url: str, name: str = "") -> AsyncIterator[VersionedCache[Thing]]:
    """The cache of a process, once it is used; without a name, a cache that no other test uses."""
    cache = VersionedCache(name or f"things-{uuid4()}", Thing, url, is_cached=lambda thing: thing.is_kept)
    await cache.start()
    try:
        await is_used(cache)
        yield cache
    finally:
        await cache.stop()


async def is_used(cache: VersionedCache[Thing]) -> None:
    """Wait until reads go to the cache."""

    async def asked() -> bool:
        before = cache.bypassed
        await cache.read([uuid4()], Table().load)
        return cache.bypassed == before

    await eventually(asked)


async def cached(cache: VersionedCache[Thing], table: Table, thing: Thing) -> None:
    """Read until the value comes from the cache."""

    async def hit() -> bool:
        before = cache.hits
        assert await cache.read([thing.id], table.load) == {thing.id: thing}
        return cache.hits > before

    await eventually(hit)


@pytest.fixture
async def own(folder: Path) -> AsyncIterator[Servers]:
    async with Servers.started(folder, only={"redis"}) as own:
        yield own


async def test_values_that_were_read_are_read_from_the_cache_in_one_round_trip(own: Servers) -> None:
    table = Table()
    things = {each.id: each for each in (table.add() for _ in range(3))}
    async with cache_at(own.redis.url) as cache, Redis.from_url(own.redis.url) as redis:
        for thing in things.values():
            await cached(cache, table, thing)

        async def scripts() -> int:
            calls: int = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
            return calls

        before, hits, misses, reads = await scripts(), cache.hits, cache.misses, table.reads
        for _ in range(10):
            assert await cache.read(things.keys(), table.load) == things
        assert await scripts() == before + 10
        assert (cache.hits, cache.misses, table.reads) == (hits + 30, misses, reads)
        missing = uuid4()
        assert await cache.read([missing, *things], table.load) == things
        assert (cache.misses, table.reads) == (misses + 1, reads + 1)


async def test_a_write_is_seen_by_every_process_and_no_older_value_takes_its_place(servers: Servers) -> None:
    table, name = Table(), f"things-{uuid4()}"
    old = table.add()
    async with cache_at(servers.redis.url, name) as writer, cache_at(servers.redis.url, name) as reader:
        await cached(reader, table, old)
        reading, go_on = asyncio.Event(), asyncio.Event()

        async def slow(ids: Collection[UUID]) -> dict[UUID, Thing]:
            loaded = await table.load(ids)
            reading.set()
            await go_on.wait()
            return loaded

        # It reads the old row, and adds it when the new one is there.
        await writer.forget([other := (table.add()).id])
        late = asyncio.create_task(reader.read([other], slow))
        await reading.wait()
        new = table.change(old.id)
        await writer.put([new])
        for cache in (reader, writer):
            hits = cache.hits
            assert await cache.read([old.id], table.load) == {old.id: new}
            assert cache.hits == hits + 1
        await writer.put([old])
        assert await reader.read([old.id], table.load) == {old.id: new}
        go_on.set()
        await late
        misses = reader.misses
        await reader.read([other], table.load)
        assert reader.misses == misses + 1, "a forgotten value is not added by a read from before"


async def test_concurrent_writers_and_readers_never_go_back_to_an_older_version(servers: Servers) -> None:
    table, name = Table(), f"things-{uuid4()}"
    things = [table.add() for _ in range(3)]
    async with cache_at(servers.redis.url, name) as one, cache_at(servers.redis.url, name) as two:
        confirmed = {each.id: 1 for each in things}
        rng = random.Random(7)

        async def write(cache: VersionedCache[Thing]) -> None:
            for _ in range(150):
                new = table.change(rng.choice(things).id)
                # Writers overtake each other between commit and cache.
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                await cache.put([new])
                confirmed[new.id] = max(confirmed[new.id], new.version)

        async def slow(ids: Collection[UUID]) -> dict[UUID, Thing]:
            loaded = await table.load(ids)
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            return loaded

        async def read(cache: VersionedCache[Thing]) -> None:
            while True:
                thing = rng.choice(things)
                at_least = confirmed[thing.id]
                assert (await cache.read([thing.id], slow))[thing.id].version >= at_least

        readers = [asyncio.create_task(read(cache)) for cache in (one, two) for _ in range(4)]
        await asyncio.gather(*(write(cache) for cache in (one, two) for _ in range(3)))
        assert not any(each.done() for each in readers), [each.exception() for each in readers if each.done()]
        await tasks.end(*readers)
        for cache in (one, two):
            assert await cache.read(confirmed.keys(), table.load) == table.rows
        assert min(one.hits, two.hits) > 0


async def test_what_was_written_while_redis_was_away_is_seen_when_it_is_back(own: Servers) -> None:
    table, name = Table(), "things"
    async with cache_at(own.redis.url, name) as writer, cache_at(own.redis.url, name) as idle:
        old = table.add()
        await cached(idle, table, old)
        own.supervisor["redis"].kill()

        async def lost() -> bool:
            new = table.change(old.id)
            await writer.put([new])
            bypassed = writer.bypassed
            assert await writer.read([old.id], table.load) == {old.id: new}
            return writer.bypassed > bypassed

        await eventually(lost)
        await is_used(writer)
        # The other process has sent nothing meanwhile. Redis has the old value in its file.
        for cache in (idle, writer):
            assert await cache.read([old.id], table.load) == table.rows


async def test_a_write_that_failed_is_seen_by_others_although_its_process_reads_nothing(own: Servers) -> None:
    table, name = Table(), "things"
    async with Redis.from_url(own.redis.url) as redis:
        await redis.acl_setuser("writer", enabled=True, nopass=True, keys=["*"], categories=["+@all"])
        as_writer = own.redis.url.replace("unix://", "unix://writer@")
        async with cache_at(as_writer, name) as writer, cache_at(own.redis.url, name) as reader:
            old = table.add()
            await cached(reader, table, old)
            await redis.acl_setuser("writer", enabled=True, nopass=True, keys=["*"], categories=["-@all"])
            new = table.change(old.id)
            await writer.put([new])
            assert await reader.read([old.id], table.load) == {old.id: old}, "the control"
            await redis.acl_setuser("writer", enabled=True, nopass=True, keys=["*"], categories=["+@all"])

            async def is_new() -> bool:
                return await reader.read([old.id], table.load) == {old.id: new}

            # Much sooner than the value expires.
            await eventually(is_new, within=LIFETIME_S / 2)


async def test_a_silent_redis_costs_a_few_reads_a_moment_and_all_others_nothing(own: Servers) -> None:
    table = Table()
    async with cache_at(own.redis.url) as cache:
        old = table.add()
        await cached(cache, table, old)
        signal(own, "redis", SIGSTOP)
        try:

            async def opened() -> bool:
                assert await cache.read([old.id], table.load) == table.rows
                return cache.breaker.state is State.OPEN

            await eventually(opened)
            new, refused = table.change(old.id), cache.breaker.refused
            await cache.put([new])
            assert cache.breaker.refused == refused + 1, "it does not wait"
            interrupted = cache.breaker.interrupted
            for _ in range(100):
                assert await cache.read([old.id], table.load) == {old.id: new}
            assert cache.breaker.interrupted == interrupted
        finally:
            signal(own, "redis", SIGCONT)
        await is_used(cache)
        assert await cache.read([old.id], table.load) == {old.id: new}


async def test_after_a_cancelled_write_reads_go_to_the_database_until_the_cache_is_renewed(own: Servers) -> None:
    table = Table()
    async with cache_at(own.redis.url) as cache:
        old = table.add()
        await cached(cache, table, old)
        signal(own, "redis", SIGSTOP)
        put = asyncio.create_task(cache.put([table.change(old.id)]))
        await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
        signal(own, "redis", SIGCONT)
        for _ in range(20):
            assert await cache.read([old.id], table.load) == table.rows


async def test_a_value_that_is_not_to_be_cached_takes_the_place_of_an_older_one_and_is_not_kept(
    servers: Servers,
) -> None:
    table = Table()
    async with cache_at(servers.redis.url) as cache, Redis.from_url(servers.redis.url) as redis:
        old = table.add()
        await cached(cache, table, old)
        moving = table.rows[old.id] = replace(old, version=2, is_kept=False)
        await cache.put([moving])
        for _ in range(3):
            assert await cache.read([old.id], table.load) == {old.id: moving}
        (key,) = [key async for key in redis.scan_iter(f"cache:*:{old.id}")]
        assert await redis.hget(key, "value") == b""
        assert 0 < await redis.ttl(key) <= 60
        await cache.forget([old.id])
        await cache.put([replace(old, version=3)])
        assert await redis.hget(key, "value") == b""
