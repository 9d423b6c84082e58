"""PostgreSQL: statements written in SQLAlchemy Core, compiled once, run by asyncpg (ADR-0002)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from mesh.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

_DIALECT = asyncpg_dialect.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves its dialects untyped

_LOST = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    # Whole branches of SQLSTATE, so that no leaf is forgotten: a disk that is full, a server that is stopped, a
    # statement that is cancelled, a password that was changed.
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # A standby that is not yet the primary, or the primary that no longer is.
    asyncpg.ReadOnlySQLTransactionError,
    # Two transactions in each other's way, or one that took too long: nothing took effect, and a retry may succeed.
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
)
"""What the driver raises when the database, not the statement, is at fault."""

log = structlog.get_logger(__name__)


class Statement:
    """A SQLAlchemy Core statement, compiled for the driver when it is made."""

    __slots__ = ("_defaults", "_order", "_required", "sql")

    def __init__(self, clause: sa.ClauseElement) -> None:
        compiled = clause.compile(dialect=_DIALECT)
        self.sql = str(compiled)
        self._order: Sequence[str] = compiled.positiontup or ()  # type: ignore[attr-defined]  # set by numeric dialects
        self._defaults = compiled.params
        self._required = frozenset(name for name, bind in compiled.binds.items() if bind.required)  # type: ignore[attr-defined]

    def arguments(self, values: dict[str, Any]) -> list[Any]:
        """The driver's positional arguments for these parameters. Raises TypeError when one is missing or unknown."""
        if not self._required <= values.keys() or not values.keys() <= self._defaults.keys():
            raise TypeError(f"{self.sql} takes {sorted(self._required)}, not {sorted(values)}")
        return [values[name] if name in values else self._defaults[name] for name in self._order]


class BulkInsert(Statement):
    """Inserts any number of rows with one statement, one array a column (`unnest`).

    `rows` are tuples in the order of `columns`. With `skip_existing` a row whose key is there already is left out,
    once a transaction that is writing that key right now has ended; `returning` tells which rows went in.
    """

    def __init__(
        self, *columns: sa.Column[Any], returning: Sequence[sa.Column[Any]] = (), skip_existing: bool = False
    ) -> None:
        arrays = [sa.bindparam(column.name, type_=sa.ARRAY(column.type)) for column in columns]
        rows = (
            sa.func.unnest(*arrays)
            .table_valued(*(sa.column(column.name, column.type) for column in columns), name="row")
            .render_derived()
        )
        insert = postgresql.insert(columns[0].table).from_select(
            [column.name for column in columns], sa.select(rows), include_defaults=False
        )
        if skip_existing:
            insert = insert.on_conflict_do_nothing()
        super().__init__(insert.returning(*returning) if returning else insert)


Row = asyncpg.Record


class Transaction:
    """A transaction under way: statements, and what is to be written or done at its end.

    Use cases get it from `Database.transaction` or `mesh.unit_of_work.UnitOfWork`, never make it.
    """

    __slots__ = ("_connection", "_database", "_on_commit")

    def __init__(self, connection: PoolConnectionProxy | asyncpg.Connection, database: Database) -> None:
        self._connection = connection
        self._database = database
        self._on_commit: list[Callable[[], object]] = []

    async def fetch(self, statement: Statement, **values: Any) -> list[Row]:
        """All rows."""
        self._database.statements += 1
        return await self._connection.fetch(statement.sql, *statement.arguments(values))

    async def fetch_one(self, statement: Statement, **values: Any) -> Row | None:
        """The first row, if there is one."""
        self._database.statements += 1
        return await self._connection.fetchrow(statement.sql, *statement.arguments(values))

    async def execute(self, statement: Statement, **values: Any) -> int:
        """Run it; the number of rows that it touched."""
        self._database.statements += 1
        tag = await self._connection.execute(statement.sql, *statement.arguments(values))
        return int(tag.rpartition(" ")[2])

    async def insert(self, statement: BulkInsert, rows: Iterable[Sequence[Any]]) -> list[Row]:
        """Insert `rows` (none at all costs nothing); what `returning` asked for."""
        columns = list(zip(*rows, strict=True))
        if not columns:
            return []
        self._database.statements += 1
        return await self._connection.fetch(statement.sql, *columns)

    def on_commit(self, action: Callable[[], object]) -> None:
        """Call `action` right after the commit, and only then."""
        self._on_commit.append(action)

    def committed(self) -> None:
        """The transaction has committed: run what waited for that."""
        for action in self._on_commit:
            action()


class Database:
    """A service's own database, behind a pool of connections."""

    def __init__(self, url: str, *, max_connections: int = 16, acquire_timeout: float = 5.0) -> None:
        self.url = url
        self.statements = 0
        """Statements sent so far, without BEGIN and COMMIT."""
        self.commits = 0
        """Transactions committed so far."""
        self._max_connections = max_connections
        self._acquire_timeout = acquire_timeout
        self._pool: asyncpg.Pool | None = None

    async def start(self) -> None:
        """Open the pool. Raises Unavailable when the database cannot be reached."""
        try:
            self._pool = await asyncpg.create_pool(
                self.url,
                min_size=2,
                max_size=self._max_connections,
                max_inactive_connection_lifetime=300,
                command_timeout=15,
                # Nothing here changes a session, so a connection goes back without a round trip.
                reset=_leave_as_is,
                server_settings=SESSION,
            )
        except (*_LOST, asyncpg.PostgresError) as error:
            raise Unavailable(f"the database cannot be opened: {error}") from error

    async def stop(self) -> None:
        """Close the pool; connections still in use get a few seconds."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def check(self) -> None:
        """Raise Unavailable unless the database answers."""
        async with self._connection() as connection:
            await connection.execute("SELECT 1")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A READ COMMITTED transaction: committed at the end of the block, rolled back when the block raises.

        Raises Unavailable when the database is lost before or during it. Lost in the very commit, the outcome is
        unknown, and a retry under the same idempotency key tells.
        """
        async with self._connection() as connection:
            async with connection.transaction():
                transaction = Transaction(connection, self)
                yield transaction
            self.commits += 1
        transaction.committed()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """A connection for single reads, each a transaction of its own."""
        async with self._connection() as connection:
            yield Transaction(connection, self)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnectionProxy]:
        if self._pool is None:
            raise Unavailable("the database is not open")
        try:
            async with self._pool.acquire(timeout=self._acquire_timeout) as connection:
                yield connection
        except asyncpg.CharacterNotInRepertoireError as error:
            # UTF-8 on the wire may hold NUL, PostgreSQL's text may not.
            raise InvalidArgument("text must not hold the character NUL") from error
        except _LOST as error:
            log.warning("database lost", error=repr(error))
            raise Unavailable("the database does not answer") from error


SESSION = {
    "application_name": "commerce-mesh",
    "timezone": "UTC",
    "jit": "off",
    # What is hot is in memory. With the default, made for turning disks, the planner reads a growing table whole to
    # find the rows of a batch.
    "random_page_cost": "1.1",
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    # A process that stops in the middle of a transaction (paused, cut off) must not hold its locks for ever.
    "idle_in_transaction_session_timeout": "15s",
}
"""The settings of every session."""


async def _leave_as_is(_: asyncpg.Connection) -> None:
    return None
