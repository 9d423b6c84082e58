"""The edge of a mesh on one machine: Envoy, configured by `gateway/`."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from gateway.config import Address, EdgeConfig, Limits, TlsFiles
from gateway.render import envoy_command, write
from stack.errors import BinaryMissing, StackError
from stack.pki import Credentials
from stack.plain_http import plain_client
from stack.services import NAMES, Services
from stack.supervisor import Program


class Edge:
    """Envoy on one address, in front of the services."""

    name: Final = "edge"

    def __init__(
        self,
        folder: Path,
        sockets: Path,
        *,
        host: str,
        port: int,
        services: Services,
        credentials: Credentials,
        jwks: Path,
    ) -> None:
        self._folder = folder
        self._admin = sockets / "envoy.sock"
        self._config = EdgeConfig(
            host=host,
            port=port,
            upstreams={name: [Address(*address) for address in services.addresses(name)] for name in NAMES},
            tls=TlsFiles(ca=credentials.ca, cert=credentials.cert, key=credentials.key),
            jwks=jwks,
            limits=limits(services.environment),
            reflection=reflection(services.environment),
            allowed_origins=allowed_origins(services.environment),
            admin=self._admin,
            trusted_proxies=trusted_proxies(services.environment),
        )

    def prepare(self) -> Program:
        """Write Envoy's configuration.

        Raises:
            BinaryMissing: Envoy is not installed.
        """
        try:
            command = envoy_command(write(self._config, self._folder))
        except FileNotFoundError as error:
            raise BinaryMissing(f"{error}. `make setup` installs it.") from error
        return Program(
            name=self.name,
            command=command,
            address=f"{self._config.host}:{self._config.port}",
            probe=self.probe,
            drain=self.drain,
        )

    async def probe(self) -> None:
        """Return when the edge takes calls and has found every service healthy; raise otherwise."""
        async with plain_client(self._admin) as envoy:
            (await envoy.get("http://envoy/ready")).raise_for_status()
            healthy = {"filter": r"^cluster\.\w+\.membership_healthy$", "format": "json"}
            stats = (await envoy.get("http://envoy/stats", params=healthy)).json()["stats"]
        counts = {stat["name"].split(".")[1]: stat["value"] for stat in stats}
        if unreached := [name for name in NAMES if not counts.get(name)]:
            raise ConnectionError(f"it does not reach {', '.join(unreached)}")

    async def drain(self) -> None:
        """Take no more connections, let each answer be the last of its connection, and return when all are given."""
        async with plain_client(self._admin) as envoy:

            async def under_way() -> bool:
                wanted = {"filter": r"^http\.edge\.downstream_rq_active$", "format": "json"}
                stats = (await envoy.get("http://envoy/stats", params=wanted)).json()["stats"]
                return any(stat["value"] for stat in stats)

            for step in ("healthcheck/fail", "drain_listeners"):
                (await envoy.post(f"http://envoy/{step}")).raise_for_status()
            while await under_way():  # noqa: ASYNC110 - Envoy calls nobody back
                await asyncio.sleep(0.02)


def limits(environment: Mapping[str, str]) -> Limits:
    """The limits that the environment sets.

    MESH_EDGE_RATE_PER_CLIENT=0 also removes the limit per address, unless MESH_EDGE_RATE_PER_ADDRESS is set.

    Raises:
        StackError: a limit is not a number.
    """
    usual = Limits()
    per_client = _rate(environment, "MESH_EDGE_RATE_PER_CLIENT", usual.requests_per_second)
    usual_of_address = usual.requests_per_second_of_address if per_client else 0
    return Limits(
        requests_per_second=per_client,
        requests_per_second_of_address=_rate(environment, "MESH_EDGE_RATE_PER_ADDRESS", usual_of_address),
    )


def trusted_proxies(environment: Mapping[str, str]) -> int:
    """The number of proxies in MESH_EDGE_TRUSTED_PROXIES, none when it is not set. Raises StackError."""
    text = environment.get("MESH_EDGE_TRUSTED_PROXIES") or "0"
    if not text.isdecimal() or int(text) > 10:
        raise StackError(f"MESH_EDGE_TRUSTED_PROXIES is {text!r}: it is the number of proxies in front of the edge.")
    return int(text)


def _rate(environment: Mapping[str, str], name: str, usual: int) -> int:
    rate = environment.get(name) or str(usual)
    # Envoy counts in 32 bits.
    if not rate.isdecimal() or int(rate) >= 2**32:
        raise StackError(f"{name} is {rate!r}: it is a number of requests a second, 0 for no limit.")
    return int(rate)


def reflection(environment: Mapping[str, str]) -> bool:
    """Whether MESH_REFLECTION, which the services read as well, leaves reflection on. Raises StackError."""
    text = environment.get("MESH_REFLECTION") or "true"
    try:
        return TypeAdapter(bool).validate_python(text)
    except ValidationError:
        raise StackError(f"MESH_REFLECTION is {text!r}: it is true or false.") from None


def allowed_origins(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The web origins of MESH_EDGE_CORS_ORIGINS, separated by commas; any origin when it is not set.

    Raises:
        StackError: one of them is not an origin.
    """
    text = environment.get("MESH_EDGE_CORS_ORIGINS", "*")
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise StackError(
                f"MESH_EDGE_CORS_ORIGINS has {origin!r}: an origin is * or like https://shop.example, without a path."
            )
    return origins


# As browsers send it: in lower case, and without the default port.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
