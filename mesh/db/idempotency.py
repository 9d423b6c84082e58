"""Idempotency of changes: a second call with the same key and request changes nothing and gets the stored reply.

The key, the caller, the method, a hash of the request and the reply are written in the transaction of the effect. A
failed attempt therefore leaves no row. While the first attempt is in progress in any process, a second one waits for
it in the database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from mesh.db.database import BulkInsert, Database, Row, Statement, Transaction
from mesh.db.recent import Recent
from mesh.db.schema import idempotency as table
from mesh.errors import AlreadyExists, InvalidArgument, Unavailable, Violation

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.rpc.call import Caller

HEADER = "idempotency-key"
RETENTION = timedelta(hours=24)
"""How long a reply is kept."""

_VALID = re.compile(r"[\x21-\x7e]{1,255}")

FIND = Statement(
    sa.select(table.c.digest, table.c.method, table.c.request_hash, table.c.reply).where(
        table.c.digest == sa.any_(sa.bindparam("digests", type_=sa.ARRAY(sa.LargeBinary)))
    )
)
_columns = (table.c.digest, table.c.caller, table.c.method, table.c.request_hash, table.c.reply)
CLAIM = BulkInsert(*_columns, returning=[table.c.digest], skip_existing=True, name="claim key")
WRITE_REPLY = Statement(
    sa.update(table)
    .where(table.c.digest == sa.bindparam("key_digest", type_=sa.LargeBinary))
    .values(reply=sa.bindparam("key_reply", type_=sa.LargeBinary))
)
_old = (
    sa.select(table.c.digest)
    .where(table.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval))
    .order_by(table.c.create_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("old")
)
PURGE = Statement(sa.delete(table).where(table.c.digest == _old.c.digest))


_after = sa.bindparam("after", type_=table.c.create_time.type)
# Read in the order in which they were written, so that a portion is a part of the table and not spread over all of it.
PORTION_END = Statement(
    sa.select(table.c.create_time)
    .where(table.c.create_time > _after)
    .order_by(table.c.create_time)
    .offset(sa.bindparam("most", type_=sa.Integer))
    .limit(1),
    name="read end of portion of replies",
)
ERASE = Statement(
    sa.delete(table).where(
        table.c.create_time.between(_after, sa.bindparam("until", type_=table.c.create_time.type)),
        sa.func.pg_catalog.position(table.c.reply, sa.bindparam("text", type_=sa.LargeBinary)) > 0,
    ),
    name="erase replies",
)
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class KeyTaken(Exception):
    """Another transaction has stored a reply under one of these keys. Read the stored replies to find out which."""


STORE_REPLIES = BulkInsert(*_columns, refusals={"idempotency_pkey": KeyTaken}, name="store reply")


class IdempotencyKeyReused(AlreadyExists):
    """The same caller has used the key for another request."""

    reason = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another request; take a new key for a new intent")


class Replay(Exception):
    """The change was made by an earlier call; `wire` is the stored reply."""

    def __init__(self, wire: bytes) -> None:
        super().__init__("replayed")
        self.wire = wire


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's idempotency key and the request that it identifies."""

    digest: bytes
    """32 bytes that identify caller, scope and key. The same text of another caller or scope is another key."""
    caller: str
    method: str
    request_hash: bytes
    """32 bytes, keyed with the idempotency key. Without the key it does not help to guess passwords in the request."""

    @classmethod
    def of(cls, text: str, caller: Caller, method: str, request: Message, *, scope: bytes = b"") -> IdempotencyKey:
        """The key in the header `text`. `scope`, at most 64 bytes, separates the keys of anonymous callers.

        Raises InvalidArgument / IDEMPOTENCY_KEY_INVALID unless `text` is 1 to 255 visible ASCII characters.
        """
        if _VALID.fullmatch(text) is None:
            raise InvalidArgument(
                "the idempotency key must be 1 to 255 visible ASCII characters",
                reason="IDEMPOTENCY_KEY_INVALID",
                violations=[Violation(HEADER, "must be 1 to 255 visible ASCII characters")],
            )
        key = text.encode()
        digest = blake2b(str(caller).encode() + b"\0" + key, key=scope, digest_size=32).digest()
        canonical = request.SerializeToString(deterministic=True)
        secret = blake2b(key, digest_size=32).digest()
        return cls(digest, str(caller), method, blake2b(canonical, key=secret, digest_size=32).digest())

    def outcome(self, row: Row) -> Replay | IdempotencyKeyReused:
        """The outcome of a call with this key, given the stored row of its digest."""
        if row["method"] == self.method and row["request_hash"] == self.request_hash:
            return Replay(row["reply"])
        return IdempotencyKeyReused()


