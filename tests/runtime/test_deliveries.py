"""Deliveries: the requests of a consumer, and their recovery when the consumer or NATS goes away."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from uuid import NAMESPACE_OID, uuid5

import nats
import pytest
from nats.js.api import ConsumerConfig
from structlog.testing import capture_logs

from mesh.events import deliveries
from mesh.events.bus import Bus
from mesh.events.cloudevents import stream_of_area
from mesh.events.consumers import ACK_WAIT_S
from stack.servers import Servers
from tests.runtime.consuming import Gate, Publisher, acknowledged, applied, buffered, consuming
from tests.runtime.process import Process, Scratch, new_area, process
from tests.services import TEST_TIMEOUT_S, eventually, signal

pytestmark = pytest.mark.usefixtures("nothing_yet")


async def test_stop_returns_events_that_are_not_applied_for_immediate_redelivery(
    scratch: Scratch, here: Process, publish: Publisher, servers: Servers
) -> None:
    gate = Gate()
    async with process(scratch, servers) as there, consuming(here, publish.area, gate.record) as first:
        await gate.shut(publish)
        await publish.numbers(range(500))
        await eventually(buffered(first, 500))
        stopping = asyncio.create_task(first.stop())
        await asyncio.sleep(0)
        gate.open()
        await stopping
        assert first.applied == 1, "the current batch is finished, and no other one begun"
        # The acknowledgement timeout is longer than the test waits.
        async with consuming(there, publish.area):
            assert sorted(await applied(scratch, 501)) == sorted(["gate", *(str(n) for n in range(500))])


async def test_stop_also_returns_events_in_transit_to_the_consumer(
    scratch: Scratch, here: Process, publish: Publisher, servers: Servers
) -> None:
    async with process(scratch, servers) as there:
        sending = asyncio.create_task(publish.numbers(range(3000)))
        for number in range(1, 6):
            async with consuming(here, publish.area):
                await applied(scratch, 100 * number)
        # The acknowledgement timeout is longer than the test waits.
        async with consuming(there, publish.area):
            await sending
            assert sorted(await applied(scratch, 3000)) == sorted(str(number) for number in range(3000))


async def test_consumer_that_cannot_return_events_still_stops_and_loses_none(scratch: Scratch, tmp_path: Path) -> None:
    gate = Gate()
    async with Servers.started(tmp_path, only={"nats"}) as frozen, process(scratch, frozen) as there:
        area = new_area()
        await there.bus.connected()
        await there.bus.ensure_stream_of(area)
        client = await nats.connect(frozen.nats.url)
        publish = Publisher(client, area)
        async with consuming(there, area, gate.record) as first:
            await gate.shut(publish)
            await publish.numbers(range(20))
            await eventually(buffered(first, 20))
            signal(frozen, "nats", SIGSTOP)
            try:
                gate.open()
                with capture_logs() as logs:
                    await first.stop()
            finally:
                signal(frozen, "nats", SIGCONT)
            assert [entry["count"] for entry in logs if entry["event"] == "events not handed back"] == [20]
        async with consuming(there, area, ack_wait=1.0):
            assert sorted(await applied(scratch, 21)) == sorted(["gate", *(str(number) for number in range(20))])
            await acknowledged(there, area)
        await client.close()


async def test_flush_is_sent_after_earlier_data() -> None:
    wire: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"fake","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
        while line := await reader.readline():
            wire.append(line.strip())
            if wire[-1] == b"PING":
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        bus = Bus(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", name="test")
        await bus.start()
        await bus.connected()
        await bus.signal("topic")
        await bus.flush()
        assert wire[-3:] == [b"PUB topic  0", b"", b"PING"]
        await bus.stop()


async def test_pull_request_that_expires_or_is_lost_is_sent_again(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []

    async def send(subject: str, payload: bytes, *, reply: str) -> None:
        requests.append(reply)
        if len(requests) != 2:
            await Bus.send(here.bus, subject, payload, reply=reply)

    monkeypatch.setattr(deliveries, "EXPIRES_S", 0.2)
    monkeypatch.setattr(here.bus, "send", send)
    async with consuming(here, publish.area):
        # The first request expires, the second one is lost, the third one expires.
        await eventually(lambda: _reached(requests, 4))
        await publish("late")
        assert await applied(scratch, 1) == ["late"]


async def test_pull_request_that_cannot_be_sent_is_sent_later_and_loses_no_batch(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    requests: list[str] = []

    async def send(subject: str, payload: bytes, *, reply: str) -> None:
        requests.append(reply)
        if len(requests) == 2:
            raise nats.errors.OutboundBufferLimitError
        await Bus.send(here.bus, subject, payload, reply=reply)

    monkeypatch.setattr(here.bus, "send", send)
    # It requests 20, and more once there is room for 10.
    async with consuming(here, publish.area, gate.record, max_batch=10) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(15))
        await eventually(buffered(consumer, 15))
        gate.open()
        assert sorted(await applied(scratch, 16)) == sorted(["gate", *(str(number) for number in range(15))])
        assert len(requests) >= 2
        await publish("after")
        assert (await applied(scratch, 17))[-1] == "after"


@pytest.mark.parametrize("idle", [True, False], ids=["while it waits", "while it works"])
async def test_consumer_that_was_deleted_on_the_server_is_created_again(
    scratch: Scratch, here: Process, publish: Publisher, idle: bool
) -> None:
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        if idle:
            gate.open()
            await acknowledged(here, publish.area)
        await here.bus.jetstream.delete_consumer(stream_of_area(publish.area), consumer.name)
        gate.open()
        await publish("after")
        assert await applied(scratch, 2) == ["gate", "after"]


async def test_push_consumer_is_replaced_by_a_pull_consumer_at_the_same_position(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    stream, name = stream_of_area(publish.area), f"test-{publish.area}"
    js = here.bus.jetstream
    await js.add_consumer(
        stream, durable_name=name, deliver_subject="somewhere", deliver_group=name, ack_policy="explicit"
    )
    old = await js.subscribe_bind(stream, ConsumerConfig(deliver_subject="somewhere", deliver_group=name), name)
    await publish("done")
    await (await old.next_msg(timeout=TEST_TIMEOUT_S)).ack_sync()
    await old.unsubscribe()
    await publish("not done")
    for _ in range(2):
        # Once to replace the consumer, and once when it exists.
        async with consuming(here, publish.area):
            assert await applied(scratch, 1) == ["not done"]
            await acknowledged(here, publish.area)
    assert await scratch.count("mesh.inbox") == 1


async def test_consumer_continues_after_nats_was_killed_and_after_it_lost_its_store(
    scratch: Scratch, tmp_path: Path
) -> None:
    area = new_area()
    async with (
        Servers.started(tmp_path, only={"nats"}) as mortal,
        process(scratch, mortal) as there,
        consuming(there, area, ack_wait=ACK_WAIT_S),
    ):
        await there.bus.connected()
        client = await nats.connect(
            mortal.nats.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_quiet
        )
        # While NATS is away, a message is given up soon and sent again. It has the same id each time.
        publish = Publisher(client, area, timeout=1)
        await eventually(lambda: _published(publish, "before"))
        await applied(scratch, 1)
        signal(mortal, "nats", SIGKILL)
        await eventually(lambda: _published(publish, "after the kill"))
        await applied(scratch, 2)
        # Like a machine that lost its disk: the processes that need streams and consumers create them again.
        shutil.rmtree(tmp_path / "nats" / "store")
        signal(mortal, "nats", SIGKILL)
        await eventually(lambda: _published(publish, "after the loss"))
        assert set(await applied(scratch, 3)) == {"before", "after the kill", "after the loss"}
        await client.close()


async def test_action_after_a_reconnection_is_retried_until_it_succeeds(tmp_path: Path) -> None:
    outcomes: list[Exception | None] = [nats.errors.TimeoutError(), OSError("not yet"), None]
    done = asyncio.Event()

    async def action() -> None:
        if outcome := outcomes.pop(0):
            raise outcome
        done.set()

    async with Servers.started(tmp_path, only={"nats"}) as mortal:
        bus = Bus(mortal.nats.url, name="test")
        bus.on_reconnect(action)
        await bus.start()
        await bus.connected()
        signal(mortal, "nats", SIGKILL)
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await done.wait()
        assert bus.reconnections == 1, "the failures do not close the connection"
        await bus.stop()


async def _published(publish: Publisher, text: str) -> bool:
    try:
        await publish(text, event_id=uuid5(NAMESPACE_OID, f"{publish.area} {text}"))
    except (OSError, TimeoutError, nats.errors.Error):
        return False
    return True


async def _reached(sequence: Sequence[object], count: int) -> bool:
    return len(sequence) >= count


async def _quiet(_: Exception) -> None:
    return None
