"""Passwords: hashed with argon2id in threads of their own, a few at a time, so that the event loop never waits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import VerifyMismatchError

from mesh.errors import ResourceExhausted

P = ParamSpec("P")
R = TypeVar("R")


class Passwords:
    """Hashes and checks passwords. Start it before use.

    `at_once` bounds the memory and the cores that go into it, `max_waiting` the calls that wait for that.
    """

    def __init__(self, *, memory_kib: int, passes: int, lanes: int, at_once: int, max_waiting: int) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes, type=Type.ID)
        # A pool of its own bounds what really runs: a semaphore would be free again as soon as a caller gives up,
        # while the thread still hashes.
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="argon2")
        self._most = at_once + max_waiting
        self._under_way = 0
        self._nobodys = ""

    async def start(self) -> None:
        """Make the hash that stands in where there is no customer."""
        self._nobodys = await self.hash(secrets.token_urlsafe())

    async def stop(self) -> None:
        """Let go of the threads; what still waits is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The argon2id hash of a password, with its salt and parameters. Raises ResourceExhausted / OVERLOADED."""
        return await self._in_thread(self._hasher.hash, password)

    async def matches(self, password: str, password_hash: str | None) -> bool:
        """Whether this is the password. With no hash the answer is no, after the work that a hash would have taken.

        Raises ResourceExhausted / OVERLOADED.
        """
        return await self._in_thread(self._matches, password, password_hash or self._nobodys)

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than those of now."""
        return self._hasher.check_needs_rehash(password_hash)

    def _matches(self, password: str, password_hash: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except VerifyMismatchError:
            return False

    async def _in_thread(self, work: Callable[P, R], *args: P.args, **_: P.kwargs) -> R:
        if self._under_way >= self._most:
            raise ResourceExhausted(f"{self._under_way} passwords wait to be hashed", retry_after=1.0)
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        finally:
            self._under_way -= 1
