"""The load driver against servers that answer, stall, refuse and break off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ops.bench.driver import Action, Load, Plan, Tally

Handle = Callable[[bytes], Awaitable[bytes]]
ORDER = b'{"id":"0190a0b0-0000-7000-8000-%012d"}'


def answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[int]:
    """A server that answers each request with what `handle` makes of its head; an empty answer hangs up."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while reply := await handle(await reader.readuntil(b"\r\n\r\n")):
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def drive(port: int, *, seconds: float = 0.5, connections: int = 1, **more: object) -> Tally:
    """Carry out a load of bodiless placings."""
    plan = Plan(
        host="127.0.0.1",
        port=port,
        users=[b"authorization: Bearer x\r\n"],
        actions=[Action(kind="place", requests=[(b"POST /v1/orders HTTP/1.1\r\nhost: x\r\n", b"")], places=True)],
        connections=connections,
        seconds=seconds,
        mark="test",
        begin=time.monotonic() + 0.1,
        **more,  # type: ignore[arg-type]  # fields of a plan
    )
    return await asyncio.to_thread(Load(plan, lambda _answered, _failed: None).run)


async def test_a_closed_loop_asks_again_when_it_is_answered_each_time_under_another_key() -> None:
    heads: list[bytes] = []

    async def handle(head: bytes) -> bytes:
        heads.append(head)
        return answer(ORDER % len(heads))

    async with serving(handle) as port:
        tally = await drive(port, connections=3, seconds=1.0)
    assert tally.requests == len(heads) == len(tally.orders) == len(tally.answers["place"].times) > 3
    assert len(set(heads)) == len(heads)
    assert not tally.failures
    assert all(b"\r\nauthorization: Bearer x\r\nidempotency-key: test-" in head for head in heads)


async def test_an_open_loop_counts_from_the_moment_a_request_was_due() -> None:
    free = asyncio.Event()
    asyncio.get_running_loop().call_later(0.6, free.set)

    async def handle(_: bytes) -> bytes:
        await free.wait()
        return answer(b"{}")

    async with serving(handle) as port:
        tally = await drive(port, seconds=1.0, rate=20.0)
    latencies = sorted(tally.answers["place"].latencies)
    # One connection, stalled for half a second: those that were due meanwhile waited for their turn, the first longest.
    assert len(latencies) == tally.requests == 20
    assert latencies[-1] > 0.4
    assert sum(latency > 0.1 for latency in latencies) >= 6
    assert latencies[0] < latencies[-1] - 0.3


async def test_what_is_refused_counts_by_reason_and_what_breaks_off_as_unknown() -> None:
    replies = iter([answer(b'{"details":[{"reason":"WHY"}]}', 400), b"", answer(b"", 503), b"rubbish"])

    async def handle(_: bytes) -> bytes:
        return next(replies, answer(ORDER % 1))

    async with serving(handle) as port:
        tally = await drive(port, seconds=1.0)
    assert tally.failures["place", "400 WHY"] == tally.failures["place", "503"] == 1
    assert tally.failures["place", "connection closed"] == 1
    assert sum(tally.failures.values()) == 4
    # The first learnt that nothing had happened.
    assert tally.unknown == 3
    assert len(tally.answers["place"].times) > 0


async def test_a_user_who_is_refused_for_the_last_reason_stops() -> None:
    async def handle(_: bytes) -> bytes:
        return answer(b'{"details":[{"reason":"SOLD_OUT"}]}', 400)

    async with serving(handle) as port:
        began = time.monotonic()
        tally = await drive(port, seconds=60.0, connections=5, last_reason="SOLD_OUT")
    assert tally.requests == tally.failures["place", "400 SOLD_OUT"] == 5
    assert tally.unknown == 0
    assert tally.first_last_reason is not None
    assert time.monotonic() - began < 30


async def test_a_server_that_is_gone_is_a_failure_and_no_end() -> None:
    async def handle(_: bytes) -> bytes:
        return b""

    async with serving(handle) as port:
        tally = await drive(port, connections=2, seconds=0.3)
    assert set(tally.failures) == {("place", "connection closed")}
    assert tally.requests == sum(tally.failures.values()) > 2