Outcomes = dict[IdempotencyKey, Replay | IdempotencyKeyReused]
"""By key and request: the outcomes of the calls that must not run."""


class Retries:
    """Recognizes calls whose key this process has received before, among the last `most` keys.

    For hot paths, which so avoid a query for each new key. This only makes retries cheaper: a retry whose first attempt
    reached another process, or this one before a restart, is recognized when its row is written.
    """

    def __init__(self, *, most: int = 16_384) -> None:
        self._keys: Recent[bytes, None] = Recent(most=most)

    def __contains__(self, key: IdempotencyKey | None) -> bool:
        return key is not None and key.digest in self._keys

    def among(self, keys: Iterable[IdempotencyKey]) -> list[IdempotencyKey]:
        """The keys that were received before. All of `keys` are remembered."""
        asked = list(keys)
        known = self._keys.take(key.digest for key in asked)
        self._keys.put(dict.fromkeys(key.digest for key in asked))
        return [key for key in asked if key.digest in known]


async def find(database: Database, keys: Iterable[IdempotencyKey | None]) -> Outcomes:
    """The outcomes of the calls that have a stored reply. Runs one statement, or none if there are no keys."""
    sent = [key for key in keys if key is not None]
    if not sent:
        return {}
    async with database.reading() as reading:
        return await _outcomes(reading, sent)


def store_replies(transaction: Transaction, replies: Iterable[tuple[IdempotencyKey | None, bytes]]) -> None:
    """Store the replies under their keys at the commit, for a batch that has not claimed its keys.

    The transaction fails with KeyTaken if another one has stored a reply under one of these keys.
    Raises DuplicateKeys if two of the calls have the same key; `run_batch` then splits the batch.
    """
    rows: dict[bytes, tuple[Any, ...]] = {}
    for key, reply in replies:
        if key is not None:
            if key.digest in rows:
                raise DuplicateKeys
            rows[key.digest] = _row(key, reply)
    # All batches write in the order of the digests, so that two batches with the same keys cannot deadlock.
    transaction.add(STORE_REPLIES, [rows[digest] for digest in sorted(rows)])


async def claim(transaction: Transaction, key: IdempotencyKey | None) -> Replay | IdempotencyKeyReused | None:
    """Write the row of a call without a reply. Returns the outcome of the call if it has a stored reply, else None.

    Call this first in the transaction of an effect: a second attempt then waits until this transaction has ended.
    """
    if key is None or await transaction.insert(CLAIM, [_row(key, None)]):
        return None
    outcomes = await _outcomes(transaction, [key])
    if not outcomes:
        # The row existed when the insert ran, and was purged before it was read.
        raise Unavailable("the reply under this key has just been purged")
    return outcomes[key]


def store_reply(transaction: Transaction, key: IdempotencyKey, reply: bytes) -> None:
    """Store the reply under a key that this transaction has claimed, at the commit."""
    transaction.write(WRITE_REPLY, key_digest=key.digest, key_reply=reply)


async def erase(database: Database, text: str, *, portion: int = 10_000) -> None:
    """Delete all stored replies that contain `text`, such as the id of a person, `portion` replies in a transaction.

    This reads all replies of `RETENTION`. A retry of such a call runs again, so its effect must not be possible twice.
    """
    after = _FIRST
    while after < _LAST:
        async with database.transaction() as transaction:
            end = await transaction.fetch_one(PORTION_END, after=after, most=portion)
            until = end["create_time"] if end else _LAST
            await transaction.execute(ERASE, after=after, until=until, text=text.encode())
        after = until


def _row(key: IdempotencyKey, reply: bytes | None) -> tuple[Any, ...]:
    return (key.digest, key.caller, key.method, key.request_hash, reply)


class DuplicateKeys(Exception):
    """Two calls in a batch have the same key. In separate batches, the second one finds the reply of the first."""


async def _outcomes(reading: Transaction, keys: Sequence[IdempotencyKey]) -> Outcomes:
    rows = {row["digest"]: row for row in await reading.fetch(FIND, digests=[key.digest for key in keys])}
    return {key: key.outcome(rows[key.digest]) for key in keys if key.digest in rows}
