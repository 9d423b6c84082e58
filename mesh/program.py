"""A service as a program: `python -m order_svc` runs it, `--check` checks its settings, `--help` lists them."""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable

from mesh import lifecycle
from mesh import settings as settings_module
from mesh.lifecycle import Service
from mesh.rpc import reflection
from mesh.settings import Settings, SettingsInvalid

_CHECK = "check the settings and build the service, without a network; print the result and exit with 0 or 1"


def main(name: str, settings: type[Settings], build: Callable[[Settings], Service]) -> None:
    """Run the service, check it or print the help, depending on the command line."""
    parser = ArgumentParser(
        prog=f"python -m {name}_svc",
        description=f"Run the {name} service until SIGTERM or SIGINT, then drain it.\n"
        "Exits with 0 after draining, with 1 if it cannot start, and with 2 if its settings are not valid.",
        epilog=f"settings, from the environment:\n\n{settings_module.describe(settings)}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help=_CHECK)
    if parser.parse_args().check:
        check(name, settings, build)
    else:
        lifecycle.run(name, settings, build)


def check(name: str, settings: type[Settings], build: Callable[[Settings], Service]) -> None:
    """Read the settings, load the contracts and build the service. Exits with 1 and all errors if that fails."""
    try:
        read = settings_module.read(settings)
        reflection.load_contracts()
        asyncio.run(_build(read, build))
    except SettingsInvalid as error:
        sys.exit(f"{name}: the settings are not valid\n{error}")
    except Exception as error:  # noqa: BLE001  # any error is reported with its type
        sys.exit(f"{name}: it cannot be built: {type(error).__name__}: {error}")
    sys.stdout.write(f"{name}: the settings are valid, and the service can be built\n")


async def _build(read: Settings, build: Callable[[Settings], Service]) -> Service:
    # In an event loop, as when the service runs.
    return build(read)
