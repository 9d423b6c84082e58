"""What a load cost PostgreSQL: statements, commits, log, and how many rows its hot statements took at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass

import asyncpg

from stack.servers import DATABASES

_LOOK = re.compile("SELECT .*mesh.outbox.* UNION ALL ", re.DOTALL)
"""What a relay looks for events with."""
_INBOX = re.compile(r"(WITH .*\) )?INSERT INTO mesh.inbox ", re.DOTALL)
"""What a consumer records a batch with, alone or after what the batch has written."""
HOT_PATHS = {
    "placing orders": ("orders", re.compile(r"WITH part0 AS \(INSERT INTO mesh.idempotency ")),
    "order: payment events": ("orders", _INBOX),
    "payment: order events": ("payment", _INBOX),
    "product: order events": ("product", _INBOX),
    "charging": ("payment", re.compile(r"(WITH .*\) )?INSERT INTO sandbox.charges ", re.DOTALL)),
    "settling payments": ("payment", re.compile(r"WITH part0 AS \(UPDATE payments SET ")),
    "order: relay": ("orders", _LOOK),
    "payment: relay": ("payment", _LOOK),
    "product: relay": ("product", _LOOK),
}
"""By what is done: the database, and the one statement that each batch of it runs once, a row for each of its items."""

_STATEMENTS = """
SELECT d.datname AS database, s.queryid, s.query, sum(s.calls)::bigint AS calls, sum(s.rows)::bigint AS rows
FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.userid
WHERE r.rolname = ANY($1) GROUP BY 1, 2, 3
"""
_BRACKETS = ("BEGIN", "COMMIT", "ROLLBACK")


@dataclass(frozen=True, slots=True)
class Counters:
    """PostgreSQL's counters at one moment."""

    log_position: int
    """Bytes of write-ahead log since ever."""
    statements: dict[tuple[str, int], tuple[str, int, int]]
    """Text, calls and rows of each statement of the services' roles, by database and id."""

    @classmethod
    async def read(cls, connection: asyncpg.Connection) -> Counters:
        """Raises UndefinedTableError when the server has no pg_stat_statements."""
        rows = await connection.fetch(_STATEMENTS, list(DATABASES))
        position = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        return cls(
            position,
            {(row["database"], row["queryid"]): (row["query"], row["calls"], row["rows"]) for row in rows},
        )


@dataclass(frozen=True, slots=True)
class DatabaseCost:
    """What a load cost the server. Statements are without BEGIN and COMMIT."""

    statements: int
    commits: int
    """Of transactions that were begun; a change outside one commits by itself and is not among them."""
    log_bytes: int
    statements_by_database: dict[str, int]
    batches: dict[str, float]
    """The mean batch of each of `HOT_PATHS` that was taken."""

    @classmethod
    def between(cls, before: Counters, after: Counters) -> DatabaseCost:
        """What happened from one moment to the other."""
        statements = dict.fromkeys(DATABASES.values(), 0)
        commits = 0
        taken: dict[str, tuple[int, int]] = {}
        for place, (text, all_calls, all_rows) in after.statements.items():
            _, calls_before, rows_before = before.statements.get(place, ("", 0, 0))
            calls, rows = all_calls - calls_before, all_rows - rows_before
            database = place[0]
            if text.startswith(_BRACKETS):
                commits += calls if text.startswith("COMMIT") else 0
                continue
            statements[database] = statements.get(database, 0) + calls
            for path, (of, statement) in HOT_PATHS.items():
                if database == of and statement.match(text):
                    known = taken.get(path, (0, 0))
                    taken[path] = known[0] + calls, known[1] + rows
        return cls(
            statements=sum(statements.values()),
            commits=commits,
            log_bytes=after.log_position - before.log_position,
            statements_by_database=statements,
            batches={path: taken[path][1] / taken[path][0] for path in HOT_PATHS if path in taken and taken[path][0]},
        )
