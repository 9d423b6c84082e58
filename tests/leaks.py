"""Where given texts are to be found in what a mesh writes: in its files, and in its databases."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import asyncpg

Places = dict[str, set[str]]
"""By text: the files, or the tables, that hold it."""


def in_files(folder: Path, texts: Collection[str]) -> Places:
    """The files below `folder` that hold each of the texts, by their path in it, byte for byte."""
    found: Places = {text: set() for text in texts}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for text in texts:
            if text.encode() in content:
                found[text].add(str(path.relative_to(folder)))
    return found


async def in_database(connection: asyncpg.Connection, texts: Collection[str]) -> Places:
    """The tables, as `schema.table`, of which some row holds each of the texts in some column, of bytes as well."""
    found: Places = {text: set() for text in texts}
    tables = await connection.fetch(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'"
    )
    for schema, table in tables:
        # The names are the database's own.
        for row in await connection.fetch(f'SELECT * FROM "{schema}"."{table}"'):
            for content in map(_bytes, row.values()):
                for text in texts:
                    if text.encode() in content:
                        found[text].add(f"{schema}.{table}")
    return found


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
