"""The rendered configuration, as Envoy reads it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gateway.config import Address, EdgeConfig, Limits
from gateway.contracts import TIMES_TO_ANSWER, methods, transcoder_descriptors
from gateway.render import envoy_command, render, write
from tests.gateway.envoy import Envoy
from tests.services import TEST_TIMEOUT_S


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"limits": Limits()},
        {"admin": Address("127.0.0.1", 0)},
        {"admin": Path("admin.sock")},
        {"host": "::1"},
        {"allowed_origins": ["https://shop.example"]},
        {"trusted_proxies": 1},
        {"docs": False},
        {"upstreams": {name: [Address(name, 9000)] for name in ("customer", "product", "order", "payment")}},
    ],
    ids=str,
)
async def test_envoy_accepts_the_configuration(config: EdgeConfig, tmp_path: Path, change: dict[str, object]) -> None:
    path = write(replace(config, **change), tmp_path)  # type: ignore[arg-type]
    process = await asyncio.create_subprocess_exec(
        *envoy_command(path), "--mode", "validate", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert "deprecated" not in output.decode().lower()


async def test_a_second_edge_on_the_port_of_another_ends_and_says_why(
    config: EdgeConfig, edge: Envoy, tmp_path: Path
) -> None:
    path = write(replace(config, port=int(edge.target.rpartition(":")[2])), tmp_path)
    process = await asyncio.create_subprocess_exec(
        *envoy_command(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), TEST_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 1
    assert f"cannot bind '{edge.target}': Address already in use" in output.decode()


def test_what_is_written_is_what_is_rendered(config: EdgeConfig, tmp_path: Path) -> None:
    path = write(config, tmp_path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    assert yaml.load(path.read_text(), loader) == json.loads(json.dumps(render(config, tmp_path)))
    assert (tmp_path / "commerce.binpb").read_bytes() == transcoder_descriptors()
    assert write(config, tmp_path).read_bytes() == path.read_bytes()


def test_only_open_methods_have_routes_to_services(config: EdgeConfig, tmp_path: Path) -> None:
    [listener] = render(config, tmp_path)["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    [host] = manager["route_config"]["virtual_hosts"]
    clusters = {method.upstream for method in methods()}
    to_services = [route for route in host["routes"] if route.get("route", {}).get("cluster") in clusters]
    is_open = [method for method in methods() if method.is_open]
    by_name = [route["match"]["path"] for route in to_services if "metadata" not in route]
    assert by_name == [method.path for method in is_open]
    assert len(is_open) < len(methods())
    # JSON clients have one route for requests without a query and one for those with a query, and one for HEAD.
    by_path = [route for route in to_services if "metadata" in route]
    assert len(by_path) == 2 * len(is_open) + sum(method.verb == "GET" for method in is_open)


def test_only_methods_of_the_contracts_have_a_time_of_their_own() -> None:
    assert TIMES_TO_ANSWER.keys() <= {method.path for method in methods()}


def test_every_upstream_of_the_contracts_has_a_cluster(config: EdgeConfig, tmp_path: Path) -> None:
    clusters = {cluster["name"] for cluster in render(config, tmp_path)["static_resources"]["clusters"]}
    assert {method.upstream for method in methods()} <= clusters


def test_no_key_and_no_token_is_in_the_configuration(config: EdgeConfig, tmp_path: Path) -> None:
    text = write(config, tmp_path).read_text()
    assert "PRIVATE KEY" not in text
    assert '"d":' not in text
