"""The cluster's DNS: a resolver for the names of services."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

DOMAIN = "svc.cluster.local"
_HEADER = struct.Struct("!6H")
_ADDRESS_RECORD = (1, 1)
"""The type A, and the class of the internet."""
_TTL_S = 5
_NO_SUCH_NAME = 3

Addresses = Callable[[str], Sequence[str] | None]
"""The addresses that a full name stands for now; None if there is no such name."""


def answer(query: bytes, addresses: Addresses) -> bytes:
    """The reply to a query with one question (RFC 1035). Raises ValueError if it is not one."""
    try:
        number, flags, questions, *_ = _HEADER.unpack_from(query)
        labels, end = [], _HEADER.size
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length].decode("ascii"))
            end += 1 + length
        asked = struct.unpack_from("!2H", query, end + 1)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("not a query of DNS") from error
    if questions != 1:
        raise ValueError(f"{questions} questions in a query of DNS")
    found = addresses(".".join(labels).lower())
    records = list(found or ()) if asked == _ADDRESS_RECORD else []
    # A reply, with authority; recursion as it was wanted.
    code = 0x8400 | (flags & 0x0100) | (_NO_SUCH_NAME if found is None else 0)
    parts = [_HEADER.pack(number, code, 1, len(records), 0, 0), query[_HEADER.size : end + 5]]
    # The name of each record is that of the question, at byte 12.
    parts += [
        struct.pack("!3HIH", 0xC00C, *_ADDRESS_RECORD, _TTL_S, 4) + ipaddress.IPv4Address(each).packed
        for each in records
    ]
    return b"".join(parts)


class Resolver(asyncio.DatagramProtocol):
    """Answers queries by UDP."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        with suppress(ValueError):
            self._transport.sendto(answer(data, self._addresses), addr)


def resolver_settings(address: str, namespace: str) -> str:
    """What the kubelet writes to /etc/resolv.conf of a pod."""
    return f"search {namespace}.{DOMAIN} {DOMAIN} cluster.local\nnameserver {address}\noptions ndots:5\n"
