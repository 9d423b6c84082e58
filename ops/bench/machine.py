"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import asyncpg

from gateway.render import envoy_command
from stack.servers.binaries import nats_server

_LIBRARIES = ("grpcio", "protobuf", "asyncpg", "nats-py", "uvloop", "sqlalchemy")


async def described(postgres: asyncpg.Connection) -> Mapping[str, object]:
    """Cores, memory, kernel, and the versions of what matters."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "postgresql": await postgres.fetchval("SHOW server_version"),
        "fsync": await postgres.fetchval("SHOW fsync"),
        "synchronous_commit": await postgres.fetchval("SHOW synchronous_commit"),
        "nats": _said(str(nats_server()), "--version"),
        "envoy": _said(envoy_command(Path())[0], "--version"),
        **{library: version(library) for library in _LIBRARIES},
    }


def _field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


def _said(*command: str) -> str:
    """The version in what a program says of itself, as `envoy  version: <commit>/1.36.2/Clean/…`."""
    said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return next((part.lstrip("v") for part in said.replace("/", " ").split() if part.lstrip("v").count(".") == 2), "")
