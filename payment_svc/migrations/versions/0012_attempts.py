"""Attempts at redelivered events are recorded."""

from mesh.db.migrations import count_attempts

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    count_attempts()
