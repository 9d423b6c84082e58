"""PostgreSQL: statements written in SQLAlchemy Core, compiled once, run by asyncpg (ADR-0002)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from mesh.clock import DatabaseClock
from mesh.db import failures
from mesh.db.connections import Connections
from mesh.errors import MeshError, StaleWrite, Unavailable

_DIALECT = asyncpg_dialect.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves its dialects untyped

Refusals = Mapping[str, type[Exception]]
"""What it means when a constraint is violated: by its name, or `table.column` for a NOT NULL."""


class Statement:
    """A SQLAlchemy Core statement, compiled for the driver when it is made. It fails with what `refusals` say.

    Its `name` is a comment at the end of its text (pg_stat_statements drops one at the beginning), so that PostgreSQL's
    log and statistics show it. The default is the operation and the table, as in `add orders`. Names are different
    within a service.
    """

    __slots__ = ("_defaults", "_order", "_required", "name", "refusals", "sql")

    def __init__(self, clause: sa.ClauseElement, *, name: str = "", refusals: Refusals | None = None) -> None:
        compiled = clause.compile(dialect=_DIALECT)
        self.refusals = refusals or {}
        self.name = name or _default_name(clause)
        self.sql = f"{compiled} /* {self.name} */"
        self._order: Sequence[str] = compiled.positiontup or ()  # type: ignore[attr-defined]  # set by numeric dialects
        self._defaults = compiled.params
        self._required = frozenset(name for name, bind in compiled.binds.items() if bind.required)  # type: ignore[attr-defined]

    def arguments(self, values: dict[str, Any]) -> list[Any]:
        """The driver's positional arguments for these parameters. Raises TypeError when one is missing or unknown."""
        if not self._required <= values.keys() or not values.keys() <= self._defaults.keys():
            raise TypeError(f"{self.sql} takes {sorted(self._required)}, not {sorted(values)}")
        return [values[name] if name in values else self._defaults[name] for name in self._order]


def _default_name(clause: sa.ClauseElement) -> str:
    match clause:
        case sa.Insert():
            return f"add {clause.table.description}"
        case sa.Update():
            return f"write {clause.table.description}"
        case sa.Delete():
            return f"delete {clause.table.description}"
        case sa.Select() if tables := clause.get_final_froms():
            operation = "read" if clause._for_update_arg is None else "lock"  # noqa: SLF001 - nothing public tells
            table = tables[0]
            while isinstance(table, sa.Join):
                table = table.left
            return f"{operation} {table.description}"
        case _:
            return "read"


def names(sql: str) -> list[str]:
    """The names of the statements in a text that PostgreSQL was sent."""
    return _NAME.findall(sql)


_NAME = re.compile(r"/\* ([^*]+) \*/")


def unnested(
    columns: Mapping[str, tuple[str, sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]]],
) -> sa.TableValuedAlias:
    """Any number of rows for a statement: by parameter, which is an array, the name and type of its column."""
    arrays = (sa.bindparam(parameter, type_=sa.ARRAY(kind)) for parameter, (_, kind) in columns.items())
    named = (sa.column(name, kind) for name, kind in columns.values())
    return sa.func.unnest(*arrays).table_valued(*named, name="row").render_derived()


class BulkInsert(Statement):
    """Inserts any number of rows with one statement, one array a column (`unnest`).

    `rows` are tuples in the order of `columns`. With `skip_existing` a row whose key is there already is left out,
    once a transaction that is writing that key right now has ended; `returning` tells which rows went in.
    """

    def __init__(
        self,
        *columns: sa.Column[Any],
        name: str = "",
        returning: Sequence[sa.Column[Any]] = (),
        skip_existing: bool = False,
        refusals: Refusals | None = None,
    ) -> None:
        rows = unnested({column.name: (column.name, column.type) for column in columns})
        insert = postgresql.insert(columns[0].table).from_select(
            [column.name for column in columns], sa.select(rows), include_defaults=False
        )
        if skip_existing:
            insert = insert.on_conflict_do_nothing()
        super().__init__(insert.returning(*returning) if returning else insert, name=name, refusals=refusals)


def unless_stale(
    guard: sa.ColumnElement[Any], known: sa.ColumnElement[Any], new: sa.ColumnElement[Any]
) -> sa.ColumnElement[Any]:
    """For an UPDATE: the `new` value of a column if `guard` has the `known` one, else NULL, which NOT NULL refuses.

    So a row can be written without reading or locking it first: the transaction fails as a whole if another one has
    changed it. Add `stale_write(column)` to the refusals of the statement. A row that is gone is not noticed.
    """
    return sa.case((guard == known, new))


