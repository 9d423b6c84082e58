"""What a load cost PostgreSQL: its statements by name, commits, and write-ahead log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from mesh.db.database import names
from stack.servers import DATABASES

_STATEMENTS = """
SELECT d.datname AS database, s.query, s.calls, s.rows
FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.userid
WHERE r.rolname = ANY($1) AND s.query NOT LIKE 'BEGIN%' AND s.query NOT LIKE 'ROLLBACK%'
"""
_COMMIT = "COMMIT"
UNNAMED = "other"
"""What the runtime sends without a name, such as the settings of a session."""


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of PostgreSQL at one moment."""

    log_position: int
    """Bytes of write-ahead log since the server was made."""
    calls: Counter[tuple[str, str]]
    """By database and name. Statements that are sent together have their names joined by ` + `."""
    rows: Counter[tuple[str, str]]
    """The rows of the same: of statements that are sent together, those of the last."""

    @classmethod
    async def read(cls, connection: asyncpg.Connection) -> Counters:
        """Raises UndefinedTableError when the server has no pg_stat_statements."""
        calls: Counter[tuple[str, str]] = Counter()
        rows: Counter[tuple[str, str]] = Counter()
        for row in await connection.fetch(_STATEMENTS, list(DATABASES)):
            text = row["query"]
            name = _COMMIT if text.startswith(_COMMIT) else " + ".join(names(text)) or UNNAMED
            calls[row["database"], name] += row["calls"]
            rows[row["database"], name] += row["rows"]
        position = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        return cls(position, calls, rows)


@dataclass(frozen=True, slots=True)
class Executed:
    """How often a statement was executed, and how many rows it had each time: the mean batch, of one for a batch."""

    calls: int
    rows_per_call: float


@dataclass(frozen=True, slots=True)
class DatabaseCost:
    """What a load cost the server."""

    statements: int
    """Without BEGIN, COMMIT and ROLLBACK."""
    commits: int
    """Of transactions that were begun. A change that is a single statement commits by itself and is not counted."""
    log_bytes: int
    by_name: Mapping[str, Mapping[str, Executed]]
    """By database and name, the most frequent first."""

    @classmethod
    def between(cls, before: Counters, after: Counters) -> DatabaseCost:
        """What happened from one moment to the other."""
        calls, rows = after.calls - before.calls, after.rows - before.rows
        commits = sum(count for (_, name), count in calls.items() if name == _COMMIT)
        by_name: dict[str, dict[str, Executed]] = {}
        for (database, name), count in calls.most_common():
            if name != _COMMIT:
                by_name.setdefault(database, {})[name] = Executed(count, rows[database, name] / count)
        return cls(calls.total() - commits, commits, after.log_position - before.log_position, by_name)
