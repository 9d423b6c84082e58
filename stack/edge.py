"""The edge of a mesh on one machine: Envoy, configured by `gateway/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.admin import Admin
from gateway.config import Address, EdgeConfig, TlsFiles
from gateway.render import envoy_command, write
from gateway.settings import EdgeSettings
from mesh.settings import SettingsInvalid
from stack.errors import BinaryMissing, StackError
from stack.pki import Credentials
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
        settings = edge_settings(services.environment)
        self._config = EdgeConfig(
            host=host,
            port=port,
            upstreams={name: [Address(*address) for address in services.addresses(name)] for name in NAMES},
            tls=TlsFiles(ca=credentials.ca, cert=credentials.cert, key=credentials.key),
            jwks=jwks,
            limits=settings.limits(),
            reflection=settings.reflection,
            docs=settings.edge_docs,
            allowed_origins=settings.edge_cors_origins,
            admin=self._admin,
            trusted_proxies=settings.edge_trusted_proxies,
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
        await Admin(self._admin).require_ready(NAMES)

    async def drain(self) -> None:
        """Take no more connections, let each answer be the last of its connection, and return when all are given."""
        await Admin(self._admin).drain()


def edge_settings(environment: Mapping[str, str]) -> EdgeSettings:
    """The settings of the edge in `environment`. By default, scripts of any origin may call on one machine.

    Raises:
        StackError: one of them is not valid.
    """
    try:
        settings = EdgeSettings.of(environment)
    except SettingsInvalid as error:
        raise StackError(str(error)) from None
    if "MESH_EDGE_CORS_ORIGINS" not in environment:
        return settings.model_copy(update={"edge_cors_origins": ("*",)})
    return settings
