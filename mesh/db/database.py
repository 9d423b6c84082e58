"""PostgreSQL: statements written in SQLAlchemy Core, compiled once, run by asyncpg (ADR-0002)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
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
"""The errors that violations of constraints stand for, by the constraint's name, or `table.column` for NOT NULL."""


class Statement:
    """A SQLAlchemy Core statement, compiled for the driver when it is created.

    If it violates a constraint in `refusals`, it raises the error listed there. Its `name` is a comment at the end of
    its text (pg_stat_statements drops one at the beginning), so that PostgreSQL's log and statistics show it. The
    default is the operation and the table, as in `add orders`. Names are unique within a service.
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
        """The driver's positional arguments for these parameters. Raises TypeError if one is missing or unknown."""
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
            operation = "read" if clause._for_update_arg is None else "lock"  # noqa: SLF001 - there is no public attribute
            table = tables[0]
            while isinstance(table, sa.Join):
                table = table.left
            return f"{operation} {table.description}"
        case _:
            return "read"


def names(sql: str) -> list[str]:
    """The names of the statements in a text that was sent to PostgreSQL."""
    return _NAME.findall(sql)


_NAME = re.compile(r"/\* ([^*]+) \*/")


def unnested(
    columns: Mapping[str, tuple[str, sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]]],
) -> sa.TableValuedAlias:
    """Any number of rows as arguments of a statement, one array for each column.

    `columns` maps the parameter of each array to the name and type of its column.
    """
    arrays = (sa.bindparam(parameter, type_=sa.ARRAY(kind)) for parameter, (_, kind) in columns.items())
    named = (sa.column(name, kind) for name, kind in columns.values())
    return sa.func.unnest(*arrays).table_valued(*named, name="row").render_derived()


class BulkInsert(Statement):
    """Inserts any number of rows with one statement, one array for each column (`unnest`).

    Rows are tuples in the order of `columns`. With `skip_existing`, rows whose key exists are skipped; the statement
    waits for a concurrent transaction that writes such a key. `returning` are columns of the inserted rows.
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
    """For an UPDATE: the `new` value of a column if `guard` has the `known` value, else NULL, which NOT NULL rejects.

    A row can so be written without reading or locking it first: the whole transaction fails if another one has changed
    the row. Add `stale_write(column)` to the refusals of the statement. A deleted row is not detected.
    """
    return sa.case((guard == known, new))


def stale_write(column: sa.Column[Any]) -> Refusals:
    """The refusal of a column that is written with `unless_stale`: its violation is a stale write."""
    return {f"{column.table.name}.{column.name}": StaleWrite}


@lru_cache(maxsize=1024)
def together(statements: tuple[Statement, ...]) -> str:
    """One statement that runs all of these; its parameters are theirs, one after another.

    The statements do not see each other's effects, so they must touch different rows. The result is cached, so pass
    statements that are created once.
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
    """A transaction in progress.

    `write` and `add` are buffered and sent together, before the next statement that reads or at the commit: one round
    trip instead of many. A transaction of nothing but such writes is a single statement, without BEGIN and COMMIT.

    Use cases get it from `Database.transaction` or `mesh.db.unit_of_work.UnitOfWork`; they do not create it.
    """

    __slots__ = ("_begun", "_connection", "_database", "_on_commit", "_on_failure", "_writes", "returned")

    def __init__(self, connection: asyncpg.Connection, database: Database, *, begun: bool = False) -> None:
        self._connection = connection
        self._database = database
        self._begun = begun
        self._writes: list[tuple[Statement, Sequence[Any]]] = []
        self.returned: list[Row] = []
        """The rows that the last statement of the last buffered writes returned."""
        self._on_commit: list[Callable[[], object]] = []
        self._on_failure: list[Callable[[], object]] = []

    def on_failure(self, action: Callable[[], object]) -> None:
        """Call `action` if the transaction fails. It may be committed nevertheless: its outcome may be unknown."""
        self._on_failure.append(action)

    def fail(self) -> None:
        """Do what was to be done after a failure."""
        for action in self._on_failure:
            action()

    async def fetch(self, statement: Statement, **values: Any) -> list[Row]:
        """All rows."""
        arguments = statement.arguments(values)
        await self._catch_up()
        return await self._run((statement,), arguments)

    async def read_now(self, statement: Statement, **values: Any) -> list[Row]:
        """All rows, without the effects of buffered writes, and without BEGIN.

        A transaction that otherwise only writes remains a single statement. Other transactions may change these rows.
        """
        return await self._run((statement,), statement.arguments(values))

    async def fetch_one(self, statement: Statement, **values: Any) -> Row | None:
        """The first row, if there is one."""
        rows = await self.fetch(statement, **values)
        return rows[0] if rows else None

    async def execute(self, statement: Statement, **values: Any) -> int:
        """Run a statement. Returns the number of affected rows."""
        arguments = statement.arguments(values)
        await self._catch_up()
        self._database.statements += 1
        tag = await failures.answer(self._connection, self._connection.execute(statement.sql, *arguments))
        return int(tag.rpartition(" ")[2])

    async def insert(self, statement: BulkInsert, rows: Iterable[Sequence[Any]]) -> list[Row]:
        """Insert rows; an empty list sends no statement. Returns the `returning` columns of the inserted rows."""
        columns = list(zip(*rows, strict=True))
        if not columns:
            return []
        await self._catch_up()
        return await self._run((statement,), columns)

    def write(self, statement: Statement, **values: Any) -> None:
        """Run a statement at the commit or earlier."""
        self._writes.append((statement, statement.arguments(values)))

    def add(self, statement: BulkInsert, rows: Iterable[Sequence[Any]]) -> None:
        """Insert rows at the commit or earlier."""
        if columns := list(zip(*rows, strict=True)):
            self._writes.append((statement, columns))

    def on_commit(self, action: Callable[[], object]) -> None:
        """Call `action` after the commit. It is not called if the transaction is rolled back."""
        self._on_commit.append(action)

    @property
    def writes_wait(self) -> bool:
        """Whether there are buffered writes."""
        return bool(self._writes)

    async def commit(self) -> None:
        """Send the buffered writes, commit, and call the actions of `on_commit`."""
        if self._writes:
            await self._send_writes()
        if self._begun:
            if await failures.answer(self._connection, self._connection.execute("COMMIT")) != "COMMIT":
                # PostgreSQL rolls back instead if a statement has failed. The caller has caught and ignored that error.
                raise RuntimeError("the transaction was rolled back, because a statement in it had failed")
            self._begun = False
        self._database.commits += 1
        for action in self._on_commit:
            action()

    async def roll_back(self) -> None:
        """Roll back. If that fails, the connection is closed, which also rolls back."""
        if self._begun and not self._connection.is_closed():
            try:
                await self._connection.execute("ROLLBACK")
            except BaseException as error:
                self._connection.terminate()
                if not isinstance(error, Exception):
                    raise

    async def _catch_up(self) -> None:
        """Send BEGIN and the buffered writes, before a statement that reads."""
        if not self._begun:
            # Set before the call: if it is interrupted, the server may have begun the transaction.
            self._begun = True
            await failures.answer(self._connection, self._connection.execute("BEGIN"))
        if self._writes:
            await self._send_writes()

    async def _send_writes(self) -> None:
        writes, self._writes = self._writes, []
        statements = tuple(statement for statement, _ in writes)
        self.returned = await self._run(statements, [value for _, values in writes for value in values])

    async def _run(self, statements: tuple[Statement, ...], arguments: Sequence[Any]) -> list[Row]:
        """Run these as one statement. Raises the errors of their refusals."""
        self._database.statements += 1
        try:
            return await failures.answer(self._connection, self._connection.fetch(together(statements), *arguments))
        except asyncpg.IntegrityConstraintViolationError as error:
            violated = error.constraint_name or f"{error.table_name}.{error.column_name}"
            for statement in statements:
                if refusal := statement.refusals.get(violated):
                    # Without the database's error, whose text may contain the row and secrets in it.
                    raise refusal from None
            raise


