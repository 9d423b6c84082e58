"""The probes of a container, asked from the node as the kubelet does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.plain_http import plain_client
from tests.k8s.rehearsal.fields import Object, require_known


class ProbeFailed(Exception):
    """A probe did not succeed, or failed so often that it counts."""


class Probe:
    """One probe of one container."""

    def __init__(self, spec: Object, address: str, ports: Mapping[str, int]) -> None:
        """`ports` are those of the container, by name."""
        require_known("a probe", spec, {"grpc", "httpGet", "periodSeconds", "timeoutSeconds", "failureThreshold"})
        self._spec = spec
        self._address = address
        self._ports = ports
        self._period: float = spec.get("periodSeconds", 10)
        self._timeout: float = spec.get("timeoutSeconds", 1)
        self._threshold: int = spec.get("failureThreshold", 3)

    async def succeeds(self) -> None:
        """Return when it has succeeded once. Raises ProbeFailed after too many failures in a row."""
        failures = 0
        while True:
            try:
                return await self._ask()
            except ProbeFailed:
                failures += 1
                if failures >= self._threshold:
                    raise
            await asyncio.sleep(self._period)

    async def keeps_succeeding(self) -> None:
        """Ask for ever. Raises ProbeFailed after too many failures in a row."""
        while True:
            await self.succeeds()
            await asyncio.sleep(self._period)

    async def follow(self, tell: Callable[[bool], Awaitable[None]]) -> None:
        """Tell for ever what it says: true when it succeeds, false after too many failures in a row."""
        while True:
            try:
                await self.succeeds()
                await tell(True)
                await self.keeps_succeeding()
            except ProbeFailed:
                await tell(False)
            await asyncio.sleep(self._period)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await (self._ask_grpc(self._spec["grpc"]) if "grpc" in self._spec else self._ask_http())
        except TimeoutError as error:
            raise ProbeFailed(f"no answer in {self._timeout:g} s") from error

    async def _ask_grpc(self, question: Object) -> None:
        async with grpc.aio.insecure_channel(f"ipv4:{self._address}:{question['port']}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                reply = await stub.Check(health_pb2.HealthCheckRequest(service=question.get("service", "")))
            except grpc.aio.AioRpcError as error:
                raise ProbeFailed(f"{error.code().name}: {error.details()}") from error
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise ProbeFailed(f"{question.get('service', '')} is not serving")

    async def _ask_http(self) -> None:
        question = self._spec["httpGet"]
        require_known("httpGet of a probe", question, {"path", "port"})
        port = self._ports[question["port"]] if isinstance(question["port"], str) else question["port"]
        async with plain_client() as client:
            try:
                response = await client.get(f"http://{self._address}:{port}{question['path']}")
            except httpx.TransportError as error:
                raise ProbeFailed(repr(error)) from error
        if not 200 <= response.status_code < 400:
            raise ProbeFailed(f"{question['path']} answers {response.status_code}")
