"""Attempts at redelivered events are recorded."""

from mesh.db.migrations import count_attempts

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    count_attempts()
