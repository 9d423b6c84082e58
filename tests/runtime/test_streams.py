"""Server-streaming methods over real mutual TLS: the chain of all calls, bounds, drain and the expiry of tokens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

from mesh.errors import MeshError, NotFound
from mesh.rpc import status
from mesh.rpc.call import Call
from mesh.rpc.chain import ShapeMismatch
from mesh.rpc.server import Server
from mesh.rpc.streams import DRAINED_RETRY_AFTER_S
from stack import pki
from tests.census import Census, tasks_are_at_most
from tests.runtime.served import client_of, settings
from tests.runtime.watching import PACKAGE, SERVICE, Response, streaming, watching
from tests.services import TEST_TIMEOUT_S, Keys, eventually


class Endless:
    """A stream of 0, 1, 2 … that a test can wait for: each number after the first is sent when it says so."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.closed = 0
        self.next = asyncio.Event()

    async def watch(self, _: Any, call: Call) -> AsyncGenerator[Any, None]:
        self.calls.append(call)
        try:
            for number in itertools.count():
                yield Response(number=number)
                await self.next.wait()
                self.next.clear()
        finally:
            self.closed += 1


async def numbers_of(stream: Any) -> list[int]:
    return [reply.number async for reply in stream]


async def error_of(stream: Any, seen: list[int] | None = None) -> MeshError:
    """The error that ends a stream; the numbers before it are added to `seen`."""
    try:
        while (reply := await stream.read()) is not grpc.aio.EOF:
            if seen is not None:
                seen.append(reply.number)
    except grpc.aio.AioRpcError as failure:
        return status.from_rpc_error(failure, "tested")
    raise AssertionError("the stream ended without an error")


async def open_are(server: Server, count: int) -> None:
    """Wait until so many streams are open."""

    async def are_open() -> bool:
        return server.streams.count == count

    await eventually(are_open)


async def closed(server: Server) -> None:
    """Wait until no stream is open."""
    await open_are(server, 0)


async def test_stream_sends_each_message_when_it_is_there_and_ends(keys: Keys) -> None:
    go_on = asyncio.Event()

    async def watch(_: Any, __: Call) -> AsyncGenerator[Any, None]:
        yield Response(number=1)
        await go_on.wait()
        yield Response(number=2)

    token = keys.token("customer", uuid4())
    async with streaming(keys, watch) as server, client_of(server, keys) as client:
        stream = watching(client, token)
        assert (await stream.read()).number == 1
        go_on.set()
        assert (await stream.read()).number == 2
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        await closed(server)


async def test_stream_without_messages_ends_with_ok(keys: Keys) -> None:
    async def watch(_: Any, __: Call) -> AsyncGenerator[Any, None]:
        if not server.port:
            yield Response(number=1)

    async with streaming(keys, watch) as server, client_of(server, keys) as client:
        stream = watching(client, method="WatchPublicNumbers")
        assert await numbers_of(stream) == []
        assert await stream.code() is grpc.StatusCode.OK


async def test_stream_handler_learns_who_asks_and_has_no_deadline_unless_the_client_sets_one(keys: Keys) -> None:
    numbers, ada = Endless(), uuid4()
    token = keys.token("customer", ada)
    async with streaming(keys, numbers.watch) as server, client_of(server, keys) as client:
        for timeout in (None, 7, 7200):
            stream = watching(client, token, timeout=timeout)
            assert (await stream.read()).number == 0
            stream.cancel()
    without, with_one, with_a_long_one = numbers.calls
    assert (str(without.caller), without.peer) == (f"customer:{ada}", "gateway")
    assert without.method == f"/{SERVICE}/WatchNumbers"
    assert without.deadline is None
    left = [call.remaining() for call in (with_one, with_a_long_one)]
    assert left[0] is not None
    assert left[0] < 8  # gRPC rounds up
    assert left[1] is not None
    assert 8 < left[1] < 7300


async def test_stream_outlives_the_default_timeout_of_other_calls(keys: Keys) -> None:
    async def watch(_: Any, __: Call) -> AsyncGenerator[Any, None]:
        yield Response(number=1)
        await asyncio.sleep(0.1)  # the time itself is what is tested
        yield Response(number=2)

    async with streaming(keys, watch, default_timeout=0.01) as server, client_of(server, keys) as client:
        assert await numbers_of(watching(client, method="WatchPublicNumbers")) == [1, 2]


