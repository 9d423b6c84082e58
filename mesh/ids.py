"""Identifiers: UUIDv7, so that new rows land at the right end of every index (ADR-0001)."""

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """A new identifier; later ones sort after earlier ones of this process."""
    return uuid7()
