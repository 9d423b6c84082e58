"""Waiting in background tasks, and cancelling them."""

import asyncio

from mesh import tasks
from tests.services import TEST_TIMEOUT_S


async def test_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # Like `asyncio.wait_for` of Python 3.11.
            lost.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await tasks.end(task, None)
    assert lost.is_set()
    assert task.cancelled()


async def test_end_accepts_tasks_that_have_failed_or_ended() -> None:
    async def fail() -> None:
        raise RuntimeError

    async def finish() -> None:
        return

    failed, finished = asyncio.create_task(fail()), asyncio.create_task(finish())
    await asyncio.wait([failed, finished])
    await tasks.end(failed, finished)
    assert isinstance(failed.exception(), RuntimeError)


async def test_event_is_waited_for_until_the_timeout() -> None:
    event = asyncio.Event()
    assert not await tasks.is_set_within(0, event)
    waiting = asyncio.create_task(tasks.is_set_within(3600, event))
    await asyncio.sleep(0)
    event.set()
    assert await waiting
    assert await tasks.is_set_within(0, event)


async def test_other_tasks_run_after_each_portion_and_no_item_is_lost() -> None:
    most = 2 * tasks.PORTION + 5
    seen: list[int] = []
    turns: list[int] = []

    async def other() -> None:
        while len(seen) < most:
            turns.append(len(seen))
            await asyncio.sleep(0)

    async def work() -> None:
        async for item in tasks.in_portions(range(most)):
            seen.append(item)  # noqa: PERF401  # the other one looks at it meanwhile

    await asyncio.gather(work(), other())
    assert seen == list(range(most))
    assert set(turns) == {tasks.PORTION, 2 * tasks.PORTION}
    assert turns.count(tasks.PORTION) > 1, "more than one turn of the event loop"
    assert [item async for item in tasks.in_portions(range(0))] == []


async def test_portion_is_bounded_by_the_weight_of_its_items() -> None:
    weights = [3, 3, 4, 1, 12, 9, 1, 1, 10, 10]
    portions: list[list[int]] = [[]]

    async def other() -> None:
        while sum(map(len, portions)) < len(weights):
            if portions[-1]:
                portions.append([])
            await asyncio.sleep(0)

    async def work() -> None:
        async for item in tasks.in_portions(weights, weight=lambda item: item, portion=10):
            portions[-1].append(item)

    await asyncio.gather(work(), other())
    assert portions == [[3, 3, 4], [1], [12], [9, 1], [1], [10], [10]]


def test_backoff_doubles_up_to_its_limit_and_begins_anew_after_a_success() -> None:
    backoff = tasks.Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.next() == 0.5


def test_backoff_after_attempts_that_are_counted_elsewhere_is_the_same() -> None:
    backoff = tasks.Backoff(0.5, 3.0)
    assert [backoff.after(attempts) for attempts in (1, 2, 3, 4, 10_000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_background_task_that_ignores_its_stop_is_cancelled_after_the_timeout() -> None:
    begun = asyncio.Event()

    async def run() -> None:
        begun.set()
        await asyncio.Event().wait()

    background = tasks.Background("deaf", run)
    background.start()
    await begun.wait()
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await background.stop(timeout=0.01)
    assert background.was_cancelled


async def test_background_task_finishes_its_current_work_before_it_stops() -> None:
    turns: list[bool] = []

    async def run() -> None:
        await background.pause(3600)
        turns.append(background.stopping.is_set())

    background = tasks.Background("willing", run)
    background.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await background.stop(timeout=3600)
    assert turns == [True]
    assert not background.was_cancelled


async def test_background_task_that_was_never_started_can_be_stopped() -> None:
    async def run() -> None:
        raise AssertionError

    await tasks.Background("new", run).stop()
