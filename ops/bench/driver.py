"""The load driver: users on HTTP/1.1 connections, in a process of its own, at a few microseconds a request.

Closed loop: each connection is a user, who sends the next request when the last is answered (after a time to think, if
there is one). It shows what the mesh can do. Open loop: requests are due at a fixed rate, whether or not earlier ones
were answered, and use the connection that has been idle longest. It shows how long people wait.

Every answer is kept with its time and latency, so the measured time is chosen afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import multiprocessing
import random
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ops.bench.http import Answer, NotHttp, order_id, parse, reason
from ops.bench.latency import Schedule

if TYPE_CHECKING:
    from ctypes import Array, c_uint64

PAUSE_AFTER_FAILURE_S = 0.1
"""How long a user waits after a failed request."""
GRACE_S = 15.0
"""How long to wait for answers after the last request."""
LEAD_S = 1.5
"""From the start of a load until its first request: meanwhile the users connect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A kind of request."""

    kind: str
    weight: float = 1.0
    """How often it is chosen, compared with the others."""
    requests: Sequence[tuple[bytes, bytes]]
    """Head and body of each variant, of which one is chosen at random. The head ends before the headers of the user."""
    places: bool = False
    """It places an order: it has an idempotency key, and its answer is an order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A load. Times are of `time.monotonic`, which is the same in all processes of a machine."""

    host: str
    port: int
    users: Sequence[bytes]
    """The authorization header of each user, as a line. Users take turns at the connections."""
    actions: Sequence[Action]
    connections: int
    seconds: float
    think: float = 0.0
    """Closed loop: seconds between an answer and the next request."""
    rate: float | None = None
    """Open loop: requests a second. None is a closed loop."""
    last_reason: str = ""
    """A user whose request is refused for this reason stops."""
    mark: str
    """The beginning of all idempotency keys, different for each load."""
    begin: float = 0.0
    """When the first request is sent."""


@dataclass(slots=True)
class Answers:
    """The good answers to one kind of request, in the order of their arrival."""

    times: array[float] = field(default_factory=lambda: array("d"))
    latencies: array[float] = field(default_factory=lambda: array("d"))
    """In seconds; from the due time where there is one."""

    def between(self, begin: float, end: float) -> int:
        """How many arrived in this time."""
        return sum(begin <= time < end for time in self.times)

    def latencies_of_requests(self, begin: float, end: float) -> Iterable[float]:
        """The latencies of the requests of this time, however late their answers arrived."""
        return (
            latency for time, latency in zip(self.times, self.latencies, strict=True) if begin <= time - latency < end
        )


@dataclass(slots=True)
class Tally:
    """The answers to a load."""

    answers: dict[str, Answers] = field(default_factory=dict)
    """By the kind of action."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """All other requests, by kind, and by status and reason or what happened to the connection."""
    orders: set[bytes] = field(default_factory=set)
    """The ids of all accepted orders."""
    unknown: int = 0
    """Orders that may or may not have been placed: the connection broke, or the status was 5xx."""
    first_last_reason: float | None = None
    """When the first user stopped for the plan's `last_reason`."""
    lateness: array[float] = field(default_factory=lambda: array("d"))
    """Open loop: seconds from the due time until the request was sent."""
    requests: int = 0
    cpu_seconds: float = 0.0
    """Of the driver, from the first request to the last answer."""


class _User:
    """A user at a connection, with at most one request in flight."""

    __slots__ = ("action", "authorization", "begun", "received", "socket")

    def __init__(self, authorization: bytes) -> None:
        self.authorization = authorization
        self.socket: socket.socket | None = None
        self.action: Action | None = None
        """The request in flight."""
        self.begun = 0.0
        """The time from which its latency counts."""
        self.received = b""


