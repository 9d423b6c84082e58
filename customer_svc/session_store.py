"""Sessions and failed sign-ins, kept in Redis. Only signing in needs them: all else works while Redis is away."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import blake2b, sha256
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from customer_svc.domain import ClientLimited, CredentialsInvalid, SessionPeriod, SessionRevoked, SignInLimited
from mesh.errors import Unavailable
from mesh.ids import new_id
from mesh.patches.redis_py import patched
from mesh.rpc.revocations import REVOKE, SLACK_S, STREAM

BURST = 50
"""Sign-ins, and sign-ups, that one client may send at once after a pause."""

RETRY_WINDOW = timedelta(seconds=10)
"""After its first use, how long a refresh token may be sent again by a client that lost the reply."""

_MAX_GOOD_TOKENS = 8
"""Refresh tokens of one family that are good at a time: the newest successors of one token."""
_TIMEOUT_S = 1.0
_SIGN_UP_TIMEOUT_S = 0.25
"""How long a sign-up waits for Redis, which it can do without."""

# The attempts of the last window, by the time of their beginning: a window that slides, so that at no moment more
# than the limit lie behind it. KEYS[1] holds those with one email address from one client, KEYS[2] those from all
# clients but the ones that have signed in before, as KEYS[3] says. An attempt that is there already is this one, sent
# again on a new connection.
_BEGIN = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt, window = ARGV[1], tonumber(ARGV[2])
if redis.call('ZSCORE', KEYS[1], attempt) then
  return 0
end
local counted = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[5]) or 0) > now and 1 or 2
for each = 1, counted do
  redis.call('ZREMRANGEBYSCORE', KEYS[each], '-inf', now - window)
  if redis.call('ZCARD', KEYS[each]) >= tonumber(ARGV[2 + each]) then
    return redis.call('ZRANGE', KEYS[each], 0, 0, 'WITHSCORES')[2] + window - now
  end
end
for each = 1, counted do
  redis.call('ZADD', KEYS[each], now, attempt)
  redis.call('PEXPIRE', KEYS[each], window)
end
return 0
"""

# The attempt has not failed. KEYS are those of `_BEGIN`. ARGV: the attempt, the client from which it signed in (empty
# if it did not), and for how long that counts.
_END = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] ~= '' then
  local time = redis.call('TIME')
  local now, lifetime = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  redis.call('ZADD', KEYS[3], now + lifetime, ARGV[2])
  redis.call('PEXPIRE', KEYS[3], lifetime)
end
return 0
"""

# A bucket of tokens, of which only the time is kept when it will be full again: a token is there unless that is more
# than the whole bucket away.
_ADMIT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + interval
local wait = full - now - burst * interval
if wait > 0 then
  return math.ceil(wait)
end
redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.ceil(full - now))
return 0
"""

# A family that ends takes the access tokens of its session with it. KEYS: the family and the stream of revocations.
_END_FAMILY = (
    REVOKE
    + """
local function end_family(family, customer, seconds)
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', 'sessions:' .. customer, family)
  revoke(KEYS[2], family, seconds)
end
"""
)

# ARGV: the digest of the token that was sent, and the arguments of `end_family`.
_CLOSE = (
    _END_FAMILY
    + """
local customer, good, used = unpack(redis.call('HMGET', KEYS[1], 'customer_id', 'token_sha256', 'used_sha256'))
if customer and (ARGV[1] == used or string.find(good, ARGV[1], 1, true)) then
  end_family(ARGV[2], customer, ARGV[3])
end
"""
)

# KEYS: the families of the customer and the stream of revocations.
_END_ALL = (
    REVOKE
    + """
for _, family in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('DEL', 'session:' .. family)
end
redis.call('DEL', KEYS[1])
revoke(KEYS[2], ARGV[1], ARGV[2])
"""
)

# Rotation. KEYS: the family and the stream of revocations. ARGV: the digests of the token that was sent and of its
# successor, the retry window in ms, how many tokens may be good, and the arguments of `end_family`. `token_sha256` has
# the digests of all good tokens, separated by blanks: more than one while a used token is sent again and no successor
# has been used. To run the script twice with the same arguments has the effect of running it once.
_REFRESH = (
    _END_FAMILY
    + """
local customer, good, used, used_ms = unpack(redis.call('HMGET', KEYS[1], 'customer_id', 'token_sha256', 'used_sha256',
  'used_ms'))
if not customer then
  return {'unknown', ''}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local sent, successor, window, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local digests = {}
for digest in string.gmatch(good, '%S+') do
  digests[#digests + 1] = digest
  if digest == sent then
    redis.call('HSET', KEYS[1], 'token_sha256', successor, 'used_sha256', sent, 'used_ms', now)
    return {'refreshed', customer}
  end
end
if sent ~= used or now - tonumber(used_ms) > window then
  end_family(ARGV[5], customer, ARGV[6])
  return {'reused', customer}
end
if digests[#digests] ~= successor then
  digests[#digests + 1] = successor
  redis.call('HSET', KEYS[1], 'token_sha256', table.concat(digests, ' ', math.max(1, #digests - most + 1)))
end
return {'refreshed', customer}
"""
)

