"""The payment service as a process that is killed again and again.

A program that has imported the service forks it, because importing takes longer than these processes live.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from signal import SIGKILL

from mesh.program import main
from payment_svc.app import Settings, build
from tests.processes import ROOT
from tests.services import TEST_TIMEOUT_S


class KilledService:
    """At most one process of the payment service at a time."""

    def __init__(self, program: asyncio.subprocess.Process) -> None:
        self._program = program

    async def start(self) -> None:
        """Start a process, which does not serve yet."""
        await self._order("start\n")

    async def kill(self) -> None:
        """kill -9 the process. It is gone when this returns."""
        await self._order("kill\n")

    async def _order(self, line: str) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(line.encode())
        async with asyncio.timeout(TEST_TIMEOUT_S):
            assert (await self._program.stdout.readline()).decode() == line


@asynccontextmanager
async def killed_service(environment: Mapping[str, str]) -> AsyncIterator[KilledService]:
    """The payment service with these settings. No process of it is left at the end."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield KilledService(program)
    finally:
        await program.communicate(b"")


def _obey() -> None:
    """Start and kill a process as the lines of the input say, and repeat each line when that is done."""
    process = 0
    while line := sys.stdin.readline():
        if process:
            _end(process)
        process = os.fork() if line == "start\n" else 0
        if line == "start\n" and not process:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            sys.argv = ["payment_svc"]
            main("payment", Settings, build)
            return
        sys.stdout.write(line)
        sys.stdout.flush()
    if process:
        _end(process)


def _end(process: int) -> None:
    os.kill(process, SIGKILL)
    os.waitpid(process, 0)


if __name__ == "__main__":
    _obey()
