"""The meaning of the driver's errors: the database is lost or busy, a statement took too long, or the work is at fault.

`LOST` is an allow-list: all other errors are faults of the work. A batch that fails is split until the item at fault is
alone, so the other items succeed. An error that was wrongly taken for a lost database would be retried forever.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import TypeVar

import asyncpg
import structlog

from mesh.errors import InvalidArgument, StatementTimeout, Unavailable

T = TypeVar("T")

LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    # Whole classes of SQLSTATE, so that no error is missed. Examples: the disk is full, the server is stopped, the
    # password was changed.
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # A standby that is not yet the primary, or the primary that no longer is.
    asyncpg.ReadOnlySQLTransactionError,
    # Transactions that block each other, or that take too long: nothing took effect, and a retry may succeed.
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    # A migration changed a table after the statement was prepared. The driver prepares it again.
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
"""The errors of a database that is lost or busy."""

_VALUE = re.compile(r"(invalid input for query argument \$\d+): .* \((.*)\)", re.DOTALL)
"""The driver's message about an argument, with the value in the middle."""

log = structlog.get_logger(__name__)


async def answer(connection: asyncpg.Connection, call: Awaitable[T]) -> T:
    """The result of `call`, a call of the driver on `connection`.

    Raises Unavailable if the database is lost or busy, StatementTimeout if it took too long, and InvalidArgument if a
    text contains NUL. Any other error of the driver is raised unchanged, except that values are removed from its text.
    """
    try:
        return await call
    except TimeoutError as error:
        # The server does not answer, or a proxy has removed the session's statement timeout.
        connection.terminate()
        raise StatementTimeout from error
    except asyncpg.QueryCanceledError as error:
        raise StatementTimeout from error
    except asyncpg.CharacterNotInRepertoireError as error:
        # UTF-8 may contain NUL, but PostgreSQL's text may not.
        raise InvalidArgument("text must not contain the character NUL") from error
    except LOST as error:
        raise _lost(error) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # The driver raises these for many different reasons.
        if connection.is_closed():
            raise _lost(error) from error
        if isinstance(error, asyncpg.InternalClientError):
            # Its state may be wrong.
            connection.terminate()
        raise
    except asyncpg.PostgresError as error:
        # Logs would show the row or the value that the error is about.
        error.detail = None
        if match := _VALUE.fullmatch(str(error)):
            error.args = (f"{match[1]} ({match[2]})",)
        raise


def _lost(error: Exception) -> Unavailable:
    log.warning("database lost", error=repr(error))
    return Unavailable("the database does not answer")
