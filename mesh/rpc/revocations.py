"""Access tokens that are refused before they expire (ADR-0039).

The issuer of the tokens adds each revocation to a stream in Redis. Every process follows the stream with a blocking
read and keeps the revoked ids in memory, so a call costs two lookups in a dictionary and no round trip. A revocation
arrives within milliseconds. After a lost connection, the whole stream is read again.

While Redis does not answer, new revocations do not arrive: revoked tokens are accepted until they expire.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh import tasks
from mesh.patches.redis_py import patched

STREAM = "revoked-tokens"
"""The stream. An entry has the `id` of a session or of a subject, and `expire`, when its tokens have expired."""
SLACK_S = 60
"""Seconds that a revocation outlives its tokens, for clocks that differ."""

REVOKE = """
local function revoke(stream, id, seconds)
  local now = redis.call('TIME')[1]
  redis.call('XADD', stream, 'MINID', (now - seconds) * 1000, '*', 'id', id, 'expire', now + seconds)
end
"""
"""A function for scripts that revoke tokens: of a session or subject `id`, for `seconds`, the lifetime of tokens and
`SLACK_S`. It also drops entries of that age. The stream has no time to live: Redis evicts keys that have one first."""

_BLOCK_MS = 500
_ANSWER_S = 0.5
"""The seconds in which Redis answers, after a blocking read has ended. A silent connection is given up after 1 s."""
_RETRY_S = 0.2
_FIRST_READ_S = 1.0
"""The longest time that `start` waits for the first read."""
_PAGE = 1000

log = structlog.get_logger(__name__)


class Revocations:
    """The revoked sessions and subjects, as far as this process has learned of them. A part of a service."""

    def __init__(self, url: str) -> None:
        """`url` is where Redis is."""
        self._until: dict[str, float] = {}
        self._redis = patched(
            Redis.from_url(
                url,
                protocol=2,
                decode_responses=True,
                single_connection_client=True,
                socket_connect_timeout=_ANSWER_S,
                socket_timeout=_BLOCK_MS / 1000 + _ANSWER_S,
                retry=Retry(NoBackoff(), 0),
            )
        )
        self._background = tasks.Background("revocations", self._follow)
        self._has_tried = asyncio.Event()
        self.is_current = False
        """Whether all revocations have been read, and new ones arrive."""

    @property
    def ids(self) -> Collection[str]:
        """The ids of revoked sessions and subjects. The collection changes as revocations arrive."""
        return self._until

    async def start(self) -> None:
        """Read the revocations there are and follow new ones. Without Redis, start without them."""
        self._background.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_READ_S):
                await self._has_tried.wait()

    async def stop(self) -> None:
        """Stop following."""
        await self._background.stop(timeout=0)
        await self._redis.aclose()

    async def _follow(self) -> None:
        position = "0"
        while not self._background.stopping.is_set():
            try:
                # Without a pause until all is read.
                found: Any = await self._redis.xread(
                    {STREAM: position}, count=_PAGE, block=_BLOCK_MS if self.is_current else None
                )
            except Exception as error:  # noqa: BLE001  # it goes on after any error: else revoked tokens are accepted
                self._lost(error)
                position = "0"
                await self._background.pause(_RETRY_S)
                continue
            for _, entries in found:
                for entry_id, entry in entries:
                    position = entry_id
                    self._add(entry["id"], float(entry["expire"]))
            if not found and not self.is_current:
                self.is_current = True
                self._has_tried.set()
                log.info("following revocations", known=len(self._until))

    def _add(self, revoked: str, until: float) -> None:
        # Tokens expire by the clock of this machine.
        now = time.time()  # noqa: TID251
        self._until.setdefault(revoked, until)
        # Entries are in the order in which they expire.
        while self._until and (oldest := next(iter(self._until.items())))[1] <= now:
            del self._until[oldest[0]]

    def _lost(self, error: Exception) -> None:
        if self.is_current or not self._has_tried.is_set():
            log.warning("revocations do not arrive: revoked tokens are accepted", error=repr(error))
        self.is_current = False
        self._has_tried.set()
