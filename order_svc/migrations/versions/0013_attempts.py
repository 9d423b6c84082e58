"""Attempts at redelivered events are recorded."""

from mesh.db.migrations import count_attempts

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    count_attempts()