async def test_stream_ends_at_the_deadline_of_the_client_and_its_handler_is_closed(keys: Keys) -> None:
    numbers = Endless()
    async with streaming(keys, numbers.watch) as server, client_of(server, keys) as client:
        error = await error_of(watching(client, method="WatchPublicNumbers", timeout=0.3))
        assert error.code.name == "DEADLINE_EXCEEDED"
        await closed(server)
        assert numbers.closed == len(numbers.calls)


@pytest.mark.parametrize("before", [0, 2])
async def test_stream_error_is_a_status_with_details_at_any_point(keys: Keys, before: int) -> None:
    async def watch(_: Any, __: Call) -> AsyncGenerator[Any, None]:
        for number in range(before):
            yield Response(number=number)
        raise NotFound("there is none", reason="ORDER_NOT_FOUND", metadata={"orderId": "7"})

    seen: list[int] = []
    async with streaming(keys, watch) as server, client_of(server, keys) as client:
        error = await error_of(watching(client, method="WatchPublicNumbers"), seen)
        await closed(server)
    assert seen == list(range(before))
    assert (error.code.name, error.reason, error.metadata) == ("NOT_FOUND", "ORDER_NOT_FOUND", {"orderId": "7"})


async def test_stream_fault_in_the_middle_tells_a_trace_id_and_nothing_of_the_inside(keys: Keys) -> None:
    async def watch(_: Any, call: Call) -> AsyncGenerator[Any, None]:
        yield Response(number=1)
        raise RuntimeError(f"SELECT secret FROM inside {call}")

    seen: list[int] = []
    async with streaming(keys, watch) as server, client_of(server, keys) as client:
        error = await error_of(watching(client, method="WatchPublicNumbers"), seen)
    assert (seen, error.code.name, error.reason) == ([1], "INTERNAL", "INTERNAL")
    assert set(error.metadata) == {"traceId"}
    assert "secret" not in error.message


async def test_stream_is_rejected_by_identity_access_and_validation_before_its_handler(keys: Keys) -> None:
    numbers = Endless()
    token = keys.token("customer", uuid4())
    async with streaming(keys, numbers.watch) as server, client_of(server, keys) as client:
        errors = [
            await error_of(watching(client)),
            await error_of(watching(client, "nonsense")),
            await error_of(watching(client, token, topic="x" * 21)),
        ]
        await closed(server)
    assert [error.reason for error in errors] == ["TOKEN_MISSING", "TOKEN_INVALID", "VALIDATION_FAILED"]
    assert [violation.field for violation in errors[-1].violations] == ["topic"]
    assert numbers.calls == []


async def test_stream_that_a_servicer_does_not_have_is_unimplemented(keys: Keys) -> None:
    class Nothing:
        pass

    server = Server(settings(keys), {SERVICE: Nothing()}, checks=())
    await server.start()
    try:
        async with client_of(server, keys) as client:
            error = await error_of(watching(client, method="WatchPublicNumbers"))
    finally:
        await server.stop()
    assert error.reason == "METHOD_UNIMPLEMENTED"


async def test_stream_of_a_client_that_is_gone_is_closed_and_frees_its_place(keys: Keys) -> None:
    numbers = Endless()
    token = keys.token("customer", uuid4())
    async with streaming(keys, numbers.watch, max_streams=1) as server, client_of(server, keys) as client:
        for times in range(1, 4):
            stream = watching(client, token)
            assert (await stream.read()).number == 0
            stream.cancel()
            await closed(server)
            assert numbers.closed == times


class Flood:
    """A stream whose client reads nothing: the handler is suspended in its `yield`, not in an await of its own."""

    def __init__(self) -> None:
        self.sent = 0
        self.closed = 0

    async def watch(self, _: Any, __: Call) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield Response(padding=bytes(100_000))
                self.sent += 1
        finally:
            self.closed += 1

    async def is_blocked(self) -> bool:
        sent = self.sent
        await asyncio.sleep(0.2)
        return sent == self.sent > 0


