"""What the machine and its parts can do at most, measured before and after a load; results are ratios to the means.

E  calls a second of a bare grpc.aio echo, as JSON through an Envoy of its own: no TLS, no tokens, no services. The same
   driver and number of connections as the load.
R  one-order transactions a second by raw asyncpg, 16 connections to the same PostgreSQL: BEGIN, one order, three lines
   with `unnest`, one outbox row, COMMIT. Each of the five is a round trip. On asyncio's own loop, as the marks in R
   were set: their client took 230 us of CPU a transaction, which is what it takes on this loop. On uvloop, on which
   the services run, it takes 120; that rate is told beside R.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from gateway.render import envoy_command
from ops.bench import echo
from ops.bench.driver import Action, Driver, Plan
from ops.bench.http import parse
from ops.running_mesh import RunningMesh
from stack.errors import StackError
from stack.ports import free_ports

SECONDS = 4.0
"""How long each is measured, of loads that are not shorter."""
WARM_UP_S = 1.0
_READY_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """The yardsticks, a second each."""

    echo_calls: float
    """E."""
    transactions: float
    """R."""
    transactions_on_uvloop: float
    """The same by a client on uvloop."""

    def mean(self, other: Calibration) -> Calibration:
        """The machine is faster or slower by a fifth from one minute to the next, so one look says little."""
        return Calibration(*(mean(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


async def calibrate(target: RunningMesh, driver: Driver, connections: int, seconds: float) -> Calibration:
    """Measure each for that long, one after the other, while nothing else is under way."""
    return Calibration(
        echo_calls=await _echo(driver, connections, seconds),
        transactions=await _transactions(target, "asyncio", seconds),
        transactions_on_uvloop=await _transactions(target, "uvloop", seconds),
    )


async def _echo(driver: Driver, connections: int, seconds: float) -> float:
    request = b'{"text":"%b"}' % (b"x" * 64)
    head = b"POST /v1/echo HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(
        request
    )
    async with _echo_behind_envoy() as port:
        plan = Plan(
            host="127.0.0.1",
            port=port,
            users=[b""],
            actions=[Action(kind="echo", requests=[(head, request)])],
            connections=connections,
            seconds=WARM_UP_S + seconds,
            mark="echo",
        )
        begins: list[float] = []
        tally = await driver.drive(plan, begins.append)
    if tally.failures:
        raise StackError(f"The echo behind Envoy failed: {dict(tally.failures)}.")
    begin = begins[0] + WARM_UP_S
    return tally.answers["echo"].between(begin, begin + seconds) / seconds


@asynccontextmanager
async def _echo_behind_envoy() -> AsyncIterator[int]:
    """The echo service and an Envoy in front of it; the port of that."""
    upstream, port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        (folder / "echo.binpb").write_bytes(echo.descriptors())
        configuration = folder / "envoy.yaml"
        configuration.write_text(yaml.safe_dump(_envoy(port, upstream, folder / "echo.binpb")))
        with (folder / "log").open("wb") as log:
            processes = [
                await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
                for command in (
                    [sys.executable, "-P", "-m", "ops.bench.echo", str(upstream)],
                    # As many worker threads as the edge has.
                    envoy_command(configuration),
                )
            ]
            try:
                await _answering(port)
                yield port
            finally:
                for process in processes:
                    if process.returncode is None:
                        process.terminate()
                await asyncio.gather(*(process.wait() for process in processes))


async def _answering(port: int) -> None:
    """Wait until the echo answers."""
    request = b"POST /v1/echo HTTP/1.1\r\nhost: bench\r\ncontent-length: 2\r\n\r\n{}"
    try:
        async with asyncio.timeout(_READY_WITHIN_S):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(request)
                    answer = parse(await reader.read(65536))
                    writer.close()
                except OSError:
                    answer = None
                if answer is not None and answer.status == 200:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise StackError(f"The echo behind Envoy does not answer within {_READY_WITHIN_S:g} s.") from None


def _envoy(port: int, upstream: int, descriptors: Path) -> dict[str, Any]:
    """Envoy with nothing but the transcoder."""
    types = "type.googleapis.com/envoy.extensions"
    http = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "echo",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "echo",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "echo"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.grpc_json_transcoder",
                "typed_config": {
                    "@type": f"{types}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
                    "proto_descriptor": str(descriptors),
                    "services": [echo.SERVICE],
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"},
            },
        ],
    }
    http2 = {
        "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "echo",
                    "address": _address(port),
                    "filter_chains": [
                        {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]}
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "echo",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "echo",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(upstream)}}]}],
                    },
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                }
            ],
        }
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


async def _transactions(target: RunningMesh, loop: str, seconds: float) -> float:
    # In a process of its own, so that what the bench does besides is not in its way.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "ops.bench.transactions", loop, str(seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    # The URL holds a password: other users see the arguments of a process.
    said, _ = await process.communicate(target.url_for("postgres").encode())
    if process.returncode:
        raise StackError("The one-order transactions could not be measured.")
    return float(said)
