"""How long a mesh takes until it is of use: from `mesh up` to the first order, and the import of each service."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx

from ops.bench.shop import Shop
from ops.running_mesh import RunningMesh
from stack.errors import StackError
from stack.services import NAMES

_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Seconds."""

    fresh: float
    """From `mesh up` in an empty folder to the first order: databases, keys, a sign-up and three products included."""
    again: float
    """The same in a folder that has its data: nothing is to be made but the order."""
    imports: dict[str, float]
    """Of each service, without the start of Python; the best of three."""


async def mesh(*arguments: str, state: Path) -> None:
    """Run the command to its end. Raises StackError with its message when it fails.

    The settings are the defaults, but customers may sign up as fast as they can: all come from one address here.
    """
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from ops.cli import main; main()", *arguments, "--state", str(state)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**settings, "MESH_SIGN_IN_RATE_PER_ADDRESS": "0"},
    )
    _, errors = await process.communicate()
    if process.returncode:
        raise StackError(f"mesh {' '.join(arguments)} failed:\n{errors.decode().strip()}")


async def until_first_order(state: Path, port: int, tell: Callable[[str], None]) -> float:
    """Start a mesh, leave it running, and place an order; the seconds that took."""
    began = time.monotonic()
    await mesh("up", "--detach", "--edge-port", str(port), state=state)
    shop = await Shop.open(RunningMesh.find(state, {}), customers=1, products=3, tell=tell)
    _, body = shop.orders().requests[0]
    name, _, value = shop.authorizations[0].decode().strip().partition(": ")
    headers = {name: value, "content-type": "application/json", "idempotency-key": str(uuid4())}
    async with httpx.AsyncClient(base_url=shop.target.run.edge, trust_env=False) as http:
        answer = await http.post("/v1/orders", content=body, headers=headers)
    if answer.status_code != httpx.codes.OK:
        raise StackError(f"The first order was answered {answer.status_code}: {answer.text}")
    return time.monotonic() - began


async def import_times() -> dict[str, float]:
    """The seconds that each service's modules take to import."""
    empty = min([await _seconds("pass") for _ in range(_TRIES)])
    return {
        name: min([await _seconds(f"import {name}_svc.app, uvloop") for _ in range(_TRIES)]) - empty for name in NAMES
    }


async def _seconds(code: str) -> float:
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", code)
    if await process.wait():
        raise StackError(f"python -c {code!r} failed.")
    return time.monotonic() - began