def stale_write(column: sa.Column[Any]) -> Refusals:
    """What it means when a column that is written `unless_stale` is left without a value."""
    return {f"{column.table.name}.{column.name}": StaleWrite}


@lru_cache(maxsize=1024)
def together(statements: tuple[Statement, ...]) -> str:
    """One statement that does what these do, their parameters one after another.

    None of them sees what another does: they must touch different rows.

    The result is cached, so pass statements that are made once.
    """
    parts: list[str] = []
    taken = 0
    for statement in statements:
        parts.append(_shifted(statement.sql, taken))
        taken += len(set(_PARAMETER.findall(statement.sql)))
    *first, last = parts
    return (
        f"WITH {', '.join(f'part{number} AS ({part})' for number, part in enumerate(first))} {last}" if first else last
    )


def _shifted(sql: str, by: int) -> str:
    return _PARAMETER.sub(lambda match: f"${int(match[1]) + by}", sql)


_PARAMETER = re.compile(r"\$(\d+)")

Row = asyncpg.Record


class Transaction:
    """A transaction under way: statements, and what is to be written or done at its end.

    What only writes (`write`, `add`) is not sent at once but together with all that only writes beside it, before the
    next statement that reads or at the commit: one round trip instead of many. A transaction that is nothing but such
    writes is a single statement, without BEGIN and COMMIT.

    Use cases get it from `Database.transaction` or `mesh.db.unit_of_work.UnitOfWork`, never make it.
    """

    __slots__ = ("_begun", "_connection", "_database", "_on_commit", "_writes", "returned")

    def __init__(self, connection: asyncpg.Connection, database: Database, *, begun: bool = False) -> None:
        self._connection = connection
        self._database = database
        self._begun = begun
        self._writes: list[tuple[Statement, Sequence[Any]]] = []
        self.returned: list[Row] = []
        """What the last of the writes that were sent together returned."""
        self._on_commit: list[Callable[[], object]] = []

    async def fetch(self, statement: Statement, **values: Any) -> list[Row]:
        """All rows."""
        arguments = statement.arguments(values)
        await self._catch_up()
        return await self._run((statement,), arguments)

    async def peek(self, statement: Statement, **values: Any) -> list[Row]:
        """All rows as they are now, without what is still to be written, and without BEGIN.

        So a transaction that else only writes stays a single statement. Nothing keeps these rows from changing.
        """
        return await self._run((statement,), statement.arguments(values))

    async def fetch_one(self, statement: Statement, **values: Any) -> Row | None:
        """The first row, if there is one."""
        rows = await self.fetch(statement, **values)
        return rows[0] if rows else None

    async def execute(self, statement: Statement, **values: Any) -> int:
        """Run it; the number of rows that it touched."""
        arguments = statement.arguments(values)
        await self._catch_up()
        self._database.statements += 1
        tag = await failures.answer(self._connection, self._connection.execute(statement.sql, *arguments))
        return int(tag.rpartition(" ")[2])

    async def insert(self, statement: BulkInsert, rows: Iterable[Sequence[Any]]) -> list[Row]:
        """Insert `rows` (none at all costs nothing); what `returning` asked for."""
        columns = list(zip(*rows, strict=True))
        if not columns:
            return []
        await self._catch_up()
        return await self._run((statement,), columns)

    def write(self, statement: Statement, **values: Any) -> None:
        """Run it, by the commit at the latest."""
        self._writes.append((statement, statement.arguments(values)))

    def add(self, statement: BulkInsert, rows: Iterable[Sequence[Any]]) -> None:
        """Insert `rows`, by the commit at the latest."""
        if columns := list(zip(*rows, strict=True)):
            self._writes.append((statement, columns))

    def on_commit(self, action: Callable[[], object]) -> None:
        """Call `action` right after the commit, and only then."""
        self._on_commit.append(action)

    @property
    def writes_wait(self) -> bool:
        """Whether there are writes that are not sent yet."""
        return bool(self._writes)

    async def commit(self) -> None:
        """Send what waits, commit, and do what waited for that."""
        if self._writes:
            await self._send_writes()
        if self._begun:
            if await failures.answer(self._connection, self._connection.execute("COMMIT")) != "COMMIT":
                # What it says when a statement has failed, and whoever sent that has passed over it.
                raise RuntimeError("the transaction was rolled back, for a statement in it had failed")
            self._begun = False
        self._database.commits += 1
        for action in self._on_commit:
            action()

    async def roll_back(self) -> None:
        """Undo all. A connection on which that fails is closed, which undoes it as well."""
        if self._begun and not self._connection.is_closed():
            try:
                await self._connection.execute("ROLLBACK")
            except BaseException as error:
                self._connection.terminate()
                if not isinstance(error, Exception):
                    raise

    async def _catch_up(self) -> None:
        """Everything before the statement that comes now."""
        if not self._begun:
            # First of all: the server may have begun, and the call be cut off before it says so.
            self._begun = True
            await failures.answer(self._connection, self._connection.execute("BEGIN"))
        if self._writes:
            await self._send_writes()

    async def _send_writes(self) -> None:
        writes, self._writes = self._writes, []
        statements = tuple(statement for statement, _ in writes)
        self.returned = await self._run(statements, [value for _, values in writes for value in values])

    async def _run(self, statements: tuple[Statement, ...], arguments: Sequence[Any]) -> list[Row]:
        """Run these as one. Raises what their refusals say."""
        self._database.statements += 1
        try:
            return await failures.answer(self._connection, self._connection.fetch(together(statements), *arguments))
        except asyncpg.IntegrityConstraintViolationError as error:
            violated = error.constraint_name or f"{error.table_name}.{error.column_name}"
            for statement in statements:
                if refusal := statement.refusals.get(violated):
                    # Without what the database says of it, which may show the row, and secrets in it.
                    raise refusal from None
            raise


