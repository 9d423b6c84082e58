"""The sandbox sends webhooks, as a real provider does: signed, over HTTP, again and again until they are accepted.

It sends those of events that no reply tells, such as a dispute. What a caller has been told is not sent as well: a
webhook for each charge would double the cost of a payment.
"""

from __future__ import annotations

import asyncio

import httpx
import orjson
import structlog

from mesh.db.database import Database, Row
from mesh.jobs import Periodic
from payment_svc.providers.sandbox import signatures
from payment_svc.providers.sandbox.tables import SENT, TAKE_DUE_WEBHOOKS

_INTERVAL_S = 0.5
_TIMEOUT_S = 5.0
_AT_ONCE = 20

log = structlog.get_logger(__name__)


class Sender:
    """Sends the webhooks that are due to `url`, signed with `secret`. Without both, it sends none."""

    def __init__(self, database: Database, *, url: str, secret: str) -> None:
        self._database = database
        self._url = url
        self._secret = secret
        self._client: httpx.AsyncClient | None = None
        self._job = Periodic("sandbox webhooks", _INTERVAL_S, self._send_due)

    async def start(self) -> None:
        """Begin to send."""
        if self._url and self._secret:
            self._client = httpx.AsyncClient(timeout=_TIMEOUT_S)
            await self._job.start()

    async def stop(self) -> None:
        """End after what is being sent."""
        if self._client is not None:
            await self._job.stop()
            await self._client.aclose()

    async def _send_due(self) -> bool:
        """Send a portion. Returns whether there may be more."""
        async with self._database.transaction() as transaction:
            due = await transaction.fetch(TAKE_DUE_WEBHOOKS, most=_AT_ONCE)
        results = await asyncio.gather(*(self._send(row) for row in due))
        if accepted := [row["id"] for row, is_accepted in zip(due, results, strict=True) if is_accepted]:
            async with self._database.transaction() as transaction:
                await transaction.execute(SENT, ids=accepted)
        return len(due) == _AT_ONCE

    async def _send(self, webhook: Row) -> bool:
        """Send one webhook once. Returns whether it was accepted."""
        assert self._client is not None
        body = orjson.dumps({"type": webhook["type"], "data": {"charge_key": webhook["charge_key"]}})
        headers = signatures.sign(self._secret, webhook["id"], body, now=self._database.clock.now())
        try:
            reply = await self._client.post(
                self._url, content=body, headers={"content-type": "application/json", **headers}
            )
        except httpx.HTTPError as error:
            log.info("webhook not sent", id=webhook["id"], error=repr(error))
            return False
        if not reply.is_success:
            log.warning("webhook not accepted", id=webhook["id"], status=reply.status_code)
        return reply.is_success
