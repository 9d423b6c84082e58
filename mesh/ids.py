"""Ids: UUIDv7, so that new rows are added at the end of every index (ADR-0001).

They use the database driver's subclass of the standard UUID, which is parsed and formatted in C. The ids of one order
are converted from and to text about sixty times.
"""

from uuid import UUID

import uuid_utils
from asyncpg.pgproto.pgproto import UUID as DriverUUID  # noqa: N811  # it is a class

FIRST_ID: UUID = DriverUUID("00000000-0000-0000-0000-000000000000")
"""The Nil UUID (RFC 9562): it sorts before every other id."""
LAST_ID: UUID = DriverUUID("ffffffff-ffff-ffff-ffff-ffffffffffff")
"""The Max UUID (RFC 9562): it sorts after every other id."""


def new_id() -> UUID:
    """A new id. Within a process, later ids sort after earlier ones."""
    return DriverUUID(uuid_utils.uuid7().bytes)


def parse_id(text: str) -> UUID:
    """The id in `text`: 32 hexadecimal digits, with or without dashes. Raises ValueError."""
    return DriverUUID(text)
