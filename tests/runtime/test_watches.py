"""Watches: many streams of states share one subscription, and miss no state that lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import nats
import pytest
from nats.aio.client import Client

from mesh.errors import NotFound, Unavailable
from mesh.events.bus import Bus
from mesh.events.watches import Watch, Watches
from stack.servers import Servers
from tests.runtime.process import new_area
from tests.services import TEST_TIMEOUT_S, eventually

State = tuple[UUID, int]


class Rows:
    """Rows whose versions the test sets, and the watches of them."""

    def __init__(self, bus: Bus, *, is_announced: bool = True, read_again: float = 3600.0) -> None:
        self.versions: dict[UUID, int] = {}
        self.failures: list[Exception] = []
        """Raised by the next reads."""
        self.area = new_area()
        self.watches: Watches[State] = Watches(
            self.area,
            self._read,
            bus=bus,
            version=itemgetter(1),
            is_announced=lambda _: is_announced,
            read_again=read_again,
        )

    async def _read(self, keys: Sequence[UUID]) -> list[State | Exception]:
        if self.failures:
            raise self.failures.pop(0)
        return [(key, self.versions[key]) if key in self.versions else NotFound("there is none") for key in keys]

    def add(self) -> UUID:
        """A new row."""
        key = uuid4()
        self.versions[key] = 1
        return key

    async def at_rest(self) -> None:
        """Wait until the subscription has begun and nobody reads because of that."""

        async def has_begun() -> bool:
            return self.watches.is_subscribed

        async def is_quiet() -> bool:
            before = self.watches.reads.items
            await asyncio.sleep(0.2)
            return before == self.watches.reads.items

        await eventually(has_begun)
        await eventually(is_quiet)


@asynccontextmanager
async def connected(servers: Servers) -> AsyncIterator[Bus]:
    bus = Bus(servers.nats.url, name="test")
    await bus.start()
    try:
        await bus.connected()
        yield bus
    finally:
        await bus.stop()


@asynccontextmanager
async def rows_on(bus: Bus, **options: Any) -> AsyncIterator[Rows]:
    rows = Rows(bus, **options)
    try:
        yield rows
    finally:
        await rows.watches.stop()


@pytest.fixture
async def rows(servers: Servers) -> AsyncIterator[Rows]:
    async with connected(servers) as bus, rows_on(bus) as made:
        yield made


Announce = Callable[[Rows, UUID], Awaitable[None]]


@pytest.fixture
async def announce(servers: Servers) -> AsyncIterator[Announce]:
    """Publish an event of a row."""
    client = await nats.connect(servers.nats.url)

    async def publish(rows: Rows, key: UUID) -> None:
        await client.publish(f"commerce.{rows.area}.changed.{key}", b"")

    yield publish
    await client.close()


async def next_of(watch: Watch[State]) -> int:
    """The version of the next state."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        return (await watch.next())[1]


async def test_watch_gives_the_state_now_and_the_newest_one_after_an_event(rows: Rows, announce: Announce) -> None:
    key = rows.add()
    with rows.watches.of(key) as watch:
        assert await next_of(watch) == 1
        await rows.at_rest()
        rows.versions[key] = 2
        await announce(rows, key)
        assert await next_of(watch) == 2


async def test_watch_that_is_not_read_gives_only_the_newest_state(rows: Rows, announce: Announce) -> None:
    key, other = rows.add(), rows.add()
    with rows.watches.of(key) as slow, rows.watches.of(other) as quick:
        assert await next_of(slow) == await next_of(quick) == 1
        await rows.at_rest()
        for version in range(2, 50):
            rows.versions[key] = version
            await announce(rows, key)
        rows.versions[other] = 2
        await announce(rows, other)
        assert await next_of(quick) == 2, "events arrive in order, so those before have arrived"
        reads = rows.watches.reads.items
        assert await next_of(slow) == 49
        rows.versions[key] = 50
        await announce(rows, key)
        assert await next_of(slow) == 50
        assert rows.watches.reads.items == reads + 2


