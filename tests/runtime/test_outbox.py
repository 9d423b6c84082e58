"""The outbox: events are published in the order of their commits, and no outage loses one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGKILL
from uuid import UUID, uuid4

import asyncpg
import nats
import nats.errors
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from mesh.db import outbox
from mesh.db.outbox import RETENTION, maintain_partitions
from mesh.events.bus import Message
from mesh.events.cloudevents import stream_of_area
from mesh.events.relay import SESSION_SETTINGS
from mesh.observe.trace import Trace
from stack.servers import Servers
from tests.runtime.process import Lingers, Scratch, event, kept_plan, new_area, process
from tests.services import TEST_TIMEOUT_S, eventually, signal

pytestmark = pytest.mark.usefixtures("nothing_yet")


@asynccontextmanager
async def reader(servers: Servers) -> AsyncIterator[Client]:
    client = await nats.connect(servers.nats.url)
    try:
        yield client
    finally:
        await client.close()


async def published(client: Client, area: str, count: int) -> list[Msg]:
    """All events of the area's stream, once there are at least `count`. The test fails if there are more."""
    js, name = client.jetstream(), stream_of_area(area)

    async def full() -> bool:
        try:
            return bool((await js.stream_info(name)).state.messages >= count)
        except NotFoundError:
            return False

    await eventually(full)
    subscription = await js.subscribe(f"commerce.{area}.>", ordered_consumer=True)
    messages = [await subscription.next_msg(timeout=TEST_TIMEOUT_S) for _ in range(count)]
    await subscription.unsubscribe()
    assert (await js.stream_info(name)).state.messages == count, "no second copy"
    return messages


def by_aggregate(messages: list[Msg]) -> dict[str, list[int]]:
    """The sequences of each aggregate, in the order of publication."""
    sequences: dict[str, list[int]] = {}
    for message in messages:
        assert message.headers is not None
        sequences.setdefault(message.headers["ce-subject"], []).append(int(message.headers["ce-sequence"]))
    return sequences


async def test_events_of_an_aggregate_are_published_in_order(scratch: Scratch, servers: Servers) -> None:
    area, aggregates = new_area(), [uuid4() for _ in range(3)]
    async with process(scratch, servers, area=area, relaying=True) as here, reader(servers) as client:
        for sequence in range(1, 21):
            async with here.units.begin() as work:
                for aggregate in aggregates:
                    work.publish(event(area, aggregate, sequence))
        messages = await published(client, area, 60)
        assert by_aggregate(messages) == {str(aggregate): list(range(1, 21)) for aggregate in aggregates}
        await eventually(lambda: _none_unpublished(scratch))
        await eventually(_is(lambda: here.relay.published == 60))


