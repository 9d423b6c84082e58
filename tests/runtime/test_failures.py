"""An item that cannot succeed or takes too long fails alone, among events and among grouped calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from google.protobuf.wrappers_pb2 import StringValue

from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.batch.group_commit import GroupCommit
from mesh.db import database
from mesh.db.database import Database, Statement
from mesh.db.unit_of_work import UnitOfWork
from mesh.errors import Code, MeshError, StatementTimeout, Unavailable
from mesh.events.bus import DEAD_LETTERS
from mesh.events.cloudevents import Received
from mesh.rpc.call import Call
from stack.servers import Servers
from tests.runtime.consuming import Gate, Publisher, acknowledged, applied, buffered, consuming
from tests.runtime.process import BACKEND, Process, Scratch, do, fail_as, process, scratch_database
from tests.runtime.served import client_of, serving
from tests.services import TEST_TIMEOUT_S, Keys, eventually, signal

pytestmark = pytest.mark.usefixtures("nothing_yet")


class Record(sa.types.UserDefinedType[object]):
    """PostgreSQL's anonymous row type, which the driver rejects as an argument."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "record"


NUMBERS = Statement(sa.select(sa.func.cardinality(sa.bindparam("numbers", type_=sa.ARRAY(sa.BigInteger)))))
TEXTS = Statement(sa.select(sa.func.cardinality(sa.bindparam("texts", type_=sa.ARRAY(sa.String)))))
ROW = Statement(sa.select(sa.cast(sa.bindparam("row"), Record).is_(None)))
SLEEP = Statement(sa.select(sa.func.pg_sleep(sa.bindparam("seconds", type_=sa.Float)).label("slept")))
BAD = "the bad one"

Effect = Callable[[UnitOfWork, Sequence[str]], Awaitable[None]]


async def number_too_large(work: UnitOfWork, texts: Sequence[str]) -> None:
    await work.transaction.fetch(NUMBERS, numbers=[2**70 if text == BAD else 1 for text in texts])


async def lone_surrogate(work: UnitOfWork, texts: Sequence[str]) -> None:
    await work.transaction.fetch(TEXTS, texts=["\ud800" if text == BAD else text for text in texts])


async def nul(work: UnitOfWork, texts: Sequence[str]) -> None:
    await work.transaction.fetch(TEXTS, texts=["\0" if text == BAD else text for text in texts])


async def refused_by_the_driver(work: UnitOfWork, texts: Sequence[str]) -> None:
    await work.transaction.fetch(ROW, row=(1, 2) if BAD in texts else None)


async def file_not_found(_: UnitOfWork, texts: Sequence[str]) -> None:
    if BAD in texts:
        raise FileNotFoundError("of the use case, not of the database")


async def timeout_of_its_own(_: UnitOfWork, texts: Sequence[str]) -> None:
    if BAD in texts:
        raise TimeoutError("of the use case, not of the database")


FAULTS: Sequence[Effect] = [
    number_too_large,
    lone_surrogate,
    nul,
    refused_by_the_driver,
    file_not_found,
    timeout_of_its_own,
]
by_name = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)


def applying(gate: Gate, effect: Effect) -> Callable[[UnitOfWork, Sequence[Received[StringValue]]], Awaitable[None]]:
    """A handler with this effect, and one row for each event."""

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        await gate.record(work, events)
        await effect(work, [event.payload.value for event in events])

    return apply


async def dead_letters(here: Process, area: str) -> list[str]:
    """The texts of the dead letters of a consumer."""
    js, subject = here.bus.jetstream, f"mesh.dead.test-{area}.>"
    info = await js.stream_info(DEAD_LETTERS, subjects_filter=subject)
    subscription = await js.subscribe(subject, stream=DEAD_LETTERS, ordered_consumer=True)
    messages = [await subscription.next_msg(timeout=TEST_TIMEOUT_S) for _ in info.state.subjects or ()]
    await subscription.unsubscribe()
    return [StringValue.FromString(message.data).value for message in messages]


@by_name
async def test_one_bad_event_of_512_becomes_a_dead_letter(
    scratch: Scratch, here: Process, publish: Publisher, fault: Effect
) -> None:
    gate = Gate()
    async with consuming(here, publish.area, applying(gate, fault), max_attempts=1) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(200))
        await publish(BAD)
        await publish.numbers(range(200, 511))
        await eventually(buffered(consumer, 512))
        gate.open()
        expected = {"gate", *(str(number) for number in range(511))}
        assert set(await applied(scratch, len(expected))) == expected
        await acknowledged(here, publish.area)
        assert await dead_letters(here, publish.area) == [BAD]
    assert await scratch.count("effects") == len(expected), "each once"


