"""A whole mesh on this machine, from the first file to the edge."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from stack import pki, services
from stack.auditor import auditor, interval
from stack.edge import Edge
from stack.passwords import keep_passwords
from stack.ports import require_free
from stack.process import Identity
from stack.report import Kind, Listener, Report
from stack.seed import seed
from stack.servers import Servers, short_folder
from stack.services import Services
from stack.state import ProcessRecord, RunRecord, State
from stack.supervisor import Death, Supervisor, together


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person chooses about a mesh."""

    edge_host: str = "127.0.0.1"
    edge_port: int = 8080
    workers: Mapping[str, int] = field(default_factory=dict)
    """How many workers of a service, one if it is not named."""
    seed: bool = False
    """Make a few products if there are none."""

    @property
    def edge_url(self) -> str:
        """Where the edge is reached from this machine."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound to
        host = everywhere.get(self.edge_host, self.edge_host)
        return f"http://[{host}]:{self.edge_port}" if ":" in host else f"http://{host}:{self.edge_port}"


class LocalMesh:
    """One mesh: real servers, four services and the edge, under one supervisor."""

    def __init__(self, state: State, options: Options, environment: Mapping[str, str], tell: Listener) -> None:
        self._state = state
        self._options = options
        self._environment = environment
        self._tell = tell
        self._supervisor = Supervisor(logs=state.logs, changed=self._record, died=self._tell_of_death)
        self._sockets = Path()
        self._is_complete = False

    async def run(self) -> None:
        """Start everything, say that it is ready, and keep it so until cancelled; then stop everything.

        Raises:
            StackError: it cannot start; what had been started is stopped.
        """
        with self._state.locked():
            for name in await self._state.clear_remains():
                self._tell(Report(Kind.NOTE, f"ended {name}, left over from a mesh that was killed"))
            with short_folder() as self._sockets:
                try:
                    # From now on `mesh down` finds it.
                    self._record()
                    self._require_edge_address()
                    async with self._supervisor:
                        await self._start()
                        await self._supervisor.broken()
                finally:
                    self._state.forget_run()

    def kill(self) -> None:
        """End everything at once, for a person who does not want to wait for the orderly stop."""
        self._supervisor.kill()

    async def _start(self) -> None:
        credentials = pki.issue(self._state.pki, [*services.NAMES, "gateway", "operator"])
        signing_key = pki.make_signing_key(self._state.pki)
        servers = Servers.under(self._state.folder, self._sockets, self._supervisor, given=self._environment)
        kept = keep_passwords(self._state.passwords, ["pages", "sandbox webhooks"])
        parts = Services(
            ports=Services.choose_ports(self._options.workers),
            servers=servers,
            credentials=credentials,
            signing_key=signing_key,
            page_secret=kept["pages"],
            webhook_secret=kept["sandbox webhooks"],
            edge_url=self._options.edge_url,
            environment=self._environment,
        )
        edge = Edge(
            self._state.folder / "edge",
            self._sockets,
            host=self._options.edge_host,
            port=self._options.edge_port,
            services=parts,
            credentials=credentials["gateway"],
            jwks=signing_key.jwks,
        )
        # Before the servers are started for nothing.
        edge_program = edge.prepare()
        every = interval(self._environment)
        async with self._step("PostgreSQL, NATS and Redis"):
            # Alembic takes long to import: meanwhile the servers start.
            await together(servers.start(), asyncio.to_thread(import_module, "stack.migrations"))
        async with self._step("customer, product, payment and order"):
            await self._start_services(servers, parts)
        async with self._step("the edge"):
            # Another mesh may have started meanwhile.
            self._require_edge_address()
            await self._supervisor.start([edge_program])
        if every:
            await self._supervisor.start([auditor(self._state, servers, self._environment, every)])
        if self._options.seed:
            async with self._step("a few products"):
                await seed(self._options.edge_url, signing_key.private)
        self._is_complete = True
        self._record()
        self._tell(Report(Kind.READY, self._options.edge_url))

    def _require_edge_address(self) -> None:
        require_free(self._options.edge_host, self._options.edge_port, remedy="Choose another port with --edge-port.")

    async def _start_services(self, servers: Servers, parts: Services) -> None:
        from stack.migrations import migrate  # noqa: PLC0415 - see `_start`

        one_at_a_time = asyncio.Lock()

        async def start(name: str) -> None:
            # While one database is migrated, the service before it starts.
            async with one_at_a_time:
                await migrate(servers.postgres, f"{name}_svc")
            await self._supervisor.start(parts.programs(name))

        await together(*(start(name) for name in services.NAMES))

    @asynccontextmanager
    async def _step(self, what: str) -> AsyncIterator[None]:
        clock = asyncio.get_running_loop().time
        started = clock()
        self._tell(Report(Kind.BEGUN, what))
        yield
        self._tell(Report(Kind.DONE, f"{what} ({clock() - started:.1f} s)"))

    def _tell_of_death(self, death: Death) -> None:
        text = f"{death.name} {death.how} and is started again in {death.restart_in:.1f} s"
        if death.log_end:
            text = f"{death.name} keeps dying: it {death.how}, {death.in_a_row} times in a row.\n{death.log_end}"
        self._tell(Report(Kind.NOTE, text))

    def _record(self) -> None:
        supervised = self._supervisor.supervised
        run = RunRecord(
            supervisor=Identity.mine(),
            edge=self._options.edge_url,
            ready=self._is_complete and all(one.is_ready and not one.is_doubted for one in supervised),
            sockets=self._sockets,
            processes=[
                ProcessRecord(
                    name=one.program.name,
                    identity=one.identity,
                    ready=one.is_ready,
                    address=one.program.address,
                    restarts=one.restarts,
                )
                for one in supervised
            ],
        )
        # On a full disk others see an old record; the mesh itself goes on.
        with contextlib.suppress(OSError):
            self._state.record(run)
