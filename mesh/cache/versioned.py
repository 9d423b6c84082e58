"""A cache-aside of versioned values in Redis (ADR-0047).

    read    one round trip for any number of values; those that are missing are loaded and added in the background
    write   after the commit and before the reply, the new version takes the place of the old one

An older value never replaces a newer one: Redis compares the versions. Each value belongs to a generation, and only
those of the current one are read. A process begins a new generation before it uses the cache for the first time, and
again at once after a failure, because a write may not have reached the cache. Until then its reads go to the database.

While Redis does not answer, a breaker lets reads pass it by, instead of a timeout for each.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import structlog
from pydantic import TypeAdapter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from mesh import tasks
from mesh.patches.redis_py import patched
from mesh.rpc.breaker import Breaker, BreakerOpen


class Versioned(Protocol):
    """What can be cached."""

    @property
    def id(self) -> UUID: ...
    @property
    def version(self) -> int:
        """It grows with every change."""


V = TypeVar("V", bound=Versioned)

LIFETIME_S = 60
"""The seconds for which a value is cached."""

_SUSPECT_AFTER_S = 0.1
"""The time without an answer after which the breaker probes Redis."""
_PROBE_S = 0.1
_GIVE_UP_S = 1.0
"""The longest time that a command waits. The breaker usually ends it much earlier."""
_MOST_FILLS = 64
"""The background fills at a time. Values of further reads are not added."""

# KEYS[1] is the generation, the others are values. Returns the generation and each value, or false.
_READ = """
local generation = redis.call('GET', KEYS[1]) or '0'
local found = {generation}
for i = 2, #KEYS do
  local entry = redis.call('HMGET', KEYS[i], 'generation', 'shape', 'value')
  found[i] = entry[1] == generation and entry[2] == ARGV[1] and entry[3]
end
return found
"""

# KEYS[1] is the generation, the others are values. ARGV: the shape, the lifetime in ms, the generation of the read that
# missed the values (empty after a write), and version and value of each. An empty value is one that is not cached.
_WRITE = """
local generation = redis.call('GET', KEYS[1]) or '0'
if ARGV[3] ~= '' and ARGV[3] ~= generation then
  return 1
end
for i = 2, #KEYS do
  local version, value = tonumber(ARGV[2 * i]), ARGV[2 * i + 1]
  local entry = redis.call('HMGET', KEYS[i], 'version', 'generation', 'shape')
  local known = tonumber(entry[1] or -1)
  if version > known or version == known and (entry[2] ~= generation or entry[3] ~= ARGV[1]) then
    redis.call('HSET', KEYS[i], 'version', ARGV[2 * i], 'generation', generation, 'shape', ARGV[1], 'value', value)
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  end
end
return 1
"""

_LAST_VERSION = 2**53
"""Newer than every version, and exact in Lua's numbers."""

log = structlog.get_logger(__name__)


