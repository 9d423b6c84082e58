"""Processes, told apart even when the kernel has given a number to another one."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Self

from stack import launch
from stack.system_user import SystemUser


@dataclass(frozen=True, slots=True)
class Identity:
    """A process id, and when that process started: the two together never come again."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of the process that has this id now, or None if none has."""
        started = _started(pid)
        return cls(pid, started) if started is not None else None

    @classmethod
    def mine(cls) -> Self:
        """Return the identity of this process."""
        identity = cls.of(os.getpid())
        assert identity is not None
        return identity

    def is_alive(self) -> bool:
        return _started(self.pid) == self.started

    async def gone(self, within: float) -> bool:
        """Wait until the process has ended, at most `within` seconds; say whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                # It may be no child of ours, and then nothing tells us of its end.
                while self.is_alive():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        return not self.is_alive()


def launched(command: Sequence[str], *, user: SystemUser | None = None, orphan_signal: Signals = SIGKILL) -> list[str]:
    """Return the command that runs `command` as `user`, and that gets `orphan_signal` when this process ends.

    Strictly, when the thread that starts it ends: it is to be started from the main one.
    """
    options = ["--parent", str(os.getpid()), "--signal", str(int(orphan_signal))]
    if user is not None:
        options += ["--user", f"{user.uid}:{user.gid}"]
        if user.capability is not None:
            options += ["--capability", user.capability]
    return [sys.executable, "-I", "-S", launch.__file__, *options, "--", *command]


def end_group(pid: int, signal: Signals) -> None:
    """Send the signal to the process group that `pid` leads, if there is one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal)


def _started(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, which may hold spaces: proc_pid_stat(5).
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else f"{_boot()}-{fields[18]}"


@cache
def _boot() -> str:
    """This boot of the machine: start times are counted from it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
