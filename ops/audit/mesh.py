"""What an audit needs to know of a mesh."""

from __future__ import annotations

from typing import Protocol

DATABASES = {"order": "orders", "payment": "payment", "product": "product", "customer": "customer"}
"""The database of each service."""


class Mesh(Protocol):
    """Where the databases and streams of a mesh are."""

    @property
    def nats_url(self) -> str:
        """A NATS user who may read all streams."""

    def audit_url(self, database: str) -> str:
        """The URL of a database, as a role that may read all of it and change nothing."""