class VersionedCache(Generic[V]):
    """Values of one kind, by id. A part of a service."""

    def __init__(self, name: str, kind: type[V], url: str, *, is_cached: Callable[[V], bool] = lambda _: True) -> None:
        """`name` is unique in Redis, and `kind` a dataclass. Values that are not `is_cached`, such as those that soon
        change, are read from the database each time.
        """
        self.hits = 0
        """The number of values read from the cache."""
        self.misses = 0
        """The number of values that were not in the cache."""
        self.bypassed = 0
        """The number of values read from the database because the cache could not be used."""
        self._name = name
        self._adapter = TypeAdapter(kind)
        # During an update of the service, processes with another shape of the value share the cache.
        schema = json.dumps(self._adapter.json_schema(), sort_keys=True)
        self._shape = hashlib.sha256(schema.encode()).hexdigest()[:16]
        self._is_cached = is_cached
        pool = BlockingConnectionPool.from_url(
            url,
            protocol=2,
            max_connections=16,
            timeout=_GIVE_UP_S,
            socket_timeout=_GIVE_UP_S,
            socket_connect_timeout=_GIVE_UP_S,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._connected,
        )
        self._redis = patched(Redis.from_pool(pool))
        self._read_script = self._redis.register_script(_READ)
        self._write_script = self._redis.register_script(_WRITE)
        self.breaker = Breaker(
            f"{name} cache",
            self._probe,
            means_down=_means_down,
            suspect_after=_SUSPECT_AFTER_S,
            probe_timeout=_PROBE_S,
            probe_interval=_PROBE_S,
        )
        """The circuit breaker of Redis."""
        self._failures = 1
        """Counts what makes the generation before it doubtful: the start, and each failure since."""
        self._renewed = 0
        """The number of failures when a generation was begun last."""
        self._server = b""
        """The run of the Redis server that was connected last."""
        self._renewing: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._fills: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin a new generation, without waiting for Redis."""
        self._renew_soon()

    async def stop(self) -> None:
        """Close the connections, after a moment for values that are still to be forgotten."""
        if unfinished := [task for task in (self._renewing, *self._fills) if task is not None]:
            await asyncio.wait(unfinished, timeout=_GIVE_UP_S)
        self._is_stopping = True
        await tasks.end(self._renewing, *self._fills)
        await self.breaker.stop()
        await self._redis.aclose()

    async def read(
        self, ids: Collection[UUID], load: Callable[[Collection[UUID]], Awaitable[Mapping[UUID, V]]]
    ) -> dict[UUID, V]:
        """Values by id; those that exist. `load` reads from the database what is not cached."""
        wanted, failures = list(ids), self._failures
        reply = None
        if self._is_usable:
            reply = await self._run(self._read_script, [self._generation_key, *map(self._key, wanted)], [self._shape])
        if reply is None or failures != self._failures:
            self.bypassed += len(wanted)
            return dict(await load(wanted))
        generation, *values = reply
        found = {each: self._adapter.validate_json(value) for each, value in zip(wanted, values, strict=True) if value}
        self.hits += len(found)
        if missing := [each for each in wanted if each not in found]:
            self.misses += len(missing)
            begun = asyncio.get_running_loop().time()
            loaded = await load(missing)
            if asyncio.get_running_loop().time() - begun < LIFETIME_S / 2:
                self._fill([value for value in loaded.values() if self._is_cached(value)], generation)
            found |= loaded
        return found

    async def put(self, values: Iterable[V]) -> None:
        """Replace older versions. Call this after the commit and before the reply, so that callers see their writes."""
        await self._write([self._row(value) for value in values], generation=b"")

    async def forget(self, ids: Iterable[UUID]) -> None:
        """Delete values, and keep one that is being read from being added again. Call this after the commit.

        If Redis does not answer, the values are not read any more as soon as it does.
        """
        await self._write([(each, _LAST_VERSION, b"") for each in ids], generation=b"")

    def forget_soon(self, ids: Iterable[UUID]) -> None:
        """Delete values in the background, when it is not known whether a change of them was committed."""
        self._in_background(self.forget(list(ids)))

    def _fill(self, values: Collection[V], generation: bytes) -> None:
        if values and len(self._fills) < _MOST_FILLS:
            self._in_background(self._write([self._row(value) for value in values], generation=generation))

    def _in_background(self, writing: Coroutine[Any, Any, None]) -> None:
        fill = asyncio.create_task(writing, name=f"write {self._name} cache")
        self._fills.add(fill)
        fill.add_done_callback(self._fills.discard)

    async def _write(self, rows: Collection[tuple[UUID, int, bytes]], *, generation: bytes) -> None:
        if not rows:
            return
        keys = [self._generation_key, *(self._key(each) for each, _, _ in rows)]
        arguments: list[Any] = [self._shape, LIFETIME_S * 1000, generation]
        for _, version, value in rows:
            arguments += [version, value]
        is_written = False
        try:
            is_written = await self._run(self._write_script, keys, arguments) is not None
        finally:
            # Also if the call is cancelled: the value that was to be replaced may still be there.
            if not is_written:
                self._fail()

    async def _run(self, script: AsyncScript, keys: list[str], arguments: list[Any]) -> Any:
        """The reply of a script; None if Redis does not answer."""
        try:
            async with self.breaker.guard():
                return await script(keys=keys, args=arguments)
        except (RedisError, OSError, BreakerOpen) as error:
            if self._failures == self._renewed:
                log.warning("cache is not used", cache=self._name, error=repr(error))
            self._fail()
            return None

    @property
    def _is_usable(self) -> bool:
        """Whether this process has begun a generation since the last failure."""
        return self._failures == self._renewed

    def _fail(self) -> None:
        self._failures += 1
        self._renew_soon()

    def _renew_soon(self) -> None:
        if not self._is_stopping and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.create_task(self._renew(), name=f"renew {self._name} cache")

    async def _renew(self) -> None:
        """Begin a new generation as soon as Redis takes it, without waiting for a read: others may read an old value.

        A write that fails meanwhile needs another generation.
        """
        while not self._is_usable:
            failures = self._failures
            try:
                async with self.breaker.guard():
                    await self._redis.incr(self._generation_key)
            except (RedisError, OSError, BreakerOpen):
                await asyncio.sleep(_PROBE_S)
            else:
                self._renewed = failures
        log.info("cache is used", cache=self._name)

    async def _connected(self, connection: AbstractConnection) -> None:
        """Notice another run of the server: it may have lost the last second, and with it newer values."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        found = _RUN_ID.search(bytes(await connection.read_response()))
        server = found[1] if found else b""
        if self._server not in (b"", server):
            self._fail()
        self._server = server

    async def _probe(self) -> None:
        await self._redis.ping()

    def _row(self, value: V) -> tuple[UUID, int, bytes]:
        return value.id, value.version, self._adapter.dump_json(value) if self._is_cached(value) else b""

    def _key(self, value_id: UUID) -> str:
        return f"cache:{self._name}:{value_id}"

    @property
    def _generation_key(self) -> str:
        return f"cache:{self._name}"


_RUN_ID = re.compile(rb"run_id:(\w+)")


def _means_down(failure: Exception) -> bool:
    return isinstance(failure, RedisError | OSError)
