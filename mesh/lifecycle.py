"""The lifecycle of a service: start its parts in order, serve until a signal, drain, stop them in reverse order."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import uvloop

from mesh import settings as settings_module
from mesh.errors import MeshError
from mesh.observe import logs as telemetry
from mesh.settings import Settings, SettingsInvalid

log = structlog.get_logger(__name__)


class Part(Protocol):
    """A part that is started and stopped with the service."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Service:
    """A composed service: its parts in the order in which they start. The server is the last, so it stops first."""

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        self.name = name
        self.parts = tuple(parts)
        self._started: list[Part] = []

    async def start(self) -> None:
        """Start all parts. If one fails, stop the started ones and raise its error."""
        try:
            for part in self.parts:
                await part.start()
                self._started.append(part)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the started parts in reverse order. If one fails to stop, the others are stopped nevertheless."""
        while self._started:
            part = self._started.pop()
            try:
                await part.stop()
            except Exception:
                log.exception("not stopped", part=type(part).__name__)


def run(name: str, settings: type[Settings], build: Callable[[Settings], Service]) -> None:
    """Run a service until SIGTERM or SIGINT, drain it and exit with 0.

    Exits with 1 if the service cannot start and with 2 if its settings are not valid.
    """
    try:
        read = settings_module.read(settings)
    except SettingsInvalid as error:
        sys.exit(_said(f"{name}: the settings are not valid\n{error}", 2))
    telemetry.configure(name, read.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(name, read, build))
        except SettingsInvalid as error:
            sys.exit(_said(f"{name}: the settings are not valid\n{error}", 2))
        except MeshError as error:
            sys.exit(_said(f"{name} cannot start: {error.message}", 1))


async def _serve(name: str, settings: Settings, build: Callable[[Settings], Service]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    service = build(settings)
    await service.start()
    # Objects that exist now live until the end, so garbage collections need not visit them. Calls leave no cycles
    # (ADR-0027), so collections can be rare: the default threshold of 700 objects is exceeded by one batch of calls.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    log.info("ready", service=name)
    await stopping.wait()
    log.info("stopping", service=name)
    await service.stop()


def _said(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code
