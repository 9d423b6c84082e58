"""Attempts at redelivered events are recorded."""

from mesh.db.migrations import count_attempts

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    count_attempts()
