"""Envoy's own interface, on a Unix socket: whether it serves, which services it reaches, and how it drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from mesh.plain_http import plain_client

_PAUSE_S = 0.02


class Admin:
    """Asks one Envoy. Every method raises httpx.HTTPError when it does not answer."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def require_ready(self, services: Iterable[str]) -> None:
        """Return when it takes calls and has found each service healthy. Raises ConnectionError otherwise."""
        async with plain_client(self._socket) as envoy:
            (await envoy.get("http://envoy/ready")).raise_for_status()
            healthy = {"filter": r"^cluster\.\w+\.membership_healthy$", "format": "json"}
            stats = (await envoy.get("http://envoy/stats", params=healthy)).json()["stats"]
        counts = {stat["name"].split(".")[1]: stat["value"] for stat in stats}
        if unreached := [name for name in services if not counts.get(name)]:
            raise ConnectionError(f"it does not reach {', '.join(unreached)}")

    async def fail_health_checks(self) -> None:
        """Let /readyz answer 503, and each response be the last of its connection."""
        await self._post("healthcheck/fail")

    async def drain(self) -> None:
        """Take no more connections, and return when all requests in progress have been answered."""
        await self._post("healthcheck/fail")
        await self._post("drain_listeners")
        while await self._requests_in_progress():  # noqa: ASYNC110  # Envoy calls nobody back
            await asyncio.sleep(_PAUSE_S)

    async def _post(self, step: str) -> None:
        async with plain_client(self._socket) as envoy:
            (await envoy.post(f"http://envoy/{step}")).raise_for_status()

    async def _requests_in_progress(self) -> int:
        async with plain_client(self._socket) as envoy:
            wanted = {"filter": r"^http\.edge\.downstream_rq_active$", "format": "json"}
            stats = (await envoy.get("http://envoy/stats", params=wanted)).json()["stats"]
            return sum(stat["value"] for stat in stats if "value" in stat)
