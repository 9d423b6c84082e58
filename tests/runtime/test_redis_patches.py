"""The patch of redis-py works, and unpatched redis-py still needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
import uvloop
from redis.asyncio import Redis

from mesh.patches.redis_py import patched


async def write_to_a_closed_connection(client: Redis) -> None:
    """Send a command on a connection that has been closed without redis-py's knowledge."""
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    try:
        connection._writer.transport.abort()
        await connection._reader.read()
        await connection.send_command("PING", check_health=False)
    finally:
        await pool.release(connection)


def run(folder: Path, scheme: str, change: Callable[[Redis], Redis]) -> None:
    """Do so in an event loop of uvloop, with a server that answers all commands."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while commands := await reader.read(4096):
            writer.write(b"+OK\r\n" * commands.count(b"*"))
        writer.close()

    async def main() -> None:
        path = folder / "redis"
        if scheme == "unix":
            server = await asyncio.start_unix_server(serve, path)
            url = f"unix://{path}"
        else:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, change(Redis.from_url(url, protocol=2, socket_timeout=5)) as client:
            await write_to_a_closed_connection(client)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("scheme", ["unix", "redis"])
def test_write_to_a_closed_connection_is_a_connection_error(folder: Path, scheme: str) -> None:
    with pytest.raises(redis.exceptions.ConnectionError, match="the handler is closed"):
        run(folder, scheme, patched)


def test_redis_py_alone_still_passes_on_the_error_of_uvloop(folder: Path) -> None:
    # If this is an OSError or an error of redis-py, it is fixed upstream: remove the patch.
    with pytest.raises(RuntimeError, match="the handler is closed"):
        run(folder, "unix", lambda client: client)