@by_name
async def test_one_bad_call_of_a_batch_fails_alone(scratch: Scratch, here: Process, keys: Keys, fault: Effect) -> None:
    async def work(batch: Sequence[str]) -> Sequence[str]:
        async with here.units.begin() as unit:
            await do(unit, *batch)
            await fault(unit, batch)
        return batch

    group: GroupCommit[str, str] = GroupCommit("test", work)

    names = {str(uuid4()): BAD if number == 20 else str(number) for number in range(64)}

    async def behaviour(request: product_pb2.GetProductRequest, _: Call) -> product_pb2.GetProductResponse:
        name = await group.submit(names[request.product_id])
        return product_pb2.GetProductResponse(product=product_pb2.Product(name=name))

    async with serving(keys, behaviour) as server, client_of(server, keys) as client:
        get = product_pb2_grpc.ProductServiceStub(client.channel).GetProduct
        replies = await asyncio.gather(
            *(client(get, product_pb2.GetProductRequest(product_id=each)) for each in names), return_exceptions=True
        )
    failure = replies.pop(20)
    assert isinstance(failure, MeshError)
    assert failure.code is (Code.INVALID_ARGUMENT if fault is nul else Code.INTERNAL)
    good = [name for name in names.values() if name != BAD]
    assert [getattr(reply, "product", None) for reply in replies] == [product_pb2.Product(name=name) for name in good]
    assert sorted(await scratch.notes()) == sorted(good)


@pytest.fixture
async def impatient(scratch: Scratch, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Process]:
    """A process with a statement timeout of half a second."""
    monkeypatch.setitem(database.SESSION, "statement_timeout", "500ms")
    async with process(scratch, servers) as started:
        await started.bus.connected()
        yield started


async def test_slow_statement_raises_statement_timeout(impatient: Process) -> None:
    async with impatient.units.begin() as work:
        with pytest.raises(StatementTimeout):
            await work.transaction.fetch(SLEEP, seconds=60)
        await work.transaction.roll_back()


async def test_reply_that_does_not_come_in_time_closes_the_connection(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.SESSION, "statement_timeout", "0")  # like a proxy that removes it
    opened = Database(scratch.url, max_connections=1, command_timeout=1)
    await opened.start()
    async with opened.reading() as reading:
        before = await reading.fetch_one(BACKEND)
        with pytest.raises(StatementTimeout):
            await reading.fetch(SLEEP, seconds=60)
    async with opened.reading() as reading:
        assert await reading.fetch_one(BACKEND) != before
    await opened.stop()


async def test_silent_server_is_waited_for_once_and_not_on_each_connection(tmp_path: Path) -> None:
    async with Servers.started(tmp_path, only={"postgres"}) as mortal, scratch_database(mortal) as silent:
        opened = Database(silent.url, max_connections=4, acquire_timeout=2, command_timeout=2)
        await opened.start()
        async with opened.reading(), opened.reading(), opened.reading():
            pass
        backends = await silent.admin.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert len(backends) == 3

        def send(sent: Signals) -> None:
            signal(mortal, "postgres", sent)
            for backend in backends:
                os.kill(backend["pid"], sent)

        send(SIGSTOP)
        try:
            async with opened.reading() as reading:
                with pytest.raises(StatementTimeout):
                    await reading.fetch(BACKEND)
            with pytest.raises(Unavailable) as refusal:
                await opened.check()
            assert not isinstance(refusal.value, StatementTimeout), "the idle connections are not tried"
        finally:
            send(SIGCONT)
        await opened.stop()


async def take_too_long(work: UnitOfWork) -> None:
    """Run a statement that the database cancels, as it does after the statement timeout."""
    await fail_as(work, "57014")


async def test_batch_that_is_too_large_for_its_time_is_applied_in_halves(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    sizes: list[int] = []

    async def takes_its_time(work: UnitOfWork, texts: Sequence[str]) -> None:
        sizes.append(len(texts))
        if len(texts) > 64:
            await take_too_long(work)

    gate = Gate()
    async with consuming(here, publish.area, applying(gate, takes_its_time)) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(128))
        await eventually(buffered(consumer, 128))
        gate.open()
        await applied(scratch, 129)
        await acknowledged(here, publish.area)
        assert sizes == [1, 128, 64, 64]
        assert await dead_letters(here, publish.area) == []


async def test_slow_event_becomes_a_dead_letter_and_the_others_are_applied(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    sizes: list[int] = []

    async def takes_too_long(work: UnitOfWork, texts: Sequence[str]) -> None:
        if BAD in texts:
            sizes.append(len(texts))
            await take_too_long(work)

    gate = Gate()
    async with consuming(here, publish.area, applying(gate, takes_too_long), max_attempts=2) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(40))
        await publish(BAD)
        await publish.numbers(range(40, 63))
        await eventually(buffered(consumer, 64))
        gate.open()
        await applied(scratch, 33)
        await publish("another")
        expected = {"gate", "another", *(str(number) for number in range(63))}
        assert set(await applied(scratch, len(expected))) == expected
        await eventually(lambda: _has_dead_letters(here, publish.area))
        await acknowledged(here, publish.area)
        assert await dead_letters(here, publish.area) == [BAD]
        assert consumer.applied == len(expected)
    assert sizes[:2] == [64, 32]
    assert all(after <= max(1, before // 2) for before, after in pairwise(sizes)), sizes
    assert sizes.count(1) == 2, "it failed when it took too long alone"


async def _has_dead_letters(here: Process, area: str) -> bool:
    return bool(await dead_letters(here, area))
