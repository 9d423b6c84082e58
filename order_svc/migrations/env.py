"""Alembic's entry; the work is the runtime's."""

from mesh.db.migrations import run_env

run_env()
