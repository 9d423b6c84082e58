"""Alembic's entry; the work is the runtime's."""

from mesh.migrations import run_env

run_env()
