"""A change to redis-py. Checked with redis-py 8.1 and uvloop 0.22.

uvloop refuses to write to a closed transport with a RuntimeError (uvloop issue 506), and redis-py passes it on. So a
connection that Redis has ended looks like an error in the code. Here it is a ConnectionError. Remove it when uvloop
raises an OSError, or redis-py converts the RuntimeError.

The tests in `tests/runtime/test_redis_patches.py` fail when this stops working, or is no longer needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection

R = TypeVar("R", bound=Redis)


class _Converting(AbstractConnection):
    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)
        except RuntimeError as error:
            if self._writer is not None and not self._writer.is_closing():
                raise
            raise ConnectionResetError(str(error)) from error


class _Tcp(_Converting, Connection): ...


class _Tls(_Converting, SSLConnection): ...


class _Unix(_Converting, UnixDomainSocketConnection): ...


_PATCHED: Mapping[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def patched(client: R) -> R:
    """The client, with this change for the connections that it makes. It must have a `socket_timeout`."""
    pool = client.connection_pool
    pool.connection_class = _PATCHED[pool.connection_class]
    return client
