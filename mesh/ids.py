"""Identifiers: UUIDv7, so that new rows land at the right end of every index (ADR-0001).

They are UUIDs of the database driver's own kind, a subclass of the standard one that is read and written in C: the ids
of an order go in and out of text some sixty times on its way.
"""

from uuid import UUID

import uuid_utils
from asyncpg.pgproto.pgproto import UUID as DriverUUID  # noqa: N811  # a class, whatever its letters


def new_id() -> UUID:
    """A new identifier; later ones sort after earlier ones of this process."""
    return DriverUUID(uuid_utils.uuid7().bytes)


def parse_id(text: str) -> UUID:
    """The identifier in `text`: 32 hexadecimal digits, with dashes or without. Raises ValueError."""
    return DriverUUID(text)
