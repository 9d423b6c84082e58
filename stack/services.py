"""The four services of the mesh, as programs: their settings, and when they are ready."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from stack.pki import Credentials, SigningKey
from stack.ports import free_ports
from stack.servers import Servers
from stack.supervisor import Program

NAMES: Final = ("customer", "product", "payment", "order")
"""The services, in the order in which they start."""

_HOST: Final = "127.0.0.1"

# Not for the services: with this one a service could open every database.
_WITHHELD: Final = ("MESH_POSTGRES_URL",)


@dataclass(frozen=True, kw_only=True)
class Services:
    """The services of one mesh, each as one or more workers on ports of their own."""

    ports: Mapping[str, Sequence[int]]
    """The ports of each service, one a worker. A worker keeps its port when it is started again."""
    servers: Servers
    credentials: Mapping[str, Credentials]
    """Of each service, and of `operator`, who asks them whether they are ready."""
    signing_key: SigningKey
    page_secret: str
    webhook_secret: str
    """It signs the webhooks of the sandbox provider."""
    edge_url: str
    """Where the sandbox provider sends them."""
    environment: Mapping[str, str]
    """What the person has set: it reaches the services, and may hold settings of theirs (MESH_PAYMENT_DEADLINE)."""

    @staticmethod
    def choose_ports(workers: Mapping[str, int]) -> dict[str, list[int]]:
        """Return free ports for each service: as many as it has workers, one if it is not named."""
        ports = iter(free_ports(sum(workers.get(name, 1) for name in NAMES), _HOST))
        return {name: [next(ports) for _ in range(workers.get(name, 1))] for name in NAMES}

    def addresses(self, name: str) -> list[tuple[str, int]]:
        """Return host and port of each worker of a service."""
        return [(_HOST, port) for port in self.ports[name]]

    def programs(self, name: str) -> list[Program]:
        """Return the workers of a service: `order`, or `order-1` and so on if there are several."""
        ports = self.ports[name]
        return [
            Program(
                name=name if len(ports) == 1 else f"{name}-{number}",
                # -P: the folder that the mesh was started in is no place to import from.
                command=[sys.executable, "-P", "-m", f"{name}_svc"],
                environment=self._environment(name, port),
                address=f"{_HOST}:{port}",
                probe=_Health(name, f"{_HOST}:{port}", self.credentials["operator"]).check,
                stop_grace=30.0,
            )
            for number, port in enumerate(ports, start=1)
        ]

    def _environment(self, name: str, port: int) -> dict[str, str]:
        own = self.credentials[name]
        settings = {
            "MESH_LISTEN": f"{_HOST}:{port}",
            "MESH_DATABASE_URL": self.servers.postgres.url_for(f"{name}_svc"),
            "MESH_NATS_URL": self.servers.nats.url,
            "MESH_REDIS_URL": self.servers.redis.url,
            "MESH_TLS_CA": str(own.ca),
            "MESH_TLS_CERT": str(own.cert),
            "MESH_TLS_KEY": str(own.key),
            "MESH_JWKS": str(self.signing_key.jwks),
            "MESH_PAGE_SECRET": self.page_secret,
        }
        for other in NAMES:
            settings[f"MESH_{other.upper()}_TARGET"] = ",".join(f"{_HOST}:{port}" for port in self.ports[other])
        if name == "customer":
            settings["MESH_SIGNING_KEY"] = str(self.signing_key.private)
            # glibc: the 19 MiB that a password's hash takes go back to the system, and are not kept for the next one.
            settings["MALLOC_MMAP_THRESHOLD_"] = str(4 * 1024 * 1024)
        inherited = {key: value for key, value in self.environment.items() if key not in _WITHHELD}
        return {**_DEFAULTS, **self._customer_defaults(), **self._payment_defaults(), **inherited, **settings}

    def _customer_defaults(self) -> dict[str, str]:
        # All workers together hash passwords on one core.
        defaults = {"MESH_PASSWORD_CORES": str(1 / len(self.ports["customer"]))}
        if self.environment.get("MESH_EDGE_RATE_PER_CLIENT") == "0":
            # Without limits at the edge, as for load tests from one machine, there is none behind it either.
            defaults["MESH_SIGN_IN_RATE_PER_ADDRESS"] = "0"
        return defaults

    def _payment_defaults(self) -> dict[str, str]:
        return {
            "MESH_SANDBOX_WEBHOOK_SECRET": self.webhook_secret,
            "MESH_SANDBOX_WEBHOOK_URL": f"{self.edge_url}/v1/paymentWebhooks/sandbox",
        }


_DEFAULTS = {
    # glibc asks for huge pages, which the system gives to who asks. In a virtual machine above all, to look up the
    # address of a small page that is not at hand takes longer than to read what is there.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""What a person may set otherwise."""


@dataclass(frozen=True)
class _Health:
    """Asks a service by gRPC whether it serves."""

    service: str
    address: str
    asker: Credentials

    async def check(self) -> None:
        """Return when it serves, raise ConnectionError otherwise."""
        files = (self.asker.ca, self.asker.key, self.asker.cert)
        credentials = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
        options = [
            # Its certificate is for its name, whatever the address.
            ("grpc.ssl_target_name_override", self.service),
            # Shared connections would keep the pauses between attempts of the look before.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.secure_channel(self.address, credentials, options=options) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            try:
                reply = await check(HealthCheckRequest(), timeout=3)
            except grpc.aio.AioRpcError as error:
                raise ConnectionError(f"{error.code().name}: {error.details()}") from None
        if reply.status != HealthCheckResponse.SERVING:
            raise ConnectionError(HealthCheckResponse.ServingStatus.Name(reply.status))