class Database:
    """A service's own database."""

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 16,
        acquire_timeout: float = 5.0,
        command_timeout: float = 15.0,
        connect: Callable[[], Awaitable[asyncpg.Connection]] | None = None,
    ) -> None:
        """`acquire_timeout` and `command_timeout` are the seconds to wait for a connection and for a reply.

        `command_timeout` must be longer than the session's statement timeout, so that the server cancels first.
        `connect` opens a connection in place of the driver's own function.
        """
        self.url = url
        self.statements = 0
        """Statements sent so far, without BEGIN and COMMIT."""
        self.commits = 0
        """Transactions committed so far."""
        self.clock = DatabaseClock()
        """The database's time, available after `start`."""
        self._command_timeout = command_timeout
        self._connections = Connections(connect or self._connect, most=max_connections, wait=acquire_timeout)
        self._is_open = False

    async def start(self) -> None:
        """Open the database. Raises Unavailable if it cannot be reached."""
        self._is_open = True
        try:
            await self.check()
        except (MeshError, asyncpg.PostgresError) as error:
            raise Unavailable(f"the database cannot be opened: {error.__cause__ or error}") from error

    async def stop(self) -> None:
        """Close the connections. Those in use get 5 s to be released."""
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
        """A READ COMMITTED transaction: committed at the end of the block, rolled back if the block raises.

        Raises Unavailable if the connection is lost. If it is lost during the commit, the outcome is unknown; a retry
        with the same idempotency key returns it.
        """
        async with self._connection() as connection:
            transaction = Transaction(connection, self)
            try:
                yield transaction
                await transaction.commit()
            except BaseException:
                transaction.fail()
                await transaction.roll_back()
                raise

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """A connection for single reads, each in its own transaction."""
        async with self._connection() as connection:
            reading = Transaction(connection, self, begun=True)
            yield reading
            if reading.writes_wait:
                raise RuntimeError("a buffered write was never sent, because single reads have no commit")

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
    # Services read by index only. Plans are cached: a plan made while a table was small, when a sequential scan is the
    # cheapest, would still scan the table for every batch after it has grown.
    "enable_seqscan": "off",
    # Frequently used pages are in memory. The default is meant for rotating disks.
    "random_page_cost": "1.1",
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    # A process that stops in the middle of a transaction (paused, disconnected) must not hold its locks forever.
    "idle_in_transaction_session_timeout": "15s",
}
"""The settings of every session."""