async def test_stream_is_closed_when_its_client_is_gone_while_it_sends(
    keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    flood = Flood()
    async with streaming(keys, flood.watch) as server, client_of(server, keys) as client:
        stream = watching(client, method="WatchPublicNumbers")
        await eventually(flood.is_blocked)
        stream.cancel()
        await closed(server)
    assert flood.closed == 1
    assert "fault" not in capsys.readouterr().out


async def test_stream_whose_client_does_not_read_ends_with_the_drain_of_its_server(keys: Keys) -> None:
    flood = Flood()
    async with streaming(keys, flood.watch, drain_seconds=0.1) as server, client_of(server, keys) as client:
        stream = watching(client, method="WatchPublicNumbers")
        await eventually(flood.is_blocked)
        await asyncio.wait_for(server.stop(), TEST_TIMEOUT_S)
        assert (flood.closed, server.streams.count) == (1, 0)
        stream.cancel()


async def test_stream_keeps_its_place_until_a_client_that_does_not_read_has_its_status(keys: Keys) -> None:
    flood, ada = Flood(), uuid4()
    async with (
        streaming(keys, flood.watch, max_streams_per_caller=1) as server,
        client_of(server, keys) as client,
    ):
        brief = pki.access_token(keys.signing.private, role="customer", subject=ada, lifetime=timedelta(seconds=3))
        stream = watching(client, brief)

        async def is_closed() -> bool:
            return flood.closed == 1

        await eventually(is_closed)
        assert (await error_of(watching(client, keys.token("customer", ada)))).reason == "RATE_LIMITED"
        assert (await error_of(stream)).reason == "TOKEN_INVALID"
        await closed(server)


async def test_streams_of_a_draining_server_end_as_unavailable_with_a_delay(keys: Keys) -> None:
    numbers = Endless()
    token = keys.token("customer", uuid4())
    async with streaming(keys, numbers.watch, drain_seconds=3600) as server, client_of(server, keys) as client:
        streams = [watching(client, token) for _ in range(20)]
        for stream in streams:
            assert (await stream.read()).number == 0
        stopping = asyncio.create_task(server.stop())
        errors = await asyncio.gather(*map(error_of, streams))
        await asyncio.wait_for(stopping, TEST_TIMEOUT_S)
    assert {error.code.name for error in errors} == {"UNAVAILABLE"}
    delays = {error.retry_after or 0.0 for error in errors}
    assert len(delays) > 1, "the clients do not all reconnect at once"
    least, most = DRAINED_RETRY_AFTER_S
    assert all(least <= delay <= most for delay in delays)
    assert (numbers.closed, server.streams.count) == (20, 0)


async def test_stream_that_is_drained_with_its_first_message_on_the_way_has_the_status(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC would send the headers again with the status, which fails."""
    server: Server

    async def watch(_: Any, __: Call) -> AsyncGenerator[Any, None]:
        server.streams.drain()
        yield Response(number=1)

    for _ in range(20):
        async with streaming(keys, watch) as server, client_of(server, keys) as client:
            error = await error_of(watching(client, method="WatchPublicNumbers"))
            assert error.code.name == "UNAVAILABLE"
    assert caplog.records == []


async def test_stream_ends_as_unauthenticated_when_its_token_expires(keys: Keys) -> None:
    numbers, ada = Endless(), uuid4()
    seen: list[int] = []
    async with streaming(keys, numbers.watch) as server, client_of(server, keys) as client:
        other = watching(client, keys.token("customer", ada))
        assert (await other.read()).number == 0
        brief = pki.access_token(keys.signing.private, role="customer", subject=ada, lifetime=timedelta(seconds=3))
        error = await error_of(watching(client, brief), seen)
        assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
        assert seen == [0]
        await open_are(server, 1)
        assert numbers.closed == 1
        numbers.next.set()
        assert (await other.read()).number == 1
        other.cancel()


async def test_stream_ends_as_unauthenticated_when_its_token_is_revoked(keys: Keys) -> None:
    numbers, ada = Endless(), uuid4()
    revoked, seen = set[str](), list[int]()
    async with streaming(keys, numbers.watch, revoked=revoked) as server, client_of(server, keys) as client:
        others = [watching(client, keys.token("customer", uuid4())), watching(client, method="WatchPublicNumbers")]
        for other in others:
            assert (await other.read()).number == 0
        stream = watching(client, keys.token("customer", ada))
        assert (await stream.read()).number == 0
        revoked.add(str(ada))
        error = await error_of(stream, seen)
        assert (error.code.name, error.reason, seen) == ("UNAUTHENTICATED", "TOKEN_INVALID", [])
        await open_are(server, len(others))
        for other in others:
            other.cancel()


async def test_stream_timeout_of_the_handler_itself_is_a_fault_and_no_expiry(keys: Keys) -> None:
    async def watch(_: Any, __: Call) -> AsyncGenerator[Any, None]:
        yield Response(number=1)
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    async with streaming(keys, watch) as server, client_of(server, keys) as client:
        error = await error_of(watching(client, keys.token("customer", uuid4())))
    assert error.reason == "INTERNAL"


async def test_streams_above_the_bound_of_the_process_are_overloaded(keys: Keys) -> None:
    numbers = Endless()
    async with streaming(keys, numbers.watch, max_streams=2) as server, client_of(server, keys) as client:
        open_ones = [watching(client, keys.token("customer", uuid4())) for _ in range(2)]
        for stream in open_ones:
            assert (await stream.read()).number == 0
        error = await error_of(watching(client, method="WatchPublicNumbers"))
        assert (error.code.name, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 1.0)
        open_ones[0].cancel()
        await open_are(server, 1)
        late = watching(client, method="WatchPublicNumbers")
        assert (await late.read()).number == 0
        late.cancel()
        open_ones[1].cancel()


async def test_streams_above_the_bound_of_a_caller_are_rate_limited_and_others_are_not(keys: Keys) -> None:
    numbers = Endless()
    ada, bob = keys.token("customer", uuid4()), keys.token("customer", uuid4())
    async with streaming(keys, numbers.watch, max_streams_per_caller=1) as server, client_of(server, keys) as client:

        def anonymous() -> Any:
            return watching(client, method="WatchPublicNumbers", address="192.0.2.1")

        first = watching(client, ada)
        assert (await first.read()).number == 0
        error = await error_of(watching(client, ada))
        assert (error.code.name, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", 1.0)
        others = [watching(client, bob), anonymous()]
        for other in others:
            assert (await other.read()).number == 0
        assert (await error_of(anonymous())).reason == "RATE_LIMITED"
        async with client_of(server, keys, peer="order") as service:
            of_a_service = [watching(service, method="WatchPublicNumbers") for _ in range(2)]
            for stream in of_a_service:
                assert (await stream.read()).number == 0
            for stream in (first, *others, *of_a_service):
                stream.cancel()
            await closed(server)
        again = watching(client, ada)
        assert (await again.read()).number == 0
        again.cancel()


async def test_server_does_not_start_when_a_handler_has_not_the_shape_of_its_method(keys: Keys) -> None:
    class Coroutine:
        async def WatchNumbers(self, _: Any, __: Call) -> list[Any]:
            return [Response(number=1)]

    class Plain:
        def WatchNumbers(self, _: Any, __: Call) -> list[Any]:
            return []

    class Generator:
        async def GetNumber(self, _: Any, __: Call) -> AsyncGenerator[Any, None]:
            yield Response(number=1)

    for servicer, text in ((Coroutine(), "async generator"), (Plain(), "async generator"), (Generator(), "coroutine")):
        with pytest.raises(ShapeMismatch, match=text):
            Server(settings(keys), {SERVICE: servicer}, checks=())


@pytest.mark.parametrize(
    ("service", "text"), [("UploadService", "takes a stream"), ("ChangeService", "NO_SIDE_EFFECTS")]
)
async def test_server_does_not_start_with_a_method_that_no_chain_handles(keys: Keys, service: str, text: str) -> None:
    with pytest.raises(ShapeMismatch, match=text):
        Server(settings(keys), {f"{PACKAGE}.{service}": object()}, checks=())


async def test_ten_thousand_connects_of_streams_leave_nothing_behind(keys: Keys) -> None:
    """A third ends normally, a third fails in the middle, and of a third the client is gone."""
    ended = 0

    async def watch(request: Any, _: Call) -> AsyncGenerator[Any, None]:
        nonlocal ended
        try:
            yield Response(number=1)
            if request.topic == "fails":
                raise NotFound("there is none", reason="ORDER_NOT_FOUND")
            if request.topic == "stays":
                await asyncio.Event().wait()
        finally:
            ended += 1

    token = keys.token("customer", uuid4())
    async with (
        streaming(keys, watch, max_streams_per_caller=100) as server,
        client_of(server, keys) as client,
    ):

        async def connect(kind: str) -> None:
            stream = watching(client, token, topic=kind)
            assert (await stream.read()).number == 1
            if kind == "stays":
                stream.cancel()
            elif kind == "fails":
                assert (await error_of(stream)).reason == "ORDER_NOT_FOUND"
            else:
                assert await stream.read() is grpc.aio.EOF

        async def connects(count: int) -> None:
            kinds = itertools.cycle(("ends", "fails", "stays"))
            for _ in range(count // 20):
                await asyncio.gather(*(connect(next(kinds)) for _ in range(20)))
                await closed(server)

        await connects(200)
        censuses, tasks = [Census.taken()], len(asyncio.all_tasks())
        for _ in range(2):
            await connects(5_000)
            censuses.append(Census.taken())
        assert (ended, server.streams.count) == (10_200, 0)
        await tasks_are_at_most(tasks)
        # Other parts of the process make objects once. A leak grows in both halves.
        first, second = (after.grown_since(before, by=500) for before, after in itertools.pairwise(censuses))
        assert first.keys() & second.keys() == set()
