"""R, the yardstick of the bench: one-order transactions by the bare driver."""

from __future__ import annotations

import asyncpg
import pytest

from ops.bench import calibration
from stack.servers import Servers
from tests.runtime.process import new_database


async def test_transactions_are_counted_and_leave_nothing(servers: Servers) -> None:
    async with new_database(servers) as url:
        connection = await asyncpg.connect(url)
        # What a killed measurement leaves.
        await connection.execute("CREATE SCHEMA bench_scratch; CREATE TABLE bench_scratch.orders (id text)")
        assert await calibration.rate(url, warm_up=0, seconds=0.2) > 0
        assert await _tables(connection) == []
        await connection.close()


async def test_transactions_that_fail_leave_nothing(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ADD_EVENT", "INSERT INTO nowhere VALUES ($1, $2, $3)")
    async with new_database(servers) as url:
        with pytest.raises(ExceptionGroup):
            await calibration.rate(url, warm_up=0, seconds=0.2)
        connection = await asyncpg.connect(url)
        assert await _tables(connection) == []
        await connection.close()


async def _tables(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("SELECT relname FROM pg_stat_user_tables")
    return [row["relname"] for row in rows]