async def test_events_written_while_the_relay_lingers_form_one_batch(
    scratch: Scratch, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    area, lingers, batches = new_area(), Lingers(monkeypatch, 12.5), list[int]()
    async with process(scratch, servers, area=area, relaying=True, linger=12.5) as here, reader(servers) as client:
        publish = here.bus.publish

        async def noted(messages: Sequence[Message]) -> int:
            batches.append(len(messages))
            return await publish(messages)

        monkeypatch.setattr(here.bus, "publish", noted)
        await eventually(_is(lambda: lingers.other_waits > 3))
        assert lingers.begun == 0, "an idle relay does not linger"
        for sequence in range(1, 7):
            async with here.units.begin() as work:
                work.publish(event(area, uuid4(), sequence))
            if sequence == 1:
                await eventually(_is(lambda: lingers.begun == 1))
        lingers.end()
        await published(client, area, 6)
    assert batches == [1, 5]


async def test_event_carries_its_cloudevents_context(scratch: Scratch, servers: Servers) -> None:
    area, aggregate, trace = new_area(), uuid4(), Trace.new()
    async with process(scratch, servers, area=area, relaying=True) as here, reader(servers) as client:
        async with here.units.begin() as work:
            work.publish(event(area, aggregate, 7, "payload"), trace)
        message = (await published(client, area, 1))[0]
    row = await scratch.admin.fetchrow("SELECT event_id, create_time FROM mesh.outbox")
    assert row is not None
    assert message.subject == f"commerce.{area}.happened.{aggregate}"
    assert StringValue.FromString(message.data).value == "payload"
    assert message.headers == {
        "Nats-Msg-Id": str(row["event_id"]),
        "ce-specversion": "1.0",
        "ce-id": str(row["event_id"]),
        "ce-type": f"commerce.{area}.happened",
        "ce-source": f"//commerce-mesh/{area}",
        "ce-subject": str(aggregate),
        "ce-time": row["create_time"].isoformat(),
        "ce-sequence": "7",
        "ce-datacontenttype": "application/protobuf",
        "traceparent": trace.traceparent,
    }


async def test_event_of_a_rolled_back_transaction_is_never_published(scratch: Scratch, servers: Servers) -> None:
    area = new_area()

    async with process(scratch, servers, area=area, relaying=True) as here, reader(servers) as client:

        async def fail() -> None:
            async with here.units.begin() as work:
                work.publish(event(area, uuid4(), 1, "never"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        async with here.units.begin() as work:
            work.publish(event(area, uuid4(), 1, "this"))
        assert [StringValue.FromString(message.data).value for message in await published(client, area, 1)] == ["this"]


async def test_event_numbered_before_others_and_committed_after_them_is_published(
    scratch: Scratch, servers: Servers
) -> None:
    area, late, early = new_area(), uuid4(), uuid4()
    async with process(scratch, servers, area=area, relaying=True) as here, reader(servers) as client:
        async with here.units.begin() as work:
            await work.transaction.insert(outbox.APPEND, [outbox.row(event(area, late, 1), "")])
            for count in (1, 2, 3):
                async with here.units.begin() as other:
                    other.publish(event(area, early, count))
                assert by_aggregate(await published(client, area, count)) == {str(early): list(range(1, count + 1))}
            # The relay keeps the gap, because its transaction may still commit.
            assert len(await _gaps(scratch)) == 1
        assert by_aggregate(await published(client, area, 4)) == {str(early): [1, 2, 3], str(late): [1]}
        await eventually(lambda: _none_unpublished(scratch))
        await eventually(_is(lambda: here.relay.published == 4))


async def test_gap_of_a_rolled_back_transaction_closes(scratch: Scratch, servers: Servers) -> None:
    area, count = new_area(), 0
    async with process(scratch, servers, area=area, relaying=True) as here, reader(servers) as client:

        async def publish() -> None:
            nonlocal count
            count += 1
            async with here.units.begin() as work:
                work.publish(event(area, uuid4(), 1))
            await published(client, area, count)

        async def fail() -> None:
            async with here.units.begin() as work:
                await work.transaction.insert(outbox.APPEND, [outbox.row(event(area, uuid4(), 1), "")])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await publish()
        await eventually(lambda: _gaps(scratch))

        async def closed() -> bool:
            await publish()
            return await _gaps(scratch) == []

        await eventually(closed)


async def test_next_relay_continues_at_the_stored_position(scratch: Scratch, servers: Servers) -> None:
    area, late = new_area(), uuid4()
    async with process(scratch, servers, area=area) as here, reader(servers) as client:
        async with here.units.begin() as work:
            await work.transaction.insert(outbox.APPEND, [outbox.row(event(area, late, 1), "")])
            for count in (1, 2):
                async with process(scratch, servers, area=area, relaying=True) as relaying:
                    async with relaying.units.begin() as other:
                        other.publish(event(area, uuid4(), 1))
                    await published(client, area, count)
                    await eventually(lambda: _none_unpublished(scratch))
                assert len(await _gaps(scratch)) == 1
        async with process(scratch, servers, area=area, relaying=True) as relaying:
            assert str(late) in by_aggregate(await published(client, area, 3))
            await eventually(_is(lambda: relaying.relay.published == 1))


async def test_relay_sends_again_only_unacknowledged_events(
    scratch: Scratch, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    area, sent = new_area(), list[str]()
    async with process(scratch, servers, area=area, relaying=True) as here, reader(servers) as client:
        await eventually(_is(lambda: here.relay.active))
        publish = here.bus.publish

        async def deaf(messages: list[Message]) -> int:
            """Report only four acknowledgements of the first batch."""
            is_first = not sent
            sent.extend(message.headers["ce-id"] for message in messages)
            return min(await publish(messages), 4 if is_first else len(messages))

        monkeypatch.setattr(here.bus, "publish", deaf)
        async with here.units.begin() as work:
            for _ in range(10):
                work.publish(event(area, uuid4(), 1))
        await eventually(lambda: _none_unpublished(scratch))
        await published(client, area, 10)
        assert sent[10:] == sent[4:10]


async def test_transaction_obtains_its_id_before_it_draws_a_number(scratch: Scratch) -> None:
    """`mesh.events.position` relies on this."""
    (drawing,) = await scratch.admin.fetchrow(
        "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum "
        "WHERE adrelid = 'mesh.outbox'::regclass AND attname = 'seq'"
    ) or ("",)
    for _ in range(40):  # one in 32 draws obtains an id anyway
        async with scratch.admin.transaction():
            await scratch.admin.fetchval(f"SELECT {drawing}")
            assert await scratch.admin.fetchval("SELECT pg_current_xact_id_if_assigned()") is not None
    assert drawing.index("pg_current_xact_id") < drawing.index("nextval")


async def test_commit_in_another_process_wakes_the_active_relay(scratch: Scratch, servers: Servers) -> None:
    area = new_area()
    # With this poll interval, only the signal can wake the relay during the test.
    async with (
        process(scratch, servers, area=area, relaying=True, poll=3600) as active,
        process(scratch, servers, area=area) as other,
        reader(servers) as client,
    ):
        await eventually(_is(lambda: active.relay.active))
        await other.bus.connected()
        await active.bus.flush()  # the server knows its subscription
        async with other.units.begin() as work:
            work.publish(event(area, uuid4(), 1))
        await published(client, area, 1)


async def test_second_relay_becomes_active_when_the_connection_of_the_first_is_lost(
    scratch: Scratch, servers: Servers
) -> None:
    area, aggregate = new_area(), uuid4()
    async with (
        # The first relay would retry after an hour, so the second one publishes everything after that.
        process(scratch, servers, area=area, relaying=True, poll=3600) as first,
        reader(servers) as client,
    ):
        await eventually(_is(lambda: first.relay.active))
        async with process(scratch, servers, area=area, relaying=True) as second:
            async with first.units.begin() as work:
                work.publish(event(area, aggregate, 1))
            await published(client, area, 1)
            # Otherwise the second relay would send the event again, with the same id.
            await eventually(_is(lambda: first.relay.published == 1))
            assert (first.relay.active, second.relay.active) == (True, False)

            holder = await scratch.admin.fetchval(
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            await scratch.end_backend(holder)
            first.relay.wake()
            await eventually(_is(lambda: second.relay.active))
            await eventually(_is(lambda: not first.relay.active))
            async with first.units.begin() as work:
                work.publish(event(area, aggregate, 2))
            assert by_aggregate(await published(client, area, 2)) == {str(aggregate): [1, 2]}
            await eventually(_is(lambda: second.relay.published == 1))
            assert first.relay.published == 1


async def test_stop_publishes_the_remaining_events(scratch: Scratch, servers: Servers) -> None:
    area = new_area()
    async with process(scratch, servers, area=area, relaying=True, poll=3600) as here, reader(servers) as client:
        await eventually(_is(lambda: here.relay.active))
        async with here.units.begin() as work:
            for _ in range(600):  # more than one batch
                work.publish(event(area, uuid4(), 1))
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await here.relay.stop()
        assert await scratch.count("mesh.unpublished") == 0
        await published(client, area, 600)


async def test_events_committed_while_nats_is_down_are_published_later(scratch: Scratch, tmp_path: Path) -> None:
    area, aggregates = new_area(), [uuid4() for _ in range(3)]
    async with (
        Servers.started(tmp_path, only={"nats"}) as mortal,
        process(scratch, mortal, area=area, relaying=True) as here,
    ):

        async def commit(sequences: range) -> None:
            for sequence in sequences:
                async with here.units.begin() as work:
                    for aggregate in aggregates:
                        work.publish(event(area, aggregate, sequence))

        await commit(range(1, 51))
        await eventually(_is(lambda: here.relay.published > 0))
        signal(mortal, "nats", SIGKILL)
        await commit(range(51, 101))
        await eventually(lambda: _none_unpublished(scratch))
        async with reader(mortal) as client:
            messages = await published(client, area, 300)
        assert by_aggregate(messages) == {str(aggregate): list(range(1, 101)) for aggregate in aggregates}


async def test_service_starts_while_nats_is_down_and_publishes_its_events_later(
    scratch: Scratch, tmp_path: Path
) -> None:
    """At a first start there is no partition of the day, so the rows are in the default one."""
    area = new_area()
    for partition in await _partitions(scratch):
        await scratch.admin.execute(f"DROP TABLE mesh.{partition}")
    async with (
        Servers.started(tmp_path, only=()) as later,
        process(scratch, later, area=area, relaying=True) as here,
    ):
        async with here.units.begin() as work:
            work.publish(event(area, uuid4(), 1))
        assert await scratch.count("mesh.outbox_default") == 1
        assert not here.relay.active
        await later.start(only={"nats"})
        async with reader(later) as client:
            await published(client, area, 1)
        await eventually(lambda: _none_unpublished(scratch))
        async with here.units.begin() as work:
            work.publish(event(area, uuid4(), 1))
        await eventually(lambda: _none_unpublished(scratch))


async def test_partitions_are_created_ahead_and_old_ones_dropped_if_all_is_published(
    scratch: Scratch,
) -> None:
    now = datetime.now(UTC)
    day = timedelta(days=1)
    for age in (RETENTION + 3 * day, RETENTION + 2 * day, RETENTION, day):
        await _partition(scratch, now - age)
    await _row(scratch, now - RETENTION - 3 * day)
    await _row(scratch, now - RETENTION - 2 * day)
    unpublished = await _row(scratch, now - RETENTION - 2 * day)
    await _row(scratch, now - RETENTION)
    await _all_published_but(scratch, unpublished)

    await maintain_partitions(scratch.admin, now)
    await maintain_partitions(scratch.admin, now)

    def named(moment: datetime) -> str:
        return f"outbox_{moment:%Y%m%d}"

    assert await _partitions(scratch) == sorted(
        named(moment)
        for moment in (now - RETENTION - 2 * day, now - RETENTION, now - day, now, now + day, now + 2 * day)
    )
    await _row(scratch, now)
    assert await scratch.count(f"mesh.{named(now)}") == 1


async def test_table_too_busy_for_a_new_partition_delays_no_event(scratch: Scratch, servers: Servers) -> None:
    for partition in await _partitions(scratch):
        await scratch.admin.execute(f"DROP TABLE mesh.{partition}")
    area = new_area()
    busy = scratch.admin.transaction()
    await busy.start()
    await scratch.admin.execute("LOCK mesh.outbox IN ROW EXCLUSIVE MODE")
    try:
        async with (
            process(scratch, servers, area=area, relaying=True, repair=0) as here,
            reader(servers) as client,
        ):
            async with here.units.begin() as work:
                work.publish(event(area, uuid4(), 1))
            await published(client, area, 1)
            await busy.rollback()
            await eventually(lambda: _are_there(scratch, 2))  # today's row is in the default partition
    finally:
        await scratch.admin.execute("ROLLBACK")


async def test_paused_relay_loses_its_lock_to_another(
    scratch: Scratch, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = SESSION_SETTINGS | {"idle_session_timeout": "500ms"}
    area, goes_on = new_area(), asyncio.Event()

    async def paused(messages: list[Message]) -> list[bool]:
        await goes_on.wait()
        return [False] * len(messages)

    async with (
        process(scratch, servers, area=area, relaying=True, session=short) as first,
        reader(servers) as client,
    ):
        await eventually(_is(lambda: first.relay.active))
        monkeypatch.setattr(first.bus, "publish", paused)
        async with process(scratch, servers, area=area, relaying=True, session=short) as second:
            async with first.units.begin() as work:
                work.publish(event(area, uuid4(), 1))
            await published(client, area, 1)
            # Its own session may end, too, when the machine does not let it poll in time.
            await eventually(_is(lambda: second.relay.active))
            goes_on.set()


async def test_relay_that_cannot_unsubscribe_still_releases_its_lock(
    scratch: Scratch, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = SESSION_SETTINGS | {"idle_session_timeout": "0"}  # so nothing else releases it
    area = new_area()

    async def fail(*_: object) -> None:
        raise OSError("gone")

    async with process(scratch, servers, area=area, relaying=True, session=endless) as first:
        await eventually(_is(lambda: first.relay.active))
        monkeypatch.setattr(first.bus, "off_signal", fail)
        await first.relay.stop()
        async with process(scratch, servers, area=area, relaying=True) as second:
            await eventually(_is(lambda: second.relay.active))


async def test_plan_made_for_an_empty_outbox_uses_the_index(scratch: Scratch) -> None:
    await maintain_partitions(scratch.admin, datetime.now(UTC))
    await scratch.admin.execute("VACUUM (ANALYZE) mesh.outbox")
    connection = await asyncpg.connect(scratch.url, server_settings=SESSION_SETTINGS)
    try:
        plan = await kept_plan(connection, outbox.UNPUBLISHED)
    finally:
        await connection.close()
    scans = [line for line in plan if re.search(r" Scan .*on outbox_", line)]
    assert len(scans) >= 8, "today, two days ahead and the default partition, above the position and in the gaps"
    assert all("Index" in scan for scan in scans), scans
    assert any("Merge Append" in line for line in plan), "a batch is read from a backlog without sorting it"


async def test_old_published_rows_of_the_default_partition_are_deleted(scratch: Scratch) -> None:
    now = datetime.now(UTC)
    old = now - RETENTION - timedelta(days=40)
    await _row(scratch, old)
    unpublished = await _row(scratch, old)
    await _row(scratch, now + timedelta(days=40))
    await _all_published_but(scratch, unpublished)
    assert await scratch.count("mesh.outbox_default") == 3
    await maintain_partitions(scratch.admin, now)
    assert await scratch.count("mesh.outbox_default") == 2
    assert await scratch.count(f"mesh.outbox_default WHERE seq = {unpublished}") == 1


async def _none_unpublished(scratch: Scratch) -> bool:
    return await scratch.count("mesh.unpublished") == 0


async def _are_there(scratch: Scratch, partitions: int) -> bool:
    return len(await _partitions(scratch)) >= partitions


def _is(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return condition()

    return is_so


async def _partitions(scratch: Scratch) -> list[str]:
    rows = await scratch.admin.fetch(
        "SELECT relname FROM pg_class WHERE relname ~ '^outbox_[0-9]{8}$' AND relkind = 'r' ORDER BY 1"
    )
    return [row["relname"] for row in rows]


async def _partition(scratch: Scratch, moment: datetime) -> None:
    day = moment.date()
    await scratch.admin.execute(
        f"CREATE TABLE IF NOT EXISTS mesh.outbox_{day:%Y%m%d} PARTITION OF mesh.outbox "
        f"FOR VALUES FROM ('{day}T00:00Z') TO ('{day + timedelta(days=1)}T00:00Z')"
    )


async def _row(scratch: Scratch, moment: datetime) -> int:
    """Insert an event of that time. Returns its number."""
    seq: int = await scratch.admin.fetchval(
        "INSERT INTO mesh.outbox (event_id, type, aggregate_id, sequence, payload, traceparent, create_time) "
        "VALUES ($1, 'commerce.test.happened', $1, 1, '', '', $2) RETURNING seq",
        UUID(int=1),
        moment,
    )
    return seq


async def _all_published_but(scratch: Scratch, seq: int) -> None:
    await scratch.admin.execute(
        "UPDATE mesh.outbox_position SET through = (SELECT max(seq) FROM mesh.outbox), "
        "gaps = int8multirange(int8range($1, $1, '[]'))",
        seq,
    )


async def _gaps(scratch: Scratch) -> list[tuple[int, int]]:
    """The first and the last number of each gap of the position."""
    (gaps,) = await scratch.admin.fetchrow("SELECT gaps FROM mesh.outbox_position") or ([],)
    return [(gap.lower, gap.upper - 1) for gap in gaps]
