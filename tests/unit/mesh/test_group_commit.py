"""Group commit: calls that arrive together are committed together, and each call gets its own result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import log2
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.batch.group_commit import GroupCommit, run_batch
from mesh.errors import DeadlineExceeded, MeshError, ResourceExhausted, StatementTimeout, Unavailable
from tests.services import TEST_TIMEOUT_S


class Bad(Exception):
    """The error of a bad item."""


class Ledger:
    """Work that records its batches, fails for the items in `bad`, and can be blocked by a gate."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.batches: list[list[int]] = []
        self.entered = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()
        self._bad = frozenset(bad)

    async def work(self, batch: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(batch))
        self.entered.release()
        await self.gate.wait()
        if faults := self._bad & set(batch):
            raise Bad(min(faults))
        return [item * 10 for item in batch]


def submit(group: GroupCommit[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(group.submit(item)) for item in items]


async def waiting(group: GroupCommit[int, int], count: int) -> None:
    """Wait until this many calls are queued. They need one turn of the event loop."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert group.waiting == count


async def results(tasks: Sequence[asyncio.Task[int]]) -> list[int | BaseException]:
    """The result of each call. The test fails, instead of hanging, if a call gets none."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_single_call_runs_immediately_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_timer(*_: object, **__: object) -> None:
        raise AssertionError("a timer was set")

    ledger = Ledger()
    group = GroupCommit("test", ledger.work)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", no_timer)
    call = submit(group, 1)[0]
    for _ in range(3):
        await asyncio.sleep(0)
    assert ledger.batches == [[1]], "three turns of the event loop are enough"
    assert await call == 10


async def test_calls_that_arrive_together_form_one_batch() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work)
    assert await results(submit(group, 1, 2, 3)) == [10, 20, 30]
    assert ledger.batches == [[1, 2, 3]]
    assert (group.batches, group.items) == (1, 3)


async def test_calls_during_a_commit_form_the_next_batch() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, lanes=1)
    ledger.gate.clear()
    first = submit(group, 1)
    await ledger.entered.acquire()
    later = submit(group, 2)
    await waiting(group, 1)
    later += submit(group, 3, 4)
    await waiting(group, 3)
    assert ledger.batches == [[1]]
    ledger.gate.set()
    assert await results(first + later) == [10, 20, 30, 40]
    assert ledger.batches == [[1], [2, 3, 4]]


async def test_lane_that_lingers_runs_the_calls_that_arrived_as_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turn, may_end, lingers = asyncio.sleep, asyncio.Event(), []

    async def sleep(seconds: float) -> None:
        if seconds:
            lingers.append(seconds)
            await may_end.wait()
        await turn(0)

    monkeypatch.setattr("mesh.batch.group_commit.asyncio.sleep", sleep)
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, linger=0.005)
    assert await results(submit(group, 1)) == [10], "the reply does not wait for the linger"
    later = submit(group, 2)
    await waiting(group, 1)
    later += submit(group, 3)
    await waiting(group, 2)
    may_end.set()
    assert await results(later) == [20, 30]
    assert ledger.batches == [[1], [2, 3]]
    assert all(0 < linger <= 0.005 for linger in lingers)
    await group.idle()
    await results(submit(group, 4))
    assert ledger.batches == [[1], [2, 3], [4]]


async def test_two_lanes_commit_concurrently_and_a_third_batch_waits() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, lanes=2)
    ledger.gate.clear()
    calls = submit(group, 1)
    await ledger.entered.acquire()
    calls += submit(group, 2)
    await ledger.entered.acquire()
    calls += submit(group, 3, 4)
    await waiting(group, 2)
    assert ledger.batches == [[1], [2]]
    ledger.gate.set()
    assert await results(calls) == [10, 20, 30, 40]
    assert ledger.batches == [[1], [2], [3, 4]]


async def test_batch_is_never_larger_than_its_limit() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, max_batch=4, lanes=1)
    assert await results(submit(group, *range(10))) == [item * 10 for item in range(10)]
    assert [len(batch) for batch in ledger.batches] == [4, 4, 2]


@pytest.mark.parametrize("lanes", [1, 2, 3])
async def test_call_that_arrives_in_the_turn_in_which_a_lane_ends_runs(lanes: int) -> None:
    group = GroupCommit("test", Ledger().work, lanes=lanes)

    async def caller(first: int) -> list[int]:
        # Like a worker of a queue, make the next call in the turn in which the previous result arrives.
        return [await group.submit(first + step) for step in range(20)]

    async with asyncio.timeout(TEST_TIMEOUT_S):
        got = await asyncio.gather(*(caller(100 * number) for number in range(lanes)))
    assert got == [[(100 * number + step) * 10 for step in range(20)] for number in range(lanes)]


async def test_one_bad_item_of_a_batch_fails_alone() -> None:
    ledger = Ledger(bad=[5])
    group = GroupCommit("test", ledger.work)
    got = await results(submit(group, *range(8)))
    assert [index for index, result in enumerate(got) if isinstance(result, Bad)] == [5]
    assert [result for result in got if not isinstance(result, Bad)] == [0, 10, 20, 30, 40, 60, 70]