class Database:
    """A service's own database."""

    def __init__(
        self, url: str, *, max_connections: int = 16, acquire_timeout: float = 5.0, command_timeout: float = 15.0
    ) -> None:
        """`acquire_timeout` and `command_timeout` are the seconds to wait for a connection and for a reply.

        The second is longer than the session's statement timeout, so that the server is the first to give up.
        """
        self.url = url
        self.statements = 0
        """Statements sent so far, without BEGIN and COMMIT."""
        self.commits = 0
        """Transactions committed so far."""
        self.clock = DatabaseClock()
        """The database's time, once it has started."""
        self._command_timeout = command_timeout
        self._connections = Connections(self._connect, most=max_connections, wait=acquire_timeout)
        self._is_open = False

    async def start(self) -> None:
        """Open it. Raises Unavailable when it cannot be reached."""
        self._is_open = True
        try:
            await self.check()
        except (MeshError, asyncpg.PostgresError) as error:
            raise Unavailable(f"the database cannot be opened: {error.__cause__ or error}") from error

    async def stop(self) -> None:
        """Close its connections; those still in use get a few seconds."""
        self._is_open = False
        await self._connections.close(timeout=5)

    async def check(self) -> None:
        """Raise Unavailable unless the database answers. Reads its clock, which keeps `clock` accurate."""
        async with self._connection() as connection:
            asked = self.clock.steady()
            reading = await failures.answer(connection, connection.fetchval(READ_CLOCK))
            self.clock.observe(asked, self.clock.steady(), reading)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A READ COMMITTED transaction: committed at the end of the block, rolled back when the block raises.

        Raises Unavailable when the database is lost before or during it. Lost in the very commit, the outcome is
        unknown, and a retry under the same idempotency key tells.
        """
        async with self._connection() as connection:
            transaction = Transaction(connection, self)
            try:
                yield transaction
                await transaction.commit()
            except BaseException:
                await transaction.roll_back()
                raise

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """A connection for single reads, each a transaction of its own."""
        async with self._connection() as connection:
            reading = Transaction(connection, self, begun=True)
            yield reading
            if reading.writes_wait:
                raise RuntimeError("a write was left to the commit of single reads, and they have none")

    async def _connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.url, command_timeout=self._command_timeout, server_settings=SESSION)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        if not self._is_open:
            raise Unavailable("the database is not open")
        async with self._connections.one() as connection:
            yield connection


READ_CLOCK = "SELECT clock_timestamp()"

SESSION = {
    "application_name": "commerce-mesh",
    "timezone": "UTC",
    "jit": "off",
    # What a service looks for, it finds by an index. Plans are kept: one that was made while a table was small, when to
    # read all of it is cheapest, would read all of it at every batch, however it has grown.
    "enable_seqscan": "off",
    # What is hot is in memory; the default is made for turning disks.
    "random_page_cost": "1.1",
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    # A process that stops in the middle of a transaction (paused, cut off) must not hold its locks for ever.
    "idle_in_transaction_session_timeout": "15s",
}
"""The settings of every session."""
