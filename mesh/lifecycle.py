"""The life of a service: start its parts in order, serve until told to stop, drain, stop them in reverse."""

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
    """Something that is started and stopped with the service."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Service:
    """A wired service: its parts in the order in which they start. The server comes last, so it stops first."""

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        self.name = name
        self.parts = tuple(parts)
        self._started: list[Part] = []

    async def start(self) -> None:
        """Start all parts; when one fails, stop those that run and raise what it raised."""
        try:
            for part in self.parts:
                await part.start()
                self._started.append(part)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop what was started, in reverse; a part that fails to stop does not keep the others from it."""
        while self._started:
            part = self._started.pop()
            try:
                await part.stop()
            except Exception:
                log.exception("not stopped", part=type(part).__name__)


def run(name: str, settings: type[Settings], build: Callable[[Settings], Service]) -> None:
    """Run a service until SIGTERM or SIGINT, then drain and exit 0; exit 1 when it cannot start, 2 for bad settings."""
    try:
        read = settings_module.read(settings)
    except SettingsInvalid as error:
        sys.exit(_said(f"{name}: the settings are not valid\n{error}", 2))
    telemetry.configure(name, read.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(name, read, build))
        except MeshError as error:
            sys.exit(_said(f"{name} cannot start: {error.message}", 1))


async def _serve(name: str, settings: Settings, build: Callable[[Settings], Service]) -> None:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    service = build(settings)
    await service.start()
    # What lives until the end need not be looked at in every collection. Calls die without one (ADR-0027); by default
    # there would be one whenever 700 objects more are alive, which a batch of calls has.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    log.info("ready", service=name)
    await told.wait()
    log.info("stopping", service=name)
    await service.stop()


def _said(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code