@pytest.mark.parametrize("size", [1, 2, 64, 256])
async def test_finding_the_bad_item_takes_a_logarithm_of_calls(size: int) -> None:
    ledger = Ledger(bad=[size // 3])
    await run_batch(ledger.work, range(size))
    assert len(ledger.batches) <= 2 * log2(size) + 1


@pytest.mark.parametrize(
    "transient", [Unavailable("gone"), DeadlineExceeded("slow"), ResourceExhausted("busy")], ids=lambda e: e.reason
)
async def test_transient_error_fails_the_batch_without_splitting_it(transient: MeshError) -> None:
    batches = []

    async def work(batch: Sequence[int]) -> list[int | Exception]:
        batches.append(list(batch))
        raise transient

    got = await results(submit(GroupCommit("test", work), *range(64)))
    assert got == [transient] * 64
    assert len(batches) == 1


@pytest.mark.parametrize(
    ("most", "slow", "batches", "failed"),
    [
        pytest.param(8, [], [16, 8, 8], [], id="a batch that is too large"),
        pytest.param(16, [3], [16, 8, 8], range(8), id="an item that is slow"),
        pytest.param(0, [], [16, 8, 8], range(16), id="a database that is slow"),
        pytest.param(16, [3, 12], [16, 8, 8], range(16), id="items that are slow"),
    ],
)
async def test_batch_that_takes_too_long_is_split_once(
    most: int, slow: list[int], batches: list[int], failed: Sequence[int]
) -> None:
    sizes: list[int] = []

    async def work(batch: Sequence[int]) -> Sequence[int]:
        sizes.append(len(batch))
        if len(batch) > most or set(slow) & set(batch):
            raise StatementTimeout
        return batch

    got = await run_batch(work, range(16))
    assert sizes == batches
    assert [index for index, result in enumerate(got) if isinstance(result, StatementTimeout)] == list(failed)
    assert [result for result in got if isinstance(result, int)] == [item for item in range(16) if item not in failed]


async def test_item_that_takes_too_long_alone_fails_at_once() -> None:
    sizes: list[int] = []

    async def work(batch: Sequence[int]) -> Sequence[int]:
        sizes.append(len(batch))
        raise StatementTimeout

    assert [type(result) for result in await run_batch(work, [1])] == [StatementTimeout]
    assert sizes == [1]


async def test_bad_item_of_a_large_batch_still_fails_alone() -> None:
    async def work(batch: Sequence[int]) -> Sequence[int]:
        if len(batch) > 8:
            raise StatementTimeout
        if 3 in batch:
            raise Bad
        return batch

    got = await run_batch(work, range(16))
    assert [index for index, result in enumerate(got) if isinstance(result, Exception)] == [3]


async def test_item_refused_by_a_rule_gets_its_error_and_the_batch_is_not_split() -> None:
    batches = []

    async def work(batch: Sequence[int]) -> list[int | Exception]:
        batches.append(list(batch))
        return [Bad(item) if item % 2 else item for item in batch]

    got = await results(submit(GroupCommit("test", work), 1, 2, 3, 4))
    assert [type(result) for result in got] == [Bad, int, Bad, int]
    assert len(batches) == 1


async def test_full_queue_refuses_calls_and_does_not_grow() -> None:
    ledger = Ledger()
    group = GroupCommit("stock holds", ledger.work, lanes=1, max_waiting=2)
    ledger.gate.clear()
    calls = submit(group, 1)
    await ledger.entered.acquire()
    calls += submit(group, 2, 3)
    await waiting(group, 2)
    for item in range(4, 20):
        with pytest.raises(ResourceExhausted) as refusal:
            await group.submit(item)
        assert (refusal.value.reason, refusal.value.retry_after) == ("OVERLOADED", 1.0)
        assert refusal.value.metadata == {"queue": "stock holds"}
        assert group.waiting == 2
    ledger.gate.set()
    assert await results(calls) == [10, 20, 30]
    assert ledger.batches == [[1], [2, 3]]


async def test_items_of_one_call_share_a_batch_and_get_their_results_in_order() -> None:
    ledger = Ledger(bad=[3])
    group = GroupCommit("test", ledger.work, max_batch=4)
    assert await group.submit_all([]) == []
    ledger.gate.clear()
    first = submit(group, 1)
    await ledger.entered.acquire()
    calls = [asyncio.create_task(group.submit_all(items)) for items in ([2, 3], [4, 5], [6], [7, 8, 9, 10])]
    await waiting(group, 4)
    with pytest.raises(ValueError, match="a call brings 5 test, a batch takes 4"):
        await group.submit_all([7, 8, 9, 10, 11])
    ledger.gate.set()
    async with asyncio.timeout(TEST_TIMEOUT_S):
        got = [await call for call in calls]
    assert [type(result) for result in got[0]] == [int, Bad]
    assert got[1:] == [[40, 50], [60], [70, 80, 90, 100]]
    assert await results(first) == [10]
    whole = [batch for batch in ledger.batches if batch in ([1], [2, 3, 4, 5], [6], [7, 8, 9, 10])]
    assert whole == [[1], [2, 3, 4, 5], [6], [7, 8, 9, 10]], "a call is never split, only a failing batch is"
    assert (group.batches, group.items) == (4, 10)


async def test_queue_counts_the_items_of_its_calls() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, max_waiting=3)
    ledger.gate.clear()
    first = submit(group, 1)
    await ledger.entered.acquire()
    many = asyncio.create_task(group.submit_all([2, 3]))
    await waiting(group, 1)
    with pytest.raises(ResourceExhausted):
        await asyncio.wait_for(group.submit_all([5, 6]), TEST_TIMEOUT_S)
    many.cancel()
    await asyncio.wait([many])
    again = asyncio.create_task(group.submit_all([5, 6, 7]))
    await waiting(group, 1)
    with pytest.raises(ResourceExhausted):
        await asyncio.wait_for(group.submit(8), TEST_TIMEOUT_S)
    ledger.gate.set()
    assert await results(first) == [10]
    assert await again == [50, 60, 70]
    assert ledger.batches == [[1], [5, 6, 7]]


async def test_cancelled_waiting_call_never_runs_and_leaves_the_queue() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, lanes=1, max_waiting=2)
    ledger.gate.clear()
    calls = submit(group, 1)
    await ledger.entered.acquire()
    cancelled, kept = submit(group, 2, 3)
    await waiting(group, 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    calls += [kept, *submit(group, 4)]
    await waiting(group, 2)
    ledger.gate.set()
    assert await results(calls) == [10, 30, 40]
    assert ledger.batches == [[1], [3, 4]]


async def test_cancelling_a_call_that_is_being_committed_leaves_the_others() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work)
    ledger.gate.clear()
    first, second, third = submit(group, 1, 2, 3)
    await ledger.entered.acquire()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    ledger.gate.set()
    assert await results([first, third]) == [10, 30]
    assert ledger.batches == [[1, 2, 3]], "the batch that is being committed stays whole"


