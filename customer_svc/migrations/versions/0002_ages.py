"""Indexes for what has had its time."""

from mesh.db.migrations import index_ages

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    index_ages()
