"""Redis: sessions and caches."""

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from redis.asyncio import Redis as Client

from stack.servers.binaries import redis_server
from stack.supervisor import Program


class Redis:
    """A Redis server that is there already."""

    name: Final = "redis"

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def address(self) -> str:
        """Where it is, without the password, which may also be among the parameters."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

    async def prepare(self) -> Program | None:
        """Prepare the server and return the program to run; None for one that is there already."""
        return None

    async def probe(self) -> None:
        """Return when the server answers, raise otherwise."""
        async with Client.from_url(self.url) as client:
            await client.ping()


class EmbeddedRedis(Redis):
    """Redis of this mesh alone: its file in `folder`, reached by a Unix socket in `sockets`."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self._folder = folder.resolve()
        self._socket = sockets / "redis.sock"
        super().__init__(f"unix://{self._socket}")

    async def prepare(self) -> Program:
        """Make its folder and return the program. Raises BinaryMissing if it is not installed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Program(
            name=self.name,
            command=[
                str(redis_server()),
                *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
                *("--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
                # Cached entries expire within minutes, sessions within weeks: out of memory, the former go first.
                *("--maxmemory", "256mb", "--maxmemory-policy", "volatile-ttl"),
            ],
            address=self.address,
            probe=self.probe,
        )
