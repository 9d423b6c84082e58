"""Sessions and failed sign-ins, kept in Redis. Only signing in needs them: all else works while Redis is away."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from hashlib import blake2b, sha256
from uuid import UUID

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from customer_svc.domain import CredentialsInvalid, SignInLimited
from mesh.errors import Unavailable
from mesh.ids import new_id

_TIMEOUT_S = 1.0

# The attempts of the last window, by the time of their beginning: a window that slides, so that at no moment more
# than the limit lie behind it. An attempt that is there already is this one, sent again on a new connection.
_BEGIN = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt, limit, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
if redis.call('ZSCORE', KEYS[1], attempt) then
  return 0
end
if redis.call('ZCARD', KEYS[1]) >= limit then
  return redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] + window - now
end
redis.call('ZADD', KEYS[1], now, attempt)
redis.call('PEXPIRE', KEYS[1], window)
return 0
"""

log = structlog.get_logger(__name__)


class SessionStore:
    """Redis, as the customer service uses it. Every method raises Unavailable when Redis does not answer.

    `session:<family>` is a hash for all refresh tokens that descend from one sign-in: whose it is, and the SHA-256 of
    the token that is good now. `sign-in:<email digest>` is a sorted set of attempts.
    """

    def __init__(self, url: str, *, lifetime: timedelta, failures: int, window: timedelta) -> None:
        """A session lives for `lifetime`; at most `failures` sign-ins with one email address may fail in a `window`."""
        self._lifetime = lifetime
        self._failures = failures
        self._window = window
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=16,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            # Once more, at once: a connection may have died in the pool. Whatever is sent may be sent twice.
            retry=Retry(NoBackoff(), 1),
            decode_responses=True,
        )
        self._redis = Redis.from_pool(pool)
        self._begin = self._redis.register_script(_BEGIN)

    async def start(self) -> None:
        """Nothing to wait for: it connects when it is used."""

    async def stop(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def open(self, customer_id: UUID, now: datetime) -> str:
        """Begin a session family; its refresh token, of which only a digest is kept.

        The token names its family, so that a used one that comes back leads to what must then be revoked.
        """
        family, secret = str(new_id()), secrets.token_urlsafe(32)
        key = f"session:{family}"
        with _answering():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(
                    key,
                    mapping={
                        "customer_id": str(customer_id),
                        "token_sha256": sha256(secret.encode()).hexdigest(),
                        "create_time": now.isoformat(),
                    },
                )
                pipeline.expire(key, self._lifetime)
                await pipeline.execute()
        return f"{family}.{secret}"

    @asynccontextmanager
    async def attempt(self, email: str) -> AsyncIterator[None]:
        """An attempt to sign in; it has failed when the block raises CredentialsInvalid, else it does not count.

        It counts from the start, so that attempts side by side do not pass the limit together.
        Raises SignInLimited.
        """
        key = f"sign-in:{blake2b(email.encode(), digest_size=16).hexdigest()}"
        attempt = str(new_id())
        window_ms = round(self._window.total_seconds() * 1000)
        with _answering():
            wait_ms = await self._begin(keys=[key], args=[attempt, self._failures, window_ms])
        if wait_ms:
            raise SignInLimited(wait_ms / 1000)
        has_failed = False
        try:
            yield
        except CredentialsInvalid:
            has_failed = True
            raise
        finally:
            if not has_failed:
                with _answering():
                    await self._redis.zrem(key, attempt)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        log.warning("redis lost", error=repr(error))
        raise Unavailable("sessions cannot be kept now", metadata={"dependency": "redis"}) from error