class Load:
    """A load on one thread and one epoll. Anything more general would use more CPU than the users."""

    def __init__(self, plan: Plan, report: Callable[[int, int], None]) -> None:
        self._plan = plan
        self._report = report
        self._mark = plan.mark.encode()
        self._random = random.Random(plan.mark)  # noqa: S311 - which product is bought is no secret
        self._limits = list(itertools.accumulate(action.weight for action in plan.actions))
        self._end = plan.begin + plan.seconds
        self._schedule = Schedule(plan.rate, plan.begin, self._end) if plan.rate else None
        self._epoll = select.epoll()
        self._connected: dict[int, _User] = {}
        self._idle: deque[_User] = deque()
        self._due: deque[float] = deque()
        self._thinking: list[tuple[float, int, _User]] = []
        self._turn = itertools.count()
        self._under_way = 0
        self._answered = 0
        self._failed = 0
        self._tally = Tally(answers={action.kind: Answers() for action in plan.actions})

    def run(self) -> Tally:
        """Connect, send the load, and wait for the last answer."""
        users = [_User(self._plan.users[number % len(self._plan.users)]) for number in range(self._plan.connections)]
        for user in users:
            self._connect(user)
        time.sleep(max(0.0, self._plan.begin - time.monotonic()))
        cpu = time.process_time()
        if self._schedule is None:
            for number, user in enumerate(users):
                # Users who think begin at different times.
                self._ask_at(self._plan.begin + self._plan.think * number / len(users), user)
        else:
            self._idle.extend(users)
        while (wait := self._until_next()) is not None:
            for descriptor, _ in self._epoll.poll(wait):
                self._read(self._connected[descriptor])
            self._report(self._answered, self._failed)
        self._tally.cpu_seconds = time.process_time() - cpu
        for user in users:
            if user.action is not None:
                self._lost(user, "not answered")
            self._disconnect(user)
        self._epoll.close()
        return self._tally

    def _until_next(self) -> float | None:
        """Send the due requests. Returns seconds until the next is due, None when all is done or the grace is over."""
        now = time.monotonic()
        while self._thinking and self._thinking[0][0] <= now:
            user = heapq.heappop(self._thinking)[2]
            if now < self._end:
                self._ask(user, now)
        if self._schedule is not None:
            self._due.extend(self._schedule.take(now))
            while self._due and self._idle:
                self._ask_due(self._idle.popleft(), now)
        following = self._thinking[0][0] if self._thinking else self._schedule.next if self._schedule else None
        if following is not None and (self._schedule is not None or following < self._end):
            return max(0.0, following - now)
        if (not self._under_way and not self._due) or now > self._end + GRACE_S:
            return None
        return 0.1

    def _ask_at(self, when: float, user: _User) -> None:
        heapq.heappush(self._thinking, (when, next(self._turn), user))

    def _ask_due(self, user: _User, now: float) -> None:
        due = self._due.popleft()
        self._tally.lateness.append(now - due)
        self._ask(user, due)

    def _ask(self, user: _User, begun: float) -> None:
        """Send a request whose latency counts from `begun`."""
        actions = self._plan.actions
        action = actions[0] if len(actions) == 1 else self._random.choices(actions, cum_weights=self._limits)[0]
        head, body = action.requests[int(self._random.random() * len(action.requests))]
        user.action, user.begun = action, begun
        self._under_way += 1
        self._tally.requests += 1
        key = b"idempotency-key: %b-%d\r\n" % (self._mark, self._tally.requests) if action.places else b""
        try:
            connection = user.socket or self._connect(user)
            # A request is far smaller than the empty buffer of the connection.
            connection.sendall(b"%b%b%b\r\n%b" % (head, user.authorization, key, body))
        except OSError as error:
            self._lost(user, f"not sent: {error.strerror}")

    def _read(self, user: _User) -> None:
        assert user.socket is not None
        try:
            received = user.socket.recv(65536)
            answer = parse(user.received + received if user.received else received) if received else None
        except (OSError, NotHttp, ValueError) as error:
            self._lost(user, str(error))
            return
        if not received:
            self._lost(user, "connection closed")
        elif answer is None:
            user.received += received
        elif user.action is None:
            self._lost(user, "")
        else:
            user.received = b""
            if answer.is_last:
                self._disconnect(user)
            self._take(user, user.action, answer)

    def _take(self, user: _User, action: Action, answer: Answer) -> None:
        """Record an answer to `action`."""
        now = time.monotonic()
        user.action = None
        self._under_way -= 1
        if answer.status == 200:
            answers = self._tally.answers[action.kind]
            answers.times.append(now)
            answers.latencies.append(now - user.begun)
            if action.places:
                self._tally.orders.add(order_id(answer.body))
            self._answered += 1
            self._go_on(user, now, self._plan.think)
            return
        why = reason(answer.body)
        if why and why == self._plan.last_reason:
            self._tally.failures[action.kind, f"{answer.status} {why}"] += 1
            if self._tally.first_last_reason is None:
                self._tally.first_last_reason = now
            return
        self._fail(user, action, f"{answer.status} {why}".rstrip(), unknown=answer.status >= 500)

    def _lost(self, user: _User, why: str) -> None:
        """Close a broken connection; the request in flight on it has failed."""
        self._disconnect(user)
        action, user.action = user.action, None
        if action is not None:
            self._under_way -= 1
            self._fail(user, action, why, unknown=True)

    def _fail(self, user: _User, action: Action, why: str, *, unknown: bool) -> None:
        self._tally.failures[action.kind, why] += 1
        self._tally.unknown += unknown and action.places
        self._failed += 1
        self._go_on(user, time.monotonic(), max(self._plan.think, PAUSE_AFTER_FAILURE_S))

    def _go_on(self, user: _User, now: float, pause: float) -> None:
        """Let the user send the next request, now or after the pause."""
        if self._schedule is not None:
            if self._due:
                self._ask_due(user, now)
            else:
                self._idle.append(user)
        elif pause:
            self._ask_at(now + pause, user)
        elif now < self._end:
            self._ask(user, now)

    def _connect(self, user: _User) -> socket.socket:
        connection = socket.create_connection((self._plan.host, self._plan.port), timeout=GRACE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        user.socket = connection
        self._connected[connection.fileno()] = user
        self._epoll.register(connection, select.EPOLLIN)
        return connection

    def _disconnect(self, user: _User) -> None:
        connection, user.socket = user.socket, None
        user.received = b""
        if connection is not None:
            del self._connected[connection.fileno()]
            self._epoll.unregister(connection)
            connection.close()


class Driver:
    """The process that drives loads. It is started once and drives one load after another.

    with Driver() as driver:
        tally = await driver.drive(plan)
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._counts: Array[c_uint64] = context.RawArray("Q", 2)
        self._pool = ProcessPoolExecutor(1, context, initializer=_share, initargs=(self._counts,))

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def answered(self) -> int:
        """Good answers of the current load so far."""
        return self._counts[0]

    @property
    def failed(self) -> int:
        """Other answers of the current load so far."""
        return self._counts[1]

    async def drive(self, plan: Plan, begun: Callable[[float], None] = lambda _: None) -> Tally:
        """Drive a load. `begun` gets the time at which it will begin, as soon as that is known."""
        loop = asyncio.get_running_loop()
        # The first call starts the process.
        await loop.run_in_executor(self._pool, _report, 0, 0)
        plan = replace(plan, begin=time.monotonic() + LEAD_S)
        begun(plan.begin)
        return await loop.run_in_executor(self._pool, _drive, plan)


_counts: Array[c_uint64]


def _share(counts: Array[c_uint64]) -> None:
    """Runs once in the process, which reports its progress in `counts`."""
    global _counts  # noqa: PLW0603 - an initializer of a pool has no other place
    _counts = counts


def _report(answered: int, failed: int) -> None:
    _counts[:] = [answered, failed]


def _drive(plan: Plan) -> Tally:
    # A load makes no cycles, and keeps what it keeps until its end.
    gc.disable()
    try:
        return Load(plan, _report).run()
    finally:
        gc.enable()
