"""NATS with JetStream: one server, its streams on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import nats

from mesh.plain_http import plain_client
from stack.files import write_whole
from stack.servers.binaries import nats_server
from stack.supervisor import Program


class Nats:
    """A NATS server that is there already."""

    name: Final = "nats"

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def address(self) -> str:
        """Where it is, without the password."""
        return f"nats://{urlsplit(self.url).netloc.rpartition('@')[2]}"

    async def prepare(self) -> Program | None:
        """Prepare the server and return the program to run; None for one that is there already."""
        return None

    async def probe(self) -> None:
        """Return when JetStream answers, raise otherwise."""
        client = await nats.connect(
            self.url, connect_timeout=2, allow_reconnect=False, max_reconnect_attempts=1, error_cb=_ignore
        )
        try:
            await client.jetstream(timeout=2).account_info()
        finally:
            await client.close()


class EmbeddedNats(Nats):
    """NATS of this mesh alone: streams in `folder`, on two loopback ports, the second for monitoring."""

    def __init__(self, folder: Path, ports: Sequence[int], password: str) -> None:
        port, monitoring_port = ports
        super().__init__(f"nats://mesh:{quote(password, safe='')}@127.0.0.1:{port}")
        self._folder = folder.resolve()
        self._port = port
        self._monitoring_port = monitoring_port
        self._password = password

    async def prepare(self) -> Program:
        """Write its configuration. Raises BinaryMissing if it is not installed."""
        configuration = self._folder / "nats.conf"
        # Its syntax takes JSON, but for escaped letters.
        content = {
            "server_name": "mesh",
            "listen": f"127.0.0.1:{self._port}",
            "http": f"127.0.0.1:{self._monitoring_port}",
            "authorization": {"user": "mesh", "password": self._password},
            "jetstream": {"store_dir": str(self._folder / "store")},
        }
        write_whole(configuration, json.dumps(content, indent=2, ensure_ascii=False).encode())
        return Program(
            name=self.name,
            command=[str(nats_server()), "--config", str(configuration)],
            address=self.address,
            probe=self.probe,
            # A store of many messages is read through first.
            ready_within=120.0,
        )

    async def probe(self) -> None:
        # Its own word on its health: cheaper than a client's connection, and given only when all streams are there.
        async with plain_client() as monitoring:
            (await monitoring.get(f"http://127.0.0.1:{self._monitoring_port}/healthz")).raise_for_status()


async def _ignore(_: Exception) -> None:
    """The probe raises what matters; the client would print it as well."""
