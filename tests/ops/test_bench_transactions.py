"""The yardstick of the bench: one-order transactions by the bare driver."""

from __future__ import annotations

from typing import cast

import asyncpg
import pytest
import uvloop

from ops.bench import calibration, transactions
from ops.bench.driver import Driver
from ops.running_mesh import RunningMesh as Target
from stack.servers import Servers
from tests.runtime.process import new_database


async def test_transactions_are_counted_and_nothing_of_them_stays(servers: Servers) -> None:
    async with new_database(servers) as url:
        connection = await asyncpg.connect(url)
        # As one leaves it that was killed.
        await connection.execute("CREATE SCHEMA bench_scratch; CREATE TABLE bench_scratch.orders (id text)")
        assert await transactions.rate(url, warm_up=0, seconds=0.2) > 0
        assert await _tables(connection) == []
        await connection.close()


async def test_nothing_stays_of_transactions_that_fail(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "_OUTBOX", "INSERT INTO nowhere VALUES ($1, $2, $3)")
    async with new_database(servers) as url:
        with pytest.raises(ExceptionGroup):
            await transactions.rate(url, warm_up=0, seconds=0.2)
        connection = await asyncpg.connect(url)
        assert await _tables(connection) == []
        await connection.close()


async def test_r_is_of_a_client_on_asyncios_own_loop_and_the_other_of_one_on_uvloop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def echo(*_: object) -> float:
        return 1.0

    async def on(_: object, loop: str, __: float) -> float:
        made = transactions.LOOPS[loop]()
        made.close()
        return 3.0 if isinstance(made, uvloop.Loop) else 2.0

    monkeypatch.setattr(calibration, "_echo", echo)
    monkeypatch.setattr(calibration, "_transactions", on)
    measured = await calibration.calibrate(cast("Target", None), cast("Driver", None), 1, 1)
    assert measured == calibration.Calibration(echo_calls=1.0, transactions=2.0, transactions_on_uvloop=3.0)


async def _tables(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("SELECT relname FROM pg_stat_user_tables")
    return [row["relname"] for row in rows]
