"""Each patch of nats-py works, and unpatched nats-py still needs it."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from nats.aio.client import Client

from mesh.patches.nats_py import NatsClient, RawReader

HEADERS = b"Nats-Msg-Id: 0192\r\nce-id: 0192\r\nce-type: commerce.order.placed\r\n\r\n"


class Transport:
    """Records the data written to the socket, in order."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writelines(self, data: list[bytes]) -> None:
        self.written += data

    async def drain(self) -> None:
        """Do nothing."""


async def written_by(kind: type[Client]) -> bytes:
    """The data that a connected client sends after it buffers a command and then sends a PING."""
    client: Any = kind()
    client._transport = transport = Transport()
    client._flush_queue = asyncio.Queue()
    client._status = Client.CONNECTED
    await client._send_command(b"PUB first 0\r\n\r\n")
    await client._send_ping()
    return b"".join(transport.written)


async def test_ping_follows_the_buffered_data() -> None:
    assert await written_by(NatsClient) == b"PUB first 0\r\n\r\nPING\r\n"


async def test_nats_py_alone_still_sends_the_ping_first() -> None:
    assert (await written_by(Client)).startswith(b"PING"), "fixed upstream: remove this patch"


async def answered(kind: type[Client]) -> None:
    """Process the PONG of an abandoned PING."""
    client: Any = kind()
    given_up = asyncio.get_running_loop().create_future()
    given_up.cancel()
    client._pongs = [given_up]
    await client._process_pong()
    assert client._pongs == []


async def test_pong_of_a_ping_that_was_given_up_is_ignored() -> None:
    await answered(NatsClient)


async def test_nats_py_alone_still_fails_on_such_a_pong() -> None:
    with pytest.raises(asyncio.InvalidStateError):
        await answered(Client)


def calls_for(kind: type[Client]) -> int:
    """Python functions and comprehensions entered, and methods called, to parse the headers once they are known."""
    kind._parse_header_lines(HEADERS)
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(counted)
    try:
        kind._parse_header_lines(HEADERS)
    finally:
        sys.setprofile(None)
    return count


def test_parser_of_headers_has_no_loop_over_characters_and_that_of_nats_py_still_has() -> None:
    assert calls_for(NatsClient) * 2 < calls_for(Client), "as quick upstream: remove this patch"


@pytest.mark.parametrize("size", [1, 7, 61, 10_000])
async def test_raw_reader_gets_its_messages_whole_and_callbacks_get_the_others(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = RawReader()
    read: list[tuple[bytes, bytes, bytes]] = []
    others: list[tuple[int, bytes]] = []

    class Raw:
        _id = 3

    async def process(_: Client, sid: int, *parts: bytes) -> None:
        others.append((sid, parts[2]))

    monkeypatch.setattr(Client, "_process_msg", process)
    client.read_raw(Raw(), lambda *message: read.append(message))
    header = b"NATS/1.0\r\n" + HEADERS
    mine = b"HMSG a.b 3 reply %d %d\r\n%b\r\n" % (len(header), len(header), header)
    ended = b"NATS/1.0 404 No Messages\r\n\r\n"
    status = b"HMSG inbox 3 %d %d\r\n%b\r\n" % (len(ended), len(ended), ended)
    other = b"MSG c 4 2\r\nhi\r\nHMSG d 5 %d %d\r\n%bhey\r\n" % (len(header), len(header) + 3, header)
    data = mine + mine + other + b"+OK\r\n" + mine + status + other
    for begin in range(0, len(data), size):
        await client._ps.parse(data[begin : begin + size])
    assert read == [(b"a.b", b"reply", header)] * 3 + [(b"inbox", b"", ended)]
    assert others == [(4, b"hi"), (5, b"hey")] * 2
