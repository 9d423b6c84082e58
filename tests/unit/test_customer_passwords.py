"""Passwords and access tokens: what they cost, and that the event loop does not pay."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from customer_svc.access_tokens import AccessTokens
from customer_svc.passwords import Passwords
from mesh.errors import ResourceExhausted, Unauthenticated
from mesh.rpc.call import Caller, Kind
from mesh.rpc.identity import Tokens
from stack.pki import make_signing_key


class Recorded(Passwords):
    """Notes how many hashes run at once, and holds them until it is let go."""

    def __init__(self, *, at_once: int, max_waiting: int) -> None:
        super().__init__(memory_kib=64, passes=1, lanes=1, at_once=at_once, max_waiting=max_waiting)
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.hashed: list[str] = []

    def held(self, password: str) -> str:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.begun.release()
        self.gate.wait(10)
        with self.lock:
            self.running -= 1
            self.hashed.append(password)
        return password

    async def hash(self, password: str) -> str:
        return await self._in_thread(self.held, password)


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    passwords = Passwords(memory_kib=8 * 1024, passes=1, lanes=1, at_once=2, max_waiting=50)
    await passwords.start()
    yield passwords
    await passwords.stop()


@pytest.fixture
async def held() -> AsyncIterator[Recorded]:
    held = Recorded(at_once=2, max_waiting=3)
    yield held
    held.gate.set()
    await held.stop()


async def two_run(held: Recorded) -> None:
    """Wait until two hashes run."""
    for _ in range(2):
        assert await asyncio.to_thread(held.begun.acquire, timeout=10)


async def test_a_password_matches_its_own_hash_only(passwords: Passwords) -> None:
    one, two = await passwords.hash("a password"), await passwords.hash("a password")
    assert one != two
    assert await passwords.matches("a password", one)
    assert not await passwords.matches("A password", one)
    assert not await passwords.matches("", one)


async def test_with_no_hash_the_answer_is_no_after_the_same_work(passwords: Passwords) -> None:
    password_hash = await passwords.hash("a password")

    def work(against: str | None) -> float:
        began = time.thread_time()
        for _ in range(8):
            passwords._matches("a guess", against or passwords._nobodys)
        return time.thread_time() - began

    assert not await passwords.matches("a guess", None)
    wrong, nobody = await asyncio.gather(asyncio.to_thread(work, password_hash), asyncio.to_thread(work, None))
    assert 0.4 < nobody / wrong < 2.5


async def test_the_event_loop_turns_while_passwords_are_hashed(passwords: Passwords) -> None:
    hashing = asyncio.gather(*(passwords.hash("a password") for _ in range(8)))
    turns = 0
    while not hashing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20


async def test_a_few_are_hashed_at_once_and_few_may_wait(held: Recorded) -> None:
    admitted = [asyncio.create_task(held.hash("x")) for _ in range(5)]
    await two_run(held)
    with pytest.raises(ResourceExhausted) as refusal:
        await held.hash("one too many")
    assert (refusal.value.reason, refusal.value.retry_after) == ("OVERLOADED", 1.0)
    held.gate.set()
    await asyncio.gather(*admitted)
    assert held.most == 2
    assert await held.hash("there is room again") == "there is room again"


async def test_a_caller_who_gives_up_frees_a_place_but_no_thread(held: Recorded) -> None:
    begun = [asyncio.create_task(held.hash("begun")) for _ in range(2)]
    await two_run(held)
    waiting = [asyncio.create_task(held.hash("waiting")) for _ in range(3)]
    await asyncio.sleep(0)
    for task in (*begun, *waiting):
        task.cancel()
    await asyncio.wait([*begun, *waiting])
    # The places are free, while the threads that were given up still hash: the newcomer waits for one of them.
    newcomer = asyncio.create_task(held.hash("newcomer"))
    await asyncio.sleep(0)
    held.gate.set()
    assert await newcomer == "newcomer"
    assert held.most == 2
    assert "waiting" not in held.hashed


async def test_a_hash_of_other_parameters_is_outdated(passwords: Passwords) -> None:
    raised = Passwords(memory_kib=8 * 1024, passes=2, lanes=1, at_once=1, max_waiting=1)
    password_hash = await passwords.hash("a password")
    assert not passwords.is_outdated(password_hash)
    assert raised.is_outdated(password_hash)
    assert await raised.matches("a password", password_hash)
    await raised.stop()


def test_an_access_token_is_accepted_by_every_service_until_it_expires(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path)
    customer_id, now = uuid4(), datetime.now(UTC)
    tokens = AccessTokens(key.private, timedelta(minutes=15))
    token, expire_time = tokens.issue(customer_id, now)
    assert timedelta(minutes=14, seconds=59) <= expire_time - now <= timedelta(minutes=15)
    assert Tokens(key.jwks).caller(f"Bearer {token}") == Caller(Kind.CUSTOMER, str(customer_id))
    assert tokens.issue(customer_id, now)[0] != token
    expired, _ = tokens.issue(customer_id, now - timedelta(minutes=16))
    with pytest.raises(Unauthenticated):
        Tokens(key.jwks).caller(f"Bearer {expired}")


def test_a_signing_key_without_its_private_half_is_refused(tmp_path: Path) -> None:
    public = json.loads(make_signing_key(tmp_path).jwks.read_text())["keys"][0]
    (tmp_path / "public.json").write_text(json.dumps(public))
    with pytest.raises(ValueError, match="private"):
        AccessTokens(tmp_path / "public.json", timedelta(minutes=15))
