"""Starts programs, keeps them running, and leaves nothing behind when it ends.

A program that dies is started again, at once the first time and then with a doubling pause, until it has
stayed ready for a while. One that cannot start at all fails the start, with the end of its log.
What it started ends with it, even when it is killed: the kernel sees to that (`stack.launch`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from types import TracebackType
from typing import Self

from mesh import tasks
from stack.errors import StartFailed
from stack.logfile import open_log, rotate, tail
from stack.process import Identity, end_group, launched
from stack.system_user import SystemUser

Probe = Callable[[], Awaitable[None]]
"""Asks a program once whether it is ready: returns when it is, raises when it is not or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, how to know that it is ready, and how to stop it."""

    name: str
    command: Sequence[str]
    address: str
    """Where it is reached, for people and for `mesh status`."""
    probe: Probe
    environment: Mapping[str, str] = field(default_factory=dict)
    """All of its environment: nothing is inherited."""
    user: SystemUser | None = None
    ready_within: float = 30.0
    """Seconds from its first start after which a program that is still not ready fails the start."""
    drain: Callable[[], Awaitable[None]] | None = None
    """Called before the stop signal: returns when the program takes no more calls and has answered all. What it raises
    changes nothing."""
    drain_within: float = 10.0
    """Seconds after which the stop signal is sent all the same."""
    stop_signal: Signals = SIGTERM
    stop_grace: float = 15.0
    """Seconds between the stop signal and SIGKILL."""
    orphan_signal: Signals = SIGKILL
    """What the kernel sends when the supervisor is gone. The parts survive SIGKILL by design."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How patient a supervisor is; times are in seconds."""

    deaths_at_start: int = 3
    """A program that dies this often before it was ever ready fails the start."""
    deaths_to_say: int = 3
    """Deaths in a row after which a program is said to keep dying."""
    steady_after: float = 30.0
    """A program that ran this long has its earlier deaths forgotten."""
    restart_after: float = 0.1
    """The pause before the first restart; it doubles with each death in a row."""
    restart_at_most: float = 15.0
    """The longest such pause."""
    probe_every: float = 5.0
    """Between two looks at a program that is ready. A death is noticed at once, without looking."""
    answer_within: float = 5.0
    """A probe that takes longer counts as a refusal."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """A program ended that should not have."""

    name: str
    how: str
    """As "was ended by SIGKILL" or "exited with code 1"."""
    in_a_row: int
    restart_in: float
    """Seconds until it is started again."""
    log_end: str
    """The last lines of its log if it keeps dying, else empty."""


class Supervised:
    """One program under supervision: its process now, and whether it answers."""

    def __init__(
        self, program: Program, log: Path, pace: Pace, *, changed: Callable[[], None], recovered: Callable[[], None]
    ) -> None:
        self.program = program
        self.log = log
        self.restarts = 0
        """How often it was started again."""
        self.identity: Identity | None = None
        """Of the process that runs now, if one does."""
        self.is_ready = False
        self.is_doubted = False
        """Whether it is yet to be asked again, since another has recovered."""
        self.last_refusal = "none"
        """Why it was not ready when it was last asked."""
        self._pace = pace
        self._changed = changed
        self._recovered = recovered
        self._has_been_ready = False
        self._to_be_asked = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    async def spawn(self) -> None:
        """Start the process. Raises OSError when the system has no room for it."""
        with open_log(self.log) as log:
            self._log_start = log.seek(0, SEEK_END)
            self._process = await asyncio.create_subprocess_exec(
                *launched(self.program.command, user=self.program.user, orphan_signal=self.program.orphan_signal),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.program.environment),
                # A session of its own, so that Ctrl-C reaches the supervisor alone and the stop is in order.
                start_new_session=True,
            )
        self.identity = Identity.of(self._process.pid)
        self._changed()

    async def until_ready(self) -> int | None:
        """Wait until the program answers (None) or has ended (its exit code, negative for a signal)."""
        return await self._unless_it_ends(self._become_ready())

    async def until_end(self) -> int:
        """Wait until the process has ended, keeping `is_ready` true to what it answers; return its exit code."""
        code = await self._unless_it_ends(self._watch())
        assert code is not None, "watching has no end of its own"
        return code

    def doubt(self) -> None:
        """Ask it again at once: while another was not there, it may have become unready as well."""
        self.is_doubted = True
        self._to_be_asked.set()

    async def stop(self) -> None:
        """Drain, send the stop signal, and SIGKILL when the grace is over; return when the process has ended."""
        await self._drain()
        # Of one that has ended, the number may be that of another process by now.
        if self._process is None or self.identity is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(self.program.stop_signal)
        try:
            async with asyncio.timeout(self.program.stop_grace):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self._ended()

    def last_words(self) -> str:
        """Return the end of what the process has logged, for a person."""
        lines = tail(self.log, 15, since=self._log_start)
        if not lines:
            return f"It has logged nothing to {self.log}."
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in lines)])

    def kill(self) -> None:
        """End the process and all it started, now."""
        if self._process is not None and self._process.returncode is None:
            end_group(self._process.pid, SIGKILL)

    async def _drain(self) -> None:
        drain = self.program.drain
        if drain is None or self.identity is None:
            return

        async def drained() -> None:
            await drain()

        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.program.drain_within):
                await self._unless_it_ends(drained())

    async def _unless_it_ends(self, work: Coroutine[None, None, None]) -> int | None:
        assert self._process is not None
        working = asyncio.create_task(work)
        ending = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.end(working, ending)
        if not ending.cancelled():
            self._ended()
            return ending.result()
        return working.result()

    def _ended(self) -> None:
        assert self._process is not None
        # What a killed process had started itself must not be in the way of the next one.
        end_group(self._process.pid, SIGKILL)
        self.identity = None
        self.is_ready = False
        self._changed()

    async def _become_ready(self) -> None:
        pause = 0.02
        while not await self._ask():
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, 0.25)

    async def _watch(self) -> None:
        while True:
            await self._become_ready()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.probe_every):
                    await self._to_be_asked.wait()

    async def _ask(self) -> bool:
        was_ready, was_doubted = self.is_ready, self.is_doubted
        self._to_be_asked.clear()
        try:
            async with asyncio.timeout(self._pace.answer_within):
                await self.program.probe()
        except Exception as refusal:  # noqa: BLE001 - whatever a client library raises means "not ready"
            self.last_refusal = f"{type(refusal).__name__}: {refusal}".removesuffix(": ")
            self.is_ready = False
        else:
            self.is_ready = True
        self.is_doubted = self._to_be_asked.is_set()
        if self.is_ready and not was_ready:
            if self._has_been_ready:
                self._recovered()
            self._has_been_ready = True
        if (self.is_ready, self.is_doubted) != (was_ready, was_doubted):
            self._changed()
        return self.is_ready


class Supervisor:
    """Keeps a set of programs running.

        async with Supervisor(logs=folder) as supervisor:
            await supervisor.start([postgres, nats])     # side by side; returns when both are ready
            await supervisor.start([order])              # will be stopped first

    `changed` is called whenever a process or a readiness is another; `died` at each unexpected end.
    """

    def __init__(
        self,
        *,
        logs: Path,
        pace: Pace | None = None,
        changed: Callable[[], None] = lambda: None,
        died: Callable[[Death], None] = lambda _: None,
    ) -> None:
        self.logs = logs
        """The folder of the programs' log files."""
        self._pace = pace or Pace()
        self._changed = changed
        self._died = died
        self._groups: list[list[Supervised]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._tasks.append(asyncio.create_task(self._rotate_logs()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def supervised(self) -> list[Supervised]:
        """All programs, in the order of their start."""
        return [one for group in self._groups for one in group]

    def __getitem__(self, name: str) -> Supervised:
        """Return the program of this name; KeyError if there is none."""
        return {one.program.name: one for one in self.supervised}[name]

    async def start(self, programs: Iterable[Program]) -> None:
        """Start the programs side by side and return when all are ready.

        Raises:
            StartFailed: one died too often or took too long; it is named, with the end of its log.
        """
        group = [
            Supervised(
                program,
                self.logs / f"{program.name}.log",
                self._pace,
                changed=self._changed,
                recovered=self._doubt_all,
            )
            for program in programs
        ]
        self._groups.append(group)
        await together(*(self._start(one) for one in group))
        self._tasks += [asyncio.create_task(self._keep(one)) for one in group]

    async def _start(self, one: Supervised) -> None:
        name, timeout = one.program.name, one.program.ready_within
        deaths = 0
        try:
            async with asyncio.timeout(timeout):
                await one.spawn()
                while (code := await one.until_ready()) is not None:
                    deaths += 1
                    if deaths == self._pace.deaths_at_start:
                        raise StartFailed(f"{name} does not start: it {_how(code)}.\n{one.last_words()}")
                    await asyncio.sleep(self._pause(deaths))
                    await one.spawn()
        except TimeoutError:
            refusal = f"Its last answer was {one.last_refusal}."
            raise StartFailed(f"{name} is not ready after {timeout:g} s. {refusal}\n{one.last_words()}") from None
        except OSError as error:
            raise StartFailed(f"{name} cannot be started: {error}") from error

    async def _keep(self, one: Supervised) -> None:
        """Start a running program again whenever it ends."""
        clock = asyncio.get_running_loop().time
        deaths = 0
        started = clock()
        how = _how(await one.until_end())
        while True:
            deaths = 1 if clock() - started > self._pace.steady_after else deaths + 1
            pause = self._pause(deaths)
            log_end = one.last_words() if deaths >= self._pace.deaths_to_say else ""
            self._died(Death(name=one.program.name, how=how, in_a_row=deaths, restart_in=pause, log_end=log_end))
            await asyncio.sleep(pause)
            started = clock()
            one.restarts += 1
            try:
                await one.spawn()
                how = _how(await one.until_end())
            except OSError as error:  # out of processes, memory or files: it may pass
                how = f"could not be started: {error}"

    def _pause(self, deaths: int) -> float:
        return tasks.Backoff(self._pace.restart_after, self._pace.restart_at_most).after(deaths)

    def _doubt_all(self) -> None:
        for one in self.supervised:
            one.doubt()

    async def stop(self) -> None:
        """Stop everything, last started first. Each gets its stop signal, its grace, then SIGKILL."""
        await tasks.end(*self._tasks)
        self._tasks.clear()
        for group in reversed(self._groups):
            await asyncio.gather(*(one.stop() for one in group))

    async def broken(self) -> None:
        """Return never; raise if the supervision itself has failed."""
        await asyncio.gather(*self._tasks)

    def kill(self) -> None:
        """End everything now, in no order and without grace, for good. `stop` is still to be called."""
        for task in self._tasks:
            task.cancel()
        for one in self.supervised:
            one.kill()

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.sleep(1)
            for one in self.supervised:
                # On a full disk the logs grow on; the programs matter more.
                with contextlib.suppress(OSError):
                    rotate(one.log)


async def together(*work: Coroutine[None, None, object]) -> None:
    """Run all side by side. The first failure ends the others and is raised as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _how(code: int) -> str:
    return f"was ended by {Signals(-code).name}" if code < 0 else f"exited with code {code}"
