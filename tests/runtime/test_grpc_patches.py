"""The server requests calls ahead, loses none of them when it stops, and leaves no reference cycles."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc
from grpc.aio._server import Server as GrpcServer

from mesh.patches import grpc_aio as accepting
from tests.services import TEST_TIMEOUT_S, eventually

METHOD = "/test.Echo/Say"


@asynccontextmanager
async def echoing(
    handled: Counter[str], method: str = METHOD
) -> AsyncIterator[tuple[Any, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]]:
    """A server that replies after some turns of the event loop, and a client that calls `method`."""

    async def say(request: bytes, _: Any) -> bytes:
        handled["begun"] += 1
        for _turn in range(5):
            await asyncio.sleep(0)
        handled["ended"] += 1
        return request

    server = accepting.server([])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield server, channel.unary_unary(method)
    await server.stop(None)


async def test_calls_are_requested_ahead_before_and_after_calls_have_arrived() -> None:
    async with echoing(Counter()) as (server, say):
        core = server._server

        async def all_are_requested() -> bool:
            return len(core._asked) == accepting.AHEAD - 1 and not any(call.done() for call in core._asked)

        # gRPC's own loop awaits the missing one.
        await eventually(all_are_requested)
        for _ in range(2):
            answers = await asyncio.gather(*(say(str(number).encode()) for number in range(3 * accepting.AHEAD)))
            assert answers == [str(number).encode() for number in range(3 * accepting.AHEAD)]
            await eventually(all_are_requested)


async def test_server_that_stops_under_load_finishes_every_accepted_call() -> None:
    handled: Counter[str] = Counter()
    ended: Counter[grpc.StatusCode] = Counter()

    async def keep_calling(say: Any) -> None:
        while True:
            try:
                await say(b"hello")
                ended[grpc.StatusCode.OK] += 1
            except grpc.aio.AioRpcError as failure:
                ended[failure.code()] += 1
                return

    async with echoing(handled) as (server, say):
        callers = [asyncio.create_task(keep_calling(say)) for _ in range(4 * accepting.AHEAD)]

        async def is_busy() -> bool:
            return handled["ended"] > 10 * len(callers)

        await eventually(is_busy)
        # The server would wait an hour for a call without a handler.
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await server.stop(3600)
            await asyncio.gather(*callers)
    assert handled["begun"] == handled["ended"] == ended[grpc.StatusCode.OK]
    assert ended.total() - ended[grpc.StatusCode.OK] == len(callers), "each was refused once, and then stopped"


async def test_calls_that_were_accepted_ahead_are_handled_before_the_server_stops() -> None:
    async with echoing(Counter()) as (server, say):
        core = server._server
        take = core._request_call
        may_go_on = asyncio.Event()

        async def take_slowly() -> Any:
            call = await take()
            await may_go_on.wait()
            return call

        core._request_call = take_slowly
        # gRPC's loop has already requested the first call.
        calls = [asyncio.ensure_future(say(b"hello")) for _ in range(6)]

        async def are_taken() -> bool:
            return [call.done() for call in core._asked].count(True) == 4

        await eventually(are_taken)
        stopping = asyncio.create_task(server.stop(3600))
        await asyncio.sleep(0)
        may_go_on.set()
        assert await asyncio.gather(*calls) == [b"hello"] * 6
        await stopping


async def test_server_whose_loop_has_failed_stops_in_spite_of_calls_accepted_ahead() -> None:
    async with echoing(Counter()) as (server, say):
        core = server._server
        take = core._request_call

        async def fail() -> None:
            await take()

            async def are_taken() -> bool:
                return [call.done() for call in core._asked].count(True) > 2

            await eventually(are_taken)
            raise RuntimeError("the core has failed")

        core._request_call = fail
        calls = [asyncio.ensure_future(say(b"hello")) for _ in range(6)]

        async def are_forgotten() -> bool:
            return not core._asked

        await eventually(are_forgotten)
        await server.stop(None)
        await asyncio.wait(calls)


async def test_calls_leave_no_reference_cycles() -> None:
    async with echoing(Counter()) as (_, say):
        left = []
        gc.disable()
        try:
            for _ in range(3):
                gc.collect()
                for _ in range(50):
                    await say(b"hello", metadata=(("who", "me"),))
                left.append(gc.collect())
        finally:
            gc.enable()
    # Other code of this process may leave cycles, but not three times in a row.
    assert min(left) < 50


@pytest.mark.parametrize("method", ["/test.Echo/Shout", "/test.Silence/Say"])
async def test_unknown_method_is_unimplemented(method: str) -> None:
    async with echoing(Counter(), method) as (_, call):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"hello")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_server_that_was_not_started_can_be_stopped() -> None:
    await accepting.server([]).stop(1)


async def test_grpc_alone_still_requests_one_call_at_a_time() -> None:
    class Core(cygrpc.AioServer):  # type: ignore[misc]
        """The core of gRPC, which counts the concurrent requests for calls."""

        def __init__(self, *of_grpc: object) -> None:
            super().__init__(*of_grpc)
            self.asking = self.most = 0

        async def _request_call(self) -> object:
            self.asking += 1
            self.most = max(self.most, self.asking)
            try:
                return await super()._request_call()
            finally:
                self.asking -= 1

    class Server(GrpcServer):
        def __init__(self) -> None:
            self._loop = cygrpc.get_working_loop()
            self._server = Core(self._loop, None, (), (), (), None)

    server = Server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        say: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        await asyncio.gather(*(say(b"hello") for _ in range(20)), return_exceptions=True)
    await server.stop(None)
    assert server._server.most == 1, "more than one upstream: remove this patch"


def test_method_lookup_of_grpc_alone_still_leaves_cycles() -> None:
    script = (
        "import asyncio, gc, grpc.aio\n"
        "from grpc._cython import cygrpc\n"
        "async def look_up():\n"
        "    for _ in range(50): await cygrpc._find_method_handler('/a.B/C', (), [], ())\n"
        "gc.collect(); gc.disable(); asyncio.run(look_up()); print(gc.collect())\n"
    )
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(left) >= 50, "no cycles upstream: remove this patch"
