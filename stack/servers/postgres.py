"""PostgreSQL: one server with a database and a role for each service."""

import asyncio
import hashlib
import hmac
import secrets
import shutil
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from signal import SIGINT, SIGQUIT
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import asyncpg

from stack.errors import StartFailed
from stack.process import launched
from stack.servers.binaries import postgres_folder
from stack.supervisor import Program
from stack.system_user import SystemUser, unprivileged_user

DATABASES: Final[Mapping[str, str]] = {
    "customer_svc": "customer",
    "order_svc": "orders",
    "payment_svc": "payment",
    "product_svc": "product",
}
"""The role of each service, and the one database that it may open."""

AUDITORS: Final[Mapping[str, str]] = {
    f"{service.removesuffix('_svc')}_audit": database for service, database in DATABASES.items()
}
"""The roles that `mesh audit` has: each may read all of one database, and change nothing."""

SUPERUSER: Final = "postgres"

_DISCREET: Final[Mapping[str, str]] = {
    # Parameters may be secrets, and so may the row that an error is about: without `terse` the server logs it.
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
"""What keeps secrets out of the server's log. A role can neither set nor undo it; provisioning sets it for the roles,
since a server that is there already has settings of its own."""

SETTINGS: Final[Mapping[str, str]] = {
    **_DISCREET,
    "listen_addresses": "",
    "max_connections": "200",
    # Few checkpoints: after each one, every page that is changed is written to the log whole. Not compressed: that took
    # more CPU than it saved in writing.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    # A process that writes pages has the kernel send them to the disk, 256 kB at a time. Else the kernel keeps them
    # for 30 s and then sends all, hundreds of megabytes, and commits wait behind them. The buffers stay
    # at their default (128 MB): a page that is new is dirty in the kernel, too, until it leaves them (ADR-0023).
    "backend_flush_after": "256kB",
    # Cleaning up and looking through tables may take a while. By default they took half a core from the orders for
    # seconds, every minute, and were what one order in a hundred waited for.
    "autovacuum_vacuum_cost_delay": "10ms",
    "default_statistics_target": "25",
    # Compiling costs more than the short statements of the services take.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_min_duration_statement": "500ms",
    "log_lock_waits": "on",
    "shared_preload_libraries": "pg_stat_statements",
}
_DURABLE: Final[Mapping[str, str]] = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
_FLEETING: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class Postgres:
    """A PostgreSQL server that is there already, reached as a superuser.

    It serves one mesh: `provision` sets the passwords of the roles to those of this mesh.
    """

    name: Final = "postgres"

    def __init__(self, superuser_url: str, passwords: Mapping[str, str]) -> None:
        self.superuser_url = superuser_url
        self._passwords = passwords

    @property
    def address(self) -> str:
        """Where it is, without the password, which may also be among the parameters."""
        parts = urlsplit(with_login(self.superuser_url, "", "", ""))
        where = urlencode(
            [(name, value) for name, value in parse_qsl(parts.query) if name in ("host", "port")], safe="/"
        )
        return f"{parts.scheme}://{parts.netloc}{parts.path}{where and f'?{where}'}"

    def superuser_url_of(self, database: str) -> str:
        """Return the URL with which the superuser opens a database of the server."""
        return urlsplit(self.superuser_url)._replace(path=f"/{database}").geturl()

    def url_for(self, role: str) -> str:
        """Return the libpq URL with which this role opens its database; KeyError for an unknown role."""
        return with_login(self.superuser_url, role, self._passwords[role], {**DATABASES, **AUDITORS}[role])

    def audit_url_of(self, database: str) -> str:
        """Return the URL with which the auditor's role opens a database of a service."""
        return self.url_for(next(role for role, its in AUDITORS.items() if its == database))

    async def prepare(self) -> Program | None:
        """Prepare the server and return the program to run; None for one that is there already."""
        return None

    async def probe(self) -> None:
        """Return when the server answers a query, raise otherwise."""
        connection = await asyncpg.connect(self.superuser_url)
        try:
            await connection.execute("SELECT")
        finally:
            await connection.close()

    async def provision(self) -> None:
        """Make each role and its database, where missing, and close each database to all other roles."""
        # Not even the verifiers of passwords are to reach the log, however slow or wrong a statement is.
        unlogged = {
            "log_statement": "none",
            "log_min_duration_statement": "-1",
            "log_min_duration_sample": "-1",
            "log_transaction_sample_rate": "0",
            "log_min_error_statement": "panic",
        }
        connection = await asyncpg.connect(self.superuser_url, server_settings=unlogged)
        try:
            # Of two that do this at once, one waits.
            await connection.execute("SELECT pg_advisory_lock(hashtext('commerce-mesh provision'))")
            for statement in await self._missing(connection):
                await connection.execute(statement)
        finally:
            await connection.close()

    async def _missing(self, connection: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
        roles = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        databases = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
        statements = []
        for role, database in DATABASES.items():
            verifier = _verifier(self._passwords[role])
            statements.append(f"{'ALTER' if role in roles else 'CREATE'} ROLE {role} LOGIN PASSWORD '{verifier}'")
            statements.extend(f"ALTER ROLE {role} SET {setting} = '{value}'" for setting, value in _DISCREET.items())
            if database not in databases:
                statements.append(f"CREATE DATABASE {database} OWNER {role}")
            statements.append(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
            statements.append(f"GRANT CONNECT ON DATABASE {database} TO {role}")
        for role, database in AUDITORS.items():
            verifier = _verifier(self._passwords[role])
            statements += [
                f"{'ALTER' if role in roles else 'CREATE'} ROLE {role} LOGIN PASSWORD '{verifier}'",
                f"ALTER ROLE {role} SET default_transaction_read_only = on",
                f"GRANT CONNECT ON DATABASE {database} TO {role}",
                # It reads all tables of the databases that it may open, and these only.
                f"GRANT pg_read_all_data TO {role}",
            ]
        return statements


class EmbeddedPostgres(Postgres):
    """PostgreSQL of this mesh alone: data in `folder`, reached by a Unix socket in `sockets`."""

    def __init__(self, folder: Path, sockets: Path, passwords: Mapping[str, str], *, is_durable: bool = True) -> None:
        super().__init__(
            f"postgresql://{SUPERUSER}:{quote(passwords[SUPERUSER])}@/{SUPERUSER}?host={quote(str(sockets))}&port=5432",
            passwords,
        )
        self._folder = folder.resolve()
        self._data = self._folder / "data"
        self._sockets = sockets
        self._is_durable = is_durable

    @property
    def address(self) -> str:
        """The file of its socket."""
        return f"unix:{self._sockets}/.s.PGSQL.5432"

    async def probe(self) -> None:
        """Return when the server answers a query, raise otherwise."""
        # Asked before it has said so here, it would log a fatal error for each look.
        if "ready" not in (self._data / "postmaster.pid").read_text():
            raise ConnectionError("it is starting")
        await super().probe()

    async def prepare(self) -> Program:
        """Make the data folder at the first start.

        Raises:
            BinaryMissing: PostgreSQL is not installed.
            FolderUnusable: the user that it runs as cannot reach its data.
            StartFailed: the data are of another major version of PostgreSQL, or could not be made.
        """
        binaries = postgres_folder()
        self._folder.mkdir(parents=True, exist_ok=True)
        user = unprivileged_user(self._data, reaching=[binaries / "postgres", self._data, self._sockets])
        _give(self._sockets, user)
        if not self._data.exists():
            await self._make_data(binaries, user)
        await self._require_same_version(binaries)
        self._remove_stale_lock()
        settings = {**SETTINGS, **(_DURABLE if self._is_durable else _FLEETING)}
        settings["unix_socket_directories"] = str(self._sockets)
        return Program(
            name=self.name,
            command=[
                *(str(binaries / "postgres"), "-D", str(self._data)),
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            environment={"LC_ALL": "C"},
            address=self.address,
            probe=self.probe,
            user=user,
            # After a crash it replays its log first.
            ready_within=300.0,
            # "Fast": ends sessions, writes a checkpoint. "Immediate": ends all its processes at once.
            stop_signal=SIGINT,
            orphan_signal=SIGQUIT,
            stop_grace=60.0,
        )

    async def _missing(self, connection: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
        return [
            *await super()._missing(connection),
            "REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC",
            "CREATE EXTENSION IF NOT EXISTS pg_stat_statements",
        ]

    async def _make_data(self, binaries: Path, user: SystemUser | None) -> None:
        # Under another name until it is whole: a first start that was cut short leaves nothing half made.
        unfinished = self._folder / "data.unfinished"
        password = self._folder / ".password"
        shutil.rmtree(unfinished, ignore_errors=True)
        _give(unfinished, user)
        password.touch(mode=0o600)
        password.write_text(self._passwords[SUPERUSER])
        if user is not None:
            shutil.chown(password, user.uid, user.gid)
        try:
            await _run(
                user,
                *(str(binaries / "initdb"), "-D", str(unfinished)),
                *("--username", SUPERUSER, "--pwfile", str(password), "--auth", "scram-sha-256"),
                # The process that opens a new segment of the log fills it, and commits wait: 15 to 70 ms with 16 MB.
                *("--wal-segsize", "4"),
                # Sorting by code point, the same on every machine and with every C library.
                *("--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
                *(() if self._is_durable else ("--no-sync",)),
            )
        finally:
            password.unlink()
        unfinished.rename(self._data)

    async def _require_same_version(self, binaries: Path) -> None:
        # As in "postgres (PostgreSQL) 18.6".
        installed = (await _run(None, str(binaries / "postgres"), "--version")).split()[2].partition(".")[0]
        made_by = (self._data / "PG_VERSION").read_text().strip()
        if made_by != installed:
            raise StartFailed(
                f"The data in {self._data} were made by PostgreSQL {made_by}, and PostgreSQL {installed} is installed."
                f" Install {made_by} again, or move the data with pg_upgrade or pg_dumpall."
            )

    def _remove_stale_lock(self) -> None:
        """Remove a lock file that a killed server left.

        PostgreSQL does so by itself unless some other process has got the old number by now, as happens in
        containers, where numbers are few. All its processes work in the data folder: if none does, none runs.
        """
        if not Path("/proc").is_dir() or any(
            _works_in(process, self._data) for process in Path("/proc").glob("[0-9]*")
        ):
            return
        (self._data / "postmaster.pid").unlink(missing_ok=True)


def with_login(url: str, user: str, password: str, database: str) -> str:
    """Return the URL of the same server with another user, password and database; an empty one is left out."""
    parts = urlsplit(url)
    login = ":".join(quote(part, safe="") for part in (user, password) if part)
    server = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{login}@{server}" if login else server, path=f"/{database}"))


def _verifier(password: str) -> str:
    """What PostgreSQL keeps of an ASCII password, made here as `\\password` of psql does: the server never sees it.

    Statements are kept by logs and by pg_stat_statements. For the form see the source's `scram_build_secret`.
    """
    salt, iterations = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key, server_key = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    stored_key = hashlib.sha256(client_key).digest()
    salt64, stored64, server64 = (b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${iterations}:{salt64}${stored64}:{server64}"


def _give(folder: Path, user: SystemUser | None) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if user is not None:
        shutil.chown(folder, user.uid, user.gid)


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:  # it has ended, or is another user's
        return False


async def _run(user: SystemUser | None, *command: str) -> str:
    """Run the command to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *launched(command, user=user),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"LC_ALL": "C"},
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise StartFailed(f"{Path(command[0]).name} failed:\n{output.decode(errors='replace').strip()}")
    return output.decode()
