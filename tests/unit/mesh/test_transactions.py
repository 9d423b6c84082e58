"""Every transaction ends: no released connection has an open one, and no buffered write is lost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import pytest
import sqlalchemy as sa

from mesh.db.database import READ_CLOCK, Database, Statement
from mesh.errors import Unavailable

LOOK = Statement(sa.select(sa.literal(1).label("one")))
WRITE = Statement(sa.delete(sa.table("something")))


class Connection:
    """A connection that records the sent statements. `at` defines its replies to them."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.at: dict[str, BaseException | str] = {}
        self.closed = False

    async def execute(self, sql: str, *_: Any) -> str:
        """Record a statement. Its tag is the statement itself by default."""
        self.sent.append(sql)
        happens = self.at.get(sql, sql)
        if isinstance(happens, BaseException):
            raise happens
        return happens

    async def fetch(self, sql: str, *_: Any) -> list[Any]:
        """Record a statement. It returns no rows."""
        await self.execute(sql)
        return []

    async def fetchval(self, sql: str, *_: Any) -> Any:
        """Record a statement. The only value that is read is the time."""
        await self.execute(sql)
        return datetime.now(UTC)

    def is_closed(self) -> bool:
        """Whether the connection is closed."""
        return self.closed

    def terminate(self) -> None:
        """Terminate the connection."""
        self.closed = True


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
async def database(connection: Connection) -> Database:
    async def connect() -> asyncpg.Connection:
        return cast("asyncpg.Connection", connection)

    made = Database("postgresql://nowhere", max_connections=1, connect=connect)
    await made.start()
    connection.sent.clear()
    return made


async def look(database: Database) -> None:
    """A transaction with one statement that reads."""
    async with database.transaction() as transaction:
        await transaction.fetch(LOOK)


@pytest.mark.parametrize("at", ["BEGIN", LOOK.sql, "COMMIT"])
async def test_call_that_is_cancelled_at_any_point_leaves_no_transaction_open(
    database: Database, connection: Connection, at: str
) -> None:
    connection.at[at] = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await look(database)
    assert connection.sent[-1] == "ROLLBACK", "the server may have run the interrupted statement"
    assert not connection.closed


@pytest.mark.parametrize("error", [asyncpg.InterfaceError("lost"), asyncio.CancelledError()])
async def test_connection_that_cannot_be_rolled_back_is_closed(
    database: Database, connection: Connection, error: BaseException
) -> None:
    connection.at = {LOOK.sql: ZeroDivisionError(), "ROLLBACK": error}
    with pytest.raises((ZeroDivisionError, asyncio.CancelledError)):
        await look(database)
    assert connection.closed


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InterfaceError("the server expects 1 argument for this query, 2 were passed"),
        asyncpg.InternalClientError("no codec"),
        asyncpg.UndefinedTableError("no such table"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_error_of_the_driver_is_no_lost_database_while_the_connection_is_open(
    database: Database, connection: Connection, error: Exception
) -> None:
    connection.at[LOOK.sql] = error
    with pytest.raises(type(error)):
        await look(database)
    # After an internal error the driver may not know the state of its connection.
    assert connection.closed is isinstance(error, asyncpg.InternalClientError)


@pytest.mark.parametrize("error", [asyncpg.InterfaceError, asyncpg.InternalClientError])
async def test_error_of_the_driver_is_a_lost_database_once_the_connection_is_closed(
    database: Database, connection: Connection, error: type[Exception]
) -> None:
    connection.at[LOOK.sql] = error("connection is closed")

    async def lose() -> None:
        async with database.transaction() as transaction:
            connection.closed = True
            await transaction.fetch(LOOK)

    with pytest.raises(Unavailable):
        await lose()


async def test_error_of_an_argument_does_not_show_its_value(database: Database, connection: Connection) -> None:
    connection.at[LOOK.sql] = asyncpg.DataError("invalid input for query argument $1: ['a secret'] (not a number)")
    with pytest.raises(asyncpg.DataError) as raised:
        await look(database)
    assert str(raised.value) == "invalid input for query argument $1 (not a number)"


@pytest.mark.parametrize("error", [OSError("of the use case"), TimeoutError("of the use case")], ids=repr)
async def test_error_of_a_use_case_is_no_lost_database(database: Database, error: Exception) -> None:
    async def fail() -> None:
        async with database.transaction():
            raise error

    with pytest.raises(type(error), match="of the use case"):
        await fail()


async def test_commit_that_the_server_turns_into_a_rollback_is_a_fault(
    database: Database, connection: Connection
) -> None:
    done: list[str] = []
    connection.at["COMMIT"] = "ROLLBACK"  # its reply after an ignored error in the transaction

    async def change() -> None:
        async with database.transaction() as transaction:
            await transaction.fetch(LOOK)
            transaction.on_commit(lambda: done.append("done"))

    with pytest.raises(RuntimeError, match="rolled back"):
        await change()
    assert (done, database.commits) == ([], 0)


async def test_write_among_single_reads_is_a_fault(database: Database) -> None:
    async def write() -> None:
        async with database.reading() as reading:
            reading.write(LOOK)

    with pytest.raises(RuntimeError, match="single reads"):
        await write()


async def test_read_now_sends_no_buffered_writes_and_no_begin(database: Database, connection: Connection) -> None:
    async with database.transaction() as transaction:
        transaction.write(WRITE)
        await transaction.read_now(LOOK)
        assert connection.sent == [LOOK.sql]
    assert connection.sent == [LOOK.sql, WRITE.sql]
    assert database.statements == 2


async def test_error_of_the_server_at_start_is_part_of_the_message(database: Database, connection: Connection) -> None:
    connection.at[READ_CLOCK] = asyncpg.UndefinedObjectError("unrecognized configuration parameter")
    with pytest.raises(Unavailable, match="unrecognized"):
        await database.start()
