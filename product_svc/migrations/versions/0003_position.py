"""Events are not marked when they are published."""

from mesh.db.migrations import publish_by_position

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    publish_by_position()