async def test_thousand_watches_share_one_subscription_and_their_reads(
    rows: Rows, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe, subjects = Client.subscribe, list[str]()

    async def noted(self: Client, subject: str, *args: Any, **options: Any) -> Any:
        subjects.append(subject)
        return await subscribe(self, subject, *args, **options)

    monkeypatch.setattr(Client, "subscribe", noted)
    keys = [rows.add() for _ in range(1_000)]
    with ExitStack() as stack:
        watches = [stack.enter_context(rows.watches.of(key)) for key in keys]
        assert await asyncio.gather(*map(next_of, watches)) == [1] * 1_000
        await rows.at_rest()
        for key in keys:
            rows.versions[key] = 2
            await announce(rows, key)
        assert await asyncio.gather(*map(next_of, watches)) == [2] * 1_000
        assert subjects == [f"commerce.{rows.area}.>"]
        assert rows.watches.reads.items >= 2_000
        assert rows.watches.reads.batches <= rows.watches.reads.items / 10


async def test_subscription_ends_after_the_last_watch_and_begins_with_the_next(rows: Rows, announce: Announce) -> None:
    async def is_over() -> bool:
        return not rows.watches.is_subscribed

    for _ in range(2):
        key = rows.add()
        with rows.watches.of(key) as first, rows.watches.of(key) as second:
            assert rows.watches.count == 2
            assert await next_of(first) == await next_of(second) == 1
            await rows.at_rest()
            rows.versions[key] = 2
            await announce(rows, key)
            assert await next_of(first) == await next_of(second) == 2
        assert rows.watches.count == 0
        await eventually(is_over)


async def test_watch_misses_nothing_while_nats_is_gone_and_hears_events_again_afterwards(tmp_path: Path) -> None:
    async with (
        Servers.started(tmp_path, only={"nats"}) as mortal,
        connected(mortal) as bus,
        rows_on(bus) as rows,
    ):
        key = rows.add()

        async def is_gone() -> bool:
            return bus.connection == 0

        async def is_back() -> bool:
            return bus.connection > 1

        with rows.watches.of(key) as watch:
            assert await next_of(watch) == 1
            await rows.at_rest()
            mortal.supervisor["nats"].kill()
            await eventually(is_gone)
            rows.versions[key] = 2  # nobody publishes the event
            assert await next_of(watch) == 2
            await eventually(is_back)
            await rows.at_rest()
            rows.versions[key] = 3
            client = await nats.connect(mortal.nats.url)
            await client.publish(f"commerce.{rows.area}.changed.{key}", b"")
            assert await next_of(watch) == 3
            await client.close()


async def test_watch_works_while_nats_was_never_there() -> None:
    bus = Bus("nats://127.0.0.1:1", name="test")
    await bus.start()
    async with rows_on(bus) as rows:
        key = rows.add()
        with rows.watches.of(key) as watch:
            for version in (1, 2):
                rows.versions[key] = version
                assert await next_of(watch) == version
    await bus.stop()


async def test_change_that_publishes_no_event_is_found_at_the_next_tick(servers: Servers) -> None:
    async with connected(servers) as bus, rows_on(bus, is_announced=False) as rows:
        key = rows.add()
        with rows.watches.of(key) as watch:
            assert await next_of(watch) == 1
            await rows.at_rest()
            rows.versions[key] = 2
            assert await next_of(watch) == 2


async def test_change_whose_event_was_lost_is_found_by_the_read_again(servers: Servers) -> None:
    async with connected(servers) as bus, rows_on(bus, read_again=0.0) as rows:
        key = rows.add()
        with rows.watches.of(key) as watch:
            assert await next_of(watch) == 1
            rows.versions[key] = 2
            assert await next_of(watch) == 2


async def test_watch_retries_transient_errors_after_its_first_state_and_ends_with_others(
    rows: Rows, announce: Announce
) -> None:
    key = rows.add()
    rows.failures = [Unavailable("the database is gone")]
    with rows.watches.of(key) as watch, pytest.raises(Unavailable):
        await watch.next()
    with rows.watches.of(key) as watch:
        assert await next_of(watch) == 1
        await rows.at_rest()
        rows.failures = [Unavailable("the database is gone"), Unavailable("it still is")]
        rows.versions[key] = 2
        await announce(rows, key)
        assert await next_of(watch) == 2
        assert rows.failures == []
        await rows.at_rest()
        del rows.versions[key]
        await announce(rows, key)
        with pytest.raises(NotFound):
            await next_of(watch)


async def test_watches_go_on_after_an_unexpected_error(
    rows: Rows, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_signal, errors = Bus.on_signal, [RuntimeError("a fault")]

    async def faulty(self: Bus, topic: str, action: Callable[[str], None]) -> None:
        if errors:
            raise errors.pop()
        await on_signal(self, topic, action)

    monkeypatch.setattr(Bus, "on_signal", faulty)
    key = rows.add()
    with rows.watches.of(key) as watch:
        assert await next_of(watch) == 1
        await rows.at_rest()
        assert errors == []
        rows.versions[key] = 2
        await announce(rows, key)
        assert await next_of(watch) == 2
