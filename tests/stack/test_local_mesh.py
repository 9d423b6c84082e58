"""A whole mesh from the command, watched from outside: started, hurt, stopped."""

import json
import os
import pty
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from stack.ports import free_ports
from stack.process import Identity, launched
from stack.state import State
from stack.system_user import SystemUser

PROCESSES = {"postgres", "nats", "redis", "customer", "product", "payment", "order-1", "order-2", "edge", "audit"}


def mesh(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ops.cli import main; main()", *arguments, "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def up(state: Path, *more: str) -> str:
    """Start a mesh in `state`, and return the URL of its edge."""
    [port] = free_ports(1)
    done = mesh("up", "--detach", "--edge-port", str(port), *more, state=state)
    assert done.returncode == 0, done.stderr
    return f"http://127.0.0.1:{port}"


def status(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mesh("status", "--json", state=state).stdout)
    return found


def identities(state: Path) -> dict[str, Identity]:
    return {process.name: process.identity for process in State.find(state).running().processes if process.identity}


def is_ready(state: Path) -> bool:
    return State.find(state).running().ready


def until(condition: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 60
        time.sleep(0.05)


@dataclass(frozen=True)
class Running:
    """A mesh that is up: its state folder, and the URL of its edge."""

    state: Path
    edge: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("mesh")
    yield Running(state, up(state, "--workers", "order=2", "--seed"))
    mesh("down", state=state)


def test_it_says_what_runs_where_and_that_all_is_ready(running: Running) -> None:
    found = status(running.state)
    assert (found["ready"], found["edge"]) == (True, running.edge)
    assert {process["name"] for process in found["processes"]} == PROCESSES
    for process in found["processes"]:
        assert process["ready"]
        assert process["address"]
        assert Identity.of(process["pid"])
    assert mesh("status", state=running.state).returncode == 0


def test_a_seeded_mesh_has_products_for_sale(running: Running) -> None:
    products = httpx.get(f"{running.edge}/v1/products").json()["products"]
    assert len(products) == 5
    assert all(product["stockQuantity"] > 0 for product in products)


def test_the_demo_finds_all_as_it_should_be(running: Running) -> None:
    done = mesh("demo", state=running.state)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("All as it should be.\n")


def test_a_second_start_is_refused_with_where_the_first_is(running: Running) -> None:
    done = mesh("up", state=running.state)
    assert (done.returncode, running.edge in done.stderr) == (1, True)


def test_the_databases_of_a_running_mesh_can_be_migrated(running: Running) -> None:
    done = mesh("migrate", state=running.state)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is up to date") == 4


@pytest.mark.parametrize("name", ["order-2", "nats", "postgres", "edge"])
def test_what_is_killed_runs_again_at_its_address(running: Running, name: str) -> None:
    before = next(process for process in status(running.state)["processes"] if process["name"] == name)
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: identities(running.state).get(name, Identity(before["pid"], "")).pid != before["pid"])
    until(lambda: is_ready(running.state))
    after = next(process for process in status(running.state)["processes"] if process["name"] == name)
    assert after["address"] == before["address"]
    assert httpx.get(f"{running.edge}/v1/products").status_code == 200


def test_a_mesh_that_is_killed_leaves_nothing_and_starts_again_with_its_data(running: Running) -> None:
    """The last test of the shared mesh, which is down afterwards."""
    state = running.state
    products = httpx.get(f"{running.edge}/v1/products").json()
    run = State.find(state).running()
    os.kill(run.supervisor.pid, signal.SIGKILL)
    until(lambda: not any(process.identity and process.identity.is_alive() for process in run.processes))
    assert status(state) == {"ready": False, "edge": None, "processes": []}

    edge = up(state)
    assert not run.sockets.exists()
    assert httpx.get(f"{edge}/v1/products").json() == products
    run = State.find(state).running()
    assert mesh("down", state=state).stdout == "stopped; the data stay\n"
    assert not any(process.identity and process.identity.is_alive() for process in run.processes)
    assert not run.sockets.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test here shows it already")
def test_a_user_who_is_not_root_can_run_it() -> None:
    nobody = pwd.getpwnam("nobody")
    # It may pass through the folders above this project, as a person who works in it may.
    user = SystemUser(uid=nobody.pw_uid, gid=nobody.pw_gid, capability="CAP_DAC_READ_SEARCH")
    [port] = free_ports(1)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", "from ops.cli import main; main()", *arguments, "--state", folder]
        done = subprocess.run(
            launched(command, user=user),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={"PATH": os.environ["PATH"]},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # Not pytest's folder: those above it are closed to others.
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        try:
            run("up", "--detach", "--edge-port", str(port), "--seed")
            found = json.loads(run("status", "--json"))
            assert found["ready"]
            assert {Path(f"/proc/{process['pid']}").stat().st_uid for process in found["processes"]} == {nobody.pw_uid}
            assert {path.owner() for path in Path(folder).rglob("*")} == {"nobody"}
            assert len(httpx.get(f"http://127.0.0.1:{port}/v1/products").json()["products"]) == 5
        finally:
            assert run("down") == "stopped; the data stay\n"


@contextmanager
def foreground(state: Path, output: int, code: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """`mesh up` that has `output` for its standard input and outputs, in a session of its own; killed at the end."""
    [port] = free_ports(1)
    command = [sys.executable, "-c", f"{code}from ops.cli import main; main()", "up", "--edge-port", str(port)]
    with subprocess.Popen(
        [*command, "--state", str(state)], stdin=output, stdout=output, stderr=output, start_new_session=True
    ) as process:
        os.close(output)
        try:
            yield process
        finally:
            process.kill()


def read_until_ready(terminal: int) -> None:
    said = b""
    while b"Ctrl-C stops it." not in said:
        some = os.read(terminal, 1024)
        assert some, said
        said += some


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state that one mesh after the other uses: all but the first start faster."""
    return tmp_path_factory.mktemp("used")


def test_ctrl_c_stops_it_cleanly(used: Path) -> None:
    [port] = free_ports(1)
    command = [sys.executable, "-c", "from ops.cli import main; main()", "up"]
    options = ["--state", str(used), "--edge-port", str(port)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = [line for line in iter(process.stdout.readline, "Ctrl-C stops it.\n") if line]
        processes = identities(used).values()
        process.send_signal(signal.SIGINT)
        said.append(process.stdout.read())
        assert process.wait(timeout=60) == 0, said
    assert said[0] == "… PostgreSQL, NATS and Redis\n"
    assert said[1].startswith("✓ PostgreSQL, NATS and Redis (")
    assert f"The mesh is ready at http://127.0.0.1:{port}\n" in said
    assert not any(one.is_alive() for one in processes)


def test_it_can_be_stopped_while_it_starts(tmp_path: Path) -> None:
    [port] = free_ports(1)
    command = [sys.executable, "-c", "from ops.cli import main; main()", "up", "--edge-port", str(port)]
    with subprocess.Popen([*command, "--state", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        done = mesh("down", state=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "stopped; the data stay\n", "")
        assert process.wait(timeout=60) == 0
    assert status(tmp_path)["processes"] == []


def test_a_port_that_is_taken_while_it_starts_is_named(used: Path) -> None:
    [port] = free_ports(1)
    command = [sys.executable, "-c", "from ops.cli import main; main()", "up", "--edge-port", str(port)]
    with subprocess.Popen(
        [*command, "--state", str(used)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "… PostgreSQL, NATS and Redis\n"
        with socket.create_server(("127.0.0.1", port)):
            _, errors = process.communicate(timeout=60)
    assert errors == f"mesh: 127.0.0.1:{port} is taken by another program. Choose another port with --edge-port.\n"
    assert process.returncode == 1


def test_a_terminal_that_is_closed_stops_it_cleanly(used: Path) -> None:
    ours, theirs = pty.openpty()
    # These tests may run under nohup themselves.
    own_terminal = (
        "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    )
    with foreground(used, theirs, own_terminal) as process:
        read_until_ready(ours)
        processes = identities(used).values()
        os.close(ours)
        assert process.wait(timeout=60) == 0
    assert not any(one.is_alive() for one in processes)


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty])
def test_it_goes_on_under_nohup_when_nobody_reads_what_it_says(
    used: Path, opened: Callable[[], tuple[int, int]]
) -> None:
    ours, theirs = opened()
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    with foreground(used, theirs, nohup) as process:
        read_until_ready(ours)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        killed = identities(used)["redis"]
        os.kill(killed.pid, signal.SIGKILL)
        until(lambda: identities(used).get("redis", killed) != killed)
        until(lambda: is_ready(used))
        processes = identities(used).values()
        process.terminate()
        assert process.wait(timeout=60) == 0
    assert not any(one.is_alive() for one in processes)
