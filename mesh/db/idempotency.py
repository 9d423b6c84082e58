"""One rule for every change: the same key and the same request get the same reply, and change nothing twice.

Key, caller, method, hash of the request and the reply are written in the transaction of the effect. So a failed
attempt leaves no row, and a key whose first attempt is still under way makes the second one wait in the database for
the first to end, in whichever process that runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
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
SETTLE = Statement(
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


class KeyTaken(Exception):
    """Another transaction has answered one of these keys: look which."""


ANSWER = BulkInsert(*_columns, refusals={"idempotency_pkey": KeyTaken}, name="store reply")


class IdempotencyKeyReused(AlreadyExists):
    """The key was used before, by the same caller, for another request."""

    reason = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another request; take a new key for a new intent")


class Replay(Exception):
    """The change was made before; `wire` is the stored reply, as it was sent."""

    def __init__(self, wire: bytes) -> None:
        super().__init__("replayed")
        self.wire = wire


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key together with the request it stands for."""

    digest: bytes
    """32 bytes for caller, scope and key: the same text of another caller, or in another scope, is another key."""
    caller: str
    method: str
    request_hash: bytes
    """32 bytes, keyed with the idempotency key, so that a guess at a password in the request cannot be tried out."""

    @classmethod
    def of(cls, text: str, caller: Caller, method: str, request: Message, *, scope: bytes = b"") -> IdempotencyKey:
        """The key that the header `text` is. `scope`, at most 64 bytes, tells apart keys of anonymous callers.

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
        """What a call with this key gets, given the stored row of its digest."""
        if row["method"] == self.method and row["request_hash"] == self.request_hash:
            return Replay(row["reply"])
        return IdempotencyKeyReused()


Outcomes = dict[IdempotencyKey, Replay | IdempotencyKeyReused]
"""By key together with its request: the calls that need not, or must not, be carried out."""


class Retries:
    """Tells the calls whose key has come to this process before, as far back as `most` keys.

    For hot paths that would else look each new key up in vain. It makes a retry cheap, never right: one whose first
    attempt came to another process, or before a restart, is known for a retry only when its row is written.
    """

    def __init__(self, *, most: int = 16_384) -> None:
        self._keys: Recent[bytes, None] = Recent(most=most)

    def __contains__(self, key: IdempotencyKey | None) -> bool:
        return key is not None and key.digest in self._keys

    def among(self, keys: Iterable[IdempotencyKey]) -> list[IdempotencyKey]:
        """Those of these keys that came before. All of them are known from now on."""
        asked = list(keys)
        known = self._keys.take(key.digest for key in asked)
        self._keys.put(dict.fromkeys(key.digest for key in asked))
        return [key for key in asked if key.digest in known]


async def find(database: Database, keys: Iterable[IdempotencyKey | None]) -> Outcomes:
    """The calls with these keys that were answered before, in one statement; without any key in none."""
    sent = [key for key in keys if key is not None]
    if not sent:
        return {}
    async with database.reading() as reading:
        return await _outcomes(reading, sent)


def store_replies(transaction: Transaction, replies: Iterable[tuple[IdempotencyKey | None, bytes]]) -> None:
    """Write the replies under their keys at the commit: for a batch that claims no keys beforehand.

    The transaction then fails with KeyTaken when another one has stored a reply under one of these keys.
    Raises DuplicateKeys when two of the calls have one key; in `run_batch` that sets them apart.
    """
    rows: dict[bytes, tuple[Any, ...]] = {}
    for key, reply in replies:
        if key is not None:
            if key.digest in rows:
                raise DuplicateKeys
            rows[key.digest] = _row(key, reply)
    # In the order of the digest, as everywhere: two batches with the same keys must not wait for each other.
    transaction.add(ANSWER, [rows[digest] for digest in sorted(rows)])


async def claim(transaction: Transaction, key: IdempotencyKey | None) -> Replay | IdempotencyKeyReused | None:
    """Write the row of a call that is not answered yet; what it gets if it was answered before.

    First thing in the transaction of an effect: from here on a second attempt waits until this one has ended.
    """
    if key is None or await transaction.insert(CLAIM, [_row(key, None)]):
        return None
    outcomes = await _outcomes(transaction, [key])
    if not outcomes:
        # Dropped as too old since it was in the way: neither claimed nor answered.
        raise Unavailable("the reply under this key was dropped just now")
    return outcomes[key]


def store_reply(transaction: Transaction, key: IdempotencyKey, reply: bytes) -> None:
    """Write the reply under a key that this transaction has claimed, at the commit."""
    transaction.write(SETTLE, key_digest=key.digest, key_reply=reply)


def _row(key: IdempotencyKey, reply: bytes | None) -> tuple[Any, ...]:
    return (key.digest, key.caller, key.method, key.request_hash, reply)


class DuplicateKeys(Exception):
    """Two calls with one key are in one batch; apart, the second finds the reply of the first."""


async def _outcomes(reading: Transaction, keys: Sequence[IdempotencyKey]) -> Outcomes:
    rows = {row["digest"]: row for row in await reading.fetch(FIND, digests=[key.digest for key in keys])}
    return {key: key.outcome(rows[key.digest]) for key in keys if key.digest in rows}
