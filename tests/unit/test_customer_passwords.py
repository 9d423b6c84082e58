"""Passwords and access tokens: what they cost, and that the event loop does not pay."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from argon2 import PasswordHasher, extract_parameters
from joserfc import jws
from joserfc.jwk import ECKey

from customer_svc.access_tokens import AccessTokens
from customer_svc.app import Settings
from customer_svc.passwords import Passwords
from mesh.errors import ResourceExhausted, Unauthenticated
from mesh.rpc.call import Caller, Kind
from mesh.rpc.identity import Tokens
from stack.pki import make_next_signing_key, make_signing_key, use_next_signing_key
from tests.services import TEST_TIMEOUT_S, eventually


class Recorded(Passwords):
    """Notes how many hashes run at once, and holds them until it is released."""

    def __init__(self, *, at_once: int, max_waiting: int, cores: float = 8.0, **more: Any) -> None:
        super().__init__(
            memory_kib=64, passes=1, lanes=1, at_once=at_once, cores=cores, max_waiting=max_waiting, **more
        )
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
        self.gate.wait(TEST_TIMEOUT_S)
        with self.lock:
            self.running -= 1
            self.hashed.append(password)
        return password

    async def hash(self, password: str, *, client: str = "") -> str:
        return await self._in_turn(client, self.held, password)


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    passwords = Passwords(memory_kib=8 * 1024, passes=1, lanes=1, at_once=2, cores=2, max_waiting=50)
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
        assert await asyncio.to_thread(held.begun.acquire, timeout=TEST_TIMEOUT_S)


async def test_a_password_matches_its_own_hash_only(passwords: Passwords) -> None:
    one, two = await passwords.hash("a password", client=""), await passwords.hash("a password", client="")
    assert one != two
    assert await passwords.matches("a password", one, client="")
    assert not await passwords.matches("A password", one, client="")
    assert not await passwords.matches("", one, client="")


async def test_with_no_hash_the_answer_is_no_after_the_same_work(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, verified = PasswordHasher.verify, list[str]()

    def noted(self: PasswordHasher, password_hash: str, password: str) -> bool:
        verified.append(password_hash)
        return verify(self, password_hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", noted)
    password_hash = await passwords.hash("a password", client="")
    assert not await passwords.matches("a guess", password_hash, client="")
    assert not await passwords.matches("a guess", None, client="")
    wrong, nobody = map(extract_parameters, verified)
    assert nobody == wrong, "memory, passes and lanes, which are the work"


async def test_the_event_loop_turns_while_passwords_are_hashed(passwords: Passwords) -> None:
    hashing = asyncio.gather(*(passwords.hash("a password", client="") for _ in range(8)))
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


async def waiting(held: Recorded, number: int) -> None:
    """Wait until so many hashes wait for a thread."""

    async def so() -> bool:
        return held.waiting == number

    await eventually(so)


async def test_a_flood_from_one_client_delays_another_client_by_few_hashes() -> None:
    held = Recorded(at_once=1, max_waiting=300)
    flood = [asyncio.create_task(held.hash(f"flood {number}", client="192.0.2.1")) for number in range(200)]
    await waiting(held, 199)
    others = [asyncio.create_task(held.hash(f"{name} signs in", client=name)) for name in ("ada", "bob")]
    await waiting(held, 201)
    held.gate.set()
    await asyncio.gather(*flood, *others)
    await held.stop()
    assert held.most == 1
    assert held.hashed[:5] == ["flood 0", "flood 1", "ada signs in", "bob signs in", "flood 2"]


async def test_a_flood_that_fills_all_places_gives_them_up_to_other_clients() -> None:
    held = Recorded(at_once=1, max_waiting=4)
    flood = [asyncio.create_task(held.hash(f"flood {number}", client="192.0.2.1")) for number in range(5)]
    await waiting(held, 4)
    with pytest.raises(ResourceExhausted):
        await held.hash("one too many", client="192.0.2.1")
    others = [asyncio.create_task(held.hash(name, client=name)) for name in ("ada", "bob")]
    outcomes = asyncio.gather(*flood, return_exceptions=True)
    await asyncio.wait(flood[3:])
    held.gate.set()
    assert [await other for other in others] == ["ada", "bob"]
    assert [getattr(outcome, "reason", outcome) for outcome in await outcomes] == [
        "flood 0", "flood 1", "flood 2", "OVERLOADED", "OVERLOADED",
    ]  # fmt: skip
    await held.stop()


async def test_hashing_takes_no_more_cores_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of two threads that may take half a core together, each works a quarter of the time.
    clock = threading.local()

    def two_seconds_later() -> float:
        clock.now = getattr(clock, "now", 0.0) + 2.0
        return float(clock.now)

    held = Recorded(at_once=2, cores=0.5, max_waiting=10, clock=two_seconds_later)
    loop = asyncio.get_running_loop()
    call_later, pauses, endings = loop.call_later, list[float](), list[Callable[..., object]]()

    def pause(seconds: float, action: Callable[..., object], *args: Any, **more: Any) -> asyncio.TimerHandle | None:
        if seconds != 6.0:
            return call_later(seconds, action, *args, **more)
        pauses.append(seconds)
        endings.append(action)
        return None

    monkeypatch.setattr(loop, "call_later", pause)
    held.gate.set()
    assert list(await asyncio.gather(held.hash("first"), held.hash("second"))) == ["first", "second"], "at once"
    assert pauses == [6.0, 6.0]
    third = asyncio.create_task(held.hash("third"))
    await waiting(held, 1)
    endings.pop()()
    assert await third == "third", "once a pause has ended"
    await held.stop()


def test_by_default_a_process_hashes_one_password_at_a_time_on_one_core() -> None:
    fields = Settings.model_fields
    assert (fields["password_hashes_at_once"].default, fields["password_lanes"].default) == (1, 1)
    assert fields["password_cores"].default == 1.0


async def test_a_hash_of_other_parameters_is_outdated(passwords: Passwords) -> None:
    raised = Passwords(memory_kib=8 * 1024, passes=2, lanes=1, at_once=1, cores=1, max_waiting=1)
    password_hash = await passwords.hash("a password", client="")
    assert not passwords.is_outdated(password_hash)
    assert raised.is_outdated(password_hash)
    assert await raised.matches("a password", password_hash, client="")
    await raised.stop()


def test_an_access_token_is_accepted_by_every_service_until_it_expires(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path)
    customer_id, session_id, now = uuid4(), uuid4(), datetime.now(UTC)
    tokens = AccessTokens(key.private, timedelta(minutes=15))
    token, expire_time = tokens.issue(customer_id, session_id, now)
    assert timedelta(minutes=14, seconds=59) <= expire_time - now <= timedelta(minutes=15)
    assert Tokens(key.jwks).caller(f"Bearer {token}") == Caller(Kind.CUSTOMER, str(customer_id))
    assert tokens.issue(customer_id, session_id, now)[0] != token
    expired, _ = tokens.issue(customer_id, session_id, now - timedelta(minutes=16))
    with pytest.raises(Unauthenticated):
        Tokens(key.jwks).caller(f"Bearer {expired}")


def test_access_tokens_are_signed_with_the_key_that_replaces_another(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path)
    tokens, verified = AccessTokens(key.private, timedelta(minutes=15)), Tokens(key.jwks)

    def issued() -> str:
        token, _ = tokens.issue(uuid4(), uuid4(), datetime.now(UTC))
        verified.caller(f"Bearer {token}")
        return str(jws.extract_compact(token.encode()).headers()["kid"])

    old = issued()
    new = json.loads(make_next_signing_key(tmp_path).read_text())["kid"]
    assert issued() == old
    use_next_signing_key(tmp_path)
    assert issued() == new
    other_curve = ECKey.generate_key("P-384", {"kid": "other"}).as_dict(private=True)
    for broken in ("{", "{}", '{"kty": "EC", "crv": "P-0", "x": "", "y": ""}', json.dumps(other_curve)):
        key.private.write_text(broken)
        assert [issued(), issued()] == [new, new], "a broken file changes nothing"


def test_a_signing_key_without_its_private_half_is_refused(tmp_path: Path) -> None:
    public = json.loads(make_signing_key(tmp_path).jwks.read_text())["keys"][0]
    (tmp_path / "public.json").write_text(json.dumps(public))
    with pytest.raises(ValueError, match="private"):
        AccessTokens(tmp_path / "public.json", timedelta(minutes=15))
