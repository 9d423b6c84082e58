"""The edge as a program: `python -m gateway` renders Envoy's configuration, runs Envoy until SIGTERM and drains it."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress

import httpx
import structlog

from gateway.admin import Admin
from gateway.render import envoy_command, write, write_keys
from gateway.settings import EdgeProgramSettings
from mesh.jobs import Periodic
from mesh.observe import logs
from mesh.settings import SettingsInvalid, describe, read
from mesh.watched_file import WatchedFile

log = structlog.get_logger(__name__)

_CHECK = "check the settings and render Envoy's configuration, without a network; exit with 0 or 1"
_KEYS_INTERVAL_S = 1.0
"""How often the file with the keys of access tokens is checked for a new version."""
_STOP_GRACE_S = 5.0
"""How long Envoy may take to exit after SIGTERM."""


def main() -> None:
    """Run the edge, check it or print the help, depending on the command line.

    Exits with 2 if the settings are not valid, and with 1 if Envoy cannot run or ends by itself.
    """
    parser = ArgumentParser(
        prog="python -m gateway",
        description="Run the edge until SIGTERM or SIGINT, then drain it. A second signal skips the notice.\n"
        "Exits with 0 after draining, with 1 if Envoy cannot run or ends by itself, and with 2 if its settings are\n"
        "not valid.",
        epilog=f"settings, from the environment:\n\n{describe(EdgeProgramSettings)}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help=_CHECK)
    is_check = parser.parse_args().check
    try:
        settings = read(EdgeProgramSettings)
    except SettingsInvalid as error:
        sys.stderr.write(f"edge: the settings are not valid\n{error}\n")
        sys.exit(1 if is_check else 2)
    if is_check:
        path = write(settings.config(), settings.edge_folder)
        sys.stdout.write(f"edge: the settings are valid, and the configuration is in {path}\n")
        return
    logs.configure("edge", "info")
    try:
        code = asyncio.run(_run(settings))
    except FileNotFoundError as error:
        sys.exit(f"edge: {error}")
    sys.exit(code)


async def _run(settings: EdgeProgramSettings) -> int:
    """Run Envoy. Returns the exit code of the program."""
    stopping, hurrying = asyncio.Event(), asyncio.Event()

    def asked_to_stop() -> None:
        (hurrying if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop)
    config = settings.config()
    keys = WatchedFile(config.jwks)

    async def follow_keys() -> None:
        if keys.has_changed():
            keys.read()
            write_keys(config.jwks, settings.edge_folder)

    following_keys = Periodic("keys of access tokens", _KEYS_INTERVAL_S, follow_keys)
    command = envoy_command(write(config, settings.edge_folder), workers=settings.edge_workers)
    # In a process group of its own: Ctrl-C reaches this process only, which drains Envoy.
    envoy = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    ended = asyncio.create_task(envoy.wait())
    asked = asyncio.create_task(stopping.wait())
    await following_keys.start()
    try:
        await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            log.error("envoy has ended", code=ended.result())
            return 1
        await _drain(settings, hurrying)
        return 0
    finally:
        await following_keys.stop()
        asked.cancel()
        if not ended.done():
            envoy.terminate()
            await asyncio.wait([ended], timeout=_STOP_GRACE_S)
        if not ended.done():
            envoy.kill()
            await ended


async def _drain(settings: EdgeProgramSettings, hurrying: asyncio.Event) -> None:
    log.info("draining")
    admin = Admin(settings.admin)
    try:
        await admin.fail_health_checks()
        # Load balancers go on sending until they have noticed.
        with suppress(TimeoutError):
            await asyncio.wait_for(hurrying.wait(), settings.edge_drain_notice_seconds)
        async with asyncio.timeout(settings.edge_drain_seconds):
            await admin.drain()
    except TimeoutError:
        log.warning("requests in progress are cut off", after_seconds=settings.edge_drain_seconds)
    except httpx.HTTPError as error:
        log.warning("envoy cannot be drained", error=repr(error))