async def test_lane_with_only_cancelled_calls_runs_nothing_and_the_next_call_runs() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, lanes=1)
    ledger.gate.clear()
    first = submit(group, 1)
    await ledger.entered.acquire()
    waiters = submit(group, 2, 3)
    await waiting(group, 2)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    ledger.gate.set()
    assert await results(first) == [10]
    assert await results(submit(group, 4)) == [40]
    assert ledger.batches == [[1], [4]]


@pytest.mark.parametrize("too", ["few", "many"])
async def test_work_with_too_few_or_too_many_results_fails_its_batch(too: str) -> None:
    ledger = Ledger()

    async def work(batch: Sequence[int]) -> list[int | Exception]:
        good = await ledger.work(batch)
        return good if batch[0] else (good[1:] if too == "few" else [*good, 0])

    group = GroupCommit("test", work, lanes=1)
    ledger.gate.clear()
    faulty = submit(group, 0, 1)
    await ledger.entered.acquire()
    behind = submit(group, 2)
    await waiting(group, 1)
    ledger.gate.set()
    assert [type(result) for result in await results(faulty)] == [RuntimeError, RuntimeError]
    assert await results(behind) == [20]


async def test_waiting_calls_fail_when_their_lane_is_cancelled() -> None:
    ledger = Ledger()
    group = GroupCommit("test", ledger.work, lanes=1)
    ledger.gate.clear()
    calls = submit(group, 1)
    await ledger.entered.acquire()
    calls += submit(group, 2)
    await waiting(group, 1)
    for lane in asyncio.all_tasks():
        if lane.get_name() == "group commit test":
            lane.cancel()
    assert [type(result) for result in await results(calls)] == [Unavailable, Unavailable]
    ledger.gate.set()
    assert await results(submit(group, 3)) == [30], "the next call gets a lane"


@given(
    bad=st.lists(st.booleans(), min_size=1, max_size=70),
    max_batch=st.integers(1, 40),
    lanes=st.integers(1, 3),
    arrivals=st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_each_item_gets_its_own_result_in_any_mix_of_good_and_bad_items(
    bad: list[bool], max_batch: int, lanes: int, arrivals: Random
) -> None:
    async def scenario() -> None:
        ledger = Ledger(bad=[item for item, is_bad in enumerate(bad) if is_bad])
        group = GroupCommit("test", ledger.work, max_batch=max_batch, lanes=lanes)
        calls = []
        items = list(range(len(bad)))
        while items:
            size = arrivals.randint(1, max_batch)
            calls.append(asyncio.create_task(group.submit_all(items[:size])))
            items = items[size:]
            if arrivals.random() < 0.3:
                await asyncio.sleep(0)
        async with asyncio.timeout(TEST_TIMEOUT_S):
            got = [result for call in calls for result in await call]
        for item, result in enumerate(got):
            if bad[item]:
                assert isinstance(result, Bad)
                assert result.args == (item,)
            else:
                assert result == item * 10
        assert max(map(len, ledger.batches)) <= max_batch
        await group.idle()
        assert group.waiting == 0

    asyncio.run(scenario())
