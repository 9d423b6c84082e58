"""A live Envoy for tests, on a port of its own choice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from gateway.config import EdgeConfig
from gateway.render import envoy_command, write
from tests.services import TEST_TIMEOUT_S


@dataclass(frozen=True)
class Envoy:
    """An edge that runs."""

    url: str
    target: str
    """The same for gRPC: host and port."""
    log: Path
    admin: httpx.AsyncClient

    async def statistic(self, name: str) -> int:
        """One of Envoy's counters and gauges."""
        answer = await self.admin.get("/stats", params={"filter": f"^{name}$", "format": "json"})
        [found] = [entry["value"] for entry in answer.json()["stats"] if entry.get("name") == name]
        return int(found)

    async def memory(self) -> int:
        """The allocated memory, in bytes."""
        return int((await self.admin.get("/memory")).json()["allocated"])

    async def until(self, name: str, value: int) -> None:
        """Wait until a statistic has a value."""
        async with asyncio.timeout(TEST_TIMEOUT_S):
            while await self.statistic(name) != value:  # noqa: ASYNC110 - Envoy calls nobody back
                await asyncio.sleep(0.02)

    async def logged(self, traceparent: str) -> dict[str, Any]:
        """Wait for the line that Envoy logs of the call in this trace, and return it."""
        async with asyncio.timeout(TEST_TIMEOUT_S):
            while True:
                for line in self.log.read_text().splitlines():
                    if traceparent in line:
                        return dict(json.loads(line))
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(config: EdgeConfig, folder: Path) -> AsyncIterator[Envoy]:
    """Run Envoy with its files in `folder`, whose path must be short: it holds a Unix socket."""
    socket = folder / "admin.sock"
    log = folder / "envoy.log"
    path = write(replace(config, port=0, admin=socket), folder)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*envoy_command(path, workers=1), stdout=output, stderr=output)
    try:
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://envoy"
        ) as admin:
            if not await _ready(admin, process):
                raise RuntimeError(f"envoy did not start:\n{log.read_text()}")
            [listener] = (await admin.get("/listeners", params={"format": "json"})).json()["listener_statuses"]
            port = listener["local_address"]["socket_address"]["port_value"]
            yield Envoy(f"http://{config.host}:{port}", f"{config.host}:{port}", log, admin)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(admin: httpx.AsyncClient, process: asyncio.subprocess.Process) -> bool:
    """Wait until Envoy serves; false when it has ended instead."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        while process.returncode is None:
            try:
                if (await admin.get("/ready")).status_code == httpx.codes.OK:
                    return True
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)
    return False
