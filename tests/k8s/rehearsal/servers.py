"""PostgreSQL, NATS and Redis of the rehearsal, started by `stack/` on addresses of the bridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stack.passwords import keep_passwords
from stack.ports import free_ports
from stack.servers import EmbeddedNats, EmbeddedPostgres, EmbeddedRedis, Postgres, Servers
from stack.servers.postgres import SUPERUSER
from stack.supervisor import Program, Supervisor
from tests.k8s.rehearsal import node


class BridgedPostgres(EmbeddedPostgres):
    """PostgreSQL that is also reached by TCP, from all pods."""

    def __init__(self, folder: Path, sockets: Path, passwords: Mapping[str, str], addresses: Sequence[str]) -> None:
        super().__init__(folder, sockets, passwords, is_durable=False)
        self._access = folder / "pg_hba.conf"
        self._addresses = addresses

    async def prepare(self) -> Program:
        program = await super().prepare()
        self._access.write_text(f"local all all scram-sha-256\nhost all all {node.PODS} scram-sha-256\n")
        self._access.chmod(0o644)
        more = [f"--listen_addresses={','.join(self._addresses)}", f"--hba_file={self._access}"]
        return replace(program, command=[*program.command, *more])


class BridgedNats(EmbeddedNats):
    """NATS that is reached from all pods."""

    def __init__(self, folder: Path, password: str, address: str) -> None:
        super().__init__(folder, free_ports(2), password)
        self._address = address

    async def prepare(self) -> Program:
        program = await super().prepare()
        return replace(program, command=[*program.command, "--addr", self._address, "--port", "4222"])


class BridgedRedis(EmbeddedRedis):
    """Redis that is also reached by TCP, from all pods."""

    def __init__(self, folder: Path, sockets: Path, address: str) -> None:
        super().__init__(folder, sockets)
        self._address = address

    async def prepare(self) -> Program:
        program = await super().prepare()
        return replace(
            program, command=[*program.command, "--port", "6379", "--bind", self._address, "--protected-mode", "no"]
        )


@dataclass(frozen=True, kw_only=True)
class Bridged:
    """The three servers and what pods need to know of them."""

    servers: Servers
    passwords: Mapping[str, str]

    @classmethod
    def under(cls, folder: Path, supervisor: Supervisor, addresses: Mapping[str, str]) -> Bridged:
        """Describe them. `addresses` are those of `nats`, `redis` and each database, as `order-db`."""
        sockets = folder / "sockets"
        # Others than root pass through it, to the socket that is theirs.
        sockets.mkdir(mode=0o711)
        servers = Servers.under(folder, sockets, supervisor)
        passwords = keep_passwords(folder / "secrets" / "passwords.json", ["nats"])
        of_databases = [address for name, address in addresses.items() if name.endswith("-db")]
        return cls(
            servers=replace(
                servers,
                postgres=BridgedPostgres(folder / "postgres", sockets / "postgres", passwords, of_databases),
                nats=BridgedNats(folder / "nats", passwords["nats"], addresses["nats"]),
                redis=BridgedRedis(folder / "redis", sockets, addresses["redis"]),
            ),
            passwords=passwords,
        )

    def urls(self, service: str) -> dict[str, str]:
        """The URLs in the secret of a service, with the names that the servers have in a cluster."""
        database = Postgres(f"postgresql://{SUPERUSER}@{service}-db-rw:5432/{SUPERUSER}", self.passwords)
        return {
            "database-url": database.url_for(f"{service}_svc"),
            "nats-url": f"nats://mesh:{self.passwords['nats']}@nats:4222",
            "redis-url": "redis://redis:6379/0",
        }
