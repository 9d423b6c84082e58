"""The real servers of a mesh on one machine: PostgreSQL, NATS and Redis.

Each is either embedded, run by the supervisor with its data under a folder, or one that is there already.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import asyncpg

from stack.errors import StartFailed
from stack.passwords import keep_passwords
from stack.ports import free_ports
from stack.servers.nats import EmbeddedNats, Nats
from stack.servers.postgres import AUDITORS, DATABASES, SUPERUSER, EmbeddedPostgres, Postgres
from stack.servers.redis import EmbeddedRedis, Redis
from stack.supervisor import Supervisor, together

__all__ = [
    "AUDITORS",
    "DATABASES",
    "EmbeddedNats",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "Nats",
    "Postgres",
    "Redis",
    "Servers",
]

ALL = frozenset({"postgres", "nats", "redis"})


@dataclass(frozen=True, kw_only=True)
class Servers:
    """The three servers, and the supervisor that runs those that are embedded."""

    postgres: Postgres
    nats: Nats
    redis: Redis
    supervisor: Supervisor

    @classmethod
    def under(
        cls,
        folder: Path,
        sockets: Path,
        supervisor: Supervisor,
        *,
        given: Mapping[str, str] | None = None,
        is_durable: bool = True,
    ) -> Self:
        """Describe the servers of one mesh, running nothing yet.

        `given` names those that are there already: MESH_POSTGRES_URL (of a superuser), MESH_NATS_URL, MESH_REDIS_URL.
        A mesh that is not durable is for tests: it trusts the operating system to stay up.
        """
        given = given or {}
        passwords = keep_passwords(folder / "secrets" / "passwords.json", [SUPERUSER, "nats", *DATABASES, *AUDITORS])
        postgres, nats, redis = (given.get(f"MESH_{name}_URL") for name in ("POSTGRES", "NATS", "REDIS"))
        return cls(
            postgres=Postgres(postgres, passwords)
            if postgres
            else EmbeddedPostgres(folder / "postgres", sockets / "postgres", passwords, is_durable=is_durable),
            nats=Nats(nats) if nats else EmbeddedNats(folder / "nats", free_ports(2), passwords["nats"]),
            redis=Redis(redis) if redis else EmbeddedRedis(folder / "redis", sockets),
            supervisor=supervisor,
        )

    @classmethod
    @asynccontextmanager
    async def started(
        cls, folder: Path, *, only: Collection[str] = ALL, is_durable: bool = False
    ) -> AsyncIterator[Self]:
        """Run embedded servers, or `only` some, for the length of a test.

        async with Servers.started(tmp_path, only={"postgres"}) as servers:
            pool = await asyncpg.create_pool(servers.postgres.url_for("order_svc"))
        """
        with short_folder() as sockets:
            async with Supervisor(logs=folder / "logs") as supervisor:
                servers = cls.under(folder, sockets, supervisor, is_durable=is_durable)
                await servers.start(only=only)
                yield servers

    async def start(self, *, only: Collection[str] = ALL) -> None:
        """Start the embedded ones side by side, see that the others answer, and make databases and roles.

        Raises:
            StackError: one cannot be run, does not start, or is not there.
        """
        await together(
            *(self._start(server) for server in (self.postgres, self.nats, self.redis) if server.name in only)
        )

    async def _start(self, server: Postgres | Nats | Redis) -> None:
        program = await server.prepare()
        if program is not None:
            await self.supervisor.start([program])
        else:
            await _require_answer(server)
        if server is self.postgres:
            await _provision(self.postgres, is_given=program is None)


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder whose path is short enough for the names of Unix sockets, for as long as it is needed.

    The kernel allows them 107 bytes, and the folder of a state, or that for temporary files, can be deep.
    """
    is_deep = len(tempfile.gettempdir()) > 60
    folder = Path(tempfile.mkdtemp(prefix="mesh-", dir="/tmp" if is_deep else None))  # noqa: S108 - made anew
    # Others may pass through, to the socket that is theirs; what is in it is closed to them by itself.
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _require_answer(server: Postgres | Nats | Redis) -> None:
    try:
        async with asyncio.timeout(10):
            await server.probe()
    except Exception as error:
        raise StartFailed(
            f"{server.address}, named by MESH_{server.name.upper()}_URL, does not answer:"
            f" {type(error).__name__}: {error}"
        ) from error


async def _provision(postgres: Postgres, *, is_given: bool) -> None:
    try:
        await postgres.provision()
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        which = ", named by MESH_POSTGRES_URL, which has to name a superuser," if is_given else ""
        raise StartFailed(
            f"{postgres.address}{which} cannot be given the databases and roles of the services:"
            f" {type(error).__name__}: {error}"
        ) from error
