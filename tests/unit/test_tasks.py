"""Waiting in background tasks, and their end."""

import asyncio

from mesh import tasks


async def test_a_task_that_loses_a_cancellation_is_asked_again() -> None:
    lost = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # As `asyncio.wait_for` of Python 3.11 may do.
            lost.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await tasks.end(task, None)
    assert lost.is_set()
    assert task.cancelled()


async def test_tasks_that_have_failed_or_ended_are_at_their_end() -> None:
    async def fail() -> None:
        raise RuntimeError

    async def finish() -> None:
        return

    failed, finished = asyncio.create_task(fail()), asyncio.create_task(finish())
    await asyncio.wait([failed, finished])
    await tasks.end(failed, finished)
    assert isinstance(failed.exception(), RuntimeError)


async def test_an_event_is_waited_for_so_long_and_no_longer() -> None:
    event = asyncio.Event()
    assert not await tasks.is_set_within(0, event)
    waiting = asyncio.create_task(tasks.is_set_within(3600, event))
    await asyncio.sleep(0)
    event.set()
    assert await waiting
    assert await tasks.is_set_within(0, event)