log = structlog.get_logger(__name__)


class OpenSession(NamedTuple):
    """A session family and the refresh token that is good now."""

    id: UUID
    """The id of the family, which the access tokens of the session name."""
    customer_id: UUID
    refresh_token: str


class SessionStore:
    """Redis, as the customer service uses it. Every method raises Unavailable when Redis does not answer.

    `session:<family>` is a hash for all refresh tokens that descend from one sign-in: the customer, the SHA-256 of each
    good token, and that of the token used last with the time of its first use. `sessions:<customer>` is a sorted set of
    the families of a customer, by the time when they expire. `sign-in:{<email>}` and `sign-in:{<email>}:<client>` are
    sorted sets of attempts; `signed-in:{<email>}` is one of the clients from which one has succeeded, by the time when
    that stops to count. `rate:<kind>:<client>` is a bucket of tokens. Email addresses and clients are digests. A client
    is a string that identifies where requests come from, empty when that is unknown.
    """

    def __init__(
        self,
        url: str,
        *,
        lifetime: timedelta,
        token_lifetime: timedelta,
        failures: int,
        failures_per_email: int,
        window: timedelta,
        rate: float,
    ) -> None:
        """Session and limits.

        A session lives for `lifetime`, its access tokens for `token_lifetime`. In a `window`, at most `failures`
        sign-ins with one email address may fail for one client, and `failures_per_email` for all clients from which
        nobody has signed in with it. A client may sign in `rate` times per second in the long run, and sign up as
        often; 0 is no limit.
        """
        self._lifetime = lifetime
        self._revoked_for = round(token_lifetime.total_seconds()) + SLACK_S
        self._failures = failures
        self._failures_per_email = failures_per_email
        self._window = window
        self._rate = rate
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
        self._redis = patched(Redis.from_pool(pool))
        self._begin = self._redis.register_script(_BEGIN)
        self._end = self._redis.register_script(_END)
        self._admit = self._redis.register_script(_ADMIT)
        self._refresh = self._redis.register_script(_REFRESH)
        self._close = self._redis.register_script(_CLOSE)
        self._end_all = self._redis.register_script(_END_ALL)

    async def start(self) -> None:
        """Nothing to wait for: it connects when it is used."""

    async def stop(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def open(self, customer_id: UUID, now: datetime) -> OpenSession:
        """Begin a session family. Of its refresh token only a digest is kept.

        The token names its family, so that a used one that comes back leads to what must then be revoked.
        """
        family, secret = new_id(), secrets.token_urlsafe(32)
        key, families = _session(family), _sessions_of(customer_id)
        with _answering():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(
                    key,
                    mapping={
                        "customer_id": str(customer_id),
                        "token_sha256": _sha256(secret),
                        "create_time": now.isoformat(),
                    },
                )
                pipeline.expire(key, self._lifetime)
                pipeline.zremrangebyscore(families, "-inf", now.timestamp())
                pipeline.zadd(families, {str(family): (now + self._lifetime).timestamp()})
                pipeline.expire(families, self._lifetime)
                await pipeline.execute()
        return OpenSession(family, customer_id, f"{family}.{secret}")

    async def refresh(self, refresh_token: str) -> OpenSession:
        """Replace a refresh token by a new one of the same family.

        A token is good once. A used one gets another successor within `RETRY_WINDOW` of its first use, as long as no
        successor has been used. Any other token of the family that is not good ends the family, as `close` does.
        Raises SessionRevoked.
        """
        family, secret = _parsed(refresh_token)
        if family is None:
            raise SessionRevoked
        successor = secrets.token_urlsafe(32)
        window_ms = round(RETRY_WINDOW.total_seconds() * 1000)
        with _answering():
            outcome, customer_id = await self._refresh(
                keys=[_session(family), STREAM],
                args=[
                    *(_sha256(secret), _sha256(successor), window_ms, _MAX_GOOD_TOKENS),
                    *(str(family), self._revoked_for),
                ],
            )
        if outcome == "reused":
            log.warning("refresh token reused", customer_id=customer_id)
        if outcome != "refreshed":
            raise SessionRevoked
        return OpenSession(family, UUID(customer_id), f"{family}.{successor}")

    async def close(self, refresh_token: str) -> None:
        """Revoke the family of a refresh token and its access tokens.

        The token is good, or the one that was used last. Any other one changes nothing.
        """
        family, secret = _parsed(refresh_token)
        if family is not None:
            with _answering():
                await self._close(
                    keys=[_session(family), STREAM], args=[_sha256(secret), str(family), self._revoked_for]
                )

    async def end_all(self, customer_id: UUID) -> None:
        """End all sessions of a customer, who is not to sign in any more, and revoke all their access tokens.

        Until the access tokens issued so far have expired, no access token of the customer is accepted, new ones
        included. A sign-in or refresh in progress fails if the customer can no longer be read (`Sessions`).
        """
        with _answering():
            await self._end_all(keys=[_sessions_of(customer_id), STREAM], args=[str(customer_id), self._revoked_for])

    async def forget_sign_ins(self, email: str) -> None:
        """Delete what is kept of the sign-ins with an email address, whose customer is to be erased.

        Of failures, those counted for each client stay until the end of their window.
        """
        attempts, signed_in = _sign_ins_of(email)
        with _answering():
            await self._redis.delete(attempts, signed_in)

    async def list_open(self, customer_id: UUID) -> list[SessionPeriod]:
        """The open sessions of a customer, the one that expires first before the others."""
        with _answering():
            families: Any = await self._redis.zrange(_sessions_of(customer_id), 0, -1, withscores=True)
            async with self._redis.pipeline(transaction=False) as pipeline:
                for family, _ in families:
                    pipeline.hget(_session(UUID(family)), "create_time")
                created = await pipeline.execute()
        return [
            SessionPeriod(UUID(family), datetime.fromisoformat(create_time), datetime.fromtimestamp(expire, UTC))
            for (family, expire), create_time in zip(families, created, strict=True)
            if create_time is not None
        ]

    async def admit_sign_in(self, client: str) -> None:
        """Count a sign-in against the client's rate. Raises ClientLimited."""
        await self._take_token("sign-in", client)

    async def admit_sign_up(self, client: str) -> None:
        """Count a sign-up against the client's rate. Raises ClientLimited; while Redis does not answer, nothing."""
        with suppress(Unavailable):
            await self._take_token("sign-up", client, timeout=_SIGN_UP_TIMEOUT_S)

    async def _take_token(self, kind: str, client: str, *, timeout: float | None = None) -> None:
        # Calls whose client is unknown come from holders of a certificate of the mesh.
        if not self._rate or not client:
            return
        with _answering():
            async with asyncio.timeout(timeout):
                wait_ms = await self._admit(keys=[f"rate:{kind}:{_digest(client)}"], args=[1000 / self._rate, BURST])
        if wait_ms:
            raise ClientLimited(wait_ms / 1000)

    @asynccontextmanager
    async def attempt(self, email: str, client: str) -> AsyncIterator[None]:
        """An attempt to sign in; it has failed when the block raises CredentialsInvalid, else it does not count.

        It counts from the start, so that attempts side by side do not pass the limit together.
        Raises SignInLimited.
        """
        attempts, signed_in = _sign_ins_of(email)
        network = _digest(client)
        keys, attempt = [f"{attempts}:{network}", attempts, signed_in], str(new_id())
        window_ms, lifetime_ms = (round(each.total_seconds() * 1000) for each in (self._window, self._lifetime))
        with _answering():
            wait_ms = await self._begin(
                keys=keys, args=[attempt, window_ms, self._failures, self._failures_per_email, network]
            )
        if wait_ms:
            raise SignInLimited(wait_ms / 1000)
        has_failed, has_succeeded = False, False
        try:
            yield
            has_succeeded = True
        except CredentialsInvalid:
            has_failed = True
            raise
        finally:
            if not has_failed:
                with _answering():
                    await self._end(keys=keys, args=[attempt, network if has_succeeded and client else "", lifetime_ms])


def _session(family: UUID) -> str:
    return f"session:{family}"


def _sessions_of(customer_id: UUID) -> str:
    return f"sessions:{customer_id}"


def _sign_ins_of(email: str) -> tuple[str, str]:
    """The keys of the attempts with an email address, and of the clients that have signed in with it."""
    # The braces keep the keys of one email address on one node of a cluster.
    account = f"{{{_digest(email)}}}"
    return f"sign-in:{account}", f"signed-in:{account}"


def _parsed(refresh_token: str) -> tuple[UUID | None, str]:
    """The family and the secret of a refresh token; no family when it is not a token of this store."""
    family, _, secret = refresh_token.partition(".")
    try:
        return UUID(family), secret
    except ValueError:
        return None, ""


def _sha256(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        log.warning("redis lost", error=repr(error))
        raise Unavailable("sessions cannot be kept now", metadata={"dependency": "redis"}) from error
