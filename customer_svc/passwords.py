"""Passwords: hashed with argon2id in threads of their own, one or few at a time, in turns between the clients."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import VerifyMismatchError

from customer_svc.fair_queue import FairQueue
from mesh.errors import ResourceExhausted

P = ParamSpec("P")
R = TypeVar("R")


class _Done(NamedTuple, Generic[R]):
    result: R
    seconds: float
    """How long the thread worked."""


class _Job(NamedTuple, Generic[R]):
    client: str
    work: Callable[[], R]
    outcome: asyncio.Future[R]


class Passwords:
    """Hashes and checks passwords. Start it before use.

    `at_once` bounds the memory and the threads, `cores` the CPU that they use on average: a thread pauses after its
    work for as long as that takes. `max_waiting` bounds the calls that wait for a thread. They wait in turns between
    clients, which a string identifies: a flood from one client delays a call of another by one hash for each client
    that waits.
    """

    def __init__(
        self,
        *,
        memory_kib: int,
        passes: int,
        lanes: int,
        at_once: int,
        cores: float,
        max_waiting: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes, type=Type.ID)
        # A pool of its own bounds what really runs: a semaphore would be free again as soon as a caller gives up,
        # while the thread still hashes.
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="argon2")
        self._free = at_once
        self._pause_per_second = max(0.0, at_once * lanes / cores - 1)
        self._queue = FairQueue[_Job[Any]](max_waiting)
        self._clock = clock
        self._nobodys = ""

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a thread."""
        return len(self._queue)

    async def start(self) -> None:
        """Make the hash that stands in where there is no customer."""
        self._nobodys = await self.hash(secrets.token_urlsafe(), client="")

    async def stop(self) -> None:
        """Stop the threads and cancel the calls that wait for one."""
        for job in self._queue.drain():
            job.outcome.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str, *, client: str) -> str:
        """The argon2id hash of a password, with its salt and parameters. Raises ResourceExhausted / OVERLOADED."""
        return await self._in_turn(client, self._hasher.hash, password)

    async def matches(self, password: str, password_hash: str | None, *, client: str) -> bool:
        """Whether this is the password. With no hash the answer is no, after the work that a hash would have taken.

        Raises ResourceExhausted / OVERLOADED.
        """
        return await self._in_turn(client, self._matches, password, password_hash or self._nobodys)

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than those of now."""
        return self._hasher.check_needs_rehash(password_hash)

    def _matches(self, password: str, password_hash: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except VerifyMismatchError:
            return False

    async def _in_turn(self, client: str, work: Callable[P, R], *args: P.args, **_: P.kwargs) -> R:
        """Do `work` in a thread, when it is the client's turn."""
        outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        job = _Job(client, partial(work, *args), outcome)
        if self._free:
            self._begin(job)
        elif (refused := self._queue.put(client, job)) is not None and not refused.outcome.done():
            waiting = len(self._queue)
            refused.outcome.set_exception(ResourceExhausted(f"{waiting} passwords wait to be hashed", retry_after=1.0))
        try:
            return await outcome
        finally:
            # The caller may have given up.
            self._queue.remove(client, job)

    def _begin(self, job: _Job[Any]) -> None:
        self._free -= 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, _timed, self._clock, job.work)
        done.add_done_callback(partial(self._ended, job))

    def _ended(self, job: _Job[Any], ended: asyncio.Future[_Done[Any]]) -> None:
        pause = 0.0
        if ended.cancelled():
            job.outcome.cancel()
        elif error := ended.exception():
            if not job.outcome.done():
                job.outcome.set_exception(error)
        else:
            done = ended.result()
            pause = done.seconds * self._pause_per_second
            if not job.outcome.done():
                job.outcome.set_result(done.result)
        if pause:
            asyncio.get_running_loop().call_later(pause, self._next)
        else:
            self._next()

    def _next(self) -> None:
        self._free += 1
        while self._free and (job := self._queue.take()) is not None:
            if not job.outcome.done():
                self._begin(job)


def _timed(clock: Callable[[], float], work: Callable[[], R]) -> _Done[R]:
    began = clock()
    result = work()
    return _Done(result, clock() - began)
